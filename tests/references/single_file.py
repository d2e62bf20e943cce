"""Names of tensors in the single files of Stable Diffusion's own repositories.

    pip install torch==2.15 diffusers==0.42.1 transformers==5.24 safetensors
    python single_file.py PIPELINES OUT.json

For the pipelines `sd1`, `sdxl` and `sd3` in the folder PIPELINES, writes what a single file of their layout holds: for each
tensor the part that it comes from, the names there, and how it is put together (`whole`, `rows` one below the other,
`swapped` halves of the rows, `transposed`; `dims` of 1 are added). Then it builds each file, lets diffusers' converters
read it, and compares the result with the parts. Made with Python 3.11, torch 2.15.0, diffusers 0.42.1 and safetensors 0.8.0.
"""
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers.loaders import single_file_utils as utils
from safetensors.torch import load_file


def sub(name, *pairs):
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


RESNET = [
    (r"norm1", "in_layers.0"),
    (r"conv1", "in_layers.2"),
    (r"time_emb_proj", "emb_layers.1"),
    (r"norm2", "out_layers.0"),
    (r"conv2", "out_layers.3"),
    (r"conv_shortcut", "skip_connection"),
]


def unet(names, config):
    layers = config["layers_per_block"]
    layers = layers if isinstance(layers, list) else [layers] * len(config["block_out_channels"])
    attends = ["CrossAttn" in name for name in config["up_block_types"]]
    entries = {}
    for name in names:
        new = sub(
            name,
            (r"^conv_in", "input_blocks.0.0"),
            (r"^time_embedding.linear_1", "time_embed.0"),
            (r"^time_embedding.linear_2", "time_embed.2"),
            (r"^add_embedding.linear_1", "label_emb.0.0"),
            (r"^add_embedding.linear_2", "label_emb.0.2"),
            (r"^conv_norm_out", "out.0"),
            (r"^conv_out", "out.2"),
        )
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            side, block, kind, layer, rest = match.groups()
            block, layer = int(block), int(layer)
            if side == "down":
                place = 1 + sum(count + 1 for count in layers[:block]) + layer
                inner = {
                    "resnets": "0." + sub(rest, *RESNET),
                    "attentions": "1." + rest,
                    "downsamplers": "0." + rest.replace("conv", "op"),
                }[kind]
                place = place + layers[block] if kind == "downsamplers" else place
                new = f"input_blocks.{place}.{inner}"
            else:
                counts = [count + 1 for count in reversed(layers)]
                place = sum(counts[:block]) + (counts[block] - 1 if kind == "upsamplers" else layer)
                inner = {
                    "resnets": "0." + sub(rest, *RESNET),
                    "attentions": "1." + rest,
                    "upsamplers": f"{2 if attends[block] else 1}." + rest,
                }[kind]
                new = f"output_blocks.{place}.{inner}"
        elif match := re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name):
            kind, layer, rest = match.groups()
            new = f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(layer)}.{sub(rest, *RESNET)}"
        entries["model.diffusion_model." + new] = ([name], "whole")
    return entries


def autoencoder(names, config):
    last = len(config["block_out_channels"]) - 1
    entries = {}
    for name in names:
        new = sub(
            name,
            (r"conv_norm_out", "norm_out"),
            (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
            (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
            (r"mid_block\.resnets\.0", "mid.block_1"),
            (r"mid_block\.resnets\.1", "mid.block_2"),
            (r"mid_block\.attentions\.0", "mid.attn_1"),
            (r"attn_1\.group_norm", "attn_1.norm"),
            (r"attn_1\.to_([qkv])", r"attn_1.\1"),
            (r"attn_1\.to_out\.0", "attn_1.proj_out"),
            (r"conv_shortcut", "nin_shortcut"),
        )
        if match := re.match(r"decoder\.up_blocks\.(\d+)\.(.*)", new):
            rest = sub(match[2], (r"^resnets\.(\d+)", r"block.\1"), (r"^upsamplers\.0", "upsample"))
            new = f"decoder.up.{last - int(match[1])}.{rest}"
        is_matrix = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)
        entries["first_stage_model." + new] = ([name], "dims" if is_matrix else "whole")
    return entries


def open_clip(names, prefix):
    entries = {}
    for name in names:
        new = sub(
            name.removeprefix("text_model."),
            (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
            (r"^embeddings\.token_embedding", "token_embedding"),
            (r"^final_layer_norm", "ln_final"),
            (r"^text_projection\.weight", "text_projection"),
            (r"^encoder\.layers", "transformer.resblocks"),
            (r"layer_norm1", "ln_1"),
            (r"layer_norm2", "ln_2"),
            (r"mlp\.fc1", "mlp.c_fc"),
            (r"mlp\.fc2", "mlp.c_proj"),
            (r"self_attn", "attn"),
        )
        if match := re.match(r"(.*attn)\.q_proj\.(weight|bias)", new):
            parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            entries[f"{prefix}{match[1]}.in_proj_{match[2]}"] = (parts, "rows")
        elif not re.search(r"attn\.[kv]_proj", new):
            entries[prefix + new] = ([name], "transposed" if new == "text_projection" else "whole")
    return entries


def mmdit(names, config):
    last = config["num_layers"] - 1
    entries = {}
    for name in names:
        new = sub(
            name,
            (r"^pos_embed\.pos_embed", "pos_embed"),
            (r"^pos_embed\.proj", "x_embedder.proj"),
            (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
            (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
            (r"^proj_out", "final_layer.linear"),
            (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
            (r"^transformer_blocks", "joint_blocks"),
            (r"norm1\.linear", "x_block.adaLN_modulation.1"),
            (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
            (r"attn\.to_out\.0", "x_block.attn.proj"),
            (r"attn\.to_add_out", "context_block.attn.proj"),
            (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"),
            (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
            (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"),
            (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
        )
        swapped = "final_layer.adaLN" in new or f"joint_blocks.{last}.context_block.adaLN" in new
        how = "swapped" if swapped else "whole"
        parts = [name]
        if match := re.match(r"(.*)\.attn\.(to_q|add_q_proj)\.(.*)", new):
            block = "x_block" if match[2] == "to_q" else "context_block"
            q = "to_q" if match[2] == "to_q" else "add_q_proj"
            parts, how = [name.replace(q, q.replace("q", part)) for part in "qkv"], "rows"
            new = f"{match[1]}.{block}.attn.qkv.{match[3]}"
        elif re.search(r"attn\.(to_[kv]|add_[kv]_proj)\.", new):
            continue
        entries["model.diffusion_model." + new] = (parts, how)
    return entries


def build(entries, weights):
    file = {}
    for name, (part, names, how) in entries.items():
        tensors = [weights[part][source] for source in names]
        tensor = torch.cat(tensors)
        if how == "swapped":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        elif how == "transposed":
            tensor = tensor.T.contiguous()
        elif how == "dims":
            tensor = tensor[:, :, None, None]
        file[name] = tensor
    return file


def compare(what, found, expected):
    expected = {name: tensor for name, tensor in expected.items() if "position_ids" not in name}
    assert set(found) == set(expected), (what, set(found) ^ set(expected))
    for name, tensor in expected.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), (what, name)
    print(what, len(expected), "tensors agree")


def main(root, out):
    result = {}
    for name in ["sd1", "sdxl", "sd3"]:
        folder = root / name
        denoiser = "transformer" if name == "sd3" else "unet"
        stems = {denoiser: "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
        stems |= {path.name: "model" for path in folder.glob("text_encoder*")}
        weights = {part: load_file(folder / part / f"{stem}.safetensors") for part, stem in stems.items()}
        configs = {part: json.loads((folder / part / "config.json").read_text()) for part in stems}
        clip = lambda part, prefix: {prefix + key: ([key], "whole") for key in weights[part]}
        parts = {denoiser: (mmdit if name == "sd3" else unet)(weights[denoiser], configs[denoiser])}
        parts["vae"] = autoencoder(weights["vae"], configs["vae"])
        if name == "sd1":
            parts["text_encoder"] = clip("text_encoder", "cond_stage_model.transformer.")
        elif name == "sdxl":
            parts["text_encoder"] = clip("text_encoder", "conditioner.embedders.0.transformer.")
            parts["text_encoder_2"] = open_clip(weights["text_encoder_2"], "conditioner.embedders.1.model.")
        else:
            for part, prefix in [("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")]:
                parts[part] = clip(part, f"text_encoders.{prefix}.transformer.")
        entries = {key: (part, *value) for part, of in parts.items() for key, value in of.items()}
        file = build(entries, weights)
        if name == "sd3":
            compare(f"{name} transformer", utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(file)), weights[denoiser])
        else:
            compare(f"{name} unet", utils.convert_ldm_unet_checkpoint(dict(file), configs[denoiser]), weights[denoiser])
        compare(f"{name} vae", utils.convert_ldm_vae_checkpoint(dict(file), configs["vae"]), weights["vae"])
        if name == "sdxl":
            hidden = configs["text_encoder_2"]["hidden_size"]
            # The converter cuts the packed projections at the width of the text projection, which is the width of the model
            # in the published file but not here.
            cut = {key: value for key, value in file.items() if not key.endswith("text_projection")}
            model = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
            found = utils.convert_open_clip_checkpoint(model, cut, prefix="conditioner.embedders.1.model.")
            expected = {key: value for key, value in weights["text_encoder_2"].items() if key != "text_projection.weight"}
            compare(f"{name} text_encoder_2", found, expected)
        # As short as it can be: the part, and the names without a list where there is one.
        result[name] = {key: [part, *(names if how == "whole" else [names, how])] for key, (part, names, how) in entries.items()}
    short = lambda value: json.dumps(value, separators=(",", ":"))
    layouts = [
        f"{short(name)}:{{\n" + ",\n".join(f"{short(key)}:{short(value)}" for key, value in entries.items()) + "}"
        for name, entries in result.items()
    ]
    out.write_text("{" + ",\n".join(layouts) + "}\n")


main(Path(sys.argv[1]), Path(sys.argv[2]))

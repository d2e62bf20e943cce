"""Tiny random denoisers that read a text, with what diffusers computes from them.

    pip install torch==2.15 diffusers==0.42.1 safetensors numpy
    python denoisers.py FOLDER

Each folder holds a network's `config.json` as diffusers writes it, and `reference.safetensors`: the network's `output` at
`x`, `timestep`, `text` and whatever else it reads (`pooled`, `time_ids`, `guidance`, `label`). Every parameter is a value of
formula.py, by its rules for networks; the position embedding of `sd35` is the one that diffusers makes. The three
networks have the options that the pipelines of the other fixtures lack. Made with Python 3.11, torch 2.15.0, diffusers 0.42.1,
safetensors 0.8.0 and numpy 2.4.6.
"""
import json
import sys
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from formula import fill
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def write(folder, network, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in network.config.items() if key != "_use_default_values"}
    config["_class_name"] = type(network).__name__
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "reference.safetensors")


def sd35(root):
    """RMS norms on queries and keys, a second attention, a position table that is cropped."""
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        num_layers=4,
        attention_head_dim=12,
        num_attention_heads=4,
        caption_projection_dim=48,
        joint_attention_dim=28,
        pooled_projection_dim=20,
        pos_embed_max_size=7,
        dual_attention_layers=(0, 2),
        qk_norm="rms_norm",
    )
    fill(network, 11)
    random = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    io = {"x": draw(2, 8, 8, 8), "timestep": torch.tensor([1000.0, 310.0]), "text": draw(2, 9, 28), "pooled": draw(2, 20)}
    io["output"] = network(io["x"], io["text"], io["pooled"], io["timestep"]).sample
    write(root / "sd35", network, io)


def sd2(root):
    """Three levels, scale and shift, linear projections, transformers of several blocks, classes."""
    network = UNet2DConditionModel(
        sample_size=12,
        block_out_channels=(24, 48, 72),
        layers_per_block=(1, 2, 1),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=20,
        use_linear_projection=True,
        norm_num_groups=12,
        resnet_time_scale_shift="scale_shift",
        mid_block_scale_factor=1.25,
        downsample_padding=0,
        num_class_embeds=5,
    )
    fill(network, 13)
    random = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    io = {"x": draw(2, 4, 12, 12), "timestep": torch.tensor([999.0, 123.0]), "text": draw(2, 10, 20)}
    io["label"] = torch.tensor([4, 1])
    io["output"] = network(io["x"], io["timestep"], io["text"], class_labels=io["label"]).sample
    write(root / "sd2", network, io)


def guided(root):
    """A latent consistency model of Stable Diffusion XL: it reads the guidance scale, the whole text and sizes."""
    network = UNet2DConditionModel(
        sample_size=(8, 12),
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 3),
        attention_head_dim=(1, 2),
        cross_attention_dim=24,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,
        time_cond_proj_dim=16,
    )
    fill(network, 17)
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    io = {"x": draw(2, 4, 8, 12), "timestep": torch.tensor([999.0, 57.0]), "text": draw(2, 6, 24), "pooled": draw(2, 16)}
    io["time_ids"] = torch.tensor([[64.0, 96, 0, 0, 64, 96], [512.0, 768, 32, 8, 64, 96]])
    io["guidance"] = torch.tensor([7.5, 1.0])
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, io["guidance"] - 1, 16)
    added = {"text_embeds": io["pooled"], "time_ids": io["time_ids"]}
    output = network(io["x"], io["timestep"], io["text"], timestep_cond=embedding, added_cond_kwargs=added)
    write(root / "guided", network, io | {"output": output.sample})


for make in [sd35, sd2, guided]:
    make(Path(sys.argv[1]))

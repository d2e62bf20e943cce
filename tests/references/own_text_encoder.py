"""A denoiser that was trained with its text encoder, in transformers and diffusers.

    pip install torch==2.15 diffusers==0.42.1 transformers==5.24 safetensors numpy
    python own_text_encoder.py PIPELINE MODEL DISTILL OUT

PIPELINE is the folder that the run had as its teacher, MODEL its student.safetensors. Loads the two halves of MODEL into
`CLIPTextModel` and `UNet2DConditionModel`, samples one step of flow matching from noise for some prompts, and prints the
difference from the pictures of DISTILL. Patches of pixels are `pixel_unshuffle` and `pixel_shuffle` around the U-Net. Run with
Python 3.11, torch 2.15.0, diffusers 0.42.1 and transformers 5.24.
"""
import json
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

folder, model, program, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)
PROMPTS = ["red apple", "grinning face", "a dog with a hat"]
PREFIX = "text_encoder."

tensors = load_file(model)
of_text = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
of_unet = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}

text_encoder = CLIPTextModel(CLIPTextConfig(**json.loads((folder / "text_encoder/config.json").read_text()))).eval()
own = text_encoder.state_dict()
# Some versions have no `text_model.` in the names.
of_text = {name if name in own else name.removeprefix("text_model."): tensor for name, tensor in of_text.items()}
missing, unexpected = text_encoder.load_state_dict(of_text, strict=False)
assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)

config = json.loads((folder / "unet/config.json").read_text())
side = config.pop("patch_size", 1)
channels, size = config["in_channels"], config["sample_size"]
config |= {"in_channels": channels * side**2, "out_channels": channels * side**2, "sample_size": size // side}
unet = UNet2DConditionModel.from_config(config).eval()
unet.load_state_dict(of_unet)

tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
length = text_encoder.config.max_position_embeddings
tokens = tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
text = text_encoder(tokens.input_ids).last_hidden_state
noise = torch.randn(len(PROMPTS), channels, size, size, generator=torch.Generator().manual_seed(0))
patches = torch.nn.functional.pixel_unshuffle(noise, side)
# The network predicts noise less data, at the time 1000 of pure noise.
output = unet(patches, torch.full((len(PROMPTS),), 1000.0), text).sample
expected = noise - torch.nn.functional.pixel_shuffle(output, side)

save_file({"x": noise}, out / "noise.safetensors")
command = [program, "sample", folder, "--denoiser", model, "--steps", "1", "--guidance", "1", "--device", "cpu"]
command += ["--noise", out / "noise.safetensors", "--out", out / "images.safetensors"]
subprocess.run(command + [f"--prompt={prompt}" for prompt in PROMPTS], check=True)
found = load_file(out / "images.safetensors")["images"]
print(f"relative difference {(found - expected).norm() / expected.norm():.2g}")

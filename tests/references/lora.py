"""Samples of a pipeline with a LoRA by diffusers, beside those of this program.

    pip install torch==2.15 diffusers==0.42.1 transformers==5.24 peft safetensors
    python lora.py PIPELINES/sd1 DISTILL OUT

Writes a random LoRA in the naming of diffusers and in that of kohya's scripts (with alpha), loads each with
`load_lora_weights`, samples, runs `DISTILL sample --lora` on the same noise and prints the differences. Run with Python 3.11,
torch 2.15.0, diffusers 0.42.1, transformers 5.24 and peft.
"""
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

folder, program, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)
random = torch.Generator().manual_seed(0)
RANK, ALPHA = 4, 2.0


def load():
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


plain = load()
diffusers_file, kohya_file = {}, {}
for name, module in plain.unet.named_modules():
    if isinstance(module, torch.nn.Linear) and ("attn" in name) and name.split(".")[-1] in ("to_q", "to_v", "0"):
        down = torch.randn(RANK, module.in_features, generator=random) / module.in_features**0.5
        up = torch.randn(module.out_features, RANK, generator=random) / RANK
        diffusers_file |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        flat = "lora_unet_" + name.replace(".", "_")
        kohya_file |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(ALPHA)}
noise = load_file(folder / "reference.safetensors")["noise"]
save_file({"x": noise}, out / "noise.safetensors")
prompts = ["a photo of an astronaut riding a horse", "Sunset over Zürich; 4k!!  trending"]
for name, file in [("diffusers", diffusers_file), ("kohya", kohya_file)]:
    save_file(file, out / f"{name}.safetensors")
    pipeline = load()
    pipeline.load_lora_weights(out, weight_name=f"{name}.safetensors")
    pipeline.set_adapters(pipeline.get_list_adapters()["unet"][0], 0.75)
    images = pipeline(prompts, latents=noise.clone(), num_inference_steps=4, guidance_scale=5.0, output_type="pt").images
    without = plain(prompts, latents=noise.clone(), num_inference_steps=4, guidance_scale=5.0, output_type="pt").images
    command = [program, "sample", folder, "--steps", "4", "--guidance", "5", "--noise", out / "noise.safetensors"]
    command += ["--lora", f"{out / name}.safetensors:0.75", "--device", "cpu", "--out", out / f"{name}-images.safetensors"]
    for prompt in prompts:
        command += ["--prompt", prompt]
    subprocess.run(command, check=True)
    found = load_file(out / f"{name}-images.safetensors")["images"]
    found = ((found + 1) / 2).clamp(0, 1)
    error = ((found - images).norm() / images.norm()).item()
    print(f"{name}: {error:.1e} from diffusers; the LoRA changes {((without - images).norm() / images.norm()).item():.2f}")

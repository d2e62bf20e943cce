"""A student of this program in diffusers: the LoRA file of a run, loaded with `load_lora_weights`.

    pip install torch==2.15 diffusers==0.42.1 transformers==5.24 peft safetensors
    python lora_student.py PIPELINE RUN DISTILL OUT

PIPELINE is the folder that the run in RUN had as its teacher (Stable Diffusion XL or 3). Puts the run's teacher, if it trained
one, in the place of the pipeline's denoiser, loads RUN/student.safetensors, samples one step in diffusers and with DISTILL from
the same noise and prompts, and prints the difference. Run with Python 3.11, torch 2.15.0, diffusers 0.42.1, transformers 5.24
and peft 0.21.2.
"""
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

folder, run, program, out = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
out.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)

pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
is_flow = hasattr(pipeline, "transformer")
if not is_flow:
    options = dict(timestep_spacing="trailing", clip_sample=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **options)
denoiser = pipeline.transformer if is_flow else pipeline.unet
command = [program, "sample", folder, "--steps", "1", "--guidance", "1", "--solver", "euler", "--device", "cpu"]
teacher = run / "teacher.safetensors"
if teacher.exists():
    denoiser.load_state_dict(load_file(teacher))
    command += ["--denoiser", teacher]

prompts = ["a red square", "a blue circle"]
shape = load_file(folder / "reference.safetensors")["noise"].shape[1:]
noise = torch.randn(len(prompts), *shape, generator=torch.Generator().manual_seed(5))
save_file({"x": noise}, out / "noise.safetensors")
options = dict(latents=noise.clone(), num_inference_steps=1, guidance_scale=1.0, output_type="pt")
without = pipeline(prompts, **options).images
pipeline.load_lora_weights(run, weight_name="student.safetensors")
options["latents"] = noise.clone()
images = pipeline(prompts, **options).images

command += ["--lora", run / "student.safetensors", "--noise", out / "noise.safetensors", "--out", out / "images.safetensors"]
for prompt in prompts:
    command += ["--prompt", prompt]
subprocess.run(command, check=True)
found = ((load_file(out / "images.safetensors")["images"] + 1) / 2).clamp(0, 1)
error = ((found - images).norm() / images.norm()).item()
changed = ((without - images).norm() / images.norm()).item()
print(f"{error:.1e} from diffusers; the LoRA changes {changed:.2f}")

"""Compares models that `distill export --layout diffusers` writes with `distill sample`, through diffusers.

    pip install torch==2.15 diffusers==0.42.1 safetensors
    python export_check.py DISTILL MODEL.safetensors STEPS

Runs the folder's own sample.py and, where the folder has a pipeline, load_exported.py. Prints relative differences.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

distill, model, steps = sys.argv[1], sys.argv[2], sys.argv[3]
here = Path(__file__).parent
with tempfile.TemporaryDirectory() as temporary:
    root = Path(temporary)
    folder = root / "diffusers"
    run = lambda *command: subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    run(distill, "export", model, "--layout", "diffusers", "--steps", steps, "--out", folder)
    config = json.loads((folder / "unet/config.json").read_text())
    size = config["sample_size"]
    sides = size if isinstance(size, list) else [size, size]
    torch.manual_seed(1)
    noise = {"x": torch.randn(3, config["in_channels"], *sides)}
    if config["num_class_embeds"]:
        noise["label"] = torch.tensor([0, 1, config["num_class_embeds"] - 1])
    save_file(noise, root / "noise.safetensors")
    run(distill, "sample", model, "--noise", root / "noise.safetensors", "--steps", steps, "--device", "cpu",
        "--out", root / "ours.safetensors")
    ours = load_file(root / "ours.safetensors")["images"]

    def compare(what, file):
        theirs = load_file(file)["images"]
        print(f"{what}: relative difference {((ours - theirs).norm() / theirs.norm()).item():.1e}")

    run(sys.executable, folder / "sample.py", root / "noise.safetensors", root / "theirs.safetensors")
    compare("sample.py", root / "theirs.safetensors")
    if (folder / "model_index.json").exists():
        run(sys.executable, here / "load_exported.py", folder, root / "noise.safetensors", steps, root / "pipeline.safetensors")
        compare(json.loads((folder / "model_index.json").read_text())["_class_name"], root / "pipeline.safetensors")

"""Runs a pipeline folder of ours in diffusers itself, from noise that we choose, to compare with what our program draws.

    pip install torch==2.15 diffusers==0.42.1 safetensors numpy
    python load_exported.py FOLDER IN.safetensors STEPS OUT.safetensors [--even]

IN holds `x`, noise of unit variance [N, C, H, W], and for a model of classes `label` [N]. OUT gets `images`: what STEPS
steps make of it, neither clipped nor scaled to [0, 1]. By the scheduler of `model_index.json`:

DDIMScheduler, DDPMScheduler    deterministic DDIM, at the steps that the config's `timestep_spacing` gives
CMStochasticIterativeScheduler  a consistency model; past one step each image gets noise anew: `noise_1`, `noise_2` and so
                                on in IN, or `x` again where IN has none
EDMEulerScheduler               Euler on EDM's path, begun at sigma_max * x; the network's input is scaled by c_in, its
                                time is ln(sigma) / 4
FlowMatchEulerDiscreteScheduler Euler with the network's `noise - data` at 1000 sigma. diffusers' own sigmas are not
                                evenly spaced down to 0: `--even` takes 1, 1 - 1/STEPS, ... 1/STEPS

Where `model_index.json` names a pipeline of diffusers, the folder is loaded as that; its parts are loaded alone too, since
DDIMPipeline makes a DDIMScheduler of any other. The times used are printed.
"""
import argparse
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def load(folder):
    index = json.loads((folder / "model_index.json").read_text())
    parts = {}
    for name in ["unet", "scheduler"]:
        library, kind = index[name]
        assert library == "diffusers", index[name]
        place = folder / name if (folder / name).is_dir() else folder
        parts[name] = getattr(diffusers, kind).from_pretrained(place)
    kind = index["_class_name"]
    if kind != "DiffusionPipeline" and hasattr(diffusers, kind):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline).__name__ == kind, (type(pipeline), kind)
        loaded, alone = pipeline.unet.state_dict(), parts["unet"].state_dict()
        if type(pipeline.scheduler) is not type(parts["scheduler"]):
            print(f"{kind} makes a {type(pipeline.scheduler).__name__} of it: its own call would go another way")
        assert loaded.keys() == alone.keys() and all(torch.equal(loaded[name], alone[name]) for name in alone)
    else:
        print(f"not a pipeline of diffusers, loaded in parts: {kind}")
        pipeline = None
    return pipeline, parts["unet"].float().eval(), parts["scheduler"]


def ddim(network, scheduler, x, steps):
    scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    scheduler.set_timesteps(steps)
    print("timesteps", scheduler.timesteps.tolist())
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep), timestep, x, eta=0.0).prev_sample
    return x


def consistency(network, scheduler, x, steps, more):
    scheduler = type(scheduler).from_config(scheduler.config, clip_denoised=False, s_noise=0.0)
    scheduler.set_timesteps(steps)
    print("sigmas", scheduler.sigmas.tolist())
    noise, x = x, x * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        if number > 0:
            sigma, least = scheduler.sigmas[number].double().item(), scheduler.config.sigma_min
            x = x + max(sigma**2 - least**2, 0) ** 0.5 * more.get(f"noise_{number}", noise)
        x = scheduler.step(network(scheduler.scale_model_input(x, timestep), timestep), timestep, x).prev_sample
    return x


def edm(network, scheduler, x, steps):
    scheduler.set_timesteps(steps)
    print("sigmas", scheduler.sigmas.tolist())
    # Not init_noise_sigma, sqrt(sigma_max^2 + 1): the noise alone, without an image's variance.
    x = x * scheduler.sigmas[0]
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, timestep), timestep), timestep, x).prev_sample
    return x


def flow(network, scheduler, x, steps, even):
    assert not scheduler.config.stochastic_sampling
    if even:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
    print("sigmas", scheduler.sigmas.tolist())
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep), timestep, x).prev_sample
    return x


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("input", type=Path)
    arguments.add_argument("steps", type=int)
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--even", action="store_true")
    arguments = arguments.parse_args()
    given = load_file(arguments.input)
    x, label, steps = given["x"].float(), given.get("label"), arguments.steps
    label = None if label is None else label.long()
    pipeline, unet, scheduler = load(arguments.folder)
    network = lambda x, timestep: unet(x, timestep, class_labels=label).sample
    kind = type(scheduler).__name__
    print(type(pipeline).__name__ if pipeline else None, type(unet).__name__, kind)
    if kind in ["DDIMScheduler", "DDPMScheduler"]:
        images = ddim(network, scheduler, x, steps)
    elif kind == "CMStochasticIterativeScheduler":
        images = consistency(network, scheduler, x, steps, given)
    elif kind == "EDMEulerScheduler":
        images = edm(network, scheduler, x, steps)
    elif kind == "FlowMatchEulerDiscreteScheduler":
        images = flow(network, scheduler, x, steps, arguments.even)
    else:
        raise SystemExit(f"no way to run a {kind}")
    save_file({"images": images.contiguous()}, arguments.output)


if __name__ == "__main__":
    main()

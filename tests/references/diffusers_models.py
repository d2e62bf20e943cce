"""Tiny random pixel models in diffusers' layout, with what diffusers computes from them.

    pip install torch==2.15 diffusers==0.42.1 safetensors numpy
    python diffusers_models.py FOLDER          # writes the folders v, classes, sample, consistency, sharded, half, bin
    python diffusers_models.py --check DDPM    # recomputes such a folder's reference.safetensors, prints the differences

Each folder is a pipeline that diffusers loads as it is. Every parameter is a value of formula.py and none is zero; the
repository has the first four in `pipelines`, without their weights, which the tests compute. `v`, `classes` and
`sample` are diffusion models: `reference.safetensors` holds the network's `output` at `x` and `timestep`, the same in
the coordinates in which the path is straight (`straight_x`, `straight_t`, `velocity`), and where one and four steps of
deterministic DDIM lead from `noise`, without clipping; `dpm_8` is eight of DPM-Solver++(2M). `consistency` is a consistency model; its reference is at `sigma`
instead. `sharded`, `half` and `bin` are the network of `v` in other files: in shards, as float16, as a pickle.
Made with Python 3.11, torch 2.15.0, diffusers 0.42.1, safetensors 0.8.0 and numpy 2.4.6.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from formula import fill
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def coordinates(scheduler, timestep):
    """Alpha and sigma of the schedule's steps, shaped to multiply images."""
    cumprod = scheduler.alphas_cumprod[timestep.long()].double()
    return cumprod.sqrt()[:, None, None, None], (1 - cumprod).sqrt()[:, None, None, None]


def velocity(prediction, alpha, sigma, x, output):
    """Of the straight path `t data + (1 - t) noise`: data - noise, both as the network predicts them."""
    if prediction == "epsilon":
        return (x - (alpha + sigma) * output) / alpha
    if prediction == "sample":
        return ((alpha + sigma) * output - x) / sigma
    assert prediction == "v_prediction", prediction
    return (alpha - sigma) * x - (alpha + sigma) * output


def steps(network, scheduler, noise, label, count):
    assert not scheduler.config.clip_sample and not scheduler.config.thresholding
    scheduler.set_timesteps(count)
    x = noise
    for timestep in scheduler.timesteps:
        output = network(x, timestep, class_labels=label).sample
        x = scheduler.step(output, timestep, x, eta=0.0).prev_sample
    return x


def dpm(network, scheduler, noise, label, count):
    """DPM-Solver++(2M) at the same timesteps."""
    solver = DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    solver.set_timesteps(count)
    x = noise
    for timestep in solver.timesteps:
        x = solver.step(network(x, timestep, class_labels=label).sample, timestep, x).prev_sample
    return x


def diffusion(network, scheduler, x, timestep, noise, label=None):
    """All that a diffusion model's reference holds."""
    alpha, sigma = coordinates(scheduler, timestep)
    output = network(x, timestep, class_labels=label).sample
    v = velocity(scheduler.config.prediction_type, alpha, sigma, x.double(), output.double())
    tensors = {
        "x": x,
        "timestep": timestep.float(),
        "output": output,
        "straight_x": (x / (alpha + sigma)).float(),
        "straight_t": (alpha / (alpha + sigma)).flatten().float(),
        "velocity": v.float(),
        "noise": noise,
    } | {f"steps_{count}": steps(network, scheduler, noise, label, count) for count in [1, 4]}
    tensors["dpm_8"] = dpm(network, scheduler, noise, label, 8)
    if label is not None:
        tensors["label"] = label
    times = {}
    for count in [1, 4]:
        scheduler.set_timesteps(count)
        times[f"timesteps_{count}"] = scheduler.timesteps.tolist()
    return {"prediction": scheduler.config.prediction_type} | times, tensors


def draw(random, network, batch):
    size = network.config.sample_size
    return torch.randn(batch, network.config.in_channels, size, size, generator=random)


def write(folder, pipeline, reference=None, **options):
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, **options)
    # As they were published, without the place that they were saved from.
    for path in folder.rglob("*config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if reference:
        described, tensors = reference
        (folder / "reference.json").write_text(json.dumps(described, indent=1) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "reference.safetensors")


def write_diffusion(folder, network, scheduler, seed, timesteps, label=None):
    random = torch.Generator().manual_seed(seed)
    timestep = torch.tensor(timesteps, dtype=torch.float32)
    alpha, sigma = coordinates(scheduler, timestep)
    data = torch.tanh(draw(random, network, len(timesteps)))
    x = (alpha * data + sigma * draw(random, network, len(timesteps))).float()
    noise = draw(random, network, len(timesteps))
    label = None if label is None else torch.tensor(label)
    write(folder, DDIMPipeline(network, scheduler), diffusion(network, scheduler, x, timestep, noise, label))


def ddim(**options):
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **options)


def v_network():
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32, 48),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=16,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=1,
        mid_block_scale_factor=1.5,
    )


def v(root):
    betas = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    network = fill(v_network(), 1)
    write_diffusion(root / "v", network, ddim(**betas), 2, [999, 401, 12])
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing", **betas)
    pipeline = DDPMPipeline(network, scheduler)
    write(root / "sharded", pipeline, safe_serialization=True, max_shard_size="1200KB")
    write(root / "bin", pipeline, safe_serialization=False)
    write(root / "half", DDPMPipeline(network.half(), scheduler), variant="fp16")


def classes(root):
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 48),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=16,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=7,
    )
    scheduler = ddim(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    write_diffusion(root / "classes", fill(network, 3), scheduler, 4, [999, 401, 12], [0, 3, 6])


def sample(root):
    network = UNet2DModel(
        sample_size=12,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        add_attention=False,
        norm_num_groups=8,
        dropout=0.1,
        class_embed_type=None,
    )
    # A table that no formula of the schedulers gives; four divides its length.
    betas = [round(0.0005 + 0.08 * (i / 199) ** 1.5 + 0.0002 * (i % 3), 6) for i in range(200)]
    scheduler = ddim(num_train_timesteps=200, trained_betas=betas, prediction_type="sample")
    write_diffusion(root / "sample", fill(network, 5), scheduler, 6, [199, 80, 2])


def consistency(root):
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 48),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=16,
        norm_num_groups=16,
        attn_norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=7,
    )
    fill(network, 7)
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0, clip_denoised=False
    )
    pipeline = ConsistencyModelPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)

    random = torch.Generator().manual_seed(8)
    sigma = torch.tensor([80.0, 2.5, 0.05, 0.002])
    shaped = sigma[:, None, None, None]
    x = torch.tanh(draw(random, network, 4)) / 2 + shaped * draw(random, network, 4)
    noise, label = draw(random, network, 4), torch.tensor([0, 2, 4, 6])

    # The pipeline's own step. Only its callback sees the image before it is scaled to [0, 1] and cut off there.
    seen = []
    pipeline(batch_size=4, class_labels=label, latents=noise, output_type="pt", callback=lambda *step: seen.append(step))
    assert len(seen) == 1

    timestep = torch.from_numpy(scheduler.sigma_to_t(sigma.double().numpy())).float()
    output = network(x / (shaped**2 + scheduler.config.sigma_data**2) ** 0.5, timestep, class_labels=label).sample
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition(shaped)
    tensors = {
        "noise": noise,
        "label": label,
        "one_step": seen[0][2],
        "sigma": sigma,
        "timestep": timestep,
        "x": x,
        "output": output,
        "denoised_boundary": c_skip * x + c_out * output,
        "straight_x": x / (1 + shaped),
        "straight_t": 1 / (1 + sigma),
    }
    described = {name: scheduler.config[name] for name in ["sigma_min", "sigma_max", "sigma_data", "rho"]}
    described["clipping"] = "none: clip_denoised is false in scheduler_config.json"
    described["one_step"] = "ConsistencyModelPipeline from sigma_max * noise, before its images are scaled to [0, 1]"
    write(root / "consistency", pipeline, (described, tensors))


def check(folder):
    pipeline = DDIMPipeline.from_pretrained(folder)
    expected = load_file(folder / "reference.safetensors")
    inputs = {name: expected.get(name) for name in ["x", "timestep", "noise", "label"]}
    _, tensors = diffusion(pipeline.unet.eval(), pipeline.scheduler, **inputs)
    for name in sorted(expected):
        difference = (tensors[name].double() - expected[name].double()).norm() / expected[name].double().norm()
        print(f"{name:12} {difference:.1e}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--check", action="store_true")
    arguments = arguments.parse_args()
    if arguments.check:
        check(arguments.folder)
    else:
        for make in [v, classes, sample, consistency]:
            make(arguments.folder)

"""The ImageNet-64 network of openai/consistency_models with random weights, in its own file layout and in float16.

    pip install torch
    python openai_imagenet64.py FILE.pt

The published files (`edm_imagenet64_ema.pt`, `cd_imagenet64_lpips.pt`, ...) are bare state dicts of ADM's U-Net. This one
has their names and shapes: 296 M parameters. It shows that a network of this size is imported, rounded and sampled; its
pictures are noise.
"""
import sys

import torch

CHANNELS, MULTIPLIERS, BLOCKS, CLASSES, SIZE, ATTENTION = 192, (1, 2, 3, 4), 3, 1000, 64, (32, 16, 8)
EMBEDDING = 4 * CHANNELS
random = torch.Generator().manual_seed(0)
state = {}


def layer(name, *shape):
    bound = torch.Size(shape[1:]).numel() ** -0.5
    state[f"{name}.weight"] = ((2 * torch.rand(shape, generator=random) - 1) * bound).half()
    state[f"{name}.bias"] = ((2 * torch.rand(shape[0], generator=random) - 1) * bound).half()


def norm(name, channels):
    state[f"{name}.weight"] = torch.ones(channels).half()
    state[f"{name}.bias"] = torch.zeros(channels).half()


def residual(name, inputs, outputs):
    norm(f"{name}.in_layers.0", inputs)
    layer(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    layer(f"{name}.emb_layers.1", 2 * outputs, EMBEDDING)
    norm(f"{name}.out_layers.0", outputs)
    layer(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        layer(f"{name}.skip_connection", outputs, inputs, 1, 1)


def attention(name, channels):
    norm(f"{name}.norm", channels)
    layer(f"{name}.qkv", 3 * channels, channels, 1)
    layer(f"{name}.proj_out", channels, channels, 1)


def network():
    layer("time_embed.0", EMBEDDING, CHANNELS)
    layer("time_embed.2", EMBEDDING, EMBEDDING)
    state["label_emb.weight"] = torch.randn(CLASSES, EMBEDDING, generator=random).half()
    layer("input_blocks.0.0", CHANNELS, 3, 3, 3)
    channels, size, block = CHANNELS, SIZE, 1
    skips = [channels]
    for level, multiplier in enumerate(MULTIPLIERS):
        for _ in range(BLOCKS):
            residual(f"input_blocks.{block}.0", channels, multiplier * CHANNELS)
            channels = multiplier * CHANNELS
            if size in ATTENTION:
                attention(f"input_blocks.{block}.1", channels)
            skips.append(channels)
            block += 1
        if level + 1 < len(MULTIPLIERS):
            residual(f"input_blocks.{block}.0", channels, channels)
            skips.append(channels)
            block, size = block + 1, size // 2
    residual("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    residual("middle_block.2", channels, channels)
    block = 0
    for level, multiplier in reversed(list(enumerate(MULTIPLIERS))):
        for index in range(BLOCKS + 1):
            residual(f"output_blocks.{block}.0", channels + skips.pop(), multiplier * CHANNELS)
            channels, layers = multiplier * CHANNELS, 1
            if size in ATTENTION:
                attention(f"output_blocks.{block}.1", channels)
                layers = 2
            if level and index == BLOCKS:
                residual(f"output_blocks.{block}.{layers}", channels, channels)
                size *= 2
            block += 1
    norm("out.0", channels)
    layer("out.2", 3, channels, 3, 3)


network()
print(sum(tensor.numel() for tensor in state.values()), "parameters")
torch.save(state, sys.argv[1])

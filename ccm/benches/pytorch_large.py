"""PyTorch on the networks of `large.rs`: one evaluation at 512x512 with random weights.

    pip install torch==2.15 diffusers==0.42.1
    python pytorch_large.py sdxl float32     # or sd3, sd15; float32 or bfloat16

Prints seconds, the best of three, and the process's peak memory.
"""
import resource
import sys
import time

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

torch.set_grad_enabled(False)


def network(name):
    if name == "sd3":
        return SD3Transformer2DModel(
            sample_size=64, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        )
    if name == "sd15":
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


name, dtype = sys.argv[1], getattr(torch, sys.argv[2])
with torch.device("meta"):
    model = network(name)
model = model.to_empty(device="cpu").to(dtype).eval()
for parameter in model.parameters():
    parameter.uniform_(-1, 1).mul_((3 / max(parameter[0].numel(), 1)) ** 0.5 if parameter.dim() > 1 else 0.1)
time_step = torch.tensor([999.0], dtype=dtype)
if name == "sd3":
    model.pos_embed.pos_embed.zero_()
    inputs = {
        "hidden_states": torch.randn(1, 16, 64, 64, dtype=dtype),
        "encoder_hidden_states": torch.randn(1, 333, 4096, dtype=dtype),
        "pooled_projections": torch.randn(1, 2048, dtype=dtype),
        "timestep": time_step,
    }
else:
    channels = 768 if name == "sd15" else 2048
    inputs = {
        "sample": torch.randn(1, 4, 64, 64, dtype=dtype),
        "timestep": time_step,
        "encoder_hidden_states": torch.randn(1, 77, channels, dtype=dtype),
    }
    if name == "sdxl":
        sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]], dtype=dtype)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 1280, dtype=dtype), "time_ids": sizes}
seconds = []
for _ in range(3):
    begin = time.perf_counter()
    model(**inputs)
    seconds.append(time.perf_counter() - begin)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(f"{name} {sys.argv[2]}: {min(seconds):.2f} s (first {seconds[0]:.2f}), peak memory {peak:.2f} GB")

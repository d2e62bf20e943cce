"""One forward of the networks of `sampler.rs` in ONNX Runtime and in PyTorch, on the CPU, batch 1.

    pip install torch torchcfm onnx onnxruntime
    python peers.py [folder for the .onnx files]
"""
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from torchcfm.models.unet.unet import UNetModelWrapper

NETWORKS = {
    "small": dict(
        dim=(3, 32, 32), num_channels=32, num_res_blocks=1, channel_mult=[1, 2, 2], attention_resolutions="8",
        num_head_channels=16, class_cond=True, num_classes=10,
    ),
    "cifar10": dict(
        dim=(3, 32, 32), num_channels=128, num_res_blocks=2, channel_mult=[1, 2, 2, 2], attention_resolutions="16",
        num_heads=4, num_head_channels=64, dropout=0.1,
    ),
}


def median(run, count=15):
    run()
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times)[count // 2]


folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
for name, arguments in NETWORKS.items():
    unet = UNetModelWrapper(**arguments).eval()
    inputs = {"t": torch.zeros(1), "x": torch.randn(1, *arguments["dim"])}
    if arguments.get("class_cond"):
        inputs["y"] = torch.zeros(1, dtype=torch.int64)
    path = str(folder / f"{name}.onnx")
    with torch.no_grad():
        torch.onnx.export(
            unet, tuple(inputs.values()), path, input_names=list(inputs), dynamo=False, opset_version=17
        )
        torch_ms = median(lambda: unet(*inputs.values()))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    feeds = {key: value.numpy() for key, value in inputs.items() if key in wanted}
    ort_ms = median(lambda: session.run(None, feeds))
    print(f"{name:8} ONNX Runtime {ort_ms:.2f} ms, PyTorch {torch_ms:.2f} ms ({torch.get_num_threads()} threads)")

"""Distances of the package lpips, with weights from `formula.py`.

    pip install torch torchvision lpips safetensors
    python lpips.py                # writes lpips.safetensors
"""
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
from formula import uniform

sys.path = [place for place in sys.path if Path(place).resolve() != here]  # import the package, not this file

import lpips
import numpy as np
import torch
from safetensors.torch import save_file


def images(number, shape):
    values = 2 * uniform(number, int(np.prod(shape))) - 1
    return torch.from_numpy(values.reshape(shape)).float()


results = {}
for net in ["vgg", "alex"]:
    network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).eval()
    # torchvision's names, sorted, then those of the heads.
    named = {}
    for name, tensor in network.net.state_dict().items():
        named["features." + name.split(".", 1)[1]] = tensor
    named |= {name: tensor for name, tensor in network.state_dict().items() if name.startswith("lin")
              and name.split(".")[0][3:].isdigit()}
    for number, name in enumerate(sorted(named)):
        tensor = named[name]
        u = uniform(number, tensor.numel())
        if name.startswith("lin"):
            values = u
        elif tensor.dim() > 1:
            values = (2 * u - 1) * (6 / (tensor.numel() / tensor.shape[0])) ** 0.5
        else:
            values = u - 0.5
        tensor.copy_(torch.from_numpy(values.reshape(tensor.shape)))
    a, b = images(1000, (1, 3, 38, 44)), images(1001, (1, 3, 38, 44))
    a.requires_grad_(True)
    distance = network(a, b)
    distance.mean().backward()
    results[f"{net}.distances"] = distance.flatten().detach()
    results[f"{net}.gradient"] = a.grad[:, :, ::3, ::3].contiguous()
    small = torch.nn.functional.interpolate(images(1002, (2, 3, 12, 9)), size=(224, 224), mode="bilinear")
    other = torch.nn.functional.interpolate(images(1003, (2, 3, 12, 9)), size=(224, 224), mode="bilinear")
    with torch.no_grad():
        results[f"{net}.upsampled"] = network(small, other).flatten()
path = here / "lpips.safetensors"
save_file({name: tensor.contiguous() for name, tensor in results.items()}, path)
print(path, {name: tensor.flatten()[:2].tolist() for name, tensor in results.items()})

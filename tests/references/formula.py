"""Deterministic values for weights and images, equal in Python and in the Rust tests."""
import numpy as np


def uniform(tensor, count):
    """Values in [0, 1) that depend only on the number of the tensor and the index."""
    h = np.arange(count, dtype=np.uint64) * 0x9E3779B1 + tensor * 0x85EBCA6B
    for shift, factor in [(15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)]:
        h &= 0xFFFFFFFF
        h = (h ^ (h >> np.uint64(shift))) * factor
    return (h & 0xFFFFFFFF).astype(np.float64) / 2**32


def fill(network, seed):
    """Sets the parameters of a PyTorch network, in the order of their names; activations stay at about one."""
    import torch

    for number, (name, parameter) in enumerate(sorted(network.named_parameters())):
        values = 2 * uniform(1000 * seed + number, parameter.numel()) - 1
        if name == "class_embedding.weight":
            values *= 0.75
        elif parameter.dim() > 1:
            values *= (3 / parameter[0].numel()) ** 0.5
        elif name.endswith(".weight"):
            values = 1 + values / 6
        else:
            values /= 6
        assert values.all(), name
        parameter.copy_(torch.from_numpy(values).float().reshape(parameter.shape))
    return network.eval()

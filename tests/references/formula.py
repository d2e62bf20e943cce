"""Numbers that stand for weights and images: the same here and in the tests, with nothing to download."""
import numpy as np


def uniform(tensor, count):
    """Numbers in [0, 1) that depend on nothing but the number of a tensor and the place in it."""
    h = np.arange(count, dtype=np.uint64) * 0x9E3779B1 + tensor * 0x85EBCA6B
    for shift, factor in [(15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)]:
        h &= 0xFFFFFFFF
        h = (h ^ (h >> np.uint64(shift))) * factor
    return (h & 0xFFFFFFFF).astype(np.float64) / 2**32

"""How many digits of a model have the class that was asked for, by a classifier that this program did not train.

    python digits.py MNIST MODEL DISTILL [--count 10000] [--steps 1] [--epochs 12] [--judge FILE]

MNIST is the folder with the four IDX files, .gz or not; MODEL a model of digits; DISTILL the program `distill`. The classifier is a
convolutional network of PyTorch's layers, trained on the 60 000 training images, shifted by up to two pixels and rotated by up to ten
degrees. Its accuracy on the test set is printed before that of the model. Needs torch, numpy and safetensors.
"""

import argparse
import gzip
import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import nn


def idx(folder, name):
    path = folder / name
    if path.exists():
        data = path.read_bytes()
    else:
        data = gzip.decompress(path.with_name(name + ".gz").read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def digits(folder, split):
    images = torch.tensor(idx(folder, f"{split}-images-idx3-ubyte"))[:, None] / 127.5 - 1
    return images, torch.tensor(idx(folder, f"{split}-labels-idx1-ubyte").astype(np.int64))


def layer(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def classifier():
    return nn.Sequential(
        *layer(1, 32), *layer(32, 32), nn.MaxPool2d(2),
        *layer(32, 64), *layer(64, 64), nn.MaxPool2d(2),
        *layer(64, 128), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.4), nn.Linear(128 * 9, 10),
    )


def moved(images):
    """Each image, shifted by up to two pixels and rotated by up to ten degrees."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(10)
    shift = (torch.rand(count, 2) * 2 - 1) * (2 / 14)
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def train(network, images, labels, epochs, batch=128):
    per_epoch = len(images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * per_epoch)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images))[: per_epoch * batch].reshape(per_epoch, batch):
            loss = F.cross_entropy(network(moved(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}, loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def accuracy(network, images, labels):
    network.eval()
    found = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return (found == labels).double().mean().item()


def drawn(program, model, count, steps):
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/x.safetensors"
        command = [program, "sample", model, "--count", str(count), "--steps", str(steps), "--device", "cpu", "--out", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        tensors = load_file(out)
    # Rounded to bytes first, as in a picture file.
    images = ((torch.tensor(tensors["images"]).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return images, torch.tensor(tensors["label"].astype(np.int64))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mnist", type=Path)
    parser.add_argument("model")
    parser.add_argument("distill")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--judge", type=Path, help="file of the classifier's weights: read if it exists, else written")
    args = parser.parse_args()
    torch.manual_seed(0)
    network = classifier()
    if args.judge and args.judge.exists():
        network.load_state_dict(torch.load(args.judge))
    else:
        train(network, *digits(args.mnist, "train"), args.epochs)
        if args.judge:
            torch.save(network.state_dict(), args.judge)
    print(f"test set: {accuracy(network, *digits(args.mnist, 't10k')):.2%}")
    print(f"{args.model}: {accuracy(network, *drawn(args.distill, args.model, args.count, args.steps)):.2%}")


if __name__ == "__main__":
    main()

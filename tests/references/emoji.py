"""How many words the model of the preset `emoji` knows: the nearest training picture of its one-step picture has these words.

    python emoji.py MODEL PICTURES DISTILL [--count 300] [--steps 1] [--sheet SHEET.png]

MODEL is a pipeline in one file, PICTURES the folder that `ccm/presets/emoji/prepare.mjs` wrote. The nearest picture is that of
the smallest mean squared difference, at 64x64 on white. The words are drawn at random from the captions of the training set;
all of the held-out captions are tried too. The sheet has the picture of the model above the true one. Needs numpy, Pillow
and safetensors.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

SIDE = 64


def captions(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def emoji(line):
    return line["file_name"].rsplit("_", 1)[0]


def pixels(path):
    image = Image.open(path).convert("RGBA")
    on_white = Image.new("RGBA", image.size, "white")
    on_white.alpha_composite(image)
    return np.asarray(on_white.convert("RGB").resize((SIDE, SIDE), Image.LANCZOS), np.float32).ravel() / 127.5 - 1


def drawn(program, model, lines, steps):
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/x.safetensors"
        command = [program, "sample", model, "--steps", str(steps), "--guidance", "1", "--out", out]
        subprocess.run(command + [f"--prompt={line['text']}" for line in lines], check=True, stdout=subprocess.DEVNULL)
        images = load_file(out)["images"].transpose(0, 2, 3, 1)
    return images.reshape(len(lines), -1).clip(-1, 1)


def sheet(found, true, columns=15):
    rows = []
    for first in range(0, len(found) - columns + 1, columns):
        rows += [found[first : first + columns], true[first : first + columns]]
    grid = np.stack(rows).reshape(len(rows), columns, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(len(rows) * SIDE, columns * SIDE, 3)
    return Image.fromarray(((grid + 1) * 127.5).round().astype(np.uint8))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--sheet")
    arguments = parser.parse_args()

    train, held_out = (captions(arguments.pictures / split) for split in ["train", "test"])
    files = {}
    for line in train:
        files.setdefault(emoji(line), arguments.pictures / "train" / line["file_name"])
    names = list(files)
    known = np.stack([pixels(files[name]) for name in names])
    squares = (known**2).sum(1)

    chosen = random.Random(0).sample(train, arguments.count)
    for what, lines in [("words of the training set", chosen), ("held-out words", held_out)]:
        images = drawn(arguments.program, arguments.model, lines, arguments.steps)
        distances = squares[None] - 2 * images @ known.T + (images**2).sum(1)[:, None]
        own = np.array([names.index(emoji(line)) for line in lines])
        right = distances.argmin(1) == own
        error = distances[np.arange(len(lines)), own].mean() / images.shape[1]
        print(f"{what}: {right.sum()} of {len(lines)} right ({right.mean():.1%}), mean squared difference {error:.4f}")
        print("  wrong: " + ", ".join(line["text"] for line, is_right in zip(lines, right) if not is_right))
        if arguments.sheet and what.startswith("words"):
            sheet(images[:60], known[own[:60]]).save(arguments.sheet)


if __name__ == "__main__":
    main()

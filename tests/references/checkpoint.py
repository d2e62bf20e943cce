"""Small PyTorch checkpoints of a batch norm: floating-point tensors and an integer.

    pip install torch
    python checkpoint.py           # writes checkpoint.pth and checkpoint-legacy.pth (format before PyTorch 1.6)
"""
from pathlib import Path

import torch

state = {
    "bn.weight": torch.tensor([0.5, -1.25]),
    "bn.running_mean": torch.tensor([2.0, 3.0], dtype=torch.float64),
    "bn.num_batches_tracked": torch.tensor(7),
}
folder = Path(__file__).parent
torch.save(state, folder / "checkpoint.pth")
torch.save(state, folder / "checkpoint-legacy.pth", _use_new_zipfile_serialization=False)

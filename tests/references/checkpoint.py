"""Small checkpoints of PyTorch with what a batch norm leaves in them: weights and a whole number.

    pip install torch
    python checkpoint.py           # writes checkpoint.pth and, as PyTorch wrote before 1.6, checkpoint-legacy.pth
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

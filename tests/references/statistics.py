"""Mean and covariance written by NumPy, stored and compressed.

    pip install numpy
    python statistics.py           # writes statistics.npz and statistics-compressed.npz
"""
from pathlib import Path

import numpy as np

mu = np.array([0.5, -1.25, 2.0])
sigma = np.array([[1.0, 0.25, 0.0], [0.25, 3.0, -0.5], [0.0, -0.5, 2.0]])
folder = Path(__file__).parent
np.savez(folder / "statistics.npz", mu=mu, sigma=sigma)
np.savez_compressed(
    folder / "statistics-compressed.npz", mu=mu.astype(np.float32), sigma=np.asfortranarray(sigma)
)

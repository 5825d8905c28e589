"""The plainest features: pixels in [-1, 1]."""

import numpy as np


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] -> float64 [B, H W C] in [-1, 1]."""
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1

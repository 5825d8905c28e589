"""The kernel of bicubic interpolation."""

import numpy as np


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Weights of pixels at these distances, in pixels (Keys 1981); 0 from two on.

    Args:
      a: slope of the kernel at one pixel: -0.5 in Pillow, -0.75 in PyTorch.
    """
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))

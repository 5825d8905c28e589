"""Frozen feature functions: uint8 images [B, H, W, C] -> float features [B, D].

A new one is a small file and a line in FEATURES.
"""

from collections.abc import Callable

import numpy as np

from pdistill.features.pixels import pixels

Features = Callable[[np.ndarray], np.ndarray]
FEATURES: dict[str, Features] = {"pixels": pixels}

__all__ = ["FEATURES", "Features", "pixels"]

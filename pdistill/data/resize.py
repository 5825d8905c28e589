"""Central squares of images at another resolution, averaged or antialiased."""

import functools

import numpy as np
from PIL import Image
from scipy import sparse

KERNELS = {  # the weight of a pixel at `distance` from the centre of a cell `scale` pixels wide
    "area": lambda distance, scale: np.clip((scale + 1) / 2 - distance, 0, min(scale, 1)),
    "bilinear": lambda distance, scale: np.clip(1 - distance / max(scale, 1), 0, None),
}


def resize_square(image: Image.Image, resolution: int, resize: str) -> np.ndarray:
    """Cuts an image's central square, and resizes it to uint8 [resolution, resolution, C].

    Args:
      image: one of PIL's mode "L", for C = 1, or "RGB", for 3.
      resize: "area", exact averages over cells (ImageNet in Salimans & Ho 2022), or "bilinear",
        antialiased (LSUN there). Both round once, at the end, to the nearest grey value.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    weights = _resize_weights(side, resolution, resize)
    pixels = pixels.reshape(side, side, -1)
    for _ in range(2):  # rows, then columns
        rows = weights @ pixels.reshape(side, -1)
        pixels = rows.reshape(resolution, -1, pixels.shape[2]).swapaxes(0, 1)
    return np.rint(pixels).astype(np.uint8)


@functools.lru_cache(maxsize=1024)
def _resize_weights(size: int, resolution: int, resize: str) -> sparse.csr_array:
    """Weights of a line's pixels in each cell, float32 [resolution, size]; rows sum to 1.

    PIL's BOX gives a pixel wholly to one cell: up to 20 grey values off where cells cut pixels.
    """
    scale = size / resolution
    centers = (np.arange(resolution)[:, None] + 0.5) * scale
    weights = KERNELS[resize](np.abs(np.arange(size) + 0.5 - centers), scale)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))

"""Images at other sizes, by exact averages or repeated or padded pixels, and as numbers."""

import hashlib
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

DIGESTED = 1024  # images in memory at a time
Images = TypeVar("Images", Array, np.ndarray)


def average(images: Images, factor: int) -> Images:
    """Averages squares of factor x factor pixels: [B, H, W, C] -> [B, H / factor, ...]."""
    if factor == 1:
        return images
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return cells.mean((2, 4))


def repeat(images: Array, factor: int) -> Array:
    """Repeats each pixel factor x factor times: [B, H, W, C] -> [B, H factor, ...]."""
    if factor == 1:
        return images
    return jnp.repeat(jnp.repeat(images, factor, axis=1), factor, axis=2)


def check_average(shape: tuple[int, ...], size: int) -> None:
    """Raises ValueError unless images of `shape`, [H, W, ...], have averages of `size` a side."""
    height, width = shape[:2]
    if height != width or not 0 < size <= height or height % size:
        raise ValueError(
            f"images of {height}x{width} pixels cannot be averaged to resolution {size}: they must "
            "be square, and their side a multiple of it"
        )


def at_size(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 [N, H, W, C] to `size` pixels a side.

    Smaller images are put in the middle of black; larger ones are averaged, and rounded to the
    nearest grey value.

    Raises:
      ValueError: larger images are not square, or their side is no multiple of `size`.
    """
    height, width = images.shape[1:3]
    if max(height, width) <= size:
        rows, columns = size - height, size - width
        edges = ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
        return np.pad(images, (*edges, (0, 0)))
    check_average(images.shape[1:], size)
    blocks = np.array_split(images, max(len(images) // 4096, 1))  # not all in float at once
    means = [np.rint(average(b.astype(np.float32), height // size)) for b in blocks]
    return np.concatenate(means).astype(np.uint8)


def pixel_digest(images: np.ndarray) -> str:
    """A digest of images [N, H, W, C], which may be on disk; hexadecimal."""
    digest = hashlib.sha256()
    for start in range(0, len(images), DIGESTED):
        digest.update(np.ascontiguousarray(images[start : start + DIGESTED]))
    return digest.hexdigest()


def to_float(image: Array) -> Array:
    """Converts uint8 to float32 in [-1, 1]: image / 127.5 - 1."""
    return image.astype(jnp.float32) / 127.5 - 1


def to_uint8(image: Array) -> Array:
    """Converts floats in [-1, 1] to uint8, clipped and rounded to the nearest grey value."""
    return jnp.round(jnp.clip((image + 1) * 127.5, 0, 255)).astype(jnp.uint8)

"""Pillow's bicubic resizing on devices, to the bit."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.networks.vision.cubic import cubic

BITS = 22  # of the fractions of Pillow's weights of uint8 pixels


def resize(images: Array, size: int) -> Array:
    """Resizes [B, H, W, C] to [B, size, size, C] as Pillow's BICUBIC, which antialiases.

    Whole numbers are uint8 pixels, and rounded after the columns and again after the rows, as in
    Pillow 12; Pillow 13 does the rows first where that is quicker, which can be so for images that
    are not square. Floats are not rounded, so that they can be differentiated.
    """
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    x = images.astype(jnp.int32) if whole else images
    for equation, axis in (("qw,bhwc->bhqc", 2), ("ph,bhwc->bpwc", 1)):
        weights = _weights(images.shape[axis], size)
        if whole:
            sums = jnp.einsum(equation, weights, x)
            x = jnp.clip((sums + (1 << BITS - 1)) >> BITS, 0, 255)
        else:
            weights = jnp.asarray(weights / (1 << BITS), x.dtype)
            x = jnp.einsum(equation, weights, x, precision="highest")
    return x


def _weights(length: int, size: int) -> np.ndarray:
    """Weights of `length` pixels in each of `size` others, int32 [size, length], 2^BITS for one."""
    scale = length / size
    centres = (np.arange(size)[:, None] + 0.5) * scale
    weights = cubic((np.arange(length) + 0.5 - centres) / max(scale, 1), -0.5)
    weights *= (1 << BITS) / weights.sum(axis=1, keepdims=True)
    return np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)

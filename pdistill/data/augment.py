"""Differentiable augmentation (Zhao et al. 2020), for real and generated images alike."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

SHIFT = 0.125  # largest shift, as a fraction of the side
HOLE = 0.2  # side of the hole, as a fraction of the image's


def color(key: Array, x: Array, strength: float) -> Array:
    """Changes brightness, then saturation, then contrast, at random."""
    keys = jax.random.split(key, 3)
    brightness, saturation, contrast = (
        strength * jax.random.uniform(k, (len(x), 1, 1, 1), x.dtype, -1, 1) for k in keys
    )
    x = x + brightness / 2
    grey = x.mean(axis=3, keepdims=True)
    x = grey + (1 + saturation) * (x - grey)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return mean + (1 + contrast / 2) * (x - mean)


def translation(key: Array, x: Array, strength: float) -> Array:
    """Shifts images by up to SHIFT of their sides, in whole pixels; new pixels are zero."""
    height, width, channels = x.shape[1:]
    limits = [round(SHIFT * strength * side) for side in (height, width)]
    draws = jnp.stack(
        [
            jax.random.randint(k, (len(x),), 0, 2 * limit + 1)
            for k, limit in zip(jax.random.split(key), limits, strict=True)
        ],
        axis=1,
    )
    padded = jnp.pad(x, [(0, 0), *((limit, limit) for limit in limits), (0, 0)])

    def window(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*start, 0), (height, width, channels))

    return jax.vmap(window)(padded, draws)


def cutout(key: Array, x: Array, strength: float) -> Array:
    """Cuts out a square, HOLE of the side wide, anywhere; the border may clip it."""
    inside = jnp.ones((len(x), 1, 1, 1), bool)
    for axis, k in zip((1, 2), jax.random.split(key), strict=True):
        side = x.shape[axis]
        hole = round(HOLE * strength * side)
        center = jax.random.randint(k, (len(x), 1, 1, 1), 0, side + 1 - hole % 2)
        place = jnp.arange(side).reshape((1, side, 1, 1) if axis == 1 else (1, 1, side, 1))
        start = center - hole // 2
        inside = inside & (place >= start) & (place < start + hole)
    return jnp.where(inside, 0, x)


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(key: Array, x: Array, names: Sequence[str], strength: float = 1.0) -> Array:
    """Augments each image by itself, differentiably in x.

    Args:
      x: images [B, H, W, C] in [-1, 1]. names: keys of AUGMENTATIONS, in order.
      strength: strength of all changes, not negative; 0 is the identity.
    """
    for name, k in zip(names, jax.random.split(key, max(len(names), 1)), strict=False):
        x = AUGMENTATIONS[name](k, x, strength)
    return x

"""Differentiable augmentation (Zhao et al. 2020): the same for real and generated images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

SHIFT = 0.125  # of the side
HOLE = 0.2  # of the side


def color(key: Array, x: Array, strength: float) -> Array:
    """Brightness, then saturation, then contrast."""
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
    """By up to SHIFT of the side each way, in whole pixels; what comes in is zero."""
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
    """A square hole of HOLE of the side, anywhere; beyond the border it is cut."""
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
      x: [B, H, W, C] in [-1, 1]. names: of AUGMENTATIONS, in order. strength: 0 is the identity.
    """
    for name, k in zip(names, jax.random.split(key, max(len(names), 1)), strict=False):
        x = AUGMENTATIONS[name](k, x, strength)
    return x

"""Sizes of the images of a network that makes a cascade (LowDiff, Xu et al. 2025)."""

import jax.numpy as jnp
from jax import Array

from pdistill.data.images import repeat
from pdistill.samplers import LowRes


def halvings(resolutions: tuple[int, ...], height: int, image: LowRes | None) -> int:
    """Number of halvings from the largest images to those of this height.

    Args:
      resolutions: heights of the images that the network takes; () for any one.
      image: the condition that it is told, of the size before.

    Raises:
      ValueError: sizes that are not the network's; a condition too many or too few.
    """
    sizes = resolutions or (height,)
    if height not in sizes:
        raise ValueError(f"this network takes images of {sizes} pixels; got {height}")
    if (image is None) != (height == sizes[0]):
        raise ValueError(
            f"of the sizes {sizes} all but the first are made on the condition of an image of "
            f"the size before; got {height} pixels {'without' if image is None else 'with'}"
        )
    levels = [(sizes[-1] // size).bit_length() - 1 for size in sizes]
    doubling = all(size << level == sizes[-1] for size, level in zip(sizes, levels, strict=True))
    if not doubling or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"resolutions must rise by powers of two; got {sizes}")
    return levels[sizes.index(height)]


def beside(z: Array, image: LowRes | None) -> Array:
    """Joins z [B, H, W, C] with the condition that it is made on, at its size: [B, H, W, 2 C]."""
    if image is None:
        return z
    below, _ = image
    return jnp.concatenate([z, repeat(below, z.shape[1] // below.shape[1])], axis=-1)

"""Distances of two batches of images, as losses: in pixels, or in frozen features."""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pdistill.features import EXTRACTORS, efficientnet_lite0, load_extractor

DISTANCES = ("pixels", "huber", *(name for name in EXTRACTORS if "pixels" not in name))
HUBER = 0.00054  # c of Song & Dhariwal (2023), for the root of the mean instead of the sum
_extractor = functools.cache(load_extractor)


class Distance(struct.PyTreeNode):
    """Distance of images in [-1, 1], one by one.

    Attributes:
      params: the extractor's parameters; they stay as they are.
      name: "pixels", the mean square; "huber", its root, smooth at 0 (Song & Dhariwal 2023); or an
        extractor of `features`. In features the distance is that of directions, as in LPIPS (Zhang
        et al. 2018): for "efficientnet_lite0" of each place of its maps, else of all features.
    """

    params: Any
    name: str = struct.field(pytree_node=False)

    @classmethod
    def load(cls, name: str) -> "Distance":
        """The distance of this name; ValueError for an unknown one, or without its weights."""
        check_distance_name(name)
        return cls({} if name in ("pixels", "huber") else _extractor(name).params, name)

    def __call__(self, a: Array, b: Array) -> Array:
        """[B] for a, b [B, H, W, C], of which the first or both may be differentiated."""
        chex.assert_equal_shape([a, b])
        if self.name in ("pixels", "huber"):
            square = jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))
            return square if self.name == "pixels" else jnp.sqrt(square + HUBER**2) - HUBER
        return directions(self._maps(a), self._maps(b))

    def _maps(self, x: Array) -> Sequence[Array]:
        levels = (x + 1) * 127.5  # as extractors take them, but not rounded
        if self.name == "efficientnet_lite0":
            images = efficientnet_lite0.preprocess(levels)
            return efficientnet_lite0.maps(self.params, images)
        return (_extractor(self.name).apply(self.params, levels)["features"],)


def check_distance_name(name: str) -> None:
    """Raises ValueError unless `name` is in DISTANCES."""
    if name not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}; got {name!r}")


def directions(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Squared distances of unit vectors along the last axis: [B], from maps [B, ..., C].

    Means over the places of a map, added over maps.
    """

    def unit(h):
        return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-10)

    squares = (jnp.sum(jnp.square(unit(p) - unit(q)), axis=-1) for p, q in zip(a, b, strict=True))
    return sum(jnp.mean(square.reshape(len(square), -1), axis=1) for square in squares)

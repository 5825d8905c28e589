"""Batches of a cascade: every resolution of one network is taught in every update."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.data.images import average
from pdistill.networks import Network
from pdistill.samplers import LowRes, with_noise
from pdistill.samplers.cascade import FIRST_LEVEL

Batch = dict[str, Any]


def per_resolution(
    network: Network, batch: Batch, key: Array, split: tuple[int, ...], max_noise: float
) -> list[tuple[Network, Batch, LowRes | None, Array]]:
    """The network at each of its resolutions with images of that size; a plain network as it is.

    The paper of LowDiff (Xu et al. 2025) says little of its training; what follows is our own
    design. An image, averaged to a resolution, is made on the condition of the same image averaged
    to the resolution below, plus noise of a random std s that the network is told, since in
    sampling the condition is a sample. Every update has images of all resolutions, each image at
    one: a resolution drawn with probability q would have the same expected gradient, but then XLA
    must compile a condition around convolutions, whose gradients are ten times slower there on a
    CPU. All errors are means over pixels and count alike.

    Args:
      split: images of a batch at each resolution, smallest first, or any numbers in that ratio.
      max_noise: s is uniform on [0, max_noise).

    Returns:
      The network, its batch, the images below (None at the first resolution) and a key, of each.
    """
    if not network.resolutions:
        return [(network, batch, None, key)]
    total, num, sizes = sum(split), len(batch["image"]), network.resolutions
    parts = split_rows(batch, tuple(n * num // total for n in split))
    found = []
    for i, (size, rows) in enumerate(zip(sizes, parts, strict=True)):
        images, below, own_key = rows["image"], None, key
        x = average(images, sizes[-1] // size)
        if i > 0:  # one resolution alone is a plain network, to the bit
            own_key, std_key, noise_key = jax.random.split(
                jax.random.fold_in(key, FIRST_LEVEL + i), 3
            )
            std = jax.random.uniform(std_key, x.shape[:1], x.dtype, maxval=max_noise)
            below = with_noise(noise_key, average(images, sizes[-1] // sizes[i - 1]), std)
        found.append((network.at(size), rows | {"image": x}, below, own_key))
    return found


def check_split(split: tuple[int, ...], max_noise: float, network: Network) -> None:
    """Raises ValueError for settings of `per_resolution` that do not fit a network."""
    sizes = network.resolutions
    if len(split) != len(sizes) or (split and min(split) < 1):
        raise ValueError(f"split must be images at each of the resolutions {sizes}; got {split}")
    if not 0 <= max_noise < math.inf:
        raise ValueError(f"max_noise must not be negative; got {max_noise}")


def check_split_batch(split: tuple[int, ...], batch_size: int) -> None:
    """Raises ValueError for batches that cannot be split in this ratio."""
    if any(n * batch_size % sum(split) for n in split):
        raise ValueError(
            f"loop.batch_size {batch_size} cannot be split over the resolutions as {split}"
        )


def split_rows(batch: Any, split: tuple[int, ...]) -> list[Any]:
    """Parts of a tree of [B, ...], with as many rows as `split` says, which add up to B.

    Each takes some rows of every one of gcd(split) equal groups, so that rows that are spread over
    as many devices as divide that stay where they are.
    """
    groups = math.gcd(*split)
    ends = np.cumsum(split)[:-1] // groups

    def parts(a: Array) -> list[Array]:
        grouped = a.reshape(groups, -1, *a.shape[1:])
        return [part.reshape(-1, *a.shape[1:]) for part in jnp.split(grouped, ends, axis=1)]

    leaves, form = jax.tree.flatten(batch)
    return [form.unflatten(part) for part in zip(*map(parts, leaves), strict=True)]

"""Directories of codecs, with parameters and model.json as of a model, and their scale."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.data.images import to_float, to_uint8
from pdistill.model.card import ModelError, build_blank_codec, find, read_card
from pdistill.model.store import read_params, write
from pdistill.networks import Codec, describe_network
from pdistill.runtime.files import one_line
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import place_rows


def save_codec(directory: str | Path, codec: Codec, /, **card: Any) -> None:
    """Writes a codec's directory whole or not at all.

    Args:
      card: stage, method and whatever else a reader should know; all of it JSON.
    """
    write(directory, describe_codec(codec) | card, codec.params)


def describe_codec(codec: Codec) -> dict[str, Any]:
    """The part of a codec's model.json that rebuilds it blank."""
    return {
        "kind": "codec",
        "codec": describe_network(codec.module),
        "mean": codec.mean,
        "std": codec.std,
        "tile": codec.tile,
    }


def blank_codec(directory: str | Path) -> Codec:
    """The codec of a directory without its parameters; raises as `load_codec`."""
    directory = find(directory)
    return build_blank_codec(directory, read_card(directory, codec=True))


def load_codec(directory: str | Path, mesh: Mesh | None = None) -> Codec:
    """Loads what `save_codec` wrote.

    Args:
      mesh: devices to spread the parameters over; one device by default.

    Raises:
      ModelError: there is no codec there, or it cannot be read.
    """
    directory = find(directory)
    card = read_card(directory, codec=True)
    blank = build_blank_codec(directory, card)
    try:
        return read_params(directory, blank, card, mesh)
    except Exception as error:  # a card may hold anything
        raise ModelError(f"cannot load {directory}: {one_line(error)}") from error


def standardised(
    codec: Codec,
    images: np.ndarray,
    batch_size: int,
    mesh: Mesh,
    description: str | None = None,
) -> Codec:
    """The codec whose drawn latents of these images have mean 0 and deviation 1 in each channel.

    Args:
      images: uint8 [N, H, W, C].
      description: text beside a progress bar; None shows no bar.
    """

    def batch(indices: np.ndarray) -> Array:
        return _sums(codec, place_rows(images.__getitem__, indices % len(images), mesh))

    sums = np.zeros((2, codec.channels))
    for each in gather_batches(batch, len(images), batch_size, mesh, description):
        sums += each.sum(0, dtype=np.float64)
    count = len(images) * np.prod(codec.latent_shape(images.shape[1:])[:2])
    mean, square = sums / count
    std = np.sqrt(square - mean**2)
    return codec.replace(mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def reconstructions(
    codec: Codec,
    images: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    mesh: Mesh,
    description: str | None = None,
) -> Iterator[np.ndarray]:
    """Images number `rows`, encoded and decoded without noise: batches of uint8 [B, H, W, C].

    `description` stands beside a progress bar, None shows no bar.
    """

    def batch(indices: np.ndarray) -> Array:
        chosen = rows[indices % len(rows)]
        return _reconstruct(codec, place_rows(images.__getitem__, chosen, mesh))

    yield from gather_batches(batch, len(rows), batch_size, mesh, description)


@jax.jit
def _reconstruct(codec: Codec, images: Array) -> Array:
    return to_uint8(codec.decode(codec.latents(codec.encode(to_float(images)))))


@jax.jit
def _sums(codec: Codec, images: Array) -> Array:
    """Sums of z and of the expectation of z^2 over the places of each image, [B, 2, c]."""
    mean, logvar = codec.encode(to_float(images))
    squares = jnp.square(mean) + jnp.exp(logvar)
    return jnp.stack([jnp.sum(a, axis=(1, 2)) for a in (mean, squares)], axis=1)

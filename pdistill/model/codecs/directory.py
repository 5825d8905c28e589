"""Directories of codecs: parameters and model.json, as of a model."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from pdistill.model.card import ModelError, find, read_card
from pdistill.model.codecs.codec import Codec
from pdistill.model.store import read_params, write
from pdistill.networks import build_codec, describe_network
from pdistill.runtime.files import one_line


def save_codec(directory: str | Path, codec: Codec, /, **card: Any) -> None:
    """Writes a codec's directory whole or not at all.

    Args:
      card: stage, method and whatever else a reader should know; all of it JSON.
    """
    described = {
        "kind": "codec",
        "codec": describe_network(codec.module),
        "mean": codec.mean,
        "std": codec.std,
        "tile": codec.tile,
    }
    write(directory, described | card, codec.params)


def load_codec(directory: str | Path, mesh: Mesh | None = None) -> Codec:
    """Loads what `save_codec` wrote.

    Args:
      mesh: devices to spread the parameters over; one device by default.

    Raises:
      ModelError: there is no codec there, or it cannot be read.
    """
    directory = find(directory)
    card = read_card(directory, codec=True)
    try:
        module = build_codec(card["codec"]["name"], card["codec"]["arguments"])
        blank = Codec(None, module, tuple(card["mean"]), tuple(card["std"]), card["tile"])
        return read_params(directory, blank.checked(), card, mesh)
    except Exception as error:  # a card may hold anything
        raise ModelError(f"cannot load {directory}: {one_line(error)}") from error

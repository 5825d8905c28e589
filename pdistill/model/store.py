"""Model directories: saved whole or not at all, and loaded."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from jax.sharding import Mesh

from pdistill.model.card import (
    FORMAT,
    ModelError,
    build_blank,
    describe,
    find,
    read_card,
    versions,
)
from pdistill.model.model import Model
from pdistill.networks import Network
from pdistill.runtime.arrays import checksum, load_params, save_params
from pdistill.runtime.files import one_line, write_atomically
from pdistill.runtime.mesh import one_device, param_sharding
from pdistill.runtime.temporary import replacing


def save(directory: str | Path, network: Network, /, **card: Any) -> None:
    """Writes a model directory whole or not at all.

    Args:
      card: kind, solver, num_steps, clip, num_labels, data={"shape", "scale"}, method, parent
        and whatever else a reader should know; all of it JSON.
    """
    write(directory, describe(network) | card, network.params)


def write(directory: str | Path, card: dict[str, Any], params: Any) -> None:
    """Writes parameters and their card as a directory, whole or not at all."""
    directory = Path(directory)
    card = {"format": FORMAT, **card, "versions": versions(), "checksum": checksum(params)}
    first = jax.process_index() == 0
    token = bytes(broadcast_one_to_all(np.frombuffer(secrets.token_bytes(6), np.uint8))).hex()
    with replacing(directory, token, mine=first) as temporary:
        save_params(temporary / "params", params)
        if first:
            (temporary / "model.json").write_text(json.dumps(card, indent=2) + "\n")
    sync_global_devices(f"saved {directory}")


def copy(source: Path, directory: Path, /, **changes: Any) -> None:
    """Copies a model directory whole or not at all, with changes of its card."""
    if jax.process_index() == 0:
        with replacing(directory) as temporary:
            shutil.copytree(source, temporary)
            change_card(temporary, **changes)
    sync_global_devices(f"copied {directory}")


def change_card(directory: Path, **changes: Any) -> None:
    """Rewrites entries of a model's card."""
    card = read_card(directory) | changes
    write_atomically(directory / "model.json", json.dumps(card, indent=2) + "\n")


def load(directory: str | Path, mesh: Mesh | None = None) -> Model:
    """Loads what `save` wrote: a model directory, or a stage's directory that holds one.

    Args:
      mesh: devices to spread the parameters over; one device by default.

    Raises:
      ModelError: there is no model there, or it cannot be read.
    """
    directory = find(directory)
    card = read_card(directory)
    try:
        model = Model(read_params(directory, build_blank(card), card, mesh), card)
        _ = model.sampling_with()
    except KeyError as error:
        raise ModelError(f"{directory / 'model.json'} lacks the key {error}") from error
    except Exception as error:  # a card may hold anything
        raise ModelError(f"cannot load {directory}: {one_line(error)}") from error
    return model


def read_params(directory: Path, blank: Any, card: dict[str, Any], mesh: Mesh | None) -> Any:
    """Fills a blank network or codec with the parameters of a directory that `write` wrote.

    Raises:
      ValueError: they are damaged, or not those of the card.
    """
    shapes = blank.shapes
    shardings = param_sharding(shapes.params, mesh) if mesh else one_device(shapes.params)
    params = load_params(directory / "params", shapes.params, shardings)
    if checksum(params) != card["checksum"]:
        raise ValueError("its parameters are not those that were saved")
    return shapes.replace(params=params)

"""Model directories: saved whole or not at all, and loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from pdistill.model.card import (
    FORMAT,
    ModelError,
    build_diffuser,
    describe,
    find,
    noise_shape,
    read_card,
    versions,
)
from pdistill.model.model import Model
from pdistill.networks import Diffuser
from pdistill.runtime.arrays import checksum, load_params, params_shapes, save_params
from pdistill.runtime.files import one_line, write_atomically
from pdistill.runtime.mesh import one_device, param_sharding


def save(
    directory: str | Path, diffuser: Diffuser, params: Any, extra: Any = None, /, **card: Any
) -> None:
    """Writes a model directory whole or not at all.

    Args:
      extra: parameters that only training goes on with, for `load_extra`; None for none.
      card: kind, solver, num_steps, clip, num_labels, data={"shape", "scale"}, method, parent
        and whatever else a reader should know; all of it JSON.
    """
    directory = Path(directory)
    card = {"format": FORMAT, **describe(diffuser), **card, "versions": versions()}
    card["checksum"] = checksum(params)
    if extra is not None:
        card["extra_checksum"] = checksum(extra)
    temporary = directory.with_name(directory.name + ".tmp")
    if jax.process_index() == 0 and temporary.exists():
        shutil.rmtree(temporary)
    save_params(temporary / "params", params)
    if extra is not None:
        save_params(temporary / "extra", extra)
    if jax.process_index() == 0:
        (temporary / "model.json").write_text(json.dumps(card, indent=2) + "\n")
        replace(temporary, directory)
    sync_global_devices(f"saved {directory}")


def copy(source: Path, directory: Path, /, **changes: Any) -> None:
    """Copies a model directory whole or not at all, with changes of its card."""
    if jax.process_index() == 0:
        temporary = directory.with_name(directory.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        change_card(temporary, **changes)
        replace(temporary, directory)
    sync_global_devices(f"copied {directory}")


def change_card(directory: Path, **changes: Any) -> None:
    """Rewrites entries of a model's card."""
    card = read_card(directory) | changes
    write_atomically(directory / "model.json", json.dumps(card, indent=2) + "\n")


def replace(source: Path, target: Path) -> None:
    """Renames a directory, in the place of another one if there is one."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)  # a crash may have left it
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
        diffuser = build_diffuser(card)
        shapes = diffuser.param_shapes(noise_shape(card))
        shardings = param_sharding(shapes, mesh) if mesh else one_device(shapes)
        params = _load_checked(directory / "params", shapes, shardings, card["checksum"])
        model = Model(diffuser, params, card)
        _ = model.sampling
    except KeyError as error:
        raise ModelError(f"{directory / 'model.json'} lacks the key {error}") from error
    except Exception as error:  # a card may hold anything
        raise ModelError(f"cannot load {directory}: {one_line(error)}") from error
    return model


def load_extra(directory: str | Path, mesh: Mesh) -> Any:
    """The extra parameters that `save` wrote.

    Raises:
      ModelError: there are none, or they cannot be read.
    """
    directory = find(directory)
    path, card = directory / "extra", read_card(directory)
    again = f"remove {directory.parent} to train that stage again"
    if not path.is_dir():
        raise ModelError(f"{directory} was saved without what training goes on with; {again}")
    try:
        shapes = params_shapes(path)
        return _load_checked(path, shapes, param_sharding(shapes, mesh), card["extra_checksum"])
    except (ValueError, KeyError) as error:
        raise ModelError(f"cannot load {path}: {one_line(error)}; {again}") from error


def _load_checked(path: Path, shapes: Any, shardings: Any, expected: int) -> Any:
    """`load_params`; ValueError also if their checksum is another than the card's."""
    params = load_params(path, shapes, shardings)
    if checksum(params) != expected:
        raise ValueError("its parameters are not those that were saved")
    return params

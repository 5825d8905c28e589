"""What every kind of source becomes: a diffuser, its parameters and a card."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdistill import model as models
from pdistill.diffusion import Schedule
from pdistill.interop.weights import ConversionError
from pdistill.networks import Diffuser, build_network
from pdistill.runtime.files import one_line

NUM_STEPS = 64  # of an imported teacher, unless the source or the user says


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A model to be: what `model.save` takes."""

    diffuser: Diffuser
    params: Any
    card: dict[str, Any]


def teacher_card(
    diffuser: Diffuser,
    shape: tuple[int, ...],
    *,
    method: str,
    source: str | Path,
    num_steps: int | None = None,
    guided: bool = False,
    pixels: bool = True,
) -> dict[str, Any]:
    """The card of an imported teacher that makes [*shape]; DDIM samples it.

    Args:
      method: the kind of its source. guided: it was trained with labels left out.
      pixels: it makes images in [-1, 1], which x_hat is clipped to; else latents.
    """
    return {
        "kind": "denoiser",
        "solver": "ddim",
        "num_steps": num_steps or NUM_STEPS,
        "clip": (-1.0, 1.0) if pixels else None,
        "num_labels": diffuser.num_labels,
        "data": {"shape": shape, "scale": "image / 127.5 - 1" if pixels else "latents"},
        "guidance": (0.0, None) if guided else None,
        "parent": None,
        "stage": Path(source).absolute().name,
        "method": method,
        "train_steps": None,
        "images_seen": None,
    }


def write_model(directory: str | Path, conversion: Conversion) -> None:
    """Writes a model directory, whole or not at all."""
    directory = Path(directory)
    try:
        models.save(directory, conversion.diffuser, conversion.params, **conversion.card)
    except BaseException:
        shutil.rmtree(directory.with_name(directory.name + ".tmp"), ignore_errors=True)
        raise


def converter(convert: Callable[..., Conversion]) -> Callable[..., Conversion]:
    """Makes one clear error of whatever a file leads to: configs and pickles may hold anything."""

    @functools.wraps(convert)
    def guarded(source: str | Path, **options: Any) -> Conversion:
        try:
            return convert(source, **options)
        except ConversionError:
            raise
        except Exception as error:
            cause = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
            raise ConversionError(f"cannot convert {source}: {cause}") from error

    return guarded


def build(name: str, arguments: dict[str, Any], head: str, schedule: Schedule) -> Diffuser:
    """A diffuser from plain data."""
    return Diffuser(build_network(name, arguments), head, schedule)


def read_json(path: Path) -> dict[str, Any]:
    """An object.

    Raises:
      ConversionError: there is none.
    """
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path} must hold an object; it holds {config!r}"[:200])
    return config

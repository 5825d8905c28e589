"""A model directory: parameters and model.json, and the sampler they make.

model = load("runs/digits/progressive/4")
images = model.sample(jax.random.key(0), num=64)
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from pdistill import diffusion, samplers
from pdistill.diffusion import Denoiser, Jump
from pdistill.evaluation import Sampling, generate
from pdistill.files import one_line, write_atomically
from pdistill.networks import Diffuser, build_network, describe_network
from pdistill.sharding import one_device, param_sharding
from pdistill.training import checksum, load_params, params_shapes, save_params

SCHEDULES = {
    "cosine": diffusion.CosineSchedule,
    "ddpm": diffusion.DdpmSchedule,
    "karras": diffusion.KarrasSchedule,
    "linear_beta": diffusion.LinearBetaSchedule,
    "linear_logsnr": diffusion.LinearLogsnrSchedule,
}
FORMAT = 1
# What a card must say besides the network: how to sample it, and what results.jsonl repeats.
CARD = (
    *("data", "num_steps", "solver", "clip", "guidance", "checksum"),
    *("stage", "method", "train_steps", "images_seen"),
)


class ModelError(ValueError):
    """A model directory that cannot be used; the message names it and says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained denoiser with its sampler.

    Attributes:
      diffuser: network, head and schedule. params: the network's parameters.
      card: model.json as a dictionary: what this is, where it comes from, how to sample it.
    """

    diffuser: Diffuser
    params: Any
    card: dict[str, Any]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise that an image is made from: [h, w, C], mostly its own shape."""
        return noise_shape(self.card)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.card["data"]["shape"])

    @property
    def sampling(self) -> Sampling:
        """How the model is meant to be sampled."""
        return Sampling(
            num_steps=num_steps(self.card),
            solver=samplers.parse_solver(self.card["solver"]),
            clip=None if self.card["clip"] is None else tuple(self.card["clip"]),
            upsampled=self.card.get("upsampled", 1),
        )

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """Lowest and highest guidance weight; None for a model that takes none."""
        if self.card["guidance"] is None:
            return None
        low, high = self.card["guidance"]
        return low, math.inf if high is None else high

    def denoiser(self, label: Array | None = None, guidance: Array | None = None) -> Denoiser:
        """denoise(z [B, H, W, C], logsnr [B]) -> x_hat, for `samplers` or any JAX code.

        `label` and `guidance` are [B]. Nothing is checked here.
        """
        return self.diffuser.denoiser(self.params, label, guidance)

    def jump(self, label: Array | None = None, guidance: Array | None = None) -> Jump:
        """jump(z [B, H, W, C], logsnr_t [B], logsnr_s [B]) -> z at s, see `Diffuser.jump`.

        For `samplers.sample` with `samplers.Gamma`. Nothing is checked here.
        """
        return self.diffuser.jump(self.params, label, guidance)

    def sample(
        self,
        key: Array,
        num: int,
        *,
        label: Array | int | None = None,
        num_steps: samplers.Steps | None = None,
        solver: samplers.Solver | samplers.Cascade | None = None,
        guidance: Array | float | None = None,
    ) -> Array:
        """Generates `num` images; compiled once for each `num`, step count and solver.

        Args:
          label: a label for all, or one for each, in 0 .. num_labels - 1; None for a network
            without labels. A network with labels takes None as "no label", which only one that
            was trained with some labels left out has learnt.
          guidance: weight w for all, or one for each, in `guidance_range`; None is no guidance.
            Other weights do not recompile.
          num_steps, solver: instead of those the model is made for. A cascade takes a tuple of
            steps, those of each level.

        Returns:
          [num, H, W, C] float32 in [-1, 1]. Image i depends on `key` and i, not on `num`.

        Raises:
          ValueError: bad counts, a label or weight out of range or for a model without.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1; got {num}")
        sampling = self.sampling.changed(num_steps, solver)
        return generate(
            self.diffuser, self.params, key, jnp.arange(num), self._labels(label, num),
            self._weights(guidance, label, num), sampling=sampling, shape=self.noise_shape,
        )  # fmt: skip

    def _labels(self, label, num):
        num_labels = self.diffuser.num_labels
        if label is None:
            return None
        if not num_labels:
            raise ValueError("this model has no labels; leave label out")
        label = np.asarray(label)
        if not np.issubdtype(label.dtype, np.integer) or label.shape not in ((), (num,)):
            raise ValueError(f"label must be one integer, or {num} of them; got {label}")
        if label.min() < 0 or label.max() >= num_labels:
            raise ValueError(f"labels must be in 0 .. {num_labels - 1}; got {label}")
        return jnp.broadcast_to(jnp.asarray(label, jnp.int32), (num,))

    def _weights(self, guidance, label, num):
        if guidance is None:
            return None
        self.check_guidance(guidance)
        if label is None:
            raise ValueError("guidance is towards a label; give label too")
        if np.shape(guidance) not in ((), (num,)):
            raise ValueError(f"guidance must be one weight, or {num} of them; got {guidance}")
        return jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), (num,))

    def check_guidance(self, guidance: Array | float) -> None:
        """Raises ValueError for weights that the model does not take."""
        if self.guidance_range is None:
            raise ValueError("this model was not trained for guidance; leave guidance out")
        low, high = self.guidance_range
        if not (np.min(guidance) >= low and np.max(guidance) <= high):  # also for NaN
            raise ValueError(f"guidance must be in [{low:g}, {high:g}]; got {guidance}")


def noise_shape(card: dict[str, Any]) -> tuple[int, ...]:
    """Of the noise that a model's images are made from; cards that do not say have the images'."""
    data = card["data"]
    return tuple(data.get("noise_shape", data["shape"]))


def num_steps(card: dict[str, Any]) -> samplers.Steps:
    """That a model is sampled with."""
    steps = card["num_steps"]
    return tuple(steps) if isinstance(steps, list) else steps


def describe(diffuser: Diffuser) -> dict[str, Any]:
    """The part of model.json that rebuilds a Diffuser."""
    schedule = diffuser.schedule
    names = [name for name, cls in SCHEDULES.items() if type(schedule) is cls]
    if not names:
        raise ValueError(f"{schedule} is not one of {', '.join(SCHEDULES)}")
    return {
        "network": describe_network(diffuser.network),
        "head": diffuser.head,
        "schedule": {"name": names[0], "arguments": dataclasses.asdict(schedule)},
        **({"shifts": diffuser.shifts} if diffuser.shifts else {}),
    }


def build_schedule(name: str, arguments: dict[str, Any]) -> diffusion.Schedule:
    """A schedule from plain data, as in configs and model.json."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    known = [f.name for f in dataclasses.fields(SCHEDULES[name])]
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"schedule {name!r} has no {argument!r}; it has {', '.join(known)}")
    return SCHEDULES[name](**arguments)


def build_diffuser(card: dict[str, Any]) -> Diffuser:
    """The inverse of `describe`.

    Raises:
      KeyError, ValueError: something is missing, or unknown here.
    """
    return Diffuser(
        build_network(card["network"]["name"], card["network"]["arguments"]),
        card["head"],
        build_schedule(card["schedule"]["name"], card["schedule"]["arguments"]),
        tuple(card.get("shifts", ())),
    )


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


def read_card(directory: Path) -> dict[str, Any]:
    """model.json of a model directory.

    Raises:
      ModelError: it is not there, or not of a format that this version reads.
    """
    path = directory / "model.json"
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(
            f"no model in {directory}: give a folder with model.json, such as "
            "runs/digits/progressive/4"
        ) from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise ModelError(f"{path} must hold an object; it holds {card!r}")
    check_card(card, path)
    return card


def check_card(card: dict[str, Any], path: Path) -> None:
    """Raises ModelError for a card of another format, or without what every one has."""
    if card.get("format") != FORMAT:
        raise ModelError(f"{path} has format {card.get('format')}; this reads {FORMAT}")
    for key in CARD:
        if key not in card:
            raise ModelError(f"{path} lacks the key {key!r}")


def find(directory: str | Path) -> Path:
    """The model directory that this is, or that is in this stage's directory."""
    directory = Path(directory)
    return directory / "model" if (directory / "model").is_dir() else directory


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


def versions() -> dict[str, str]:
    """What a result depends on."""
    packages = ("pdistill", "jax", "flax", "optax", "orbax-checkpoint")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }

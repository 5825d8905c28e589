"""From a ConfigDict, which people write, to frozen dataclasses, which code below reads."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from pdistill.diffusion import output_channels
from pdistill.experiment.imported import ImportedStage
from pdistill.methods import STAGES, Round, Stage
from pdistill.model import build_schedule
from pdistill.networks import Diffuser, build_network
from pdistill.runtime.files import one_line
from pdistill.samplers import Gamma, parse_solver

KINDS = STAGES | {"imported": ImportedStage}  # of stages, by what their `method` says


class ConfigError(ValueError):
    """A config that cannot run; the message names the key, its value and what would be right."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set `name`, as in `data.load_dataset`, and how it is read.

    Attributes:
      train: split to train on. flip: random mirroring. resident: keep it on the device.
    """

    name: str
    train: str = "train"
    flip: bool = False
    resident: bool = True


@dataclasses.dataclass(frozen=True)
class Named:
    """Something built by name from plain arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network, what it predicts (`diffusion.HEADS`) and the noise schedule.

    The network's out_channels follow from the head and the data, and are not given.
    """

    network: Named
    schedule: Named
    head: str = "v"

    def build(self, image_shape: tuple[int, ...]) -> Diffuser:
        """The diffuser for such images.

        Raises:
          ValueError: the network cannot be built, or not for this image shape.
        """
        if "out_channels" in self.network.arguments:
            raise ValueError("out_channels follows from the head and the data; leave it out")
        channels = image_shape[-1]
        arguments = {**self.network.arguments, "out_channels": output_channels(self.head, channels)}
        try:
            diffuser = Diffuser(
                build_network(self.network.name, arguments),
                self.head,
                build_schedule(self.schedule.name, self.schedule.arguments),
            )
            diffuser.param_shapes(image_shape)
        except Exception as error:  # whatever Flax raises for arguments that do not fit
            raise ValueError(one_line(error)) from error
        return diffuser


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What every model is measured by.

    Attributes:
      metrics, features: as in `evaluation.Evaluator`. references: splits to compare with.
      inception_weights: file for the metrics that need it; "" for the cached or published one.
      solvers: as in `samplers.parse_solver`; each model is sampled with each of them.
      guidance: weights to sample each model that takes them with; pictures show the first.
      gammas: to sample each model that jumps with, see `samplers.Gamma`; pictures show the first.
      held_out: split for the memorisation check. num_samples: 0 for as many as each reference
        has images. batch_size: samples drawn at a time. clip: x_hat is clipped to [-1, 1].
    """

    metrics: tuple[str, ...] = ("fd_pixels", "nearest_neighbour_ratio")
    references: tuple[str, ...] = ("train", "test")
    features: str = ""
    inception_weights: str = ""
    solvers: tuple[str, ...] = ("ddim",)
    guidance: tuple[float, ...] = (0.0,)
    gammas: tuple[float, ...] = (0.0,)
    held_out: str = "test"
    num_samples: int = 0
    batch_size: int = 500
    clip: bool = True

    def __post_init__(self):
        if self.num_samples < 0 or self.num_samples == 1:
            raise ValueError(f"num_samples must be 0, or at least 2; got {self.num_samples}")
        if not self.guidance or not min(self.guidance) >= 0:
            raise ValueError(f"guidance must be weights of at least 0; got {self.guidance}")
        if not self.references:
            raise ValueError("references must name at least one split")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        for name in ("gammas", "solvers"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        for text in self.solvers:
            parse_solver(text)
        for gamma in self.gammas:
            Gamma(gamma)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 is the rest."""

    data: int = -1
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything `experiment.run` needs."""

    data: DataConfig
    model: ModelConfig
    stages: tuple[Stage, ...]
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    def rounds(self, image_shape: tuple[int, ...]) -> list[Round]:
        """All training runs in order.

        Raises:
          ConfigError: a parent that no earlier stage makes, or a name used twice.
        """
        try:
            diffuser = self.model.build(image_shape)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
        rounds: dict[str, Round] = {}
        for i, stage in enumerate(self.stages):
            try:
                shape = stage.shape(image_shape)
                new = [_shaped(r, shape) for r in stage.rounds(diffuser, shape, rounds)]
            except ValueError as error:
                raise ConfigError(f"stages[{i}] ({stage.name}): {error}") from error
            for r in new:
                if r.name in rounds:
                    raise ConfigError(f"stages[{i}].name: {r.name!r} is used twice")
                for parent in filter(None, r.parents):
                    if rounds[parent].noise_shape != r.noise_shape:
                        raise ConfigError(
                            f"stages[{i}] ({stage.name}): {parent!r} is of "
                            f"{rounds[parent].noise_shape} and {r.name!r} of {r.noise_shape}; set "
                            "resolution to the same"
                        )
                rounds[r.name] = r
        return list(rounds.values())


def _shaped(r: Round, shape: tuple[int, ...]) -> Round:
    """The round with the shapes that its stage left out."""
    image_shape = tuple(r.image_shape or shape)
    noise_shape = tuple(r.noise_shape or image_shape)
    return dataclasses.replace(r, image_shape=image_shape, noise_shape=noise_shape)


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of a dataclass that `parse` reads, as plain data for a config."""
    found = {}
    for field in dataclasses.fields(cls):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is not dataclasses.MISSING:
            plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
            found[field.name] = plain
    return found


def as_plain(config: Any) -> dict[str, Any]:
    """A ConfigDict as it is in a run directory, with lists for tuples: what `parse` reads.

    Raises:
      ConfigError: it holds other than plain values.
    """
    try:
        return json.loads(config.to_json())
    except TypeError as error:
        raise ConfigError(f"a config holds plain values only: {error}") from error


def parse(config: Mapping[str, Any]) -> ExperimentConfig:
    """Checks and converts a whole config.

    Raises:
      ConfigError: an unknown or missing key, a value of the wrong type or out of range.
    """
    return _build(ExperimentConfig, config, "")


def _build(cls: type, values: Any, path: str) -> Any:
    """A dataclass from a mapping, field by field, by the fields' types."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} must be a dictionary; got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {_join(path, key)!r}; {hint}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"missing key {_join(path, name)!r}")
    hints = typing.get_type_hints(cls)
    built = {key: _convert(hints[key], values[key], _join(path, key)) for key in values}
    try:
        return cls(**built)
    except ValueError as error:
        raise ConfigError(f"{path or 'config'}: {error}") from error


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Stage:
        return _stage(value, path)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be a tuple; got {value!r}")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{path} must be {kind.__name__}; got {value!r}")
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} must be a dictionary; got {value!r}")
    return dict(value)  # arguments, checked by what they build


def _stage(value: Any, path: str) -> Stage:
    if not isinstance(value, Mapping) or "method" not in value:
        raise ConfigError(f"{path} must be a dictionary with name and method; got {value!r}")
    method = value["method"]
    if not isinstance(method, str) or method not in KINDS:
        raise ConfigError(f"{path}.method must be one of {', '.join(KINDS)}; got {method!r}")
    rest = {key: item for key, item in value.items() if key != "method"}
    return _build(KINDS[method], rest, path)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key

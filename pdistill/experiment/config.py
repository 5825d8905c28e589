"""Configs: ConfigDicts, which people write, as frozen dataclasses, which the code below reads."""

import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pdistill.diffusion import output_channels
from pdistill.experiment.imported import Imported
from pdistill.experiment.kinds import COMMON, ConfigError, method_named, trains
from pdistill.methods import Run
from pdistill.methods.method import evaluated, roles
from pdistill.model.card import build_schedule
from pdistill.networks import Network, build_network
from pdistill.networks.registry import hashable
from pdistill.runtime.files import one_line
from pdistill.runtime.own_code import consent, is_own, said
from pdistill.samplers import Gamma, parse_solver

PLAIN = (bool, int, float, str)  # types of a config's values
LIMITS = (".clip_norm", ".max_grad_norm")  # keys, which infinity lifts


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set `name`, as in `data.load_dataset`, and how it is read.

    Attributes:
      train: split to train on. flip: random mirroring.
      resident: keep it on the device; else its images are read from disk while it trains.
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

    def build(self, image_shape: tuple[int, ...], fits: bool = True) -> Network:
        """The blank network for images or latents of this shape, [H, W, C].

        Args:
          fits: False for a shape that it need not take.

        Raises:
          ValueError: the network cannot be built, or not for this image shape.
        """
        if "out_channels" in self.network.arguments:
            raise ValueError("out_channels follows from the head and the data; leave it out")
        channels = output_channels(self.head, image_shape[-1])
        arguments = {**self.network.arguments, "out_channels": channels}
        try:
            with consent():
                module = build_network(self.network.name, arguments)
                schedule = build_schedule(self.schedule.name, self.schedule.arguments)
            network = Network(
                None,
                module=module,
                head=self.head,
                schedule=schedule,
                shape=tuple(image_shape),
            )
            if fits:
                network.shapes  # noqa: B018  # raises for arguments that do not fit
        except Exception as error:  # whatever Flax raises
            raise ValueError(one_line(error)) from error
        return network


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Settings that every model is measured by.

    Attributes:
      metrics, features: as in `evaluation.Evaluator`. references: splits to compare with.
      inception_weights: file for the metrics that need it; "" for the cached or published one.
      solvers: as in `samplers.parse_solver`; each model is sampled with each of them,
        but a further one is left out where it cannot do with one step. () for each model's own: an
        imported one's is on its card, DDIM is that of others.
      guidance: weights to sample each model that takes them with; pictures show the first.
      gammas: to sample each model that jumps with, see `samplers.Gamma`; pictures show the first.
        () for its own: 1 where it has learnt jumps to the data alone, else 0.
      held_out: split for the memorisation check. num_samples: 0 for as many as each reference
        has images. batch_size: samples drawn at a time. clip: x_hat is clipped, to [-1, 1]
        or as an imported model's card says.
    """

    metrics: tuple[str, ...] = ("fd_pixels", "nearest_neighbour_ratio")
    references: tuple[str, ...] = ("train", "test")
    features: str = ""
    inception_weights: str = ""
    solvers: tuple[str, ...] = ()
    guidance: tuple[float, ...] = (0.0,)
    gammas: tuple[float, ...] = ()
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
        for text in self.solvers:
            if parse_solver(text).model != "denoiser":
                raise ValueError(
                    f"solvers must be for any denoiser, such as ddim; got {text!r}: models that "
                    "are made for one kind of solver are measured with it anyway, and those that "
                    "have learnt a variance by `pdistill evaluate --solver=iddpm`"
                )
        for gamma in self.gammas:
            Gamma(gamma)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 is the rest."""

    data: int = -1
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that `experiment.run` needs.

    Attributes:
      model: None where the first stage imports a model, whose network it is then.
      codec: the networks work on its latents: the name of a stage that makes one, before theirs, or
        a codec's directory; "" for images, or for the codec of an imported model. Stages that make
        codecs work on images.
      text_encoder: folder of the text encoder of networks that take prompts, or the package that
        has it; "" for networks without text, or for the encoder of an imported model.
      teacher: the model directory of stages that import one without saying its path.
      guide: the directory of another model that guides it; "" for none, or as its card says.
      wandb: also log to Weights & Biases.
      estimate: tell the run's time and memory before its first update, see `tell_estimate`.
    """

    data: DataConfig
    stages: tuple[Run, ...]
    model: ModelConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    codec: str = ""
    text_encoder: str = ""
    teacher: str = ""
    guide: str = ""
    wandb: bool = False
    estimate: bool = False

    def __post_init__(self):
        imports = [isinstance(stage.method, Imported) for stage in self.stages]
        if self.model is None and not any(imports[:1]):
            raise ValueError("missing key 'model'; only a first stage that imports one replaces it")
        stages = tuple(map(self._with_teacher, self.stages))
        if (self.teacher or self.guide) and stages == self.stages:
            name = "teacher" if self.teacher else "guide"
            raise ValueError(f"{name}: no stage takes it; the variant imported of a config does")
        object.__setattr__(self, "stages", stages)

    def _with_teacher(self, stage: Run) -> Run:
        if not isinstance(stage.method, Imported) or stage.method.path:
            return stage
        guide = stage.method.guide or self.guide
        method = dataclasses.replace(stage.method, path=self.teacher, guide=guide)
        return dataclasses.replace(stage, method=method)


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
    check_numbers(config, "")
    return _build(ExperimentConfig, config, "")


def check_numbers(value: Any, path: str) -> None:
    """Raises ConfigError for NaN, which no comparison finds, and infinity but as a bound, for none.

    Args:
      path: the value's place in the config.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_numbers(item, _join(path, str(key)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_numbers(item, f"{path}[{i}]")
    elif isinstance(value, float):
        is_end = path.endswith("]") and not math.isnan(value)  # of a range
        is_limit = value == math.inf and path.endswith(LIMITS)
        if not (math.isfinite(value) or is_end or is_limit):
            raise ConfigError(f"{path} must be a finite number; got {value}")


def _build(cls: type, values: Any, path: str, common: Sequence[str] = ()) -> Any:
    """A dataclass from a mapping, field by field, by the fields' types.

    Args:
      common: keys that were taken out before, for the message about an unknown one.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} must be a dictionary; got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    known = (*common, *fields)
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_key(path, key, known))
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"missing key {_join(path, name)!r}")
    hints = types_of(cls)
    built = {key: convert(hints[key], values[key], _join(path, key)) for key in values}
    try:
        return cls(**built)
    except Exception as error:
        if not (is_own(cls) or isinstance(error, ValueError)):
            raise
        raise ConfigError(f"{path or 'config'}: {said(error) if is_own(cls) else error}") from error


def types_of(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields, by name; text that cannot be evaluated stays as it is."""
    found = {}
    for base in reversed(cls.__mro__):
        names = {**vars(base), **vars(sys.modules.get(base.__module__, object))}
        for name, annotation in vars(base).get("__annotations__", {}).items():
            found[name] = evaluated(annotation, names)
    return found


def unknown_key(path: str, key: Any, known: Sequence[str]) -> str:
    """The message about a key that the dictionary at `path` does not have."""
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known) or 'none'}"
    return f"unknown key {_join(path, key)!r}; {hint}"


def convert(kind: Any, value: Any, path: str) -> Any:
    """A field's value of a type from the plain one at `path` of a config.

    Raises:
      ConfigError: the value is of another type, or no plain value is of this type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Run:
        return _stage(value, path)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            known = ", ".join(map(repr, arguments))
            raise ConfigError(f"{path} must be one of {known}; got {value!r}")
        return value
    if kind is Any:
        return hashable(value)
    if (origin or kind) in (dict, Mapping):  # arguments, checked by what they build
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a dictionary; got {value!r}")
        return hashable(value)
    if kind not in PLAIN:
        name = getattr(kind, "__name__", kind)
        raise ConfigError(
            f"{path} is of type {name}, which no value in a config is of; a field can be of "
            f"{', '.join(plain.__name__ for plain in PLAIN)}, Literal, None, Any, dict, tuple[...] "
            "or a frozen dataclass of such, and of unions of these with one dataclass"
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{path} must be {kind.__name__}; got {value!r}")
    return value


def _convert_tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ConfigError(f"{path} must be a tuple; got {value!r}")
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{path} must be a tuple of {len(kinds)}; got {value!r}")
    pairs = zip(kinds, value, strict=True)
    return tuple(convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """A value of the first of these types that it can be of; else the error of the first."""
    if value is None and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    built = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if len(built) > 1:
        names = " or ".join(kind.__name__ for kind in built)
        raise ConfigError(f"{path} is of type {names}, which a dictionary does not tell apart")
    listed = isinstance(value, list | tuple)
    fitting = [kind for kind in kinds if (typing.get_origin(kind) is tuple) == listed] or kinds
    errors = []
    for kind in fitting:
        try:
            return convert(kind, value, path)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _stage(value: Any, path: str) -> Run:
    """A stage: what runs have in common, the names of what it is given, and its method."""
    if not isinstance(value, Mapping) or "method" not in value:
        raise ConfigError(f"{path} must be a dictionary with name and method; got {value!r}")
    cls = method_named(value["method"], f"{path}.method")
    hints = types_of(Run)
    if "name" not in value:
        raise ConfigError(f"missing key {_join(path, 'name')!r}")
    if trains(cls) and value.get("loop") is None:
        raise ConfigError(f"missing key {_join(path, 'loop')!r}")
    common = [key for key in COMMON if key != "loop" or trains(cls)]
    names = roles(cls)
    shared = {
        key: convert(hints[key], value[key], _join(path, key)) for key in common if key in value
    }
    given = {key: convert(str, value[key], _join(path, key)) for key in names if key in value}
    own = {k: v for k, v in value.items() if k not in (*common, *names, "method")}
    method = _build(cls, own, path, (*common, *names))
    try:
        return Run(method=method, given={k: v for k, v in given.items() if v}, **shared)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key

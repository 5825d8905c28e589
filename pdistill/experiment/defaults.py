"""A config with every key that has a default, so that a command line can change it."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pdistill.experiment.config import (
    COMMON,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    check_numbers,
    convert,
    method_named,
    trains,
    types_of,
)
from pdistill.methods import Method, Run
from pdistill.methods.method import optional_roles

PARTS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "evaluation": EvaluationConfig,
    "mesh": MeshConfig,
}
SET_BY_RUN = {"Optimizer": ("num_updates",)}  # fields with a default that a run fills in


def fill_defaults(config: ConfigDict) -> ConfigDict:
    """A copy of a config in which every key that has a default is there.

    It describes the same experiment. Errors of the config are left to `config.parse`.
    """
    return ConfigDict(filled(copied(config)))


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config with every key that has a default; see `fill_defaults`."""
    fields = dataclasses.fields(ExperimentConfig)
    plain = {f.name: f.default for f in fields if isinstance(f.default, int | str)}
    config = plain | {"evaluation": {}, "mesh": {}} | dict(config)
    for name, cls in PARTS.items():
        if name in config:
            config[name] = _fill(cls, config[name])
    if isinstance(config.get("stages"), list | tuple):
        config["stages"] = type(config["stages"])(map(_fill_stage, config["stages"]))
    return config


def _fill_stage(stage: Any) -> Any:
    """A stage: the keys that all have, the networks it may be given, and its method's fields."""
    cls = method_of(stage)
    if cls is None:
        return stage
    common = [key for key in COMMON if key != "loop" or trains(cls)]
    return _fill(cls, _fill(Run, stage, common)) | dict.fromkeys(
        (name for name in optional_roles(cls) if name not in stage), ""
    )


def method_of(stage: Any) -> type[Method] | None:
    """The class of a plain stage's method; None for a stage that has none."""
    try:
        return method_named(stage["method"], "method")
    except (ConfigError, TypeError, KeyError):
        return None


def _fill(cls: type, values: Any, names: typing.Sequence[str] | None = None) -> Any:
    """The values of a dataclass's fields with its defaults, also of the dataclasses in it.

    Args:
      names: fields that are looked at; None for all.
    """
    if not isinstance(values, Mapping):
        return values
    found, hints = dict(values), types_of(cls)
    for field in dataclasses.fields(cls):
        skipped = (names is not None and field.name not in names) or not field.init
        if skipped or field.name in SET_BY_RUN.get(cls.__name__, ()):
            continue
        if field.name not in found:
            default = _default(field, hints[field.name])
            if default is dataclasses.MISSING:
                continue
            found[field.name] = default
        found[field.name] = _fill_value(hints[field.name], found[field.name])
    return found


def _fill_value(kind: Any, value: Any) -> Any:
    """A value of a field of this type, with the defaults in it."""
    kinds = [k for k in typing.get_args(kind) if k is not type(None)]
    if kind is Run or Run in kinds:
        return _fill_stage(value)
    if isinstance(value, list | tuple):
        if typing.get_origin(kind) is tuple and dataclasses.is_dataclass(kinds[0]):
            return type(value)(_fill(kinds[0], item) for item in value)
        return value
    cls = next((k for k in (kind, *kinds) if dataclasses.is_dataclass(k)), None)
    return _fill(cls, value) if cls else value


def _default(field: dataclasses.Field, kind: Any) -> Any:
    """The plain default of a field of this type, or MISSING if there is none that means it."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    plain = _plain(value)
    try:
        check_numbers(plain, f".{field.name}")
        return plain if convert(kind, plain, field.name) == value else dataclasses.MISSING
    except ConfigError:
        return dataclasses.MISSING


def _plain(value: Any) -> Any:
    """Dictionaries for dataclasses and mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def copied(value: Any) -> Any:
    """Nested dicts for nested ConfigDicts, none of them shared; references are kept."""
    if isinstance(value, ConfigDict):
        value = dict(value.items(preserve_field_references=True))
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value

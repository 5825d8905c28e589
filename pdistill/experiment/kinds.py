"""Kinds of stages: methods by what a config calls them, the user's own among them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from pdistill.experiment.imported import Imported
from pdistill.methods import METHODS, Method
from pdistill.methods.method import arguments, roles
from pdistill.runtime.own_code import class_named

KINDS = METHODS | {Imported.name: Imported}  # of stages, by what their `method` says
# Keys of a stage that every method has; the others are its own hyperparameters.
COMMON = ("name", "loop", "measured_at", "select", "labels", "resolution")


class ConfigError(ValueError):
    """A config that cannot run; the message names the key, its value and what would be right."""


def method_named(name: Any, path: str) -> type[Method]:
    """The method of a name in KINDS, or the class of the user's own that "module:Class" says."""
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    if not (isinstance(name, str) and ":" in name):
        known = ", ".join(KINDS)
        raise ConfigError(
            f"{path} must be one of {known}, or a class of your own as module:Class; got {name!r}"
        )
    try:
        found = class_named(name, Method)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    for lacks in _lacks(found):
        raise ConfigError(f"{path}: {name!r} {lacks}, see pdistill.methods.Method")
    return found


def _lacks(method: type[Method]) -> Iterator[str]:
    """Says, first things first, what keeps a user's class from being a method."""
    known, own = (
        getattr(method, "__dataclass_fields__", ()),
        vars(method).get("__annotations__", ()),
    )
    undecorated = not dataclasses.is_dataclass(method) or {*own} - {*known}
    if undecorated or not method.__dataclass_params__.frozen:
        yield "must be a frozen dataclass: write @dataclasses.dataclass(frozen=True) before it"
    if not isinstance(getattr(method, "name", None), str):
        yield 'needs a name for its results: a class attribute name: ClassVar[str] = "..."'
    if method.unfold is Method.unfold and not (
        hasattr(method, "init") and hasattr(method, "product")
    ):
        yield "needs the functions init and product"
    taken = (*COMMON, "method", *roles(method))
    for field in dataclasses.fields(method):
        if field.name in taken:
            yield f"has a field {field.name!r}, which every stage has already; rename it"
    for argument in list(arguments(method).values())[2:]:  # behind self and the key
        if argument.kind is argument.VAR_KEYWORD and method.unfold is Method.unfold:
            yield f"must name the networks of init, as teacher: Network; it has {argument}"
        elif argument.annotation is argument.empty and "VAR" not in argument.kind.name:
            yield (
                f"has the argument {argument.name!r} of init without its type, such as Network for "
                "the network of an earlier stage"
            )


def trains(method: Method | type[Method]) -> bool:
    """Whether a method has updates."""
    return hasattr(method, "step")

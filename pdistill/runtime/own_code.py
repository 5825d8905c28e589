"""Code that is the user's own: its classes by name, and its errors in one line."""

import contextlib
import importlib
import operator
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pdistill.runtime.files import one_line

PACKAGE = Path(__file__).parents[1]
LIBRARIES = (f"{PACKAGE}{os.sep}", *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
_consent: ContextVar[bool | None] = ContextVar("_consent", default=None)


class NotImported(ValueError):
    """A class whose module is not imported, and may not be; see `consent`."""


def is_own(value: Any) -> bool:
    """Whether a class, or a value's class, is the user's and not of this package."""
    cls = value if isinstance(value, type) else type(value)
    return cls.__module__.partition(".")[0] != __name__.partition(".")[0]


@contextlib.contextmanager
def consent(given: bool = True) -> Iterator[None]:
    """Says whether `class_named` may import modules, as the outermost of several says it.

    A config may, whose words are its user's; what a card names its reader has not chosen.
    """
    outer = _consent.get()
    token = _consent.set(given if outer is None else outer)
    try:
        yield
    finally:
        _consent.reset(token)


def class_named(name: str, parent: type = object) -> type:
    """The class that "module:Class" names; with `consent` its module is imported.

    Raises:
      NotImported: its module is not, and there is no consent.
      ValueError: it cannot be imported, or is not a subclass of `parent`.
    """
    module, _, attribute = name.partition(":")
    if module not in sys.modules and not _consent.get():
        raise NotImported(
            f"it names {name!r}, code of its author's own, which would run here; if you trust it, "
            f"import {module} before (a config's file can), or give own_code=True or --own_code"
        )
    token = _consent.set(None)  # which is for this module, not for what it loads
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever the module's code raises
        raise ValueError(f"{name!r} cannot be imported: {said(error)}") from error
    finally:
        _consent.reset(token)
    if not (isinstance(found, type) and issubclass(found, parent)):
        raise ValueError(f"{name!r} is not a subclass of {parent.__module__}.{parent.__name__}")
    return found


def name_of(cls: type) -> str:
    """The inverse of `class_named`; ValueError for a class that no other program could import."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    try:
        found = class_named(name)
    except ValueError:
        found = None
    if found is not cls or cls.__module__ == "__main__":
        raise ValueError(
            f"a card names classes as module:Class, and {name} is not found by that; define it at "
            "the top of a file of its own"
        )
    return name


def said(error: BaseException) -> str:
    """An error of the user's code in one line, with its kind and the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", *LIBRARIES))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    kind = "" if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)}{place}"

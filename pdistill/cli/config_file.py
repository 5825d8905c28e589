"""Config files, found by path or name and read with their defaults; itself read as one by absl.

`--config=FILE:VARIANT` goes to ml_collections as this file with "FILE:VARIANT" as its variant, so
that the flags after it can change every key that has a default. FILE:imported and
FILE:VARIANT:imported start from a model made elsewhere, see `with_imported_teacher`. A config whose
get_config has the parameter `data` follows from a data set, whose name begins its variants.
"""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path, tuple_parser

from pdistill.experiment.config import unknown_key
from pdistill.experiment.defaults import copied, fill_defaults
from pdistill.experiment.variants import with_imported_teacher
from pdistill.runtime.files import in_home

CONFIGS = Path(__file__).parents[1] / "configs"
SHARED = ("scale",)  # files there that are parts of configs


def find_config(text: str) -> str:
    """The file of a config FILE or FILE:VARIANT; the package's own also by their names."""
    path, colon, variant = text.partition(":")
    if (file := in_home(path)).is_file():
        return f"{file}{colon}{variant}"
    name = re.sub(r"^configs/|\.py$", "", path)
    names = [p.stem for p in sorted(CONFIGS.glob("[a-z]*.py")) if p.stem not in SHARED]
    if name not in names:
        close = difflib.get_close_matches(name, names) or names
        sys.exit(f"error: there is no config {path!r}; there are {', '.join(close)}")
    return f"{CONFIGS / name}.py{colon}{variant}"


def load_config(text: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT as its file has it.

    Ends the program, with a line that says why, for a variant that the file does not have.
    """
    path, colon, variant = find_config(text).partition(":")
    imports = variant.split(":")[-1] == "imported"
    if imports:
        variant, colon, _ = variant.rpartition(":")
    function = _function(path)
    if colon and not inspect.signature(function).parameters:
        sys.exit(f"error: {path} has no variants; got {variant!r}")
    try:
        written = function(*[variant] * bool(colon))
        config = with_imported_teacher(written) if imports else written
    except ValueError as error:
        sys.exit(f"error: {path}: {error}")
    if not isinstance(config, ConfigDict):
        sys.exit(f"error: {path}: get_config must return a ConfigDict; got {type(config).__name__}")
    _check_modules({*_named([copied(written), copied(config)])}, Path(path).resolve())
    return config


def _named(value: Any) -> Iterator[str]:
    """The modules that a plain config names, as module:Class."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _named(item)
    elif isinstance(value, str) and (match := re.fullmatch(r"([A-Za-z_][\w.]*):[\w.]+", value)):
        yield match[1]


def _check_modules(named: set[str], path: Path) -> None:
    """Ends the program if a module is not of the file beside the config at `path`, but of another.

    Not that folder but all others are searched first: a file in it may be called like a library.

    Args:
      named: modules that the config names; those of the folder are imported.
    """
    folder = path.parent
    files = {file.stem: file for file in folder.glob("*.py") if file.stem != "__main__"}
    files |= {file.parent.name: file for file in folder.glob("*/__init__.py")}
    wanted = {name for name in named if name.partition(".")[0] in files}
    for name in wanted:
        with contextlib.suppress(Exception, SystemExit):  # which the config's parser says
            importlib.import_module(name)
    needed = {name.partition(".")[0] for name in wanted}
    used, ahead = set(), {*needed, *_imported(path)}
    while ahead:  # also what these import
        name = ahead.pop()
        if name in files and name not in used:
            used.add(name)
            ahead |= _imported(files[name])
    for name in used:
        found = getattr(sys.modules.get(name), "__file__", None)
        if not found or (name in sys.stdlib_module_names and name not in needed):
            continue
        if Path(found).resolve() != files[name].resolve():
            sys.exit(f"error: the module {name} is of {found}, not of {files[name]}: rename this")


def _imported(file: Path) -> set[str]:
    """First parts of the names of the modules that a file imports; none if it is no Python."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    return {name.partition(".")[0] for name in names}


def _function(path: str) -> Callable[..., ConfigDict]:
    """The function get_config of a file; ends the program if it has none."""
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:  # where a config's own methods are
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location("config_file_of_the_run", path)
    if spec is None:
        sys.exit(f"error: {path} is no config, a .py file with a function get_config")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        sys.exit(f"error: {path} has no function get_config")
    return module.get_config


def for_data(text: str, arguments: list[str]) -> str:
    """The config FILE:NAME:DEVICE:CODEC:ENCODER of a FILE:VARIANT that follows from a data set.

    NAME, CODEC and ENCODER are what --config.data.name, --config.codec and --config.text_encoder
    are among the arguments; without them, or if the config does not follow from a data set, `text`
    is returned as it is.
    """
    path, colon, variant = text.partition(":")
    if "data" not in inspect.signature(_function(path)).parameters:
        return text
    names, codecs, encoders = (
        re.findall(rf"(?m)^--?config\.{key}[=\n](.*)$", "\n".join(arguments))
        for key in (r"data\.name", "codec", "text_encoder")
    )
    if names:
        colon, variant = ":", f"{names[-1]}{colon}{variant}"
    if (codecs or encoders) and not variant.endswith("imported"):
        name, device, codec, encoder, *_ = [*variant.split(":"), "", "", "", ""]
        codec, encoder = (codecs or [codec])[-1], (encoders or [encoder])[-1]
        variant = f"{name}:{device}:{codec}:{encoder}".rstrip(":")
    return f"{path}{colon}{variant}"


def get_config(text: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT with all defaults."""
    return fill_defaults(load_config(text))


def check_overrides(config: ConfigDict, arguments: list[str]) -> None:
    """Ends the program, with a line that says why, for a --config.KEY that the config has not."""
    for argument in arguments:
        if match := re.fullmatch(r"--?(?:no)?config\.([^=]+)(=.*)?", argument, re.DOTALL):
            _check_key(config, match[1])


def _check_key(config: ConfigDict, key: str) -> None:
    """Ends the program unless a config with all its defaults has a value at a.b[0].c."""
    try:
        parts = config_path.split(key)
    except ValueError:
        sys.exit(f"error: --config.{key} is not a key such as stages[0].loop.num_updates")
    value, path = config, ""
    for part in parts:
        if isinstance(part, int) and isinstance(value, list | tuple):
            if not -len(value) <= part < len(value):
                sys.exit(f"error: {path} has {len(value)} entries; there is no {path}[{part}]")
            path = f"{path}[{part}]"
        else:
            known = list(value) if isinstance(value, Mapping | ConfigDict) else []
            if part not in known:
                sys.exit(f"error: {unknown_key(path, part, known)}")
            path = f"{path}.{part}" if path else part
        value = value[part]
    if isinstance(value, dict):  # no flag can replace it
        how = f"one of its keys, {', '.join(value)}" if value else "it in the config's file"
        sys.exit(f"error: --config.{key} is a dictionary; change {how}")


class _TupleParser(tuple_parser.TupleParser):
    """Reads a,b as well as ("a", "b")."""

    def parse(self, argument: Any) -> tuple:
        return _as_tuple(argument) if isinstance(argument, str) else tuple(argument)


class _AnyParser(flags.ArgumentParser):
    """Reads a value of a key that is None by default, a,b included."""

    def parse(self, argument: str) -> Any:
        return _as_tuple(argument) if "," in argument else _literal(argument)


def _as_tuple(text: str) -> tuple:
    """The tuple that a,b or (a, b) says; a string needs no quotation marks."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        return tuple(map(_literal, inner.split(",")))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


config_flags.register_flag_parser_for_type(tuple, _TupleParser())
config_flags.register_flag_parser_for_type(list, _TupleParser())
config_flags.register_flag_parser_for_type(type(None), _AnyParser())

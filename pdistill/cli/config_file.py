"""Config files, found by path or name and read with their defaults; itself read as one by absl.

`--config=FILE:VARIANT` goes to ml_collections as this file with "FILE:VARIANT" as its variant, so
that the flags after it can change every key that has a default. FILE:imported and
FILE:VARIANT:imported start from a model made elsewhere, see `with_imported_teacher`.
"""

import difflib
import importlib.util
import re
import sys
from pathlib import Path

from ml_collections import ConfigDict

from pdistill.experiment.defaults import fill_defaults
from pdistill.experiment.variants import with_imported_teacher

CONFIGS = Path(__file__).parents[1] / "configs"


def find_config(text: str) -> str:
    """The file of a config FILE or FILE:VARIANT; the package's own also by their names."""
    path, colon, variant = text.partition(":")
    if Path(path).is_file():
        return text
    name = re.sub(r"^configs/|\.py$", "", path)
    names = [p.stem for p in sorted(CONFIGS.glob("[a-z]*_*.py"))]
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
    spec = importlib.util.spec_from_file_location("config_file_of_the_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        sys.exit(f"error: {path} has no function get_config")
    try:
        config = module.get_config(*[variant] * bool(colon))
        config = with_imported_teacher(config) if imports else config
    except ValueError as error:
        sys.exit(f"error: {path}: {error}")
    if not isinstance(config, ConfigDict):
        sys.exit(f"error: {path}: get_config must return a ConfigDict; got {type(config).__name__}")
    return config


def get_config(text: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT with all defaults."""
    return fill_defaults(load_config(text))

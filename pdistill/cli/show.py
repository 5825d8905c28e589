"""Prints what a config says, with all its defaults.

    pdistill show digits_pd
    pdistill show configs/cifar10_pd.py:cpu

A value with * is a default, which the config does not give.
"""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pdistill.cli.config_file import load_config
from pdistill.cli.options import command_parser
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.defaults import filled, method_of
from pdistill.methods.method import roles
from pdistill.runtime.terminal import plain_errors, say
from pdistill.runtime.torch_files import WeightsError

WIDTH = 100
FIRST = ("name", "method")  # in a stage's heading


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("show", __doc__)
    parser.add_argument("config", metavar="CONFIG", help="FILE, FILE:VARIANT or a config's name")
    options = parser.parse_args(arguments)
    with plain_errors(ConfigError):
        config = as_plain(load_config(options.config))
        print("\n".join(table(config)))
        try:
            parse(config)  # after what may show why it cannot be
        except ConfigError as error:
            if not isinstance(error.__cause__, WeightsError):
                raise
            say(f"warning: {error}")  # of this machine, not of the config


def table(config: Mapping[str, Any]) -> Iterator[str]:
    """A plain config as lines of text, stage by stage, with its defaults."""
    whole = filled(config)
    about = {key: value for key, value in whole.items() if key != "stages"}
    yield from section("", about, config)
    stages = whole.get("stages")
    for stage, own in zip(stages, config["stages"], strict=True) if stages else ():
        if isinstance(stage, Mapping):
            yield ""
            yield from stage_lines(stage, own)
    yield ""
    yield "* default"


def stage_lines(stage: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """A stage: its name and method, the networks it is given, its other values."""
    kind = method_of(stage)
    names = [role for role in roles(kind) if stage.get(role)] if kind else []
    given = ", ".join(f"{role} = {stage[role]}" for role in names) or "nothing"
    yield f"{stage.get('name')}: {stage.get('method')}, given {given}"
    unused = roles(kind) if kind else ()
    rest = {key: value for key, value in stage.items() if key not in (*FIRST, *unused)}
    if not rest.get("measured_at"):
        rest["measured_at"] = "what the method makes it for"
    yield from section("  ", rest, own)


def section(indent: str, values: Mapping[str, Any], own: Any) -> Iterator[str]:
    """Lines of keys and values; a nested dictionary is one paragraph."""
    width = max(map(len, values), default=0) + 2
    for key, value in values.items():
        space = indent + " " * width
        yield textwrap.fill(
            told(value, own.get(key), key in own),
            WIDTH,
            initial_indent=indent + key.ljust(width),
            subsequent_indent=space,
            break_long_words=False,
            break_on_hyphens=False,
        )


def told(value: Any, own: Any, is_given: bool) -> str:
    """A value as text, its defaults with a star. `own` is what the config gives for it."""
    if isinstance(value, Mapping) and value:
        own = own if isinstance(own, Mapping) else {}
        return ", ".join(
            f"{k} {_nested(told(v, own.get(k), k in own), v)}" for k, v in value.items()
        )
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        own = own if isinstance(own, list) else [{}] * len(value)
        return "; ".join(
            f"({told(item, given, True)})" for item, given in zip(value, own, strict=True)
        )
    if isinstance(value, list | tuple):
        text = f"[{', '.join(told(item, item, True) for item in value)}]"
    else:
        text = value if isinstance(value, str) and value else _number(value)
    return text if is_given else f"{text}*"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "{}" if value == {} else repr(value)


def _nested(text: str, value: Any) -> str:
    return f"({text})" if isinstance(value, Mapping) and value else text

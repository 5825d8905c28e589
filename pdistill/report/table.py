"""Tables of results.jsonl, with a line a model and way to sample and a column a metric."""

from collections.abc import Sequence
from typing import Any

WORDS = (  # of rows of `evaluate`
    *("model", "checksum", "codec", "guide", "text_encoder", "prompts"),
    *("background", "inception_weights"),
)
# Those that apply.
SETTINGS = ("variance", "guidance", "gamma", "churn", *WORDS, "channels", "label")
LINE = ("stage", "nfe", "solver", "effective_nfe", *SETTINGS, "seed")  # equal in the rows of a line
# Equal where values can be compared.
COLUMN = ("metric", "reference", "num_samples", "features", "held_out", "mirrored")
TEXT = ("stage", "solver", *WORDS)  # columns of words; the others hold numbers


def pivot(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Makes a header and lines of cells, in the order in which `rows` first name them.

    A header's cell has one or two lines of text. A metric to one reference has a column for each
    number of samples, feature space and set of held-out images, and one with mirrors, which the
    header names where there are several. effective_nfe, SETTINGS and seed have a column only if
    they differ, and seconds only if they can be compared: all on the same devices. A cell that was
    not measured is blank, one with a margin has it after the value.
    """
    lines = {}
    for row in rows:
        lines.setdefault(tuple(row.get(name) for name in LINE), []).append(row)
    metrics = _metrics(rows)
    settings = varying(rows, LINE[3:])
    counted = [row for row in rows if "devices" in row]  # those of earlier versions do not say
    alike = not varying(rows, ("device",)) and not varying(counted, ("devices",))
    timed = alike and any(row.get("seconds_per_image") for row in rows)
    header = [
        *LINE[:3],
        *settings,
        *metrics.values(),
        *(["seconds/\nimage"] if timed else []),
        "train\nupdates",
        "images\nseen",
    ]
    body = []
    for members in lines.values():
        first = members[0]
        found = {_column(row): row for row in members}
        body.append(
            [
                first["stage"],
                _count(first["nfe"]),
                first["solver"] or "",
                *(setting(first.get(name)) for name in settings),
                *(_with_margin(found.get(metric)) for metric in metrics),
                *([three_digits(first.get("seconds_per_image"))] if timed else []),
                _count(first.get("train_steps")),
                _count(first.get("images_seen")),
            ]
        )
    return header, body


def _column(row: dict[str, Any]) -> tuple:
    """The column that a row belongs to, the values of COLUMN."""
    return tuple(row.get(name) for name in COLUMN)


def _metrics(rows: Sequence[dict[str, Any]]) -> dict[tuple, str]:
    """The header of each `_column`, in the order in which rows first name them."""
    columns = dict.fromkeys(map(_column, rows))
    headers = {}
    for column in columns:
        metric, reference, num, space, held_out, mirrored = column
        words = (
            num is not None and f"{num:,} samples",
            space,
            held_out and f"beside {held_out}",
            mirrored and "with mirrors",
        )
        alike = [other[2:] for other in columns if other[:2] == (metric, reference)]
        told = [
            word
            for word, values in zip(words, zip(*alike, strict=True), strict=True)
            if word and len(set(values)) > 1
        ]
        headers[column] = f"{', '.join([metric, *told])}\n{reference or ''}"
    return headers


def setting(value: str | float | None) -> str:
    """Formats a setting; blank if it does not apply."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats `pivot(rows)` for the terminal, words to the left and numbers to the right."""
    header, body = pivot(rows)
    above = [cell.rpartition("\n")[0] for cell in header]
    below = [cell.rpartition("\n")[2] for cell in header]
    widths = [max(map(len, column)) for column in zip(above, below, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if name in TEXT else cell.rjust(width)
            for cell, width, name in zip(cells, widths, header, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(above), line(below), rule, *map(line, body)])


def varying(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Picks the `names` in which rows differ; a row without the name has None.

    A checksum is picked only where several models have been in one place.
    """

    def kinds(*names: str) -> int:
        return len({tuple(map(row.get, names)) for row in rows})

    found = [name for name in names if kinds(name) > 1]
    if "checksum" in found and kinds("model", "checksum") == kinds("model"):
        found.remove("checksum")
    return found


def three_digits(value: float | None) -> str:
    """Formats three digits: 0.01234 -> "0.0123", 1234.5 -> "1,230"; None -> ""."""
    return "" if value is None else _digits(value, 3)


def _digits(value: float, num: int) -> str:
    value = float(f"{value:.{num}g}")
    if 10**num <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:#.{num}g}".removesuffix(".")


def _with_margin(row: dict[str, Any] | None) -> str:
    """Formats a row's value, with its margin if it has one: "5.31 ± 0.24"."""
    if row is None:
        return ""
    value = three_digits(row["value"])
    return f"{value} ± {_digits(row['margin'], 2)}" if "margin" in row else value


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"

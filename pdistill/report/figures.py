"""The report's plots, from the `RunDirectory` that `runs.read` returns.

They are drawn at twice the resolution of the page, which shows a pixel as half a CSS pixel. Plots
are as wide as a phone, so that their text is read there too; the page sets them side by side.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from pdistill.report.columns import describe
from pdistill.report.runs import group
from pdistill.report.table import SETTINGS, setting, varying
from pdistill.runtime.temporary import replacing

DPI = 200
WIDTH = 4.4  # inches, of plots
COLORS = ("0.25", "C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
MARKERS = "os^DvPX"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "text.parse_math": False,
}
RATIO = "nearest_neighbour_ratio"
SHARES = (
    "precision",
    "recall",
    "label_accuracy",
    "class_share_min",
    "class_share_max",
)
LINEAR = (RATIO, *SHARES, "is")  # beginnings of metrics on a linear axis
SIGNED = ("kid",)  # of unbiased distances, which are below 0 by chance
COPYING = 0.8  # samples nearer to the training set than this are suspect


@matplotlib.rc_context(STYLE)
def metric(rows: Sequence[dict[str, Any]], metric: str, reference: str | None) -> Figure:
    """Draws a metric against network evaluations, a line for each (group, solver, *SETTINGS).

    A cascade's evaluations are its effective ones, of full size at equal cost. The axes are
    logarithmic but for the values of the metrics in LINEAR, and around 0 of those in SIGNED. A line
    goes through the mean over seeds, which are dots; where stages of a group share an nfe, the last
    counts.

    Args:
      rows: all rows of results.jsonl, so that a line looks the same in every figure; those that are
        not `drawable` are left out, and one must remain.
    """
    chosen = [
        row
        for row in rows
        if (row["metric"], row["reference"]) == (metric, reference) and drawable(row)
    ]
    figure, axes = _plot()
    for i, (line, label) in enumerate(line_labels(rows).items()):
        values = {(_cost(r), r["seed"]): r["value"] for r in chosen if _line(r) == line}
        if values:
            nfes = sorted({nfe for nfe, _ in values})
            means = [np.mean([v for (n, _), v in values.items() if n == nfe]) for nfe in nfes]
            color = COLORS[i % len(COLORS)]
            axes.plot(nfes, means, color=color, marker=MARKERS[i % len(MARKERS)], label=label)
            axes.plot([nfe for nfe, _ in values], values.values(), ".", color=color)
    axes.set_title(_title(f"{metric} against {reference}" if reference else metric))
    axes.set_xlabel("network evaluations")
    if better := describe(metric).better:
        axes.set_ylabel(f"{better} is better")
    _nfe_axis(axes.xaxis, sorted({_cost(row) for row in chosen}))
    if metric.startswith(SHARES):
        axes.set_ylim(0, 1)
    elif metric == RATIO:
        axes.axhline(COPYING, color="C3", linewidth=1, linestyle="--")
        axes.annotate(
            f"below {COPYING}: perhaps copies", (0, COPYING), (6, -4),
            xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="top", color="C3",
        )  # fmt: skip
        axes.set_ylim(0, 1.1 * max(COPYING, *(row["value"] for row in chosen)))
    elif metric.startswith(LINEAR):
        axes.set_ylim(0, 1.1 * max(row["value"] for row in chosen))
    else:
        _log_axis(axes.yaxis, [row["value"] for row in chosen])
    axes.grid(axis="y", color="0.9")
    _legend_below(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def against_guidance(rows: Sequence[dict[str, Any]], metric: str) -> Figure:
    """Draws a metric against the guidance weight: a line a stage, step count and way to sample.

    A line goes through the mean over seeds.

    Args:
      rows: all rows of results.jsonl, so that a line looks the same in every figure; those without
        guidance, or with another than the metric's first reference, are left out.
    """
    rows = [row for row in rows if row.get("guidance") is not None]
    names = [name for name in ("solver", *SETTINGS) if name != "guidance"]
    differ = varying(rows, names)

    def line(row: dict[str, Any]) -> tuple:
        steps = row.get("num_steps", row["nfe"])
        return row["stage"], steps, *(row.get(name) for name in names)

    labels = {}
    for row in rows:
        stage, steps, *_ = line(row)
        labels[line(row)] = ", ".join([stage, f"{steps} steps", *_told(row, differ)])
    chosen = [row for row in rows if row["metric"] == metric]
    chosen = [row for row in chosen if row["reference"] == chosen[0]["reference"]]
    figure, axes = _plot()
    for i, (each, label) in enumerate(labels.items()):
        found = [(row["guidance"], row["value"]) for row in chosen if line(row) == each]
        weights = sorted({weight for weight, _ in found})
        means = [np.mean([v for weight, v in found if weight == w]) for w in weights]
        axes.plot(weights, means, "o-", color=_shade(i, len(labels)), label=label)
    axes.set_title(_title(metric))
    axes.set_xlabel("guidance weight")
    if better := describe(metric).better:
        axes.set_ylabel(f"{better} is better")
    axes.grid(axis="y", color="0.9")
    _legend_below(figure, axes)
    return figure


def drawable(row: dict[str, Any]) -> bool:
    """Tells whether the row's value is finite and, for an axis that is logarithmic only, positive.

    Rows of no evaluations, a codec's, are for tables.
    """
    return (
        bool(row["nfe"])
        and math.isfinite(row["value"])
        and (row["metric"].startswith(LINEAR + SIGNED) or row["value"] > 0)
    )


def line_labels(rows: Sequence[dict[str, Any]]) -> dict[tuple, str]:
    """Labels each line (group, solver, *SETTINGS) by its group and the settings that differ."""
    rows = [row for row in rows if row["nfe"]]
    settings = varying(rows, ("solver", *SETTINGS))
    labels = {}
    for row in rows:
        name = group(row["stage"], row.get("method"))
        labels[_line(row)] = ", ".join([name, *_told(row, settings)])
    return labels


def _told(row: dict[str, Any], settings: Sequence[str]) -> list[str]:
    """Words for the settings that apply to a row."""
    return [
        row[name] if name == "solver" else f"{name} {setting(row[name])}"
        for name in settings
        if row.get(name) is not None
    ]


def _cost(row: dict[str, Any]) -> float:
    """Network evaluations; for a cascade, as many of full size as cost the same."""
    return row.get("effective_nfe", row["nfe"])


def _line(row: dict[str, Any]) -> tuple:
    """The line that a row belongs to, (group, solver, *SETTINGS)."""
    name = group(row["stage"], row.get("method"))
    return name, row["solver"], *(row.get(name) for name in SETTINGS)


@matplotlib.rc_context(STYLE)
def spectra(runs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draws each run's power at each frequency as a multiple of the data's.

    Args:
      runs: {run: (`Spectrum.values` [R] of its samples, those of the data at their size [R])}.
    """
    figure, axes = _plot()
    for i, (run, (values, data)) in enumerate(runs.items()):
        axes.plot(_ratio(values, data), color=_shade(i, len(runs)), label=run)
    _ratio_axes(axes, max(len(data) for _, data in runs.values()))
    _legend_below(figure, axes)
    return figure


def _shade(i: int, num: int) -> tuple[float, ...]:
    """The colour of line i of `num` in an order; seen on white, and inverted on black."""
    return matplotlib.colormaps["viridis"](0.75 * i / max(num - 1, 1))


def _ratio(values: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Power [R] as a multiple of the data's, NaN where either has none; both are log10."""
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = 10.0 ** (np.asarray(values) - data)
    return np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)


def _ratio_axes(axes: Axes, rings: int) -> None:
    """Labels the axes of ratios to the data, which are drawn already, and marks the data."""
    axes.axhline(1, color="0.25", linewidth=1, linestyle="--", label="data")
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    if np.nanmax(drawn) > 2 * np.nanmin(drawn):
        _log_axis(axes.yaxis, drawn[np.isfinite(drawn)])
    axes.set_xlabel("cycles an image")
    axes.set_ylabel("power / the data's")
    axes.set_xlim(0, rings - 1)
    axes.grid(axis="y", color="0.9")


@matplotlib.rc_context(STYLE)
def selection(run: str, rows: Sequence[dict[str, Any]], data: np.ndarray | None) -> Figure:
    """Draws the metric measured at each save of a run, and the spectra below it.

    Args:
      rows: lines of selection.jsonl. data: spectrum of the data [R], which the others are divided
        by; without it there are none.
    """
    figure = Figure((WIDTH, 3.0 if data is None else 6.0), dpi=DPI, layout="constrained")
    above, *below = figure.subplots(1 if data is None else 2, squeeze=False)[:, 0]
    values = [row["value"] for row in rows]
    best = rows[int(np.argmin(values))]
    widths = list(dict.fromkeys(row.get("width") for row in rows))
    for i, width in enumerate(widths):
        points = [(row["step"], row["value"]) for row in rows if row.get("width") == width]
        label = None if width is None else f"width {width:g}"
        color = "C0" if width is None else _shade(i, len(widths))
        above.plot(*zip(*points, strict=True), "o-", color=color, label=label)
    above.plot(best["step"], best["value"], "o", color="C3", label=f"kept: update {best['step']}")
    above.set_title(_title(run))
    above.set_xlabel("updates")
    above.set_ylabel(f"{rows[0]['metric']}, lower is better")
    if min(values) > 0:
        _log_axis(above.yaxis, values)
    above.legend()
    above.grid(axis="y", color="0.9")
    for axes in below:
        for i, row in enumerate(rows):
            color = _shade(i, len(rows))
            label = f"update {row['step']}" if i in (0, len(rows) - 1) else None
            axes.plot(_ratio(row["spectrum"], data), color=color, label=label)
        _ratio_axes(axes, len(data))
        axes.legend()
    return figure


@matplotlib.rc_context(STYLE)
def losses(name: str, runs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draws the loss of a group against updates, its runs one after another.

    Args:
      runs: {run: (steps [N], losses [N])}. The axis is logarithmic if all losses are positive.
    """
    figure, axes = _plot()
    ends = np.cumsum([steps[-1] for steps, _ in runs.values()])
    starts = np.insert(ends, 0, 0)[:-1]
    names = [run.removeprefix(name).removeprefix("/") for run in runs]
    shown = _with_room(names, (starts + ends) / (2 * ends[-1]))
    for i, (steps, values) in enumerate(runs.values()):
        start, end = starts[i], ends[i]
        axes.plot(start + steps, values, ".-", color="C0", linewidth=1, markersize=3)
        if i % 2:
            axes.axvspan(start, end, color="0.95", linewidth=0, zorder=0)
        axes.annotate(
            shown[i], ((start + end) / 2, 1), (0, 3), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="center", color="0.35",
        )  # fmt: skip
    axes.set_xlim(0, ends[-1])
    values = np.concatenate([values for _, values in runs.values()])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0:
        _log_axis(axes.yaxis, values)
    axes.set_title(_title(name), pad=18 if len(runs) > 1 else None)
    axes.set_ylabel("loss")
    axes.set_xlabel("updates" + (", one run after another" if len(runs) > 1 else ""))
    axes.grid(axis="y", color="0.9")
    return figure


def _title(text: str) -> str:
    """Breaks a title into lines that are no wider than a plot."""
    return textwrap.fill(text, 36, break_on_hyphens=False)


def _plot() -> tuple[Figure, Axes]:
    """An empty plot."""
    figure = Figure((WIDTH, 3.0), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Adds a legend below the axes, for which the figure grows."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = max(1, 48 // (6 + longest))  # that fit beside each other
    size = min(10, 400 / longest)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=size)
    figure.set_size_inches(WIDTH, 3.0 + 0.2 * math.ceil(len(labels) / columns))


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _nfe_axis(axis: Axis, nfes: Sequence[int]) -> None:
    """Makes an axis logarithmic, with a tick at every nfe and a label where there is room."""
    axis.axes.set_xscale("log")
    axis.set_ticks([], minor=True)
    whole = max(math.log(nfes[-1] / nfes[0]), 1e-9)
    middles = [math.log(nfe / nfes[0]) / whole for nfe in nfes]
    axis.set_ticks(nfes, _with_room([_number(nfe) for nfe in nfes], middles))


def _with_room(labels: Sequence[str], middles: Sequence[float]) -> list[str]:
    """Blanks labels that would touch one on their left; middles are fractions of the axis."""
    shown, right = [], -math.inf  # right end of the last one
    for label, middle in zip(labels, middles, strict=True):
        half = 0.0125 * len(label)
        fits = middle - half > right + 0.01
        shown.append(label if fits else "")
        right = middle + half if fits else right
    return shown


def _number(nfe: float) -> str:
    """Formats a count as it is, a fraction with three digits."""
    return str(nfe) if isinstance(nfe, int) else f"{nfe:.3g}"


def _log_axis(axis: Axis, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with a few ticks around positive `values` of any range.

    It is linear around 0, to both sides as far as the lowest value, where some are not positive.
    """
    if min(values) <= 0:
        least = max(-min(values), 1e-3 * max(values)) or 1.0
        axis.axes.set_yscale("symlog", linthresh=least)
        axis.axes.axhline(0, color="0.25", linewidth=1, linestyle="--")
        return
    axis.axes.set_yscale("log")
    low, high = 0.97 * min(values), 1.03 * max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    first = max(tick for tick in ticks if tick <= low)
    last = min(tick for tick in ticks if tick >= high)
    ticks = [tick for tick in ticks if first <= tick <= last]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
    axis.axes.set_ylim(first, last)

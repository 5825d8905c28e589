"""The report's grids of images, each row below its name.

They have no ground: names are read on a bright page and on a dark one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdistill.report.figures import DPI, STYLE
from pdistill.report.grids import arrange, tile
from pdistill.report.runs import all_steps

GREY = "0.47"  # is read on white and on black


@matplotlib.rc_context(STYLE)
def samples(groups: Mapping[str, Mapping[int | str, np.ndarray]]) -> Figure:
    """Draws the first 16 images of every cell, a row a group and a column a step count.

    Args:
      groups: {group: {step count: uint8 [N, H, W, C]}}; a missing cell stays blank. The most steps
        come first. A cascade's counts are text, "8+4+2", placed by their sum.
    """
    counts = {count for cells in groups.values() for count in cells}
    counts = sorted(counts, key=lambda count: (all_steps(count), str(count)), reverse=True)
    return _grids(groups, counts, "sampling steps")


@matplotlib.rc_context(STYLE)
def guided(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws images as `samples` does, with a column a guidance weight.

    Args:
      groups: {run: {weight: uint8 [N, H, W, C]}}.
    """
    weights = sorted({weight for cells in groups.values() for weight in cells}, key=float)
    return _grids(groups, weights, "guidance weight")


def _grids(groups: Mapping[str, Mapping[Any, np.ndarray]], counts: Sequence, label: str) -> Figure:
    def cell(images: np.ndarray | None) -> np.ndarray | None:
        return None if images is None else tile(images[:16])

    figure, axes, columns = _pictures(
        {name: [cell(cells.get(count)) for count in counts] for name, cells in groups.items()},
        top=90,
    )
    axes.set_xticks(columns, counts)
    axes.set_xlabel(label, labelpad=6, loc="left")
    return figure


@matplotlib.rc_context(STYLE)
def neighbours(runs: Mapping[str, np.ndarray]) -> Figure:
    """Draws samples in the first row of each block, and the nearest training images below.

    Args:
      runs: {run: uint8 [n, 1 + k, H, W, C]}.
    """
    blocks = {
        run: [tile(images.swapaxes(0, 1).reshape(-1, *images.shape[2:]), columns=len(images))]
        for run, images in runs.items()
    }
    figure, axes, _ = _pictures(blocks, top=0)
    axes.set_xticks([])
    return figure


def _pictures(
    rows: Mapping[str, Sequence[np.ndarray | None]], top: int
) -> tuple[Figure, Axes, np.ndarray]:
    """Draws rows of pictures, each below its name, on a transparent ground.

    Returns the figure, its axes, and the middles of its columns. A whole number of the figure's
    pixels shows one of a picture, so that nothing is resampled.
    """
    picture, columns, tops = arrange(list(rows.values()), gap=12, above=32)
    height, width, _ = picture.shape
    zoom = 2 if width <= 1300 else 1
    edge = 8
    content = np.array([zoom * width, zoom * height])
    names = 19 * max(map(len, rows))  # about as wide as the longest is drawn
    size = np.array([max(content[0], names) + 2 * edge, top + content[1] + edge])
    figure = Figure(size / DPI, dpi=DPI)
    figure.patch.set_alpha(0)
    axes = figure.add_axes([*(np.array([edge, edge]) / size), *(content / size)])
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
    for name, y in zip(rows, tops, strict=True):
        axes.annotate(name, (0, y), (0, 3), textcoords="offset points", fontsize=11, color=GREY)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.xaxis.label.set_color(GREY)
    axes.tick_params(length=0, labelsize=11, labelcolor=GREY)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.patch.set_alpha(0)
    return figure, axes, columns

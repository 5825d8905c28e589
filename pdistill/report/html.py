"""The page report.html, with pictures first, then numbers, then how they came about.

It is one file, which can be sent to anyone: pictures are inside.
"""

import base64
import collections
import json
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pdistill.report import figures, mosaics, runs
from pdistill.report.columns import column_name, describe, headline
from pdistill.report.table import TEXT, pivot, three_digits
from pdistill.runtime.files import check_folder, write_atomically

Picture = Callable[[str, str, Figure], str]  # (name, alternative text, figure) -> its tag

# Plots are drawn on white: in the dark, black and white change places, and hues stay.
STYLE = """
  :root { color-scheme: light dark; --text: #222; --soft: #666; --line: #ddd; --page: #fff;
          --panel: #f6f6f6; }
  @media (prefers-color-scheme: dark) {
    :root { --text: #ddd; --soft: #a0a0a0; --line: #3a3a3a; --page: #121212; --panel: #1e1e1e; }
    .plots img { filter: invert(0.93) hue-rotate(180deg); }
  }
  body { max-width: 1160px; margin: 2rem auto; padding: 0 1rem; color: var(--text);
         background: var(--page); font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif;
         overflow-wrap: break-word; }
  h1 { margin: 0; font-size: 1.9rem; }
  h2 { margin: 2.5rem 0 0.5rem; font-size: 1.25rem; }
  p { margin: 0.25rem 0 0.75rem; color: var(--soft); }
  .headline { color: var(--text); font-size: 1.1rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; }
  th { border-bottom: 2px solid var(--line); vertical-align: bottom; font-weight: 600; }
  td { border-bottom: 1px solid var(--line); }
  th:first-child, td:first-child { position: sticky; left: 0; padding-left: 0;
                                   background: var(--page); }
  .text { text-align: left; }
  dl { margin: 1rem 0; font-size: 14px; }
  dt { font-weight: 600; }
  dd { margin: 0 0 0.25rem 1rem; color: var(--soft); }
  @media (min-width: 700px) {
    dl { display: grid; grid-template-columns: max-content 1fr; column-gap: 1rem; }
    dd { margin: 0; }
  }
  .plots { display: flex; flex-wrap: wrap; align-items: start; gap: 1rem; margin-top: 1rem; }
  .plots img { max-width: 100%; height: auto; }
  pre { padding: 1rem; overflow-x: auto; background: var(--panel); font-size: 13px; }
  summary { margin-top: 2.5rem; cursor: pointer; }
"""


def build(workdir: str | Path) -> Path:
    """Writes report.html, and its figures/*.png, into a run directory, from what it holds so far.

    Returns:
      The path of report.html. The same run directory gives the same bytes.

    Raises:
      FileNotFoundError: there is no results.jsonl. OSError: a file is damaged, or cannot be read or
        written.
    """
    run = runs.read(workdir)
    directory = Path(workdir) / "figures"
    check_folder(directory)

    def picture(name: str, alt: str, figure: Figure) -> str:
        path = directory / (re.sub(r"\W+", "_", name).strip("_") + ".png")
        figures.save(figure, path)
        data = base64.b64encode(path.read_bytes()).decode()
        width = round(figure.get_figwidth() * figures.DPI / 2)
        return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}">'

    sections = [
        *_samples(run, picture),
        *_guidance(run, picture),
        *_results(run, picture),
        *_nearest_and_spectra(run, picture),
        *_training(run, picture),
    ]
    path = Path(workdir) / "report.html"
    page = _page(run, "\n".join(sections))
    # Characters beyond ASCII as &#...;, so that no locale or browser can mistake them.
    write_atomically(path, page.encode("ascii", "xmlcharrefreplace").decode())
    return path


MARGIN = (
    "<p>\N{PLUS-MINUS SIGN}: half the width of an interval that has the mean over other samples of "
    "the same model 95 times in 100. Numbers further apart than 1.4 such margins differ by more "
    "than chance.</p>"
)

# Each of the following writes a section of the page, or nothing where there is nothing to show.


def _samples(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The section of samples."""
    if not run.samples:
        return []
    return [
        "<h2>Samples</h2>",
        f"<p>Every cell starts from the same noise. {_images_seen(run.rows)}</p>",
        _wide(picture("samples", "Samples", mosaics.samples(run.samples))),
    ]


def _guidance(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The section of samples and metrics at several guidance weights."""
    sections = []
    if run.guided:
        mosaic = picture("guided", "Samples at guidance weights", mosaics.guided(run.guided))
        sections += ["<h2>Guidance</h2>", _wide(mosaic)]
    weights = {row["guidance"] for row in run.rows if "guidance" in row}
    if len(weights) > 1:
        metrics = dict.fromkeys(row["metric"] for row in run.rows if "guidance" in row)
        sections += _plots(
            picture(
                f"guidance_{metric}",
                f"{metric} against the guidance weight",
                figures.against_guidance(run.rows, metric),
            )
            for metric in metrics
        )
    return sections


def _results(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The section of results: the table, its columns, and a plot a metric and reference."""
    if not run.rows:
        return []
    header, body = pivot(run.rows)
    drawable = dict.fromkeys(
        (row["metric"], row["reference"]) for row in run.rows if figures.drawable(row)
    )
    return [
        "<h2>Results</h2>",
        _table(header, body),
        *([MARGIN] if any("margin" in row for row in run.rows) else []),
        *_biases(run.rows),
        _meanings(header),
        *_plots(
            picture(
                f"metric_{metric}_{reference or ''}",
                f"{metric} against {reference}" if reference else metric,
                figures.metric(run.rows, metric, reference),
            )
            for metric, reference in drawable
        ),
    ]


def _biases(rows: list[dict[str, Any]]) -> list[str]:
    """Says what perfect samples would measure, of so few that it is not 0."""
    told = {
        f"{row['metric']} of {row['num_samples']:,} against {row['reference']} "
        f"{three_digits(row['bias'])}": None
        for row in rows
        if "bias" in row
    }
    if not told:
        return []
    return [
        "<p>Distances of few samples are too large by their bias: so many perfect ones would "
        f"measure about this: {escape(', '.join(told))}.</p>"
    ]


def _nearest_and_spectra(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The sections of nearest neighbours and spectra."""
    if not run.pictures:
        return []
    group_of = runs.grouping(run.rows)
    last = {group_of(name): name for name in run.pictures}
    nearest = {name: run.pictures[name]["neighbours"] for name in last.values()}
    spectra = {
        name: (arrays["spectrum"], arrays["data_spectrum"]) for name, arrays in run.pictures.items()
    }
    return [
        "<h2>Are they copies?</h2>",
        "<p>First row of a block: samples; below each, the nearest training images.</p>",
        _wide(picture("neighbours", "Nearest training images", mosaics.neighbours(nearest))),
        "<h2>Spectra</h2>",
        "<p>Power at each spatial frequency as a multiple of the data's, whose own is 1. At the "
        "right, below 1 is blur and above 1 is noise.</p>",
        *_plots([picture("spectra", "Radial power spectra", figures.spectra(spectra))]),
    ]


def _training(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The sections of the saves that were measured, the losses and the config."""
    sections = []
    if run.selections:
        data = {len(a["data_spectrum"]): a["data_spectrum"] for a in run.pictures.values()}
        sections += [
            "<h2>While training</h2>",
            "<p>The model with the smallest distance is kept; spectra from first to last.</p>",
            *_plots(
                picture(
                    f"selection_{name}",
                    f"{name}: distance and spectra at each save",
                    figures.selection(name, rows, data.get(len(rows[0]["spectrum"]))),
                )
                for name, rows in run.selections.items()
            ),
        ]
    if run.losses:
        sections += [
            "<h2>Training</h2>",
            *_plots(
                picture(
                    f"losses_{name}", f"{name}: loss against updates", figures.losses(name, losses)
                )
                for name, losses in run.losses.items()
            ),
        ]
    if run.config:
        text = escape(json.dumps(run.config, indent=2))
        sections.append(f"<details><summary>config.json</summary><pre>{text}</pre></details>")
    return sections


def _wide(content: str) -> str:
    """Something that keeps its size, and is moved sideways on a narrow screen."""
    return f'<div class="wide">{content}</div>'


def _plots(tags: Iterable[str]) -> list[str]:
    """Plots beside each other, as many as there is room for."""
    return ['<div class="plots">', *tags, "</div>"]


def _page(run: runs.RunDirectory, content: str) -> str:
    """The page around the sections."""
    title, told = escape(run.name), headline(run.rows)
    opening = f'<p class="headline">{escape(told)}</p>\n' if told else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{opening}<p>{escape(_origin(run))}</p>
{content}
</body>
</html>
"""


def _origin(run: runs.RunDirectory) -> str:
    """Says where the numbers are from: the config's seed and names, the commit, the devices."""
    config = run.config or {}
    parts = []
    for key, value in config.get("config", {}).items():
        names = [str(value)] if isinstance(value, int) else _names(value)
        if names:
            parts.append(f"{key} {', '.join(names)}")
    starts = [*config.get("earlier", []), config]
    commits = dict.fromkeys(start["commit"][:10] for start in starts if start.get("commit"))
    if commits:
        parts.append(f"commit {', '.join(commits)}")
    counted = {row["device"] for row in run.rows if "devices" in row}
    rows = [row for row in run.rows if "device" in row]  # those of earlier versions have no number
    rows = [row for row in rows if "devices" in row or row["device"] not in counted]
    devices = dict.fromkeys(map(_devices, rows))
    return " \N{MIDDLE DOT} ".join(parts + [f"measured on {device}" for device in devices])


def _devices(row: dict[str, Any]) -> str:
    """The devices of a row, with their number if there were several: "8 x TPU v5e"."""
    num = row.get("devices", 1)
    return row["device"] if num == 1 else f"{num} x {row['device']}"


def _names(value: Any) -> list[str]:
    """Finds names in nested plain data: [{"name": "teacher", ...}, ...] -> ["teacher", ...]."""
    if isinstance(value, dict):
        return [value["name"]] if "name" in value else _names(list(value.values()))
    if isinstance(value, list):
        return [name for item in value for name in _names(item)]
    return []


def _images_seen(rows: list[dict[str, Any]]) -> str:
    """Says on how many images each group's runs were trained."""
    stages = {row["stage"]: row["images_seen"] for row in rows if row.get("images_seen")}
    totals, group_of = collections.Counter(), runs.grouping(rows)
    for stage, images in stages.items():
        totals[group_of(stage)] += images
    parts = ", ".join(f"{escape(name)} {images:,}" for name, images in totals.items())
    return f"Images seen in training: {parts}." if parts else ""


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The table of `pivot` in HTML, with an arrow to the better values of a column."""
    arrows = {"lower": " \N{DOWNWARDS ARROW}", "higher": " \N{UPWARDS ARROW}", "": ""}

    def title(cell: str) -> str:
        name = column_name(cell)
        return name + arrows[describe(name).better] + cell.removeprefix(name)

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            (f'<{tag} class="text">' if name in TEXT else f"<{tag}>")
            + escape(cell).replace("\n", "<br>")
            + f"</{tag}>"
            for name, cell in zip(header, cells, strict=True)
        )

    lines = [
        f"<tr>{line('th', [title(cell) for cell in header])}</tr>",
        *(f"<tr>{line('td', cells)}</tr>" for cells in body),
    ]
    return _wide("<table>\n" + "\n".join(lines) + "\n</table>")


def _meanings(header: Sequence[str]) -> str:
    """Lists what each column of the table means, and which way is better."""
    lines = ["<dl>"]
    for name in dict.fromkeys(map(column_name, header)):
        column = describe(name)
        if column.meaning:
            better = f" \N{EM DASH} {column.better} is better" if column.better else ""
            term = escape(name.replace("\n", " "))
            lines.append(f"<dt>{term}</dt><dd>{escape(column.meaning + better)}</dd>")
    return "\n".join([*lines, "</dl>"])

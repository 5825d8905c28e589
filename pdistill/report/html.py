"""The page report.html, with pictures first, then numbers, then how they came about."""

import collections
import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pdistill.report import figures, runs
from pdistill.report.table import TEXT, pivot
from pdistill.runtime.files import write_atomically

Picture = Callable[[str, str, Figure], str]  # (file name, alternative text, figure) -> its tag

STYLE = """
  body { max-width: 1160px; margin: 2.5rem auto; padding: 0 1.5rem; color: #222;
         background: #fff; font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; }
  h1 { margin: 0; font-size: 1.9rem; }
  h2 { margin: 2.5rem 0 0.5rem; font-size: 1.25rem; }
  p { margin: 0.25rem 0 0.75rem; color: #666; }
  img { max-width: 100%; height: auto; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.25rem 0.9rem; text-align: right; white-space: nowrap; }
  th { border-bottom: 2px solid #ccc; vertical-align: bottom; font-weight: 600; }
  td { border-bottom: 1px solid #eee; }
  .text { text-align: left; }
  .pairs { display: flex; flex-wrap: wrap; align-items: start; margin-top: 1.5rem; row-gap: 1rem; }
  .pairs img { max-width: 50%; }
  pre { padding: 1rem; overflow-x: auto; background: #f6f6f6; font-size: 13px; }
  summary { margin-top: 2.5rem; cursor: pointer; }
"""


def build(workdir: str | Path) -> Path:
    """Writes figures/*.png and report.html into a run directory, from what it holds so far.

    Returns:
      The path of report.html. The same run directory gives the same bytes.

    Raises:
      FileNotFoundError: there is no results.jsonl.
    """
    run = runs.read(workdir)
    directory = Path(workdir) / "figures"
    directory.mkdir(exist_ok=True)

    def picture(name: str, alt: str, figure: Figure) -> str:
        figures.save(figure, directory / name)
        width = round(figure.get_figwidth() * figures.DPI / 2)
        return f'<img src="figures/{name}" alt="{escape(alt)}" width="{width}">'

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


# Each of the following writes a section of the page, or nothing where there is nothing to show.


def _samples(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The section of samples."""
    if not run.samples:
        return []
    return [
        "<h2>Samples</h2>",
        f"<p>Every cell starts from the same noise. {_images_seen(run.rows)}</p>",
        picture("samples.png", "Samples", figures.samples(run.samples)),
    ]


def _guidance(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The section of samples and metrics at several guidance weights."""
    sections = []
    if run.guided:
        sections += [
            "<h2>Guidance</h2>",
            picture("guided.png", "Samples at guidance weights", figures.guided(run.guided)),
        ]
    weights = {row["guidance"] for row in run.rows if "guidance" in row}
    if len(weights) > 1:
        metrics = list(dict.fromkeys(row["metric"] for row in run.rows if "guidance" in row))
        figure = figures.against_guidance(run.rows, metrics)
        sections.append(picture("guidance.png", "Metrics against the guidance weight", figure))
    return sections


def _results(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The section of results: the table, and a figure for each metric and reference."""
    if not run.rows:
        return []
    sections = ["<h2>Results</h2>", _table(run.rows), '<div class="pairs">']
    for metric, reference in dict.fromkeys(
        (row["metric"], row["reference"]) for row in run.rows if figures.drawable(row)
    ):
        title = f"{metric} against {reference}" if reference else metric
        name = re.sub(r"\W+", "_", f"metric_{metric}_{reference or ''}").rstrip("_") + ".png"
        figure = figures.metric(run.rows, metric, reference)
        sections.append(picture(name, title, figure))
    return [*sections, "</div>"]


def _nearest_and_spectra(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The sections of nearest neighbours and spectra."""
    if not run.pictures:
        return []
    group_of = runs.grouping(run.rows)
    last = {group_of(name): name for name in run.pictures}
    nearest = {name: run.pictures[name]["neighbours"] for name in last.values()}
    spectra = {name: arrays["spectrum"] for name, arrays in run.pictures.items()}
    data = next(iter(run.pictures.values()))["data_spectrum"]
    return [
        "<h2>Are they copies?</h2>",
        "<p>First row of a block: samples; below each, the nearest training images.</p>",
        picture("neighbours.png", "Nearest training images", figures.neighbours(nearest)),
        "<h2>Spectra</h2>",
        "<p>Radially averaged power: too little at the right is blur, too much is noise.</p>",
        picture("spectra.png", "Radial power spectra", figures.spectra(spectra, data)),
    ]


def _training(run: runs.RunDirectory, picture: Picture) -> list[str]:
    """The sections of the saves that were measured, the losses and the config."""
    sections = []
    if run.selections:
        data = next((arrays["data_spectrum"] for arrays in run.pictures.values()), None)
        figure = figures.selections(run.selections, data)
        sections += [
            "<h2>While training</h2>",
            "<p>The model with the smallest distance is kept; spectra from first to last.</p>",
            picture("selection.png", "Distance and spectra at each save", figure),
        ]
    if run.losses:
        image = picture("losses.png", "Loss against updates", figures.losses(run.losses))
        sections += ["<h2>Training</h2>", image]
    if run.config:
        text = escape(json.dumps(run.config, indent=2))
        sections.append(f"<details><summary>config.json</summary><pre>{text}</pre></details>")
    return sections


def _page(run: runs.RunDirectory, content: str) -> str:
    """The page around the sections."""
    title = escape(run.name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(_summary(run))}</p>
{content}
</body>
</html>
"""


def _summary(run: runs.RunDirectory) -> str:
    """Summarises the config's seed and names, the commit and the devices in a line."""
    config = run.config or {}
    parts = []
    for key, value in config.get("config", {}).items():
        names = [str(value)] if isinstance(value, int) else _names(value)
        if names:
            parts.append(f"{key} {', '.join(names)}")
    if config.get("commit"):
        parts.append(f"commit {config['commit'][:10]}")
    devices = dict.fromkeys(row["device"] for row in run.rows)
    return " \N{MIDDLE DOT} ".join(parts + [f"measured on {device}" for device in devices])


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


def _table(rows: list[dict[str, Any]]) -> str:
    """The table of `pivot` in HTML."""
    header, body = pivot(rows)

    def line(tag: str, cells: list[str]) -> str:
        return "".join(
            (f'<{tag} class="text">' if name in TEXT else f"<{tag}>")
            + escape(cell).replace("\n", "<br>")
            + f"</{tag}>"
            for name, cell in zip(header, cells, strict=True)
        )

    lines = [f"<tr>{line('th', header)}</tr>", *(f"<tr>{line('td', cells)}</tr>" for cells in body)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"

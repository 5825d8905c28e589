"""Makes a table and a figure of several runs, each method at equal evaluations and its images seen.

    python -m benchmarks.across benchmarks/results/digits_{pd,gan,dmd,ctm} \
        --out=benchmarks/results/digits

A method that several runs have, with the same values, such as their teacher, is there once; with
other values, or none of the same evaluations, its run is named too. Rows to other images, of other
numbers of samples or other noise are refused. Images seen are those of the stage alone. Prints the
table in Markdown; writes it as table.md and the figure as quality.png.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from pdistill.experiment.rows import row_key
from pdistill.report import figures
from pdistill.report.table import varying
from pdistill.runtime.files import read_jsonl

METRIC = "fd_pixels"
NFES = (1, 2, 4, 8)  # columns
ALIKE = ("reference", "num_samples", "seed")  # of rows to compare
SETTINGS = ("solver", "variance", "guidance", "churn")  # named where a method has several


def merge(workdirs: list[Path]) -> list[dict[str, Any]]:
    """Merges rows of METRIC to training images; what several runs have otherwise gets their names.

    Raises:
      ValueError: rows cannot be compared.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for workdir in workdirs:
        rows = [
            row
            for row in read_jsonl(workdir / "results.jsonl")
            if row["metric"] == METRIC and ":train" in row["reference"]
        ]
        for method in dict.fromkeys(map(_method, rows)):
            own = [row for row in rows if _method(row) == method]
            known = {key: row["value"] for key, row in found.items() if _method(row) == method}
            same = {row["value"] == known[row_key(row)] for row in own if row_key(row) in known}
            if known and same != {True}:
                own = [row | {"stage": f"{row['stage']} ({workdir.name})"} for row in own]
            for row in own:
                found.setdefault(row_key(row), row)
    merged = list(found.values())
    for name in varying(merged, ALIKE):
        values = ", ".join(str(value) for value in {row.get(name): None for row in merged})
        raise ValueError(f"{name} must be the same in all runs; they have {values}")
    return merged


def _method(row: dict[str, Any]) -> str:
    """The stage without its round: "progressive/4 (digits_pd)" -> "progressive (digits_pd)"."""
    return re.sub(r"/\S+", "", row["stage"])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Makes lines of Markdown, one a method and way to sample, with a column for each of NFES."""
    values: dict[str, dict[int, float]] = {}
    images: dict[str, dict[str, int]] = {}
    for row in rows:
        name = _method(row)
        differ = varying([other for other in rows if _method(other) == name], SETTINGS)
        told = [f"{key} {row[key]}" for key in differ if row.get(key) is not None]
        if row.get("gamma"):
            told.append(f"gamma {row['gamma']:g}")
        name = ", ".join([name, *told])
        values.setdefault(name, {})[row["nfe"]] = row["value"]
        images.setdefault(name, {})[row["stage"]] = row["images_seen"]
    lines = [
        f"| {METRIC} at | images | {' | '.join(map(str, NFES))} | most |",
        "|---" * (len(NFES) + 3) + "|",
    ]
    for name, found in values.items():
        cells = [f"{found[nfe]:.3g}" if nfe in found else "" for nfe in NFES]
        most = max(found)
        last = "" if most in NFES else f"{found[most]:.3g} at {most}"
        seen = sum(images[name].values())  # images of all rounds
        lines.append(f"| {name} | {seen:,} | {' | '.join(cells)} | {last} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("workdirs", type=Path, nargs="+")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = arguments.parse_args()
    rows = merge(options.workdirs)
    lines = table(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    figures.save(figures.metric(rows, METRIC, rows[0]["reference"]), options.out / "quality.png")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()

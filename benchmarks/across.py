"""Makes a table and a figure of several runs, each method at equal evaluations and its images seen.

    python -m benchmarks.across benchmarks/results/digits_{pd,gan,dmd,ctm} \
        --out=benchmarks/results/digits

A stage that several runs have, with the same values, such as their teacher, is there once; with
other values its run is named too. Images seen are those of the stage alone. Prints the table in
Markdown; writes it as table.md and the figure as quality.png.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from pdistill.experiment.rows import row_key
from pdistill.report import figures
from pdistill.runtime.files import read_jsonl

METRIC = "fd_pixels"
NFES = (1, 2, 4, 8)  # columns


def merge(workdirs: list[Path]) -> list[dict[str, Any]]:
    """Merges rows of METRIC to training images; the same stage with another value gets a name."""
    found: dict[tuple, dict[str, Any]] = {}
    for workdir in workdirs:
        rows = [
            row
            for row in read_jsonl(workdir / "results.jsonl")
            if row["metric"] == METRIC and ":train" in row["reference"]
        ]
        other = {
            row["stage"] for row in rows if row["value"] != found.get(row_key(row), row)["value"]
        }
        for row in rows:
            if row["stage"] in other:
                row["stage"] = f"{row['stage']} ({workdir.name})"
            found.setdefault(row_key(row), row)
    return list(found.values())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Makes lines of Markdown, one a method or way to sample it, with a column for each of NFES."""
    values: dict[str, dict[int, float]] = {}
    images: dict[str, dict[str, int]] = {}
    for row in rows:
        name = re.sub(r"/\S+", "", row["stage"])  # "progressive/4 (digits_pd)": all its rounds
        if row.get("gamma"):
            name += f", gamma {row['gamma']:g}"
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

"""Puts a model of a run into the zoo: bfloat16 weights, its card and its rows.

    python -m benchmarks.zoo --model=runs/emoji/student/4 --out=zoo/emoji/4 --prompts=captions.txt

Models of one folder of the zoo share the codec and the scale of prompts beside them. `rows.json`
has the rows of the run's results.jsonl that are of this model, whose weights were float32.

A model that is there already is replaced only if its distances, the rows called fd_ at the steps of
its card, all fall by a tenth or more; there must be two kinds of them, and both models be measured
alike. `history.json` beside the models has a row for each that came.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.common import described
from pdistill import model as models
from pdistill.cli.export import main as export
from pdistill.model.card import find
from pdistill.runtime.files import read_jsonl, write_atomically

KEPT = 0.9  # largest share of a distance that is left of it, for a model that replaces another
ALIKE = ("num_steps", "solver", "guidance", "num_samples", "preprocessing")  # of rows to compare

Rows = list[dict[str, Any]]


def share(folder: Path, part: str) -> None:
    """Moves a part of a model's folder beside it, where it may be already; the card says so."""
    card = json.loads((folder / "config.json").read_text())
    if not card.get(part):
        return
    own, shared = folder / part, folder.parent / part
    if shared.exists():
        for file in own.iterdir():
            if _content(file) != _content(shared / file.name):
                raise SystemExit(f"{file} is not that of the models beside it")
        shutil.rmtree(own)
    else:
        own.rename(shared)
    card[part]["path"] = f"../{part}"
    (folder / "config.json").write_text(json.dumps(card, indent=2) + "\n")


def _content(file: Path) -> object:
    """What a file holds; of a card all but the stage that it was exported with."""
    if file.suffix != ".json":
        return file.read_bytes()
    return json.loads(file.read_text()) | {"stage": None}


def distances(rows: Rows, card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of fd_ metrics at a card's steps, by metric and reference."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["metric"].startswith("fd_") and row["num_steps"] == card["num_steps"]:
            found.setdefault(f"{row['metric']} to {row['reference']}", row)
    return found


def check_better(out: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Ends the program, with a line that says why, unless a model may replace the one in `out`."""
    alike = [
        name
        for name, row in before.items()
        if name in after and all(row.get(key) == after[name].get(key) for key in ALIKE)
    ]
    if len(alike) < len(before) or len({before[name]["metric"] for name in alike}) < 2:
        names = (", ".join(rows) or "no distance" for rows in (before, after))
        raise SystemExit(
            "error: {} is kept: two distances decide, and it has {}, where the new model has {}; "
            "measure both alike ({}) by two fd_ metrics".format(out, *names, ", ".join(ALIKE))
        )
    for name in alike:
        old, new = before[name]["value"], after[name]["value"]
        if not new <= KEPT * old:
            raise SystemExit(
                f"error: {out} is kept: {name} is {old:.4g} there and {new:.4g} of the new model, "
                f"and every distance must fall to {KEPT:.0%} or less; train it on"
            )


def record(out: Path, card: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    """Adds a model to the table of those that have come into the folders beside `out`."""
    path = out.parent / "history.json"
    table = json.loads(path.read_text()) if path.exists() else []
    row = {key: card[key] for key in ("checksum", "images_seen")}
    for name, found in after.items():
        row[name] = {"before": before[name]["value"] if before else None, "after": found["value"]}
    table.append({"model": out.name, **row})
    write_atomically(path, json.dumps(table, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = described("zoo", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="a stage's directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", help="file of prompts whose embeddings go along")
    options = parser.parse_args(arguments)
    out, card = options.out, models.read_card(find(options.model))
    run = options.model.parents[card["stage"].count("/")]
    rows = read_jsonl(run / "results.jsonl")
    rows = [row for row in rows if row.get("run", row.get("stage")) == card["stage"]]
    before, after = {}, distances(rows, card)
    if out.exists():
        before = distances(json.loads((out / "rows.json").read_text()), models.read_card(out))
        check_better(out, before, after)
    more = [f"--prompts={options.prompts}"] * bool(options.prompts)
    export([f"--model={options.model}", f"--out={out}", "--to=safetensors", "--dtype=bfloat16",
            *more])  # fmt: skip
    for part in ("codec", "text"):
        share(out, part)
    (out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    record(out, card, before, after)


if __name__ == "__main__":
    main()

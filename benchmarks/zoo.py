"""Puts a model of a run into the zoo: bfloat16 weights, its card and its rows.

    python -m benchmarks.zoo --model=runs/emoji/student/4 --out=zoo/emoji/4 --prompts=captions.txt

Models of one folder of the zoo share the codec and the scale of prompts beside them. `rows.json`
has the rows of the run's results.jsonl that are of this model, whose weights were float32.
"""

import argparse
import json
from pathlib import Path

from pdistill import model as models
from pdistill.cli.export import main as export


def share(folder: Path, part: str) -> None:
    """Moves a part of a model's folder beside it, where it may be already; the card says so."""
    card = json.loads((folder / "config.json").read_text())
    if not card.get(part):
        return
    shared = folder.parent / part
    if not shared.exists():
        (folder / part).rename(shared)
    for file in (folder / part).glob("*") if (folder / part).exists() else ():
        if _content(file) != _content(shared / file.name):
            raise SystemExit(f"{file} is not that of the models beside it")
        file.unlink()
    if (folder / part).exists():
        (folder / part).rmdir()
    card[part]["path"] = f"../{part}"
    (folder / "config.json").write_text(json.dumps(card, indent=2) + "\n")


def _content(file: Path) -> object:
    """What a file holds; of a card all but the stage that it was exported with."""
    if file.suffix != ".json":
        return file.read_bytes()
    return json.loads(file.read_text()) | {"stage": None}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="a stage's directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", help="file of prompts whose embeddings go along")
    options = parser.parse_args()
    more = [f"--prompts={options.prompts}"] * bool(options.prompts)
    export(
        [f"--model={options.model}", f"--out={options.out}", "--to=safetensors",
         "--dtype=bfloat16", *more]
    )  # fmt: skip
    for part in ("codec", "text"):
        share(options.out, part)
    stage = models.load(options.out).card["stage"]
    run = options.model.parents[stage.count("/")]
    lines = map(json.loads, (run / "results.jsonl").read_text().splitlines())
    rows = [row for row in lines if row.get("run", row.get("stage")) == stage]
    (options.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

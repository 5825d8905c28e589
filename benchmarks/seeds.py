"""Mean and worst of the same measurements in runs of several seeds.

    for seed in 0 1 2; do
      python -m pdistill.main --config=configs/digits_gan.py --workdir=runs/gan_$seed \
          --config.seed=$seed
    done
    python -m benchmarks.seeds runs/gan_0 runs/gan_1 runs/gan_2 \
        --out=benchmarks/results/digits_gan/seeds.json

The worst of a distance is the largest, of a share or a ratio the smallest.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from pdistill.evaluation import DISTANCES
from pdistill.experiment.rows import KEY, row_key
from pdistill.runtime.files import read_jsonl

SMALL_IS_GOOD = (*DISTANCES, "class_share_max")


def summarize(workdirs: list[Path]) -> list[dict]:
    """Summarises each measurement that all the runs have in a row."""
    found: dict[tuple, list[dict]] = {}
    for workdir in workdirs:
        for row in read_jsonl(workdir / "results.jsonl"):
            found.setdefault(row_key(row | {"seed": None}), []).append(row)
    return [summary(rows) for rows in found.values() if len(rows) == len(workdirs)]


def summary(rows: list[dict]) -> dict:
    """Summarises one measurement of several seeds."""
    about = {name: rows[0][name] for name in KEY if name != "seed" and name in rows[0]}
    values = [row["value"] for row in rows]
    worst = max if about["metric"].startswith(SMALL_IS_GOOD) else min
    return about | {"mean": mean(values), "worst": worst(values), "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = summarize(options.workdirs)
    for row in rows:
        numbers = f"mean {row['mean']:9.4g}  worst {row['worst']:9.4g}"
        print(f"{row['stage']:<14} nfe {row['nfe']:>3}  {row['metric']:<24} {numbers}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()

"""Kills a small run at random moments, again and again: does it end as an undisturbed one?

    python benchmarks/kill_runs.py --kills=30

Each run is started, killed after a random time, and started again until it ends by itself. Then
its parameters, bit for bit, and its rows but for timings must be those of a run left alone.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import pdistill
from pdistill.files import read_jsonl

ROOT = Path(__file__).parent.parent
STAGES = ("teacher", "progressive/2", "progressive/1")


def start(workdir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/tiny_experiment.py"), str(workdir)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def outcome(workdir: Path) -> tuple[list[dict], list[np.ndarray]]:
    """All a run's rows but for timings, and all its parameters."""
    rows = read_jsonl(workdir / "results.jsonl")
    rows = [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in rows]
    params = [pdistill.load(workdir / stage).params for stage in STAGES]
    return rows, [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp())
    start(folder / "warm").wait()  # fills the compilation cache, if there is one
    clock = time.monotonic()
    if start(folder / "undisturbed").wait():
        sys.exit("the undisturbed run failed")
    seconds = time.monotonic() - clock
    rows, leaves = outcome(folder / "undisturbed")

    kills, runs = 0, 0
    while kills < options.kills:
        workdir = folder / f"killed{runs}"
        while True:
            process = start(workdir)
            try:
                process.wait(rng.uniform(0, seconds) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                files = sorted(p.name for p in workdir.rglob("*") if p.is_dir())
                print(f"kill {kills:>3} of run {runs}; it has {len(files)} folders", flush=True)
                continue
            if process.returncode:
                sys.exit(f"run {runs} failed after {kills} kills: {workdir}")
            break
        found_rows, found = outcome(workdir)
        if found_rows != rows:
            sys.exit(f"the rows of {workdir} differ from those of the undisturbed run")
        if not all(np.array_equal(a, b) for a, b in zip(found, leaves, strict=True)):
            sys.exit(f"the parameters of {workdir} differ from those of the undisturbed run")
        runs += 1
    print(f"{kills} kills in {runs} runs: rows and parameters are those of an undisturbed run")


if __name__ == "__main__":
    main()

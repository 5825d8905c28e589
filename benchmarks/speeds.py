"""Images a second of the models of a run, each at the step counts it was measured at, in turns.

    python -m benchmarks.speeds runs/fashion_lowdiff

A run measures each of its `seconds_per_image` at one moment; here a busy one falls on all. Beside
each speed is its value of the run's first metric.
"""

import functools
from pathlib import Path

import jax

import pdistill
from benchmarks.common import medians, options_of, parser, take_turns, tell
from pdistill.runtime.files import read_jsonl
from pdistill.samplers import parse_steps


def main() -> None:
    arguments = parser("speeds", __doc__)
    arguments.add_argument("workdir", type=Path)
    arguments.add_argument("--num", type=int, default=250, help="images; default: %(default)s")
    arguments.add_argument("--rounds", type=int, default=5)
    options = options_of(arguments)
    rows = read_jsonl(options.workdir / "results.jsonl")
    about = {name: rows[0][name] for name in ("metric", "reference")}
    values = {
        (row["stage"], str(row["num_steps"])): row["value"]
        for row in rows
        if all(row[name] == value for name, value in about.items())
    }
    key, models = jax.random.key(0), {s: pdistill.load(options.workdir / s) for s, _ in values}
    calls = {
        f"{stage} {steps}": functools.partial(
            models[stage].sample, key, num=options.num, num_steps=parse_steps(steps)
        )
        for stage, steps in values
    }
    seconds = medians(take_turns(calls, options.rounds))
    found = {
        name: {"images_per_second": options.num / seconds[name], about["metric"]: value}
        for name, value in zip(calls, values.values(), strict=True)
    }
    for name, value in zip(calls, values.values(), strict=True):
        print(f"{name:<24} {options.num / seconds[name]:8.1f} images/s {value:8.3g}")
    tell({"models": found, "num": options.num, "rounds": options.rounds} | about, options.out)


if __name__ == "__main__":
    main()

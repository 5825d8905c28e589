"""How fast everything is on one accelerator, in ten minutes.

    pip install -e '.[bench]'
    python -m benchmarks.accelerator

All parts are compiled first, in parallel, and then measured by themselves, the most important ones
first: the peak, updates of methods (`benchmarks.train_step`), and samplers and distillation beside
diffusers and PyTorch (`benchmarks.sampler`, `benchmarks.distillation`). After each part its figures
are in --out and, as a table, in the .md beside it, so that whatever stops it loses nothing. A part
that fails, as without PyTorch, says why; one for which the time does not suffice is left out by
name. "beside" names parts that were still compiling while one was measured.

The data are random images in the shape of each config's. `--scale=cpu` is the same in small.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import train_step
from benchmarks.common import machine, options_of, parser, peak_flops
from pdistill.data import Dataset
from pdistill.runtime.files import one_line, write_atomically

COMPILING = 0.7  # share of the time after which nothing more begins to compile
WAIT = 5.0  # seconds between looks at what has compiled
IMAGES = {"cifar10": (50_000, 32, 32, 3), "digits": (1437, 8, 8, 1)}  # shapes of data sets
RATES = {"images_per_second": "images/s", "steps_per_second": "updates/s"}

Measure = Callable[[], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured, in the order of its importance, and how long.

    Attributes:
      parts: ("train", config, method), ("sampler", size, batch_size, num_steps) or
        ("distillation", size, batch_size).
      peaks: number formats whose peak is measured.
      rounds: turns of those that are compared. seconds: of updates, and what a part must have left.
    """

    parts: tuple[tuple[Any, ...], ...]
    peaks: tuple[str, ...]
    rounds: int
    seconds: float


SCALES = {
    "accelerator": Scale(
        (
            ("train", "cifar10_pd:gpu", "teacher"),
            ("sampler", "cifar10", 256, 8),
            ("sampler", "dit_b2", 64, 8),
            ("distillation", "dit_b2", 64),
            ("train", "cifar10_mean_flow:gpu", "flow_map"),
            ("train", "cifar10_gan:gpu", "gan"),
            ("train", "cifar10_pd:gpu", "progressive"),
            ("distillation", "cifar10", 128),
            ("sampler", "medium", 256, 8),
            ("distillation", "dit", 128),
        ),
        peaks=("float32", "bfloat16"),
        rounds=7,
        seconds=10.0,
    ),
    "cpu": Scale(
        (
            ("train", "digits_pd", "teacher"),
            ("sampler", "small", 16, 4),
            ("sampler", "dit", 16, 4),
            ("distillation", "dit", 16),
            ("train", "digits_flow_map", "flow_map"),
            ("train", "digits_gan", "gan"),
            ("train", "digits_pd", "progressive"),
            ("distillation", "small", 16),
        ),
        peaks=("float32",),
        rounds=3,
        seconds=3.0,
    ),
}


def random_data(name: str) -> Dataset:
    """Random images, and labels of ten classes, in the shape of a data set."""
    shape, generator = IMAGES[name], np.random.default_rng(0)
    labels = generator.integers(0, 10, shape[0], np.int32)
    return Dataset(name, generator.integers(0, 256, shape, np.uint8), labels, 10)


def prepare(part: tuple[Any, ...], scale: Scale, peaks: Mapping[str, float]) -> Measure:
    """Compiles a part; returns what measures it."""
    kind, *settings = part
    if kind == "train":
        config, method = settings
        experiment = train_step.read(config)
        data = random_data(experiment.data.name)
        measure = train_step.prepare(config, experiment, data, method)
        return lambda: measure(scale.seconds, peaks[train_step.dtype_of(experiment)])
    if kind == "sampler":
        from benchmarks.sampler import prepare as prepare_rivals  # needs PyTorch
    else:
        from benchmarks.distillation import prepare as prepare_rivals
    measure = prepare_rivals(*settings)
    return lambda: measure(scale.rounds)


class Results:
    """Figures of parts, in a file of JSON and a table beside it after each of them."""

    def __init__(self, out: Path, names: list[str]):
        self._out = out
        self._machine = machine()
        self.parts: dict[str, dict[str, Any]] = {
            name: {"left out": "it was stopped before"} for name in names
        }
        self._write()

    def add(self, name: str, figures: dict[str, Any]) -> None:
        """Keeps and prints the figures of a part."""
        self.parts[name] = figures
        self._write()
        for line in lines(name, figures):
            print(line, flush=True)

    def _write(self) -> None:
        table = ["| part | | speed | TFLOP/s | of the peak | |", "|---|---|---|---|---|---|"]
        table += [line for name in self.parts for line in lines(name, self.parts[name])]
        self._out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._out, json.dumps({"parts": self.parts, **self._machine}) + "\n")
        write_atomically(self._out.with_suffix(".md"), "\n".join(table) + "\n")


def lines(name: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """A part's lines of the table."""
    notes = [f"{key}: {figures[key]}" for key in ("left out", "error") if key in figures]
    notes += [f"{who}: {why}" for who, why in figures.get("failed", {}).items()]
    notes += [f"beside {name}" for name in figures.get("beside", ())]
    rows = []
    if "utilisation" in figures:
        speed, flops = figures["updates_per_second"], figures["gigaflops_per_second"]
        rows = [("", f"{speed:.4g} updates/s", flops, f"{figures['utilisation']:.1%}")]
    for key, unit in RATES.items():
        for who, speed in figures.get(key, {}).items():
            flops = figures["gigaflops_per_second"][who]
            rows.append((who, f"{speed:.4g} {unit}", flops, ""))
    rows += [(dtype, "", flops / 1e9, "") for dtype, flops in figures.get("peaks", {}).items()]
    for i, (who, speed, flops, share) in enumerate(rows or [("", "", None, "")]):
        rate = "" if flops is None else f"{flops / 1e3:.4g}"
        note = "" if i else "; ".join(notes)
        yield f"| {name} | {who} | {speed} | {rate} | {share} | {note} |"


def run(scale: Scale, results: Results, pool: ThreadPoolExecutor, minutes: float) -> None:
    """Compiles all parts in `pool`, and measures those that the time suffices for."""
    began, peaks = time.monotonic(), {}

    def left() -> float:
        return 60 * minutes - (time.monotonic() - began)

    def compiled(part: tuple[Any, ...]) -> tuple[Measure, float]:
        clock = time.monotonic()
        measure = prepare(part, scale, peaks)
        print(f"{name_of(part)} has compiled, {time.monotonic() - clock:.0f} s", flush=True)
        return measure, time.monotonic() - clock

    waiting = {name_of(part): pool.submit(compiled, part) for part in scale.parts}
    concurrent.futures.wait(waiting.values(), COMPILING * 60 * minutes)
    for name in [name for name, future in waiting.items() if future.cancel()]:
        results.add(name, {"left out": "there was no time to compile it"})
        del waiting[name]
    beside = [name for name, future in waiting.items() if not future.done()]
    peaks |= {dtype: peak_flops(dtype) for dtype in scale.peaks}
    results.add("peak", {"peaks": peaks, "beside": beside})
    while waiting and left() > scale.seconds:
        name = next((name for name, future in waiting.items() if future.done()), None)
        if name is None:
            concurrent.futures.wait(waiting.values(), min(WAIT, left()), "FIRST_COMPLETED")
            continue
        future = waiting.pop(name)
        beside = [name for name, other in waiting.items() if not other.done()]
        results.add(name, measured(future) | {"beside": beside})
    for name in waiting:
        results.add(name, {"left out": "there was no time for it"})


def name_of(part: tuple[Any, ...]) -> str:
    """Such as "sampler dit_b2"."""
    return " ".join(itertools.takewhile(lambda value: isinstance(value, str), part))


def measured(future: Future) -> dict[str, Any]:
    """The figures of a part that has compiled, or why there are none."""
    try:
        measure, seconds = future.result()
        return measure() | {"seconds_to_compile": seconds}
    except Exception as error:  # the other parts go on
        return {"error": one_line(error)}


def main() -> None:
    arguments = parser("accelerator", __doc__)
    arguments.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    arguments.add_argument("--scale", choices=SCALES, default="accelerator")
    options = options_of(arguments)
    scale = SCALES[options.scale]
    results = Results(options.out, ["peak", *map(name_of, scale.parts)])
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        run(scale, results, pool, options.minutes)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    print(f"\n{options.out}, {options.out.with_suffix('.md')}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
    os._exit(0)  # does not wait for what still compiles

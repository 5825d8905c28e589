"""Where a run's numbers go: the terminal, TensorBoard, and a line of JSON for the report."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from pdistill.runtime.files import read_jsonl, write_atomically
from pdistill.runtime.terminal import format_seconds, say


class MetricWriter:
    """TensorBoard events of a whole experiment, by the method names of clu's writers.

    Only the first process writes. Names have the form "teacher/loss".
    """

    def __init__(self, directory: str | Path):
        self._events = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(directory), flush_secs=20)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        if self._events:
            self._events.close()

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        if self._events:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """uint8 [H, W, C] each."""
        if self._events:
            for name, image in images.items():
                self._events.add_image(name, image, step, dataformats="HWC")


class LogFile:
    """One JSON object a line in `path`, from the first process.

    Opening it drops a line cut short by a crash and, with `keep`, rows that it refuses.
    """

    def __init__(self, path: str | Path, keep: Callable[[dict], bool] = lambda row: True):
        self.rows = [row for row in read_jsonl(path) if keep(row)]
        self._path = Path(path)
        if jax.process_index() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def append(self, row: dict) -> None:
        self.rows.append(row)
        if jax.process_index() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class Progress:
    """Status lines on standard error: step, loss, steps/s and the time left."""

    def __init__(self, name: str, num_updates: int, start_step: int):
        self._name = name
        self._num_updates = num_updates
        self._start = self._last = (start_step, time.monotonic())

    def report(self, step: int, scalars: dict[str, float]) -> float:
        """Prints a line; returns steps/s since the one before."""
        now = time.monotonic()
        rate = (step - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = (step, now)
        overall = (step - self._start[0]) / max(now - self._start[1], 1e-9)
        left = format_seconds((self._num_updates - step) / max(overall, 1e-9))
        say(
            f"{self._name:<16} step {step:>{len(str(self._num_updates))}}/{self._num_updates}"
            f"  loss {scalars['loss']:.4g}  {rate:.3g} steps/s  ETA {left}"
        )
        return rate

"""Places for a run's numbers: the terminal, TensorBoard, and a line of JSON for the report."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from pdistill.runtime import compilations
from pdistill.runtime.files import read_jsonl, write_atomically
from pdistill.runtime.temporary import replacing
from pdistill.runtime.terminal import end_line, format_seconds, update

EVENTS = "events.out.tfevents."  # how TensorBoard's files begin


class Writer:
    """A place where metrics go, with the methods of clu's `metric_writers.MetricWriter`.

    clu's own class cannot be imported without TensorFlow, so this does not inherit from it. Names
    have the form "teacher/loss"; arrays are numpy's or JAX's. It is a context manager that closes.

    Raises:
      NotImplementedError: on data of a kind that this writer does not take.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def rewind(self, name: str, step: int) -> None:
        """Forgets metrics "<name>/..." of updates after `step`; they will be written again."""

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Refuses: tensors in a format of their own belong to plugins that we do not have."""
        raise self._refusal("summaries")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes a number for each name."""
        raise self._refusal("scalars")

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images: [H, W, C] or [N, H, W, C] for each name, uint8 or floats in [0, 1]."""
        raise self._refusal("images")

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Refuses: no method makes videos."""
        raise self._refusal("videos")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Refuses: no method makes sound."""
        raise self._refusal("audios")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes a text for each name."""
        raise self._refusal("texts")

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Writes how the values of each array are distributed."""
        raise self._refusal("histograms")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes hyperparameters, a flat mapping, once."""
        raise self._refusal("hparams")

    def flush(self) -> None:
        """Writes out whatever waits."""

    def close(self) -> None:
        """Flushes; nothing is written afterwards."""

    def _refusal(self, kind: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not write {kind}.")


def _tag(name: str) -> str:
    """Replaces what a tag may not have by _, about which tensorboardX tells in the terminal."""
    return re.sub(r"[^\w./-]", "_", name)


class MetricWriter(Writer):
    """TensorBoard events of a whole experiment, from the first process."""

    def __init__(self, directory: str | Path):
        self._events = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter

            self._earlier = sorted(Path(directory).glob(f"{EVENTS}*"))
            # Files of one second would have one name, and the later one would erase the earlier.
            suffix = f".{time.time_ns()}"
            self._events = SummaryWriter(str(directory), flush_secs=20, filename_suffix=suffix)

    def rewind(self, name: str, step: int) -> None:
        """Drops what earlier processes wrote of "<name>/..." for updates after `step`."""
        if not self._events:
            return

        def outdated(event) -> bool:
            tags = [value.tag for value in event.summary.value]
            return event.step > step and any(tag.startswith(f"{_tag(name)}/") for tag in tags)

        # Not by `purge_step`: TensorBoard would hide the later updates of all other runs as well.
        for path in self._earlier:
            drop_events(path, outdated)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        if self._events:
            for name, value in scalars.items():
                self._events.add_scalar(_tag(name), np.asarray(value), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        if self._events:
            for name, image in images.items():
                image = np.asarray(image)
                if image.ndim == 4:
                    self._events.add_images(_tag(name), image, step, dataformats="NHWC")
                else:
                    self._events.add_image(_tag(name), image, step, dataformats="HWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        if self._events:
            for name, text in texts.items():
                self._events.add_text(_tag(name), text, step)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        if self._events:
            for name, array in arrays.items():
                bins = (num_buckets or {}).get(name, "tensorflow")
                self._events.add_histogram(_tag(name), np.asarray(array), step, bins=bins)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        if self._events:
            from tensorboardX.summary import hparams as summaries

            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in hparams.items()
            }
            # `add_hparams` would make a directory, a run of its own, each time.
            for summary in summaries(plain, {}):
                self._events.file_writer.add_summary(summary)

    def flush(self) -> None:
        if self._events:
            self._events.flush()

    def close(self) -> None:
        if self._events:
            self._events.close()


def drop_events(path: Path, refused: Callable[[Any], bool]) -> None:
    """Rewrites a file of TensorBoard events without those refused and what a crash cut short."""
    from tensorboardX.proto.event_pb2 import Event

    data, kept, at = path.read_bytes(), [], 0
    while at < len(data):
        # TFRecord: the length, its checksum, the event, its checksum.
        length = int.from_bytes(data[at : at + 8], "little")
        end = at + 12 + length + 4
        if end > len(data):
            break
        if not refused(Event.FromString(data[at + 12 : end - 4])):
            kept.append(data[at:end])
        at = end
    rest = b"".join(kept)
    if rest != data:
        with replacing(path) as temporary:
            temporary.write_bytes(rest)


class LogFile:
    """One JSON object a line in `path`, from the first process.

    Opening it drops a line cut short by a crash and, with `keep`, rows that it refuses.
    """

    def __init__(self, path: str | Path, keep: Callable[[dict], bool] = lambda row: True):
        self.rows = [row for row in read_jsonl(path) if keep(row)]
        self._path = Path(path)
        self._write()

    def _write(self) -> None:
        if jax.process_index() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def drop(self, of: Callable[[dict], bool]) -> None:
        """Leaves out the rows of which `of` is true."""
        self.rows = [row for row in self.rows if not of(row)]
        self._write()

    def append(self, row: dict) -> None:
        self.rows.append(row)
        if jax.process_index() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class Progress:
    """A status on standard error: step, loss, steps/s and the time left.

    On a terminal it is one line that updates in place, which leaving the context ends.
    """

    def __init__(self, name: str, num_updates: int, start_step: int):
        self._name = name
        self._num_updates = num_updates
        self._step = start_step
        self._left_out = (0, 0.0)  # updates and seconds so far
        self._first = self._last = self._counted(start_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        end_line()

    @contextlib.contextmanager
    def compiling(self, num_updates: int) -> Iterator[None]:
        """Tells how the body compiles, and leaves its updates and time out of every rate."""
        before = time.monotonic()
        with compilations.compiling(self._name):
            yield
        updates, seconds = self._left_out
        self._left_out = (updates + num_updates, seconds + time.monotonic() - before)

    def report(self, step: int, scalars: Mapping[str, float]) -> float | None:
        """Shows the status; returns steps/s since the one before, None if all were left out."""
        counted = self._counted(step)
        rate, overall = _rate(self._last, counted), _rate(self._first, counted)
        self._last = counted
        parts = [f"{self._name:<16} step {step:>{len(str(self._num_updates))}}/{self._num_updates}"]
        if "loss" in scalars:
            parts.append(f"loss {scalars['loss']:.4g}")
        if rate is not None:
            parts.append(f"{rate:.3g} steps/s")
        if overall is not None:
            parts.append(f"ETA {format_seconds((self._num_updates - step) / overall)}")
        update("  ".join(parts))
        return rate

    def _counted(self, step: int) -> tuple[int, float]:
        """Updates done and seconds gone, but for what is left out."""
        updates, seconds = self._left_out
        return step - updates, time.monotonic() - seconds


def _rate(before: tuple[int, float], after: tuple[int, float]) -> float | None:
    """Updates a second between two points."""
    updates, seconds = after[0] - before[0], after[1] - before[1]
    return updates / max(seconds, 1e-9) if updates else None

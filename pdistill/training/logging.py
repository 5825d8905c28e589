"""Places for a run's numbers: the terminal, TensorBoard, and a line of JSON for the report."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from pdistill.runtime import compilations
from pdistill.runtime.files import read_jsonl, write_atomically
from pdistill.runtime.temporary import replacing
from pdistill.runtime.terminal import end_line, format_seconds, update

EVENTS = "events.out.tfevents."  # how TensorBoard's files begin
FLUSHED_EVERY = 20  # seconds; a flush waits for the disk


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
    """TensorBoard events of a whole experiment, from the first process.

    Raises:
      OSError: from any method, they cannot be written.
    """

    def __init__(self, directory: str | Path):
        self._events = None
        if jax.process_index() == 0:
            # Not `SummaryWriter`, whose thread dies of such an error and leaves callers waiting.
            from tensorboardX.event_file_writer import EventsWriter

            directory = Path(directory)
            directory.mkdir(parents=True, exist_ok=True)
            self._earlier = sorted(directory.glob(f"{EVENTS}*"))
            # Files of one second would have one name, and the later one would erase the earlier.
            self._events = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
            self._flushed = time.monotonic()

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
            from tensorboardX.summary import scalar

            self._write(step, (scalar(_tag(n), np.asarray(value)) for n, value in scalars.items()))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        if self._events:
            from tensorboardX.summary import image

            arrays = {name: np.asarray(array) for name, array in images.items()}
            self._write(step, (
                image(_tag(name), array, dataformats="NHWC" if array.ndim == 4 else "HWC")
                for name, array in arrays.items()
            ))  # fmt: skip

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        if self._events:
            from tensorboardX.summary import text

            self._write(step, (text(_tag(name), words) for name, words in texts.items()))

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        if self._events:
            from tensorboardX.summary import histogram

            buckets = num_buckets or {}
            self._write(step, (
                histogram(_tag(name), np.asarray(array), buckets.get(name, 64))
                for name, array in arrays.items()
            ))  # fmt: skip

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        if self._events:
            from tensorboardX.summary import hparams as summaries

            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in hparams.items()
            }
            self._write(0, summaries(plain, {}))

    def _write(self, step: int, summaries: Iterable[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        for summary in summaries:
            event = Event(summary=summary, step=int(step), wall_time=time.time())
            self._events.write_event(event)
        if time.monotonic() >= self._flushed + FLUSHED_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._events:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._events:
            self._events.close()


def drop_events(path: Path, refused: Callable[[Any], bool]) -> None:
    """Rewrites a file of TensorBoard events without those refused, cut short or damaged."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    data, kept, at = path.read_bytes(), [], 0
    while at < len(data):
        # TFRecord: the length, its checksum, the event, its checksum.
        length = int.from_bytes(data[at : at + 8], "little")
        end = at + 12 + length + 4
        if end > len(data):
            break
        with contextlib.suppress(DecodeError):
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

    Args:
      kinds: types of the values that every row has, by their keys.

    Raises:
      OSError: a row has no such value, or the file cannot be read or written.
    """

    def __init__(
        self,
        path: str | Path,
        keep: Callable[[dict], bool] = lambda row: True,
        kinds: Mapping[str, Any] | None = None,
    ):
        self.rows = [row for row in read_jsonl(path, kinds) if keep(row)]
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

"""Bars: lines that say how much of something is done, how fast, and how long it still takes."""

import shutil
import sys
import threading
import time
from typing import Self

from pdistill.runtime import terminal

PATIENCE = 3.0  # seconds without a line
ON_TERMINAL, IN_LOG = 1.0, 10.0  # seconds between lines; a log keeps every one


class Bar:
    """A line about what a context does, for a body of some seconds, from the first process.

    On a terminal it is a line as of `update`, moves every second, leaves the lines of others alone
    while they stand, and is gone at the end. A log has a line now and then if something was done.

    Args:
      description: text before the bar; None shows nothing.
      num: number of images to do; None if nothing is counted, where the line has the time alone.
    """

    def __init__(self, description: str | None, num: int | None = None):
        self._description, self._num = description or "", num
        self._began = time.monotonic()
        self._done = 0
        self._first: tuple[int, float] | None = None  # done, and when: it took a compilation too
        self._rate: float | None = None  # images a second since then
        self._line: str | None = None  # that it has shown, or that it takes the place of
        self._stopped = threading.Event()
        self._thread = None
        if description is not None and terminal.is_first():
            self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._line = terminal.open_line()
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join()
            if terminal.open_line() == self._line:
                terminal.clear_line()

    def update(self, num: int) -> None:
        """Counts `num` more images as done."""
        now = time.monotonic()
        self._done += num
        if self._first is None:
            self._first = self._done, now
        else:
            done, when = self._first
            self._rate = (self._done - done) / max(now - when, 1e-9)

    def _run(self) -> None:
        told = None if self._num is None else 0
        wait = PATIENCE
        while not self._stopped.wait(wait):
            in_place = sys.stderr.isatty()
            wait = ON_TERMINAL if in_place else IN_LOG
            of_others = terminal.open_line() not in (None, self._line)
            if not of_others and (in_place or self._done != told):
                told, self._line = self._done, self._text(in_place)
                terminal.update(self._line)

    def _text(self, in_place: bool) -> str:
        from tqdm import tqdm

        seconds = time.monotonic() - self._began
        if self._num is None:
            return f"{self._description}, {terminal.format_seconds(seconds)}"
        return tqdm.format_meter(
            self._done, self._num, seconds, prefix=self._description, unit=" images",
            rate=self._rate, ascii="utf" not in (sys.stderr.encoding or "").lower(),
            ncols=shutil.get_terminal_size().columns - 1 if in_place else None,
        )  # fmt: skip

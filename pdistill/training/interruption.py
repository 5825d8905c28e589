"""Signals that ask a run to stop: it stops where nothing is lost, and says how to go on."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: the same command again goes on


class Interrupted(BaseException):  # like KeyboardInterrupt, not for `except Exception`
    """The run was asked to stop and has stopped; the same command goes on."""


class StopSignals:
    """SIGTERM and Ctrl-C as `Interrupted`. Use with `with`, in the main thread.

    It is raised at once, but inside `deferred()` only by the second signal: there the code asks
    `requested`, saves, and stops by itself.
    """

    def __init__(self) -> None:
        self.requested: str | None = None  # the signal's name
        self._deferred = False

    def __enter__(self) -> "StopSignals":
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:  # too late for the code inside to ask
            raise Interrupted(f"stopped by {self.requested}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signal.Signals(number).name
        if again or not self._deferred:
            raise Interrupted(f"stopped by {self.requested}")

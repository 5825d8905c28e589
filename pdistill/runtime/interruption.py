"""Signals that ask a program to stop: it stops where nothing is lost, and says how to go on."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, Self

from pdistill.runtime import temporary
from pdistill.runtime.terminal import line_is_open

EXIT_CODE = 75  # EX_TEMPFAIL: the same command again goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):  # like KeyboardInterrupt, not for `except Exception`
    """The run was asked to stop and has stopped; the same command goes on."""


class StopSignals:
    """SIGTERM, Ctrl-C and a terminal's end as `Interrupted`. Use with `with`, in the main thread.

    It is raised at once, but inside `deferred()` only by the second signal: there the code asks
    `requested`, saves, and stops by itself. SIGHUP is left alone where it is ignored, as by nohup.
    """

    def __init__(self) -> None:
        self.requested: str | None = None  # the signal's name
        self._deferred = False
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        if self._before[signal.SIGHUP] == signal.SIG_IGN:
            del self._before[signal.SIGHUP]
        self.install()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Sets the handlers, again after another library has set its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def deferred(self) -> contextlib.AbstractContextManager:
        """A context in which there is something to save."""
        return self._switched(True)

    def at_once(self) -> contextlib.AbstractContextManager:
        """A context, inside `deferred()`, in which there is nothing to save yet."""
        return self._switched(False)

    @contextlib.contextmanager
    def _switched(self, deferred: bool) -> Iterator[None]:
        before = self._deferred
        try:
            self._switch(deferred)
            yield
        finally:
            with self._lock:
                self._deferred = before
        self._switch(before)  # a signal may be too late for the code inside to ask

    def _switch(self, deferred: bool) -> None:
        with self._lock:
            self._deferred = deferred
            if self.requested and not deferred:
                raise Interrupted(f"stopped by {self.requested}")

    def _ask(self, number: int) -> bool:
        """Notes a signal; tells whether to stop at once."""
        with self._lock:
            again = self.requested is not None and number != signal.SIGHUP  # a shell sends two
            self.requested = signal.Signals(number).name
            at_once = again or not self._deferred
        if not at_once:
            _write_line(f"{self.requested}: saves, then stops; once more stops at once")
        return at_once

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ask(number):
            raise Interrupted(f"stopped by {self.requested}")


class ProgramSignals(StopSignals):
    """The signals of a program, which they end whatever it is doing, with EXIT_CODE and one line.

    A thread of their own does, as the main thread may be in a compilation for minutes, and an
    exception in the middle of an import becomes any other.

    Args:
      hint: end of the line, such as "; the same command goes on".
    """

    def __init__(self, hint: str = "") -> None:
        super().__init__()
        self._hint = hint

    def __enter__(self) -> Self:
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return super().__enter__()

    def __exit__(self, *_) -> None:
        super().__exit__()
        signal.set_wakeup_fd(-1)
        self._writer.close()

    def end(self, message: str) -> NoReturn:
        """Ends the program with this line; "" for none.

        Python's own ending would crash in threads that still compute.
        """
        if message:
            _write_line(f"{message}{self._hint}")
        temporary.discard()
        os._exit(EXIT_CODE)

    def _watch(self, reader: socket.socket) -> None:
        with reader:
            while number := reader.recv(1):
                if number[0] in SIGNALS and self._ask(number[0]):
                    self.end(f"stopped by {self.requested}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Leaves it to the thread, which the signal has woken."""


def _write_line(message: str) -> None:
    """Writes a line to standard error by the system's call alone, from whatever is interrupted."""
    before = "\n" if line_is_open() else ""
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"{before}{message}\n".encode())

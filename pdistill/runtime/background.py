"""Work in the background of a program, which may end before it."""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from pdistill.runtime import temporary
from pdistill.runtime.terminal import end_line, write

_threads: list[threading.Thread] = []


def start(work: Callable, *args) -> threading.Thread:
    """Starts `work(*args)` in a thread.

    Python waits for it at the end of a program, outside `left_at_end`: it would crash in a thread
    that it does not wait for, if that is in XLA's compiler.
    """
    thread = threading.Thread(target=work, args=args)
    _threads[:] = [*(t for t in _threads if t.is_alive()), thread]
    thread.start()
    return thread


@contextlib.contextmanager
def left_at_end() -> Iterator[None]:
    """A context for a whole program, with whose body it ends, whatever work there still is."""
    try:
        yield
    except BaseException as error:
        if any(t.is_alive() for t in _threads):
            _end(_tell(error))
        raise
    if any(t.is_alive() for t in _threads):
        _end(0)


def _tell(error: BaseException) -> int:
    """Writes what Python writes of an error that ends a program; returns its exit code."""
    end_line()
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
        return 1
    if isinstance(error.code, str):
        write(error.code)
        return 1
    return error.code or 0


def _end(code: int) -> None:
    temporary.discard()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

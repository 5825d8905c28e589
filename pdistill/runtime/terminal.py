"""Output for the person at the terminal."""

import contextlib
import errno
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

CLEAR_TO_END = "\x1b[K"

GONE = (errno.EPIPE, errno.EIO)  # of a pipe without a reader, and of a terminal that was closed

_line: str | None = None  # of `update`, the last thing on the terminal


def write(text: str, end: str = "\n", to: TextIO | None = None) -> None:
    """Prints text on standard error, or `to`; nothing more once whoever reads it has gone.

    A run's work is not lost with the terminal or the connection that it was started from.
    """
    stream = sys.stderr if to is None else to
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as error:
        if error.errno in GONE:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(message: str) -> None:
    """Prints a line on standard error, from the first process only."""
    if is_first():
        end_line()
        write(message)


def update(message: str) -> None:
    """Shows where something is: in place of the `update` before on a terminal, else as `say`."""
    global _line
    if not is_first():
        return
    if not sys.stderr.isatty():
        say(message)
        return
    # A line that is wrapped could not be written over.
    shown = message[: shutil.get_terminal_size().columns - 1]
    write(f"\r{shown}{CLEAR_TO_END}", end="")
    _line = message


def conclude(message: str) -> None:
    """Prints a line as `say`, in place of the `update` before."""
    global _line
    if _line is not None:
        _line, message = None, f"\r{message}{CLEAR_TO_END}"
    say(message)


def open_line() -> str | None:
    """Returns the line of `update` that stands on the terminal, to be written over, or None."""
    return _line


def line_is_open() -> bool:
    """Tells whether such a line, or a bar of another library, is last on standard error."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    return _line is not None or any(not bar.disable for bar in list(bars))


def end_line() -> None:
    """Leaves the line of `update` as it is; whatever is printed next begins below it."""
    _close_line("\n")


def clear_line() -> None:
    """Erases the line of `update`; whatever is printed next is in its place."""
    _close_line(f"\r{CLEAR_TO_END}")


def _close_line(end: str) -> None:
    global _line
    if _line is not None:
        write("", end)
    _line = None


def is_first() -> bool:
    """Tells whether this is the first process; JAX, which knows, is slow to import.

    It starts no devices, whose memory JAX takes at once, for a process that is the only one.
    """
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def plain_messages(tell: Callable[[str], None]) -> None:
    """Makes warnings a line each, told once, without the source line that raised them, by `tell`.

    Libraries log no more that which no user needs: TFDS that it does without OpenCV, Orbax every
    step of every save, and with asyncio below it an error's tracebacks before its message,
    matplotlib that it has looked for fonts, JAX that there is no TPU.
    """
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    told: set[str] = set()  # Python's own memory of them is lost with each change of its filters

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            tell(f"warning: {message}")

    warnings.showwarning = show


@contextlib.contextmanager
def plain_errors(*errors: type[Exception]) -> Iterator[None]:
    """Ends a command line's program with the message of such an error, without a traceback.

    Messages are made plain by `plain_messages`.
    """
    plain_messages(say)
    try:
        yield
    except errors as error:
        end_line()
        full = errno.ENOSPC in (getattr(e, "errno", None) for e in (error, error.__cause__))
        hint = "; make room and start the same command again" if full else ""
        sys.exit(f"error: {error}{hint}")


def format_count(count: int | str, word: str) -> str:
    """Formats a number of things: 1, "step" -> "1 step", 4 -> "4 steps"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Formats a duration: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""Output for the person at the terminal."""

import contextlib
import errno
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

CLEAR_TO_END = "\x1b[K"

_line_is_open = False  # the last thing on the terminal is a line of `update`


def say(message: str) -> None:
    """Prints a line on standard error, from the first process only."""
    if _is_first():
        end_line()
        print(message, file=sys.stderr, flush=True)


def update(message: str) -> None:
    """Shows where something is: in place of the `update` before on a terminal, else as `say`."""
    global _line_is_open
    if not _is_first():
        return
    if not sys.stderr.isatty():
        say(message)
        return
    # A line that is wrapped could not be written over.
    message = message[: shutil.get_terminal_size().columns - 1]
    print(f"\r{message}{CLEAR_TO_END}", end="", file=sys.stderr, flush=True)
    _line_is_open = True


def conclude(message: str) -> None:
    """Shows a line as `update`, and leaves it there."""
    update(message)
    end_line()


def line_is_open() -> bool:
    """Tells whether a line of `update`, or a bar, is the last thing on standard error."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    return _line_is_open or any(not bar.disable for bar in list(bars))


def end_line() -> None:
    """Leaves the line of `update` as it is; whatever is printed next begins below it."""
    global _line_is_open
    if _line_is_open:
        print(file=sys.stderr, flush=True)
    _line_is_open = False


def progress(description: str | None, num: int) -> "tqdm":
    """Makes a progress bar of `num` images, shown by the first process after some seconds.

    Without a description it is never shown.
    """
    from tqdm import tqdm

    end_line()
    silent = description is None or not _is_first()
    often = 0.1 if sys.stderr.isatty() else 10  # seconds: a log keeps every line
    return tqdm(
        desc=description, total=num, unit=" images", delay=3, mininterval=often, disable=silent
    )


def _is_first() -> bool:
    """Tells whether this is the first process; JAX, which knows, is slow to import."""
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def plain_errors(*errors: type[Exception]) -> Iterator[None]:
    """Ends a command line's program with the message of such an error, without a traceback.

    Warnings become a line each, without the source line that raised them. Orbax, which logs every
    step of every save, and asyncio below it would log an error's tracebacks before its message; JAX
    that there is no TPU.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        yield
    except errors as error:
        end_line()
        full = errno.ENOSPC in (getattr(e, "errno", None) for e in (error, error.__cause__))
        hint = "; make room and start the same command again" if full else ""
        sys.exit(f"error: {error}{hint}")


def format_seconds(seconds: float) -> str:
    """Formats a duration: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

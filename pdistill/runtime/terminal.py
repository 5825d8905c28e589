"""What the person at the terminal sees."""

import contextlib
import errno
import sys
import warnings
from collections.abc import Iterator

import jax
from tqdm import tqdm


def say(message: str) -> None:
    """A line on standard error, from the first process only."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def progress(description: str | None, num: int) -> tqdm:
    """A bar of `num` images, of the first process, once it has taken some seconds.

    None of no description.
    """
    silent = description is None or jax.process_index() > 0
    often = 0.1 if sys.stderr.isatty() else 10  # seconds: a log keeps every line
    return tqdm(
        desc=description, total=num, unit=" images", delay=3, mininterval=often, disable=silent
    )


@contextlib.contextmanager
def plain_errors(*kinds: type[Exception]) -> Iterator[None]:
    """For a command line: these errors end the program with their message, without a traceback.

    Warnings become a line each, without the source line that raised them.
    """
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        yield
    except kinds as error:
        full = errno.ENOSPC in (getattr(e, "errno", None) for e in (error, error.__cause__))
        hint = "; make room and start the same command again" if full else ""
        sys.exit(f"error: {error}{hint}")


def format_seconds(seconds: float) -> str:
    """75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

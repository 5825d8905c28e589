"""Locks on directories, which one program at a time holds and which end with it."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from pdistill.runtime.temporary import FORGOTTEN_AFTER
from pdistill.runtime.terminal import say


class InUse(RuntimeError):
    """Another program holds the lock; the message names it."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock on a directory, in its file .lock.

    Raises:
      InUse: another program has it. OSError: the file cannot be written.
    """
    with (directory / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another program"
            raise InUse(f"{directory} is in use by {holder}") from None
        except OSError as error:
            say(f"warning: {directory} cannot be locked ({error}); start no other run in it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Marks a directory as one that is being written, without a file in it, see `is_written`."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_written(directory: Path) -> bool:
    """Whether a program that still runs is `writing` a directory; if that is hidden, by its age."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:  # it has just finished
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return time.time() - os.fstat(descriptor).st_mtime < FORGOTTEN_AFTER
    finally:
        os.close(descriptor)

"""A lock on a directory, which one program at a time holds and which ends with it."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

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

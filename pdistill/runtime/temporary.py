"""Files and folders that appear whole or not at all, also where several programs write them."""

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

TEMPORARY = ".tmp-" + 12 * "[0-9a-f]"  # end of a temporary name; the digits are nobody else's
FORGOTTEN_AFTER = 24 * 3600  # seconds after which whoever wrote it has been killed

_unfinished: dict[Path, None] = {}  # in the order in which they were begun


@contextlib.contextmanager
def replacing(path: Path, token: str | None = None, mine: bool = True) -> Iterator[Path]:
    """Gives a path for a new file or folder, which takes the place of `path` if there is no error.

    Args:
      token: makes its name unique; needed where several processes write into one folder.
      mine: whether this process is the one of them that moves it.
    """
    temporary = temporary_path(path, token)
    if not mine:
        yield temporary
        return
    sweep(path.parent.glob(f"{glob.escape(path.name)}{TEMPORARY}"), FORGOTTEN_AFTER)
    with passing(temporary):
        yield temporary
        replace(temporary, path)


@contextlib.contextmanager
def passing(path: Path) -> Iterator[None]:
    """Deletes a file or a folder in the end, also if a signal ends the program."""
    _unfinished[path] = None
    try:
        yield
    finally:
        remove(path)
        _unfinished.pop(path, None)


def replace(source: Path, target: Path) -> None:
    """Renames a file or a folder, in the place of another one if there is one."""
    if not source.is_dir():
        os.replace(source, target)
        return
    old = temporary_path(target)
    if target.exists():
        target.rename(old)
    source.rename(target)
    remove(old)


def sweep(paths: Iterable[Path], age: float = 0) -> None:
    """Deletes those of the paths that were not changed for `age` seconds."""
    for path in paths:
        with contextlib.suppress(OSError):  # its program has just finished it
            if time.time() - path.stat().st_mtime >= age:
                remove(path)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there and can be deleted."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def discard() -> None:
    """Deletes everything that is being written, before this program ends in the middle of it."""
    for path in reversed(list(_unfinished)):
        remove(path)


def temporary_path(path: Path, token: str | None = None) -> Path:
    """Makes a name beside `path` that nobody else has; `token` is as in `replacing`."""
    name = path.name.replace("tfevents", "events")  # TensorBoard reads any name with "tfevents"
    return path.with_name(f"{name[:200]}.tmp-{token or secrets.token_hex(6)}")

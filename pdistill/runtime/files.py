"""Small files: rows of JSON, and writing that no reader sees half done."""

import contextlib
import json
import math
import mmap
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pdistill.runtime.temporary import replacing

LARGEST_JSON = 2**24  # bytes of a file that is read whole


def regular(path: str | Path) -> Path:
    """Returns the path of a regular file: pipes and devices are never opened, as they may not end.

    Raises:
      OSError: there is none, or it is something else.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not a regular file; copy what it leads to into one")
    return path


def map_file(path: str | Path) -> mmap.mmap:
    """Maps a file into memory, read only: its pages are read when they are looked at.

    Raises:
      OSError: there is no such file. ValueError: it is empty.
    """
    with open(regular(path), "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("it is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_json(path: str | Path) -> Any:
    """Reads a file of JSON.

    Raises:
      OSError: there is no such file. ValueError: it is damaged, too large or nested too deeply.
    """
    if regular(path).stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has more than {LARGEST_JSON:,} bytes")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def read_jsonl(path: str | Path, kinds: Mapping[str, Any] | None = None) -> list[dict]:
    """Reads the rows of a file of JSON lines; lines cut short by a crash are left out.

    Args:
      kinds: types of the values that every row has, by their keys.

    Raises:
      OSError: a row has no such value, or the file is no text.
    """
    path = Path(path)
    rows = []
    try:
        text = path.read_text("utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is no text: {one_line(error)}") from error
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    for row in rows:
        for key, kind in (kinds or {}).items():
            if not isinstance(row, dict) or not isinstance(row.get(key, ...), kind):
                raise OSError(f"{path} has a row without a sound {key}; take it out: {row!r:.100}")
    return rows


def write_jsonl(path: str | Path, rows: Sequence[dict], *, append: bool = False) -> None:
    """Writes rows as JSON lines, or appends them; makes the folder if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = path.read_bytes()[-1:] in (b"", b"\n") if append and path.exists() else True
    with path.open("a" if append else "w") as file:
        file.write("" if ends else "\n")
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def one_line(error: Exception) -> str:
    """Shortens another library's error to one line, for a message of ours."""
    return " ".join(str(error).split())[:500] or repr(error)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz, whose headers may not claim more than the file holds.

    Raises:
      OSError: there is no such file. Exception: any error, if it is damaged or something else.
    """
    with zipfile.ZipFile(regular(path)) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                old = npy.read_magic(file) == (1, 0)
                read = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
                shape, _, dtype = read(file)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f"{info.filename} has {info.file_size:,} bytes, not {shape}")
    with np.load(path) as archive:
        return dict(archive)


def check_writable(path: str | Path, suffix: str = "", *, in_place: bool = False) -> None:
    """Checks, before work whose result goes there, that a file can be written; makes its folder.

    Args:
      in_place: a file that is there will be changed, not replaced by one written beside it.

    Raises:
      ValueError: its name does not end as it must. OSError: it cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(suffix):
        raise ValueError(f"{path} must end with {suffix}; give another name")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give a file")
    if not (in_place and path.exists()):
        check_folder(path.parent)
    elif not os.access(path, os.W_OK):
        raise PermissionError(f"cannot write {path}: it may not be changed")


def check_folder(folder: Path) -> None:
    """Makes a folder if it is not there, and checks that files can be written into it.

    Raises:
      OSError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        exists = isinstance(error, FileExistsError)
        why = "it is no folder" if exists else error.strerror or error
        raise OSError(f"cannot write into {folder}: {why}") from error


def cache_dir() -> Path:
    """Returns the folder of what is kept between runs: PDISTILL_CACHE_DIR, or ~/.cache/pdistill."""
    return in_home(os.environ.get("PDISTILL_CACHE_DIR") or "~/.cache/pdistill")


def in_home(path: str) -> Path:
    """Returns a path whose ~ is the home; `scratch_dir` for a user without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return scratch_dir() / path.removeprefix("~/")


def scratch_dir() -> Path:
    """Returns a folder for what no other folder takes, which the system may empty."""
    return Path(tempfile.gettempdir(), f"pdistill-{os.getuid()}")


def can_write(folder: Path) -> bool:
    """Makes a folder if it is not there; tells whether files can be written into it."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK | os.X_OK)

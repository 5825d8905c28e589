"""Small files: rows of JSON, and writing that no reader sees half done."""

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pdistill.runtime.temporary import replacing


def read_jsonl(path: str | Path) -> list[dict]:
    """Reads the rows of a file of JSON lines; lines cut short by a crash are left out."""
    path = Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
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


def cache_dir() -> Path:
    """Returns the folder of downloads and statistics: PDISTILL_CACHE_DIR, or ~/.cache/pdistill."""
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

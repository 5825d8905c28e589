"""Small files: rows of JSON, and writing that no reader sees half done."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pdistill.runtime.temporary import replacing


def read_jsonl(path: str | Path) -> list[dict]:
    """Reads the rows of a file of JSON lines; a last line cut short by a crash is left out."""
    path = Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_jsonl(path: str | Path, rows: Sequence[dict], *, append: bool = False) -> None:
    """Writes rows as JSON lines, or appends them; makes the folder if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
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
    return Path(os.environ.get("PDISTILL_CACHE_DIR", "~/.cache/pdistill")).expanduser()

"""Small files: rows of JSON, and writing that is never seen half done."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a file of JSON lines; a last line cut short by a crash is left out."""
    path = Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_jsonl(path: str | Path, rows: Sequence[dict], *, append: bool = False) -> None:
    """Writes rows, or adds them; the folder is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def one_line(error: Exception) -> str:
    """What an error of some library says, short enough for a message of ours."""
    return " ".join(str(error).split())[:500] or repr(error)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


def cache_dir() -> Path:
    """Where downloads and statistics are kept: PDISTILL_CACHE_DIR, else ~/.cache/pdistill."""
    return Path(os.environ.get("PDISTILL_CACHE_DIR", "~/.cache/pdistill")).expanduser()

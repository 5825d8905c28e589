"""Small files: rows of JSON, and writing that is never seen half done."""

import json
import os
from pathlib import Path


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


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

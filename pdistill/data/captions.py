"""Captions of pictures: in files beside them, or in a table of the folder."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pdistill.data.folders import Folder
from pdistill.data.tfds_writer import PrepareError
from pdistill.runtime.terminal import say

SIDECARS = (".txt", ".caption")  # the first that is there is read
TABLES = ("metadata.jsonl", "metadata.csv")
FIELDS = ("text", "caption", "prompt")  # of a table; the first that has something is read
WRITE = "write x.txt beside each x.png, or metadata.jsonl into the folder"  # how to give some
ENCODING = "utf-8-sig"  # UTF-8, with or without a mark at its beginning


def read_captions(folder: Path, found: Folder, needed: bool = False) -> dict[Path, tuple[str, ...]]:
    """Reads the captions of a folder's pictures, by their paths; {} if there are none.

    A picture's captions are the text of the file beside it, or else those in a table of TABLES in
    `folder` or a split's, whose "file_name" is relative to the table.

    Raises:
      PrepareError: some pictures have no caption and others do, or a file of them is damaged; or
        there are none and some are `needed`.
    """
    tables = {}
    for top in dict.fromkeys((folder, *found.tops.values())):
        for name in TABLES:
            tables |= _table(top / name)
    captions, paths = {}, found.paths()
    for path in paths:
        if own := _beside(path) or tables.get(path):
            captions[path] = own
    if needed and not captions:
        raise PrepareError(f"{folder} has no captions for --text_encoder: {WRITE}")
    lacking = [path for path in paths if path not in captions]
    if lacking and (captions or tables):
        raise PrepareError(
            f"{len(lacking):,} of {len(paths):,} pictures have no caption, such as {lacking[0]}: "
            f"write one into {lacking[0].with_suffix(SIDECARS[0]).name} beside it or into "
            f"{TABLES[0]}, or give --captions=none to leave all captions out"
        )
    return captions


def captions_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions in a row of a table, one or a list of them; () if it has none.

    Raises:
      ValueError: they are neither text nor a list of texts.
    """
    value = next((fields[name] for name in FIELDS if fields.get(name)), ())
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"its caption is no text, nor a list of texts: {value!r:.50}")
    return tuple(words for value in values if (words := one_caption(value)))


def one_caption(text: str) -> str:
    """A text on one line, without blanks around it."""
    return " ".join(text.split())


def _beside(path: Path) -> tuple[str, ...]:
    for suffix in SIDECARS:
        sidecar = path.with_suffix(suffix)
        try:
            text = sidecar.read_text(ENCODING)
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise PrepareError(f"{sidecar} is not in UTF-8: {error}; save it so") from error
        return (text,) if (text := one_caption(text)) else ()
    return ()


def _table(path: Path) -> dict[Path, tuple[str, ...]]:
    """Captions by the paths of the pictures, those that have some; {} if there is no such file."""
    if not path.exists():
        return {}
    captions, number = {}, 0
    try:
        with path.open(encoding=ENCODING, newline="") as file:
            for row in _rows(path, file):
                number += 1
                if found := captions_of(row):
                    picture = path.parent / row["file_name"]
                    captions[picture] = (*captions.get(picture, ()), *found)  # one a row, in COCO's
    except KeyError as error:
        raise PrepareError(
            f'{path}, row {number}: there is no "file_name", which names the picture; add it'
        ) from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise PrepareError(f"{path}, in or after row {number}: {error}; mend the file") from error
    if not captions:
        say(f"{path} has no captions, which stand in {', '.join(FIELDS[:-1])} or {FIELDS[-1]}")
    return captions


def _rows(path: Path, file: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".csv":
        return _csv_rows(csv.DictReader(file))
    return (json.loads(line) for line in file if line.strip())


def _csv_rows(table: csv.DictReader) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a table; ValueError for other delimiters, or a row too long."""
    names = table.fieldnames or ()
    if "file_name" not in names:
        raise ValueError(
            f"its first line must name the fields, file_name among them, with commas between them; "
            f"it has {', '.join(map(repr, names))}. Mend it, or give --captions=none"
        )
    for name in names:
        if name not in FIELDS and (meant := name.strip().lower().rstrip("s")) in FIELDS:
            raise ValueError(f"its first line has {name!r}; write {meant}")
    for row in table:
        if None in row:  # where DictReader puts what is beyond the header
            raise ValueError(
                f"{row['file_name']} has more fields than the first line; put a text that has a "
                "comma into double quotes"
            )
        yield row

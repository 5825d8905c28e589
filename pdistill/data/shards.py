"""Arrays of rows in a folder, a file a shard, which are made once and go on where they stopped."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from pdistill.data.records import DataError
from pdistill.runtime.files import read_json
from pdistill.runtime.temporary import replacing

SHARD = 8192  # images in a shard


def check_same(about: Path, wanted: dict[str, Any], what: str, maker: str) -> None:
    """Raises DataError if a folder's description, a file of JSON, is there and is another one.

    Args:
      what: the rows, for the message. maker: the network that they were made by.
    """
    if about.exists() and (found := read_json(about)) != wanted:
        if lacking := [name for name in wanted if name not in found]:
            raise DataError(
                f"{about.parent} holds {what} that do not say their {', '.join(lacking)}, as an "
                "older version wrote them: delete it, and the same command makes it anew"
            )
        differ = [name for name, value in wanted.items() if found.get(name) != value]
        raise DataError(
            f"{about.parent} holds {what} with another {', '.join(differ)}: delete it, or give "
            f"{maker} and the data that it was made with"
        )


def check_whole(folder: Path, missing: Sequence[Any], num: int) -> None:
    """Raises DataError if some of a folder's `num` shards are missing."""
    if missing:
        raise DataError(
            f"{folder} is half prepared, {len(missing)} of {num} shards are missing: "
            "run the command that makes it again, which goes on where it stopped"
        )


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an array whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def map_arrays(folder: Path, paths: Sequence[Path]) -> list[np.ndarray]:
    """Maps a folder's files into memory; raises DataError for damaged ones."""
    try:
        return [np.load(path, mmap_mode="r") for path in paths]
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{folder} is damaged: {error}; delete it") from error


class Shards:
    """Arrays of rows on disk, one after another, of which the first channels are read.

    Attributes:
      shape: [N, ..., channels]. dtype: number format.
    """

    def __init__(self, arrays: list[np.ndarray], channels: int):
        self._arrays = arrays
        self._chosen: np.ndarray | None = None
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._ends[-1]), *arrays[0].shape[1:-1], channels)
        self.dtype = arrays[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray | tuple[Any, int]) -> np.ndarray:
        """Rows by a slice, numbers [...] or a mask [N], in memory: [..., *shape[1:]].

        With a number after them, as in [rows, 0], that part of each alone is read.
        """
        rows, *part = rows if isinstance(rows, tuple) else (rows,)
        numbers = np.arange(len(self))[rows]
        if self._chosen is not None:
            numbers = self._chosen[numbers]
        leading, numbers = numbers.shape, numbers.reshape(-1)
        shape = self.shape[1 + len(part) :]
        found = np.empty((len(numbers), *shape), self.dtype)
        shards = np.searchsorted(self._ends, numbers, side="right")
        for i in np.unique(shards):
            here = shards == i
            start = self._ends[i] - len(self._arrays[i])
            found[here] = self._arrays[i][..., : self.shape[-1]][numbers[here] - start, *part]
        return found.reshape(*leading, *shape)

    def choose(self, rows: np.ndarray) -> Self:
        """The rows of these numbers [n] alone, still on disk."""
        new = copy.copy(self)
        new._chosen = rows if self._chosen is None else self._chosen[rows]
        new.shape = (len(rows), *self.shape[1:])
        return new

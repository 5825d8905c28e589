"""Images that stay on disk: rows are read and decoded by threads when they are asked for."""

import contextlib
import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import numpy as np

from pdistill.data.images import at_size
from pdistill.runtime.bars import Bar
from pdistill.runtime.files import cache_dir, write_atomically

PART = 16  # rows that a thread decodes at a time
MANY = 256  # rows from which on it is quicker to read all of them before any is decoded
BLOCK = 1024  # rows in memory at a time where all are gone through


class DataError(ValueError):
    """Files of a data set are damaged or not what they should be; the message names them."""


class Source(Protocol):
    """Encoded examples in files, read in any order, by several threads.

    Attributes:
      name: the split's, such as "cifar10:train". labels: int32 [N], read when they are asked for.
      captioned: whether it has captions. labelled: whether it has labels; without, they are 0.
      files: all that it reads.
    """

    name: str
    labels: np.ndarray
    captioned: bool
    labelled: bool
    files: Sequence[Path]

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded examples of some rows; raises DataError for one that cannot be read."""
        ...

    def decode(self, row: int, encoded: bytes) -> tuple[np.ndarray, int]:
        """A row's image, [H, W, C], and label; raises DataError if it is damaged."""
        ...

    def pictures(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded pictures of some rows, without labels and captions."""
        ...

    def captions(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Captions of some rows of a source that has them; raises DataError if one has none."""
        ...


class Records:
    """Images of a source: `records[rows]` reads uint8 [..., H, W, C] of a slice or numbers [...].

    Attributes:
      shape: shape (N, H, W, C) of all images.

    Raises:
      DataError: also later, an image that is damaged, or not uint8 or not of the first one's size.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, source: Source):
        if not len(source):
            raise DataError(f"{source.name} has no images; give another split")
        self._source = source
        self._chosen: np.ndarray | None = None
        self._sizes: tuple[int, ...] = ()
        self._pool = ThreadPoolExecutor(thread_name_prefix="records")
        image, _ = source.decode(0, source.read([0])[0])
        self._stored = image.shape  # before it is resized
        self._check(0, image)
        self.shape = (len(source), *image.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        rows = _numbers(rows, len(self))
        return self.examples(rows.reshape(-1))[0].reshape(*rows.shape, *self.shape[1:])

    def __array__(self, *_, **__) -> NoReturn:
        raise TypeError(f"{self._source.name} is on disk: take rows of it, such as images[:100]")

    def examples(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads images, uint8 [n, H, W, C], and their labels, int32 [n], of some rows [n]."""
        rows = _numbers(rows, len(self))
        rows = (rows if self._chosen is None else self._chosen[rows]).tolist()
        images = np.empty((len(rows), *self._stored), np.uint8)
        labels = np.empty(len(rows), np.int32)
        encoded = self._source.read(rows) if len(rows) >= MANY else None

        def decode(part: slice) -> None:
            found = self._source.read(rows[part]) if encoded is None else encoded[part]
            for i, row, example in zip(range(part.start, part.stop), rows[part], found):  # noqa: B905
                image, labels[i] = self._source.decode(row, example)
                self._check(row, image)
                images[i] = image

        parts = [slice(start, start + PART) for start in range(0, len(rows), PART)]
        for _ in self._pool.map(decode, parts):
            pass
        for size in self._sizes:
            images = at_size(images, size)
        return images, labels

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads all images and labels into memory, with a progress bar."""
        images, labels = np.empty(self.shape, np.uint8), np.empty(len(self), np.int32)
        with Bar(self._source.name, len(self)) as bar:
            for start in range(0, len(self), BLOCK):
                block = slice(start, start + BLOCK)
                images[block], labels[block] = self.examples(block)
                bar.update(len(labels[block]))
        return images, labels

    def all_labels(self) -> np.ndarray:
        """Reads all labels, int32 [N], without the images; from memory the next time."""
        labels = self._source.labels
        return labels if self._chosen is None else labels[self._chosen]

    def captions(self, rows: slice | np.ndarray) -> list[tuple[str, ...]]:
        """Reads captions of some rows [n], without the images."""
        rows = _numbers(rows, len(self))
        return self._source.captions(
            (rows if self._chosen is None else self._chosen[rows]).tolist()
        )

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the encoded pictures in their order, at their own size; hexadecimal.

        All are read, since a sample may lack the one that was mended. The cache keeps the digest
        until a file changes, as reading takes long.
        """
        if self._chosen is not None:
            return self._digest()
        if known := self.known_digest():
            return known
        found, kept = self._digest(), self._kept_digest()
        with contextlib.suppress(OSError):  # it is made again the next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, found)
        return found

    def known_digest(self) -> str | None:
        """The digest of all images of the source, if the cache has it."""
        with contextlib.suppress(OSError, ValueError):
            return self._kept_digest().read_text()
        return None

    @property
    def files(self) -> str:
        """A digest of the names and sizes of the source's files and of its number of images."""
        about = [(file.name, file.stat().st_size) for file in self._source.files]
        return hashlib.sha256(json.dumps([len(self._source), *about]).encode()).hexdigest()

    def _kept_digest(self) -> Path:
        return cache_dir() / "digests" / state_of(self._source.files, self._source.name)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        rows = np.arange(len(self)) if self._chosen is None else self._chosen
        with Bar(f"digest of {self._source.name}", len(rows)) as bar:
            for start in range(0, len(rows), BLOCK):
                block = rows[start : start + BLOCK].tolist()
                for picture in self._source.pictures(block):
                    digest.update(len(picture).to_bytes(8, "little"))
                    digest.update(picture)
                bar.update(len(block))
        return digest.hexdigest()

    def choose(self, rows: np.ndarray) -> Self:
        """The images of these rows [n] alone."""
        new = copy.copy(self)
        vars(new).pop("digest", None)
        new._chosen = rows if self._chosen is None else self._chosen[rows]
        new.shape = (len(rows), *self.shape[1:])
        return new

    def at(self, size: int) -> Self:
        """The images at `size` pixels a side, as `at_size`; raises ValueError if they cannot be."""
        new = copy.copy(self)
        new._sizes = (*self._sizes, size)
        new.shape = (len(self), *at_size(np.zeros((1, *self.shape[1:]), np.uint8), size).shape[1:])
        return new

    def _check(self, row: int, image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape != self._stored:
            raise DataError(
                f"image {row} of {self._source.name} is {image.dtype} {image.shape} and the first "
                f"is {self._stored}; all must be uint8 and of one size, as "
                "`python -m pdistill.data.prepare --images=FOLDER --name=NAME --resolution=64` "
                "makes them"
            )


class Labels:
    """Labels of records, int32 [N], which NumPy reads when it is given them."""

    dtype = np.dtype(np.int32)

    def __init__(self, records: Records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._records.all_labels()[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._records.all_labels(), dtype=dtype, copy=copy)


class Captions(Sequence):
    """Captions of records, a tuple of texts for each image, read when they are asked for.

    A slice is a list, read at once.
    """

    def __init__(self, records: Records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, rows: int | slice) -> Any:
        if isinstance(rows, slice):
            return self._records.captions(rows)
        return self._records.captions(np.arange(len(self))[[rows]])[0]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def choose(self, rows: np.ndarray) -> "Captions":
        """The captions of the images of these rows [n] alone."""
        return Captions(self._records.choose(rows))


def state_of(files: Sequence[Path], *more: str) -> str:
    """A name for what files hold, until one is written again: of their paths, sizes and times."""
    about = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([*about, *more]).encode()).hexdigest()[:16]


def _numbers(rows: slice | np.ndarray, num: int) -> np.ndarray:
    """Row numbers, int [...], of a slice or of numbers; IndexError for others than 0 .. num - 1."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(num))
    rows = np.asarray(rows)
    if rows.size and not 0 <= rows.min() <= rows.max() < num:
        raise IndexError(f"rows from {rows.min()} to {rows.max()} of {num} images")
    return rows

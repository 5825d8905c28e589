"""Embeddings of a data set's captions, by a text encoder, on disk.

They are computed once. An image may have several captions, of which training draws one each time.
A folder has embeddings.json and shards, 00000-pooled.npy and so on, each written whole or not at
all, so that what was stopped goes on where it was.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices

from pdistill.data.shards import SHARD, Shards, check_same, check_whole, map_arrays, write_array
from pdistill.runtime.files import write_atomically
from pdistill.runtime.processes import in_all

FORMAT = np.float16  # of embeddings in files
ABOUT = "embeddings.json"
Texts = Sequence[Sequence[str]]  # captions of each image


class Text(struct.PyTreeNode):
    """Prompts as a text encoder hands them on; None for what a network does not take.

    Attributes:
      mask: [B, L] bool, True for tokens of the prompt. A row without any is "no prompt".
      tokens: embeddings of the tokens [B, L, D], for cross-attention.
      pooled: one embedding of the whole prompt, [B, P].
    """

    mask: Array
    tokens: Array | None = None
    pooled: Array | None = None

    def without(self, hidden: Array | None = None) -> "Text":
        """The same with "no prompt" in the rows `hidden` [B], bool; None for all."""
        kept = jnp.zeros_like(self.mask) if hidden is None else self.mask & ~hidden[:, None]
        return self.replace(mask=kept)

    @classmethod
    def zeros(cls, num: int, pooled: int, tokens: int, length: int = 1) -> "Text":
        """Rows of "no prompt", with embeddings of these widths; 0 for none."""
        return cls(
            jnp.zeros((num, length), bool),
            jnp.zeros((num, length, tokens)) if tokens else None,
            jnp.zeros((num, pooled)) if pooled else None,
        )


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """A description of a folder of embeddings; equal ones hold the same numbers.

    Attributes:
      encoder: fingerprint of the text encoder. data: name of the data set and split.
      num: images. content: checksum of the captions.
      most: captions of the image that has most. length: tokens that are kept of each.
      pooled, tokens: widths of what is kept; 0 for nothing.
    """

    encoder: int
    data: str
    num: int
    content: int
    most: int
    length: int
    pooled: int
    tokens: int

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of all rows, [num, ...] each."""
        each = {"count": ((1,), np.int32), "mask": ((self.most, self.length), np.bool_)}
        if self.pooled:
            each["pooled"] = (self.most, self.pooled), FORMAT
        if self.tokens:
            each["tokens"] = (self.most, self.length, self.tokens), FORMAT
        return {
            n: jax.ShapeDtypeStruct((self.num, *shape), dtype) for n, (shape, dtype) in each.items()
        }

    @property
    def shards(self) -> int:
        return -(-self.num // SHARD)

    def _paths(self, folder: Path, shard: int) -> dict[str, Path]:
        return {name: folder / f"{shard:05}-{name}.npy" for name in self.shapes}

    def missing(self, folder: Path) -> list[int]:
        """Shards that are not there.

        Raises:
          ValueError: the folder holds embeddings by another encoder, or of other captions.
        """
        check_same(folder / ABOUT, dataclasses.asdict(self), "embeddings", "the encoder")
        return [
            i
            for i in range(self.shards)
            if not all(path.exists() for path in self._paths(folder, i).values())
        ]

    def write(self, folder: Path, captions: Texts, encode: Callable[[list[str]], Text]) -> None:
        """Writes the shards that are missing, by the first process.

        Args:
          captions: texts of each image, one at least.
          encode: prompts -> their embeddings, NumPy arrays.
        """
        missing = self.missing(folder)
        if in_all(not missing):
            return
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / ABOUT, json.dumps(dataclasses.asdict(self)) + "\n")
            for i in missing:
                rows = self._encode(captions[i * SHARD : (i + 1) * SHARD], encode)
                for name, path in self._paths(folder, i).items():
                    write_array(path, rows[name])
        sync_global_devices(f"wrote {folder}")

    def _encode(
        self, captions: Texts, encode: Callable[[list[str]], Text]
    ) -> dict[str, np.ndarray]:
        """The rows of some images; equal captions are encoded once."""
        unique = sorted({caption for each in captions for caption in each})
        number = {caption: i for i, caption in enumerate(unique)}
        found = encode(unique)
        chosen = np.array([[number[c] for c in _filled(each, self.most)] for each in captions])
        rows = {"count": np.array([[len(each)] for each in captions], np.int32)}
        if self.pooled:
            rows["pooled"] = found.pooled[chosen].astype(FORMAT)
        mask = _of_length(found.mask, self.length) if self.tokens else found.mask.any(1)[:, None]
        rows["mask"] = mask[chosen]
        if self.tokens:
            rows["tokens"] = _of_length(found.tokens, self.length)[chosen].astype(FORMAT)
        return rows

    def read(self, folder: Path) -> dict[str, Shards]:
        """The rows of a whole folder, by name, on disk: "count", "mask", "pooled" and "tokens".

        Raises:
          ValueError: shards are missing, or are of something else.
        """
        check_whole(folder, self.missing(folder), self.shards)
        rows = {}
        for name, shape in self.shapes.items():
            paths = [self._paths(folder, i)[name] for i in range(self.shards)]
            arrays = map_arrays(folder, paths)
            rows[name] = Shards(arrays, arrays[0].shape[-1])
            if (rows[name].shape, rows[name].dtype) != (shape.shape, shape.dtype):
                raise ValueError(f"{folder} is damaged: its {name} are not {shape}; delete it")
        return rows


def text_shapes(num: int, pooled: int, tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the column "text" of `num` images, as if each had one caption of 16 tokens."""
    about = Embeddings(0, "", num, 0, 1, 16 if tokens else 1, pooled, tokens)
    return {f"text/{name}": shape for name, shape in about.shapes.items()}


def content(captions: Texts) -> int:
    """A checksum of captions, of their order and of which belong to one image."""
    found = 0
    for each in captions:
        found = zlib.crc32(json.dumps(each).encode(), found)
    return found


def _filled(captions: Sequence[str], num: int) -> Iterator[str]:
    """The captions, and the last one again for those that are missing."""
    return (captions[min(i, len(captions) - 1)] for i in range(num))


def _of_length(a: np.ndarray, length: int) -> np.ndarray:
    """Tokens [K, L, ...] cut or padded with zeros to [K, length, ...]."""
    a = a[:, :length]
    return np.pad(a, ((0, 0), (0, length - a.shape[1]), *((0, 0),) * (a.ndim - 2)))


def whitening(pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [P] and matrix [P, P] such that (pooled - mean) @ matrix has no correlations.

    A sentence encoder's variance is in few directions, so that the embeddings of most captions are
    nearly the same. Directions of little variance are raised less: 0.3 of the mean variance is
    added to each.

    Args:
      pooled: [K, P].
    """
    pooled = np.asarray(pooled, np.float64)
    mean = pooled.mean(0)
    centred = pooled - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(pooled))
    variances = np.maximum(variances, 0)
    floor = 0.3 * variances.mean() or 1.0  # of one caption alone
    return mean.astype(np.float32), (directions / np.sqrt(variances + floor)).astype(np.float32)


def whitened(pooled: np.ndarray, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pooled embeddings [..., P] as networks take them, float32."""
    return (pooled.astype(np.float32) - mean) @ matrix


class Whitened:
    """Rows of pooled embeddings on disk that are whitened when they are read, float16.

    Attributes:
      shape: shape of all rows, [N, captions, P]. dtype: number format.
    """

    dtype = np.dtype(FORMAT)

    def __init__(self, rows: Any, mean: np.ndarray, matrix: np.ndarray):
        self._rows = rows
        self._mean, self._matrix = mean, matrix
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | np.ndarray | tuple[Any, int]) -> np.ndarray:
        return whitened(self._rows[rows], self._mean, self._matrix).astype(FORMAT)


class FirstCaption:
    """Rows of the first caption of each image, [N, ...], read when they are asked for; float32."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = self._rows[rows, 0]
        return found.astype(np.float32) if np.issubdtype(found.dtype, np.floating) else found


def first_captions(rows: Mapping[str, Any]) -> Text:
    """The first caption of each image of a column's rows, as `FirstCaption`."""
    return Text(**{name: FirstCaption(a) for name, a in rows.items() if name != "count"})


def draw_caption(key: Array, rows: dict[str, Array]) -> Text:
    """One caption of each image, inside jit, of rows [B, captions, ...]; float32."""
    count = rows["count"][:, 0]
    uniform = jax.random.uniform(key, count.shape)
    chosen = jnp.floor(uniform * count.astype(uniform.dtype)).astype(jnp.int32)

    def take(a: Array) -> Array:
        index = chosen.reshape(-1, *(1,) * (a.ndim - 1))
        a = jnp.take_along_axis(a, index, axis=1)[:, 0]
        return a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return Text(**{name: take(a) for name, a in rows.items() if name != "count"})

"""Batches: a deterministic order, read from disk, from host memory or from the device.

The order belongs to grain: a shuffle for each epoch, repeated, cut into global batches. Update k
always sees batch k, so the position of the input is the update's number. A data set that fits is
kept on the device as uint8 and only row numbers travel; otherwise the rows do, which threads read
a little ahead of the updates. Both give the same batches for the same seed, and so does any number
of processes: each reads its own columns of the same global batch, those that its devices hold.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.data.columns import Column
from pdistill.data.images import average, to_float
from pdistill.data.sources import Dataset
from pdistill.data.text import draw_caption

AHEAD = 2  # dispatches whose rows are read before they are asked for


class BatchIterator(Iterator):
    """Iterates over {leaf: [substeps, local batch, ...]}; `get_state`/`set_state` move it.

    Use with `with`, at whose end the reading ahead ends too.

    `columns` are the places of the global batch that this process reads.
    Without `resident` the leaves are those of `Dataset.arrays`; with it just "index" and, of
    columns that have an order of their own, "<column>/index".
    """

    def __init__(self, pipeline: "Pipeline", substeps: int, columns: np.ndarray | slice):
        self._pipeline = pipeline
        self._substeps = substeps
        self._columns = columns
        self._next_index = 0
        self._readers = None if pipeline.resident else ThreadPoolExecutor(AHEAD)
        self._ahead: deque[Future] = deque()  # from _next_index on

    def __next__(self) -> dict[str, np.ndarray]:
        if self._readers is None:
            batch = self._rows(self._next_index)
        else:
            while len(self._ahead) <= AHEAD:
                start = self._next_index + len(self._ahead) * self._substeps
                self._ahead.append(self._readers.submit(self._read, start))
            batch = self._ahead[0].result()
            self._ahead.popleft()
        self._next_index += self._substeps
        return batch

    def _rows(self, start: int) -> dict[str, np.ndarray]:
        """Row numbers of the dispatch that begins with update number `start`, by orders."""
        steps = range(start, start + self._substeps)
        return {
            name: np.stack([self._pipeline.rows(step, name)[self._columns] for step in steps])
            for name in self._pipeline.orders
        }

    def _read(self, start: int) -> dict[str, np.ndarray]:
        rows = self._rows(start)
        dataset, shape = self._pipeline.dataset, rows["index"].shape
        images, labels = dataset.examples(rows["index"].reshape(-1))
        return {
            "image": images.reshape(*shape, *images.shape[1:]),
            "label": labels.reshape(shape),
            **{
                name: array[rows[_order_of(name, rows)]]
                for name, array in dataset.column_arrays().items()
            },
        }

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next_index}

    def set_state(self, state: dict[str, int]) -> None:
        self._next_index = state["next_index"]
        self._cancel()

    def _cancel(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._cancel()
        if self._readers:
            self._readers.shutdown(wait=False)


def _order_of(name: str, orders: Mapping[str, Any]) -> str:
    """Name of the order in which rows of the array `name` are read: its column's own, if any."""
    own = f"{name.partition('/')[0]}/index"
    return own if own in orders else "index"


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Batches of a data set.

    Attributes:
      dataset: data to read. batch_size: the global batch. seed: decides the order.
      resident: keep the data on the device.
      orders: names of the orders of rows: "index", and "<column>/index" of a column that has
        another number of rows.
    """

    dataset: Dataset
    batch_size: int
    seed: int
    resident: bool = True

    def __post_init__(self):
        import grain

        lengths = {"index": len(self.dataset)} | {
            f"{name}/index": num for name, num in self.dataset.unaligned().items()
        }
        orders = {}
        for i, (name, num) in enumerate(lengths.items()):
            order = grain.MapDataset.range(num).seed(self.seed + i).shuffle().repeat()
            orders[name] = order.batch(self.batch_size)
        object.__setattr__(self, "orders", orders)

    def rows(self, step: int, order: str = "index") -> np.ndarray:
        """The row numbers of batch `step`, int32 [batch_size]."""
        return self.orders[order][step].astype(np.int32)

    def iterator(
        self, substeps: int = 1, columns: np.ndarray | slice = slice(None)
    ) -> BatchIterator:
        """Batches by `substeps`; of each, the examples that `mesh.local_columns` says."""
        return BatchIterator(self, substeps, columns)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """Arrays that `make_batch` reads on the device; {} if they are streamed."""
        return self.dataset.arrays() if self.resident else {}


def make_batch(
    resident: Any,
    raw: Any,
    key: Array,
    *,
    flip: bool,
    factor: int = 1,
    columns: Sequence[Column] = (),
    codec: Any = None,
) -> dict[str, Any]:
    """One raw batch, inside jit, to {"image": float32 [B, H, W, C] in [-1, 1], "label": [B]}.

    It has "text" too, a `Text`, where the data set has the column, and `columns`.

    Args:
      resident: `Pipeline.resident_arrays()` on the device. raw: one of an iterator's substeps.
      flip: mirror each image left to right with probability one half.
      factor: side of the squares of pixels that are averaged.
      columns: the data set's, which a batch has by their names, see `Column.batch`.
      codec: blank; the data set's images are moments by it, as in `data.moments`, and the batch's
        are latents drawn of them.
    """
    if resident:
        raw = {name: array[raw[_order_of(name, raw)]] for name, array in resident.items()}
    image, mirrored = raw["image"], None
    if flip:
        mirrored = jax.random.bernoulli(key, shape=(image.shape[0], 1, 1, 1))
    if codec:
        image = _draw_latents(codec, jax.random.fold_in(key, 1), image, mirrored)
    else:
        image = image if mirrored is None else jnp.where(mirrored, image[:, :, ::-1], image)
        image = average(to_float(image), factor)
    batch = {"image": image, "label": raw["label"]}
    if text := _rows_of("text", raw):
        batch["text"] = draw_caption(jax.random.fold_in(key, 2), text)
    for column in columns:
        batch[column.name] = column.batch(_rows_of(column.name, raw), mirrored)
    return batch


def _rows_of(column: str, raw: Mapping[str, Array]) -> dict[str, Array]:
    """A column's rows of a raw batch, by their own names."""
    prefix = f"{column}/"
    return {
        name.removeprefix(prefix): value
        for name, value in raw.items()
        if name.startswith(prefix) and name != f"{prefix}index"
    }


def _draw_latents(codec: Any, key: Array, moments: Array, mirrored: Array | None) -> Array:
    """Latents [B, h, w, c] of images, or of their mirror images, by their moments."""
    moments = moments.astype(jnp.float32)
    if mirrored is not None:
        plain, other = jnp.split(moments, 2, axis=-1)
        moments = jnp.where(mirrored, other, plain)
    return codec.latents(jnp.split(moments, 2, axis=-1), key)

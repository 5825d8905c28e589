"""Batches: a deterministic order, read from host memory or from the device.

The order belongs to grain: a shuffle for each epoch, repeated, cut into global batches. Update k
always sees batch k, so the position of the input is the update's number. A data set that fits is
kept on the device as uint8 and only row numbers travel; otherwise the rows do. Both give the
same batches for the same seed, and so does any number of processes: each reads its own columns
of the same global batch, those that its devices hold.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.data.images import average, to_float
from pdistill.data.sources import Dataset


class BatchIterator(Iterator):
    """Iterates over {leaf: [substeps, local batch, ...]}; `get_state`/`set_state` move it.

    `columns` are those of the global batch that this process reads.
    Without `resident` the leaves are "image" uint8, "label" int32 and, of a data set that has them,
    "latent"; with it just "index".
    """

    def __init__(self, pipeline: "Pipeline", substeps: int, columns: np.ndarray | slice):
        self._pipeline = pipeline
        self._substeps = substeps
        self._columns = columns
        self._next_index = 0

    def __next__(self) -> dict[str, np.ndarray]:
        steps = range(self._next_index, self._next_index + self._substeps)
        self._next_index += self._substeps
        rows = np.stack([self._pipeline.rows(step)[self._columns] for step in steps])
        if self._pipeline.resident:
            return {"index": rows}
        return {name: array[rows] for name, array in self._pipeline.dataset.arrays().items()}

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next_index}

    def set_state(self, state: dict[str, int]) -> None:
        self._next_index = state["next_index"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Batches of a data set.

    Attributes:
      dataset: what to read. batch_size: the global batch. seed: of the order.
      resident: keep the data on the device.
    """

    dataset: Dataset
    batch_size: int
    seed: int
    resident: bool = True

    def __post_init__(self):
        import grain

        order = grain.MapDataset.range(len(self.dataset)).seed(self.seed).shuffle().repeat()
        object.__setattr__(self, "_batches", order.batch(self.batch_size))

    def rows(self, step: int) -> np.ndarray:
        """The row numbers of batch `step`, int32 [batch_size]."""
        return self._batches[step].astype(np.int32)

    def iterator(
        self, substeps: int = 1, columns: np.ndarray | slice = slice(None)
    ) -> BatchIterator:
        """Batches by `substeps`; of each, the examples that `mesh.local_columns` says."""
        return BatchIterator(self, substeps, columns)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """What `batch` needs on the device; empty unless `resident`."""
        return self.dataset.arrays() if self.resident else {}


def make_batch(
    resident: Any, raw: Any, key: Array, *, flip: bool, factor: int = 1
) -> dict[str, Array]:
    """One raw batch, inside jit, to {"image": float32 [B, H, W, C] in [-1, 1], "label": [B]}.

    If there are latents, "latent" float32 [B, h, w, C] is that of the image, mirrored or not.

    Args:
      resident: `Pipeline.resident_arrays()` on the device. raw: one of an iterator's substeps.
      flip: mirror each image left to right with probability one half.
      factor: side of the squares of pixels that are averaged.
    """
    if resident:
        raw = {name: array[raw["index"]] for name, array in resident.items()}
    image, latents = raw["image"], raw.get("latent")
    if flip:
        mirrored = jax.random.bernoulli(key, shape=(image.shape[0], 1, 1, 1))
        image = jnp.where(mirrored, image[:, :, ::-1], image)
    batch = {"image": average(to_float(image), factor), "label": raw["label"]}
    if latents is not None:
        latent = jnp.where(mirrored, latents[:, 1], latents[:, 0]) if flip else latents[:, 0]
        batch["latent"] = latent.astype(jnp.float32)
    return batch

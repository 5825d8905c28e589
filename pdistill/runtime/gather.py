"""Batches of the numbers 0, 1, ... over a mesh, and results of them from all processes."""

from collections.abc import Callable, Iterator

import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from pdistill.runtime.bars import Bar
from pdistill.runtime.mesh import batches_over


def index_batches(num: int, batch_size: int, mesh: Mesh) -> Iterator[np.ndarray]:
    """Yields 0, 1, ..., num - 1 or more, in batches of one size that the mesh's devices divide.

    Raises:
      ValueError: batch_size is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    size = -(-min(batch_size, num) // mesh.size) * mesh.size
    for start in range(0, num, size):
        yield np.arange(start, start + size)


def gather_batches(
    compute: Callable[[np.ndarray], Array],
    num: int,
    batch_size: int,
    mesh: Mesh,
    description: str | None = None,
) -> Iterator[np.ndarray]:
    """Gathers what `compute` makes of 0 .. num - 1 from all processes, batch by batch.

    Args:
      compute: (indices of a batch, as `index_batches`) -> [B, ...] on the mesh.
      num: number of results.
      batch_size: numbers in a batch, rounded up to a multiple of the devices.
      description: text beside the progress bar; None shows no bar.
    """
    with Bar(description, num) as bar:
        for indices in index_batches(num, batch_size, mesh):
            with batches_over(mesh):
                computed = compute(indices)
            found = process_allgather(computed, tiled=True)[: num - indices[0]]
            bar.update(len(found))
            yield found

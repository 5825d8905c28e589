"""Batches of the numbers 0, 1, ... over a mesh, and results of them from all processes."""

import collections
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
    ahead: int = 1,
) -> Iterator[np.ndarray]:
    """Gathers what `compute` makes of 0 .. num - 1 from all processes, batch by batch.

    Args:
      compute: (indices of a batch, as `index_batches`) -> [B, ...] on the mesh.
      num: number of results.
      batch_size: numbers in a batch, rounded up to a multiple of the devices.
      description: text beside the progress bar; None shows no bar.
      ahead: batches that have begun when one is waited for, so that devices compute while the host
        reads the next batch, and has the one before.
    """
    with Bar(description, num) as bar:
        for start, computed in _begun(compute, index_batches(num, batch_size, mesh), mesh, ahead):
            found = process_allgather(computed, tiled=True)[: num - start]
            bar.update(len(found))
            yield found


def _begun(
    compute: Callable[[np.ndarray], Array], batches: Iterator[np.ndarray], mesh: Mesh, ahead: int
) -> Iterator[tuple[int, Array]]:
    """Yields the first number of each batch and its result, when `ahead` more have begun."""
    begun: collections.deque[tuple[int, Array]] = collections.deque()
    for indices in batches:
        with batches_over(mesh):
            begun.append((indices[0], compute(indices)))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun

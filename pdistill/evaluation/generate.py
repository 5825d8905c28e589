"""Samples from parameters: one jitted function of fixed shape, the same for every model."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from pdistill import samplers
from pdistill.data import to_uint8
from pdistill.networks import Diffuser
from pdistill.samplers import Solver
from pdistill.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample: a solver, its steps, and what x_hat is clipped to."""

    num_steps: int
    solver: Solver = samplers.Ddim()  # noqa: RUF009
    clip: tuple[float, float] | None = (-1.0, 1.0)

    @property
    def nfe(self) -> int:
        """Network evaluations for one sample."""
        return samplers.num_evaluations(self.solver, self.num_steps)


@functools.partial(jax.jit, static_argnames=("diffuser", "sampling", "shape"))
def generate(
    diffuser: Diffuser,
    params: Any,
    key: Array,
    indices: Array,
    label: Array | None = None,
    *,
    sampling: Sampling,
    shape: tuple[int, ...],
) -> Array:
    """Samples number `indices` [B] of the stream `key`: [B, *shape] float32.

    Sample i depends on `key` and i alone: not on the batch, the mesh, or the model's other samples.
    """
    return samplers.sample(
        diffuser.denoiser(params, label),
        jax.vmap(jax.random.fold_in, (None, 0))(key, indices),
        (len(indices), *shape),
        schedule=diffuser.schedule,
        num_steps=sampling.num_steps,
        solver=sampling.solver,
        clip=sampling.clip,
    )


_to_uint8 = jax.jit(to_uint8)


def generate_batches(
    diffuser: Diffuser,
    params: Any,
    key: Array,
    num: int,
    *,
    sampling: Sampling,
    shape: tuple[int, ...],
    labels: np.ndarray | None = None,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[np.ndarray]:
    """`num` samples as uint8 [B, H, W, C], in batches of one compiled shape.

    B is `batch_size`, rounded up to a multiple of the devices of the mesh, over which a batch is
    cut; the last batch is filled up and cut back.
    `labels` [num] are those of the samples, for a network that takes them.
    """
    batch_size = -(-min(batch_size, num) // mesh.size) * mesh.size
    for start in range(0, num, batch_size):
        indices = np.arange(start, start + batch_size)
        label = None if labels is None else labels[indices % num]
        indices, label = jax.device_put((indices, label), batch_sharding(mesh))
        images = generate(diffuser, params, key, indices, label, sampling=sampling, shape=shape)
        yield process_allgather(_to_uint8(images), tiled=True)[: num - start]

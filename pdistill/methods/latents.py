"""Latents of images: the noise that a teacher's probability-flow ODE leads to, kept on disk."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from pdistill.data import Dataset, to_float
from pdistill.data.images import average
from pdistill.networks import Diffuser
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import batch_sharding
from pdistill.samplers import encode, parse_solver


@dataclasses.dataclass(frozen=True)
class LatentsConfig:
    """How images are encoded: a deterministic solver and its steps; PaGoDA has 39 of Heun's."""

    num_steps: int = 39
    solver: str = "heun"

    def __post_init__(self):
        solver = parse_solver(self.solver)
        if self.num_steps < 1 or solver.stochastic or solver.jumps:
            raise ValueError(
                "latents need at least one step of a deterministic solver; got "
                f"{self.num_steps} of {self.solver!r}"
            )

    @property
    def name(self) -> str:
        """Of a file of such latents."""
        return f"latents_{self.solver}_{self.num_steps}.npy"

    def encode(
        self, diffuser: Diffuser, params: Any, x: Array, label: Array | None = None
    ) -> Array:
        """The latents of images x [B, h, w, C] in [-1, 1], about unit normal."""
        return encode(
            diffuser.denoiser(params, label),
            x,
            schedule=diffuser.schedule,
            num_steps=self.num_steps,
            solver=parse_solver(self.solver),
        )


def make_latents(
    path: Path,
    diffuser: Diffuser,
    params: Any,
    config: LatentsConfig,
    dataset: Dataset,
    *,
    shape: tuple[int, ...],
    flip: bool,
    batch_size: int,
    mesh: Mesh,
) -> None:
    """Writes the latents of all images, averaged to `shape` [h, w, C], whole or not at all.

    The file is float16 [N, 1, h, w, C], or [N, 2, h, w, C] with those of the mirrored images behind
    them for `flip`.
    """
    factor = dataset.image_shape[0] // shape[0]

    @jax.jit
    def latents(params: Any, images: Array, label: Array) -> Array:
        x = average(to_float(images), factor)
        both = (x, x[:, :, ::-1]) if flip else (x,)
        encoded = [config.encode(diffuser, params, each, label) for each in both]
        return jnp.stack(encoded, axis=1).astype(jnp.float16)

    num, first = len(dataset), jax.process_index() == 0
    temporary = path.with_name(path.name + ".tmp")
    if first:
        array = np.lib.format.open_memmap(temporary, "w+", np.float16, (num, 1 + flip, *shape))

    def batch(indices: np.ndarray) -> Array:
        rows = dataset.images[indices % num], dataset.labels[indices % num]
        return latents(params, *jax.device_put(rows, batch_sharding(mesh)))

    start = 0
    for found in gather_batches(batch, num, batch_size, mesh, "latents"):
        if first:
            array[start : start + len(found)] = found
        start += len(found)
    if first:
        array.flush()
        temporary.rename(path)
    sync_global_devices(f"latents in {path}")

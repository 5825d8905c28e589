"""Noise, and what a teacher's sampler makes of it: the pairs of regression losses (DMD).

Images, labels and the key of the noise are kept; the noise is drawn again when it is needed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from tqdm import tqdm

from pdistill import samplers
from pdistill.networks import Diffuser
from pdistill.samplers import parse_solver
from pdistill.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """How pairs are made.

    Attributes:
      num: of pairs. num_steps, solver: the teacher's, deterministic; DMD has 18 of Heun's.
      guidance: its weight; None for none.
    """

    num: int
    num_steps: int = 18
    solver: str = "heun"
    guidance: float | None = None

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num must be at least 1; got {self.num}")
        solver = parse_solver(self.solver)
        samplers.check_steps(solver, self.num_steps)
        if solver.stochastic or solver.jumps:
            raise ValueError(f"pairs need a deterministic solver; got {self.solver!r}")

    @property
    def name(self) -> str:
        """Of a file of such pairs."""
        weight = "" if self.guidance is None else f"_w{self.guidance:g}"
        return f"pairs_{self.solver}_{self.num_steps}{weight}_{self.num}.npz"

    def shapes(self, image_shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Of `make_pairs`."""
        return {
            "image": jax.ShapeDtypeStruct((self.num, *image_shape), jnp.float16),
            "label": jax.ShapeDtypeStruct((self.num,), jnp.int32),
            "key": jax.ShapeDtypeStruct((2,), jnp.uint32),
        }


def make_pairs(
    diffuser: Diffuser,
    params: Any,
    config: PairsConfig,
    *,
    shape: tuple[int, ...],
    seed: int,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """A teacher's samples of `shape`, whose labels take turns, and the key of their noise.

    Returns:
      {"image": [N, H, W, C] float16, not clipped; "label": [N]; "key": its data, [2]}.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    num_labels = max(diffuser.num_labels, 1)

    @jax.jit
    def generate(params: Any, indices: Array) -> Array:
        label = indices % num_labels
        w = config.guidance and jnp.full(len(indices), config.guidance)
        return samplers.sample(
            diffuser.denoiser(params, label, w),
            None,
            z_init=noise(key, indices, shape),
            schedule=diffuser.schedule,
            num_steps=config.num_steps,
            solver=parse_solver(config.solver),
        ).astype(jnp.float16)

    size = -(-min(batch_size, config.num) // mesh.size) * mesh.size
    images = []
    with tqdm(desc="pairs", total=config.num, unit=" images", delay=3) as bar:
        for start in range(0, config.num, size):
            indices = np.arange(start, start + size, dtype=np.int32)
            batch = generate(params, jax.device_put(indices, batch_sharding(mesh)))
            images.append(process_allgather(batch, tiled=True))
            bar.update(min(size, config.num - start))
    return {
        "image": np.concatenate(images)[: config.num],
        "label": np.arange(config.num, dtype=np.int32) % num_labels,
        "key": np.asarray(jax.random.key_data(key)),
    }


def draw_pairs(
    pairs: dict[str, Array], key: Array, shape: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Random pairs: noise and images of `shape` [B, ...] in float32, and labels [B]."""
    indices = jax.random.randint(key, (shape[0],), 0, len(pairs["image"]))
    z = noise(jax.random.wrap_key_data(pairs["key"], impl="threefry2x32"), indices, shape[1:])
    return z, pairs["image"][indices].astype(jnp.float32), pairs["label"][indices]


def noise(key: Array, indices: Array, shape: tuple[int, ...]) -> Array:
    """The noise of pairs `indices` [B]: [B, *shape] float32."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)

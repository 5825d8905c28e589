"""Noise, and what a teacher's sampler makes of it: the pairs of regression losses (DMD).

Images, labels and the key of the noise are kept; the noise is drawn again when it is needed.
"""

import dataclasses
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.model.sampling import Sampling
from pdistill.networks import Diffuser
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import batch_sharding
from pdistill.samplers import parse_solver


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """How pairs are made.

    Attributes:
      num: of pairs. num_steps, solver: the teacher's, deterministic; DMD has 18 of Heun's.
      guidance: its weight; None for none.
      path: of a file of such pairs, made by `python -m pdistill.pairs`; "" to make them in the run.
    """

    num: int
    num_steps: int = 18
    solver: str = "heun"
    guidance: float | None = None
    path: str = ""

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num must be at least 1; got {self.num}")
        solver = self.sampling.solver
        if solver.stochastic or solver.jumps:
            raise ValueError(f"pairs need a deterministic solver; got {self.solver!r}")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.num_steps, parse_solver(self.solver), clip=None)

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
    guidance = diffuser.effective_guidance(config.guidance)

    @jax.jit
    def generate(params: Any, indices: Array) -> Array:
        w = None if guidance is None else jnp.full(len(indices), float(guidance))
        z = noise(key, indices, shape)
        images = config.sampling.run(diffuser, params, indices % num_labels, w, key=None, z_init=z)
        return images.astype(jnp.float16)

    def batch(indices: np.ndarray) -> Array:
        return generate(params, jax.device_put(indices.astype(np.int32), batch_sharding(mesh)))

    images = gather_batches(batch, config.num, batch_size, mesh, "pairs")
    return {
        "image": np.concatenate(list(images)),
        "label": np.arange(config.num, dtype=np.int32) % num_labels,
        "key": np.asarray(jax.random.key_data(key)),
    }


def read_pairs(config: PairsConfig, image_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Those of the file `config.path`.

    Raises:
      ValueError: it cannot be read, or holds other pairs than `config` says.
    """
    shapes = config.shapes(image_shape)
    try:
        pairs = dict(np.load(config.path))
        found = {name: pairs[name].shape for name in shapes}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{config.path} holds no pairs: {error}") from error
    for name, wanted in shapes.items():
        if found[name] != wanted.shape:
            raise ValueError(f"{config.path}: {name} is {found[name]}, not {wanted.shape}")
    return {name: pairs[name] for name in shapes}


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

"""Data, and a teacher in double precision, for tests of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pdistill.data import Dataset
from pdistill.methods import Teacher


def noise_dataset(num, shape):
    images = np.random.default_rng(0).integers(0, 256, (num, *shape), np.uint8)
    return Dataset("noise:train", images, np.zeros(num, np.int32), num_labels=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Double(Teacher):
    """Of images in double precision, so that all of its step is in it."""

    def step(self, state, batch, key):
        return super().step(state, batch | {"image": batch["image"].astype(jnp.float64)}, key)


def in_double(state):
    """Its single precision numbers in double precision."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, state)

"""One network at several resolutions: what is learnt at one, learnt at all of them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill.data.images import average
from pdistill.methods.regression import Regression
from pdistill.networks import Diffuser
from pdistill.samplers.cascade import FIRST_LEVEL, with_noise
from pdistill.training import TrainState


@dataclasses.dataclass(frozen=True)
class Levels:
    """A regression at every resolution of a network, in one update (LowDiff, Xu et al. 2025).

    The paper says little of its training; what follows is our own design. An image, averaged to a
    level's size, is made on the condition of the same image averaged to the size before, plus
    noise of a random std s that the network is told, since in sampling the condition is a sample.
    Every update has images of all levels, each image at one: a level drawn with probability q
    would have the same expected gradient, but then XLA must compile a condition around
    convolutions, whose gradients are ten times slower there on a CPU. All levels' errors are means
    over pixels and count alike.

    Attributes:
      method: what each level learns, of a diffuser whose network has `resolutions`.
      split: images of a batch at each level, smallest first: q times the batch.
      max_noise: s is uniform on [0, max_noise).
    """

    method: Regression
    split: tuple[int, ...]
    max_noise: float

    def __post_init__(self):
        sizes = self.diffuser.resolutions
        if not sizes or len(self.split) != len(sizes) or min(self.split) < 1:
            raise ValueError(
                f"split must be images at each of the resolutions {sizes}; got {self.split}"
            )
        if not 0 <= self.max_noise < math.inf:
            raise ValueError(f"max_noise must not be negative; got {self.max_noise}")
        if parts := [n for n in self.split if n % self.method.optimizer.microbatches]:
            raise ValueError(
                f"optimizer.microbatches {self.method.optimizer.microbatches} must divide the "
                f"images of each level; got {parts[0]}"
            )

    @property
    def diffuser(self) -> Diffuser:
        return self.method.diffuser

    def of(self, method: Regression, batch_size: int) -> "Levels":
        """Another method at the same levels, with batches split alike.

        Raises:
          ValueError: such batches cannot be.
        """
        total = sum(self.split)
        if any(n * batch_size % total for n in self.split):
            raise ValueError(
                f"loop.batch_size {batch_size} cannot be split over the levels as {self.split}"
            )
        split = tuple(n * batch_size // total for n in self.split)
        return dataclasses.replace(self, method=method, split=split)

    def init(self, *args: Any, **kwargs: Any) -> TrainState:
        return self.method.init(*args, **kwargs)

    def export(self, state: TrainState) -> Any:
        return self.method.export(state)

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        taught = [
            self._at(level).examples(state, *self._reduced(rows, level, key))
            for level, rows in enumerate(cut(batch, self.split))
        ]
        parts, (dropout_key, *_) = zip(*taught, strict=True)
        return self.method.regress(state, parts, dropout_key)  # which makes one for each part of it

    def _at(self, level: int) -> Regression:
        """The method at one level, with the schedule there."""
        diffuser = self.diffuser.at(self.diffuser.resolutions[level])
        return dataclasses.replace(self.method, diffuser=diffuser)

    def _reduced(
        self, rows: dict[str, Array], level: int, key: Array
    ) -> tuple[dict[str, Array], Array]:
        """The level's batch, images averaged to its size and their condition, and a key for it."""
        sizes, images = self.diffuser.resolutions, rows["image"]
        x = average(images, sizes[-1] // sizes[level])
        if level == 0:
            return rows | {"image": x}, key  # one level alone is the method itself, to the bit
        key, std_key, noise_key = jax.random.split(jax.random.fold_in(key, FIRST_LEVEL + level), 3)
        std = jax.random.uniform(std_key, x.shape[:1], x.dtype, maxval=self.max_noise)
        before = average(images, sizes[-1] // sizes[level - 1])
        return rows | {"image": x, "condition": with_noise(noise_key, before, std)}, key


def cut(batch: Any, split: tuple[int, ...]) -> list[Any]:
    """Parts of a tree of [B, ...], with the rows that `split` says, which add up to B.

    Each takes some rows of every one of gcd(split) equal groups, so that rows that are spread over
    as many devices as divide that stay where they are.
    """
    groups = math.gcd(*split)
    ends = np.cumsum(split)[:-1] // groups

    def parts(a: Array) -> list[Array]:
        grouped = a.reshape(groups, -1, *a.shape[1:])
        return [part.reshape(-1, *a.shape[1:]) for part in jnp.split(grouped, ends, axis=1)]

    leaves, form = jax.tree.flatten(batch)
    return [form.unflatten(part) for part in zip(*map(parts, leaves), strict=True)]

"""The state of training: networks that learn, networks that do not, and a step count."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from pdistill.training.optimizers import Optimizer


@struct.dataclass
class Learner:
    """One network under training: parameters, their moving average, the optimizer's state."""

    params: Any
    ema: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: Optimizer) -> "Learner":
        """Fresh optimizer state; `params` and `ema` are copies, so that each can be donated."""
        return cls(
            params=jax.tree.map(jnp.copy, params),
            ema=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.transform().init(params),
        )

    def update(
        self, grads: Any, optimizer: Optimizer, step: Array
    ) -> tuple["Learner", dict[str, Array]]:
        """One optimizer update and one step of the moving average.

        ema <- d ema + (1 - d) params with d = `optimizer.ema_decay`, and d = 0 at step 0
        (Salimans & Ho 2022's code). Returns the learner and its norms.
        """
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it; callers may be strict
            transform = optimizer.transform()
            updates, opt_state = transform.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        decay = jnp.where(step == 0, 0.0, optimizer.ema_decay)
        ema = optax.incremental_update(params, self.ema, 1 - decay)
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        return Learner(params, ema, opt_state), norms


@struct.dataclass
class TrainState:
    """Everything a method's step reads and writes.

    Attributes:
      step: updates done, int32 scalar. skipped: those left out because they were not finite.
      learners: networks under training by name ("student", "fake_score", "discriminator").
      frozen: parameters that stay as they are, by name ("teacher"), and traced settings of a
        round; never donated and never checkpointed.
    """

    step: Array
    skipped: Array
    learners: dict[str, Learner]
    frozen: dict[str, Any]

    @classmethod
    def create(cls, learners: dict[str, Learner], frozen: dict[str, Any]) -> "TrainState":
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return cls(step=zero(), skipped=zero(), learners=learners, frozen=frozen)

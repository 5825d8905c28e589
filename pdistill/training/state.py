"""The state of training: networks that learn, networks that do not, and a step count."""

import dataclasses
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
    """One network under training.

    Attributes:
      params: what learns; parameters that stay as they are belong to `TrainState.frozen`.
      ema: their moving average; None for a network that nobody samples with.
      opt_state: the optimizer's. carried: what the network's evaluations carry on, such as the
        vectors of spectral norm.
    """

    params: Any
    ema: Any
    opt_state: Any
    carried: Any = dataclasses.field(default_factory=dict)

    @classmethod
    def create(
        cls, params: Any, optimizer: Optimizer, *, averaged: bool = True, carried: Any = None
    ) -> "Learner":
        """Fresh optimizer state; `params` and `ema` are copies, so that each can be donated."""
        return cls(
            params=jax.tree.map(jnp.copy, params),
            ema=jax.tree.map(jnp.copy, params) if averaged else None,
            opt_state=optimizer.transform().init(params),
            carried=carried or {},
        )

    def update(
        self, grads: Any, optimizer: Optimizer, step: Array
    ) -> tuple["Learner", dict[str, Array]]:
        """One optimizer update and one step of the moving average.

        ema <- d ema + (1 - d) params with d = `optimizer.ema_decay_at(step)`. Returns the learner
        and its norms.
        """
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it; callers may be strict
            transform = optimizer.transform()
            updates, opt_state = transform.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema = self.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - optimizer.ema_decay_at(step))
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        return self.replace(params=params, ema=ema, opt_state=opt_state), norms


@struct.dataclass
class TrainState:
    """Everything a method's step reads and writes.

    Attributes:
      step: updates done, int32 scalar. skipped: those left out, see `LoopConfig`.
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
        """At step 0, with copies of what is frozen, so that the learners can be donated."""
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        frozen = jax.tree.map(jnp.array, frozen)
        return cls(step=zero(), skipped=zero(), learners=learners, frozen=frozen)

"""Optimizers as data: a frozen description that builds an optax chain."""

import dataclasses
import math

import jax.numpy as jnp
import optax
from jax import Array

from pdistill.training.muon import muon_and_adam
from pdistill.training.power_ema import check_width

ANNEALS = ("constant", "linear", "cosine")
RULES = {"adam": optax.scale_by_adam, "radam": optax.scale_by_radam, "muon": muon_and_adam}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam with warm-up, annealing, clipping and decoupled weight decay, and the weights' averages.

    Attributes:
      rule: "adam", or "radam", which leaves out the division by the second moment in its first
        updates and warms up by itself (Liu et al. 2020), or "muon" for the matrices between a
        network's layers and Adam for the rest, see `training.muon`.
      learning_rate: peak rate. warmup: updates of linear warm-up from zero.
      anneal: "constant", or "linear" / "cosine" to zero at update `num_updates`.
      num_updates: length of the run that `anneal` covers; a stage fills it in.
      clip_norm: global norm that gradients are clipped to; 0 leaves them.
      weight_decay: decoupled (AdamW), times the learning rate.
      ema_decay: decay of the parameters' moving average; 0 makes it a copy of the parameters.
      ema_ramp: the average's half-life is at most this fraction of the updates so far (Karras et
        al. 2022 have 0.05); 0 for no such bound.
      ema_widths: instead of `ema_decay`, the relative standard deviations, above 0 and at most
        0.2886, of averages with power-function profiles (Karras et al. 2024 have 0.05 and 0.1).
        All are kept; the first is the one that the method uses and the run exports.
      microbatches: parts a batch is cut into to accumulate its gradient.
    """

    learning_rate: float
    num_updates: int = 0
    warmup: int = 0
    anneal: str = "constant"
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    ema_decay: float = 0.0
    ema_ramp: float = 0.0
    microbatches: int = 1
    rule: str = "adam"
    ema_widths: tuple[float, ...] = ()

    def __post_init__(self):
        if self.anneal not in ANNEALS:
            raise ValueError(f"anneal must be one of {', '.join(ANNEALS)}; got {self.anneal!r}")
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {self.rule!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite; got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1); got {self.ema_decay}")
        if self.ema_ramp < 0:
            raise ValueError(f"ema_ramp must not be negative; got {self.ema_ramp}")
        if self.ema_widths and (self.ema_decay or self.ema_ramp):
            raise ValueError("ema_widths stand in for ema_decay and ema_ramp: leave those at 0")
        if len(set(self.ema_widths)) < len(self.ema_widths):
            raise ValueError(f"ema_widths must differ from each other; got {self.ema_widths}")
        for width in self.ema_widths:
            check_width(width)
        if self.microbatches < 1:
            raise ValueError(f"microbatches must be at least 1; got {self.microbatches}")
        if self.anneal != "constant" and 0 < self.num_updates <= self.warmup:
            raise ValueError(
                f"anneal={self.anneal!r} needs num_updates above warmup; got {self.num_updates} "
                f"and {self.warmup}: train longer, or set the optimizer's warmup lower"
            )

    def schedule(self, num_updates: Array | None = None) -> optax.Schedule:
        """Updates done -> learning rate; a traced `num_updates` replaces its own."""
        rest = (self.num_updates if num_updates is None else num_updates) - self.warmup

        def rate(count):
            done = jnp.where(
                rest > 0, jnp.clip((count - self.warmup) / jnp.maximum(rest, 1), 0, 1), 0
            )
            annealed = {"linear": 1 - done, "cosine": (1 + jnp.cos(jnp.pi * done)) / 2}
            warm = jnp.minimum(count / self.warmup, 1) if self.warmup else 1
            return self.learning_rate * warm * annealed.get(self.anneal, 1)

        return rate

    def ema_decay_at(self, step: Array) -> Array:
        """Decay of the moving average after `step` updates: 0 first, for it starts as a copy."""
        decay = jnp.where(step == 0, 0.0, self.ema_decay)
        if not self.ema_ramp:
            return decay
        half_life = self.ema_ramp * jnp.maximum(step, 1).astype(decay.dtype)
        return jnp.minimum(decay, 0.5 ** (1 / half_life))

    def transform(self, num_updates: Array | None = None) -> optax.GradientTransformation:
        """The optax chain: clip, the rule, weight decay, learning rate, see `schedule`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.chain(  # as optax.adamw is
                RULES[self.rule](self.b1, self.b2, self.eps),
                optax.add_decayed_weights(self.weight_decay),
                optax.scale_by_learning_rate(self.schedule(num_updates)),
            ),
        )

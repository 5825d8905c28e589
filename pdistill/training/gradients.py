"""Gradients of a batch, whole or in microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def value_and_grad(
    loss: Callable[[Any, Any, Array], Array],
    params: Any,
    examples: Any,
    key: Array,
    microbatches: int = 1,
) -> tuple[Array, Any]:
    """Mean loss over a batch and its gradient, from `microbatches` equal parts in turn.

    Args:
      loss: (params, examples, key) -> scalar mean over the examples it is given.
      examples: pytree of [B, ...]; each B must be divisible by `microbatches`.
      key: split between the parts (so dropout differs between them).
    """
    if microbatches == 1:
        return jax.value_and_grad(loss)(params, examples, key)
    for a in jax.tree.leaves(examples):
        if len(a) % microbatches:
            raise ValueError(f"microbatches {microbatches} must divide the batch size {len(a)}")
    # Every microbatch takes a few examples from each device, so that none has to move.
    parts = jax.tree.map(
        lambda a: a.reshape(-1, microbatches, *a.shape[1:]).swapaxes(0, 1),
        examples,
    )

    def accumulate(total, part):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(jax.value_and_grad(loss), params, examples, key),
    )
    total, _ = jax.lax.scan(accumulate, zero, (parts, jax.random.split(key, microbatches)))
    return jax.tree.map(lambda a: a / microbatches, total)

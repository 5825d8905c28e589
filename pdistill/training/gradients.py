"""Gradients of means over rows, of a whole batch or of microbatches in turn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.training.learner import Learner


def value_and_grad(
    loss: Callable[[Any, Any, Array | None], Any],
    learner: Learner,
    rows: Any,
    key: Array | None = None,
    *,
    has_aux: bool = False,
) -> tuple[Any, Any]:
    """The loss of a learner's network over a batch and its gradient, in microbatches.

    Args:
      loss: (network, rows, key) -> scalar mean over the rows it is given; with `has_aux` also a
        tree of such scalars.
      rows: pytree of [B, ...]; each B must be divisible by the microbatches.
      key: split between the microbatches, so that dropout differs between them; None for none.

    Raises:
      ValueError: the microbatches do not divide a batch.
    """
    slope = jax.value_and_grad(loss, has_aux=has_aux)
    parts = learner.optimizer.microbatches
    if parts == 1:
        return slope(learner.network, rows, key)
    keys = None if key is None else jax.random.split(key, parts)

    def accumulate(total, part):
        return jax.tree.map(jnp.add, total, slope(learner.network, *part)), None

    shapes = jax.eval_shape(slope, learner.network, rows, key)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    total, _ = jax.lax.scan(accumulate, zero, (_cut(rows, parts), keys))
    return jax.tree.map(lambda a: a / parts, total)


def vjp(
    function: Callable[[Any, Any], Array], learner: Learner, rows: Any
) -> tuple[Array, Callable[[Array], Any]]:
    """`jax.vjp` of a function of a learner's network, row by row, in its optimizer's microbatches.

    Args:
      function: (network, rows) -> [B, ...], of which row i depends on row i alone.
      rows: pytree of [B, ...].

    Returns:
      The result, and the map from its cotangent [B, ...] to the network's.
    """
    parts = learner.optimizer.microbatches
    if parts == 1:
        result, pull_back = jax.vjp(lambda network: function(network, rows), learner.network)
        return result, lambda cotangent: pull_back(cotangent)[0]
    cut = _cut(rows, parts)
    result = jax.lax.map(lambda part: function(learner.network, part), cut)

    def pull_back_in_parts(cotangent):
        def accumulate(total, part):
            rows, cotangent = part
            _, pull_back = jax.vjp(lambda network: function(network, rows), learner.network)
            return jax.tree.map(jnp.add, total, pull_back(cotangent)[0]), None

        zero = jax.tree.map(jnp.zeros_like, learner.network)
        total, _ = jax.lax.scan(accumulate, zero, (cut, _cut(cotangent, parts)))
        return total

    return result.swapaxes(0, 1).reshape(-1, *result.shape[2:]), pull_back_in_parts


def _cut(rows: Any, parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...]: a few rows of each device in every part, so that none
    has to move."""
    for a in jax.tree.leaves(rows):
        if len(a) % parts:
            raise ValueError(f"microbatches {parts} must divide the batch size {len(a)}")
    return jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), rows)

"""Updates of a method without the loop."""

import functools

import jax
import numpy as np


@functools.cache  # equal methods share one compilation
def compiled(method):
    return jax.jit(method.step)


def run(method, state, batch, updates, seed=4):
    """All states, the first one too, and the metrics of each update."""
    step = compiled(method)
    states, rows = [state], []
    for _ in range(updates):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(seed), state.step))
        state = state.replace(step=state.step + 1)
        states.append(state)
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def same(a, b):
    """Whether two trees are, to the bit."""
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )

"""Updates of a method without the loop, and plans without a config."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from pdistill.experiment.config import DataConfig, ExperimentConfig, ModelConfig, Named
from pdistill.experiment.plan import plan
from pdistill.networks import Conditioning
from pdistill.runtime.costs import flops

DIT = Named("dit", {"patch": 2, "features": 16, "depth": 1, "heads": 2})


@functools.cache  # equal methods share one compilation
def compiled(method, parts=()):
    """step(state, batch, key) of an update that has these parts, jitted."""
    return jax.jit(functools.partial(method.step, **({"parts": parts} if parts else {})))


def run(method, state, batch, updates, seed=4, first=0):
    """All states, the given one too, and the metrics of each update.

    Update number `first`, `first` + 1, ... has the key fold_in(key(seed), number) and the method's
    parts for that number.
    """
    states, rows = [state], []
    for number in range(first, first + updates):
        step = compiled(method, method.parts(number))
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(seed), number))
        states.append(state)
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def settled(method, state, batch, updates, seed=4):
    """The last of the states of `run`, of many updates in one program."""
    parts = [method.parts(number) for number in range(updates)]
    kinds = list(dict.fromkeys(parts))
    steps = [functools.partial(method.step, **({"parts": kind} if kind else {})) for kind in kinds]

    def update(state, row):
        number, kind = row
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.lax.switch(kind, [lambda *a, s=s: s(*a)[0] for s in steps], state, batch, key), 0

    rows = jnp.arange(updates), jnp.array([kinds.index(kind) for kind in parts])
    return jax.jit(lambda state: jax.lax.scan(update, state, rows)[0])(state)


def forward_passes(method, state, batch, network):
    """Cost of an update in evaluations of a network for the batch; what nobody uses is left out."""

    def cost(function, *inputs):
        jaxpr = jax.make_jaxpr(function)(*inputs).jaxpr
        return flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])

    x, told = batch["image"], Conditioning.of(batch)
    update = functools.partial(compiled.__wrapped__, method)
    once = cost(lambda network: network.v(x, jnp.zeros(len(x)), told), network)
    return cost(update(method.parts(0)), state, batch, jax.random.key(0)) / once


def same(a, b):
    """Whether two trees are, to the bit."""
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def plan_of(*stages, network=DIT, shape=(8, 8, 1)):
    """The plan of stages, which are `Run`s, for a small model."""
    model = ModelConfig(network, Named("cosine", {}))
    return plan(ExperimentConfig(DataConfig("digits"), stages, model), shape)

"""Parameters, their shapes and operations of blank networks, traced once for all equal ones.

The functions take a `networks.Network` without parameters, which is hashable.
"""

import functools
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from pdistill.runtime import costs


@functools.partial(jax.jit, static_argnums=0)  # a module is traced once, and no output computed
def init(module: nn.Module, key: Array, inputs: tuple[Array, Array, Any]) -> Any:
    """Fresh parameters of a module for inputs z, logsnr and what it is told."""
    return module.init(key, *inputs)["params"]


@functools.lru_cache(maxsize=64)  # tracing a large network takes seconds
def shapes(blank: Any) -> Any:
    """Shapes of the parameters of a blank network."""
    return jax.eval_shape(lambda: blank.init(jax.random.key(0)).params)


@functools.lru_cache(maxsize=64)
def flops(blank: Any, shape: tuple[int, ...]) -> int:
    """Operations of one evaluation of a blank network for one image of `shape`."""
    inputs = jax.eval_shape(lambda: blank.example(shape))
    apply = lambda params, inputs: blank.module.apply({"params": params}, *inputs)  # noqa: E731
    return costs.flops(jax.make_jaxpr(apply)(blank.shapes.params, inputs).jaxpr)

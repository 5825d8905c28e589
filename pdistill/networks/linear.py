"""Linear layers that are one product of two matrices, whatever the axes of what they take."""

import functools
import math
from typing import Any

import jax
from flax import linen as nn
from jax import Array


def matrix_product(
    inputs: Array, kernel: Array, dimension_numbers: Any, *args: Any, **options: Any
) -> Array:
    """`jax.lax.dot_general` of a linear layer: of inputs' last axes with the kernel's first.

    As [rows, K] times [K, columns]. With more axes XLA transposes the gradients of a layer's output
    before it multiplies them for the kernel's, which on CPUs takes half as long as the product.
    """
    (last, first), _ = dimension_numbers
    rows, columns = inputs.shape[: -len(last)], kernel.shape[len(first) :]
    inner = math.prod(kernel.shape[: len(first)])
    flat = jax.lax.dot_general(
        inputs.reshape(-1, inner), kernel.reshape(inner, -1), (((1,), (0,)), ((), ())),
        *args, **options,
    )  # fmt: skip
    return flat.reshape(*rows, *columns)


Dense = functools.partial(nn.Dense, dot_general=matrix_product)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=matrix_product)

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
    matrix = kernel.reshape(inner, -1)
    if inner > matrix.shape[1] and jax.default_backend() == "cpu":
        matrix = _by_columns(matrix)
    flat = jax.lax.dot_general(
        inputs.reshape(-1, inner), matrix, (((1,), (0,)), ((), ())), *args, **options
    )
    return flat.reshape(*rows, *columns)


@jax.custom_jvp
def _by_columns(matrix: Array) -> Array:
    """The same matrix, whose gradient is computed transposed: the shorter side as its rows.

    XLA would take it as the product of the inputs, transposed, with the output's gradient, which
    on CPUs takes a fifth to a half longer where there are more inputs than outputs.
    """
    return matrix


@_by_columns.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return *primals, jax.lax.optimization_barrier(tangents[0].T).T


Dense = functools.partial(nn.Dense, dot_general=matrix_product)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=matrix_product)

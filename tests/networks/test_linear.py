import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill.networks.linear import Dense, DenseGeneral, matrix_product

LAYERS = [
    (Dense(5), nn.Dense(5)),
    (DenseGeneral((3, 2, 4)), nn.DenseGeneral((3, 2, 4))),
    (DenseGeneral(5, axis=(-2, -1)), nn.DenseGeneral(5, axis=(-2, -1))),
]


@pytest.mark.parametrize(("own", "flax"), LAYERS, ids=["dense", "many columns", "many inputs"])
def test_they_are_flax_layers_of_one_product_of_matrices(x64, own, flax):
    """Also the products of the gradients, which XLA transposes for more axes."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6), jnp.float64)
    params = flax.init(jax.random.key(1), x.astype(jnp.float32))
    params = jax.tree.map(lambda a: jax.random.normal(jax.random.key(2), a.shape, x.dtype), params)

    def loss(layer):
        return lambda params, x: jnp.sin(layer.apply(params, x)).sum()

    desired = jax.value_and_grad(loss(flax), (0, 1))(params, x)
    actual = jax.value_and_grad(loss(own), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), actual, desired)

    program = jax.make_jaxpr(jax.grad(loss(own), (0, 1)))(params, x)
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert all(v.aval.ndim == 2 for e in products for v in (*e.invars, *e.outvars))
    directions = jax.tree.map(jnp.cos, (params, x))
    values = (jax.jvp(loss(layer), (params, x), directions)[1] for layer in (own, flax))
    np.testing.assert_allclose(*values, rtol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs", "made"), [(6, 5, "5,6"), (5, 6, "5,6")])
def test_the_kernels_gradient_has_the_shorter_side_as_its_rows(optimized, inputs, outputs, made):
    """In the compiled product, which else is always the kernel's shape."""
    x, kernel = jnp.ones((3, 4, inputs)), jnp.ones((inputs, outputs))

    def loss(kernel, x):
        return jnp.sin(matrix_product(x, kernel, (((2,), (0,)), ((), ())))).sum()

    program = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    products = re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", program)
    assert sorted(products) == sorted([f"12,{outputs}", made])

"""Group norm against flax's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill.networks.norms import GroupNorm

SHAPES = {"pixels": (2, 3, 5, 12), "tokens": (3, 7, 12), "vectors": (4, 12)}
SETTINGS = {"num_groups": 4, "epsilon": 1e-3}


def inputs(shape):
    rng = np.random.default_rng(0)
    h = rng.normal(size=shape) * np.arange(1.0, 13.0) + rng.normal(size=12)
    scale, bias = rng.normal(size=(2, 12))
    return jax.tree.map(jnp.asarray, ({"scale": scale, "bias": bias}, h))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_derivatives(shape, fast, x64):
    """In double precision, of which flax computes variances alone."""
    params, h = inputs(shape)

    def all_of(norm):
        call = lambda params, h: norm.apply({"params": params}, h)  # noqa: E731
        grad = jax.grad(lambda *a: jnp.sin(call(*a)).sum(), (0, 1))
        return call(params, h), jax.jvp(grad, (params, h), (params, jnp.cos(h)))

    settings = SETTINGS | {"use_fast_variance": fast}
    theirs = nn.GroupNorm(**settings, param_dtype=jnp.float64, force_float32_reductions=False)
    found = [jax.jit(all_of, static_argnums=0)(norm) for norm in (GroupNorm(**settings), theirs)]
    chex.assert_trees_all_close(*found, rtol=1e-9, atol=1e-11)


def test_the_same_parameters_as_of_flax():
    h = jnp.ones(SHAPES["pixels"])
    made = [norm(4).init(jax.random.key(0), h) for norm in (GroupNorm, nn.GroupNorm)]
    chex.assert_trees_all_equal(*made)


def test_half_precision_has_sums_in_single():
    """Of 4096 pixels far from zero, whose sum bfloat16 would not hold."""
    _, h = inputs((1, 64, 64, 12))
    half = (h + 30).astype(jnp.bfloat16)
    params = {"scale": jnp.ones(12), "bias": jnp.zeros(12)}
    ours, exact = (
        GroupNorm(4).apply({"params": params}, a) for a in (half, half.astype(jnp.float32))
    )
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8)


def test_equal_values_have_no_negative_variance():
    h = jnp.full((1, 8, 8, 12), 1234.567)
    out, _ = GroupNorm(4, epsilon=1e-12).init_with_output(jax.random.key(0), h)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("groups", [5, 0])
def test_groups_that_do_not_divide_the_channels(groups):
    with pytest.raises(ValueError, match=rf"groups \({groups}\) does not divide the 12 channels"):
        GroupNorm(groups).init(jax.random.key(0), jnp.ones((1, 12)))


def test_pixels_are_summed_before_groups():
    """With groups as an axis of all pixels, a sum takes a CPU several times as long."""
    h = jnp.ones(SHAPES["pixels"])
    params = GroupNorm(4).init(jax.random.key(0), h)
    run = functools.partial(GroupNorm(4).apply, params)
    assert "3,5,4,3]" not in str(jax.make_jaxpr(run)(h))
    assert "1,1,4,3]" in str(jax.make_jaxpr(run)(h))

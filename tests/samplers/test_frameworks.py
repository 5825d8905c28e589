"""Denoisers from plain JAX, Flax NNX and Equinox, through the samplers and JAX's transformations.

Three ways to write one network, with the same weights; what they must give is computed by NumPy.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pdistill import diffusion, samplers
from pdistill.diffusion import CosineSchedule

SCHEDULE = CosineSchedule(-8.0, 8.0)
STEPS, DIM, WIDTH = 5, 2, 8
RNG = np.random.default_rng(0)
WEIGHTS = {
    "hidden": {"kernel": RNG.normal(size=(DIM + 1, WIDTH)), "bias": RNG.normal(size=WIDTH)},
    "out": {"kernel": RNG.normal(size=(WIDTH, DIM)) / 4, "bias": RNG.normal(size=DIM)},
}
NOISE = RNG.normal(size=(16, DIM))


# --- Plain JAX ------------------------------------------------------------------------------------


def plain(params, z, logsnr):
    """x_hat of a network that predicts v."""
    h = jnp.concatenate([z, diffusion.angle(logsnr)[:, None]], axis=-1)
    h = jnp.tanh(h @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    v = h @ params["out"]["kernel"] + params["out"]["bias"]
    return diffusion.x_from_v(z, v, logsnr)


# --- Flax NNX -------------------------------------------------------------------------------------


class NnxDenoiser(nnx.Module):
    def __init__(self, dtype, rngs):
        self.hidden = nnx.Linear(DIM + 1, WIDTH, param_dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(WIDTH, DIM, param_dtype=dtype, rngs=rngs)

    def __call__(self, z, logsnr):
        h = jnp.concatenate([z, diffusion.angle(logsnr)[:, None]], axis=-1)
        return diffusion.x_from_v(z, self.out(jnp.tanh(self.hidden(h))), logsnr)


def nnx_model(weights):
    model = NnxDenoiser(weights["out"]["bias"].dtype, nnx.Rngs(0))
    for name in ("hidden", "out"):
        layer = getattr(model, name)
        layer.kernel[...], layer.bias[...] = weights[name]["kernel"], weights[name]["bias"]
    definition, state = nnx.split(model)
    return lambda state, z, logsnr: nnx.merge(definition, state)(z, logsnr), state


# --- Equinox --------------------------------------------------------------------------------------


def equinox_model(weights):
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class EquinoxDenoiser(eqx.Module):
        hidden: eqx.nn.Linear
        out: eqx.nn.Linear

        def v(self, z, angle):
            """Of one example, as is usual in Equinox."""
            return self.out(jnp.tanh(self.hidden(jnp.append(z, angle))))

        def __call__(self, z, logsnr):
            return diffusion.x_from_v(z, jax.vmap(self.v)(z, diffusion.angle(logsnr)), logsnr)

    def linear(kernel, bias):
        layer = eqx.nn.Linear(*kernel.shape, key=jax.random.key(0))
        return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (kernel.T, bias))

    model = EquinoxDenoiser(*(linear(**weights[name]) for name in ("hidden", "out")))
    arrays, static = eqx.partition(model, eqx.is_array)
    return lambda arrays, z, logsnr: eqx.combine(arrays, static)(z, logsnr), arrays


# --- The samplers ---------------------------------------------------------------------------------


class Case(NamedTuple):
    """apply(params, z, logsnr) -> x_hat, and params, of arrays of one dtype."""

    apply: object
    params: object


@pytest.fixture(autouse=True)
def _as_outside():
    """JAX's own settings: other people's code need not be as strict as ours."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(params=["plain", "nnx", "equinox"])
def build(request):
    def build(dtype=jnp.float32):
        weights = jax.tree.map(lambda a: jnp.asarray(a, dtype), WEIGHTS)
        if request.param == "plain":
            return Case(plain, weights)
        return Case(*{"nnx": nnx_model, "equinox": equinox_model}[request.param](weights))

    return build


def sample(apply, params, noise, solver=samplers.Ddim()):  # noqa: B008
    return samplers.sample(
        functools.partial(apply, params), None, z_init=noise, schedule=SCHEDULE,
        num_steps=STEPS, solver=solver,
    )  # fmt: skip


def by_numpy(noise, weights=WEIGHTS):
    """DDIM as in Song et al. 2020, eq. 12, in float64."""
    hidden, out = weights["hidden"], weights["out"]
    levels = np.asarray(SCHEDULE(np.arange(STEPS, -1, -1) / STEPS), np.float64)
    z = np.asarray(noise, np.float64)
    for t, s in itertools.pairwise(levels):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            ((1 + np.exp(-l)) ** -0.5, (1 + np.exp(l)) ** -0.5) for l in (t, s)
        )
        h = np.append(z, np.full((len(z), 1), np.arctan(sigma_t / alpha_t)), axis=1)
        v = np.tanh(h @ hidden["kernel"] + hidden["bias"]) @ out["kernel"] + out["bias"]
        x, eps = alpha_t * z - sigma_t * v, sigma_t * z + alpha_t * v
        z = alpha_s * x + sigma_s * eps
    return x


def test_jit(build):
    case = build()
    x = jax.jit(functools.partial(sample, case.apply))(case.params, jnp.float32(NOISE))
    np.testing.assert_allclose(x, by_numpy(NOISE), atol=1e-4)


def test_vmap_over_models(build):
    """An ensemble: the same noise through three sets of weights, in one call."""
    case = build()
    scales = (1.0, 0.5, -1.0)
    many = jax.tree.map(lambda a: jnp.stack([s * a for s in scales]), case.params)
    mapped = jax.vmap(functools.partial(sample, case.apply), in_axes=(0, None))
    x = jax.jit(mapped)(many, jnp.float32(NOISE))
    assert x.shape == (3, 16, DIM)
    for row, scale in zip(x, scales, strict=True):
        weights = jax.tree.map(lambda a, scale=scale: scale * a, WEIGHTS)
        np.testing.assert_allclose(row, by_numpy(NOISE, weights), atol=1e-4)


def test_grad_by_weights(build, x64):
    """The derivative of a function of the samples, through all steps, against differences."""
    case = build(jnp.float64)

    def loss(params):
        return jnp.sum(sample(case.apply, params, jnp.asarray(NOISE)) ** 2)

    gradient = jax.jit(jax.grad(loss))(case.params)
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, case.params)))
    h = 1e-6
    up, down = (
        np.sum(by_numpy(NOISE, jax.tree.map(lambda a, f=f: f * a, WEIGHTS)) ** 2)
        for f in (1 + h, 1 - h)
    )
    np.testing.assert_allclose(along, (up - down) / (2 * h), rtol=1e-7)


def test_sharded_mesh(build):
    case = build()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    noise = jax.device_put(jnp.float32(NOISE), NamedSharding(mesh, PartitionSpec("data")))
    x = jax.jit(functools.partial(sample, case.apply))(case.params, noise)
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, DIM)}
    np.testing.assert_allclose(x, by_numpy(NOISE), atol=1e-4)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import HEADS, CosineSchedule, LinearLogsnrSchedule, output_channels
from pdistill.networks import Diffuser, DiT

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
LOGSNR = np.array([-4.0, -1.0, 0.5, 3.0], np.float32)
LABEL = np.array([0, 1, 2, 2], np.int32)
ALPHA, SIGMA = (np.sqrt(1 / (1 + np.exp(s * LOGSNR)))[:, None, None, None] for s in (-1, 1))


def diffuser(head="v", **options):
    network = DiT(output_channels(head, 1), features=8, depth=1, heads=2, **options)
    return Diffuser(network, head, CosineSchedule())


def random_params(diffuser):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: rng.normal(scale=0.3, size=a.shape).astype(a.dtype), diffuser.param_shapes(SHAPE)
    )


@pytest.mark.parametrize("head", HEADS)
def test_v_and_denoiser_read_the_output(head):
    model = diffuser(head, num_labels=3)
    params = random_params(model)

    @jax.jit
    def run(z, logsnr, label):
        output = model.network.apply({"params": params}, z, logsnr, label)
        v = model.v(params, z, logsnr, label)
        return output, v, model.denoiser(params, label)(z, logsnr)

    output, v, x = run(Z, LOGSNR, LABEL)
    assert v.dtype == x.dtype == jnp.float32
    assert v.shape == x.shape == Z.shape
    # x and v are one statement: x = alpha z - sigma v. Roundings of 6e-8 times 1 / alpha = 7.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    close(x, ALPHA * Z - SIGMA * v)
    close(ALPHA * x, Z * ALPHA**2 - SIGMA * ALPHA * v)
    desired_v = {
        "v": lambda: output,
        "x": lambda: (ALPHA * Z - output) / SIGMA,
        "eps": lambda: (output - SIGMA * Z) / ALPHA,
        "both": lambda: ALPHA * output[..., 1:] - SIGMA * output[..., :1],
    }
    close(v, desired_v[head]())


def test_label_is_closed_over():
    model = diffuser(num_labels=3)
    params = random_params(model)
    run = jax.jit(lambda z, logsnr, label: model.denoiser(params, label)(z, logsnr))
    run = functools.partial(run, Z, LOGSNR)
    assert model.num_labels == 3
    assert np.std(run(LABEL) - run(LABEL[::-1])) > 0.01
    np.testing.assert_allclose(run(None), run(np.full(4, 3, np.int32)), rtol=0, atol=1e-6)


def test_labels_are_dropped_for_a_network_without():
    model = diffuser()
    params = random_params(model)
    assert model.num_labels == 0
    run = functools.partial(jax.jit(model.v), params, Z, LOGSNR)
    np.testing.assert_array_equal(run(LABEL), run(None))


def test_dropout_needs_its_key():
    model, plain = diffuser(dropout=0.5), diffuser()
    params = random_params(plain)
    run = functools.partial(jax.jit(model.v), params, Z, LOGSNR)
    desired = jax.jit(plain.v)(params, Z, LOGSNR)
    np.testing.assert_allclose(run(dropout_key=None), desired, rtol=0, atol=1e-6)
    one, again, other = (run(dropout_key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.std(one - other) > 0.01


def test_param_shapes_are_those_of_init():
    model = diffuser(num_labels=3)
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), SHAPE)
    shapes = model.param_shapes(SHAPE)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), shapes
    )


def test_equal_diffusers_are_one_static_argument():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def f(diffuser, x):
        traces.append(diffuser)
        return x

    for _ in range(2):
        f(diffuser("x", num_labels=3, dtype=jnp.bfloat16), 0.0)
    assert len(traces) == 1
    other = Diffuser(diffuser().network, "v", LinearLogsnrSchedule())
    assert other != diffuser()

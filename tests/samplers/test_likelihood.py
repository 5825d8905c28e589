"""Likelihood by the probability flow: Gaussians in closed form, mixtures, and their scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    GaussianMixture,
    KarrasSchedule,
    RectifiedFlow,
)
from pdistill.samplers import bits_per_dim, log_likelihood

run = jax.jit(log_likelihood, static_argnums=0, static_argnames=("schedule", "num_steps"))
X = np.random.default_rng(0).normal(0.3, 0.5, (5, 2, 3))


@pytest.mark.parametrize(
    ("schedule", "error"),
    [(CosineSchedule(), 1e-4), (CosineSchedule(-20.0, 2.0), 1e-4), (KarrasSchedule(), 0.03)],
)
def test_a_gaussian(x64, schedule, error):
    """The density with the noise of the data's end.

    At sigma / alpha = 80 the mean of z_1 is 0.3 / 80, not the 0 that it is taken for: that moves
    the logarithm of each of six elements by 0.004 z.
    """
    actual = run(Gaussian(0.3, 0.5).denoise, X, schedule=schedule)
    std = np.hypot(0.5, np.exp(-schedule(0.0) / 2))
    desired = stats.norm(0.3, std).logpdf(X).sum((1, 2))
    np.testing.assert_allclose(actual, desired, rtol=0, atol=error)
    bits = -desired / (6 * np.log(2)) + np.log2(127.5)
    np.testing.assert_allclose(bits_per_dim(actual, 6), bits, rtol=error)


@pytest.mark.parametrize("schedule", [CosineSchedule(-60.0, 15.0), RectifiedFlow()], ids=str)
def test_schedules_whose_ends_are_beyond_float32s_angles(schedule):
    """There pi/2 minus the angle is less than half an ulp of pi/2, or sigma than one of x."""
    x = jnp.asarray(X, jnp.float32)
    actual = run(Gaussian(0.3, 0.5).denoise, x, schedule=schedule)
    desired = stats.norm(0.3, 0.5).logpdf(X).sum((1, 2))
    np.testing.assert_allclose(actual, desired, rtol=0, atol=5e-3)


def test_a_uniform_image_needs_eight_bits():
    """Uniform on [-1 - 1/255, 1 + 1/255]: each of 256 levels is as likely as any."""
    log_density = -np.log(2 * 256 / 255)
    np.testing.assert_allclose(bits_per_dim(jnp.array(10 * log_density), 10), 8, rtol=1e-6)


def test_the_order_of_the_solver(x64):
    """A mixture in two dimensions, where nothing is linear: fourth order."""
    mixture = GaussianMixture(
        np.array([0.4, 0.6]), np.array([[-0.5, 0.2], [0.6, -0.3]]), np.array([0.3, 0.4])
    )
    x = np.random.default_rng(1).normal(0, 0.6, (6, 2))
    densities = [
        w * stats.multivariate_normal(m, s**2).pdf(x)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.stds, strict=True)
    ]
    desired = np.log(sum(densities))
    errors = [
        np.abs(run(mixture.denoise, x, schedule=CosineSchedule(), num_steps=n) - desired).max()
        for n in (8, 32)
    ]
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] > 4**3.3


def test_hutchinson_is_unbiased(x64):
    """Elements that depend on each other: the probes' mean is the exact one."""
    mix = np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.5], [0.3, 0.0, 0.7]])
    covariance = mix @ mix.T

    def denoise(z, logsnr):
        """Of N(0, covariance)."""
        a = jax.nn.sigmoid(logsnr)[:, None, None]
        noisy = a * covariance[None] + (1 - a) * np.eye(3)[None]
        gain = jnp.sqrt(a) * covariance[None] @ jnp.linalg.inv(noisy)
        return jnp.einsum("bij,bj->bi", gain, z)

    x = np.random.default_rng(2).normal(size=(1, 3)) @ mix.T
    desired = stats.multivariate_normal(np.zeros(3), covariance).logpdf(x)
    options = {"schedule": CosineSchedule(), "num_steps": 32}
    exact = run(denoise, x, **options)
    np.testing.assert_allclose(exact, desired, atol=1e-4)
    probes = run(denoise, np.repeat(x, 4000, 0), **options, key=jax.random.key(0))
    assert np.std(probes) > 0.1
    np.testing.assert_allclose(np.mean(probes), desired, atol=4 * np.std(probes) / np.sqrt(4000))


def test_it_does_not_use_one_example_for_another(x64):
    run_one = functools.partial(run, Gaussian(0.3, 0.5).denoise, schedule=CosineSchedule())
    np.testing.assert_allclose(run_one(X)[2:3], run_one(X[2:3]), rtol=1e-12)


def test_numbers_of_steps(x64):
    """One is enough, none is not, and 64 are taken if nothing is said."""
    denoise, how = Gaussian(0.3, 0.5).denoise, {"schedule": CosineSchedule()}
    one = run(denoise, X, num_steps=1, **how)
    assert np.isfinite(one).all()
    count = jnp.array(1)
    again = jax.jit(lambda x: log_likelihood(denoise, x, num_steps=count, **how))(X)
    np.testing.assert_allclose(again, one, rtol=1e-12)
    np.testing.assert_array_equal(run(denoise, X, **how), run(denoise, X, num_steps=64, **how))
    for wrong in (0, 2.5):  # the noisiest time of 2.5 steps would be 1.2
        with pytest.raises(ValueError, match=f"num_steps must be at least 1; got {wrong}"):
            log_likelihood(denoise, X, num_steps=wrong, **how)


def test_a_wider_denoiser_does_not_make_it_so(x64):
    how = {"schedule": CosineSchedule(), "num_steps": 1}
    with jax.numpy_dtype_promotion("standard"):
        wide = lambda z, logsnr: 0.5 * z.astype(jnp.float64)  # noqa: E731
        found = jax.eval_shape(lambda x: log_likelihood(wide, x, **how), X.astype(np.float32))
    assert found.dtype == jnp.float32


def test_half_precision_is_integrated_in_float32():
    x = jnp.asarray(X, jnp.bfloat16)
    found = run(Gaussian(0.3, 0.5).denoise, x, schedule=CosineSchedule())
    assert found.dtype == jnp.float32
    exact = run(Gaussian(0.3, 0.5).denoise, x.astype(jnp.float32), schedule=CosineSchedule())
    np.testing.assert_array_equal(found, exact)

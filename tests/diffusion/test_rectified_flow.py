"""Rectified flows in our coordinate: x_t = (1 - t) x + t eps, u = eps - x."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import diffusion, samplers
from pdistill.diffusion import Gaussian, RectifiedFlow, alpha_sigma
from pdistill.networks.embeddings import logsnr_waves

DATA = Gaussian(mean=0.3, std=0.7)


def flow_velocity(x_t, tau):
    """E[eps - x | x_t] of the same data, by the flow's own formula."""
    variance = (1 - tau) ** 2 * DATA.std**2 + tau**2
    rest = x_t - (1 - tau) * DATA.mean
    x_hat = DATA.mean + (1 - tau) * DATA.std**2 / variance * rest
    return tau / variance * rest - x_hat


@pytest.mark.parametrize(
    ("tau", "logsnr", "n", "velocity", "v"),
    [
        (0.1, 4.39444915, 0.90553851, -0.74416319, 0.03289334),
        (0.5, 0.0, 0.70710678, 0.14496644, 0.10250675),
        (0.9, -4.39444915, 0.90553851, 0.50411093, -0.25026990),
    ],
)
def test_goldens(x64, tau, logsnr, n, velocity, v):
    """The flow's image .8 of N(.3, .7^2), n = sqrt((1 - tau)^2 + tau^2)."""
    found = RectifiedFlow()(jnp.array([tau]))
    np.testing.assert_allclose(found, logsnr, atol=1e-8)
    alpha, sigma = alpha_sigma(found)
    np.testing.assert_allclose(1 / (alpha + sigma), n, atol=1e-8)
    z = 0.8 * (alpha + sigma)
    exact = diffusion.v_from_x(z, DATA.denoise(z, found), found)
    np.testing.assert_allclose(exact, v, atol=1e-8)
    np.testing.assert_allclose(diffusion.velocity_from_v(z, exact, found), velocity, atol=1e-8)
    np.testing.assert_allclose(flow_velocity(0.8, tau), velocity, atol=1e-8)


@pytest.mark.parametrize(
    ("shift", "shifted"),
    [
        (3.0, (0.5, 0.75, 0.9)),
        (np.exp(0.5), (0.354661, 0.622459, 0.831824)),  # FLUX of 256 pixels
        (np.exp(1.15), (0.512844, 0.759511, 0.904531)),  # of 1024
    ],
)
def test_shifts(x64, shift, shifted):
    alpha, sigma = alpha_sigma(RectifiedFlow(float(shift))(jnp.array([0.25, 0.5, 0.75])))
    np.testing.assert_allclose(sigma / (alpha + sigma), shifted, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_is_euler_of_the_flow(x64, shift):
    noise = np.random.default_rng(0).standard_normal((5, 2))
    t = np.arange(7, -1, -1) / 7
    tau = shift * t / (1 + (shift - 1) * t)
    path = [noise]
    for now, then in itertools.pairwise(tau):
        path.append(path[-1] - (now - then) * flow_velocity(path[-1], now))
    x, trajectory = samplers.sample(
        DATA.denoise, None, schedule=RectifiedFlow(shift), num_steps=7, z_init=noise,
        return_trajectory=True,
    )  # fmt: skip
    np.testing.assert_allclose(x, path[-1], rtol=0, atol=1e-12)
    alpha, sigma = alpha_sigma(RectifiedFlow(shift)(t))
    ours = trajectory / (alpha + sigma)[:, None, None]
    np.testing.assert_allclose(ours, path, rtol=0, atol=1e-12)


def test_ends_in_float32():
    """At tau = 0 and 1 all is finite, and what float64 has in the limit."""
    rng = np.random.default_rng(0)
    x, eps = rng.standard_normal((2, 2, 50)).astype(np.float32)
    logsnr = RectifiedFlow(3.0)(jnp.array([0.0, 1.0]))
    assert logsnr.dtype == jnp.float32
    assert np.isfinite(logsnr).all()
    z, v, u = np.stack([x[0], eps[1]]), np.stack([eps[0], -x[1]]), eps - x  # the limits

    def same(actual, desired):
        np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-6)

    same(diffusion.diffuse(x, eps, logsnr), z)
    same(diffusion.v_target(x, eps, logsnr), v)
    for name, given, desired in (
        ("x_from_v", v, x),
        ("eps_from_v", v, eps),
        ("velocity_from_v", v, u),
        ("x_from_velocity", u, x),
        ("eps_from_velocity", u, eps),
        ("v_from_velocity", u, v),
    ):
        same(getattr(diffusion, name)(z, given, logsnr), desired)
    same(diffusion.angle(logsnr), [0.0, np.pi / 2])
    assert np.isfinite(logsnr_waves(logsnr, 8)).all()
    same(diffusion.logsnr_of_angle(diffusion.angle(logsnr))[:1], logsnr[:1])
    # The first step of Euler goes to the mean, on from the noise alone.
    step = samplers.sample(
        DATA.denoise, None, schedule=RectifiedFlow(3.0), times=(1.0, 0.5), z_init=eps,
        last_step_is_x_hat=False,
    )  # fmt: skip
    tau = 3 * 0.5 / (1 + 2 * 0.5)
    x_t = tau * eps + (1 - tau) * DATA.mean
    same(step, x_t / np.hypot(tau, 1 - tau))

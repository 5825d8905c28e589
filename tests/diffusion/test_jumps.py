"""Jumps as papers write them, each on its own line, against the one that all of them are here.

For Gaussian data, whose exact map is known. NumPy in float64, with EDM's x of noise sigma and
rectified flow's (1 - tau) x + tau eps.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill import diffusion, samplers
from pdistill.diffusion import CosineSchedule, Gaussian
from pdistill.networks import NOTHING, Network
from pdistill.networks.published.conventions import Edm

DATA, D = Gaussian(mean=0.3, std=0.7), 0.5  # D is EDM's sigma_data
RNG = np.random.default_rng(0)
T, S = np.array([-9.0, -3.0, 0.0, 2.0, 6.0]), np.array([-8.0, 9.0, 0.1, 2.001, 6.5])
Z = RNG.normal(size=(5, 3))


def amplitudes(logsnr):
    return (np.sqrt(1 / (1 + np.exp(sign * logsnr)))[:, None] for sign in (-1, 1))


def line(logsnr):
    """tau [B, 1] of a rectified flow, and the scale of its noisy image to ours."""
    alpha, sigma = amplitudes(logsnr)
    return sigma / (alpha + sigma), 1 / (alpha + sigma)


def circle(z, output, t, s):
    phi_t, phi_s = (np.arctan(np.exp(-a / 2))[:, None] for a in (t, s))
    return np.cos(phi_t - phi_s) * z - np.sin(phi_t - phi_s) * output


def mean_flow(z, u, t, s):
    """Geng et al. 2025, eq. 12: z_r = z_t - (t - r) u."""
    (tau_t, scale_t), (tau_s, scale_s) = line(t), line(s)
    return (scale_t * z - (tau_t - tau_s) * u) / scale_s


def trajectory(z, g, t, s):
    """Kim et al. 2023, eq. 4: G(x, t, s) = s / t x + (1 - s / t) g."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = amplitudes(t), amplitudes(s)
    ratio = sigma_s / alpha_s / (sigma_t / alpha_t)
    return alpha_s * (ratio * z / alpha_t + (1 - ratio) * g)


def preconditioned(z, f, t, s):
    """The same of g = c_skip x + c_out F (Karras et al. 2022, Table 1)."""
    alpha, sigma = amplitudes(t)
    noise = sigma / alpha
    skip, out = D**2 / (noise**2 + D**2), noise * D / np.sqrt(noise**2 + D**2)
    return trajectory(z, skip * z / alpha + out * f, t, s)


def of_edm(z, output, t):
    return Edm(D).leave(z, t, output)


FORMS = {
    "circle": (circle, functools.partial(diffusion.v_from_output, "v")),
    "mean_flow": (mean_flow, functools.partial(diffusion.v_from_output, "velocity")),
    "trajectory": (trajectory, functools.partial(diffusion.v_from_output, "x")),
    "preconditioned": (preconditioned, of_edm),
}


def output_of(form, z, end, t, s):
    """What the form's network must say to jump from z to `end`; a form is affine in it."""
    start = form(z, np.zeros_like(z), t, s)
    return (end - start) / (form(z, np.ones_like(z), t, s) - start)


@pytest.mark.parametrize("name", FORMS)
def test_a_papers_jump_is_ours_with_the_v_of_its_output(x64, name):
    """It takes the exact output along the exact map; so does any output both ways alike."""
    form, v_of = FORMS[name]
    end = np.asarray(DATA.flow(jnp.asarray(Z), jnp.asarray(T), jnp.asarray(S)))
    exact = output_of(form, Z, end, T, S)
    for output in (exact, RNG.normal(size=Z.shape)):
        found = diffusion.jump(Z, v_of(Z, output, T), T, S)
        np.testing.assert_allclose(found, form(Z, output, T, S), rtol=0, atol=1e-11)
    np.testing.assert_allclose(diffusion.jump(Z, v_of(Z, exact, T), T, S), end, atol=1e-11)


@pytest.mark.parametrize("name", FORMS)
def test_a_papers_jump_of_no_length_is_its_velocity(x64, name):
    """Its limit is reached without 0 / 0: v, which is also how G leaves z, and finite slopes."""
    form, v_of = FORMS[name]
    near = T + 1e-7
    short = np.asarray(DATA.flow(jnp.asarray(Z), jnp.asarray(T), jnp.asarray(near)))
    limit = jnp.asarray(output_of(form, Z, short, T, near))
    v = diffusion.v_from_x(Z, DATA.denoise(jnp.asarray(Z), jnp.asarray(T)), T)
    np.testing.assert_allclose(v_of(Z, limit, T), v, rtol=0, atol=1e-6)
    phi = diffusion.angle(jnp.asarray(T))

    def end(phi_s):
        return diffusion.jump(Z, v_of(Z, limit, T), T, diffusion.logsnr_of_angle(phi_s))

    at, slope = jax.jvp(end, (phi,), (jnp.ones(5),))
    np.testing.assert_allclose(at, Z, atol=1e-12)
    np.testing.assert_allclose(slope, v_of(Z, limit, T), atol=1e-10)
    read = lambda z, phi: v_of(z, limit, diffusion.logsnr_of_angle(phi))  # noqa: E731
    _, slope = jax.jvp(read, (jnp.asarray(Z), phi), (v, jnp.ones(5)))
    assert np.isfinite(slope).all()


class Average(nn.Module):
    """Some average velocity u on rectified flow's line, of the image there and two times."""

    target: bool = True

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        tau, r = (jax.nn.sigmoid(-a / 2)[:, None] for a in (logsnr, told.target))
        return jnp.sin(2 * z * jnp.hypot(1 - tau, tau) + tau) * jnp.cos(r)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_mean_flows_sampler(x64, num_steps):
    """Their loop: z -= (t - r) u(z, r, t), with times that fall from 1 to 0."""
    schedule = CosineSchedule(-16.0, 16.0)
    network = Network({}, module=Average(), head="velocity", schedule=schedule, shape=(3,))
    found = samplers.sample(
        network.jump, None, z_init=jnp.asarray(Z), schedule=schedule, num_steps=num_steps,
        solver="gamma",
    )  # fmt: skip
    levels = schedule(jnp.arange(num_steps, -1, -1) / num_steps)
    times = 1 / (1 + np.exp(np.asarray(levels) / 2))
    z = Z * np.hypot(1 - times[0], times[0])
    for t, r in itertools.pairwise(times):
        z = z - (t - r) * np.sin(2 * z + t) * np.cos(r)
    z = z / np.hypot(1 - times[-1], times[-1])
    np.testing.assert_allclose(found, z, rtol=0, atol=1e-11)

"""Against the preconditioning of Karras et al. 2022, Table 1, in float64 and in s."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import diffusion
from pdistill.diffusion import DdpmSchedule, LinearBetaSchedule, alpha_sigma
from pdistill.networks.published.conventions import (
    CONVENTIONS,
    Ddpm,
    Edm,
    Flow,
    Ve,
    Vp,
    describe_convention,
    parse_convention,
)

S = np.array([0.002, 0.05, 0.5, 1.0, 7.0, 80.0])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2, 2, 1)) * S[:, None, None, None]  # EDM's noisy images
F = RNG.normal(size=(6, 2, 2, 1))


def table_1(name):
    """c_skip, c_out, c_in, c_noise at S."""
    if name == "edm":
        d = 0.4
        r = np.sqrt(S**2 + d**2)
        return d**2 / r**2, S * d / r, 1 / r, np.log(S) / 4
    if name == "vp":
        t = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(S**2)) - 0.1) / 19.9
        return np.ones(6), -S, 1 / np.sqrt(1 + S**2), 999 * t
    return np.ones(6), S, np.ones(6), np.log(S / 2)


@pytest.mark.parametrize("convention", [Edm(0.4), Vp(), Ve()], ids=lambda c: c.name)
def test_preconditioning(x64, convention):
    skip, out, scale, noise = (a.reshape(6, 1, 1, 1) for a in table_1(convention.name))
    logsnr = -2 * jnp.log(S)
    z = X / np.sqrt(1 + S**2).reshape(6, 1, 1, 1)
    given, time = convention.enter(z, logsnr)
    np.testing.assert_allclose(given, scale * X, rtol=1e-12)
    np.testing.assert_allclose(time, noise.ravel(), rtol=1e-12, atol=1e-12)
    output = convention.leave(z, logsnr, F)
    denoised = diffusion.x_from_output(convention.head, z, output, logsnr)
    np.testing.assert_allclose(denoised, skip * X + out * F, rtol=1e-9, atol=1e-12)
    v = diffusion.v_from_output(convention.head, z, output, logsnr)
    np.testing.assert_allclose(v, diffusion.v_from_x(z, denoised, logsnr), rtol=1e-6)


def test_flow(x64):
    """At z = t x + (1 - t) eps, x - eps is given and x is known."""
    t = 1 / (1 + S)
    x, eps = X, F
    axes = (slice(None), None, None, None)
    flowing = t[axes] * x + (1 - t[axes]) * eps
    logsnr, z = -2 * jnp.log(S), flowing / np.hypot(t, 1 - t)[axes]
    given, time = Flow().enter(z, logsnr)
    np.testing.assert_allclose(given, flowing, rtol=1e-12)
    np.testing.assert_allclose(time, t, rtol=1e-12)
    output = Flow().leave(z, logsnr, x - eps)
    denoised = diffusion.x_from_output(Flow().head, z, output, logsnr)
    np.testing.assert_allclose(denoised, x, atol=1e-12)


def test_data_of_scale_one_are_v(x64):
    logsnr = jnp.linspace(-10.0, 10.0, 6)
    given, _ = Edm(1.0).enter(X, logsnr)
    np.testing.assert_allclose(given, X)
    np.testing.assert_allclose(Edm(1.0).leave(X, logsnr, F), -F)


def test_v_of_edm_keeps_its_digits_in_float32():
    """At s = 0.002 (alpha z - D) / sigma would keep four."""
    logsnr = jnp.asarray(-2 * np.log(S), jnp.float32)
    alpha, _ = alpha_sigma(-2 * np.log(S))
    z = X * np.asarray(alpha).reshape(6, 1, 1, 1)
    d = 0.5
    r = np.sqrt(S**2 + d**2).reshape(6, 1, 1, 1)
    s = S.reshape(6, 1, 1, 1)
    exact = s * (1 - d**2) / r**2 * z - d * np.sqrt(1 + s**2) / r * F
    v = Edm(d).leave(jnp.float32(z), logsnr, jnp.float32(F))
    np.testing.assert_allclose(v, exact, rtol=1e-5, atol=1e-6)


def test_times_of_vp_and_ddpm_are_their_schedules(x64):
    t = jnp.linspace(0.01, 1.0, 100)
    schedule = LinearBetaSchedule(0.1, 20.0, 1e-5)
    _, time = Vp().enter(jnp.zeros((100, 1)), schedule(t))
    np.testing.assert_allclose(time, 999 * (1e-5 + (1 - 1e-5) * t), rtol=1e-9)
    ddpm = Ddpm("v", "cosine", num=100)
    _, step = ddpm.enter(jnp.zeros((100, 1)), ddpm.schedule(t))
    np.testing.assert_allclose(step, np.arange(100), atol=1e-9)
    assert ddpm.head == "v"
    assert Ddpm().schedule == DdpmSchedule("linear", 1e-4, 0.02, 1000)  # Ho et al. 2020


def test_specifications():
    for convention in (Edm(0.4), Vp(0.2, 9.0, 99.0), Ve(), Ddpm("x", "cosine", num=50), Flow()):
        spec = describe_convention(convention)
        assert spec[0] in CONVENTIONS
        assert parse_convention(spec) == convention
    with pytest.raises(ValueError, match=r"convention must be one of edm, .*; got 'edn'"):
        parse_convention(("edn",))
    with pytest.raises(ValueError, match="convention 've' has no 1 attributes"):
        parse_convention(("ve", 0.5))

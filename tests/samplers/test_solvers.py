import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import CosineSchedule, Gaussian, alpha_sigma, angle
from pdistill.samplers import (
    SOLVERS,
    Ancestral,
    Cascade,
    Ddim,
    DpmSolverPP2M,
    Gamma,
    Heun,
    Multistep,
    OneStep,
    Solver,
    Stochastic,
    check_steps,
    ddim_step,
    heun_step,
    num_evaluations,
    sample,
)

DETERMINISTIC = [Ddim(), Heun(), DpmSolverPP2M()]
KEY = jax.random.key(0)


def step(solver, z, x_hat, logsnr_t, logsnr_s, key=None):
    """The first step of a solver that needs no further evaluation."""
    return solver.step(None, z, x_hat, logsnr_t, logsnr_s, key, solver.init(z, None, 1))[0]


def coefficients(solver, logsnr_t, logsnr_s, dtype=np.float64):
    """Of z, x_hat and noise in a step, which is linear in all three."""
    zero, large = jnp.zeros((1, 1), dtype), jnp.full((1, 1), 2**20, dtype)  # so noise rounds away
    noise = step(solver, zero, zero, logsnr_t, logsnr_s, KEY)
    of_z = (step(solver, large, zero, logsnr_t, logsnr_s, KEY) - noise) / large
    of_x = (step(solver, zero, large, logsnr_t, logsnr_s, KEY) - noise) / large
    return jnp.stack([of_z, of_x, noise / jax.random.normal(KEY, (1, 1), dtype)]).ravel()


@pytest.fixture
def random_pairs(x64):
    """z, x_hat [1000, 1] and two noise levels [1000, 1], in either order."""
    rng = np.random.default_rng(0)
    return *rng.normal(size=(2, 1000, 1)), *rng.uniform(-10, 10, (2, 1000, 1))


def test_ddim_is_a_rotation(random_pairs):
    z, x_hat, logsnr_t, logsnr_s = random_pairs
    alpha, sigma = alpha_sigma(logsnr_t)
    v_hat = (alpha * z - x_hat) / sigma
    delta = angle(logsnr_t) - angle(logsnr_s)
    desired = np.cos(delta) * z - np.sin(delta) * v_hat
    # v_hat reaches 150 / 7e-3.
    np.testing.assert_allclose(ddim_step(*random_pairs), desired, rtol=0, atol=1e-11)


def test_ddim_is_signal_plus_noise(random_pairs):
    z, x_hat, logsnr_t, logsnr_s = random_pairs
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    desired = alpha_s * x_hat + sigma_s * (z - alpha_t * x_hat) / sigma_t
    np.testing.assert_allclose(ddim_step(*random_pairs), desired, rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", [Ddim(), DpmSolverPP2M()], ids=str)
def test_substeps_with_one_x_hat_compose(x64, solver):
    z, x_hat = np.random.default_rng(0).normal(size=(2, 4, 3))
    levels = [-20.0, -7.5, -7.0, 0.1, 6.0, 20.0]
    end, memory = z, solver.init(z, None, 1)
    for logsnr_t, logsnr_s in itertools.pairwise(levels):
        end, memory = solver.step(None, end, x_hat, logsnr_t, logsnr_s, None, memory)
    whole = step(solver, z, x_hat, levels[0], levels[-1])
    np.testing.assert_allclose(end, whole, rtol=0, atol=1e-13)


def test_ddim_gain_on_a_gaussian(random_pairs):
    z, _, logsnr_t, logsnr_s = random_pairs
    x_hat = Gaussian(0.0, 0.4).denoise(z, logsnr_t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
    variance_t = 0.16 * alpha_t**2 + sigma_t**2
    gain = (0.16 * alpha_s * alpha_t + sigma_s * sigma_t) / variance_t
    actual = ddim_step(z, x_hat, logsnr_t, logsnr_s)
    np.testing.assert_allclose(actual, gain * z, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), [(-3.0, 2.0), (2.0, -3.0), (-20.0, 20.0)])
def test_heun_on_a_gaussian(x64, logsnr_t, logsnr_s):
    """v = z d log S / dphi there, so the trapezoid is a number."""
    model, z = Gaussian(0.0, 0.4), np.array([[1.0], [-2.0]])
    phi_t, phi_s = (np.arctan(np.exp(-l / 2)) for l in (logsnr_t, logsnr_s))

    def slope(phi):
        return (
            (1 - 0.16) * np.sin(phi) * np.cos(phi) / ((0.4 * np.cos(phi)) ** 2 + np.sin(phi) ** 2)
        )

    h = phi_s - phi_t
    gain = 1 + h / 2 * (slope(phi_t) + slope(phi_s) * (1 + h * slope(phi_t)))
    x_hat = model.denoise(z, np.full(2, logsnr_t))
    actual, _ = Heun().step(model.denoise, z, x_hat, logsnr_t, logsnr_s, None, ())
    # At logsnr 20, v divides by sigma = 5e-5.
    np.testing.assert_allclose(actual, gain * z, rtol=1e-10)


@pytest.mark.parametrize("name", [n for n, make in SOLVERS.items() if make.model == "denoiser"])
def test_a_denoiser_is_told_a_level_for_each_image(name):
    def denoise(z, logsnr):
        assert logsnr.shape == (5,)
        return 0.5 * z

    sample(denoise, KEY, (5, 2), schedule=CosineSchedule(), num_steps=3, solver=name)


def test_heuns_step_in_variance_exploding_coordinates(x64):
    """Karras et al. 2022, algorithm 1: y = z / alpha on the slope eps = (y - x_hat) / tau."""
    model, z = Gaussian(0.3, 0.4), np.array([[1.0], [-2.0]])
    t, s = np.array([-2.0, 1.0]), np.array([0.5, 1.5])
    tau_t, tau_s = np.exp(-t / 2)[:, None], np.exp(-s / 2)[:, None]

    def slope(y, tau):
        return (y - (0.3 + 0.16 / (0.16 + tau**2) * (y - 0.3))) / tau

    y = z * np.hypot(1, tau_t)
    euler = y + (tau_s - tau_t) * slope(y, tau_t)
    y = y + (tau_s - tau_t) * (slope(y, tau_t) + slope(euler, tau_s)) / 2
    np.testing.assert_allclose(
        heun_step(model.denoise, z, t, s), y / np.hypot(1, tau_s), rtol=1e-12
    )


def test_dpm_solver_is_algorithm_2(x64):
    """Lu et al. 2022, with their lambda = logsnr / 2 and r the ratio of successive steps."""
    lambdas = np.array([-4.0, -2.5, -2.0, 0.5, 3.0])
    alphas, sigmas = 1 / np.sqrt(1 + np.exp(-2 * lambdas)), 1 / np.sqrt(1 + np.exp(2 * lambdas))

    def denoise(z, logsnr):
        return np.tanh(1.3 * np.asarray(z) + 0.1 * logsnr)

    solver = DpmSolverPP2M()
    actual = desired = np.array([[0.5], [-1.5]])
    memory, x_hats, h = solver.init(actual, None, 1), [], np.diff(lambdas)
    for i in range(4):
        t, s = 2 * lambdas[i : i + 2]
        actual, memory = solver.step(None, actual, denoise(actual, t), t, s, None, memory)
        x_hats.append(denoise(desired, t))
        ahead = x_hats[0]
        if i > 0:
            r = h[i - 1] / h[i]
            ahead = (1 + 1 / (2 * r)) * x_hats[i] - x_hats[i - 1] / (2 * r)
        ratio = sigmas[i + 1] / sigmas[i]
        desired = ratio * desired - alphas[i + 1] * np.expm1(-h[i]) * ahead
        np.testing.assert_allclose(actual, desired, rtol=1e-12)


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("logsnr", [-20.0, 0.0, 20.0])
def test_a_step_of_no_length_stays(x64, solver, logsnr):
    z = np.array([[0.5], [-1.5]])
    x_hat = np.tanh(z)
    actual, _ = solver.step(
        lambda z, _: jnp.tanh(z), z, x_hat, logsnr, logsnr, None, solver.init(z, None, 1)
    )
    np.testing.assert_array_equal(actual, z)


@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), [(-20.0, -6.0), (-1.0, -0.9), (1.0, 5.0)])
@pytest.mark.parametrize("variance", ["small", "large", "medium:0.3"])
def test_ancestral_is_the_posterior_given_x(x64, logsnr_t, logsnr_s, variance):
    """Bayes' rule for z_t = (alpha_t / alpha_s) z_s + noise of variance "large"."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (1 / np.sqrt(1 + np.exp(-l)), 1 / np.sqrt(1 + np.exp(l))) for l in (logsnr_t, logsnr_s)
    )
    large = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    precision = 1 / sigma_s**2 + (alpha_t / alpha_s) ** 2 / large
    small = 1 / precision
    noise = {"small": small, "large": large, "medium:0.3": large**0.3 * small**0.7}[variance]
    desired = [
        small * alpha_t / alpha_s / large,  # weight of the evidence z_t ...
        small * alpha_s / sigma_s**2,  # ... and of the prior mean alpha_s x
        np.sqrt(noise),
    ]
    np.testing.assert_allclose(
        coefficients(Ancestral(variance), logsnr_t, logsnr_s), desired, rtol=1e-10
    )


@pytest.mark.parametrize(("fraction", "end"), [("0", "small"), ("1", "large"), ("1.0", "large")])
def test_medium_reaches_small_and_large(fraction, end):
    z, x_hat = jax.random.normal(KEY, (2, 4, 3))
    actual, desired = (
        step(Ancestral(variance), z, x_hat, -1.0, 0.5, KEY)
        for variance in (f"medium:{fraction}", end)
    )
    np.testing.assert_array_equal(actual, desired)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def ancestral_std(variance, num_steps, std):
    """Standard deviation of the samples for N(0, std^2) data, from the steps' own coefficients.

    With the optimal denoiser x_hat = k z, every step is linear, so the variance is a recursion.
    """
    logsnr = CosineSchedule()(np.arange(num_steps, -1, -1.0) / num_steps)
    gains = jnp.diagonal(Gaussian(0.0, std).denoise(jnp.eye(num_steps), logsnr[:-1]))

    def recur(total, inputs):
        k, logsnr_t, logsnr_s = inputs
        of_z, of_x, of_noise = coefficients(Ancestral(variance), logsnr_t, logsnr_s)
        return (of_z + of_x * k) ** 2 * total + of_noise**2, None

    steps = (gains[:-1], logsnr[:-2], logsnr[1:-1])
    total, _ = jax.lax.scan(recur, jnp.ones(()), steps)
    return gains[-1] * jnp.sqrt(total)  # the last step returns x_hat


@pytest.mark.parametrize(
    ("variance", "stds"),
    [
        ("small", (0.286758, 0.375546, 0.398150)),
        ("medium:0.5", (0.345827, 0.390499, 0.399315)),
        ("large", (0.426335, 0.407446, 0.400503)),
    ],
)
def test_ancestral_golden_values(x64, variance, stds):
    """docs/methods/progressive.md, T7."""
    actual = [ancestral_std(variance, num_steps, 0.4) for num_steps in (8, 64, 1024)]
    np.testing.assert_allclose(actual, stds, rtol=0, atol=6e-7)  # given to six places


@pytest.mark.parametrize("num_steps", [2, 8, 64])
def test_large_is_exact_for_unit_variance(x64, num_steps):
    # All that is lost is the posterior's spread at the last step. The ends are trimmed by 5e-5.
    actual = ancestral_std("large", num_steps, 1.0)
    np.testing.assert_allclose(actual, np.cos(np.pi / (2 * num_steps)), rtol=0, atol=1e-4)


def test_small_is_exact_for_a_point(x64):
    """z_s = sigma_s noise exactly, whatever the step; 'large' has too much noise."""
    logsnr_t, logsnr_s = -2.0, 3.0
    _, sigma_t = alpha_sigma(logsnr_t)
    _, sigma_s = alpha_sigma(logsnr_s)
    of_z, _, of_noise = coefficients(Ancestral("small"), logsnr_t, logsnr_s)
    np.testing.assert_allclose(np.hypot(of_z * sigma_t, of_noise), sigma_s, rtol=1e-13)


@pytest.mark.parametrize("solver", [Ddim(), Ancestral("small"), Ancestral("large")], ids=str)
@pytest.mark.parametrize("logsnr_t", [-5.0, 0.0, 5.0])
def test_short_steps_keep_their_digits_in_float32(x64, solver, logsnr_t):
    """Coefficients of order h = 2^-14 would lose three digits if they were differences."""
    logsnr_s = logsnr_t + 2**-14
    exact = coefficients(solver, logsnr_t, logsnr_s)
    single = coefficients(solver, np.float32(logsnr_t), np.float32(logsnr_s), np.float32)
    np.testing.assert_allclose(single, exact, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "cascade"])
def test_solvers_are_values(name):
    """Equal solvers share one compilation when passed as a static argument."""
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(solver, z):
        traces.append(solver)
        return solver.init(z, jnp.zeros(()), 2), z

    first, second = SOLVERS[name](), SOLVERS[name]()
    assert first == second
    assert first.name == name
    for solver in (first, second):
        run(solver, jnp.ones((1, 1)))
    assert len(traces) == 1
    assert first not in [make() for other, make in SOLVERS.items() if other != name]


def test_variances_are_told_apart():
    assert Ancestral() == Ancestral("large")
    assert len({Ancestral("small"), Ancestral("large"), Ancestral("medium:0.5")}) == 3


@pytest.mark.parametrize(
    "variance", ["", "medium", "medium:", "medium:1.5", "medium:-0.1", "medium:x", "larger", "0.5"]
)
def test_bad_variance(variance):
    with pytest.raises(ValueError, match="variance must be 'small', 'large' or 'medium:F'"):
        Ancestral(variance)


def test_multistep_denoises_and_adds_noise_of_the_next_level(x64):
    solver = Multistep((-5.0, 0.0, 3.0))
    assert solver.max_steps == 3
    for num_steps, levels in ((2, [-5, 0, 7]), (3, [-5, 0, 3, 7])):
        np.testing.assert_allclose(solver.grid(lambda t: 7 + t, num_steps, np.float64), levels)
    x_hat = np.full((50_000, 1), 0.5)
    alpha, sigma = alpha_sigma(0.0)
    z = step(solver, np.zeros_like(x_hat), x_hat, -5.0, 0.0, KEY)
    # Five standard errors of 50,000 draws.
    np.testing.assert_allclose([z.mean(), z.std()], [0.5 * alpha, sigma], atol=0.022 * sigma)
    with pytest.raises(ValueError, match="key may be None only"):
        sample(None, None, z_init=x_hat, schedule=CosineSchedule(), num_steps=2, solver=solver)


def test_a_solver_needs_a_step():
    with pytest.raises(TypeError, match=r"abstract method '?step"):
        type("Lazy", (Solver,), {})()


def test_defaults():
    assert [num_evaluations("heun", n) for n in (1, 4)] == [1, 7]
    x = sample(lambda z, _: 0.5 * z, KEY, (2, 2), schedule=CosineSchedule(), num_steps=jnp.int32(2))
    assert x.shape == (2, 2)  # a number may be an array
    assert hash(Cascade()) == hash(Cascade(Ddim(), 0.0))
    assert Multistep() == Multistep((-20.0,))
    assert Gamma() == Gamma(0.0)
    assert Cascade() == Cascade(Ddim(), 0.0)
    assert (Cascade.stochastic, Cascade.jumps) == (True, False)
    assert Ancestral.stochastic


@pytest.mark.parametrize(
    "solver",
    [*DETERMINISTIC, OneStep(), Ancestral(), Stochastic(), Multistep((0.0,)), Gamma(), Cascade()],
    ids=str,
)
def test_solvers_do_not_change(solver):
    """They are static arguments of jit: a changed one would find the program of before."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.max_steps = 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Multistep(()), "levels must be rising"),
        (lambda: Multistep((0.0, 0.0)), "levels must be rising"),
        (lambda: Multistep((np.nan,)), "levels must be rising log-SNRs, all finite"),
        (lambda: Multistep((-np.inf, 0.0)), "levels must be rising log-SNRs, all finite"),
        (lambda: Gamma(-0.1), "gamma must be in"),
        (lambda: Gamma(1.1), "gamma must be in"),
        (lambda: Cascade(noise=np.inf), "noise must not be negative, and finite"),
        (lambda: check_steps(OneStep(), 2), "one_step takes 1 step; got num_steps=2"),
        (lambda: check_steps(Ddim(), 2.0), "num_steps must be at least 1; got 2.0"),
        (lambda: check_steps(Cascade(), ()), "a cascade takes a tuple"),
        (lambda: check_steps(Cascade(), (2, 0)), "num_steps must be at least 1; got 0"),
    ],
)
def test_solvers_and_steps_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()

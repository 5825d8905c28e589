"""EDM's sampler against its algorithm in NumPy, in its own terms, and against the exact flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    GaussianMixture,
    KarrasSchedule,
    RectifiedFlow,
)
from pdistill.samplers import Edm, Heun, encode, noise, num_evaluations, parse_solver, sample

KEY = jax.random.key(0)
Z = np.random.default_rng(0).normal(size=(6, 1))
NODES = 18
run = jax.jit(sample, static_argnums=0, static_argnames=("schedule", "num_steps", "solver"))


def modes(std):
    """Two modes at -0.8 and 0.5, both of the deviation std."""
    means = np.array([[-0.8], [0.5]])
    return GaussianMixture(np.array([0.3, 0.7]), means, np.full(2, std))


def denoised(x, sigma, std=0.2):
    """E[x_0 | x] of `modes` for x = x_0 + sigma eps, in NumPy."""
    means, variance = np.array([-0.8, 0.5]), std**2 + sigma**2
    logits = np.log([0.3, 0.7]) - (x - means) ** 2 / (2 * variance)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights = weights / weights.sum(1, keepdims=True)
    return np.sum(weights * (means + std**2 / variance * (x - means)), 1, keepdims=True)


def algorithm_2(latents, num_steps, churn=0.0, low=0.0, high=np.inf, inflation=1.0, draw=None):
    """Karras et al. (2022), algorithm 2, as `generate.py` of NVlabs/edm has it."""
    i = np.arange(num_steps)
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = np.append((ends[0] + i / (num_steps - 1) * (ends[1] - ends[0])) ** 7, 0)
    x_next = latents * sigmas[0]
    for i in range(num_steps):
        sigma, sigma_next = sigmas[i : i + 2]
        gamma = min(churn / num_steps, np.sqrt(2) - 1) if low <= sigma <= high else 0
        raised = sigma + gamma * sigma
        x = x_next + (np.sqrt(raised**2 - sigma**2) * inflation * draw(i) if gamma else 0)
        slope = (x - denoised(x, raised)) / raised
        x_next = x + (sigma_next - raised) * slope
        if i < num_steps - 1:
            slope_next = (x_next - denoised(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - raised) * (slope + slope_next) / 2
    return x_next


@pytest.mark.parametrize("schedule", [CosineSchedule(), KarrasSchedule()], ids=str)
@pytest.mark.parametrize("num_steps", [2, NODES])
def test_it_is_algorithm_2(x64, schedule, num_steps):
    """Whatever the schedule, if it has EDM's levels."""
    settings = {"schedule": schedule, "num_steps": num_steps, "solver": "edm"}
    x = run(modes(0.2).denoise, None, z_init=Z, **settings)
    np.testing.assert_allclose(x, algorithm_2(Z, num_steps), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "churn"),
    [
        ("edm:40,0.05,50,1.003", (40, 0.05, 50, 1.003)),  # at its bound; EDM's for ImageNet
        ("edm:2", (2,)),
        ("edm:4,0.5", (4, 0.5)),
    ],
)
def test_it_churns_as_algorithm_2(x64, text, churn):
    settings = {"schedule": CosineSchedule(), "num_steps": NODES, "solver": text}
    x = run(modes(0.2).denoise, KEY, z_init=Z, **settings)

    def draw(i):
        key = noise.fold_in(noise.as_threefry(KEY), i)
        return np.asarray(noise.normal(key, Z.shape, Z.dtype))

    np.testing.assert_allclose(x, algorithm_2(Z, NODES, *churn, draw=draw), rtol=0, atol=1e-10)


@pytest.mark.parametrize("text", ["edm:2,1,5", "edm:2,0.5,1"])
def test_it_churns_at_its_bounds(text):
    """sigma is exactly 1 at log-SNR 0."""
    zero = jnp.zeros(1)
    _, raised = parse_solver(text).perturb(zero, zero, KEY, jnp.float32(0.4))
    np.testing.assert_allclose(raised, -2 * np.log(1.4), rtol=1e-6)


@pytest.mark.parametrize("std", [0.01, 0.03, 0.1])
def test_of_narrow_modes_it_is_closer_to_the_flow_than_the_trapezoid_in_the_angle(x64, std):
    """With 18 steps, which are `heun`'s on the cosine schedule; not so of wide modes."""
    mixture, z, one = modes(std), np.random.default_rng(1).normal(size=(500, 1)), jnp.ones(())

    def error(solver, first):
        x = run(
            mixture.denoise, None, z_init=z, schedule=CosineSchedule(), num_steps=NODES,
            solver=solver,
        )  # fmt: skip
        start = solver.prior_std(first) * z
        return float(jnp.mean(jnp.abs(x - mixture.flow(start, first, 40.0))))

    own = error(Edm(), KarrasSchedule()(one))
    assert own < error(Heun(), CosineSchedule()(one))
    assert own < 0.02


def test_levels_that_the_schedule_has_not():
    """They end where it ends, as in EDM for what a network supports."""
    narrow = KarrasSchedule(sigma_min=0.01, sigma_max=20.0)
    levels = Edm().grid(narrow, 5, jnp.float32)
    sigmas = np.exp(-levels / 2)
    assert (sigmas[0], sigmas[-2]) == pytest.approx((20, 0.01), rel=1e-5)
    np.testing.assert_allclose(np.diff(sigmas[:-1] ** (1 / 7), 2), 0, atol=1e-5)


@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedFlow()], ids=str)
def test_times_of_more_noise_than_it_knows(schedule):
    """The slopes' mean has their difference by sigma / alpha, 1e13 at the end of a flow's times."""
    z, times = np.linspace(-2, 2, 5, dtype=np.float32)[:, None], tuple(np.linspace(1, 0, 17))
    denoise = Gaussian(0.3, 0.7).denoise
    x = sample(denoise, None, z_init=z, schedule=schedule, times=times, solver="edm")
    np.testing.assert_allclose(x, 0.3 + 0.7 * z, rtol=0, atol=0.05)  # the flow's; measured 0.03


def test_the_slope_of_a_level_that_does_not_churn():
    """Nothing moves there; by the root of no variance it would be no number."""
    zero, solver = jnp.zeros(1), parse_solver("edm:2,1,5")

    def moved(level):
        return solver.perturb(zero, level, KEY, jnp.float32(0.4))[0].sum()

    slopes = jax.vmap(jax.grad(moved))(jnp.array([0.0, 1.0]))
    assert slopes[1] == 0
    assert np.isfinite(slopes[0])
    assert slopes[0] != 0


def test_the_variance_that_it_adds_is_of_the_levels_as_they_are():
    """In single precision a rise of 0.02 has a rounding of 2e-5, which is that of its variance."""
    level, z, memory = jnp.full(1, -8.7), jnp.zeros(1), jnp.float32(0.01)
    found, raised = parse_solver("edm:2").perturb(z, level, KEY, memory)
    fresh = np.sqrt(-np.expm1(np.float64(raised) - np.float64(level)))
    sigma = scipy.special.expit(-np.float64(raised)) ** 0.5
    np.testing.assert_allclose(found, fresh * sigma * noise.normal(KEY, (1,), z.dtype), rtol=1e-6)
    still, _ = parse_solver("edm:2").perturb(z, level, KEY, jnp.float32(1e-9))
    assert still == 0


def test_evaluations_at_run_time():
    """2 N - 1, at all levels but the last one's end; EDM's 18 steps are 35."""
    seen = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda level: seen.append(float(level)), logsnr[0])
        return 0.5 * z

    sample(denoise, KEY, (2, 1), schedule=CosineSchedule(), num_steps=NODES, solver="edm")
    jax.effects_barrier()
    assert len(seen) == num_evaluations("edm", NODES) == 35
    assert np.exp(-np.array([max(seen), min(seen)]) / 2) == pytest.approx([0.002, 80], rel=1e-5)


def test_encoding_is_its_inverse(x64):
    """Of second order: up to the last step, which is not taken back."""
    settings = {"schedule": CosineSchedule(), "solver": "edm"}

    @functools.partial(jax.jit, static_argnums=0)
    def there_and_back(num_steps):
        x = sample(modes(0.3).denoise, None, z_init=Z, num_steps=num_steps, **settings)
        return encode(modes(0.3).denoise, x, num_steps=num_steps, **settings)

    few, many = (float(np.max(np.abs(there_and_back(n) - Z))) for n in (64, 256))
    assert many < 1e-2
    assert many < few / 8


def test_one_step_is_from_the_largest_noise():
    z = jnp.ones((1, 1))
    x = run(lambda z, logsnr: 0.5 * z, None, z_init=z, schedule=CosineSchedule(), num_steps=1,
            solver="edm")  # fmt: skip
    np.testing.assert_allclose(x, 0.5 * 80 / np.sqrt(1 + 80**2), rtol=1e-5)


def test_names_and_mistakes():
    assert parse_solver("edm") == Edm()
    assert not Edm().stochastic
    assert parse_solver("edm:40,0.05,50,1.003") == Edm(40, 0.05, 50, 1.003)
    assert parse_solver("edm:40").stochastic
    assert parse_solver("edm:0.5").stochastic
    assert [parse_solver(f"edm:40,0,2,{noise}").churn_noise for noise in (0, 0.5)] == [0.0, 0.5]
    for text in (
        "edm:-1",
        "edm:1,3,2",
        "edm:1,-0.5,2",
        "edm:1,2,2",
        "edm:1,0,2,-1",
        "edm:inf",
        "edm:1,0,2,inf",
        "edm:1,0,2,1,0.002",
        "edm:many",
    ):
        with pytest.raises(ValueError, match="edm:"):
            parse_solver(text)

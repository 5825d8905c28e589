import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import (
    CosineSchedule,
    DdpmSchedule,
    KarrasSchedule,
    LinearBetaSchedule,
    LinearLogsnrSchedule,
    RectifiedFlow,
    alpha_sigma,
)

SCHEDULES = [
    CosineSchedule(),
    CosineSchedule(-8.0, 13.0, shift=2 * math.log(32 / 256)),
    LinearBetaSchedule(),
    LinearLogsnrSchedule(),
    KarrasSchedule(),
    DdpmSchedule(),
    DdpmSchedule("cosine"),
    RectifiedFlow(),
    RectifiedFlow(3.0),
]


def exact_cosine(t, logsnr_min=-20.0, logsnr_max=20.0):
    """The definition, in float64."""
    b = np.arctan(np.exp(-logsnr_max / 2))
    a = np.arctan(np.exp(-logsnr_min / 2)) - b
    return -2 * np.log(np.tan(a * np.asarray(t, np.float64) + b))


@pytest.mark.parametrize(
    ("t", "logsnr"),
    [(0.0, 20.0), (0.25, 1.76261877), (0.5, 0.0), (0.75, -1.76261877), (1.0, -20.0)],
)
def test_cosine_golden_values(x64, t, logsnr):
    """docs/methods/teacher.md, T1."""
    np.testing.assert_allclose(CosineSchedule()(t), logsnr, atol=1e-8)


def test_cosine_is_a_line_in_the_angle(x64):
    t = np.linspace(0, 1, 1001)
    a, b = 1.5707055269354342, 4.539992973129278e-05
    alpha, sigma = alpha_sigma(CosineSchedule()(t))
    # cos near pi/2 and sin near 0 are about 5e-5 here, so both need relative accuracy; the
    # reference itself rounds a t + b, which costs 1e-16 / 5e-5.
    np.testing.assert_allclose(alpha, np.cos(a * t + b), rtol=1e-11)
    np.testing.assert_allclose(sigma, np.sin(a * t + b), rtol=1e-11)
    np.testing.assert_allclose(alpha[-1], 4.53999e-05, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-20.0, 20.0), (-3.0, 12.0), (-15.0, 1.0)])
def test_cosine_ends_are_the_range(x64, low, high):
    t = np.linspace(0, 1, 101)
    logsnr = CosineSchedule(low, high)(t)
    np.testing.assert_allclose(logsnr[0], high, rtol=1e-13)
    np.testing.assert_allclose(logsnr[-1], low, rtol=1e-13)
    np.testing.assert_allclose(logsnr, exact_cosine(t, low, high), atol=1e-10)


def test_cosine_is_accurate_in_float32():
    # -2 log tan(a t + b) taken literally in float32 misses by 1e-3 at t = 1.
    near_ends = 0.5 ** np.arange(1, 25)
    t = np.concatenate([np.linspace(0, 1, 100_001), near_ends, 1 - near_ends]).astype(np.float32)
    logsnr = CosineSchedule()(t)
    assert logsnr.dtype == jnp.float32
    np.testing.assert_allclose(logsnr, exact_cosine(t), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(CosineSchedule()(jnp.array([0.0, 1.0])), [20.0, -20.0])


def test_cosine_has_a_derivative_at_its_ends():
    """In float32, where the angle of the other end may round beyond pi/2."""
    slope = jax.vmap(jax.grad(CosineSchedule(-40.0, 40.0)))(jnp.array([0.0, 1.0]))
    assert (slope < -1e7).all()
    assert jnp.isfinite(slope).all()


def test_shift_adds_to_logsnr(x64):
    # 256 pixels against 64: noise of 4 times the amplitude hides the same detail.
    t = np.linspace(0, 1, 11)
    shifted = CosineSchedule(shift=2 * math.log(64 / 256))
    alpha, sigma = alpha_sigma(CosineSchedule()(t))
    alpha_shifted, sigma_shifted = alpha_sigma(shifted(t))
    np.testing.assert_allclose(sigma_shifted / alpha_shifted, 4 * sigma / alpha, rtol=1e-12)


@pytest.mark.parametrize("schedule", [CosineSchedule(shift=0.5), RectifiedFlow(2.0)], ids=str)
def test_shifted_has_so_much_more_logsnr(x64, schedule):
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(schedule.shifted(-1.5)(t), schedule(t) - 1.5, rtol=1e-12)


def test_ddpms_levels_go_on_below_the_first_step(x64):
    """As steep as from the first step to the second; each step has the product of 1 - beta."""
    levels = DdpmSchedule()(np.arange(4) / 1000)
    alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(levels[1:], np.log(alpha2 / (1 - alpha2))[:3], rtol=1e-11)
    np.testing.assert_allclose(levels[0] - levels[1], levels[1] - levels[2], rtol=1e-11)


def test_linear_beta_is_the_limit_of_ddpm(x64):
    def gap(num_steps):
        betas = np.linspace(1e-4, 0.02, num_steps) * (1000 / num_steps)
        alpha2 = np.cumprod(1 - betas)
        t = np.arange(1, num_steps + 1) / num_steps
        discrete = np.log(alpha2) - np.log1p(-alpha2)
        continuous = LinearBetaSchedule(t_min=1e-12)(t)
        return np.max(np.abs(continuous - discrete)[t > 0.1]), np.max(np.abs(continuous - discrete))

    late, everywhere = gap(1000)
    # log(1 - beta) = -beta - beta^2 / 2: the sum of the second terms is 0.067 at t = 1. At the
    # first step the limit has beta 10 % larger, as it integrates what DDPM samples at the left.
    assert late < 0.08
    assert everywhere < 0.12
    assert 9 < late / gap(10_000)[0] < 11  # a first-order quadrature


def test_linear_beta_t_min_moves_only_the_start(x64):
    schedule = LinearBetaSchedule(t_min=1e-3)
    # expm1(u) = u to first order, with u = 0.1 s + 9.95 s^2.
    np.testing.assert_allclose(schedule(0.0), -np.log(np.expm1(1.0995e-4)), rtol=1e-12)
    np.testing.assert_allclose(schedule(1.0), -np.log(np.expm1(10.05)), rtol=1e-12)


def test_linear_logsnr():
    logsnr = LinearLogsnrSchedule(-4.0, 8.0)(jnp.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_array_equal(logsnr, [8.0, 5.0, 2.0, -4.0])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_decreases_and_keeps_shape_and_dtype(x64, schedule):
    for dtype in (np.float32, np.float64):
        t = np.linspace(0, 1, 2048, dtype=dtype).reshape(2, 32, 32)
        logsnr = schedule(t)
        assert logsnr.shape == t.shape
        assert logsnr.dtype == dtype
        assert np.all(np.diff(logsnr.ravel()) < 0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_whole_numbers_are_times_and_levels(schedule):
    assert schedule(1) == schedule(1.0)
    assert schedule(0) == schedule(0.0)
    if isinstance(schedule, DdpmSchedule):
        assert schedule.step(-3) == schedule.step(jnp.array(-3.0))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_is_a_value(schedule):
    """Equal schedules share one compilation when passed as a static argument."""
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(schedule, t):
        traces.append(schedule)
        return schedule(t)

    same = type(schedule)(**vars(schedule))
    assert same == schedule
    np.testing.assert_array_equal(evaluate(schedule, 0.3), evaluate(same, 0.3))
    assert len(traces) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: CosineSchedule(20.0, -20.0),
        lambda: CosineSchedule(1.0, 1.0),
        lambda: LinearLogsnrSchedule(6.0, -6.0),
        lambda: LinearBetaSchedule(beta_min=0.0),
        lambda: LinearBetaSchedule(beta_min=2.0, beta_max=1.0),
        lambda: LinearBetaSchedule(t_min=0.0),
        lambda: LinearBetaSchedule(t_min=1.0),
        lambda: CosineSchedule(-math.inf, 0.0),
        lambda: CosineSchedule(0.0, math.inf),
        lambda: LinearBetaSchedule(beta_max=math.inf),
        lambda: KarrasSchedule(sigma_min=80.0),
        lambda: KarrasSchedule(sigma_max=math.inf),
        lambda: KarrasSchedule(rho=0.0),
        lambda: KarrasSchedule(rho=math.inf),
        lambda: KarrasSchedule(data_std=0.0),
        lambda: KarrasSchedule(data_std=math.inf),
        lambda: DdpmSchedule(beta_start=0.03),
        lambda: DdpmSchedule(beta_end=1.0),
        lambda: DdpmSchedule(num=100_001),
        lambda: RectifiedFlow(0.0),
        lambda: RectifiedFlow(1000.5),
        lambda: RectifiedFlow(math.inf),
    ],
)
def test_bad_arguments(make):
    with pytest.raises(ValueError, match=r"need|must"):
        make()


def test_arguments_at_their_bounds():
    for shift in (-60.0, 60.0):  # of both ends alike
        CosineSchedule(shift=shift)
    LinearBetaSchedule(beta_min=1.0, beta_max=1.0)
    DdpmSchedule(beta_start=0.02, beta_end=0.02)
    DdpmSchedule(num=2)
    DdpmSchedule(num=100_000)
    RectifiedFlow(1e-3)
    RectifiedFlow(1e3)


@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [
        # Both integrals of betas, to first order and whole; the product of 1,000 betas.
        (LinearBetaSchedule(), -math.log(0.1e-5 + 19.9e-10 / 2), -math.log(math.expm1(10.05))),
        (LinearLogsnrSchedule(), 6.0, -6.0),
        (KarrasSchedule(), -2 * math.log(0.002), -2 * math.log(80)),
        (KarrasSchedule(0.1, 10.0, 3.0, 0.5), -2 * math.log(0.2), -2 * math.log(20)),
        (RectifiedFlow(), 60.0, -60.0),
        (RectifiedFlow(3.0), 60 - 2 * math.log(3), -60 - 2 * math.log(3)),
        (DdpmSchedule(), None, math.log(4.0358e-5 / (1 - 4.0358e-5))),
    ],
)
def test_ends(x64, schedule, start, end):
    assert float(schedule(1.0)) == pytest.approx(end, abs=1e-5)
    assert start is None or float(schedule(0.0)) == pytest.approx(start, abs=1e-5)


def test_edm_is_the_grid_of_karras(x64):
    """Karras et al. 2022, eq. 5, at the two ends of its 18 noise levels."""
    logsnr = KarrasSchedule()(jnp.array([1.0, 16 / 17, 1 / 17, 0.0]))
    np.testing.assert_allclose(logsnr, [-8.7641, -8.1066, 9.7782, 12.4292], atol=1e-4)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
def test_ddpm_levels_are_products_of_its_betas(x64, betas):
    schedule = DdpmSchedule(betas, 1e-3, 0.05, num=50)
    if betas == "linear":
        beta = np.linspace(1e-3, 0.05, 50)
    elif betas == "scaled_linear":
        beta = np.linspace(1e-3**0.5, 0.05**0.5, 50) ** 2
    else:
        curve = np.cos((np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    alpha, _ = alpha_sigma(schedule(jnp.arange(1, 51) / 50))
    np.testing.assert_allclose(alpha**2, np.cumprod(1 - beta), rtol=1e-9)


def test_ddpm_between_its_steps(x64):
    schedule = DdpmSchedule()
    steps = jnp.array([0.0, 1.0, 10.25, 500.5, 998.75, 999.0])
    np.testing.assert_allclose(schedule.step(schedule((steps + 1) / 1000)), steps, atol=1e-8)
    np.testing.assert_array_equal(schedule.step(jnp.array([30.0, -30.0])), [0, 999])
    ends = schedule(jnp.array([0.0, 0.5, 1.0]) / 1000)
    np.testing.assert_allclose(ends[0] - ends[1], ends[1] - ends[2])


def test_ddpm_in_float32():
    schedule = DdpmSchedule()
    steps = np.arange(1000, dtype=np.float32)
    # The coarsest: at the noisy end a step is 0.02 of logsnr, which is 10 with 1e-6 of rounding.
    np.testing.assert_allclose(schedule.step(schedule((steps + 1) / 1000)), steps, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DdpmSchedule("sigmoid"), "betas must be linear, scaled_linear or cosine"),
        (lambda: DdpmSchedule(beta_start=0.0), "must satisfy 0 < beta_start"),
        (lambda: DdpmSchedule(num=1), "num must be in 2 .. 100,000; got 1"),
        (lambda: KarrasSchedule(sigma_min=0.0), "must have 0 < sigma_min < sigma_max"),
    ],
)
def test_impossible_published_schedules(build, message):
    with pytest.raises(ValueError, match=message):
        build()

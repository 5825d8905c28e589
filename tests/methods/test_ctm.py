"""Consistency trajectory models: laws, exact jumps, gradients, roles of the moving average."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from planning import TEACHER, plan_of, stage
from scipy import stats
from stepping import compiled, forward_passes

from pdistill import diffusion
from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    GaussianMixture,
    KarrasSchedule,
    alpha_sigma,
    expand,
)
from pdistill.features import load_extractor
from pdistill.methods import Ctm
from pdistill.methods.ctm import denoising_levels, draw_jumps
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.balance import balance
from pdistill.methods.parts.discriminator import Judge
from pdistill.methods.parts.distance import Distance, directions
from pdistill.methods.parts.times import narrowed
from pdistill.networks import NOTHING, DiT, Network
from pdistill.samplers import heun_step
from pdistill.training import Optimizer

SCHEDULE = KarrasSchedule()
DATA = Gaussian(0.3, 0.5)


def grid(levels, dtype=np.float64):
    return SCHEDULE(jnp.linspace(1, 0, levels, dtype=dtype))


def logsnr(tau):
    """Like sigma / alpha."""
    return -2 * jnp.log(jnp.asarray(tau, jnp.float64))


def alpha_of(tau):
    return 1 / np.hypot(1, tau)


# --- The jump, in the paper's variance exploding terms --------------------------------------------


@pytest.mark.parametrize(
    ("t", "s", "r"),
    [
        (80, 0.002, 0.0062499279),
        (80, 2.515219, 0.0320548105),
        (10, 1, 0.1116639061),
        (1, 0.5, 0.6324555320),
    ],
)
def test_exact_jumps_of_a_gaussian(x64, t, s, r):
    """docs/methods/ctm.md, A1: G = mu + r (x - mu) for x = z / alpha."""
    x = jnp.array([[1.3], [-0.4]])
    actual = DATA.flow(alpha_of(t) * x, logsnr(t), logsnr(s)) / alpha_of(s)
    np.testing.assert_allclose(actual, 0.3 + r * (x - 0.3), rtol=1e-7)


@pytest.mark.parametrize(
    ("x", "t", "s", "desired"),
    [
        (1.7, 3, 0.4, 0.9071181240),
        (-0.2, 2, 0.3, -0.5579881015),
        (0.5, 1, 0.1, 0.9299252609),
        (40, 80, 1, 0.7959317968),
    ],
)
def test_exact_jumps_between_two_points(x64, x, t, s, desired):
    """docs/methods/ctm.md, A2: the quantile map of data at -1 and 1."""
    points = GaussianMixture(np.full(2, 0.5), np.array([[-1.0], [1.0]]), np.zeros(2))
    z = jnp.full((1, 1), x * alpha_of(t))
    actual = points.flow(z, logsnr(t), logsnr(s)) / alpha_of(s)
    np.testing.assert_allclose(actual, desired, rtol=1e-8)


def test_exact_jumps_compose(x64):
    """docs/methods/ctm.md, A4."""
    z = jnp.array([[0.7], [-1.2]])
    t, u, s = (logsnr(tau) for tau in (20.0, 3.0, 0.1))
    twice = DATA.flow(DATA.flow(z, t, u), u, s)
    np.testing.assert_allclose(twice, DATA.flow(z, t, s), rtol=1e-12)


def test_short_jumps_are_the_denoisers(x64):
    """docs/methods/ctm.md, A3: the x_hat of exact DDIM jumps becomes the denoiser's as s -> t."""
    z, t = jnp.array([[0.7], [-1.2]]), jnp.array([0.4, 2.0])
    s = t + 2e-6  # s = t (1 - 1e-6) in sigma / alpha
    (_, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(expand(a, z)) for a in (t, s))
    keep = sigma_s / sigma_t
    g = (DATA.flow(z, t, s) - keep * z) / (-alpha_s * jnp.expm1(expand(t - s, z) / 2))
    np.testing.assert_allclose(g, DATA.denoise(z, t), rtol=5e-6)


# --- The solver -----------------------------------------------------------------------------------


def composed(levels):
    """The factor on x / alpha of Heun's steps through all levels, for N(0, 0.5^2)."""

    def step(z, level):
        t, s = level
        return heun_step(Gaussian(0.0, 0.5).denoise, z, t[None], s[None]), None

    z, _ = jax.lax.scan(step, jnp.ones((1, 1), levels.dtype), (levels[:-1], levels[1:]))
    (alpha_t, _), (alpha_s, _) = alpha_sigma(levels[0]), alpha_sigma(levels[-1])
    return float(z[0, 0] * alpha_t / alpha_s)


@pytest.mark.parametrize(("levels", "excess"), [(18, 0.055), (40, 0.0098), (80, 0.0023)])
def test_bias_of_heuns_steps(x64, levels, excess):
    """docs/methods/ctm.md, A13: how much too wide Heun's images of a Gaussian of 0.5 are."""
    exact = np.hypot(0.5, 0.002) / np.hypot(0.5, 80)
    assert composed(grid(levels)) / exact - 1 == pytest.approx(excess, rel=0.02)


def test_heuns_step_is_the_papers(x64):
    """As Karras et al. write it: slopes (x - D) / t of x = z / alpha."""
    tau, z = np.array([[3.0], [0.7]]), np.array([[0.4], [-1.1]])
    low = tau / 3

    def slope(x, tau):
        alpha = 1 / np.hypot(1, tau)
        return (x - DATA.denoise(jnp.asarray(alpha * x), logsnr(tau[:, 0]))) / tau

    x = z * np.hypot(1, tau)
    first = slope(x, tau)
    second = slope(x + (low - tau) * first, low)
    desired = (x + (low - tau) * (first + second) / 2) / np.hypot(1, low)
    actual = heun_step(DATA.denoise, jnp.asarray(z), logsnr(tau[:, 0]), logsnr(low[:, 0]))
    np.testing.assert_allclose(actual, desired, rtol=1e-12)


# --- Laws -----------------------------------------------------------------------------------------


def draws(levels, solver_steps, **options):
    """2,000 batches of 64 jumps as indices of a grid of `levels`."""
    index = jnp.arange(levels, dtype=jnp.float32)
    draw = functools.partial(draw_jumps, batch=64, grid=index, solver_steps=solver_steps, **options)
    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000))


@pytest.mark.parametrize(
    ("levels", "solver_steps", "mean", "at_noise", "at_data"),
    [
        (18, 17, 11.67, 0.294, 0.496),
        (40, 20, 13.67, 0.039, 0.150),
        (40, 39, 26.33, 0.168, 0.337),
    ],
)
def test_joint_law_of_the_three_times(levels, solver_steps, mean, at_noise, at_data):
    """docs/methods/ctm.md, A8. The steps' count is one for a batch, so that 2,000 of them count."""
    jumps = draws(levels, solver_steps)
    t, u, s, steps = (np.asarray(a) for a in (jumps.t, jumps.u, jumps.s, jumps.steps))
    assert (t < u).all()
    assert (u <= s).all()
    assert (s <= levels - 1).all()
    assert (u - t == steps[:, None]).all()
    np.testing.assert_array_equal(t, jumps.first)
    np.testing.assert_array_equal(jumps.end, levels - 1)
    assert steps.mean() == pytest.approx(mean, abs=4 * steps.std() / 2000**0.5)
    for event, probability in ((t == 0, at_noise), (s == levels - 1, at_data), (s == u, at_data)):
        error = np.std(event.mean(1)) / 2000**0.5
        assert event.mean() == pytest.approx(probability, abs=4 * error + 5e-4)


def test_law_of_the_counts():
    """P(k) is proportional to k."""
    steps = np.asarray(draws(18, 17).steps)
    observed = np.bincount(steps, minlength=18)[1:]
    expected = np.arange(1, 18) / np.arange(1, 18).sum() * len(steps)
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_consistency_distillation_jumps_to_the_data():
    jumps = draws(18, 1, to_data=True)
    assert (np.asarray(jumps.s) == 17).all()
    assert (np.asarray(jumps.steps) == 1).all()


def test_law_of_the_denoising_levels(x64):
    """docs/methods/ctm.md, A11."""
    levels = jax.jit(denoising_levels, static_argnums=(1, 2, 3))(
        jax.random.key(0), 20_000, SCHEDULE, jnp.float64
    )
    edm, noisy = np.split(np.exp(-np.asarray(levels) / 2), 2)
    assert np.median(edm) == pytest.approx(np.exp(-1.2), rel=0.05)
    assert np.std(np.log(edm)) == pytest.approx(1.2, rel=0.03)
    assert noisy.max() == pytest.approx(80, rel=0.01)
    assert noisy.min() == pytest.approx(0.318, rel=0.01)


# --- The losses -----------------------------------------------------------------------------------


class ExactJump(nn.Module):
    """v for the exact jumps of x ~ N(mean, std^2), with a parameter that spoils it when not 0."""

    mean: float = 0.3
    std: float = 0.5
    target: bool = False

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        target = logsnr if told.target is None else told.target
        data = Gaussian(self.mean, self.std)
        turn = expand(diffusion.angle(logsnr) - diffusion.angle(target), z)
        far = jnp.abs(turn) > 1e-9
        v = (jnp.cos(turn) * z - data.flow(z, logsnr, target)) / jnp.where(far, jnp.sin(turn), 1)
        v = jnp.where(far, v, diffusion.v_from_x(z, data.denoise(z, logsnr), logsnr))
        return v + off * (1 + z)


POINTS = (100,)
EXACT = Network({"off": np.float64(0)}, ExactJump(), "v", CosineSchedule(), POINTS)
SGD = Optimizer(1e-2, b1=0.0, clip_norm=0.0, ema_decay=0.9)  # Adam's first moment is the gradient


def gradient(learner):
    """Of the last update, with b1 = 0."""
    parts = jax.tree.leaves(learner.opt_state, is_leaf=lambda part: hasattr(part, "mu"))
    return next(part.mu for part in parts if hasattr(part, "mu"))


X = 0.3 + 0.5 * np.random.default_rng(1).normal(size=(64, *POINTS))


def spoiled(network, off):
    return network.replace(params={"off": np.float64(off)})


def student(off):
    """The network that jumps, spoiled by so much."""
    return spoiled(EXACT.with_target(SCHEDULE), off)


def begin(method, off=0.0, average_off=0.0, teacher=None):
    """A student and an average that are spoiled by so much."""
    state = method.init(jax.random.key(0), model=EXACT.blank, teacher=teacher)
    at_first = state.student.network
    network, average = (spoiled(at_first, a) for a in (off, average_off))
    return state.replace(student=state.student.replace(network=network, average=average))


def first_step(method, off=0.0, average_off=0.0, teacher=None):
    state = begin(method, off, average_off, teacher)
    return compiled(method, method.parts(0))(state, {"image": X}, jax.random.key(2))


def exact(**settings):
    return Ctm(**{"optimizer": SGD, "layer": "off", "denoising": 0.0} | settings)


@pytest.mark.parametrize("settings", [{}, {"to_data": True}, {"averaged_target": True}], ids=str)
def test_exact_jumps_cost_nothing(x64, settings):
    """docs/methods/ctm.md, A5: the average's own jump is the solver; nor does the gradient pull."""
    state, metrics = first_step(exact(**settings))
    assert float(metrics["consistency"]) < 1e-16
    assert abs(float(gradient(state.student).params["off"])) < 1e-8


def test_consistency_distillation_has_no_second_jump():
    """Which would begin at the data: three evaluations for the targets, three for the gradient."""
    module = DiT(out_channels=1, patch=2, features=16, depth=2, heads=2)
    network = Network(None, module, "v", SCHEDULE, (8, 8, 1)).init(jax.random.key(0))
    method = Ctm(optimizer=SGD, solver_steps=1, to_data=True, averaged_target=True, denoising=0.0)
    state = method.init(jax.random.key(0), model=network.blank, teacher=network)
    batch = {"image": jax.random.normal(jax.random.key(1), (4, 8, 8, 1))}
    assert forward_passes(method, state, batch, network) < 6.1

    average = state.average.replace(params=jax.tree.map(lambda a: a + 0.1, state.average.params))
    z, jump = method.draw(average, batch["image"], jax.random.key(2))
    z_s = method.estimate(state.student.network, average, z, jump, NOTHING)
    np.testing.assert_array_equal(average.jump(z_s, jump.s, jump.end), z_s)


def test_with_heuns_steps_they_cost_the_solvers_error(x64):
    """docs/methods/ctm.md, A5: the square of a second-order error."""

    def cost(levels):
        method = exact(grid_points=levels, solver_steps=levels - 1)
        state = begin(method, teacher=EXACT)

        @jax.jit
        def apart(key):
            average = state.student.averaged
            z, jump = method.draw(average, X, key)
            estimate = method.estimate(state.student.network, average, z, jump, NOTHING)
            return jnp.mean((estimate - method.target(state, z, jump, NOTHING)) ** 2)

        return np.mean([float(apart(jax.random.key(seed))) for seed in range(6)])

    few, many = cost(40), cost(160)
    assert 0 < many < few < 1e-3
    assert 4**3 < few / many < 4**5


def test_gradient_goes_through_the_frozen_network(x64):
    """docs/methods/ctm.md, A9: only the inner parameters are differentiated, none detached.

    The gradient is that of an estimate written out by hand, in which the average's parameters
    are numbers.
    """
    method = exact()
    off, average_off = 0.2, -0.1
    state, _ = first_step(method, off, average_off, EXACT)
    actual = float(gradient(state.student).params["off"])

    draw_key, _, _ = jax.random.split(jax.random.split(jax.random.key(2), 5)[0], 3)
    z, jump = jax.jit(method.draw)(student(0.0), X, draw_key)

    def by(off):
        return student(0.0).replace(params={"off": jnp.asarray(off, jnp.float64)}).jump

    def loss(inner, detached):
        grid = method.grid(SCHEDULE, jnp.float64)
        z_u = jax.lax.fori_loop(
            0, jump.steps,
            lambda n, z: heun_step(DATA.denoise, z, grid[jump.first + n], grid[jump.first + n + 1]),
            z,
        )  # fmt: skip
        target = by(average_off)(by(off)(z_u, jump.u, jump.s), jump.s, jump.end)
        z_s = by(inner)(z, jump.t, jump.s)
        z_s = jax.lax.stop_gradient(z_s) if detached else z_s
        return jnp.mean(
            (by(average_off)(z_s, jump.s, jump.end) - jax.lax.stop_gradient(target)) ** 2
        )

    slopes = jax.jit(lambda off: [jax.grad(loss)(off, detached) for detached in (False, True)])
    through, cut = (float(slope) for slope in slopes(jnp.asarray(off, jnp.float64)))
    assert actual == pytest.approx(through, rel=1e-9)
    assert abs(actual) > 1e-3
    assert cut == 0


def test_who_makes_the_target(x64):
    """The released code's first jump is the student's, the paper's is the average's."""

    def losses(off, average_off):
        return [
            float(first_step(method, off, average_off, EXACT)[1]["consistency"])
            for method in (exact(), exact(averaged_target=True))
        ]

    ours, theirs = losses(0.2, -0.1)
    assert ours != pytest.approx(theirs, rel=1e-3)
    ours, theirs = losses(0.2, 0.2)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_only_the_teacher_needs_a_teacher(x64):
    """Its parameters matter with it; without, they are not there (`test_what_it_is_given`)."""
    one, other = (
        float(first_step(exact(), 0.1, 0.1, spoiled(EXACT, off))[1]["consistency"])
        for off in (0.0, 0.3)
    )
    assert one != pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("data_std", [1.0, 0.5])
def test_the_denoising_loss_is_the_variance_of_v(x64, data_std):
    """Of an exact denoiser: E[var(v | z)], for v of N(0.3, 0.5^2) at each noise level.

    With 0.5 as in the released code: (sigma^2 + 0.5^2) / (0.5 sigma)^2 on the error of x in EDM's
    terms, which of v = -(alpha / sigma) x is alpha^2 + 4 sigma^2.
    """
    assert exact() == exact(data_std=1.0)  # what it is unless it is said
    _, metrics = first_step(exact(denoising=1.0, data_std=data_std))
    levels = denoising_levels(jax.random.key(5), 200_000, SCHEDULE, jnp.float64)
    alpha, sigma = alpha_sigma(levels)
    # v = alpha eps - sigma x given z = alpha x + sigma eps, for a Gaussian of variance c^2.
    c2 = 0.25
    variance = c2 / (alpha**2 * c2 + sigma**2) * (alpha**2 + sigma**2 / data_std**2)
    # 64 levels of an example each, whose variances differ, and 100 squares of normal numbers each.
    error = 4 * float(np.std(variance) / 8 + np.mean(variance) * np.sqrt(2 / 6400))
    assert float(metrics["denoising"]) == pytest.approx(float(np.mean(variance)), abs=error)


def test_the_average_moves_once_a_step(x64):
    method = exact(denoising=1.0)
    state, _ = first_step(method, 0.2, -0.1)
    first = state.student
    # The first update copies: `Optimizer.ema_decay_at` is 0 there.
    assert float(first.average.params["off"]) == float(first.network.params["off"])
    step = compiled(method, method.parts(1))
    second = step(state, {"image": X}, jax.random.key(9))[0].student
    desired = 0.9 * first.average.params["off"] + 0.1 * second.network.params["off"]
    np.testing.assert_allclose(second.average.params["off"], desired, rtol=1e-6)


def test_another_average_makes_the_target(x64):
    """It moves by its own decay from the start, not from the first update, and is not exported."""
    method = exact(target_decay=0.75)
    at_first = begin(method, 0.2, -0.1, EXACT)
    at_first = at_first.replace(target=spoiled(at_first.target, 0.4))
    state, metrics = compiled(method, method.parts(0))(at_first, {"image": X}, jax.random.key(2))
    plain = exact()
    told = begin(plain, 0.2, 0.4, EXACT)  # the same with 0.4 in the exported average
    _, desired = compiled(plain, plain.parts(0))(told, {"image": X}, jax.random.key(2))
    assert float(metrics["consistency"]) == pytest.approx(float(desired["consistency"]), rel=1e-12)
    after = 0.75 * 0.4 + 0.25 * float(state.student.network.params["off"])
    assert float(state.target.params["off"]) == pytest.approx(after, rel=1e-6)
    exported = method.product(state).params["off"]
    assert float(exported) == float(state.student.network.params["off"])


# --- Weights --------------------------------------------------------------------------------------


def test_adaptive_weights(x64):
    """docs/methods/ctm.md, A10: |a| / (|b| + 1e-4), clipped."""

    def weights(a, b, c):
        params = {"late": {"kernel": jnp.asarray([2.0])}, "early": jnp.asarray([3.0])}

        def losses(params):
            w, rest = params["late"]["kernel"][0], params["early"][0]
            return {"first": a * w + 5 * rest, "second": b * w + rest, "third": c * w}

        values, pullback = jax.vjp(losses, params)
        limits = {"second": (0.0, 1e4), "third": (0.01, 10.0)}
        return balance(lambda g: pullback(g)[0], values, "late/kernel", "first", limits)

    found = weights(-3.0, 2.0, 0.5)
    assert float(found["first"]) == 1
    assert float(found["second"]) == pytest.approx(3 / 2.0001, rel=1e-6)
    assert float(found["third"]) == pytest.approx(3 / 0.5001, rel=1e-6)
    assert float(weights(1.0, 1.0, 1e-3)["third"]) == 10
    assert float(weights(1.0, 1.0, 1e3)["third"]) == pytest.approx(0.01)
    assert float(weights(1.0, 0.0, 1.0)["second"]) == pytest.approx(1e4)


# --- Learning -------------------------------------------------------------------------------------


class Table(nn.Module):
    """A number for each pair of levels: g = number * x, for points of a grid of 18."""

    target: bool = False

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        # At first the denoiser's, as for a student that starts as its teacher.
        levels = grid(18, jnp.float32)
        start = 0.25 / (0.25 + jnp.exp(-levels))
        table = self.param("table", lambda _: jnp.tile(start[:, None], (1, 18)))
        target = logsnr if told.target is None else told.target
        i, j = (jnp.argmin(jnp.abs(levels[None] - a[:, None]), axis=1) for a in (logsnr, target))
        alpha, _ = alpha_sigma(expand(logsnr, z))
        return diffusion.v_from_x(z, expand(table[i, j], z) * z / alpha, logsnr)


class Optimal(nn.Module):
    """The teacher of N(0, 0.5^2)."""

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        return diffusion.v_from_x(z, Gaussian(0.0, 0.5).denoise(z, logsnr), logsnr)


def test_it_learns_its_teachers_map():
    """docs/methods/ctm.md, A6: not the flow's map, but Heun's, 5.5 percent wider on 18 levels."""
    teacher = Network({}, Optimal(), "v", CosineSchedule(), (1,))
    table = Network(None, Table(), "v", CosineSchedule(), (1,))
    optimizer = Optimizer(2e-2, anneal="cosine", num_updates=1500, clip_norm=0.0, ema_decay=0.9)
    method = Ctm(optimizer=optimizer, layer="table", denoising=0.0)
    state = method.init(jax.random.key(1), model=table).replace(teacher=teacher)

    @jax.jit
    def train(state):
        def update(state, number):
            data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), number))
            x = 0.5 * jax.random.normal(data_key, (256, 1))
            return method.step(state, {"image": x}, key, method.parts(0))[0], None

        return jax.lax.scan(update, state, jnp.arange(1500))[0]

    table = method.product(train(state)).params["table"]
    actual = 0.002 / 80 + (1 - 0.002 / 80) * float(table[0, -1])
    assert actual == pytest.approx(composed(grid(18, np.float32)), rel=1e-3)


# --- With an adversary ----------------------------------------------------------------------------

IMAGE = (8, 8, 1)
MODULE = DiT(out_channels=1, features=8, depth=1, heads=2)
DIT = Network(None, MODULE, "v", CosineSchedule(), IMAGE)
PIXELS = Judge(features="pixels", halvings=(1,), width=8, mixing=0, batch_norm=False)
ADAM = Optimizer(1e-3, b1=0.0, b2=0.99, clip_norm=0.0)
JUDGED = Adversary(judges=(PIXELS,), optimizer=ADAM, loss="hinge", r1=0.0)


def test_with_an_adversary():
    """Its update leaves the student alone, whose average moves once; three losses are weighed."""
    method = Ctm(
        optimizer=dataclasses.replace(ADAM, ema_decay=0.9), layer="off", grid_points=6,
        solver_steps=5, adversary=JUDGED,
    )  # fmt: skip
    teacher = EXACT.replace(params={"off": np.float32(0.1)}, shape=IMAGE)

    @jax.jit
    def init(teacher):
        return method.init(jax.random.key(0), model=teacher.blank, teacher=teacher)

    state = init(teacher)
    batch = {"image": np.random.default_rng(0).uniform(-1, 1, (16, *IMAGE)).astype(np.float32)}
    # The first update would copy the average.
    before = state.student.replace(count=jnp.asarray(1, jnp.int32))
    step = compiled(method, method.parts(1))
    new, metrics = step(state.replace(student=before), batch, jax.random.key(2))
    after = new.student
    assert after.network.params["off"] != before.network.params["off"]
    desired = 0.9 * before.average.params["off"] + 0.1 * after.network.params["off"]
    np.testing.assert_allclose(after.average.params["off"], desired, rtol=1e-6)
    assert 0 < float(metrics["denoising_weight"]) < 1e4
    assert 0.01 <= float(metrics["adversarial_weight"]) <= 10
    terms = ("denoising", "adversarial")
    total = metrics["consistency"] + sum(metrics[f"{n}_weight"] * metrics[n] for n in terms)
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-5)
    assert float(metrics["discriminator_grad_norm"]) > 0
    assert "lower adversary.optimizer" in method.advice({"discriminator_loss": 0.001})


# --- What it is given -----------------------------------------------------------------------------


def ctm(**changes):
    return Ctm(**{"optimizer": ADAM, "layer": "pixels/kernel"} | changes)


def test_what_it_is_given():
    plan = plan_of(
        MODULE, TEACHER, stage(ctm()),
        stage(ctm(adversary=JUDGED), "ctm_gan", given={"teacher": "teacher", "start": "ctm"}),
        stage(ctm(), "alone", given={}),
    )  # fmt: skip
    first, gan, alone = (plan[name] for name in ("ctm", "ctm_gan", "alone"))
    assert (first.network.sampler, first.measured_at) == ("gamma", (1, 2, 4))
    assert (first.state.critic, first.state.eyes) == (None, None)
    assert gan.given == {"teacher": "teacher", "start": "ctm"}
    assert gan.state.critic is not None
    assert alone.state.teacher is None
    judges = (dataclasses.replace(JUDGED.judges[0], features="teacher"),)
    looking = dataclasses.replace(JUDGED, judges=judges)
    blind = stage(ctm(adversary=looking), "blind", given={})
    with pytest.raises(ValueError, match="no teacher to judge with; give judges other"):
        plan_of(MODULE, TEACHER, blind)
    assert alone.network.takes_target


def test_a_grid_is_narrowed_to_the_teachers_levels():
    """From sigma / alpha = 0.05 to 20 here; not where the teacher knows more."""
    found = narrowed(KarrasSchedule(), KarrasSchedule(0.05, 20.0))
    assert (found.sigma_min, found.sigma_max) == pytest.approx((0.05, 20), rel=1e-4)
    within = KarrasSchedule(0.1, 10.0)
    assert narrowed(within, KarrasSchedule()) == within


def test_it_starts_from_its_start():
    """Which is the teacher, if there is no other."""
    flat = DIT.with_module({"depth": 0})
    rng = np.random.default_rng(0)
    teacher, start = (
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), flat.shapes)
        for _ in range(2)
    )
    for given, first in (({}, teacher), ({"start": start}, start)):
        state = ctm().init(jax.random.key(2), model=flat, teacher=teacher, **given)
        params = state.student.network.params
        assert set(params) > set(first.params)
        chex.assert_trees_all_equal({name: params[name] for name in first.params}, first.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "conv_out/kernel"}, "layer: no parameters that learn have the path"),
        ({"distance": "lpips"}, "distance must be one of pixels, huber, classifier"),
        ({"solver_steps": 18}, "less than grid_points"),
        ({"denoising": -1.0}, "denoising must not be negative"),
        ({"schedule": (1e-9, 80.0)}, "the teacher knows sigma / alpha from 4.54e-05 to 2.2e"),
        ({"schedule": (0.002, 1e-3)}, "sigma_min < sigma_max"),
        ({"optimizer": Optimizer(1e-3, microbatches=2)}, "whole batch"),
    ],
)
def test_mistakes(changes, message):
    def make(schedule=None, **changes):
        ends = schedule and {"schedule": KarrasSchedule(*schedule)}
        return ctm(**changes | (ends or {}))

    with pytest.raises(ValueError, match=message):
        plan_of(MODULE, TEACHER, stage(make(**changes)))


@pytest.mark.parametrize("role", ["teacher", "start"])
def test_stages_that_are_not_there(role):
    given = {"teacher": "teacher", role: "nobody"}
    with pytest.raises(ValueError, match="no earlier stage makes"):
        plan_of(MODULE, TEACHER, stage(ctm(), given=given))


# --- Distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixels", "huber", "classifier"])
def test_distances(name):
    """Zero for the same image, positive for others, one for each image, and differentiable."""
    distance = Distance.load(name)
    a, b = (jax.random.uniform(jax.random.key(i), (3, *IMAGE), minval=-1) for i in range(2))
    b = b.at[1].set(a[1])
    apart = jax.jit(distance.__call__)(a, b)
    assert apart.shape == (3,)
    assert float(apart[1]) == pytest.approx(0, abs=1e-6)
    assert float(apart.min()) >= 0
    assert float(apart[0]) > 0.01
    slope = jax.jit(jax.grad(lambda a: distance(a, b).sum()))(a)
    assert np.isfinite(slope).all()
    assert np.any(slope[0] != 0)


def test_pixel_distances_in_closed_form():
    a, b = jnp.zeros((1, *IMAGE)), jnp.full((1, *IMAGE), 0.5)
    assert float(Distance.load("pixels")(a, b)[0]) == pytest.approx(0.25)
    assert float(Distance.load("huber")(a, b)[0]) == pytest.approx(0.5, abs=6e-4)


def test_feature_distances_in_closed_form():
    """Squared chords of unit vectors: means over a map's places, added over maps."""
    a = [jnp.array([[[3.0, 0.0], [0.0, 2.0]]]), jnp.array([[[1.0, 1.0]]])]
    b = [jnp.array([[[1.0, 0.0], [5.0, 0.0]]]), jnp.array([[[-2.0, -2.0]]])]
    # Equal directions, right angles and opposite ones: 0, 2 and 4.
    assert float(directions(a, b)[0]) == pytest.approx((0 + 2) / 2 + 4, rel=1e-5)


def test_feature_distances_see_images_as_extractors_do():
    """Those of images in [-1, 1] are those of the extractor's features of their levels."""
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, *IMAGE), np.uint8)
    p, q = (load_extractor("classifier")(images)["features"] for images in levels)
    p, q = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (p, q))
    found = Distance.load("classifier")(*(jnp.asarray(images / 127.5 - 1) for images in levels))
    np.testing.assert_allclose(found, np.sum((p - q) ** 2, axis=1), rtol=1e-4)

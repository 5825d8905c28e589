"""Consistency trajectory models: laws, exact jumps, gradients, roles of the moving average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats
from stepping import compiled

from pdistill import diffusion
from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    GaussianMixture,
    KarrasSchedule,
    alpha_sigma,
    expand,
)
from pdistill.methods import Ctm, CtmStage, Teacher
from pdistill.methods.adversarial import Discriminator, Judge
from pdistill.methods.adversary import Adversary
from pdistill.methods.balance import balance
from pdistill.methods.ctm import denoising_levels, draw_jumps
from pdistill.methods.distances import Distance
from pdistill.methods.stage import Round
from pdistill.networks import Diffuser, DiT
from pdistill.samplers import heun_step
from pdistill.training import Learner, LoopConfig, Optimizer, TrainState

SCHEDULE = KarrasSchedule()
DATA = Gaussian(0.3, 0.5)


def grid(levels, dtype=np.float64):
    return SCHEDULE(jnp.linspace(1, 0, levels, dtype=dtype))


def logsnr(tau):
    """[B], from sigma / alpha."""
    return -2 * jnp.log(jnp.atleast_1d(jnp.asarray(tau, jnp.float64)))


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
    """Card, A1: G = mu + r (x - mu) for x = z / alpha."""
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
    """Card, A2: the quantile map of data at -1 and 1."""
    points = GaussianMixture(np.full(2, 0.5), np.array([[-1.0], [1.0]]), np.zeros(2))
    z = jnp.full((1, 1), x * alpha_of(t))
    actual = points.flow(z, logsnr(t)[0], logsnr(s)[0]) / alpha_of(s)
    np.testing.assert_allclose(actual, desired, rtol=1e-8)


def test_exact_jumps_compose(x64):
    """Card, A4."""
    z = jnp.array([[0.7], [-1.2]])
    t, u, s = (logsnr(tau) for tau in (20.0, 3.0, 0.1))
    twice = DATA.flow(DATA.flow(z, t, u), u, s)
    np.testing.assert_allclose(twice, DATA.flow(z, t, s), rtol=1e-12)


def test_short_jumps_are_the_denoisers(x64):
    """Card, A3: what x_hat would make DDIM jump exactly is the denoiser's as s goes to t."""
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
    """Card, section 15: how much too wide Heun's images of a Gaussian of 0.5 are."""
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
    """Card, A8. The steps' count is one for a batch, so that 2,000 of them count."""
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
    """Card, A11."""
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
    def __call__(self, z, logsnr, label=None, guidance=None, target=None, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        target = logsnr if target is None else target
        data = Gaussian(self.mean, self.std)
        turn = expand(diffusion.angle(logsnr) - diffusion.angle(target), z)
        far = jnp.abs(turn) > 1e-9
        v = (jnp.cos(turn) * z - data.flow(z, logsnr, target)) / jnp.where(far, jnp.sin(turn), 1)
        v = jnp.where(far, v, diffusion.v_from_x(z, data.denoise(z, logsnr), logsnr))
        return v + off * (1 + z)


EXACT = Diffuser(ExactJump(), "v", CosineSchedule())
STUDENT = EXACT.with_target(SCHEDULE)
SGD = Optimizer(1e-2, b1=0.0, clip_norm=0.0, ema_decay=0.9)  # Adam's first moment is the gradient
POINTS = (100,)


def gradient(learner):
    """Of the last update, with b1 = 0."""
    parts = jax.tree.leaves(learner.opt_state, is_leaf=lambda part: hasattr(part, "mu"))
    return next(part.mu for part in parts if hasattr(part, "mu"))


X = 0.3 + 0.5 * np.random.default_rng(1).normal(size=(64, *POINTS))


def start(method, off=0.0, ema_off=0.0, teacher=0.0):
    """A student and an average that are spoiled by so much."""
    spoil = lambda a: {"off": np.float64(a)}  # noqa: E731
    learner = Learner(spoil(off), spoil(ema_off), method.optimizer.transform().init(spoil(off)))
    frozen = {"distance": {}} | ({"teacher": spoil(teacher)} if method.teacher else {})
    return TrainState.create({"student": learner}, frozen)


def first_step(method, off=0.0, ema_off=0.0, teacher=0.0):
    state = start(method, off, ema_off, teacher)
    return compiled(method)(state, {"image": X}, jax.random.key(2))


def exact(teacher=None, **settings):
    defaults = {"layer": "off", "denoising": 0.0}
    return Ctm(STUDENT, SGD, teacher, **defaults | settings)


@pytest.mark.parametrize("settings", [{}, {"to_data": True}, {"averaged_target": True}], ids=str)
def test_exact_jumps_cost_nothing(x64, settings):
    """Card, A5: with the average's own jump for a solver; nor does the gradient pull."""
    state, metrics = first_step(exact(**settings))
    assert float(metrics["consistency"]) < 1e-16
    assert abs(float(gradient(state.learners["student"])["off"])) < 1e-8


def test_with_heuns_steps_they_cost_the_solvers_error(x64):
    """Card, A5: the square of a second-order error."""

    def cost(levels):
        method = exact(EXACT, levels=levels, solver_steps=levels - 1)
        state = start(method)

        @jax.jit
        def apart(key):
            z, jump = method._draw(X, key)
            estimate = method._estimate(state.learners["student"], z, jump, None)
            return jnp.mean((estimate - method._target(state, z, jump, None)) ** 2)

        return np.mean([float(apart(jax.random.key(seed))) for seed in range(6)])

    few, many = cost(40), cost(160)
    assert 0 < many < few < 1e-3
    assert 4**3 < few / many < 4**5


def test_gradient_goes_through_the_frozen_network(x64):
    """Card, A9: only the inner network's parameters are differentiated, and none detached.

    The gradient is that of an estimate written out by hand, in which the average's parameters
    are numbers.
    """
    method = exact(EXACT)
    off, ema_off = 0.2, -0.1
    state, _ = first_step(method, off, ema_off)
    actual = float(gradient(state.learners["student"])["off"])

    draw_key, _, _ = jax.random.split(jax.random.split(jax.random.key(2), 5)[0], 3)
    z, jump = jax.jit(method._draw)(X, draw_key)
    by = lambda off: STUDENT.jump({"off": jnp.asarray(off, jnp.float64)})  # noqa: E731

    def loss(inner, detached):
        grid = method.grid(jnp.float64)
        z_u = jax.lax.fori_loop(
            0, jump.steps,
            lambda n, z: heun_step(DATA.denoise, z, grid[jump.first + n], grid[jump.first + n + 1]),
            z,
        )  # fmt: skip
        target = by(ema_off)(by(off)(z_u, jump.u, jump.s), jump.s, jump.end)
        z_s = by(inner)(z, jump.t, jump.s)
        z_s = jax.lax.stop_gradient(z_s) if detached else z_s
        return jnp.mean((by(ema_off)(z_s, jump.s, jump.end) - jax.lax.stop_gradient(target)) ** 2)

    slopes = jax.jit(lambda off: [jax.grad(loss)(off, detached) for detached in (False, True)])
    through, cut = (float(slope) for slope in slopes(jnp.asarray(off, jnp.float64)))
    assert actual == pytest.approx(through, rel=1e-9)
    assert abs(actual) > 1e-3
    assert cut == 0


def test_who_makes_the_target(x64):
    """The released code's first jump is the student's, the paper's is the average's."""
    code, paper = exact(EXACT), exact(EXACT, averaged_target=True)
    ours, theirs = (float(first_step(m, 0.2, -0.1)[1]["consistency"]) for m in (code, paper))
    assert ours != pytest.approx(theirs, rel=1e-3)
    ours, theirs = (float(first_step(m, 0.2, 0.2)[1]["consistency"]) for m in (code, paper))
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_only_the_teacher_needs_a_teacher(x64):
    """Its parameters matter with it; without, they are not there (`test_rounds`)."""
    one, other = (
        float(first_step(exact(EXACT), 0.1, 0.1, teacher=t)[1]["consistency"]) for t in (0.0, 0.3)
    )
    assert one != pytest.approx(other, rel=1e-3)


def test_the_denoising_loss_is_the_variance_of_v(x64):
    """Of an exact denoiser: E[var(v | z)], for v of N(0.3, 0.5^2) at each noise level."""
    _, metrics = first_step(exact(denoising=1.0))
    levels = denoising_levels(jax.random.key(5), 200_000, SCHEDULE, jnp.float64)
    alpha, sigma = alpha_sigma(levels)
    # v = alpha eps - sigma x given z = alpha x + sigma eps, for a Gaussian of variance c^2.
    c2 = 0.25
    variance = c2 / (alpha**2 * c2 + sigma**2)
    # 64 levels of an example each: their variances differ by about as much as their mean.
    error = 4 * float(np.std(variance)) / 8
    assert float(metrics["denoising"]) == pytest.approx(float(np.mean(variance)), abs=error)


def test_the_average_moves_once_a_step(x64):
    state, _ = first_step(exact(denoising=1.0), 0.2, -0.1)
    student = state.learners["student"]
    # The first update copies: `Optimizer.ema_decay_at` is 0 there.
    assert float(student.ema["off"]) == float(student.params["off"])
    again, _ = compiled(exact(denoising=1.0))(
        state.replace(step=jnp.asarray(1, jnp.int32)),
        {"image": X},
        jax.random.key(9),
    )
    after = again.learners["student"]
    desired = 0.9 * student.ema["off"] + 0.1 * after.params["off"]
    np.testing.assert_allclose(after.ema["off"], desired, rtol=1e-6)


# --- Weights --------------------------------------------------------------------------------------


def test_adaptive_weights(x64):
    """Card, A10: |a| / (|b| + 1e-4), clipped."""

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
    def __call__(self, z, logsnr, label=None, guidance=None, target=None, *, train=False):
        # At first the denoiser's, as for a student that starts as its teacher.
        levels = grid(18, jnp.float32)
        start = 0.25 / (0.25 + jnp.exp(-levels))
        table = self.param("table", lambda _: jnp.tile(start[:, None], (1, 18)))
        if target is None:
            target = logsnr
        i, j = (jnp.argmin(jnp.abs(levels[None] - a[:, None]), axis=1) for a in (logsnr, target))
        alpha, _ = alpha_sigma(expand(logsnr, z))
        return diffusion.v_from_x(z, expand(table[i, j], z) * z / alpha, logsnr)


class Optimal(nn.Module):
    """The teacher of N(0, 0.5^2)."""

    @nn.compact
    def __call__(self, z, logsnr, label=None, guidance=None, *, train=False):
        return diffusion.v_from_x(z, Gaussian(0.0, 0.5).denoise(z, logsnr), logsnr)


def test_it_learns_its_teachers_map():
    """Card, A6: not the flow's, but Heun's, which is 5.5 percent wider on 18 levels."""
    student = Diffuser(Table(target=True), "v", SCHEDULE)
    teacher = Diffuser(Optimal(), "v", CosineSchedule())
    optimizer = Optimizer(2e-2, anneal="cosine", num_updates=1500, clip_norm=0.0, ema_decay=0.9)
    method = Ctm(student, optimizer, teacher, layer="table", denoising=0.0)
    params = student.init(jax.random.key(0), (1,))
    state = method.init(jax.random.key(1), params, {}, image_shape=(1,))

    @jax.jit
    def train(state):
        def update(state, _):
            data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), state.step))
            x = 0.5 * jax.random.normal(data_key, (256, 1))
            state, _ = method.step(state, {"image": x}, key)
            return state.replace(step=state.step + 1), None

        return jax.lax.scan(update, state, length=1500)[0]

    table = method.export(train(state))["table"]
    actual = 0.002 / 80 + (1 - 0.002 / 80) * float(table[0, -1])
    assert actual == pytest.approx(composed(grid(18, np.float32)), rel=1e-3)


# --- With an adversary ----------------------------------------------------------------------------

IMAGE = (8, 8, 1)
DIT = Diffuser(DiT(out_channels=1, features=8, depth=1, heads=2), "v", CosineSchedule())
PIXELS = Judge(features="pixels", halvings=(1,), width=8, mixing=0, batch_norm=False)
ADAM = Optimizer(1e-3, b1=0.0, b2=0.99, clip_norm=0.0)


def test_with_an_adversary():
    """Its update leaves the student alone, whose average moves once; three losses are weighed."""
    method = Ctm(
        STUDENT, dataclasses.replace(ADAM, ema_decay=0.9), EXACT, layer="off", levels=6,
        solver_steps=5, adversary=Adversary(Discriminator((PIXELS,), EXACT), ADAM, "hinge", r1=0.0),
    )  # fmt: skip
    init = functools.partial(method.init, image_shape=IMAGE)
    state = jax.jit(init)(jax.random.key(0), {"off": np.float32(0.1)})
    batch = {"image": np.random.default_rng(0).uniform(-1, 1, (16, *IMAGE)).astype(np.float32)}
    state = state.replace(step=jnp.asarray(1, jnp.int32))
    new, metrics = compiled(method)(state, batch, jax.random.key(2))
    before, after = state.learners["student"], new.learners["student"]
    assert after.params["off"] != before.params["off"]
    desired = 0.9 * before.ema["off"] + 0.1 * after.params["off"]
    np.testing.assert_allclose(after.ema["off"], desired, rtol=1e-6)
    assert 0 < float(metrics["denoising_weight"]) < 1e4
    assert 0.01 <= float(metrics["adversarial_weight"]) <= 10
    terms = ("denoising", "adversarial")
    total = metrics["consistency"] + sum(metrics[f"{n}_weight"] * metrics[n] for n in terms)
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-5)
    assert float(metrics["discriminator_grad_norm"]) > 0
    assert "lower discriminator_optimizer" in method.advice({"discriminator_loss": 0.001})


# --- The stage ------------------------------------------------------------------------------------

LOOP = LoopConfig(10, 16, log_every=10, save_every=10)


def stage(**changes):
    settings = {
        "name": "ctm", "loop": LOOP, "optimizer": ADAM, "teacher": "teacher",
        "layer": "pixels/kernel",
    }  # fmt: skip
    return CtmStage(**settings | changes)


def teacher_round(diffuser=DIT):
    method = Teacher(diffuser, ADAM)
    return {"teacher": Round("teacher", "teacher", method, lambda *_: None, LOOP, (4,))}


def test_rounds():
    earlier = teacher_round()
    [ctm] = stage().rounds(DIT, IMAGE, earlier)
    assert (ctm.solver, ctm.num_steps, ctm.parent, ctm.teacher) == (
        "gamma", (1, 2, 4), "teacher", None
    )  # fmt: skip
    earlier["ctm"] = ctm
    judged = {"judges": (PIXELS,), "discriminator_optimizer": ADAM}
    [gan] = stage(name="ctm_gan", start="ctm", **judged).rounds(DIT, IMAGE, earlier)
    assert (gan.parent, gan.teacher) == ("ctm", "teacher")
    assert gan.method.adversary.loss == "hinge"
    [alone] = stage(teacher="").rounds(DIT, IMAGE, {})
    assert (alone.parent, alone.teacher, alone.method.teacher) == (None, None, None)
    shapes = jax.eval_shape(alone.init, jax.random.key(0), None)
    assert set(shapes.frozen) == {"distance"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "conv_out/kernel"}, "layer: no parameters have the path"),
        ({"distance": "lpips"}, "distance must be one of pixels, huber, classifier"),
        ({"solver_steps": 18}, "less than levels"),
        ({"denoising": -1.0}, "denoising must not be negative"),
        ({"sigma_min": 1e-9}, "the teacher knows sigma / alpha from 4.54e-05 to 2.2e"),
        ({"sigma_max": 1e-3}, "sigma_min < sigma_max"),
        ({"teacher": "nobody"}, "no earlier stage makes"),
        ({"start": "nobody"}, "no earlier stage makes"),
        ({"judges": (PIXELS,)}, "judges need a discriminator_optimizer"),
        ({"optimizer": Optimizer(1e-3, microbatches=2)}, "whole batches"),
        (
            {"loss": "wasserstein", "judges": (PIXELS,), "discriminator_optimizer": ADAM},
            "loss must",
        ),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        stage(**changes).rounds(DIT, IMAGE, teacher_round())


# --- Distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixels", "huber", "classifier"])
def test_distances(name):
    """Zero for the same image, positive for others, one for each image, and differentiable."""
    distance = Distance(name)
    params = distance.init()
    a, b = (jax.random.uniform(jax.random.key(i), (3, *IMAGE), minval=-1) for i in range(2))
    b = b.at[1].set(a[1])
    apart = jax.jit(distance)(params, a, b)
    assert apart.shape == (3,)
    assert float(apart[1]) == pytest.approx(0, abs=1e-6)
    assert float(apart.min()) >= 0
    assert float(apart[0]) > 0.01
    slope = jax.jit(jax.grad(lambda a: distance(params, a, b).sum()))(a)
    assert np.isfinite(slope).all()
    assert np.any(slope[0] != 0)


def test_pixel_distances_in_closed_form():
    a, b = jnp.zeros((1, *IMAGE)), jnp.full((1, *IMAGE), 0.5)
    assert float(Distance("pixels")({}, a, b)[0]) == pytest.approx(0.25)
    assert float(Distance("huber")({}, a, b)[0]) == pytest.approx(0.5, abs=6e-4)

"""Distribution matching against closed forms: Gaussian data, linear generators, exact scores."""

import dataclasses
import importlib
import math
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from planning import TEACHER, plan_of, stage
from stepping import compiled, run, same, settled
from tiny_experiment import tiny_dmd
from tiny_training import noise_dataset

from pdistill import diffusion, experiment, samplers
from pdistill.data import Pipeline, make_batch
from pdistill.diffusion import CosineSchedule, DdpmSchedule, KarrasSchedule, LinearLogsnrSchedule
from pdistill.methods import Dmd
from pdistill.methods.columns import Pairs, check_rows
from pdistill.methods.dmd import matching_gradient
from pdistill.methods.parts.fake_score import FakeScore
from pdistill.methods.parts.generate import generator_solver, simulate_inputs
from pdistill.networks import NOTHING, Conditioning, DiT, Network
from pdistill.networks.discriminators import BottleneckHead
from pdistill.runtime.mesh import make_mesh
from pdistill.training import CheckpointError, Optimizer

pytestmark = pytest.mark.eight_devices

running = importlib.import_module("pdistill.experiment.run")  # its function has its name

SCHEDULE = CosineSchedule()
ADAM = Optimizer(1e-2, b1=0.0, b2=0.99, clip_norm=0.0)
# Other programs add in other orders, and a key's bias has no gradient but rounding, which Adam
# makes a part of its step of 1e-2.
ROUNDED = {"rtol": 0, "atol": 5e-4}


class Posterior(nn.Module):
    """x_hat of data N(m, A A^T), exactly; diagonal A. With a target, m is proportional to it."""

    target: bool = False

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        m = self.param("m", nn.initializers.zeros, z.shape[1:])[None]
        if self.target:
            target = logsnr if told.target is None else told.target
            m = m + self.param("slope", nn.initializers.zeros, z.shape[1:])[None] * target[:, None]
        a = self.param("a", nn.initializers.ones, z.shape[1:])[None]
        alpha, sigma = diffusion.alpha_sigma(logsnr[:, None])
        return m + alpha * a**2 / (alpha**2 * a**2 + sigma**2) * (z - alpha * m)


class Affine(nn.Module):
    """m + A z, diagonal A, whatever the level."""

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        m = self.param("m", nn.initializers.zeros, z.shape[1:])[None]
        return m + self.param("a", nn.initializers.ones, z.shape[1:])[None] * z


class OfLevel(nn.Module):
    """slope logsnr, the same for all noise."""

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        slope = self.param("slope", nn.initializers.zeros, z.shape[1:])[None]
        return slope * logsnr[:, None] + 0 * z


class OfLabel(nn.Module):
    """The label, the same for all noise."""

    num_labels: int

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        return told.label[:, None].astype(z.dtype) + 0 * z


def network(module, shape, **params):
    """A network of x_hat with these parameters."""
    params = {name: jnp.atleast_1d(jnp.asarray(a, float)) for name, a in params.items()}
    return Network(params, module, "x", SCHEDULE, shape)


def posterior(m, a):
    return network(Posterior(), np.shape(np.atleast_1d(m)), m=m, a=a)


def affine(m, a):
    return network(Affine(), np.shape(np.atleast_1d(m)), m=m, a=a)


def dmd(**changes):
    return Dmd(**{"optimizer": ADAM, "fake_optimizer": ADAM} | changes)


def begin(method, start, teacher, **given):
    return method.init(jax.random.key(0), teacher=teacher, start=start, **given)


def with_fake_score(state, network):
    """The state with another network for the fake score."""
    return state.replace(fake_score=state.fake_score.replace(network=FakeScore(network=network)))


# --- the matching gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("logsnr", [-4.0, 0.0, 3.0])
def test_it_is_the_gradient_of_kl(x64, logsnr):
    """docs/methods/dmd.md, A2, in three dimensions.

    The mean over z and eps is exact: the integrand is a quadratic, which the points +-sqrt(n) e_i
    integrate.
    """
    d, n = 3, 6
    rng = np.random.RandomState(0)
    m, m_r = rng.randn(2, d)
    a, b = rng.randn(2, d, d) + 2 * np.eye(d)
    s_r = b @ b.T
    alpha, sigma = (float(level) for level in diffusion.alpha_sigma(jnp.array(logsnr)))
    noised = lambda s: alpha**2 * s + sigma**2 * np.eye(d)  # noqa: E731

    def posterior(x_t, m, s):
        return m + alpha * (x_t - alpha * m) @ np.linalg.inv(noised(s)) @ s

    points = np.sqrt(n) * np.concatenate([np.eye(n), -np.eye(n)])
    z, eps = points[:, :d], points[:, d:]
    x = m + z @ a.T
    x_t = alpha * x + sigma * eps
    g = matching_gradient(
        jnp.array(x), jnp.array(posterior(x_t, m_r, s_r)), jnp.array(posterior(x_t, m, a @ a.T)),
        jnp.full(2 * n, logsnr), "none",
    )  # fmt: skip

    def kl(m, a):
        sig_f, sig_r = (alpha**2 * s + sigma**2 * jnp.eye(d) for s in (a @ a.T, jnp.array(s_r)))
        inverse, gap = jnp.linalg.inv(sig_r), m - m_r
        log_ratio = jnp.linalg.slogdet(sig_r)[1] - jnp.linalg.slogdet(sig_f)[1]
        return (jnp.trace(inverse @ sig_f) + alpha**2 * gap @ inverse @ gap - d + log_ratio) / 2

    grad_m, grad_a = jax.grad(kl, (0, 1))(jnp.array(m), jnp.array(a))
    np.testing.assert_allclose(np.mean(g, 0), grad_m, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(np.einsum("bi,bj->ij", g, z) / len(z), grad_a, rtol=1e-9, atol=1e-10)


def test_the_normalisers(x64):
    """Of a factor on both differences nothing is left; DMD's differs from DMD2's by alpha."""
    x, real, fake = jax.random.normal(jax.random.key(0), (3, 5, 4, 4, 1))
    logsnr = jnp.linspace(-3.0, 3.0, 5)
    g = matching_gradient(x, real, fake, logsnr)
    c = 7.0
    scaled = matching_gradient(x, x + c * (real - x), x + c * (fake - x), logsnr)
    np.testing.assert_allclose(scaled, g, rtol=1e-12)
    np.testing.assert_allclose(g[2] * np.abs(x[2] - real[2]).mean(), fake[2] - real[2], rtol=1e-12)
    alpha, _ = diffusion.alpha_sigma(logsnr)
    dmd = matching_gradient(x, real, fake, logsnr, "dmd")
    np.testing.assert_allclose(dmd, alpha[:, None, None, None] * g, rtol=1e-12)


def test_the_edm_levels():
    """docs/methods/dmd.md, A6: to half a unit of their last place."""
    noise = dmd().noise
    i = np.array([0, 20, 100, 250, 500, 750, 900, 980, 999])
    alpha, noisy = diffusion.alpha_sigma(noise(jnp.array(i / 999)))
    sigma = noisy / alpha  # of images that are not scaled to unit deviation, as EDM's are not
    expected = [0.002, 0.00323, 0.01675, 0.1703, 2.5265, 17.62, 45.56, 72.05, 80]
    np.testing.assert_allclose(sigma, expected, rtol=2e-3)
    ends = [float(noise(t)) for t in (0.0, 20 / 999, 980 / 999, 1.0)]
    np.testing.assert_allclose(ends, [12.43, 11.47, -8.56, -8.76], atol=0.006)


# --- steps ----------------------------------------------------------------------------------------


def test_equal_scores_move_nothing():
    """docs/methods/dmd.md, A1: whatever the generator makes; and the value logged is zero."""
    state = begin(dmd(), affine([2.0, 2.0], [0.1, 3.0]), posterior([0.3, -0.2], [0.5, 1.0]))
    (*_, after), rows = run(dmd(), state, {"image": jnp.zeros((64, 2))}, 1)
    chex.assert_trees_all_equal(after.generator.network, state.generator.network)
    assert rows[0]["loss"] == rows[0]["matching_grad_norm"] == 0.0
    assert not same(after.fake_score.network, state.fake_score.network)


def test_how_often_each_learns():
    method = dmd(fake_updates=3)
    state = begin(method, affine(1.0, 1.0), posterior(0.0, 1.0))
    (*_, state), rows = run(method, state, {"image": jnp.zeros((16, 1))}, 7)
    counts = {
        name: {int(a) for a in jax.tree.leaves(learner.opt_state) if a.dtype == jnp.int32}
        for name, learner in (("generator", state.generator), ("fake_score", state.fake_score))
    }
    assert counts == {"generator": {3}, "fake_score": {7}}  # ceil(7 / 3)
    assert (int(state.generator.count), int(state.fake_score.count)) == (3, 7)
    assert [row.get("param_norm", 0) > 0 for row in rows] == [i % 3 == 0 for i in range(7)]
    # `max_grad_norm` is a bound on "grad_norm", the generator's, where it learns.
    assert ["grad_norm" in row for row in rows] == [i % 3 == 0 for i in range(7)]
    assert all(row["fake_score_grad_norm"] > 0 for row in rows)


def test_each_optimizer_is_annealed_over_its_own_updates():
    method = dmd(fake_updates=3).over(10)
    assert (method.optimizer.num_updates, method.fake_optimizer.num_updates) == (4, 10)


def test_the_generators_average_and_rate_count_its_own_updates():
    """Of 7 updates 3 are the generator's: steps of 3, 2 and 1 thirds of the rate, since Adam
    without moments takes whole ones, and the average's half-life is a third of their number."""
    rate = Optimizer(
        3e-3, anneal="linear", b1=0.0, b2=0.0, clip_norm=0.0, ema_decay=0.999, ema_ramp=1 / 3
    )
    method = dmd(optimizer=rate, fake_updates=3).over(7)
    state = begin(method, affine(1.0, 1.0), posterior(0.0, 1.0))
    state = with_fake_score(state, posterior(3.0, 1.0))  # far off, so that no slope is small
    states, _ = run(method, state, {"image": jnp.zeros((64, 1))}, 7)
    m = [float(states[i].generator.network.params["m"][0]) for i in (0, 1, 4, 7)]
    np.testing.assert_allclose(np.abs(np.diff(m)), [3e-3, 2e-3, 1e-3], rtol=1e-3)
    average = m[1]  # after the first update a copy
    for value, done in ((m[2], 1), (m[3], 2)):
        decay = 0.5 ** (3 / done)
        average = decay * average + (1 - decay) * value
    found = float(method.product(states[7]).params["m"][0])
    assert found == pytest.approx(average, abs=1e-6)
    assert abs(found - m[3]) > 1e-4


def test_an_update_without_the_generators_part_is_the_same_but_for_it():
    """The fake score learns alike from the same images, and nothing hides behind a condition."""
    method = dmd(fake_updates=3)
    kinds = [method.parts(number) for number in range(4)]
    assert kinds[1] == kinds[2]
    assert kinds[0] == kinds[3] == ("generator", *kinds[1])
    state = begin(method, affine(1.0, 1.0), posterior(0.0, 1.0))
    batch, key = {"image": jnp.zeros((16, 1))}, jax.random.key(5)
    (both, desired), (alone, found) = (
        compiled(method, parts)(state, batch, key) for parts in kinds[:2]
    )
    for parts in kinds[:2]:
        text = compiled(method, parts).lower(state, batch, key).compile().as_text()
        assert "conditional" not in text
    chex.assert_trees_all_close(alone.fake_score, both.fake_score, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(alone.generator, state.generator)
    for name in found:
        np.testing.assert_allclose(found[name], desired[name], rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_the_gradient():
    """docs/methods/dmd.md, A5: half the mean square of g; the slope is g over their size."""
    method = dmd(fake_updates=2)
    state = begin(method, affine(1.0, 0.3), posterior(0.0, 1.0))
    state = with_fake_score(state, posterior(1.0, 0.3))
    num = 64
    _, [row] = run(method, state, {"image": jnp.zeros((num, 1))}, 1)
    # |g| at each image is sqrt(num) times the slope's norm, if all were alike.
    root_mean_square = np.sqrt(2 * row["loss"])
    assert row["matching_grad_norm"] == pytest.approx(root_mean_square / np.sqrt(num), rel=1e-5)


def test_the_fake_score_learns_the_generator():
    """docs/methods/dmd.md, A3: the posterior mean of N(m, a^2), from far off."""
    method = dmd(
        optimizer=dataclasses.replace(ADAM, learning_rate=1e-12),
        fake_optimizer=Optimizer(3e-2, b1=0.0, b2=0.99, anneal="linear", num_updates=600),
    )
    state = begin(method, affine(0.7, 0.4), posterior(-1.0, 1.5))
    (*_, state), rows = run(method, state, {"image": jnp.zeros((512, 1))}, 600)
    learnt = state.fake_score.network.network.params
    # 300,000 images: means to 0.001; Adam's last steps are larger.
    assert float(learnt["m"][0]) == pytest.approx(0.7, abs=0.02)
    assert abs(float(learnt["a"][0])) == pytest.approx(0.4, abs=0.02)
    assert rows[-1]["fake_score_loss"] < 0.5 * rows[0]["fake_score_loss"]


def test_the_fake_score_is_weighted_for_its_datas_deviation():
    """SNR + 1 / d^2 on the squared error of x: of an error of 1 there are 4 - 1 more for 0.5."""
    losses = []
    for data_std in (0.5, 1.0):
        method = dmd(noise=KarrasSchedule(sigma_min=0.5), data_std=data_std)
        state = begin(method, affine(1.0, 0.0), affine(0.0, 0.0))  # from 0 to 1
        _, [row] = run(method, state, {"image": jnp.zeros((64, 1))}, 1)
        losses.append(row["fake_score_loss"])
    assert losses[0] - losses[1] == pytest.approx(4 - 1, rel=1e-4)


@pytest.mark.parametrize("fake_rate", [3e-2, pytest.param(0.0, marks=pytest.mark.slow)])
def test_where_the_flow_comes_to_rest(fake_rate):
    """docs/methods/dmd.md, A4: at the data, from either side; else if the fake score rests."""
    method = dmd(
        optimizer=Optimizer(1e-2, b1=0.0, b2=0.99, anneal="linear", num_updates=500),
        fake_optimizer=Optimizer(fake_rate or 1e-12, b1=0.0, b2=0.99),
        fake_updates=3,
    )
    state = begin(method, affine([1.5, -1.0], [0.2, 1.2]), posterior([0.3, 0.3], [0.6, 0.6]))
    state = with_fake_score(state, posterior([0.5, 0.5], [0.3, 0.3]))
    state = settled(method, state, {"image": jnp.zeros((256, 2))}, 1500)
    params = state.generator.network.params
    error = max(np.abs(params["m"] - 0.3).max(), np.abs(np.abs(params["a"]) - 0.6).max())
    assert error < 0.05 if fake_rate else error > 0.2


# --- multistep ------------------------------------------------------------------------------------

LEVELS = (-20.0, -2.0, 0.0, 2.0)


def variances(s=0.25):
    """Of z at each level, for data of variance s and exact denoisers: docs/methods/dmd.md, A7."""
    alpha, sigma = (np.asarray(a, np.float64) for a in diffusion.alpha_sigma(jnp.array(LEVELS)))
    found, v = [1.0], (alpha[0] * s / (alpha[0] ** 2 * s + sigma[0] ** 2)) ** 2
    for j in range(1, len(LEVELS)):
        found.append(alpha[j] ** 2 * v + sigma[j] ** 2)
        v = (alpha[j] * s / (alpha[j] ** 2 * s + sigma[j] ** 2)) ** 2 * found[-1]
    return found, v


def test_backward_simulation():
    """The inputs of training have the variances that sampling gives them."""
    denoiser = posterior(0.0, 0.5).denoiser
    z, logsnr = jax.jit(
        lambda key: simulate_inputs(
            lambda told: denoiser(), LEVELS, jnp.zeros((80_000, 1)), NOTHING, key
        )
    )(jax.random.key(0))
    np.testing.assert_array_equal(logsnr, np.tile(np.float32(LEVELS), 20_000))
    # 20,000 squares of normals each: a standard deviation of 1 %.
    found = [float(jnp.var(z[j::4])) for j in range(4)]
    np.testing.assert_allclose(found, variances()[0], rtol=0.05)
    pure = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), z.shape)
    np.testing.assert_array_equal(z[::4], pure[::4])


def test_backward_simulation_of_each_label():
    """An image's inputs are of its own label: each image is its label, and noised as that."""
    of_label = network(OfLabel(num_labels=9), (1,))
    label = jax.random.randint(jax.random.key(1), (4000,), 0, 9)
    told, images = Conditioning(label=label), jnp.zeros((4000, 1))
    z, logsnr = simulate_inputs(of_label.denoiser, LEVELS, images, told, jax.random.key(0))
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    eps = (z[:, 0] - jnp.where(logsnr > LEVELS[0], alpha * label.astype(float), 0)) / sigma
    for j in range(4):
        assert np.mean(eps[j::4]) == pytest.approx(0.0, abs=0.1)
        assert np.std(eps[j::4]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("told", [False, True])
def test_each_level_matches_the_data_if_the_fake_score_is_told_it(told):
    """A generator that is too dark at one level and too bright at the other, while its images of
    both together have the data's mean and deviation: else nothing tells that it is wrong.
    """
    settling = dataclasses.replace(ADAM, anneal="linear", num_updates=600)
    method = dmd(
        fake_optimizer=settling, optimizer=dataclasses.replace(ADAM, learning_rate=1e-7),
        generated_at=(-1.0, 1.0), fake_updates=1, told_level=told, normaliser="none",
        matching_times=(0.3, 0.5), noise=KarrasSchedule(data_std=0.5),  # the data's
    )  # fmt: skip
    state = begin(method, network(OfLevel(), (1,), slope=0.5), posterior(0.0, 0.5))
    state = settled(method, state, {"image": jnp.zeros((64, 1))}, 600)
    found = state.fake_score.network.network.params
    # Tolerances are what Adam leaves after few updates.
    assert float(found["m"][0]) == pytest.approx(0.0, abs=0.1)
    assert abs(float(found["a"][0])) == pytest.approx(0.0 if told else 0.5, abs=0.1)
    level = jnp.tile(jnp.array([-1.0, 1.0]), 2000)
    images = 0.5 * level[:, None]
    g = method.gradient(state, images, level, NOTHING, jax.random.key(1)).mean(axis=1)
    dark, bright = (float(part.mean()) for part in (g[::2], g[1::2]))
    # SNR (x_fake - x_real), of x_fake = +-1 / 2 and x_real the posterior's mean of N(0, 1 / 4).
    alpha, sigma = diffusion.alpha_sigma(method.noise(jnp.linspace(0.3, 0.5, 101)))
    desired = float(jnp.mean(alpha**2 / (alpha**2 / 4 + sigma**2)) / 2) if told else 0.0
    assert bright == pytest.approx(desired, abs=0.05)
    assert dark == pytest.approx(-desired, abs=0.05)


def test_a_fake_score_that_is_told_levels_starts_as_the_teacher():
    """Whatever they are: all blocks hear the noise's level, and the images' beside it."""
    teacher = drawn(DEEP.with_module({"target_blocks": 1}))
    method = dmd(generated_at=LEVELS, told_level=True)

    @jax.jit
    def both(z, logsnr, level):
        state = method.init(jax.random.key(0), teacher=teacher)
        fake = state.fake_score.network.network
        return fake.v(z, logsnr, Conditioning(target=level)), teacher.v(z, logsnr)

    z = jax.random.normal(jax.random.key(1), (4, *IMAGE))
    fake, expected = both(z, jnp.linspace(-3, 3, 4), jnp.array(LEVELS))
    np.testing.assert_allclose(fake, expected, rtol=1e-5, atol=1e-6)
    assert np.std(expected) > 1e-3


def test_the_multistep_solver():
    """The same variances, step by step, and fewer steps are the first levels."""
    denoise = posterior(0.0, 0.5).denoiser()
    solver = samplers.parse_solver(generator_solver(LEVELS))
    assert solver == samplers.Multistep(LEVELS)
    expected, last = variances()
    x, trajectory = samplers.sample(
        denoise, jax.random.key(0), (20_000, 1), schedule=SCHEDULE, num_steps=4, solver=solver,
        return_trajectory=True,
    )  # fmt: skip
    np.testing.assert_allclose(jnp.var(trajectory[:4], axis=(1, 2)), expected, rtol=0.05)
    assert float(jnp.var(x)) == pytest.approx(last, rel=0.05)
    settings = {"schedule": SCHEDULE, "z_init": jnp.ones((2, 1)), "solver": solver}
    one = samplers.sample(denoise, jax.random.key(0), num_steps=1, **settings)
    np.testing.assert_array_equal(one, denoise(jnp.ones((2, 1)), jnp.full(2, LEVELS[0])))
    with pytest.raises(ValueError, match="multistep takes 4 step"):
        samplers.sample(denoise, jax.random.key(0), num_steps=5, **settings)


@pytest.mark.parametrize("text", ["multistep:0,-3", "multistep:a", "multistep:,", "multistep:1,1"])
def test_levels_that_are_none(text):
    with pytest.raises(ValueError, match=f"'{text}': "):
        samplers.parse_solver(text)


# --- the classifier -------------------------------------------------------------------------------

IMAGE = (8, 8, 1)
DIT = Network(None, DiT(out_channels=1, features=32, depth=1, heads=2), "v", SCHEDULE, IMAGE)
DEEP = DIT.with_module({"depth": 2})


def drawn(network, seed=0):
    """A network of any numbers: without zeros, so that every gradient is alive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), network.shapes)


@pytest.fixture(scope="module")
def teacher():
    return drawn(DIT)


@pytest.fixture(scope="module")
def batch():
    return {"image": jax.random.uniform(jax.random.key(2), (16, *IMAGE), minval=-1)}


def of_images(**changes):
    slow = dataclasses.replace(ADAM, learning_rate=2e-3)
    settings = {"optimizer": slow, "fake_optimizer": slow, "adversarial": 0.5, "fake_updates": 1}
    return dmd(**settings | changes)


def from_teacher(method, teacher):
    return jax.jit(lambda teacher: method.init(jax.random.key(3), teacher=teacher))(teacher)


@pytest.mark.parametrize(("size", "convolutions"), [(8, 2), (32, 4), (4, 1)])
def test_the_papers_head(size, convolutions):
    """Convolutions of all channels, 4 x 4, down to one place; each with a norm."""
    c = 64
    shapes = jax.eval_shape(BottleneckHead().init, jax.random.key(0), jnp.zeros((2, size, size, c)))
    count = sum(a.size for a in jax.tree.leaves(shapes))
    assert count == convolutions * (16 * c * c + c + 2 * c) + c + 1


def test_a_head_of_maps_that_are_not_square():
    """Halved until the shorter side has 4 places; the last kernel is as large as the map."""
    c, h = 16, jax.random.normal(jax.random.key(1), (2, 8, 24, 16))
    params = BottleneckHead().init(jax.random.key(0), h)
    kernels = [params["params"][f"conv_{i}"]["kernel"].shape for i in (0, 1)]
    assert kernels == [(4, 4, c, c), (4, 12, c, c)]
    assert BottleneckHead().apply(params, h).shape == (2,)


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
def test_a_classifier_that_says_nothing(teacher, batch, features):
    """docs/methods/dmd.md, A8: ln 2 for the generator, twice that for the classifier."""
    method = of_images(features=features)
    state = from_teacher(method, teacher)
    fake = state.fake_score.network
    silent = fake.replace(head=jax.tree.map(jnp.zeros_like, fake.head))
    fake_score = state.fake_score.replace(network=silent)
    _, [row] = run(method, state.replace(fake_score=fake_score), batch, 1)
    assert row["adversarial"] == pytest.approx(0.5 * np.log(2), rel=1e-5)
    assert row["discriminator_loss"] == pytest.approx(2 * np.log(2), rel=1e-5)
    assert row["gan_grad_norm"] == 0


def test_each_loss_teaches_its_own(teacher, batch):
    """The generator's weights move the generator, the classifier's the fake score and its head."""
    base, adversarial, discriminating = (
        run(method, from_teacher(method, teacher), batch, 1)[0][-1]
        for method in (of_images(), of_images(adversarial=2.0), of_images(discriminating=1.0))
    )
    chex.assert_trees_all_close(base.fake_score.network, adversarial.fake_score.network, **ROUNDED)
    assert not same(base.generator.network, adversarial.generator.network)
    chex.assert_trees_all_close(base.generator.network, discriminating.generator.network, **ROUNDED)
    assert not same(base.fake_score.network.network, discriminating.fake_score.network.network)
    chex.assert_trees_all_equal(base.teacher, teacher)


def test_microbatches_are_noised_as_their_batch(teacher, batch):
    whole, parts = of_images(), of_images()
    parts = dataclasses.replace(
        parts, fake_optimizer=dataclasses.replace(parts.fake_optimizer, microbatches=4)
    )
    one, four = (run(m, from_teacher(m, teacher), batch, 1)[1][0] for m in (whole, parts))
    for name in ("real_logit", "fake_logit", "discriminator_loss", "fake_score_grad_norm"):
        assert four[name] == pytest.approx(one[name], rel=1e-4), name


def test_a_teacher_that_knows_targets_is_not_told_the_generators_level(batch):
    """Nor is its copy, the fake score: equal scores have no gradient."""
    method = dmd()
    state = from_teacher(method, drawn(DIT.with_target(SCHEDULE)))
    given = batch["image"], jnp.zeros(16), Conditioning(), jax.random.key(4)
    assert not jax.jit(method.gradient)(state, *given).any()


def test_the_teachers_features_leave_the_fake_score_alone(teacher, batch):
    """Then the classifier's loss reaches only its head."""
    few, many = (
        of_images(features="teacher", **changes) for changes in ({}, {"discriminating": 1.0})
    )
    one, two = (
        run(m, from_teacher(m, teacher), batch, 1)[0][-1].fake_score.network for m in (few, many)
    )
    chex.assert_trees_all_close(one.network, two.network, **ROUNDED)


def test_the_classifier_looks_no_further_than_the_bottleneck():
    """Of three blocks at the second one's map."""
    method = of_images(bottleneck=1)
    teacher = drawn(DIT.with_module({"depth": 3}))

    @jax.jit
    def slopes():
        state = method.init(jax.random.key(1), teacher=teacher)
        x = jax.random.normal(jax.random.key(2), (4, *IMAGE))
        noisy = method.noised(x, state, *jax.random.split(jax.random.key(3)))
        total = lambda fake: method.logit(fake, state, noisy, None, NOTHING).sum()  # noqa: E731
        return jax.grad(total)(state.fake_score.network).network.params

    found = slopes()
    reached = {name for name in found if any(np.any(a) for a in jax.tree.leaves(found[name]))}
    assert {name for name in reached if name.startswith("block")} == {"block_0", "block_1"}


def test_a_network_that_shows_no_maps():
    with pytest.raises(ValueError, match="Posterior shows no maps"):
        posterior(0.0, 1.0).features(jnp.zeros((1, 1)), jnp.zeros(1))


def test_it_tells_images_apart(teacher):
    """Its loss falls: the real images are all bright. At most levels noise hides them."""
    method = of_images(discriminating=1.0)
    batch = {"image": jnp.full((16, *IMAGE), 0.9)}
    _, rows = run(method, from_teacher(method, teacher), batch, 40)
    mean = lambda name, rows: np.mean([row[name] for row in rows])  # noqa: E731
    assert mean("discriminator_loss", rows[-10:]) < mean("discriminator_loss", rows[:2]) - 0.1
    assert mean("real_logit", rows[-10:]) > mean("fake_logit", rows[-10:]) + 0.1


# --- guidance and labels --------------------------------------------------------------------------


class WatchedLabels(Dmd):
    """Shows the labels of the images that the fake score would learn from."""

    def update_fake_score(self, state, images, rows, batch, key):
        _, _, told = rows
        return state.fake_score, {"labels": told.label}


def test_guidance_is_the_teachers_alone():
    """The real score is guided, the fake one is not; labels are among those asked for."""

    class Labelled(nn.Module):
        num_labels: int = 3

        @nn.compact
        def __call__(self, z, logsnr, told=NOTHING, *, train=False):
            shift = self.param("shift", nn.initializers.zeros, (4,))
            return 0 * z + shift[told.label][:, None]

    labelled = network(Labelled(), (2,), shift=[1.0, 2.0, 4.0, 0.5])
    labelled = labelled.replace(guidance=(0.0, math.inf))
    method = WatchedLabels(optimizer=ADAM, fake_optimizer=ADAM, guidance=1.5)
    state = begin(method, labelled, labelled, labels=(0, 2))
    batch = {"image": jnp.zeros((100, 2))}
    _, metrics = method.step(state, batch, jax.random.key(1), method.parts(1))
    assert set(np.asarray(metrics["labels"])) == {0, 2}
    x = jnp.zeros((2, 2))
    told = Conditioning(label=jnp.array([0, 2]))
    g = jax.jit(lambda: method.gradient(state, x, None, told, jax.random.key(0)))()
    # x_real = (1 + w) c - w u with c the label's and u the null label's; x_fake = c.
    c, u, w = np.array([1.0, 4.0]), 0.5, 1.5
    real = (1 + w) * c - w * u
    np.testing.assert_allclose(g, ((c - real) / np.abs(real))[:, None] * np.ones(2), rtol=1e-5)


# --- pairs ----------------------------------------------------------------------------------------


SAMPLED = posterior([0.2, -0.4], [0.5, 0.25])  # whose flow is z -> m + a z
PAIRS = Pairs(300, num_steps=64)


def make(path, column, network, batch_size):
    """The rows of a column of pairs."""
    column.make(path, network, seed=5, batch_size=batch_size, mesh=make_mesh())
    return column.read(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs") / "pairs.npz"


@pytest.fixture(scope="module")
def pairs(path):
    return make(path, PAIRS, SAMPLED, 128)


def first_of(pairs, num=300):
    """A batch of the first rows."""
    return PAIRS.batch({name: jnp.asarray(rows[:num]) for name, rows in pairs.items()}, None)


def test_pairs_take_the_papers_steps():
    """18, as in DMD."""
    assert Pairs(5) == Pairs(5, num_steps=18, solver="heun", guidance=None, path="")


def test_pairs_are_the_flow(pairs):
    """x = m + a z of the row's noise; half precision and Heun's error are below 0.004."""
    expected = np.array([0.2, -0.4]) + np.array([0.5, 0.25]) * np.asarray(first_of(pairs)["noise"])
    np.testing.assert_allclose(pairs["image"], expected, atol=4e-3)
    assert pairs["image"].dtype == np.float16


def test_pairs_do_not_depend_on_the_batch(pairs, tmp_path):
    other = make(tmp_path / "pairs.npz", PAIRS, SAMPLED, 300)
    np.testing.assert_allclose(other["image"], pairs["image"], atol=1e-3)
    np.testing.assert_array_equal(other["key"], pairs["key"])


def test_pairs_from_a_file(pairs, path, tmp_path):
    copy = tmp_path / "pairs.npz"
    shutil.copy(path, copy)
    column = dataclasses.replace(PAIRS, path=str(copy))
    chex.assert_trees_all_equal(column.read(copy), pairs)
    shapes = {"image": jax.ShapeDtypeStruct((299, 2), np.float16)}
    with pytest.raises(ValueError, match=r"pairs.npz: image is \(300, 2\), not \(299, 2\)"):
        check_rows(column, pairs, shapes)
    for content in (None, b"", b"PK"):
        if content is not None:
            copy.write_bytes(content)
        else:
            copy.unlink()
        with pytest.raises(ValueError, match="holds no pairs"):
            column.read(copy)


def test_no_guidance_needs_no_pair(tmp_path):
    """A weight of 0 costs one evaluation, unless the network takes it as an input."""
    module = DiT(1, features=8, depth=1, heads=2, num_labels=2)
    teacher = Network(None, module, "v", SCHEDULE, (4, 4, 1))
    student = teacher.with_module({"guidance": True})
    assert teacher.effective_guidance(0.0) is None
    assert (teacher.effective_guidance(1.5), student.effective_guidance(0.0)) == (1.5, 0.0)
    column = Pairs(4, num_steps=2, solver="ddim", guidance=0.0)
    student = student.init(jax.random.key(0))
    made = make(tmp_path / "pairs.npz", column, student, 4)
    assert made["image"].shape == (4, 4, 4, 1)
    check_rows(column, made, column.shapes(student))


def test_drawn_pairs_belong_together(pairs):
    """In the order of their own that a pipeline gives them: each once, then again."""
    data = noise_dataset(20, (2, 2, 1)).with_column(PAIRS.name, pairs, PAIRS.aligned)
    pipeline = Pipeline(data, 100, seed=3)
    batches = pipeline.iterator()

    def draw():
        raw = {name: rows[0] for name, rows in next(batches).items()}
        resident = jax.tree.map(jnp.asarray, pipeline.resident_arrays())
        key = jax.random.key(0)
        return make_batch(resident, raw, key, flip=False, columns=(PAIRS,))["pairs"]

    found = [draw() for _ in range(3)]
    z, x, label = (
        np.concatenate([pair[name] for pair in found]) for name in ("noise", "image", "label")
    )
    expected = np.array([0.2, -0.4]) + np.array([0.5, 0.25]) * z
    np.testing.assert_allclose(x, expected, atol=4e-3)
    assert len(np.unique(x[:, 0])) > 250  # all of them are drawn, some round to the same
    assert label.shape == (300,)
    assert not np.array_equal(x, np.asarray(pairs["image"], np.float32))  # shuffled


def test_regression_is_zero_where_the_generator_is_the_sampler(pairs):
    method = dmd(regression=0.25, matching=0.0, pairs=PAIRS)
    batch = {"image": jnp.zeros((64, 2)), "pairs": first_of(pairs, 64)}
    state = begin(method, affine([0.2, -0.4], [0.5, 0.25]), posterior([0.0, 0.0], [1.0, 1.0]))
    _, [row] = run(method, state, batch, 1)
    assert row["regression"] < 1e-4
    state = begin(method, affine([0.7, -0.4], [0.5, 0.25]), SAMPLED)
    _, [row] = run(method, state, batch, 1)
    # One of two coordinates is 0.5 off.
    assert row["regression"] == pytest.approx(0.25 * 0.5**2 / 2, rel=0.02)


# --- what it is given -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normaliser": "mean"}, "normaliser must be one of"),
        ({"features": "pixels"}, "features must be one of"),
        ({"fake_updates": 0}, "fake_updates must be at least 1"),
        ({"matching": 0.0}, "all zero"),
        ({"adversarial": -1.0}, "not be negative"),
        ({"guidance": math.inf}, "must be finite"),
        ({"generated_at": (0.0, -3.0)}, "must be rising"),
        ({"generated_at": (-3.0, 0.0, 3.0)}, "batch_size must be a multiple of the 3 levels"),
        ({"generated_at": (-8.76,)}, "sampled at the end of its schedule, logsnr -20; got -8.76"),
        ({"adversarial": 1.0, "bottleneck": 1}, "one of the encoder's 1 maps; got 1"),
        ({"matching_times": (0.5, 0.2)}, "matching_times must be"),
        ({"regression": 0.25}, "go together"),
        ({"pairs": Pairs(10)}, "go together"),
        ({"guidance": 1.0}, "cannot be guided"),
        ({"told_level": True}, "told_level is for several levels"),
        ({"optimizer": dataclasses.replace(ADAM, microbatches=3)}, "must divide the 16 images"),
        (
            {"fake_optimizer": dataclasses.replace(ADAM, ema_decay=0.9)},
            "without a moving average",
        ),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(DIT.module, TEACHER, stage(dmd(**changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": {"teacher": "x"}}, "no earlier stage makes"),
        ({"select": "recall"}, "select must be a distance"),
    ],
)
def test_stages_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(DIT.module, TEACHER, stage(dmd(), **changes))


@pytest.mark.slow
def test_the_fake_score_goes_on_with_the_generator(tmp_path, monkeypatch):
    """And its classifier, as in DMD2's code: those of the last update of its start's run."""
    train, first, saved = running.train, {}, {}

    def watched(method, state, *args, name, on_save, **kwargs):
        def watch(step, state):
            saved[name, step] = jax.tree.map(np.array, getattr(state, "fake_score", None))
            on_save(step, state)

        first[name] = jax.tree.map(np.array, getattr(state, "fake_score", None))
        return train(method, state, *args, name=name, on_save=watch, **kwargs)

    monkeypatch.setattr(running, "train", watched)
    config = tiny_dmd()
    config.evaluation.metrics = ()
    experiment.run(config, tmp_path)
    last = max(step for name, step in saved if name == "dm")
    learnt, begun = saved["dm", last].network, first["dm_gan_multistep"].network
    assert not same(learnt, first["dm"].network)
    assert "target_in" in begun.network.params  # which `told_level` brings
    kept = {name: begun.network.params[name] for name in learnt.network.params}
    chex.assert_trees_all_equal(kept, learnt.network.params)
    chex.assert_trees_all_equal(begun.head, learnt.head)

    shutil.rmtree(tmp_path / "dm_gan_multistep")
    shutil.rmtree(tmp_path / "dm/checkpoints")
    with pytest.raises(CheckpointError, match="goes on with what dm has learnt, whose checkpoints"):
        experiment.run(config, tmp_path)


def test_it_goes_on_from_a_generator_but_learns_from_no_generator():
    """A classifier comes in once matching has settled; scores are a denoiser's."""
    one, four = (
        stage(dmd(generated_at=levels), name)
        for name, levels in (("one", (-20.0,)), ("four", LEVELS))
    )
    for earlier in (one, four):
        given = {"teacher": "teacher", "start": earlier.name}
        plan = plan_of(DIT.module, TEACHER, earlier, stage(dmd(), "later", given=given))
        assert plan[earlier.name].measured_at == (len(earlier.method.generated_at),)
        assert plan[earlier.name].network.sampler == generator_solver(earlier.method.generated_at)
        assert plan["later"].given == given | {"start.fake_score": earlier.name}
        wrong = stage(dmd(), "x", given={"teacher": earlier.name})
        with pytest.raises(ValueError, match="knows a few noise levels only"):
            plan_of(DIT.module, TEACHER, earlier, wrong)


def going_on(first, later, teacher, start=None):
    """The fake score that `later` begins with, and that it was given by `first`."""
    one = first.init(jax.random.key(1), teacher=start or teacher)
    given = jax.tree.map(lambda a: a + 1, one.fake_score.network)
    state = later.init(
        jax.random.key(2), teacher=teacher, start=first.product(one), fake_score=given
    )
    return state.fake_score.network, given


@pytest.mark.parametrize("changes", [{}, {"features": "teacher"}, {"bottleneck": 0}])
def test_a_classifier_goes_on_if_it_looks_at_the_same_map(changes):
    first, later = dmd(adversarial=1.0), dmd(adversarial=1.0, **changes)
    teacher = drawn(DEEP)
    found, given = jax.jit(lambda teacher: going_on(first, later, teacher))(teacher)
    chex.assert_trees_all_equal(found.network.params, given.network.params)
    assert same(found.head, given.head) == (not changes)


def test_what_does_not_go_on():
    """The fake score of another network, and that of another generator."""
    teacher, deep = drawn(DIT), drawn(DEEP)
    for later, start in ((dmd(), deep), (dmd(scratch=True), teacher)):
        found, given = going_on(dmd(), later, teacher, start)
        chex.assert_trees_all_equal(found.network.params, teacher.params)
        assert not same(found.network.params, given.network.params)


def test_levels_in_turn_meet_all_noise():
    """Times are stratified over the batch, in rising order; there is no more noise than at 1."""
    method = dmd(generated_at=LEVELS, noise=KarrasSchedule())
    state = begin(method, None, posterior(0.0, 1.0))
    draw = jax.vmap(lambda key: method.noised(jnp.zeros((8, 1)), state, *jax.random.split(key))[1])
    logsnr = jax.jit(draw)(jax.random.split(jax.random.key(0), 200))
    of_level = np.reshape(logsnr, (-1, len(LEVELS)))
    highest, lowest = (float(method.noise(jnp.array(t))) for t in (0.1, 0.9))
    assert np.all(of_level.max(axis=0) > highest)
    assert np.all(of_level.min(axis=0) < lowest)
    assert of_level.min() > float(method.noise(jnp.ones(()))) - 1e-3


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        (LinearLogsnrSchedule(-6.0, 6.0), -6.0, 6.0),
        (KarrasSchedule(), -8.764, 12.429),
        (CosineSchedule(-20.0, 20.0), -8.764, 12.429),
        (DdpmSchedule("scaled_linear", 0.00085, 0.012), -5.364, 7.069),  # of the first time step
    ],
)
def test_the_noise_is_what_the_teacher_knows(schedule, low, high):
    """EDM's levels, but for those beyond the teacher's; others are refused there."""
    teacher = posterior(0.0, 1.0).replace(schedule=schedule)
    state, keys = begin(dmd(), None, teacher), jax.random.split(jax.random.key(0))
    _, logsnr, _ = dmd().noised(jnp.zeros((1024, 1)), state, *keys)
    edm = KarrasSchedule(math.exp(-high / 2), math.exp(-low / 2))
    levels = np.sort(logsnr)[::-1], edm(jnp.linspace(0, 1, 1024))
    np.testing.assert_allclose(*levels, atol=0.06)  # stratified: no two are further apart
    if low == -6.0:
        for std, known in (
            (1.0, r"sigma / alpha from 0\.0498 to 20"),
            (0.5, r"data_std sigma / alpha from 0\.0249 to 10"),
        ):
            with pytest.raises(ValueError, match=f"noise: the teacher knows {known}"):
                begin(dmd(noise=KarrasSchedule(0.01, 9.0, data_std=std)), None, teacher)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 0}, "num must be"),
        ({"solver": "ancestral"}, "deterministic"),
        ({"solver": "h"}, "one of"),
    ],
)
def test_pairs_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        Pairs(**{"num": 10} | changes)

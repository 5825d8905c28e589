"""Distribution matching against closed forms: Gaussian data, linear generators, exact scores."""

import dataclasses
import functools
import importlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from stepping import compiled, run, same
from tiny_experiment import tiny_dmd

from pdistill import diffusion, experiment, samplers
from pdistill import model as models
from pdistill.diffusion import CosineSchedule, KarrasSchedule
from pdistill.methods import Dmd, DmdStage, Teacher, matching_gradient
from pdistill.methods.dmd import DmdSettings
from pdistill.methods.generator import generator_solver, simulate_inputs
from pdistill.methods.pairs import PairsConfig, draw_pairs, make_pairs, noise, read_pairs
from pdistill.methods.stage import Round
from pdistill.networks import Diffuser, DiT
from pdistill.networks.discriminators import BottleneckHead
from pdistill.runtime.files import write_arrays
from pdistill.runtime.mesh import make_mesh
from pdistill.training import LoopConfig, Optimizer

running = importlib.import_module("pdistill.experiment.run")  # its function has its name

SCHEDULE = CosineSchedule()
ADAM = Optimizer(1e-2, b1=0.0, b2=0.99, clip_norm=0.0)


class Posterior(nn.Module):
    """x_hat of data N(m, A A^T), exactly; diagonal A. With a target, m is proportional to it."""

    target: bool = False

    @nn.compact
    def __call__(self, z, logsnr, label=None, *, target=None, train=False):
        m = self.param("m", nn.initializers.zeros, z.shape[1:])[None]
        if self.target:
            target = logsnr if target is None else target
            m = m + self.param("slope", nn.initializers.zeros, z.shape[1:])[None] * target[:, None]
        a = self.param("a", nn.initializers.ones, z.shape[1:])[None]
        alpha, sigma = diffusion.alpha_sigma(logsnr[:, None])
        return m + alpha * a**2 / (alpha**2 * a**2 + sigma**2) * (z - alpha * m)


class Affine(nn.Module):
    """m + A z, diagonal A, whatever the level."""

    @nn.compact
    def __call__(self, z, logsnr, label=None, *, train=False):
        m = self.param("m", nn.initializers.zeros, z.shape[1:])[None]
        return m + self.param("a", nn.initializers.ones, z.shape[1:])[None] * z


class OfLevel(nn.Module):
    """slope logsnr, the same for all noise."""

    @nn.compact
    def __call__(self, z, logsnr, label=None, *, train=False):
        slope = self.param("slope", nn.initializers.zeros, z.shape[1:])[None]
        return slope * logsnr[:, None] + 0 * z


class OfLabel(nn.Module):
    """The label, the same for all noise."""

    num_labels: int

    @nn.compact
    def __call__(self, z, logsnr, label=None, *, train=False):
        return label[:, None].astype(z.dtype) + 0 * z


POSTERIOR, AFFINE, OF_LEVEL = (
    Diffuser(network(), "x", SCHEDULE) for network in (Posterior, Affine, OfLevel)
)


def gaussian(m, a):
    return {"m": jnp.atleast_1d(jnp.asarray(m, float)), "a": jnp.atleast_1d(jnp.asarray(a, float))}


def linear(**changes):
    settings = {
        "diffuser": AFFINE,
        "teacher": POSTERIOR,
        "optimizer": ADAM,
        "fake_optimizer": ADAM,
    }
    return Dmd(**settings | changes)


# --- the matching gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("logsnr", [-4.0, 0.0, 3.0])
def test_it_is_the_gradient_of_kl(x64, logsnr):
    """Of Gaussians, in three dimensions. The mean over z and eps is exact: the integrand is a
    quadratic, which the points +-sqrt(n) e_i integrate.
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
    """The card's values; half a unit of their last place."""
    noise = DmdSettings().noise
    i = np.array([0, 20, 100, 250, 500, 750, 900, 980, 999])
    alpha, noisy = diffusion.alpha_sigma(noise(jnp.array(i / 999)))
    sigma = noisy / alpha  # of images that are not scaled to unit deviation, as EDM's are not
    expected = [0.002, 0.00323, 0.01675, 0.1703, 2.5265, 17.62, 45.56, 72.05, 80]
    np.testing.assert_allclose(sigma, expected, rtol=2e-3)
    ends = [float(noise(t)) for t in (0.0, 20 / 999, 980 / 999, 1.0)]
    np.testing.assert_allclose(ends, [12.43, 11.47, -8.56, -8.76], atol=0.006)


# --- steps ----------------------------------------------------------------------------------------


def test_equal_scores_move_nothing():
    """Whatever the generator makes; and the value logged is that of g, zero."""
    teacher = gaussian([0.3, -0.2], [0.5, 1.0])
    state = linear().init(jax.random.key(0), gaussian([2.0, 2.0], [0.1, 3.0]), teacher, (2,))
    (*_, after), rows = run(linear(), state, {"image": jnp.zeros((64, 2))}, 1)
    assert same(after.learners["student"].params, state.learners["student"].params)
    assert rows[0]["loss"] == rows[0]["matching_grad_norm"] == 0.0
    assert not same(after.learners["fake_score"].params, state.learners["fake_score"].params)


def test_how_often_each_learns():
    method = linear(fake_updates=3)
    state = method.init(jax.random.key(0), gaussian(1.0, 1.0), gaussian(0.0, 1.0), (1,))
    (*_, state), rows = run(method, state, {"image": jnp.zeros((16, 1))}, 7)
    counts = {
        name: {int(a) for a in jax.tree.leaves(learner.opt_state) if a.dtype == jnp.int32}
        for name, learner in state.learners.items()
    }
    assert counts == {"student": {3}, "fake_score": {7}}  # ceil(7 / 3)
    assert [row["param_norm"] > 0 for row in rows] == [i % 3 == 0 for i in range(7)]


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_an_update_told_that_it_is_due_is_the_same(step):
    """The loop tells it where it can, for a part without a condition."""
    method = linear(fake_updates=3)
    state = method.init(jax.random.key(0), gaussian(1.0, 1.0), gaussian(0.0, 1.0), (1,))
    state = state.replace(step=jnp.array(step))
    batch, key = {"image": jnp.zeros((16, 1))}, jax.random.key(5)
    desired, rows = compiled(method)(state, batch, key)
    told = jax.jit(functools.partial(method.step, due=method.due(step)))
    found, metrics = told(state, batch, key)
    assert method.due(step) is (step % 3 == 0)
    assert "conditional" not in told.lower(state, batch, key).compile().as_text()
    for a, b in zip(
        jax.tree.leaves((found, metrics)), jax.tree.leaves((desired, rows)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_the_gradient():
    """Half the mean square of g, times K; the slope at the images is g over their size."""
    method = linear(fake_updates=2)
    state = method.init(jax.random.key(0), gaussian(1.0, 0.3), gaussian(0.0, 1.0), (1,))
    fake = state.learners["fake_score"].replace(params={"network": gaussian(1.0, 0.3)})
    state = state.replace(learners=state.learners | {"fake_score": fake})
    num = 64
    _, [row] = run(method, state, {"image": jnp.zeros((num, 1))}, 1)
    # |g| at each image is sqrt(num) times the slope's norm, if all were alike.
    root_mean_square = np.sqrt(2 * row["loss"] / method.fake_updates)
    norm = row["matching_grad_norm"] / method.fake_updates
    assert norm == pytest.approx(root_mean_square / np.sqrt(num), rel=1e-5)


def test_the_fake_score_learns_the_generator():
    """Its optimum is the posterior mean of N(m, a^2): from far off, with the generator at rest."""
    method = linear(
        optimizer=dataclasses.replace(ADAM, learning_rate=1e-12),
        fake_optimizer=Optimizer(3e-2, b1=0.0, b2=0.99, anneal="linear", num_updates=600),
    )
    state = method.init(jax.random.key(0), gaussian(0.7, 0.4), gaussian(-1.0, 1.5), (1,))
    (*_, state), rows = run(method, state, {"image": jnp.zeros((512, 1))}, 600)
    learnt = state.learners["fake_score"].params["network"]
    # 300,000 images: means to 0.001; Adam's last steps are larger.
    assert float(learnt["m"][0]) == pytest.approx(0.7, abs=0.02)
    assert abs(float(learnt["a"][0])) == pytest.approx(0.4, abs=0.02)
    assert rows[-1]["fake_score_loss"] < 0.5 * rows[0]["fake_score_loss"]


@pytest.mark.parametrize("fake_rate", [3e-2, 0.0])
def test_where_the_flow_comes_to_rest(fake_rate):
    """At the data, from either side; with a fake score that does not learn, elsewhere."""
    method = linear(
        optimizer=Optimizer(1e-2, b1=0.0, b2=0.99, anneal="linear", num_updates=500),
        fake_optimizer=Optimizer(fake_rate or 1e-12, b1=0.0, b2=0.99),
        fake_updates=3,
    )
    teacher = gaussian([0.3, 0.3], [0.6, 0.6])
    state = method.init(jax.random.key(0), gaussian([1.5, -1.0], [0.2, 1.2]), teacher, (2,))
    fake = state.learners["fake_score"].replace(
        params={"network": gaussian([0.5, 0.5], [0.3, 0.3])}
    )
    state = state.replace(learners=state.learners | {"fake_score": fake})
    (*_, state), _ = run(method, state, {"image": jnp.zeros((256, 2))}, 1500)
    student = state.learners["student"].params
    error = max(np.abs(student["m"] - 0.3).max(), np.abs(np.abs(student["a"]) - 0.6).max())
    assert error < 0.05 if fake_rate else error > 0.2


# --- multistep ------------------------------------------------------------------------------------

LEVELS = (-20.0, -2.0, 0.0, 2.0)


def variances(s=0.25):
    """Of z at each level, for data of variance s and exact denoisers: the card's recursion."""
    alpha, sigma = (np.asarray(a, np.float64) for a in diffusion.alpha_sigma(jnp.array(LEVELS)))
    found, v = [1.0], (alpha[0] * s / (alpha[0] ** 2 * s + sigma[0] ** 2)) ** 2
    for j in range(1, len(LEVELS)):
        found.append(alpha[j] ** 2 * v + sigma[j] ** 2)
        v = (alpha[j] * s / (alpha[j] ** 2 * s + sigma[j] ** 2)) ** 2 * found[-1]
    return found, v


def test_backward_simulation():
    """The inputs of training have the variances that sampling gives them."""
    generator = functools.partial(POSTERIOR.denoiser, gaussian(0.0, 0.5))
    z, logsnr = jax.jit(
        lambda key: simulate_inputs(generator, LEVELS, jnp.zeros((80_000, 1)), None, key)
    )(jax.random.key(0))
    np.testing.assert_array_equal(logsnr, np.tile(np.float32(LEVELS), 20_000))
    # 20,000 squares of normals each: a standard deviation of 1 %.
    found = [float(jnp.var(z[j::4])) for j in range(4)]
    np.testing.assert_allclose(found, variances()[0], rtol=0.05)
    pure = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), z.shape)
    np.testing.assert_array_equal(z[::4], pure[::4])


def test_backward_simulation_of_each_label():
    """An image's inputs are of its own label: each image is its label, and noised as that."""
    generator = functools.partial(Diffuser(OfLabel(num_labels=9), "x", SCHEDULE).denoiser, {})
    label = jax.random.randint(jax.random.key(1), (4000,), 0, 9)
    z, logsnr = simulate_inputs(generator, LEVELS, jnp.zeros((4000, 1)), label, jax.random.key(0))
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
    method = linear(
        fake_optimizer=settling, optimizer=dataclasses.replace(ADAM, learning_rate=1e-7),
        diffuser=OF_LEVEL, levels=(-1.0, 1.0), fake_updates=1, told_level=told, normaliser="none",
        matching_times=(0.3, 0.5), noise=KarrasSchedule(data_std=0.5),  # the data's
    )  # fmt: skip
    generator = {"slope": jnp.array([0.5])}
    state = method.init(jax.random.key(0), generator, gaussian(0.0, 0.5), (1,))
    (*_, state), _ = run(method, state, {"image": jnp.zeros((64, 1))}, 600)
    found = state.learners["fake_score"].params["network"]
    # Tolerances are what Adam leaves after few updates.
    assert float(found["m"][0]) == pytest.approx(0.0, abs=0.1)
    assert abs(float(found["a"][0])) == pytest.approx(0.0 if told else 0.5, abs=0.1)
    level = jnp.tile(jnp.array([-1.0, 1.0]), 2000)
    images = 0.5 * level[:, None]
    g = method._matching(state, images, level, None, jax.random.key(1)).mean(axis=1)
    dark, bright = (float(part.mean()) for part in (g[::2], g[1::2]))
    # SNR (x_fake - x_real), of x_fake = +-1 / 2 and x_real the posterior's mean of N(0, 1 / 4).
    alpha, sigma = diffusion.alpha_sigma(method.noise(jnp.linspace(0.3, 0.5, 101)))
    desired = float(jnp.mean(alpha**2 / (alpha**2 / 4 + sigma**2)) / 2) if told else 0.0
    assert bright == pytest.approx(desired, abs=0.05)
    assert dark == pytest.approx(-desired, abs=0.05)


def test_the_multistep_solver():
    """The same variances, step by step, and fewer steps are the first levels."""
    denoise = POSTERIOR.denoiser(gaussian(0.0, 0.5))
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
DIFFUSER = Diffuser(DiT(out_channels=1, features=32, depth=1, heads=2), "v", SCHEDULE)


@pytest.fixture(scope="module")
def start():
    """Parameters without zeros, so that every gradient is alive."""
    flat, unravel = ravel_pytree(jax.jit(lambda: DIFFUSER.init(jax.random.key(0), IMAGE))())
    return unravel(flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape))


@pytest.fixture(scope="module")
def batch():
    return {"image": jax.random.uniform(jax.random.key(2), (16, *IMAGE), minval=-1)}


def images(**changes):
    slow = dataclasses.replace(ADAM, learning_rate=2e-3)
    return Dmd(
        **{"diffuser": DIFFUSER, "teacher": DIFFUSER, "optimizer": slow, "fake_optimizer": slow}
        | {"adversarial": 0.5, "fake_updates": 1}
        | changes
    )


def begin(method, params):
    return jax.jit(lambda params: method.init(jax.random.key(3), params, params, IMAGE))(params)


@pytest.mark.parametrize(("size", "convolutions"), [(8, 2), (32, 4), (4, 1)])
def test_the_papers_head(size, convolutions):
    """Convolutions of all channels, 4 x 4, down to one place; each with a norm."""
    c = 64
    shapes = jax.eval_shape(BottleneckHead().init, jax.random.key(0), jnp.zeros((2, size, size, c)))
    count = sum(a.size for a in jax.tree.leaves(shapes))
    assert count == convolutions * (16 * c * c + c + 2 * c) + c + 1


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
def test_a_classifier_that_says_nothing(start, batch, features):
    """Zero logits: ln 2 for the generator, twice that for the classifier."""
    method = images(features=features)
    state = begin(method, start)
    fake = state.learners["fake_score"]
    head = jax.tree.map(jnp.zeros_like, fake.params["head"])
    fake = fake.replace(params=fake.params | {"head": head})
    state = state.replace(learners=state.learners | {"fake_score": fake})
    _, [row] = run(method, state, batch, 1)
    assert row["adversarial"] == pytest.approx(0.5 * np.log(2), rel=1e-5)
    assert row["discriminator_loss"] == pytest.approx(2 * np.log(2), rel=1e-5)
    assert row["gan_grad_norm"] == 0


def test_each_loss_teaches_its_own(start, batch):
    """The generator's weights move the generator, the classifier's the fake score and its head."""
    (*_, base), _ = run(images(), begin(images(), start), batch, 1)
    other = images(adversarial=2.0)
    (*_, adversarial), _ = run(other, begin(other, start), batch, 1)
    other = images(discriminating=1.0)
    (*_, discriminating), _ = run(other, begin(other, start), batch, 1)
    assert same(base.learners["fake_score"].params, adversarial.learners["fake_score"].params)
    assert not same(base.learners["student"].params, adversarial.learners["student"].params)
    assert same(base.learners["student"].params, discriminating.learners["student"].params)
    moved = discriminating.learners["fake_score"].params["network"]
    assert not same(base.learners["fake_score"].params["network"], moved)
    assert same(base.frozen["teacher"], start)


def test_the_teachers_features_leave_the_fake_score_alone(start, batch):
    """Then the classifier's loss reaches only its head."""
    few, many = (images(features="teacher", discriminating=w) for w in (1e-2, 1.0))
    one, two = (
        run(m, begin(m, start), batch, 1)[0][-1].learners["fake_score"] for m in (few, many)
    )
    assert same(one.params["network"], two.params["network"])


@pytest.mark.parametrize(("bottleneck", "blocks"), [(0, {"block_0"}), (1, {"block_0", "block_1"})])
def test_the_classifier_looks_no_further_than_the_bottleneck(bottleneck, blocks):
    diffuser = dataclasses.replace(DIFFUSER, network=dataclasses.replace(DIFFUSER.network, depth=2))
    params = jax.tree.map(lambda a: a + 0.1, diffuser.init(jax.random.key(0), IMAGE))
    method = images(diffuser=diffuser, teacher=diffuser, bottleneck=bottleneck)
    state = method.init(jax.random.key(1), params, params, IMAGE)
    x = jax.random.normal(jax.random.key(2), (4, *IMAGE))
    slopes = jax.grad(lambda p: method._logit(p, state, x, None, None, jax.random.key(3)).sum())(
        state.learners["fake_score"].params
    )["network"]
    reached = {name for name in slopes if any(np.any(a) for a in jax.tree.leaves(slopes[name]))}
    assert {name for name in reached if name.startswith("block")} == blocks


def test_a_network_that_shows_no_maps():
    with pytest.raises(ValueError, match="Posterior shows no maps"):
        POSTERIOR.maps(gaussian(0.0, 1.0), jnp.zeros((1, 1)), jnp.zeros(1))


def test_it_tells_images_apart(start):
    """Its loss falls: the real images are all bright. At most levels noise hides them."""
    method = images(discriminating=1.0)
    batch = {"image": jnp.full((16, *IMAGE), 0.9)}
    _, rows = run(method, begin(method, start), batch, 40)
    mean = lambda name, rows: np.mean([row[name] for row in rows])  # noqa: E731
    assert mean("discriminator_loss", rows[-10:]) < mean("discriminator_loss", rows[:2]) - 0.1
    assert mean("real_logit", rows[-10:]) > mean("fake_logit", rows[-10:]) + 0.1


# --- guidance and labels --------------------------------------------------------------------------


def test_guidance_is_the_teachers_alone():
    """The real score is guided, the fake one is not; labels are among those asked for."""

    class Labelled(nn.Module):
        num_labels: int = 3

        @nn.compact
        def __call__(self, z, logsnr, label=None, *, train=False):
            shift = self.param("shift", nn.initializers.zeros, (4,))
            return 0 * z + shift[label][:, None]

    diffuser = Diffuser(Labelled(), "x", SCHEDULE)
    params = {"shift": jnp.array([1.0, 2.0, 4.0, 0.5])}
    method = Dmd(
        diffuser=diffuser, teacher=diffuser, optimizer=ADAM, fake_optimizer=ADAM, guidance=1.5
    )
    state = method.init(jax.random.key(0), params, params, (2,), labels=(0, 2))
    labels = method._draw_labels(jax.random.key(1), state.frozen["labels"], 100)
    assert set(np.asarray(labels)) == {0, 2}
    x = jnp.zeros((2, 2))
    label = jnp.array([0, 2])
    g = jax.jit(lambda: method._matching(state, x, None, label, jax.random.key(0)))()
    # x_real = (1 + w) c - w u with c the label's and u the null label's; x_fake = c.
    c, u, w = np.array([1.0, 4.0]), 0.5, 1.5
    real = (1 + w) * c - w * u
    np.testing.assert_allclose(g, ((c - real) / np.abs(real))[:, None] * np.ones(2), rtol=1e-5)


# --- pairs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(
        POSTERIOR, gaussian([0.2, -0.4], [0.5, 0.25]), PairsConfig(300, num_steps=64), shape=(2,),
        seed=5, batch_size=128, mesh=make_mesh(),
    )  # fmt: skip


def test_pairs_are_the_flow(pairs):
    """x = m + a z of the stored key's noise; half precision and Heun's error are below 0.004."""
    z = noise(jax.random.wrap_key_data(pairs["key"], impl="threefry2x32"), jnp.arange(300), (2,))
    expected = np.array([0.2, -0.4]) + np.array([0.5, 0.25]) * np.asarray(z)
    np.testing.assert_allclose(pairs["image"], expected, atol=4e-3)
    assert pairs["image"].dtype == np.float16


def test_pairs_do_not_depend_on_the_batch(pairs):
    other = make_pairs(
        POSTERIOR, gaussian([0.2, -0.4], [0.5, 0.25]), PairsConfig(300, num_steps=64), shape=(2,),
        seed=5, batch_size=300, mesh=make_mesh(),
    )  # fmt: skip
    np.testing.assert_allclose(other["image"], pairs["image"], atol=1e-3)


def test_pairs_from_a_file(pairs, tmp_path):
    path = tmp_path / "pairs.npz"
    write_arrays(path, pairs)
    found = read_pairs(PairsConfig(300, num_steps=64, path=str(path)), (2,))
    assert all(np.array_equal(found[name], pairs[name]) for name in pairs)
    with pytest.raises(ValueError, match=r"pairs.npz: image is \(300, 2\), not \(299, 2\)"):
        read_pairs(PairsConfig(299, path=str(path)), (2,))
    for content in (None, b"", b"PK"):
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(ValueError, match="holds no pairs"):
            read_pairs(PairsConfig(300, path=str(path)), (2,))


def test_no_guidance_needs_no_pair():
    """A weight of 0 costs one evaluation, unless the network takes it as an input."""
    teacher = Diffuser(DiT(1, features=8, depth=1, heads=2, num_labels=2), "v", SCHEDULE)
    student = teacher.with_guidance()
    assert teacher.effective_guidance(0.0) is None
    assert (teacher.effective_guidance(1.5), student.effective_guidance(0.0)) == (1.5, 0.0)
    config = PairsConfig(4, num_steps=2, solver="ddim", guidance=0.0)
    params = student.init(jax.random.key(0), (4, 4, 1))
    made = make_pairs(
        student, params, config, shape=(4, 4, 1), seed=0, batch_size=4, mesh=make_mesh()
    )
    assert made["image"].shape == (4, 4, 4, 1)


def test_drawn_pairs_belong_together(pairs):
    z, x, label = jax.jit(draw_pairs, static_argnums=2)(pairs, jax.random.key(0), (1000, 2))
    expected = np.array([0.2, -0.4]) + np.array([0.5, 0.25]) * np.asarray(z)
    np.testing.assert_allclose(x, expected, atol=4e-3)
    assert len(np.unique(np.asarray(x)[:, 0])) > 250  # nearly all of them are drawn
    assert label.shape == (1000,)


def test_regression_is_zero_where_the_generator_is_the_sampler(pairs):
    method = linear(regression=0.25, matching=0.0)
    params = gaussian([0.2, -0.4], [0.5, 0.25])
    state = method.init(jax.random.key(0), params, gaussian([0.0, 0.0], [1.0, 1.0]), (2,))
    state = state.replace(frozen=state.frozen | {"pairs": pairs})
    _, [row] = run(method, state, {"image": jnp.zeros((64, 2))}, 1)
    assert row["regression"] < 1e-4
    far = linear(regression=0.25, matching=0.0)
    state = far.init(jax.random.key(0), gaussian([0.7, -0.4], [0.5, 0.25]), params, (2,))
    state = state.replace(frozen=state.frozen | {"pairs": pairs})
    _, [row] = run(far, state, {"image": jnp.zeros((64, 2))}, 1)
    # One of two coordinates is 0.5 off; K = 5 times, as every generator's metric.
    assert row["regression"] == pytest.approx(5 * 0.25 * 0.5**2 / 2, rel=0.02)


# --- the stage ------------------------------------------------------------------------------------

LOOP = LoopConfig(10, 16, log_every=10, save_every=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "x"}, "no earlier stage makes"),
        ({"normaliser": "mean"}, "normaliser must be one of"),
        ({"features": "pixels"}, "features must be one of"),
        ({"fake_updates": 0}, "fake_updates must be at least 1"),
        ({"fake_updates": 3}, "log_every must be a multiple of fake_updates=3"),
        ({"matching": 0.0}, "all zero"),
        ({"adversarial": -1.0}, "must not be negative"),
        ({"levels": (0.0, -3.0)}, "must be rising"),
        ({"levels": (-3.0, 0.0, 3.0)}, "batch_size must be a multiple of the 3 levels; got"),
        ({"levels": (-8.76,)}, "sampled at the end of its schedule, logsnr -20; got -8.76"),
        ({"adversarial": 1.0, "bottleneck": 1}, "one of the encoder's 1 maps; got 1"),
        ({"matching_times": (0.5, 0.2)}, "matching_times must be"),
        ({"regression": 0.25}, "go together"),
        ({"pairs": PairsConfig(10)}, "go together"),
        ({"guidance": 1.0}, "cannot be guided"),
        ({"select": "recall"}, "select must be a distance"),
        ({"told_level": True}, "told_level is for several levels"),
        (
            {"loop": dataclasses.replace(LOOP, max_grad_norm=1.0)},
            "max_grad_norm is for a network that every update moves",
        ),
    ],
)
def test_mistakes(changes, message):
    teacher = Round(
        "teacher", "teacher", Teacher(DIFFUSER, ADAM), lambda key, parent: None, LOOP, (4,)
    )
    settings = {
        "name": "dmd", "loop": LOOP, "optimizer": ADAM, "fake_optimizer": ADAM,
        "teacher": "teacher",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        DmdStage(**settings | changes).rounds(DIFFUSER, IMAGE, {"teacher": teacher})


def test_the_fake_score_goes_on_with_the_generator(tmp_path, monkeypatch):
    """And its classifier, as in DMD2's code: those of the update whose generator was chosen."""
    train, first, saved = running.train, {}, {}

    def watched(method, state, *args, name, on_save, **kwargs):
        of = getattr(method, "extra", lambda state: None)

        def watch(step, state):
            saved[name, step] = jax.tree.map(np.array, of(state))
            on_save(step, state)

        first[name] = jax.tree.map(np.array, of(state))
        return train(method, state, *args, name=name, on_save=watch, **kwargs)

    monkeypatch.setattr(running, "train", watched)
    experiment.run(tiny_dmd(), tmp_path)
    directory = tmp_path / "dm"
    step = models.read_card(directory / "model")["selected_step"]
    chosen, begun = saved["dm", step], first["dm_gan_multistep"]
    assert not same(chosen, first["dm"])
    assert "target_in" in begun["network"]  # which `told_level` brings
    kept = {part: {name: begun[part][name] for name in chosen[part]} for part in chosen}
    jax.tree.map(np.testing.assert_array_equal, kept, chosen)

    mesh = make_mesh()
    jax.tree.map(np.testing.assert_array_equal, models.load_extra(directory, mesh), chosen)
    assert not (tmp_path / "dm_gan_multistep/model/extra").exists()  # nothing goes on from it
    card = models.read_card(directory / "model")
    models.change_card(directory / "model", extra_checksum=card["extra_checksum"] + 1)
    with pytest.raises(models.ModelError, match=r"not those that were saved; remove .*/dm to"):
        models.load_extra(directory, mesh)
    shutil.rmtree(directory / "model/extra")
    with pytest.raises(models.ModelError, match=r"without what training goes on with; remove "):
        models.load_extra(directory, mesh)


def test_it_goes_on_from_a_generator_but_learns_from_no_generator():
    """A classifier comes in once matching has settled; scores are a denoiser's."""
    teacher = Round(
        "teacher", "teacher", Teacher(DIFFUSER, ADAM), lambda key, parent: None, LOOP, (4,)
    )
    settings = {"loop": LOOP, "optimizer": ADAM, "fake_optimizer": ADAM, "teacher": "teacher"}
    earlier = {"teacher": teacher}
    for name, levels in (("one", (-20.0,)), ("four", LEVELS)):
        stage = DmdStage(name=name, levels=levels, **settings)
        [earlier[name]] = stage.rounds(DIFFUSER, IMAGE, earlier)
        assert earlier[name].num_steps == (len(levels),)
        assert not earlier[name].resumes
        [later] = DmdStage(name="later", start=name, **settings).rounds(DIFFUSER, IMAGE, earlier)
        assert (later.parent, later.teacher, later.resumes) == (name, "teacher", True)
        with pytest.raises(ValueError, match="that it generates at only"):
            DmdStage(name="x", **settings | {"teacher": name}).rounds(DIFFUSER, IMAGE, earlier)
    network = dataclasses.replace(DIFFUSER.network, depth=2)
    method = Teacher(dataclasses.replace(DIFFUSER, network=network), ADAM)
    earlier["other"] = dataclasses.replace(teacher, name="other", method=method)
    stage = DmdStage(name="later", start="one", **settings | {"teacher": "other"})
    assert not stage.rounds(DIFFUSER, IMAGE, earlier)[0].resumes  # of another network
    stage = DmdStage(name="later", start="one", scratch=True, **settings)
    assert not stage.rounds(DIFFUSER, IMAGE, earlier)[0].resumes  # with another generator


@pytest.mark.parametrize("changes", [{}, {"features": "teacher"}, {"bottleneck": 0}])
def test_a_classifier_goes_on_if_it_looks_at_the_same_map(changes):
    network = dataclasses.replace(DIFFUSER.network, depth=2)
    diffuser = dataclasses.replace(DIFFUSER, network=network)
    teacher = Round(
        "teacher", "teacher", Teacher(diffuser, ADAM), lambda key, parent: None, LOOP, (4,)
    )
    settings = {
        "loop": LOOP, "optimizer": ADAM, "fake_optimizer": ADAM, "teacher": "teacher",
        "adversarial": 1.0,
    }  # fmt: skip
    earlier = {"teacher": teacher}
    [earlier["one"]] = DmdStage(name="one", **settings).rounds(diffuser, IMAGE, earlier)
    stage = DmdStage(name="later", start="one", **settings | changes)
    [later] = stage.rounds(diffuser, IMAGE, earlier)
    params = diffuser.init(jax.random.key(0), IMAGE)
    one = earlier["one"].init(jax.random.key(1), params)
    extra = jax.tree.map(lambda a: a + 1, earlier["one"].method.extra(one))
    state = later.init(jax.random.key(2), params, params, extra)
    found = later.method.extra(state)
    assert same(found["network"], extra["network"])
    assert same(found["head"], extra["head"]) == (not changes)


def test_levels_in_turn_meet_all_noise():
    """Times are stratified over the batch, in rising order."""
    method = linear(levels=LEVELS, noise=KarrasSchedule())
    logsnr = [
        method._noised(jnp.zeros((8, 1)), *jax.random.split(jax.random.key(seed)))[1]
        for seed in range(200)
    ]
    of_level = np.reshape(logsnr, (-1, len(LEVELS)))
    highest, lowest = (float(method.noise(jnp.array(t))) for t in (0.1, 0.9))
    assert np.all(of_level.max(axis=0) > highest)
    assert np.all(of_level.min(axis=0) < lowest)


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
        PairsConfig(**{"num": 10} | changes)

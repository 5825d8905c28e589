"""Cascades of closed-form conditional denoisers: the values of docs/methods/lowdiff.md."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import samplers
from pdistill.data.images import average, repeat
from pdistill.diffusion import CosineSchedule, Gaussian, alpha_sigma
from pdistill.samplers import Cascade, Heun, Level, sample_cascade

SCHEDULE = CosineSchedule()
KEY = jax.random.key(0)
# Two pixels of covariance S beside each other, and the same two below: images of 2x2 that are
# averaged to one pixel as the pair.
PAIR = np.array([[1.0, 0.6], [0.6, 1.0]])
S = np.tile(PAIR, (2, 2))
P = np.full((1, 4), 0.25)


def gaussian(mean, covariance):
    """The denoiser of images x ~ N(mean [B, n, n, 1], covariance [n n, n n])."""

    def denoise(z, logsnr):
        alpha, sigma = alpha_sigma(logsnr[0])
        c = jnp.asarray(covariance, z.dtype)
        gain = alpha * jnp.linalg.solve(alpha**2 * c + sigma**2 * jnp.eye(len(c), dtype=z.dtype), c)
        offset = (z - alpha * mean).reshape(len(z), -1)
        return mean + (offset @ gain).reshape(z.shape)

    return denoise


def moments(s):
    """Gain K and covariance C of x given c = P x + s eps: x | c ~ N(K c, C)."""
    k = S @ P.T / (P @ S @ P.T + s**2)
    return k, S - k @ P @ S


def pair_cascade(s, factor=1.0):
    """Two levels: P x, of `factor` times its variance, and x given that plus noise of std s."""
    k, c = moments(s)

    def given(condition):
        noisy, _ = condition
        mean = noisy.reshape(-1, 1) @ jnp.asarray(k.T, noisy.dtype)
        return gaussian(mean.reshape(-1, 2, 2, 1), c)

    low = Gaussian(0.0, float(np.sqrt(factor * (P @ S @ P.T).item())))
    return [Level(1, SCHEDULE, lambda _: low.denoise), Level(2, SCHEDULE, given)]


def draw(levels, num, num_steps, **settings):
    noise = settings.pop("noise", 0.0)
    return sample_cascade(
        levels, KEY, (num, 2, 2, 1), num_steps=num_steps, solver=Cascade(Heun(), noise), **settings
    )


def test_moments_of_the_pair():
    """docs/methods/lowdiff.md, A1: S_l = 0.8, K = 1, C = +-0.2."""
    k, c = moments(0.0)
    np.testing.assert_allclose((P @ S @ P.T).item(), 0.8)
    np.testing.assert_allclose(k, 1.0)
    np.testing.assert_allclose(c[:2, :2], [[0.2, -0.2], [-0.2, 0.2]], atol=1e-12)


@pytest.mark.parametrize(
    ("s", "factor", "variance", "covariance"),
    [
        (0.0, 1.0, 1.0, 0.6),  # exact, with noise on the condition or without
        (0.3, 1.0, 1.0, 0.6),
        (0.0, 1.2, 1.16, 0.76),  # the first level's error passes on
        (0.3, 1.2, 1.129, 0.729),  # and is damped by the noise
    ],
)
def test_a_cascade_of_gaussians(s, factor, variance, covariance):
    """docs/methods/lowdiff.md, A1 and A2: K (f Sl + s^2) K^T + C.

    To 5 standard errors sqrt(2 / n) of n = 200,000, 0.016. Heun's error in 48 steps is below 2e-3.
    """
    x = jax.jit(lambda: draw(pair_cascade(s, factor), 200_000, (48, 48), noise=s))()
    found = np.cov(np.asarray(x).reshape(-1, 4).T)
    assert found[0, 0] == pytest.approx(variance, abs=0.016)
    assert found[0, 1] == pytest.approx(covariance, abs=0.016)
    k, c = moments(s)
    desired = k @ (factor * P @ S @ P.T + s**2) @ k.T + c
    np.testing.assert_allclose(found, desired, atol=0.016)


def test_perfect_models_keep_what_they_are_told():
    """docs/methods/lowdiff.md, A3: averages of x_hat are the condition, at any z."""
    np.testing.assert_allclose(P @ moments(0.0)[1], 0, atol=1e-12)
    low, high = jax.jit(lambda: draw(pair_cascade(0.0), 50, (3, 2), return_levels=True))()
    np.testing.assert_allclose(average(high, 2), low, atol=1e-5)  # float32
    assert float(jnp.std(high - repeat(low, 2))) > 0.2  # there is detail: its variance is 0.2


def test_averages_of_noise():
    """docs/methods/lowdiff.md, A4: x = repeat(c) + detail, orthogonal; noise has half the std."""
    eps = jax.random.normal(KEY, (500, 16, 16, 1))
    detail = eps - repeat(average(eps, 2), 2)
    np.testing.assert_allclose(average(detail, 2), 0, atol=1e-6)
    # 32,000 averages: a standard error of 0.4 percent, and 4 of them.
    assert float(average(eps, 2).std()) == pytest.approx(0.5, rel=0.016)


class Counting:
    """Denoisers that write down what they are called with."""

    def __init__(self):
        self.calls = []

    def level(self, size):
        def denoiser(condition):
            def denoise(z, logsnr):
                told = condition and (condition[0].shape, round(float(condition[1].mean()), 3))
                self.calls.append((size, z.shape, told))
                return 0.5 * z

            return denoise

        return Level(size, SCHEDULE, denoiser)


@pytest.mark.parametrize(
    ("solver", "counts"), [(samplers.Ddim(), (4, 3, 1)), (samplers.Heun(), (7, 5, 1))]
)
def test_calls_of_the_network(solver, counts):
    """docs/methods/lowdiff.md, A5: n_l a level (2 n_l - 1 of Heun), of its shape and condition.

    The condition's noise of std 0.1 has the log-SNR -2 log 0.1 = 4.605.
    """
    counting = Counting()
    levels = [counting.level(size) for size in (2, 4, 8)]
    with jax.disable_jit():  # loops run as they are
        x = sample_cascade(
            levels, KEY, (5, 8, 8, 3), num_steps=(4, 3, 1), solver=Cascade(solver, 0.1)
        )
    assert x.shape == (5, 8, 8, 3)
    assert counting.calls == [
        *[(2, (5, 2, 2, 3), None)] * counts[0],  # nothing to be told at the first
        *[(4, (5, 4, 4, 3), ((5, 2, 2, 3), 4.605))] * counts[1],
        *[(8, (5, 8, 8, 3), ((5, 4, 4, 3), 4.605))] * counts[2],
    ]
    assert samplers.num_evaluations(Cascade(solver), (4, 3, 1)) == sum(counts)


@pytest.mark.parametrize("keys", [KEY, jax.random.split(KEY, 6)], ids=["one", "each"])
def test_one_level_is_the_plain_sampler(keys):
    """To the bit."""
    denoise = Gaussian(0.3, 0.7).denoise
    level = Level(4, SCHEDULE, lambda condition: denoise)
    how = {"num_steps": 5, "clip": (-1.0, 1.0)}
    plain = samplers.sample(denoise, keys, (6, 4, 4, 1), schedule=SCHEDULE, **how)
    how |= {"num_steps": (5,), "solver": Cascade(noise=0.3)}
    np.testing.assert_array_equal(sample_cascade([level], keys, (6, 4, 4, 1), **how), plain)


def test_samples_depend_on_their_own_keys():
    """Of all levels: a batch's first rows are those of a smaller batch."""
    keys = jax.random.split(KEY, 6)
    levels = pair_cascade(0.3)
    several, few = (
        sample_cascade(levels, k, (len(k), 2, 2, 1), num_steps=(4, 4), solver=Cascade(noise=0.3))
        for k in (keys, keys[:2])
    )
    np.testing.assert_allclose(several[:2], few, rtol=1e-5, atol=1e-6)


def test_noise_is_fresh_everywhere():
    """Of each level and of each condition: no two are correlated (0.011 is one standard error)."""

    def noise(condition):
        return lambda z, logsnr: z

    def conditions(condition):
        return lambda z, logsnr: condition[0] if condition else z

    def draw(denoiser):
        return sample_cascade(
            [Level(4, SCHEDULE, denoiser)] * 3, KEY, (512, 4, 4, 1), num_steps=(1, 1, 1),
            solver=Cascade(noise=1.0), return_levels=True,
        )  # fmt: skip

    first, second, third = draw(noise)
    same, with_one, with_two = draw(conditions)
    np.testing.assert_array_equal(same, first)
    drawn = first, second, third, with_one - first, with_two - with_one
    found = np.corrcoef([np.ravel(a) for a in drawn])
    np.testing.assert_allclose(found, np.eye(5), atol=0.05)
    np.testing.assert_allclose(np.std(drawn, axis=(1, 2, 3, 4)), 1, atol=0.03)


def test_a_tree_of_modes():
    """docs/methods/lowdiff.md, A7: a coarse mode, then a fine one that depends on it.

    Coarse: one pixel near -0.6 (0.3) or 0.6 (0.7), std 0.05. Fine: it in four pixels, plus or minus
    a pattern, by weights that the coarse mode decides. 4 standard errors of a frequency p of n are
    4 sqrt(p (1 - p) / n), at most 0.026 of the 6,000 with the rarer coarse mode.
    """
    centers, weights, std = jnp.array([-0.6, 0.6]), jnp.array([0.3, 0.7]), 0.05
    fine = jnp.array([[0.2, 0.8], [0.6, 0.4]])  # of each coarse mode
    pattern = 0.3 * jnp.array([[1.0, -1.0], [-1.0, 1.0]])[None, :, :, None]
    patterns = jnp.concatenate([pattern, -pattern])  # [2, 2, 2, 1]

    def mixture(z, logsnr, means, log_weights):
        """x_hat for means [B, K, h, w, 1] and log_weights [B, K], each of the common std."""
        alpha, sigma = alpha_sigma(logsnr[0])
        variance = alpha**2 * std**2 + sigma**2
        offset = z[:, None] - alpha * means
        logits = log_weights - jnp.sum(offset**2, (2, 3, 4)) / (2 * variance)
        x = means + alpha * std**2 / variance * offset
        return jnp.sum(jax.nn.softmax(logits)[:, :, None, None, None] * x, 1)

    def coarse(_):
        means = centers[None, :, None, None, None]
        return lambda z, logsnr: mixture(z, logsnr, means, jnp.log(weights)[None])

    def given(condition):
        c = condition[0]
        near = jax.nn.softmax(
            jnp.log(weights)[None] - (c[:, 0, 0] - centers[None]) ** 2 / (2 * std**2)
        )
        means = repeat(c, 2)[:, None] + patterns[None]
        return lambda z, logsnr: mixture(z, logsnr, means, jnp.log(near @ fine))

    levels = [Level(1, SCHEDULE, coarse), Level(2, SCHEDULE, given)]
    low, high = jax.jit(lambda: draw(levels, 20_000, (64, 64), return_levels=True))()
    is_high, has_pattern = low[:, 0, 0, 0] > 0, (high[:, 0, 0, 0] > high[:, 0, 1, 0])
    assert float(is_high.mean()) == pytest.approx(0.7, abs=0.013)
    for mode in (0, 1):
        share = has_pattern[is_high == bool(mode)].mean()
        assert float(share) == pytest.approx(float(fine[mode, 0]), abs=0.026)


def test_steps_and_solvers_by_name():
    assert samplers.parse_solver("cascade:heun:0.1") == Cascade(Heun(), 0.1)
    assert samplers.parse_solver("cascade") == Cascade()
    for text in ("8", "8+4+2"):
        assert str(samplers.format_steps(samplers.parse_steps(text))) == text
    assert samplers.parse_steps("8+4+2") == (8, 4, 2)
    assert samplers.parse_solver("cascade:heun") == samplers.Cascade(samplers.Heun(), 0.0)
    assert samplers.parse_steps("8+4") == (8, 4)
    assert samplers.parse_steps("8") == 8
    assert samplers.format_steps(np.int64(8)) == 8
    assert samplers.format_steps([8, 4]) == "8+4"


def test_mistakes():
    levels = pair_cascade(0.0)
    with pytest.raises(ValueError, match="has 2 resolutions, \\[1, 2\\] pixels: give as many"):
        draw(levels, 3, (4,))
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        draw(levels, 3, (4, 0))
    with pytest.raises(ValueError, match="a cascade takes a tuple of steps"):
        samplers.check_steps(Cascade(), 4)
    samplers.check_steps(Cascade(), (4, 2))
    with pytest.raises(ValueError, match="ddim takes one count of steps, not a cascade's"):
        samplers.check_steps(samplers.Ddim(), (4, 2))
    with pytest.raises(ValueError, match="makes images of 2 pixels a side"):
        sample_cascade(levels, KEY, (3, 4, 4, 1), num_steps=(1, 1), solver=Cascade())
    with pytest.raises(ValueError, match="makes images of 1 pixels a side"):
        sample_cascade(levels[:1], KEY, (3, 4, 4, 1), num_steps=(1,), solver=Cascade())
    with pytest.raises(ValueError, match=r"takes a cascade's solver, .*; got Ddim\(\)"):
        sample_cascade(levels, KEY, (3, 2, 2, 1), num_steps=(1, 1), solver=samplers.Ddim())
    with pytest.raises(ValueError, match="use sample_cascade for a cascade"):
        samplers.sample(
            lambda z, _: z, KEY, (3, 1), schedule=SCHEDULE, num_steps=(1, 1), solver=Cascade()
        )
    with pytest.raises(ValueError, match="solver must sample denoisers"):
        samplers.parse_solver("cascade:one_step:0.1")
    with pytest.raises(ValueError, match=r"std must be \[B\]"):
        samplers.with_noise(KEY, jnp.zeros((3, 2, 2, 1)), jnp.zeros(1))
    with pytest.raises(ValueError, match="noise must not be negative"):
        dataclasses.replace(Cascade(), noise=-0.5)

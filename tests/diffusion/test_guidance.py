import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    alpha_sigma,
    eps_from_x,
    guide,
    pair_of,
    v_from_x,
)
from pdistill.samplers import sample

CONDITIONAL, UNCONDITIONAL = Gaussian(0.6, 0.4), Gaussian(-0.1, 0.4)
PAIR = pair_of(CONDITIONAL.denoise, UNCONDITIONAL.denoise)
Z = np.random.default_rng(0).normal(size=(5, 3))
LOGSNR = np.linspace(-6, 6, 5)
SCHEDULE = CosineSchedule(-20.0, 20.0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0, -1.0])
def test_guiding_gaussians_of_equal_width_extrapolates_their_means(x64, weight):
    """x_hat is linear in the mean, so guidance acts as another Gaussian's denoiser."""
    guided = guide(PAIR, weight)(Z, LOGSNR)
    mean = 0.6 + weight * (0.6 + 0.1)
    np.testing.assert_allclose(guided, Gaussian(mean, 0.4).denoise(Z, LOGSNR), atol=1e-14)


@pytest.mark.parametrize("convert", [eps_from_x, v_from_x])
def test_rule_is_the_same_for_eps_and_v(x64, convert):
    """docs/methods/guided.md, G1: guided in x and converted, or converted and guided."""

    def converted(denoise):
        return lambda z, logsnr: convert(z, denoise(z, logsnr), logsnr)

    other = pair_of(converted(CONDITIONAL.denoise), converted(UNCONDITIONAL.denoise))
    desired = converted(guide(PAIR, 2.0))(Z, LOGSNR)
    np.testing.assert_allclose(guide(other, 2.0)(Z, LOGSNR), desired, atol=1e-12)


def test_no_guidance_is_the_conditional_denoiser(x64):
    np.testing.assert_array_equal(guide(PAIR, 0.0)(Z, LOGSNR), CONDITIONAL.denoise(Z, LOGSNR))


def test_weight_may_be_traced_and_differ_between_examples(x64):
    slope = jax.grad(lambda w: guide(PAIR, w)(Z, LOGSNR).sum())(1.0)
    gap = CONDITIONAL.denoise(Z, LOGSNR) - UNCONDITIONAL.denoise(Z, LOGSNR)
    np.testing.assert_allclose(slope, gap.sum(), rtol=1e-12)
    weights = np.array([0.0, 1.0, 2.0, -1.0, 0.5])
    desired = CONDITIONAL.denoise(Z, LOGSNR) + weights[:, None] * gap
    np.testing.assert_allclose(guide(PAIR, weights)(Z, LOGSNR), desired, atol=1e-12)


def test_interval_in_log_snr(x64):
    """w applies from -3 to 3 here: to the second, third and fourth of -6, -3, 0, 3, 6."""
    found = guide(PAIR, 2.0, interval=(-3.0, 3.0))(Z, LOGSNR)
    weights = np.array([0.0, 2.0, 2.0, 2.0, 0.0])
    np.testing.assert_allclose(found, guide(PAIR, weights)(Z, LOGSNR), atol=1e-14)
    own = np.array([(-7.0, 3.0), (-2.0, 2.0), (-1.0, 1.0), (3.0, 4.0), (6.0, 7.0)])
    found = guide(PAIR, 2.0, interval=own)(Z, LOGSNR)
    weights = np.array([2.0, 0.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(found, guide(PAIR, weights)(Z, LOGSNR), atol=1e-14)
    for interval in ((3.0, -3.0), (1.0, 1.0), [3.0, -3.0], np.array([[0.0, 1.0], [3.0, -3.0]])):
        with pytest.raises(ValueError, match=r"interval must be \(low, high\)"):
            guide(PAIR, 1.0, interval=interval)


def test_levels_on_a_device_are_not_waited_for():
    """They are not checked, then, at each evaluation of a network."""
    levels, z = jnp.array([[-3.0, 3.0]] * 5), jnp.asarray(Z, jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "asarray", None)
        predict = guide(PAIR, 2.0, interval=levels)
    desired = guide(PAIR, 2.0, interval=(-3.0, 3.0))(z, jnp.zeros(5))
    np.testing.assert_array_equal(predict(z, jnp.zeros(5)), desired)


def test_no_weight_needs_no_second_prediction(x64):
    """Which may be no number where it counts for nothing; the slope by the weight stays."""

    def broken(z, logsnr):
        return jnp.where(logsnr[:, None] < 0, jnp.nan, UNCONDITIONAL.denoise(z, logsnr))

    found = guide(pair_of(CONDITIONAL.denoise, broken), 2.0, interval=(0.0, 9.0))(Z, LOGSNR)
    np.testing.assert_array_equal(found, guide(PAIR, 2.0, interval=(0.0, 9.0))(Z, LOGSNR))
    slope = jax.grad(lambda w: guide(PAIR, w)(Z, LOGSNR).sum())(0.0)
    assert abs(slope) > 0.1


def test_the_first_channels_alone_are_guided(x64):
    """Of images, whose channels are the last axis."""
    z = np.random.default_rng(1).normal(size=(5, 2, 2, 4))
    found, whole = (guide(PAIR, 2.0, channels=n)(z, LOGSNR) for n in (3, None))
    np.testing.assert_array_equal(found[..., :3], whole[..., :3])
    np.testing.assert_array_equal(found[..., 3:], CONDITIONAL.denoise(z, LOGSNR)[..., 3:])


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaling_brings_back_the_spread(x64, rescale):
    """At 1 each guided example has the conditional one's standard deviation, exactly."""
    pair = pair_of(CONDITIONAL.denoise, Gaussian(-0.1, 0.8).denoise)  # guided has another one
    found = guide(pair, 3.0, rescale=rescale)(Z, LOGSNR)
    guided, conditional = guide(pair, 3.0)(Z, LOGSNR), CONDITIONAL.denoise(Z, LOGSNR)
    ratio = np.std(conditional, axis=1) / np.std(guided, axis=1)
    scale = rescale * ratio + 1 - rescale
    np.testing.assert_allclose(found, guided * scale[:, None], rtol=1e-12)
    if rescale == 1.0:
        np.testing.assert_allclose(np.std(found, 1), np.std(conditional, 1), rtol=1e-12)
    for wrong in (-0.5, 1.5):
        with pytest.raises(ValueError, match=r"rescale must be in \[0, 1\]"):
            guide(PAIR, 1.0, rescale=wrong)


@pytest.mark.parametrize(("own", "other"), [(0.5, 0.25), (0.1, 0.07)])
def test_constant_predictions_have_no_spread_to_bring_back(own, other):
    """Not even by the rounding of their mean, as those of 0.1 have; nor is their slope NaN."""
    z, logsnr = jnp.ones((2, 16, 16, 3)), jnp.zeros(2)

    def guided(own):
        flat = pair_of(*(lambda z, _, mean=mean: jnp.full_like(z, mean) for mean in (own, other)))
        return guide(flat, 2.0, rescale=1.0)(z, logsnr)

    np.testing.assert_allclose(guided(own), 3 * own - 2 * other, rtol=1e-6)
    assert jax.grad(lambda own: guided(own).mean())(own) == pytest.approx(3, rel=1e-5)


def test_a_constant_conditional_prediction_has_a_slope():
    """By the root of its variance, 0, it would be NaN."""
    z = jnp.asarray(Z, jnp.float32)

    def guided(own):
        pair = pair_of(lambda z, _: jnp.full_like(z, own), lambda z, _: z)
        return guide(pair, 2.0, rescale=0.5)(z, jnp.zeros(5)).sum()

    assert jax.grad(guided)(0.5) == pytest.approx(0.5 * 3 * z.size, rel=1e-5)


def test_guided_flow_of_gaussians_of_equal_width_ends_at_a_gaussian(x64):
    """docs/methods/guided.md, G2: noise z becomes m_w + s z, with m_w = 2.5 here.

    The tolerance is DDIM's error with 4,000 steps, a few over N.
    """
    pair = pair_of(Gaussian(0.8, 0.4).denoise, Gaussian(-0.2, 0.4).denoise)
    z = jnp.array([[-1.0], [0.0], [0.7]])
    x = sample(guide(pair, 1.7), None, schedule=SCHEDULE, num_steps=4000, z_init=z)
    np.testing.assert_allclose(x, 2.5 + 0.4 * np.asarray(z), atol=3e-3)


def test_guided_flow_of_gaussians_of_other_widths(x64):
    """docs/methods/guided.md, G3: s_c^(1 + w) / s_u^w; the error halves with the step."""
    pair = pair_of(Gaussian(0.0, 0.4).denoise, Gaussian(0.0, 0.8).denoise)
    draw = functools.partial(
        sample, guide(pair, 1.7), None, schedule=SCHEDULE, z_init=jnp.ones((1, 1))
    )
    errors = [abs(draw(num_steps=n)[0, 0] / 0.12311444 - 1) for n in (500, 1000, 2000)]
    assert errors[2] < 5e-3
    np.testing.assert_allclose(np.divide(errors[:2], errors[1:]), 2, rtol=0.05)


def test_one_guided_ddim_step_has_the_mixed_gain(x64):
    """docs/methods/guided.md, G3: G^w = (1 + w) G_c - w G_u for zero-mean Gaussians."""
    t, s = jnp.array([-1.0]), jnp.array([0.5])

    def gain(denoise):
        from pdistill.samplers import ddim_step

        z = jnp.ones((1, 1))
        return ddim_step(z, denoise(z, t), t[:, None], s[:, None])[0, 0]

    conditional, unconditional = Gaussian(0.0, 0.4).denoise, Gaussian(0.0, 0.8).denoise
    desired = 2.7 * gain(conditional) - 1.7 * gain(unconditional)
    np.testing.assert_allclose(
        gain(guide(pair_of(conditional, unconditional), 1.7)), desired, rtol=1e-12
    )
    assert alpha_sigma(t)[0] < 1

import jax
import numpy as np
import pytest

from pdistill.diffusion import Gaussian, eps_from_x, guide, v_from_x

CONDITIONAL, UNCONDITIONAL = Gaussian(0.6, 0.4), Gaussian(-0.1, 0.4)
Z = np.random.default_rng(0).normal(size=(5, 3))
LOGSNR = np.linspace(-6, 6, 5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0, -1.0])
def test_guiding_gaussians_of_equal_width_extrapolates_their_means(x64, weight):
    """x_hat is linear in the mean, so guidance acts as another Gaussian's denoiser."""
    guided = guide(CONDITIONAL.denoise, UNCONDITIONAL.denoise, weight)(Z, LOGSNR)
    mean = 0.6 + weight * (0.6 + 0.1)
    np.testing.assert_allclose(guided, Gaussian(mean, 0.4).denoise(Z, LOGSNR), atol=1e-14)


@pytest.mark.parametrize("convert", [eps_from_x, v_from_x])
def test_rule_is_the_same_for_eps_and_v(x64, convert):
    def to(denoise):
        return convert(Z, denoise(Z, LOGSNR), LOGSNR)

    desired = 3 * to(CONDITIONAL.denoise) - 2 * to(UNCONDITIONAL.denoise)
    guided = guide(CONDITIONAL.denoise, UNCONDITIONAL.denoise, 2.0)
    np.testing.assert_allclose(to(guided), desired, atol=1e-12)


def test_no_guidance_is_the_conditional_denoiser(x64):
    guided = guide(CONDITIONAL.denoise, UNCONDITIONAL.denoise, 0.0)
    np.testing.assert_array_equal(guided(Z, LOGSNR), CONDITIONAL.denoise(Z, LOGSNR))


def test_weight_may_be_traced(x64):
    slope = jax.grad(
        lambda w: guide(CONDITIONAL.denoise, UNCONDITIONAL.denoise, w)(Z, LOGSNR).sum()
    )(1.0)
    gap = CONDITIONAL.denoise(Z, LOGSNR) - UNCONDITIONAL.denoise(Z, LOGSNR)
    np.testing.assert_allclose(slope, gap.sum(), rtol=1e-12)

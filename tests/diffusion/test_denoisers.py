import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from pdistill.diffusion import (
    CosineSchedule,
    Gaussian,
    GaussianMixture,
    alpha_sigma,
    denoising_loss,
    diffuse,
    v_from_x,
    v_target,
    v_weight,
)

GAUSSIAN = Gaussian(mean=0.3, std=0.4)
LEVELS = (-8.0, -2.0, 0.0, 2.0, 5.0)


# Compiled whole: one operation at a time takes longer.
denoise = jax.jit(lambda model, *args: model.denoise(*args), static_argnums=0)
flow = jax.jit(lambda model, *args: model.flow(*args), static_argnums=0)


@functools.cache
def _mixture_2d():
    return GaussianMixture(
        np.array([0.3, 0.5, 0.2]),
        np.array([[-0.8, 0.1], [0.5, 0.4], [0.2, -0.6]]),
        np.array([0.15, 0.3, 0.2]),
    )


@pytest.fixture
def mixture_2d(x64):
    return _mixture_2d()


def posterior_mean(density, z, logsnr):
    """E[x | z] in one dimension by quadrature of Bayes' rule."""
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))

    def moment(power):
        return integrate.quad(
            lambda x: x**power * density(x) * stats.norm.pdf(z, alpha * x, sigma),
            -4, 4, points=[-0.8, 0.3, 0.5, np.clip(z / alpha, -3.9, 3.9)], epsabs=0, epsrel=1e-10,
            limit=200,
        )[0]  # fmt: skip

    return moment(1) / moment(0)


def probability_flow(model, z, logsnr_t, logsnr_s):
    """The ODE dz/dphi = v solved by scipy."""

    def velocity(phi, flat):
        z = flat.reshape(shape)
        logsnr = np.full(len(z), -2 * np.log(np.tan(phi)))
        return np.ravel((np.cos(phi) * z - denoise(model, z, logsnr)) / np.sin(phi))

    shape = z.shape
    phi = np.arctan(np.exp(-np.array([logsnr_t, logsnr_s]) / 2))
    return integrate.solve_ivp(
        velocity, phi, z.ravel(), method="DOP853", rtol=1e-11, atol=1e-13
    ).y[:, -1].reshape(shape)  # fmt: skip


@pytest.mark.parametrize("logsnr", LEVELS)
def test_gaussian_denoiser_is_the_posterior_mean(x64, logsnr):
    z = np.array([[-1.2, 0.1], [0.4, 1.5]])
    desired = [[posterior_mean(stats.norm(0.3, 0.4).pdf, zi, logsnr) for zi in row] for row in z]
    np.testing.assert_allclose(denoise(GAUSSIAN, z, np.full(2, logsnr)), desired, rtol=1e-8)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_mixture_denoiser_is_the_posterior_mean(golden, logsnr):
    def density(x):
        return 0.3 * stats.norm.pdf(x, -0.8, 0.15) + 0.7 * stats.norm.pdf(x, 0.5, 0.3)

    desired = [[posterior_mean(density, z, logsnr)] for z in golden.z.ravel()]
    np.testing.assert_allclose(denoise(golden.mixture, golden.z, np.full(4, logsnr)), desired, 1e-8)


def test_mixture_denoiser_is_tweedies_formula(mixture_2d):
    """E[x | z] = (z + sigma^2 grad log p(z)) / alpha, in two dimensions, one level for each z."""
    z = np.random.default_rng(0).normal(size=(5, 2))
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-np.array(LEVELS))), 1 / np.sqrt(1 + np.exp(LEVELS))

    def log_density(z, alpha, sigma):
        def component(weight, mean, std):
            covariance = (alpha**2 * std**2 + sigma**2) * jnp.eye(2)
            log_p = jax.scipy.stats.multivariate_normal.logpdf(z, alpha * mean, covariance)
            return jnp.log(weight) + log_p

        parts = jax.vmap(component)(mixture_2d.weights, mixture_2d.means, mixture_2d.stds)
        return jax.scipy.special.logsumexp(parts)

    score = jax.jit(jax.vmap(jax.grad(log_density)))(z, alpha, sigma)
    tweedie = (z + sigma[:, None] ** 2 * score) / alpha[:, None]
    # 1e-16 / alpha, with alpha = 0.018 at logsnr -8, and some rounding in the score.
    np.testing.assert_allclose(denoise(mixture_2d, z, np.array(LEVELS)), tweedie, atol=1e-12)


@pytest.mark.parametrize("logsnr", [-12.0, 0.0, 3.0, 15.0])
def test_two_points_are_a_tanh(x64, logsnr):
    points = GaussianMixture(np.full(2, 0.5), np.array([[-0.7], [0.7]]), np.zeros(2))
    z = np.linspace(-2, 2, 21)[:, None]
    alpha, sigma2 = 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
    desired = 0.7 * np.tanh(alpha * 0.7 * z / sigma2)
    # The logits reach 1e6 at logsnr 15 and are differences there: 1e6 * 1e-16.
    np.testing.assert_allclose(denoise(points, z, np.full(21, logsnr)), desired, atol=1e-9)


def test_mixture_of_one_is_the_gaussian(x64):
    one = GaussianMixture(np.ones(1), np.full((1, 1), 0.3), np.full(1, 0.4))
    z = np.linspace(-3, 3, 9)[:, None]
    logsnr = np.linspace(-9, 9, 9)
    np.testing.assert_allclose(denoise(one, z, logsnr), denoise(GAUSSIAN, z, logsnr), atol=1e-13)
    np.testing.assert_allclose(flow(one, z, -5.0, 7.0), flow(GAUSSIAN, z, -5.0, 7.0), atol=1e-12)


def test_the_flow_of_a_wide_mixture_far_out(x64):
    """Ten standard deviations from the mean, and further from zero than any narrow one reaches."""
    one = GaussianMixture(np.ones(1), np.full((1, 1), 0.3), np.full(1, 3.0))
    z = np.linspace(-30, 30, 7)[:, None]
    np.testing.assert_allclose(flow(one, z, 5.0, 7.0), flow(Gaussian(0.3, 3.0), z, 5.0, 7.0), 1e-9)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_scalar_logsnr_broadcasts(mixture_2d, logsnr):
    z = np.random.default_rng(0).normal(size=(3, 2))
    for model in (GAUSSIAN, mixture_2d):
        # Scalars are folded differently by the compiler, hence not bit-equal.
        np.testing.assert_allclose(
            denoise(model, z, logsnr), denoise(model, z, np.full(3, logsnr)), rtol=1e-13
        )


@pytest.mark.parametrize("std", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), [(-20.0, 20.0), (4.0, -3.0)])
def test_gaussian_flow_solves_the_ode(x64, std, logsnr_t, logsnr_s):
    model = Gaussian(0.3, std)
    z = np.array([[-1.5, 0.2], [0.7, 2.0]])
    desired = probability_flow(model, z, logsnr_t, logsnr_s)
    # scipy's own error, at its relative tolerance of 1e-11 per step.
    np.testing.assert_allclose(flow(model, z, logsnr_t, logsnr_s), desired, atol=1e-9)


def test_gaussian_flow_takes_a_level_for_each_example(x64):
    z = np.array([[-1.5, 0.2], [0.7, 2.0]])
    t, s = np.array([-20.0, 1.0]), np.array([5.0, -2.0])
    each = [flow(GAUSSIAN, z[i : i + 1], t[i], s[i])[0] for i in range(2)]
    np.testing.assert_allclose(flow(GAUSSIAN, z, t, s), each, rtol=1e-14)


def test_whole_numbers_are_levels(golden, mixture_2d):
    z = np.random.default_rng(0).normal(size=(3, 2))
    whole, real = (GAUSSIAN.denoise(z, jnp.array([-3, 0, 1], dtype)) for dtype in (int, float))
    np.testing.assert_array_equal(whole, real)
    for model, z_0 in ((golden.mixture, golden.z), (mixture_2d, z)):  # `between` has their values
        assert jax.eval_shape(lambda z, model=model: model.flow(z, -10, 10), z_0).shape == z_0.shape


def test_a_flow_has_the_type_of_its_z(golden, mixture_2d):
    """Not that of the mixture's numbers, which promotion may make that of x_hat."""
    for model, dim in ((golden.mixture, 1), (mixture_2d, 2)):
        with jax.numpy_dtype_promotion("standard"):
            z = jax.ShapeDtypeStruct((3, dim), jnp.float32)
            found = jax.eval_shape(lambda z, model=model: model.flow(z, -3.0, 3.0), z)
        assert found.dtype == jnp.float32


def test_whole_numbers_are_images(golden, mixture_2d):
    """Whose flow is of real ones: their type would cut it off."""
    for model, dim in ((golden.mixture, 1), (mixture_2d, 2)):
        z = jax.ShapeDtypeStruct((3, dim), int)
        found = jax.eval_shape(lambda z, model=model: model.flow(z, -3.0, 3.0), z)
        assert found.dtype == float


def test_mixture_flow_golden_values(golden):
    """docs/methods/progressive.md, T8."""
    x = flow(golden.mixture, golden.z, -20.0, 20.0)
    np.testing.assert_allclose(x, golden.x, atol=6e-8)  # given to seven places


@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), [(-20.0, 20.0), (-6.0, 6.0), (3.0, -20.0)])
def test_mixture_flow_solves_the_ode(golden, mixture_2d, logsnr_t, logsnr_s):
    z_1d = np.concatenate([golden.z, [[-6.0], [6.0]]])  # far tails: F rounds to 0 or 1 there
    z_2d = np.random.default_rng(0).normal(size=(6, 2))
    for model, z in ((golden.mixture, z_1d), (mixture_2d, z_2d)):
        desired = probability_flow(model, z, logsnr_t, logsnr_s)
        # 1e-10 is scipy's error; 512 Runge-Kutta steps in two dimensions add up to 6e-10.
        np.testing.assert_allclose(flow(model, z, logsnr_t, logsnr_s), desired, rtol=0, atol=3e-9)


def test_mixture_flow_from_noise_beyond_float32s_angles():
    mixture = GaussianMixture(
        *(np.asarray(a, np.float32) for a in ([0.4, 0.6], [[-0.5, 0.2], [0.6, -0.3]], [0.3, 0.4]))
    )
    z = jax.random.normal(jax.random.key(0), (6, 2))
    np.testing.assert_allclose(
        mixture.flow(z, -60.0, 10.0), mixture.flow(z, -25.0, 10.0), atol=1e-3
    )


def test_mixture_flow_is_fourth_order(mixture_2d):
    z = np.random.default_rng(0).normal(size=(6, 2))
    exact = mixture_2d.flow(z, -6.0, 6.0, 1024)
    errors = [np.max(abs(mixture_2d.flow(z, -6.0, 6.0, n) - exact)) for n in (64, 128)]
    assert 12 < errors[0] / errors[1] < 20  # 2^4


@pytest.mark.parametrize("dim", [1, 2])
def test_flow_in_float32(golden, mixture_2d, dim):
    model, z = {
        1: (golden.mixture, np.concatenate([golden.z, [[-5.0], [5.0]]])),
        2: (mixture_2d, np.random.default_rng(0).normal(size=(6, 2))),
    }[dim]
    single = GaussianMixture(
        *(np.asarray(a, np.float32) for a in (model.weights, model.means, model.stds))
    )
    actual = flow(single, z.astype(np.float32), np.float32(-20), np.float32(20))
    assert actual.dtype == jnp.float32
    # A few ulps of z times the flow's slope, which stays below 5 for these mixtures.
    np.testing.assert_allclose(actual, flow(model, z, -20.0, 20.0), rtol=0, atol=5e-6)


@pytest.mark.parametrize("logsnr", [-4.0, 0.0, 3.0])
def test_optimal_losses_by_monte_carlo(logsnr):
    x_key, eps_key = jax.random.split(jax.random.key(0))
    x = GAUSSIAN.sample(x_key, (1_000_000, 1))
    eps = jax.random.normal(eps_key, x.shape)
    logsnrs = jnp.full(len(x), logsnr)
    z = diffuse(x, eps, logsnrs)
    v_hat = v_from_x(z, denoise(GAUSSIAN, z, logsnrs), logsnrs)
    alpha2 = 1 / (1 + np.exp(-logsnr))
    scale2 = alpha2 * 0.4**2 + (1 - alpha2)
    for weighting, factor in (("constant", 1 - alpha2), ("snr", alpha2), ("v_mse", 1.0)):
        loss = jnp.mean(denoising_loss(v_hat, v_target(x, eps, logsnrs), logsnrs, weighting))
        # The standard error of the mean of 1e6 squared normals is 0.14 %.
        np.testing.assert_allclose(loss, 0.4**2 * factor / scale2, rtol=0.01)


def test_optimal_losses_averaged_over_time(x64):
    t = (np.arange(100_000) + 0.5) / 100_000  # midpoint rule: error about 1e-10
    logsnr = CosineSchedule()(t)
    alpha, sigma = alpha_sigma(logsnr)
    v_mse = 0.4**2 / ((alpha * 0.4) ** 2 + sigma**2)  # Var[x | z] / sigma^2
    averages = {w: np.mean(v_weight(w, logsnr) * v_mse) for w in ("constant", "snr", "v_mse")}
    np.testing.assert_allclose(
        list(averages.values()), [0.114288, 0.285702, 0.399990], rtol=0, atol=6e-7
    )


def test_samples_have_the_right_moments(golden):
    count = 100_000
    x = GAUSSIAN.sample(jax.random.key(0), (count // 4, 2, 2))
    assert x.shape == (count // 4, 2, 2)
    # Five standard errors: 5 / sqrt(1e5) = 1.6 % of the standard deviation.
    np.testing.assert_allclose([np.mean(x), np.std(x)], [0.3, 0.4], atol=0.0064)
    y = np.asarray(golden.mixture.sample(jax.random.key(0), count))
    assert y.shape == (count, 1)
    # The Kolmogorov-Smirnov distance of so many true samples exceeds 0.007 once in 4e4 times.
    distance = stats.kstest(
        y.ravel(), lambda q: 0.3 * stats.norm.cdf(q, -0.8, 0.15) + 0.7 * stats.norm.cdf(q, 0.5, 0.3)
    ).statistic
    assert distance < 0.007


def test_flows_compose(golden):
    for model in (GAUSSIAN, golden.mixture):
        halfway = flow(model, golden.z, -5.0, 1.0)
        whole = flow(model, golden.z, -5.0, 8.0)
        np.testing.assert_allclose(flow(model, halfway, 1.0, 8.0), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(std=-1.0),
        lambda: GaussianMixture(np.ones(2) / 2, np.zeros(2), np.ones(2)),
        lambda: GaussianMixture(np.ones(2) / 2, np.zeros((3, 1)), np.ones(2)),
        lambda: GaussianMixture(np.ones(2) / 2, np.zeros((2, 1)), np.ones(1)),
    ],
)
def test_bad_arguments(x64, make):
    with pytest.raises(ValueError, match=r"std|need weights"):
        make()


def test_a_mixture_stays_what_it_is(golden):
    with pytest.raises(dataclasses.FrozenInstanceError):
        golden.mixture.weights = np.ones(1)


def test_the_gaussian_is_standard_by_default():
    assert Gaussian() == Gaussian(0.0, 1.0)

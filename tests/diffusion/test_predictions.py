from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill import diffusion
from pdistill.diffusion import HEADS, output_channels, v_from_output, x_from_output


@pytest.fixture
def truth(x64):
    """Images, noise, and z and v by their definitions, at random noise levels."""
    rng = np.random.default_rng(0)
    logsnr = rng.uniform(-10, 10, 64)
    x, eps = rng.uniform(-1, 1, (64, 3, 2)), rng.normal(size=(64, 3, 2))
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * logsnr)))[:, None, None] for s in (-1, 1))
    z, v = alpha * x + sigma * eps, alpha * eps - sigma * x
    return SimpleNamespace(
        logsnr=logsnr, alpha=alpha, sigma=sigma, x=x, eps=eps, z=z, v=v, velocity=eps - x
    )


def close(actual, desired):
    # Dividing by alpha or sigma, here at least 7e-3, magnifies rounding by that much.
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-12)


def test_alpha_and_sigma(truth):
    alpha, sigma = diffusion.alpha_sigma(truth.logsnr)
    close(alpha, truth.alpha.ravel())
    close(sigma, truth.sigma.ravel())
    close(alpha**2 + sigma**2, 1)
    close(np.log(alpha**2 / sigma**2), truth.logsnr)


def test_alpha_and_sigma_keep_their_digits_at_the_ends():
    logsnr = np.array([-40, -20, 20, 40], np.float32)
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    ratio = np.exp(logsnr.astype(np.float64) / 2)
    # Rounding of exp(20) in float32 is a few ulps of its argument: 40 * 6e-8.
    np.testing.assert_allclose(alpha, 1 / np.hypot(1, 1 / ratio), rtol=5e-6)
    np.testing.assert_allclose(sigma, 1 / np.hypot(1, ratio), rtol=5e-6)


def test_angle(truth):
    phi = diffusion.angle(truth.logsnr)
    close(np.cos(phi), truth.alpha.ravel())
    close(np.sin(phi), truth.sigma.ravel())


def test_time_of_the_linear_path(truth):
    ratio = np.exp(-truth.logsnr / 2)  # sigma / alpha
    close(diffusion.linear_time(truth.logsnr), ratio / (1 + ratio))


def test_logsnr_of_angle(truth):
    close(diffusion.logsnr_of_angle(diffusion.angle(truth.logsnr)), truth.logsnr)
    assert diffusion.logsnr_of_angle(1) == diffusion.logsnr_of_angle(1.0)


def test_logsnr_of_angle_is_finite_at_the_ends():
    """tan(pi / 2) is negative in float32."""
    phi = diffusion.angle(jnp.array([-60.0, -40.0, 60.0]))
    logsnr = diffusion.logsnr_of_angle(jnp.append(phi, 0.0))
    assert np.isfinite(logsnr).all()
    assert np.all(logsnr[:2] < -30)  # as far as float32 tells angles apart there
    np.testing.assert_allclose(logsnr[2], 60.0, rtol=1e-6)


def test_between_two_levels(x64):
    """A fraction of the way in the angle, from either side of pi / 4 to either."""
    t, s = np.array([-6.0, -3.0, 0.5, 5.0, -8.0]), np.array([7.0, -1.0, -4.0, 2.0, -9.0])
    phi_t, phi_s = (np.arctan(np.exp(-level / 2)) for level in (t, s))
    found, way = diffusion.between(jnp.array(t), jnp.array(s), 0.3)
    close(diffusion.angle(found), phi_t + 0.3 * (phi_s - phi_t))
    close(way, phi_s - phi_t)
    for whole, real in zip(
        diffusion.between(-20, 20, 0.5), diffusion.between(-20.0, 20.0, 0.5), strict=True
    ):
        close(whole, real)


def test_between_levels_beyond_float32s_angles():
    """Both are pi / 2 in float32, but not what is left of it."""
    found, way = diffusion.between(jnp.array(-60.0), jnp.array(-50.0), 0.5)
    rest_t, rest_s = np.exp(-30.0), np.exp(-25.0)
    np.testing.assert_allclose(way, rest_t - rest_s, rtol=1e-5)
    np.testing.assert_allclose(found, 2 * np.log((rest_t + rest_s) / 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("diffuse", ("x", "eps"), "z"),
        ("v_target", ("x", "eps"), "v"),
        ("x_from_v", ("z", "v"), "x"),
        ("x_from_eps", ("z", "eps"), "x"),
        ("eps_from_x", ("z", "x"), "eps"),
        ("eps_from_v", ("z", "v"), "eps"),
        ("v_from_x", ("z", "x"), "v"),
        ("v_from_eps", ("z", "eps"), "v"),
        ("x_from_velocity", ("z", "velocity"), "x"),
        ("eps_from_velocity", ("z", "velocity"), "eps"),
        ("v_from_velocity", ("z", "velocity"), "v"),
        ("velocity_from_v", ("z", "v"), "velocity"),
        ("velocity_from_x", ("z", "x"), "velocity"),
    ],
)
def test_conversions(truth, name, given, found):
    """Every function, given two of x, eps, z, v, finds the third; all round trips follow."""
    a, b = (getattr(truth, key) for key in given)
    desired, convert = getattr(truth, found), getattr(diffusion, name)
    close(convert(a, b, truth.logsnr), desired)
    close(convert(a[5:8], b[5:8], truth.logsnr[5])[0], desired[5])  # one level for the batch


def test_expand():
    image = jnp.zeros((4, 8, 8, 3))
    assert diffusion.expand(jnp.ones(4), image).shape == (4, 1, 1, 1)
    assert diffusion.expand(1.0, image).shape == (1, 1, 1, 1)
    assert diffusion.expand(jnp.ones(4), jnp.zeros(4)).shape == (4,)


@pytest.mark.parametrize("head", HEADS)
def test_true_outputs_of_every_head_imply_the_truth(truth, head):
    outputs = {"both": (truth.x, truth.eps), "eps_variance": (truth.eps, truth.x)}
    output = np.concatenate(outputs[head], -1) if head in outputs else getattr(truth, head)
    assert output.shape[-1] == output_channels(head, truth.x.shape[-1])
    close(x_from_output(head, truth.z, output, truth.logsnr), truth.x)
    close(v_from_output(head, truth.z, output, truth.logsnr), truth.v)


@pytest.mark.parametrize("head", HEADS)
def test_x_and_v_of_a_wrong_output_agree(truth, head):
    channels = output_channels(head, 2)
    output = np.random.default_rng(1).normal(size=(64, 3, channels))
    x = x_from_output(head, truth.z, output, truth.logsnr)
    v = v_from_output(head, truth.z, output, truth.logsnr)
    # Relative, as a wrong eps is divided by alpha and a wrong x by sigma.
    np.testing.assert_allclose(x, truth.alpha * truth.z - truth.sigma * v, rtol=1e-10, atol=1e-11)


def test_both_merges_its_two_heads(truth):
    x, eps = np.random.default_rng(1).normal(size=(2, 64, 3, 2))  # heads that disagree
    x_hat = x_from_output("both", truth.z, np.concatenate([x, eps], -1), truth.logsnr)
    weight = truth.sigma**2
    close(x_hat, weight * x + (1 - weight) * (truth.z - truth.sigma * eps) / truth.alpha)
    # ... which is v-prediction with v made of the two heads.
    close(x_hat, truth.alpha * truth.z - truth.sigma * (truth.alpha * eps - truth.sigma * x))


def test_variances_are_the_second_half():
    output = np.arange(8.0).reshape(1, 2, 4) / 4 - 1
    found = diffusion.variance_fraction(output)
    np.testing.assert_array_equal(found, [[[0.25, 0.375], [0.75, 0.875]]])


def test_errors_of_x_eps_and_v_are_proportional(truth):
    x_hat = truth.x + np.random.default_rng(1).normal(size=truth.x.shape)

    def mse(a, b):
        return np.mean((a - b) ** 2, axis=(1, 2))

    x_mse = mse(x_hat, truth.x)
    eps_mse = mse(diffusion.eps_from_x(truth.z, x_hat, truth.logsnr), truth.eps)
    v_mse = mse(diffusion.v_from_x(truth.z, x_hat, truth.logsnr), truth.v)
    snr = np.exp(truth.logsnr)
    # At SNR e^-10 eps_hat and eps differ by 7e-3 of their size, so 1e-16 becomes 1e-14 or so.
    np.testing.assert_allclose(eps_mse / x_mse, snr, rtol=1e-10)
    np.testing.assert_allclose(v_mse / x_mse, 1 + snr, rtol=1e-10)


def test_flow_is_well_conditioned_in_float32():
    """At both ends v and x follow from it without division by a small number."""
    logsnr = jnp.linspace(-20, 20, 101)
    x, eps = jax.random.normal(jax.random.key(0), (2, 101, 16))
    z, v = diffusion.diffuse(x, eps, logsnr), diffusion.v_target(x, eps, logsnr)
    for convert, desired in ((diffusion.v_from_velocity, v), (diffusion.x_from_velocity, x)):
        np.testing.assert_allclose(convert(z, eps - x, logsnr), desired, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["x_from_v", "eps_from_v"])
def test_v_is_well_conditioned_in_float32(name):
    """The reason for v: x and eps follow from it at both ends without division."""
    logsnr = jnp.linspace(-20, 20, 101)
    x, eps = jax.random.normal(jax.random.key(0), (2, 101, 16))
    z, v = diffusion.diffuse(x, eps, logsnr), diffusion.v_target(x, eps, logsnr)
    actual = getattr(diffusion, name)(z, v, logsnr)
    np.testing.assert_allclose(actual, x if name == "x_from_v" else eps, rtol=0, atol=2e-6)


def test_a_jump_of_the_true_velocity_lands_on_its_circle(truth):
    """Where x and eps are the ends of it, at any level; at its own it is z to the bit."""
    to = np.random.default_rng(2).uniform(-10, 10, 64)
    landed = diffusion.jump(truth.z, truth.v, truth.logsnr, to)
    close(landed, diffusion.diffuse(truth.x, truth.eps, to))
    np.testing.assert_array_equal(
        diffusion.jump(truth.z, truth.v, truth.logsnr, truth.logsnr), truth.z
    )


@pytest.mark.parametrize("function", [x_from_output, v_from_output])
def test_unknown_head(function):
    a = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"head must be one of v, .*, eps_variance; got 'noise'"):
        function("noise", a, a, jnp.zeros(1))
    with pytest.raises(ValueError, match="head must be one of"):
        output_channels("noise", 3)


@pytest.mark.parametrize(
    "convert",
    [
        *("diffuse", "v_target", "x_from_v", "x_from_eps"),
        *("eps_from_x", "eps_from_v", "v_from_x", "v_from_eps", "x_from_velocity"),
        *("eps_from_velocity", "v_from_velocity", "velocity_from_v", "velocity_from_x"),
    ],
)
def test_nothing_broadcasts_silently(convert):
    """[B] against [B, 1] is an error, with both shapes, in programs that allow it elsewhere too."""
    convert, flat, column, logsnr = (
        getattr(diffusion, convert), jnp.ones(3), jnp.ones((3, 1)), jnp.zeros(3),
    )  # fmt: skip
    with jax.numpy_rank_promotion("allow"):
        for a, b in ((flat, column), (column, flat)):
            with pytest.raises(ValueError, match=r"got \(3.*\) and \(3.*\): reshape"):
                convert(a, b, logsnr)
        for wrong in (jnp.zeros((3, 2)), jnp.zeros((3, 1, 1)), jnp.zeros(2), jnp.zeros(1)):
            with pytest.raises(ValueError, match=r"shape \(.*\) does not go with .* \(3, 1\)"):
                convert(column, column, wrong)
        assert convert(column, column, logsnr).shape == convert(column, column, 0.0).shape == (3, 1)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("function", [x_from_output, v_from_output])
def test_an_output_of_another_shape_than_the_image(function, head):
    z, logsnr = jnp.ones((3, 2)), jnp.zeros(3)
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match="one shape"):
        function(head, z, jnp.ones((3, 1, 2 * (1 + (head == "both")))), logsnr)


def test_noise_needs_a_level_for_each_image():
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match="does not go with"):
        diffusion.noised(jax.random.key(0), jnp.ones((3, 2)), jnp.zeros((3, 1)))

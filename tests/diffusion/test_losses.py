import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import (
    WEIGHTINGS,
    denoising_loss,
    direction_loss,
    v_from_x,
    v_target,
    v_weight,
)

# The weight each puts on the squared error of x.
DEFINITIONS = {
    "constant": np.ones_like,
    "snr": lambda snr: snr,
    "snr_trunc": lambda snr: np.maximum(snr, 1),
    "v_mse": lambda snr: snr + 1,
    "velocity_mse": lambda snr: (np.sqrt(snr) + 1) ** 2,
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", [(), (5,), (4, 4, 3)])
def test_loss_is_the_weighted_mean_squared_error_of_x(x64, weighting, shape):
    rng = np.random.default_rng(0)
    logsnr = rng.uniform(-10, 10, 32)
    x, x_hat, z = rng.normal(size=(3, 32, *shape))
    v, v_hat = v_from_x(z, x, logsnr), v_from_x(z, x_hat, logsnr)
    loss = denoising_loss(v_hat, v, logsnr, weighting)
    x_mse = np.mean(((x_hat - x) ** 2).reshape(32, -1), axis=1)
    # v = (alpha z - x) / sigma, with sigma down to 7e-3, cancels two or three digits.
    np.testing.assert_allclose(loss, DEFINITIONS[weighting](np.exp(logsnr)) * x_mse, rtol=1e-10)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_for_data_of_another_deviation_it_is_the_loss_of_scaled_data(x64, weighting):
    """Of x / d at the SNR of z / d, which is d^2 times as large; EDM's weight for d = 0.5."""
    logsnr, std = jnp.linspace(-10, 10, 21), 0.5
    sigma2 = jax.nn.sigmoid(-logsnr)
    weight = v_weight(weighting, logsnr, std) / sigma2  # on the squared error of x
    desired = DEFINITIONS[weighting](std**2 * np.exp(logsnr)) / std**2
    np.testing.assert_allclose(weight, desired, rtol=1e-12)
    if weighting == "v_mse":
        sigma = np.exp(-logsnr / 2)  # EDM's
        edm = (sigma**2 + std**2) / (sigma * std) ** 2
        np.testing.assert_allclose(weight, edm, rtol=1e-12)
    error = jnp.ones_like(logsnr)
    loss = denoising_loss(error, 0 * error, logsnr, weighting, std)
    np.testing.assert_allclose(loss, desired * sigma2, rtol=1e-12)


def test_direction_loss(x64):
    """It is 1 - torch's cosine_similarity of u = eps - x over channels; a zero has no direction."""
    rng = np.random.default_rng(0)
    logsnr = np.array([-3.0, 0.0, 2.5])
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * logsnr)))[:, None, None, None] for s in (-1, 1))
    x, eps, x_hat, eps_hat = rng.normal(size=(4, 3, 2, 5, 4))
    z = alpha * x + sigma * eps
    eps_hat = (z - alpha * x_hat) / sigma
    u, u_hat = eps - x, eps_hat - x_hat
    cosine = (u * u_hat).sum(-1) / np.sqrt((u**2).sum(-1) * (u_hat**2).sum(-1))
    loss = direction_loss(alpha * eps_hat - sigma * x_hat, alpha * eps - sigma * x, z, logsnr)
    np.testing.assert_allclose(loss, 1 - cosine.mean((1, 2)), rtol=1e-12)
    assert loss.std() > 0.01
    still = (alpha - sigma) / (alpha + sigma) * z  # v of u = 0
    np.testing.assert_allclose(direction_loss(still, v_target(x, eps, logsnr), z, logsnr), 1)


@pytest.mark.parametrize("std", [0.0, -1.0, np.inf])
def test_a_deviation_that_is_none(std):
    with pytest.raises(ValueError, match="data_std must be positive"):
        v_weight("v_mse", jnp.zeros(1), std)


@pytest.mark.parametrize(
    ("weighting", "noise_end", "middle", "data_end"),
    [
        ("constant", 1, 0.5, 0),
        ("snr", 0, 0.5, 1),
        ("snr_trunc", 1, 0.5, 1),
        ("v_mse", 1, 1, 1),
        ("velocity_mse", 1 + 1 / np.cosh(10), 2, 1 + 1 / np.cosh(10)),
    ],
)
def test_weight_on_v_is_bounded(weighting, noise_end, middle, data_end):
    weights = v_weight(weighting, jnp.array([-20.0, 0.0, 20.0]))
    # SNR e^-20 is 2e-9, not 0.
    np.testing.assert_allclose(weights, [noise_end, middle, data_end], rtol=1e-6, atol=3e-9)
    extreme = v_weight(weighting, jnp.linspace(-100, 100, 101))
    assert np.all((extreme >= 0) & (extreme <= max(noise_end, middle, data_end)))


def test_default_is_v_mse():
    v_hat, v = jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_array_equal(denoising_loss(v_hat, v, jnp.array([2.0])), [2.5])


def test_definitions_are_complete():
    assert DEFINITIONS.keys() == WEIGHTINGS.keys()


def test_unknown_weighting():
    with pytest.raises(
        ValueError, match="weighting must be one of constant, snr, snr_trunc, v_mse"
    ):
        v_weight("min_snr", jnp.zeros(1))


def test_a_loss_does_not_broadcast_silently():
    """[B] against [B, 1] is an error, with both shapes, in programs that allow it elsewhere too."""
    v, logsnr = jnp.ones(3), jnp.zeros(3)
    with jax.numpy_rank_promotion("allow"):
        with pytest.raises(ValueError, match=r"got \(3, 1\) and \(3,\)"):
            denoising_loss(v[:, None], v, logsnr)
        with pytest.raises(ValueError, match=r"shape \(3, 1\) does not go with .* \(3,\)"):
            denoising_loss(v, v, logsnr[:, None])

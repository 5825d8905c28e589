import math

import jax
import numpy as np
import pytest

from pdistill.diffusion import CosineSchedule
from pdistill.networks.embeddings import TargetEmbedding, logsnr_waves, sinusoidal


@pytest.mark.parametrize("zero", [True, False])
def test_a_target_says_nothing_at_first(zero):
    """Unless zeros are elsewhere."""
    module, level = (
        TargetEmbedding(8, 4, **({} if zero else {"zero": False})),
        np.zeros(2, np.float32),
    )
    said, _ = module.init_with_output(jax.random.key(0), level + 3, level)
    assert np.all(np.asarray(said) == 0) == zero


@pytest.mark.parametrize("features", [8, 7, 3])
def test_sinusoidal_against_a_loop(x64, features):
    u = np.array([0.0, 0.1234, 1.0])
    desired = np.zeros((3, features))
    half = features // 2
    for b in range(3):
        for j in range(half):
            frequency = 10_000 ** -(j / max(half - 1, 1))
            desired[b, j] = math.sin(1000 * u[b] * frequency)
            desired[b, half + j] = math.cos(1000 * u[b] * frequency)
    np.testing.assert_allclose(sinusoidal(u, features), desired, rtol=0, atol=1e-12)


def test_sinusoidal_in_float32():
    u = np.linspace(0, 1, 101)
    waves = sinusoidal(u.astype(np.float32), 16)
    assert waves.dtype == np.float32
    # Angles up to 1000 have ulps of 6e-5; u and the frequency are rounded as well.
    desired = np.sin(1000 * u[:, None] * 10_000 ** -(np.arange(8) / 7))
    np.testing.assert_allclose(waves[:, :8], desired, rtol=0, atol=2e-4)


def test_logsnr_enters_as_the_time_of_the_trimmed_cosine_schedule(x64):
    """u = 2 phi / pi, and phi is linear in t between phi(20) = arctan(e^-10) and its mirror."""
    t = np.linspace(0, 1, 33)
    end = 2 / math.pi * math.atan(math.exp(-10))
    u = (1 - 2 * end) * t + end
    assert np.max(np.abs(u - t)) < 3e-5
    desired = sinusoidal(u, 32)
    np.testing.assert_allclose(logsnr_waves(CosineSchedule()(t), 32), desired, atol=1e-9)


def test_logsnr_is_clipped_to_20(x64):
    ends = logsnr_waves(np.array([-20.0, 20.0]), 8)
    np.testing.assert_array_equal(logsnr_waves(np.array([-35.0, 1e9]), 8), ends)
    assert np.max(np.abs(logsnr_waves(np.array([-19.0, 19.0]), 8) - ends)) > 1e-3

"""Bicubic resizing against Pillow's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pdistill.features.resizing import resize

RNG = np.random.default_rng(0)


def smooth(height, width):
    """Slopes, whose interpolated values often lie in the middle between two grey values."""
    slopes = np.add.outer(7 * np.arange(height), 4 * np.arange(width))[..., None]
    return (slopes + 50 * np.arange(3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (RNG.integers(0, 256, (32, 32, 3), np.uint8), 224),
        (smooth(32, 32), 224),
        (RNG.integers(0, 256, (100, 100, 3), np.uint8), 42),
        (smooth(80, 60), 70),
        (smooth(28, 28), 28),
        (RNG.integers(0, 256, (1, 5, 3), np.uint8), 14),
    ],
)
def test_pixels_are_pillows_to_the_bit(image, size):
    columns = Image.fromarray(image).resize((size, image.shape[0]), Image.Resampling.BICUBIC)
    desired = columns.resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(jnp.asarray(image)[None], size)[0], np.asarray(desired))


def test_floats_are_not_rounded_and_have_a_derivative():
    image = RNG.integers(60, 200, (9, 9, 1), np.uint8)
    plane = Image.fromarray(image[..., 0].astype(np.float32))
    desired = plane.resize((14, 14), Image.Resampling.BICUBIC)
    floats = jnp.asarray(image[None], jnp.float32)
    np.testing.assert_allclose(resize(floats, 14)[0, ..., 0], np.asarray(desired), atol=1e-3)
    slope = jax.grad(lambda x: resize(x, 14).sum())(floats)
    np.testing.assert_allclose(slope.sum(), 14**2, rtol=1e-5)

"""Differentiable augmentation: what each does, and that gradients flow through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.data.augment import AUGMENTATIONS, augment

X = jax.random.uniform(jax.random.key(0), (64, 16, 16, 3), minval=-1)
ALL = tuple(AUGMENTATIONS)


@pytest.mark.parametrize("name", ALL)
def test_strength_zero_is_the_identity(name):
    np.testing.assert_allclose(augment(jax.random.key(1), X, (name,), 0.0), X, atol=1e-6)


def test_nothing_to_do():
    assert augment(jax.random.key(1), X, ()) is X


@pytest.mark.parametrize("name", ALL)
def test_affine_in_the_image(name):
    """Each image's operation, once drawn, is affine: differences are mapped linearly."""

    def apply(x):
        return augment(jax.random.key(1), x, (name,))

    y = jax.random.normal(jax.random.key(2), X.shape)
    _, tangent = jax.jvp(apply, (X,), (y,))
    np.testing.assert_allclose(tangent, apply(X + y) - apply(X), atol=1e-5)
    assert np.abs(tangent - y).max() > 0.1


def test_images_are_drawn_by_themselves():
    same = jnp.broadcast_to(X[:1], X.shape)
    out = augment(jax.random.key(1), same, ALL)
    assert len(np.unique(np.asarray(out).reshape(64, -1), axis=0)) > 60


def test_translation():
    """Every shift of -2 .. 2 rows and columns, and zeros where nothing comes in."""
    out = np.asarray(AUGMENTATIONS["translation"](jax.random.key(1), X, 1.0))
    padded = np.pad(X, [(0, 0), (2, 2), (2, 2), (0, 0)])
    seen = set()
    for image, source in zip(out, padded, strict=True):
        matches = [
            (i, j) for i in range(5) for j in range(5)
            if np.array_equal(image, source[i : i + 16, j : j + 16])
        ]  # fmt: skip
        assert len(matches) == 1
        seen.add(matches[0])
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(5))


def test_cutout():
    """A square of 3 pixels (0.2 of 16), or what of it is inside."""
    ones = jnp.ones((500, 16, 16, 1))
    holes = np.asarray(AUGMENTATIONS["cutout"](jax.random.key(1), ones, 1.0))[..., 0] == 0
    sizes = {(int(h.any(1).sum()), int(h.any(0).sum()), int(h.sum())) for h in holes}
    assert max(sizes) == (3, 3, 9)
    assert all(area == rows * columns for rows, columns, area in sizes)
    assert holes.any(0).all()  # everywhere


def test_color_keeps_what_it_should():
    """Brightness moves the mean by at most 1/2; a grey image stays grey."""
    grey = jnp.broadcast_to(X[..., :1], X.shape)
    out = AUGMENTATIONS["color"](jax.random.key(1), grey, 1.0)
    np.testing.assert_allclose(out[..., 0], out[..., 2], atol=1e-6)
    moved = np.asarray(out.mean((1, 2, 3)) - grey.mean((1, 2, 3)))
    assert 0.4 < np.abs(moved).max() <= 0.5
    contrast = np.asarray(out.std((1, 2, 3)) / grey.std((1, 2, 3)))
    assert 0.5 <= contrast.min() < 0.6 < 1.4 < contrast.max() <= 1.5


def test_color_scales_what_differs_from_grey():
    """Saturation by 0 .. 2, and contrast on top; brightness leaves differences of channels."""
    out = AUGMENTATIONS["color"](jax.random.key(1), X, 1.0)
    colour, grey = (np.asarray(x - x.mean(3, keepdims=True)) for x in (out, X)), X.mean(3)
    after, before = colour
    contrast = out.mean(3).std((1, 2)) / grey.std((1, 2))
    scale = np.sum(after * before, (1, 2, 3)) / np.sum(before**2, (1, 2, 3))
    np.testing.assert_allclose(after, scale[:, None, None, None] * before, atol=1e-5)
    saturation = scale / np.asarray(contrast)
    assert 0 <= saturation.min() < 0.2
    assert 1.8 < saturation.max() <= 2

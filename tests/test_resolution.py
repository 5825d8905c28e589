"""Images at other sizes."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.data import Dataset, Pipeline, load_dataset, make_batch, to_float
from pdistill.data.images import at_size, average, pixel_digest, repeat
from pdistill.methods.columns import Latents


def test_averages_are_those_of_squares():
    images = np.arange(2 * 4 * 4 * 1, dtype=np.float64).reshape(2, 4, 4, 1)
    found = average(images, 2)
    assert found.shape == (2, 2, 2, 1)
    assert found[1, 0, 1, 0] == images[1, :2, 2:, 0].mean()
    np.testing.assert_array_equal(average(repeat(jnp.asarray(images), 3), 3), images)


def test_sizes_of_images():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 1), np.uint8)
    padded = at_size(images, 8)
    assert padded.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(padded[:, 1:7, 2:6], images)
    assert padded.sum() == images.sum()
    reduced = at_size(padded, 2)
    np.testing.assert_array_equal(reduced, np.rint(average(padded.astype(float), 4)))
    for wrong, size in ((images, 3), (padded, 3), (padded, 0)):
        with pytest.raises(ValueError, match="cannot be averaged to"):
            at_size(wrong, size)


def test_a_digest_is_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2500, 2, 2, 1), np.uint8)
    expected = hashlib.sha256(images.tobytes()).hexdigest()
    assert pixel_digest(images) == pixel_digest(np.asfortranarray(images)) == expected


def test_a_data_set_at_a_size():
    """Its images are what a batch of the whole data set has, but for the rounding to 256 levels."""
    small, whole = load_dataset("digits@4", "train"), load_dataset("digits", "train")
    assert (small.name, small.image_shape) == ("digits@4:train", (4, 4, 1))
    pipeline = Pipeline(whole, 5, seed=0)
    raw = {"index": pipeline.rows(0)}
    nothing_drawn = None
    batch = make_batch(pipeline.resident_arrays(), raw, nothing_drawn, flip=False, factor=2)
    desired = to_float(small.images[pipeline.rows(0)])
    np.testing.assert_allclose(batch["image"], desired, atol=0.5 / 127.5 + 1e-6)
    assert load_dataset("digits@16@8", "test").image_shape == (8, 8, 1)
    with pytest.raises(ValueError, match="after @ comes a size in pixels"):
        load_dataset("digits@small")


@pytest.mark.parametrize("resident", [True, False])
def test_the_latent_is_that_of_the_image_or_of_its_mirror(resident):
    """Rows of a batch are told apart by their first pixel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 4, 4, 1), np.uint8)
    latents = np.stack([images, images[:, :, ::-1]], axis=1).astype(np.float16)
    data = Dataset("some:train", images, np.arange(40, dtype=np.int32) % 3, 3)
    data = data.with_column("latent", {"latent": latents}, aligned=True)
    pipeline = Pipeline(data, 20, seed=0, resident=resident)
    raw = {name: stack[0] for name, stack in next(pipeline.iterator()).items()}

    for flip in (True, False):
        batch = make_batch(
            pipeline.resident_arrays(), raw, jax.random.key(1), flip=flip, columns=(Latents(),)
        )
        np.testing.assert_allclose(batch["image"], to_float(batch["latent"]), atol=1e-6)
    chosen = data.of_labels([1])
    assert len(chosen.columns["latent"].rows["latent"]) == len(chosen) == 13

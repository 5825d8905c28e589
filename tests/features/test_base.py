"""A network as an extractor: batches, devices, fingerprints."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.features import NetworkExtractor, fingerprint, load_extractor

WEIGHTS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (37, 2, 2, 3), np.uint8)


def linear(params, images):
    h = images.reshape(len(images), -1).astype(jnp.float32) @ params
    return {"features": h, "logits": 2 * h}


@pytest.mark.parametrize("batch_size", [1, 8, 20, 37, 64])
def test_batches_over_eight_devices(batch_size):
    extractor = NetworkExtractor(
        "linear", linear, WEIGHTS, "none", "1", None, batch_size=batch_size
    )
    found = extractor(IMAGES)
    desired = IMAGES.reshape(37, -1) @ WEIGHTS.astype(np.float64)
    np.testing.assert_allclose(found["features"], desired, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found["logits"], 2 * desired, rtol=1e-5, atol=1e-3)


def test_width_without_computing():
    for extractor in (
        NetworkExtractor("linear", linear, WEIGHTS, "none", "1", None),
        load_extractor("pixels"),
        load_extractor("pixels_16"),
    ):
        images = IMAGES if extractor.name == "linear" else IMAGES.repeat(8, 1).repeat(8, 2)
        assert extractor.width(images.shape[1:]) == extractor(images)["features"].shape[1]


def test_fingerprints_tell_weights_apart():
    other = WEIGHTS.copy()
    other[3, 2] = np.nextafter(other[3, 2], 1)
    assert fingerprint({"a": WEIGHTS}) == fingerprint({"a": WEIGHTS.copy()})
    assert fingerprint({"a": WEIGHTS}) != fingerprint({"a": other})
    assert len(fingerprint(WEIGHTS)) == 16


def test_unknown_features():
    with pytest.raises(ValueError, match=r"features must be one of pixels, .*; got 'vgg'"):
        load_extractor("vgg")

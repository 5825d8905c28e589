import jax
import numpy as np
import pytest

from pdistill.data import load_dataset
from pdistill.features import load_extractor
from pdistill.features.digits_classifier import WEIGHTS, DigitsClassifier
from pdistill.features.train_digits_classifier import train


def accuracy(logits, labels):
    return np.mean(np.argmax(logits, axis=1) == labels)


def test_it_knows_digits_it_has_not_seen():
    """The bound is the issue's; 98.1% was measured. Noise is not a digit of any one class."""
    held_out = load_dataset("digits", "test")
    extractor = load_extractor("classifier")
    found = extractor(held_out.images)
    assert accuracy(found["logits"], held_out.labels) >= 0.97
    assert found["features"].shape == (360, 64)
    assert WEIGHTS.stat().st_size < 2**20


def test_training_makes_such_weights():
    """A fifth of the updates, so a little less accurate."""
    held_out = load_dataset("digits", "test")
    params = train(num_updates=300)
    images = held_out.images.astype(np.float32) / 127.5 - 1
    logits = jax.jit(DigitsClassifier().apply)(params, images)["logits"]
    assert accuracy(logits, held_out.labels) >= 0.95
    shipped = load_extractor("classifier").params
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shipped)


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"takes images \[8, 8, 1\]; got \(9, 8, 1\)"):
        load_extractor("classifier")(np.zeros((2, 9, 8, 1), np.uint8))

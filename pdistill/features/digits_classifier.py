"""A small classifier of the digits: features that no method trains on, and a judge of labels.

Its weights come with the package; `train_digits_classifier` made them.
"""

from pathlib import Path

import flax.linen as nn
import numpy as np
from flax import traverse_util
from jax import Array

from pdistill.data import to_float
from pdistill.features.base import NetworkExtractor, fingerprint

WEIGHTS = Path(__file__).with_name("digits_classifier.npz")


class DigitsClassifier(nn.Module):
    """Two convolutions and two dense layers, 38,282 parameters."""

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Maps x [B, 8, 8, 1] in [-1, 1] to {"features": [B, 64], "logits": [B, 10]}."""
        if x.shape[1:] != (8, 8, 1):
            raise ValueError(f"the digits classifier takes images [8, 8, 1]; got {x.shape[1:]}")
        h = nn.relu(nn.Conv(16, (3, 3))(x))
        h = nn.relu(nn.Conv(32, (3, 3), strides=2)(h))
        h = nn.relu(nn.Dense(64)(h.reshape(len(h), -1)))
        return {"features": h, "logits": nn.Dense(10)(h)}


def load() -> NetworkExtractor:
    """Loads the classifier with the weights in the package."""
    with np.load(WEIGHTS) as archive:
        params = traverse_util.unflatten_dict(dict(archive), sep="/")
    return NetworkExtractor(
        name="classifier",
        apply=lambda params, images: DigitsClassifier().apply(params, to_float(images)),
        params=params,
        preprocessing="none",
        fingerprint=fingerprint(params),
        channels=(1,),
        size=8,
        batch_size=500,
    )

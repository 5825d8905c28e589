"""Makes the digits classifier's weights: python -m pdistill.features.train_digits_classifier"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from pdistill.data import load_dataset, to_float
from pdistill.features.digits_classifier import WEIGHTS, DigitsClassifier


def train(seed: int = 0, num_updates: int = 1500, batch_size: int = 64) -> Any:
    """Trains the parameters on the digits' training split, with shifts by up to one pixel."""
    dataset = load_dataset("digits", "train")
    images = np.pad(dataset.images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    network = DigitsClassifier()
    params = network.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, num_updates), weight_decay=1e-2)

    @jax.jit
    def update(params, opt_state, images, labels):
        def loss(params):
            logits = network.apply(params, to_float(images))["logits"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state, rng = optimizer.init(params), np.random.RandomState(seed)
    for _ in range(num_updates):
        rows = rng.randint(len(images), size=batch_size)
        top, left = rng.randint(3, size=2)
        batch = images[rows, top : top + 8, left : left + 8]
        params, opt_state = update(params, opt_state, batch, dataset.labels[rows])
    return params


if __name__ == "__main__":
    np.savez(WEIGHTS, **traverse_util.flatten_dict(train(), sep="/"))

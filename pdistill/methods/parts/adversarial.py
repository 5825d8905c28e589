"""Adversarial losses and the R1 penalty, over the logits of several judges."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

# Costs of a logit, by the loss's name: for the generator, and for the discriminator on either kind
# of image.
GENERATOR = {"non_saturating": lambda logit: jax.nn.softplus(-logit), "hinge": jnp.negative}
REAL = {
    "non_saturating": lambda logit: jax.nn.softplus(-logit),
    "hinge": lambda logit: jax.nn.relu(1 - logit),
}
FAKE = {"non_saturating": jax.nn.softplus, "hinge": lambda logit: jax.nn.relu(1 + logit)}
LOSSES = tuple(GENERATOR)


def over_judges(function: Callable[[Array], Array], logits: Sequence[Array]) -> Array:
    """Sum over judges of the mean of `function` over a judge's logits [B, n]: a scalar.

    D2O's code sums over the images of a device too: with b of them, a weight g of R1 there is g / b
    here.
    """
    return sum(jnp.mean(function(judged)) for judged in logits)


def r1_penalty(logits: Callable[[Array], Sequence[Array]], x: Array) -> Array:
    """Mean over images of the squared gradient of the sum of an image's logits (Mescheder 2018).

    Args:
      logits: x [B, H, W, C] -> [B, n] of each judge.
    """
    gradient = jax.grad(lambda x: sum(jnp.sum(judged) for judged in logits(x)))(x)
    return jnp.sum(jnp.square(gradient)) / len(x)

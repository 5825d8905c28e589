"""Regression of a network on a v target: the end of every step that has one."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pdistill.diffusion import denoising_loss, direction_loss
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Metrics, frozen, value_and_grad


class Taught(struct.PyTreeNode):
    """State of a student that learns from a teacher as it is."""

    student: Learner
    teacher: Network = frozen()


class Examples(struct.PyTreeNode):
    """Inputs of a network and the v that it is to predict there.

    Attributes:
      z: [B, ...]. logsnr: [B]. v: [B, ...]. told: the network's conditioning.
      importance: weight of each example, [B]; None for all alike.
    """

    z: Array
    logsnr: Array
    v: Array
    told: Conditioning
    importance: Array | None = None


def regress(
    learner: Learner,
    examples: Examples | Sequence[Examples],
    weighting: str,
    dropout_key: Array | None = None,
    direction: bool = False,
    num_updates: Array | None = None,
) -> tuple[Learner, Metrics]:
    """One update of a learner towards v at z.

    Args:
      examples: or several of them, of different shapes, whose examples count alike.
      weighting: weight of the loss, a key of `diffusion.WEIGHTINGS`.
      direction: add `diffusion.direction_loss`. num_updates: as of `Learner.update`.

    Returns:
      The learner and {"loss", "grad_norm", "param_norm"}.
    """
    several = [examples] if isinstance(examples, Examples) else list(examples)

    def losses(network: Any, some: Examples, key: Array | None) -> Array:
        chex.assert_equal_shape([some.z, some.v])
        chex.assert_shape(some.logsnr, some.z.shape[:1])
        v_hat = network.v(some.z, some.logsnr, some.told, dropout_key=key)
        losses = denoising_loss(v_hat, some.v, some.logsnr, weighting)
        if direction:
            losses += direction_loss(v_hat, some.v, some.z, some.logsnr)
        return losses if some.importance is None else losses * some.importance

    def loss(network: Any, several: list[Examples], key: Array | None) -> Array:
        keys = [key] * len(several)
        if key is not None:
            keys[1:] = [jax.random.fold_in(key, i) for i in range(1, len(several))]
        found = [losses(network, *each) for each in zip(several, keys, strict=True)]
        return jnp.mean(jnp.concatenate(found))

    value, grads = value_and_grad(loss, learner, several, dropout_key)
    learner, norms = learner.update(grads, num_updates)
    return learner, {"loss": value, **norms}

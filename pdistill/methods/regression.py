"""Regression of one network on a v target: what teacher and students share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import denoising_loss
from pdistill.networks import Diffuser
from pdistill.training import Learner, Optimizer, value_and_grad


def regress(
    learner: Learner,
    diffuser: Diffuser,
    optimizer: Optimizer,
    weighting: str,
    examples: dict[str, Any],
    key: Array,
    step: Array,
) -> tuple[Learner, dict[str, Array]]:
    """One update of `learner` towards v at z.

    Args:
      examples: {"z": [B, ...], "logsnr": [B], "v": target [B, ...], "label": [B] or None}.
      weighting: of the squared error, a key of `diffusion.WEIGHTINGS`. key: for dropout.

    Returns:
      The learner and {"loss", "grad_norm", "param_norm"}.
    """

    def loss(params, examples, key):
        z, logsnr = examples["z"], examples["logsnr"]
        v_hat = diffuser.v(params, z, logsnr, examples["label"], key)
        return jnp.mean(denoising_loss(v_hat, examples["v"], logsnr, weighting))

    value, grads = value_and_grad(loss, learner.params, examples, key, optimizer.microbatches)
    learner, norms = learner.update(grads, optimizer, step)
    return learner, {"loss": value, **norms}


def uniform_times(key: Array, batch: int, stratified: bool, dtype=jnp.float32) -> Array:
    """Times in [0, 1): [batch], independent, or evenly spread from one random offset.

    The second (Kingma et al. 2021, appendix I.1) has the same expectation and less variance.
    """
    if not stratified:
        return jax.random.uniform(key, (batch,), dtype)
    t = (jnp.arange(batch, dtype=dtype) + jax.random.uniform(key, (), dtype)) / batch
    return jnp.minimum(t, 1 - jnp.finfo(dtype).epsneg)  # the last one may round to 1

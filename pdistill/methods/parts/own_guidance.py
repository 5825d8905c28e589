"""Guidance of a network that has no teacher, by its own velocities."""

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdistill.diffusion import expand
from pdistill.networks import Conditioning, Network


def guided(network: Network, z: Array, t: Array, told: Conditioning, w: Array, pair: Array, omega):
    """The guided velocity that a network learns without a teacher, [B, ...], without gradient.

    omega v + kappa F(label) - (omega + kappa - 1) F(none), kappa = 1 - omega / (1 + w), with v of
    the pair of data and noise and F of the network's velocity (Geng et al. 2025, eq. 21). The
    network learns (1 + w) v(label) - w v(none), whatever omega: less of it has less variance. With
    omega = 1 it is improved MeanFlow's v + w / (1 + w) (F(label) - F(none)). It is v where w is 0.

    Args:
      z: [B, ...] at log-SNRs t [B]. told: the network's, with labels. w: weights [B].
    """
    labelled, free = network.with_and_without(network.velocity, z, t, told)
    w = expand(w, z)
    kappa = 1 - omega / (1 + w)
    mixed = omega * pair + kappa * labelled - (omega + kappa - 1) * free
    return stop_gradient(jnp.where(w == 0, pair, mixed))

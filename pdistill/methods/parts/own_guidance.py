"""Guidance inside training: its weights and levels, and a network's own in a teacher's place."""

import math

import jax
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


def draw_guidance(
    key: Array, law: tuple[float, ...], told: Conditioning, guiding: Network, dtype=jnp.float32
) -> Array | None:
    """Weights w [B] with log(1 + w) uniform between those of a law; None for a law of none.

    They are 0 where neither label nor prompt is told, for there is nothing to guide towards, unless
    it is a guide that the network `guiding` is led away from.

    Args:
      law: () for none, (w,), or (low, high).
    """
    if not law:
        return None
    low, high = (math.log1p(w) for w in (law[0], law[-1]))
    w = jnp.expm1(low + (high - low) * jax.random.uniform(key, told.label.shape, dtype))
    return w if guiding.guide else jnp.where(told.is_informed(guiding.num_labels), w, 0.0)


def draw_levels(
    key: Array, t: Array, s: Array, network: Network, fixed: tuple[float, ...] = ()
) -> Array | None:
    """Log-SNRs [B, 2] between which weights act, for jumps from t to s [B]; None for all.

    A network that takes them has them drawn, from a time below one half to one above it, and all
    for jumps of no length (Geng et al. 2025b).

    Args:
      fixed: lowest and highest log(sigma / alpha) of all rows, if they are not drawn.
    """
    if fixed:
        least, most = fixed
        return jnp.broadcast_to(jnp.array([-2 * most, -2 * least], t.dtype), (len(t), 2))
    if not network.takes_guidance_levels:
        return None
    early, late = jax.random.uniform(key, (2, *t.shape), t.dtype, 0.0, 0.5)
    drawn = jnp.stack([network.schedule(1 - early), network.schedule(late)], axis=-1)
    return jnp.where((t == s)[:, None], jnp.array([-jnp.inf, jnp.inf], t.dtype)[None], drawn)

"""Identities of a flow map, each as a prediction and the target that it must meet.

A flow map G(z, t, s) takes z along the probability flow from angle t to angle s. With
G = cos(d) z - sin(d) F, d = t - s, it is the network's output F that is learnt; F(z, t, t) is the
velocity v. All three hold for the exact map. The flow of any other field satisfies the semigroup's
too, and the Lagrangian's with a velocity of its own: v comes in by jumps of no length, or by a
first jump that is short. Angles are [B], broadcast to z.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdistill.diffusion import expand, logsnr_of_angle
from pdistill.networks import Conditioning, Network
from pdistill.runtime.kernels import without_kernels

Output = Callable[[Array, Array, Array], Array]  # F(z [B, ...], t [B], s [B])
Pair = tuple[Array, Array]  # prediction and target, without gradient, [B, ...] each


def output_of(network: Network, told: Conditioning, dropout_key: Array | None = None) -> Output:
    """A network's output F between angles, for what it is told [B]; with dropout if a key is
    given."""

    def F(z, t, s):
        told_s = told.replace(target=logsnr_of_angle(s))
        return network.v(z, logsnr_of_angle(t), told_s, dropout_key=dropout_key)

    return F


def eulerian(
    F: Output, z: Array, t: Array, s: Array, v: Array, along: Array, warm=1.0, difference=0.0
) -> Pair:
    """G does not change as z moves along the flow: cos(d) (F - v) + sin(d) (z + dF/dt) = 0.

    This is sCM's tangent (Lu & Song 2024, eq. 6) if s is the data's end, and for any s MeanFlow's
    identity (Geng et al. 2025, eq. 6) on the circle.

    Args:
      v: velocity at z: the data's or a teacher's. along: the direction of dF/dt, v or the network's
        own F(z, t, t) (improved MeanFlow). warm: factor on the second term, in [0, 1].
      difference: if positive, dF/dt is a central difference of this step in the angle.
    """
    if difference:
        h = difference * along
        ahead, behind = F(z + h, t + difference, s), F(z - h, t - difference, s)
        f, change = F(z, t, s), (ahead - behind) / (2 * difference)
    else:
        with without_kernels():
            f, change = jax.jvp(lambda z, t: F(z, t, s), (z, t), (along, jnp.ones_like(t)))
    d = expand(t - s, z)
    residual = jnp.cos(d) * (f - v) + warm * jnp.sin(d) * (z + change)
    return f, stop_gradient(f - residual)


def lagrangian(F: Output, z: Array, t: Array, s: Array, v: Array, velocity: Callable) -> Pair:
    """The end of a jump moves with the flow as s does: dG/ds = v(G, s).

    Args:
      v: velocity at z, for jumps of no length, which stay there. velocity: (z, s) -> v.
    """

    def jump(s):
        d = expand(t - s, z)
        return jnp.cos(d) * z - jnp.sin(d) * F(z, t, s)

    with without_kernels():
        end, change = jax.jvp(jump, (s,), (jnp.ones_like(s),))
    target = jnp.where(expand(t == s, z), v, velocity(stop_gradient(end), s))
    return change, stop_gradient(target)


def semigroup(
    F: Output,
    z: Array,
    t: Array,
    s: Array,
    way: Array,
    v: Array,
    first: Array,
    short: bool,
    second: Output | None = None,
) -> Pair:
    """A jump is two jumps: G(z, t, s) = G(G(z, t, u), u, s).

    Args:
      way: t - u [B], the length of the first jump. v: velocity at z, for jumps of no length.
      first: F of the jump from t to u: the network's own, or v if that is short.
      short: divide the residual by the first jump's length, as discrete consistency training does:
        then it does not vanish with it, and is the Eulerian one as u -> t.
      second: F of the jump from u to s, if it is another network's.
    """
    u, f = t - way, F(z, t, s)
    d, e, rest = (expand(a, z) for a in (t - s, way, u - s))
    z_u = jnp.cos(e) * z - jnp.sin(e) * first
    none = (d == 0) | (e == 0)
    length, part = (jnp.where(none, 1.0, jnp.sin(a)) for a in (d, e))
    two = part * (jnp.cos(rest) * first - jnp.sin(rest) * z) + jnp.sin(rest) * (second or F)(
        z_u, u, s
    )
    residual = f - two / length
    if short:
        residual = residual * length / part
    return f, stop_gradient(f - jnp.where(none, f - v, residual))

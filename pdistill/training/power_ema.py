"""Averages with power-function profiles, and others made from their snapshots (Karras et al. 2024).

After t updates an average of exponent gamma is the mean of the parameters with the weights
p(u) = (gamma + 1) u^gamma / t^(gamma + 1), u in [0, t]. Its width is the standard deviation of u
over t, so that an average of one width covers the same share of a run of any length.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

WIDEST = 12**-0.5  # the mean of all updates, gamma = 0


def check_width(width: float) -> None:
    """Raises ValueError for a width that no average has."""
    if not 0 < width <= WIDEST:
        raise ValueError(
            f"the width of an average must be above 0 and at most {WIDEST:.4f}, the plain mean; "
            f"got {width}"
        )


def exponent(width: float) -> float:
    """The gamma of a width: the larger root of width^2 (gamma + 2)^2 (gamma + 3) = gamma + 1."""
    check_width(width)
    square = width**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def step_size(width: float, update: Array) -> Array:
    """Weight of the newest parameters, 1 - beta, at update number 1, 2, ...; 1 at the first.

    beta = (1 - 1 / update)^(gamma + 1), computed without cancellation.
    """
    t = update.astype(jnp.result_type(float))
    return -jnp.expm1((exponent(width) + 1) * jnp.log1p(-1 / t))


@dataclasses.dataclass(frozen=True)
class Profile:
    """The weights of an average over its updates.

    Attributes:
      width: relative standard deviation. updates: number of updates t.
    """

    width: float
    updates: int


def inner_product(a: Profile, b: Profile) -> float:
    """Integral of the product of two profiles, in closed form (Karras et al. 2024, appendix C)."""
    if a.updates > b.updates:
        a, b = b, a
    gamma_a, gamma_b = exponent(a.width), exponent(b.width)
    ratio = (a.updates / b.updates) ** gamma_b
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * b.updates)


def fit(profiles: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Weights of stored averages whose sum is nearest to another: least squares of their profiles.

    Returns:
      The weights [N], whose sum is 1, and the error: the norm of the difference of the two
      profiles over that of the wanted one.
    """
    products = np.array([[inner_product(a, b) for b in profiles] for a in profiles])
    with_wanted = np.array([inner_product(a, wanted) for a in profiles])
    weights = np.linalg.lstsq(products, with_wanted)[0]
    weights /= weights.sum()
    square = inner_product(wanted, wanted)
    rest = weights @ products @ weights - 2 * weights @ with_wanted + square
    return weights, float(np.sqrt(max(rest, 0) / square))

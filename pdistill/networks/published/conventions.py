"""Conventions of published networks: from our (z, logsnr) to their input and time, and back.

A published network is f(input, time) -> output, in the terms of its own training. A convention
says what it must be given at our z and logsnr, and what its output is among our heads
(`diffusion.HEADS`). In s, the standard deviation of the noise that EDM adds to data of scale one,
s = sigma / alpha, their noisy image is z / alpha.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import alpha_sigma, expand


class Convention(abc.ABC):
    """Attributes: name, in networks' arguments; head, of what `leave` returns."""

    name: ClassVar[str]
    head: str

    @abc.abstractmethod
    def enter(self, z: Array, logsnr: Array) -> tuple[Array, Array]:
        """z [B, H, W, C] and logsnr [B] -> the network's input, of z's shape, and its time [B]."""

    def leave(self, z: Array, logsnr: Array, output: Array) -> Array:
        """The network's output -> the head's."""
        del z, logsnr
        return output


@dataclasses.dataclass(frozen=True)
class Edm(Convention):
    """D = c_skip x + c_out F(c_in x, log(s) / 4) (Karras et al. 2022, Table 1), read as v.

    v = (alpha z - D) / sigma; put in closed form nothing in it cancels at small sigma:
    v = (1 - d^2) alpha sigma / r^2 z - d / r F(z / r), with d = data_std and
    r^2 = sigma^2 + d^2 alpha^2. For d = 1 it is -F(z).
    """

    name = "edm"
    head = "v"
    data_std: float = 0.5

    def enter(self, z, logsnr):
        _, _, r = self._scales(z, logsnr)
        return z / r, -logsnr / 8

    def leave(self, z, logsnr, output):
        alpha, sigma, r = self._scales(z, logsnr)
        return (1 - self.data_std**2) * alpha * sigma / r**2 * z - self.data_std / r * output

    def _scales(self, z, logsnr):
        alpha, sigma = alpha_sigma(expand(logsnr, z))
        return alpha, sigma, jnp.hypot(sigma, self.data_std * alpha)


@dataclasses.dataclass(frozen=True)
class Vp(Convention):
    """eps = F(z, scale t), t the time of the VP SDE (Song et al. 2021; Karras et al. 2022)."""

    name = "vp"
    head = "eps"
    beta_min: float = 0.1
    beta_d: float = 19.9
    scale: float = 999.0

    def enter(self, z, logsnr):
        twice = 2 * jax.nn.softplus(-logsnr)  # 2 log(1 + s^2) = 2 beta_min t + beta_d t^2
        root = jnp.sqrt(self.beta_min**2 + self.beta_d * twice)
        return z, self.scale * twice / (root + self.beta_min)


@dataclasses.dataclass(frozen=True)
class Ve(Convention):
    """eps = -F(z / alpha, log(s / 2)), as in the VE SDE (Karras et al. 2022, Table 1)."""

    name = "ve"
    head = "eps"

    def enter(self, z, logsnr):
        alpha, _ = alpha_sigma(expand(logsnr, z))
        return z / alpha, -logsnr / 2 - math.log(2)

    def leave(self, z, logsnr, output):
        return -output


@dataclasses.dataclass(frozen=True)
class Ddpm(Convention):
    """F(z, i), i the time step of DDPM's discrete noise levels, or between two of them.

    Attributes: of `diffusion.DdpmSchedule`; head, what F predicts.
    """

    name = "ddpm"
    head: str = "eps"
    betas: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num: int = 1000

    def enter(self, z, logsnr):
        return z, self.schedule.step(logsnr)

    @property
    def schedule(self) -> diffusion.DdpmSchedule:
        return diffusion.DdpmSchedule(self.betas, self.beta_start, self.beta_end, self.num)


@dataclasses.dataclass(frozen=True)
class Flow(Convention):
    """x - eps = F(t x + (1 - t) eps, t) of a rectified flow, whose data are at t = 1 (SiT).

    t = alpha / (alpha + sigma) and the input z / (alpha + sigma), so -F is our velocity.
    """

    name = "flow"
    head = "velocity"

    def enter(self, z, logsnr):
        alpha, sigma = alpha_sigma(logsnr)
        return z / expand(alpha + sigma, z), alpha / (alpha + sigma)

    def leave(self, z, logsnr, output):
        return -output


CONVENTIONS = {cls.name: cls for cls in (Edm, Vp, Ve, Ddpm, Flow)}


def parse_convention(spec: Sequence[str | float]) -> Convention:
    """A convention from its name and its attributes, ("edm", 0.5), as networks' arguments have it.

    Raises:
      ValueError: an unknown name, or attributes that it does not have or that cannot be meant.
    """
    name, *attributes = spec
    if name not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {name!r}")
    if len(attributes) > len(dataclasses.fields(CONVENTIONS[name])):
        raise ValueError(f"convention {name!r} has no {len(attributes)} attributes")
    if not all(isinstance(a, str) or 0 < a < math.inf for a in attributes):
        raise ValueError(
            f"convention {name!r} must have positive, finite numbers; got {attributes}"
        )
    return CONVENTIONS[name](*attributes)


def describe_convention(convention: Convention) -> tuple[str | float, ...]:
    """The inverse of `parse_convention`."""
    return (convention.name, *dataclasses.astuple(convention))

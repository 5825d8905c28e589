"""A baseline of higher resolution: the samples of a model, enlarged."""

import dataclasses
from typing import ClassVar

from jax import Array

from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given
from pdistill.networks import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upsampled(Method):
    """Bicubic interpolation of an earlier model's samples, in zero updates.

    Attributes:
      factor: by which they are enlarged.
    """

    factor: int
    name: ClassVar[str] = "upsampled"

    def __post_init__(self):
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2; got {self.factor}")

    def objection(self, run, *, made_for, denoises, sampler):
        return ""

    def init(self, key: Array, *, teacher: Network) -> Network:
        del key
        check_given(teacher, "teacher", guided=True, one_step=True)
        return teacher.replace(enlarged=self.factor)

    def product(self, state: Network) -> Network:
        return state

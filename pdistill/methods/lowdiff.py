"""LowDiff (Xu et al. 2025): one network for a cascade of resolutions, most steps at the lowest.

Of the paper the abstract and its reviews could be read. That one network is shared by all
resolutions, told which by an embedding, and makes each image on the condition of the one before,
is the paper's; the rest is our own design, as `Levels`, `UNet` and the stage below say.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pdistill.methods.levels import Levels
from pdistill.methods.regression import RegressionStage
from pdistill.methods.stage import Round
from pdistill.methods.teacher import Teacher
from pdistill.samplers import Cascade, parse_solver


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowDiffStage(RegressionStage):
    """Config of the stage: trains a cascade from scratch, in one round. All defaults are ours.

    A later stage `progressive` halves the steps of all its levels.

    Attributes:
      resolutions: pixels a side, rising by factors of two, four, ...; the last is the stage's.
      split, max_noise: of `Levels`; the split adds up to `loop.batch_size`.
      num_steps: the steps of all levels, once for each time it is measured.
      solver: of each level, a deterministic one. noise: std on the condition in sampling.
      shifts: added to the schedule's log-SNR at each level; by default 2 log(R / r) for images of r
        of R pixels. Averages of n pixels have 1 / n of the noise's variance, so that this makes
        equal times equally noisy.
      label_dropout: of `Teacher`; with it the model can be guided, towards the label only.
      network: the arguments in which the network differs from the model's.
    """

    resolutions: tuple[int, ...]
    split: tuple[int, ...]
    num_steps: tuple[tuple[int, ...], ...]
    max_noise: float = 0.2
    solver: str = "ddim"
    noise: float = 0.1
    shifts: tuple[float, ...] = ()
    label_dropout: float = 0.0
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rounds(self, diffuser, image_shape, earlier):
        if not hasattr(diffuser.network, "resolutions"):
            raise ValueError(f"{type(diffuser.network).__name__} has one resolution; UNet can")
        if sum(self.split) != self.loop.batch_size:
            raise ValueError(
                f"split {self.split} must add up to loop.batch_size {self.loop.batch_size}"
            )
        for steps in self.num_steps:
            if len(steps) != len(self.resolutions):
                raise ValueError(
                    f"num_steps: each must be of the levels {self.resolutions}; got {steps}"
                )
        Cascade(parse_solver(self.solver), self.noise)  # raises for what it cannot be
        if not self.noise <= self.max_noise:
            raise ValueError(
                f"noise {self.noise} in sampling is more than any in training; max_noise is "
                f"{self.max_noise}"
            )
        if parse_solver(self.solver).stochastic:
            raise ValueError(f"solver must be deterministic; got {self.solver!r}")
        diffuser = diffuser.with_network({**self.network, "resolutions": self.resolutions})
        shifts = self.shifts or tuple(
            2 * math.log(self.resolutions[-1] / size) for size in self.resolutions
        )
        diffuser = dataclasses.replace(diffuser, shifts=shifts)
        diffuser.param_shapes(image_shape)  # raises for sizes that the network cannot have
        teacher = Teacher(diffuser, **self.settings(self.loop), label_dropout=self.label_dropout)
        method = Levels(teacher, self.split, self.max_noise)
        return [
            Round(
                self.name,
                "lowdiff",
                method,
                lambda key, parent: method.init(key, image_shape),
                self.loop,
                self.num_steps,
                solver=f"cascade:{self.solver}:{self.noise}",
                guidance=(0.0, math.inf) if self.label_dropout else None,
            )
        ]

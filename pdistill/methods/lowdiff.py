"""LowDiff (Xu et al. 2025): one network for a cascade of resolutions, most steps at the lowest.

Of the paper the abstract and its reviews could be read. That one network is shared by all
resolutions, told which by an embedding, and makes each image on the condition of the one before,
is the paper's; the rest is our own design, as `Levels`, `UNet` and the stage below say.
"""

import dataclasses
import math

from pdistill.methods.levels import Levels
from pdistill.methods.teacher import FromScratchStage
from pdistill.samplers import parse_solver


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowDiffStage(FromScratchStage):
    """Config of the stage: trains a cascade. All defaults are ours.

    A later stage `progressive` halves the steps of all its levels.

    Attributes:
      resolutions: pixels a side, rising by factors of two, four, ...; the last is the stage's.
      split, max_noise: of `Levels`; the split adds up to `loop.batch_size`.
      num_steps: the steps of all levels, once for each time it is measured.
      solver: of each level, a deterministic one. noise: std on the condition in sampling.
      shifts: added to the schedule's log-SNR at each level; by default 2 log(R / r) for images of r
        of R pixels. Averages of n pixels have 1 / n of the noise's variance, so that this makes
        equal times equally noisy.
      label_dropout: the model can then be guided, towards the label only.
    """

    resolutions: tuple[int, ...]
    split: tuple[int, ...]
    num_steps: tuple[tuple[int, ...], ...]
    max_noise: float = 0.2
    solver: str = "ddim"
    noise: float = 0.1
    shifts: tuple[float, ...] = ()

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
        if not self.noise <= self.max_noise:
            raise ValueError(
                f"noise {self.noise} in sampling is more than any in training; max_noise is "
                f"{self.max_noise}"
            )
        cascade = f"cascade:{self.solver}:{self.noise}"
        if parse_solver(cascade).solver.stochastic:
            raise ValueError(f"solver must be deterministic; got {self.solver!r}")
        diffuser = diffuser.with_network({**self.network, "resolutions": self.resolutions})
        shifts = self.shifts or tuple(
            2 * math.log(self.resolutions[-1] / size) for size in self.resolutions
        )
        diffuser = dataclasses.replace(diffuser, shifts=shifts)
        diffuser.param_shapes(image_shape)  # raises for sizes that the network cannot have
        method = Levels(self.teacher_of(diffuser), self.split, self.max_noise)
        return [self.round_of(method, "lowdiff", image_shape, solver=cascade)]

"""Guided distillation, stage one (Meng et al. 2023): one network for a range of guidance weights.

Stage two is `progressive`, starting from the model that this stage makes.
"""

import dataclasses
import functools
from typing import Any

from jax import Array

from pdistill.methods.regression import RegressionStage, guided_examples
from pdistill.methods.score_matching import ScoreMatching
from pdistill.methods.stage import Round, check_guidable, find_parent
from pdistill.training import TrainState, transfer


@dataclasses.dataclass(frozen=True)
class Guided(ScoreMatching):
    """The student, told w, predicts what its teacher's guided pair of evaluations does.

    The paper leaves the loss's weight open; the default, SNR + 1, is the mean square of v.

    Attributes:
      teacher: needs labels. guidance: range of w, drawn uniformly for each example.
      discount: of `guided_examples`; the paper has 0.
    """

    guidance: tuple[float, float] = (0.0, 4.0)
    discount: float = 0.0

    def init(self, key: Array, teacher: Any, image_shape: tuple[int, ...]) -> TrainState:
        """The student starts as the teacher's conditional network, whatever w is."""
        params, _ = transfer(self.diffuser.init(key, image_shape), teacher)
        return self._from(params, teacher)

    def _guided(self, key, x):
        return guided_examples(key, len(x), self.guidance, self.discount, self.stratified, x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedStage(RegressionStage):
    """Config of the stage, one round.

    Attributes:
      teacher: name of a stage trained with label dropout. guidance, discount: of `Guided`.
      num_steps: step counts it is measured at; the exported model samples with the first.
    """

    teacher: str
    num_steps: tuple[int, ...]
    guidance: tuple[float, ...] = (0.0, 4.0)
    discount: float = 0.0

    def rounds(self, diffuser, image_shape, earlier):
        parent = find_parent(earlier, self.teacher)
        teacher = parent.method.diffuser.without_dropout()
        check_guidable(parent)
        if len(self.guidance) != 2 or not 0 <= self.guidance[0] < self.guidance[1]:
            raise ValueError(f"guidance must be (low, high) with 0 <= low; got {self.guidance}")
        method = Guided(
            teacher.with_guidance(),
            **self.settings(self.loop),
            discount=self.discount,
            teacher=teacher,
            guidance=self.guidance,
        )
        return [
            Round(
                self.name,
                "guided",
                method,
                functools.partial(method.init, image_shape=image_shape),
                self.loop,
                self.num_steps,
                guidance=self.guidance,
                parent=parent.name,
            )
        ]

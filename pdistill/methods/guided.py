"""Guided distillation, stage one (Meng et al. 2023): one network for a range of guidance weights.

Stage two is `progressive`, starting from the model that this stage makes.
"""

import dataclasses
from typing import Any

import jax
from jax import Array

from pdistill import diffusion
from pdistill.methods.regression import (
    Regression,
    RegressionStage,
    uniform_times,
    uniform_weights,
)
from pdistill.methods.stage import Round, find_parent
from pdistill.networks import Diffuser
from pdistill.training import Learner, TrainState, transfer


@dataclasses.dataclass(frozen=True)
class Guided(Regression):
    """The student, told w, predicts what its teacher's guided pair of evaluations does.

    The paper leaves the loss's weight open; the default, SNR + 1, is the mean square of v.

    Attributes:
      teacher: whose parameters are `state.frozen["teacher"]`; needs labels.
      guidance: range of w, drawn uniformly for each example.
    """

    teacher: Diffuser | None = None
    guidance: tuple[float, float] = (0.0, 4.0)

    def init(self, key: Array, teacher: Any, image_shape: tuple[int, ...]) -> TrainState:
        """The student starts as the teacher's conditional network, whatever w is."""
        params, _ = transfer(self.diffuser.init(key, image_shape), teacher)
        learner = Learner.create(params, self.optimizer)
        return TrainState.create({self.learner: learner}, {"teacher": teacher})

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        time_key, noise_key, dropout_key, guidance_key = jax.random.split(key, 4)
        x, label = batch["image"], batch["label"]
        t = uniform_times(time_key, x.shape[0], self.stratified, x.dtype)
        logsnr = self.diffuser.schedule(t)
        eps = jax.random.normal(noise_key, x.shape, x.dtype)
        z = diffusion.diffuse(x, eps, logsnr)
        w = uniform_weights(guidance_key, len(x), self.guidance, self.stratified, x.dtype)
        v = self.teacher.v(state.frozen["teacher"], z, logsnr, label, w)
        examples = {
            "z": z,
            "logsnr": logsnr,
            "v": jax.lax.stop_gradient(v),
            "label": label,
            "guidance": w,
        }
        return self.regress(state, examples, dropout_key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedStage(RegressionStage):
    """Config of the stage, one round.

    Attributes:
      teacher: name of a stage trained with label dropout. guidance: of `Guided`.
      num_steps: step counts it is measured at; the exported model samples with the first.
    """

    teacher: str
    num_steps: tuple[int, ...]
    guidance: tuple[float, ...] = (0.0, 4.0)

    def rounds(self, diffuser, image_shape, earlier):
        parent = find_parent(earlier, self.teacher)
        teacher = parent.method.diffuser.without_dropout()
        if parent.guidance is None:
            raise ValueError(
                f"{parent.name!r} cannot be guided: train it with labels and label_dropout"
            )
        if len(self.guidance) != 2 or not 0 <= self.guidance[0] < self.guidance[1]:
            raise ValueError(f"guidance must be (low, high) with 0 <= low; got {self.guidance}")
        method = Guided(
            teacher.with_guidance(),
            self.optimizer_for(self.loop),
            self.weighting,
            self.stratified,
            teacher,
            self.guidance,
        )
        return [
            Round(
                self.name,
                "guided",
                method,
                lambda key, params: method.init(key, params, image_shape),
                self.loop,
                self.num_steps,
                guidance=self.guidance,
                parent=parent.name,
            )
        ]

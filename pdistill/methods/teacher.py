"""The teacher: a diffusion model trained in continuous time (Salimans & Ho 2022, algorithm 1)."""

import dataclasses
from typing import Any

import jax
from jax import Array

from pdistill import diffusion
from pdistill.methods.regression import Regression, uniform_times
from pdistill.methods.stage import Round, Stage
from pdistill.networks import Diffuser
from pdistill.training import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class Teacher(Regression):
    """Denoise real images at random noise levels."""

    def init(self, key: Array, image_shape: tuple[int, ...]) -> TrainState:
        params = self.diffuser.init(key, image_shape)
        return TrainState.create({"model": Learner.create(params, self.optimizer)}, frozen={})

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x = batch["image"]
        t = uniform_times(time_key, x.shape[0], self.stratified, x.dtype)
        logsnr = self.diffuser.schedule(t)
        eps = jax.random.normal(noise_key, x.shape, x.dtype)
        examples = {
            "z": diffusion.diffuse(x, eps, logsnr),
            "logsnr": logsnr,
            "v": diffusion.v_target(x, eps, logsnr),
            "label": batch.get("label"),
        }
        model = state.learners["model"]
        model, metrics = self.regress(model, examples, dropout_key, state.step)
        return state.replace(learners={"model": model}), metrics

    def export(self, state: TrainState) -> Any:
        """The parameters to sample with: the moving average."""
        return state.learners["model"].ema


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStage(Stage):
    """Config of the stage: trains a teacher from scratch, in one round.

    Attributes:
      num_steps: step counts it is measured at; the exported model samples with the first.
      weighting, stratified: of `Teacher`. head: instead of the model's.
    """

    num_steps: tuple[int, ...]
    weighting: str = "v_mse"
    stratified: bool = False
    head: str | None = None

    def rounds(self, diffuser: Diffuser, image_shape: tuple[int, ...]) -> list[Round]:
        if self.head:
            diffuser = diffuser.with_head(self.head, image_shape[-1])
        method = Teacher(diffuser, self.optimizer_for(self.loop), self.weighting, self.stratified)
        init = lambda key, parent: method.init(key, image_shape)  # noqa: E731
        return [Round(self.name, "teacher", method, init, self.loop, self.num_steps)]

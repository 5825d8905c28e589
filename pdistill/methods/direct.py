"""Direct distillation (Luhman & Luhman 2021): one evaluation does what a whole sampler does.

From k-step teachers it gives the students of the local-minima experiment of Zheng & Yang (2025).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pdistill import diffusion, samplers
from pdistill.methods.regression import Regression
from pdistill.methods.stage import Round, TrainingStage, find_parent
from pdistill.training import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class Direct(Regression):
    """The student's x_hat of pure noise is regressed on the image that its teacher makes of it.

    Attributes:
      teacher_steps: of the teacher's DDIM sampler.
    """

    teacher_steps: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps must be at least 1; got {self.teacher_steps}")

    def init(self, teacher: Any) -> TrainState:
        """The student starts as the teacher."""
        learner = Learner.create(teacher, self.optimizer)
        return TrainState.create({self.learner: learner}, {"teacher": teacher})

    def examples(self, state, batch, key):
        noise_key, dropout_key = jax.random.split(key)
        x, label = batch["image"], batch.get("label")
        z = jax.random.normal(noise_key, x.shape, x.dtype)
        x_target = samplers.sample(
            self.diffuser.denoiser(state.frozen["teacher"], label),
            None,
            z_init=z,
            schedule=self.diffuser.schedule,
            num_steps=self.teacher_steps,
        )
        logsnr = jnp.broadcast_to(self.diffuser.schedule(jnp.ones((), x.dtype)), x.shape[:1])
        examples = {
            "z": z,
            "logsnr": logsnr,
            "v": diffusion.v_from_x(z, jax.lax.stop_gradient(x_target), logsnr),
            "label": label,
        }
        return examples, dropout_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectStage(TrainingStage):
    """Config of the stage, one round.

    Attributes:
      teacher: name of the stage or round to start from.
      teacher_steps, weighting: of `Direct`.
    """

    teacher: str
    teacher_steps: int
    weighting: str = "v_mse"

    def rounds(self, diffuser, image_shape, earlier):
        parent = find_parent(earlier, self.teacher)
        diffuser = parent.method.diffuser.without_dropout()
        method = Direct(
            diffuser,
            self.optimizer_for(self.loop),
            self.weighting,
            teacher_steps=self.teacher_steps,
        )
        return [
            Round(
                self.name,
                "direct",
                method,
                lambda key, teacher: method.init(teacher),
                self.loop,
                (1,),
                solver="one_step",
                parent=parent.name,
            )
        ]

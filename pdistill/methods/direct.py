"""Direct distillation (Luhman & Luhman 2021): one evaluation does what a whole sampler does.

From k-step teachers it gives the students of the local-minima experiment of Zheng & Yang (2025).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion, samplers
from pdistill.diffusion import check_weighting
from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given
from pdistill.methods.parts.regression import Examples, Taught, regress
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direct(Method):
    """The student's x_hat of pure noise is regressed on the image that its teacher makes of it.

    Attributes:
      teacher_steps: steps of the teacher's DDIM sampler.
      weighting: weight of the loss, a key of `diffusion.WEIGHTINGS`.
    """

    optimizer: Optimizer
    teacher_steps: int
    weighting: str = "v_mse"
    name: ClassVar[str] = "direct"

    def __post_init__(self):
        check_weighting(self.weighting)
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps must be at least 1; got {self.teacher_steps}")

    @property
    def measured_at(self):
        return (1,)

    def objection(self, run, *, made_for, denoises, sampler):
        if not denoises or sampler == "stochastic":  # its steps are not DDIM's
            return super().objection(run, made_for=made_for, denoises=denoises, sampler=sampler)
        if set(made_for) <= {self.teacher_steps}:
            return ""
        return (
            f"direct samples it in teacher_steps={self.teacher_steps}; set its own count, or name "
            "another stage"
        )

    def init(self, key: Array, *, teacher: Network) -> Taught:
        """The student starts as the teacher; nothing is random."""
        del key
        check_given(teacher, "teacher")
        teacher = teacher.without_dropout()
        student = teacher.unguided().replace(sampler="one_step")
        return Taught(Learner.of(student, self.optimizer), teacher)

    def step(self, state: Taught, batch, key):
        noise_key, _ = jax.random.split(key)
        x, told = batch["image"], Conditioning.of(batch)
        schedule = state.teacher.schedule
        z = jax.random.normal(noise_key, x.shape, x.dtype)
        x_target = samplers.sample(
            state.teacher.denoiser(told),
            None,
            z_init=z,
            schedule=schedule,
            num_steps=self.teacher_steps,
        )
        logsnr = jnp.broadcast_to(schedule(jnp.ones((), x.dtype)), x.shape[:1])
        v = diffusion.v_from_x(z, stop_gradient(x_target), logsnr)
        examples = Examples(z, logsnr, v, told)
        student, metrics = regress(state.student, examples, self.weighting)
        return state.replace(student=student), metrics

    def product(self, state: Taught) -> Network:
        return state.student.averaged

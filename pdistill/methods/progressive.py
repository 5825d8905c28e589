"""Progressive distillation (Salimans & Ho 2022, algorithm 2): halve the steps, round by round."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import Denoiser
from pdistill.methods.regression import Regression, uniform_times
from pdistill.methods.stage import Round, Stage
from pdistill.networks import Diffuser
from pdistill.samplers import ddim_step
from pdistill.training import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class Progressive(Regression):
    """One round: the student does in one DDIM step what its teacher does in two.

    The teacher's parameters and the student's step count are traced (`state.frozen`), so all
    rounds of equal length share one compiled step.
    """

    def init(self, teacher: Any, num_steps: int | Array) -> TrainState:
        """The student starts as the teacher, with fresh optimizer moments.

        Args:
          teacher: parameters of the round before. num_steps: the student's.
        """
        frozen = {
            "teacher": jax.tree.map(jnp.copy, teacher),
            "num_steps": jnp.asarray(num_steps, jnp.int32),
        }
        return TrainState.create({"student": Learner.create(teacher, self.optimizer)}, frozen)

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x, label = batch["image"], batch.get("label")
        num_steps = state.frozen["num_steps"].astype(x.dtype)

        u = uniform_times(time_key, x.shape[0], self.stratified, x.dtype)
        i = jnp.minimum(jnp.floor(u * num_steps), num_steps - 1)  # uniform on 0 .. N - 1
        logsnr_t = self.diffuser.schedule((i + 1) / num_steps)
        logsnr_m = self.diffuser.schedule((i + 0.5) / num_steps)
        logsnr_s = self.diffuser.schedule(i / num_steps)
        eps = jax.random.normal(noise_key, x.shape, x.dtype)
        z = diffusion.diffuse(x, eps, logsnr_t)

        teacher = self.diffuser.denoiser(state.frozen["teacher"], label)
        x_target = two_step_target(teacher, z, logsnr_t, logsnr_m, logsnr_s, last=i == 0)
        examples = {
            "z": z,
            "logsnr": logsnr_t,
            "v": diffusion.v_from_x(z, jax.lax.stop_gradient(x_target), logsnr_t),
            "label": label,
        }
        student = state.learners["student"]
        student, metrics = self.regress(student, examples, dropout_key, state.step)
        return state.replace(learners={"student": student}), metrics

    def export(self, state: TrainState) -> Any:
        """The parameters to sample with, and the next round's teacher."""
        return state.learners["student"].ema


def two_step_target(
    teacher: Denoiser, z: Array, logsnr_t: Array, logsnr_m: Array, logsnr_s: Array, last: Array
) -> Array:
    """x that one DDIM step from t must predict to land where two teacher steps land at s.

    Salimans & Ho 2022, algorithm 2, in its convex form x = c x_2 + (1 - c) x_1 with
    c = expm1((logsnr_m - logsnr_s) / 2) / expm1((logsnr_t - logsnr_s) / 2), which keeps the
    digits that (z_s - q z) / (alpha_s - q alpha_t) cancels when the steps are small.

    Args:
      z: [B, ...]. logsnr_t < logsnr_m < logsnr_s: [B].
      last: [B] bool, s is the data end of the grid; there a sampler returns x_hat, so c = 1.

    Returns:
      [B, ...].
    """
    level = lambda logsnr: diffusion.expand(logsnr, z)  # noqa: E731
    x_1 = teacher(z, logsnr_t)
    z_m = ddim_step(z, x_1, level(logsnr_t), level(logsnr_m))
    x_2 = teacher(z_m, logsnr_m)
    c = jnp.expm1((logsnr_m - logsnr_s) / 2) / jnp.expm1((logsnr_t - logsnr_s) / 2)
    c = level(jnp.where(last, 1.0, c))
    return c * x_2 + (1 - c) * x_1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveStage(Stage):
    """Config of the stage: one round for each halving from start_steps to end_steps.

    Dropout is for the teacher's training; students are trained without, as in the paper.

    Attributes:
      teacher: name of the stage or round to start from. start_steps: of its DDIM sampler.
      weighting, stratified: of `Progressive`.
      long_rounds: rounds with at most this many steps take twice `loop.num_updates`, as the
        paper's to two steps and to one do.
    """

    teacher: str
    start_steps: int
    end_steps: int = 1
    weighting: str = "v_mse"
    stratified: bool = False
    long_rounds: int = 0

    def rounds(self, diffuser: Diffuser, image_shape: tuple[int, ...]) -> list[Round]:
        rounds, parent = [], self.teacher
        for num_steps in halvings(self.start_steps, self.end_steps):
            factor = 2 if num_steps <= self.long_rounds else 1
            loop = dataclasses.replace(self.loop, num_updates=factor * self.loop.num_updates)
            optimizer = self.optimizer_for(loop)
            method = Progressive(
                diffuser.without_dropout(), optimizer, self.weighting, self.stratified
            )
            init = functools.partial(_init_student, method, num_steps)
            name = f"{self.name}/{num_steps}"
            rounds.append(Round(name, "progressive", method, init, loop, (num_steps,), parent))
            parent = name
        return rounds


def _init_student(method: Progressive, num_steps: int, key: Array, teacher: Any) -> TrainState:
    del key  # nothing is random: the student is a copy
    return method.init(teacher, num_steps)


def halvings(start_steps: int, end_steps: int) -> list[int]:
    """Student step counts from start_steps / 2 down to end_steps.

    Raises:
      ValueError: start_steps is not end_steps times a power of two above one.
    """
    counts = []
    steps = start_steps
    while end_steps >= 1 and steps > end_steps and steps % 2 == 0:
        steps //= 2
        counts.append(steps)
    if not counts or counts[-1] != end_steps:
        raise ValueError(
            "start_steps must be end_steps times a power of two (2, 4, 8, ...); "
            f"got start_steps={start_steps} and end_steps={end_steps}"
        )
    return counts

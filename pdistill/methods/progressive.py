"""Progressive distillation (Salimans & Ho 2022, algorithm 2): halve the steps, round by round."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import Denoiser, Schedule
from pdistill.methods.levels import Levels
from pdistill.methods.regression import (
    Regression,
    RegressionStage,
    guided_examples,
    uniform_times,
)
from pdistill.methods.stage import Round, find_parent
from pdistill.samplers import ddim_step, parse_solver
from pdistill.training import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class Progressive(Regression):
    """One round: the student does in one DDIM step what its teacher does in two.

    The teacher's parameters and the student's step count are traced (`state.frozen`), so all
    rounds of equal length share one compiled step.

    Attributes:
      guidance: range of the guidance weights, drawn uniformly for each example, of a network that
        takes them (Meng et al. 2023, stage two); else None.
      discount: of `guided_examples`.
      stochastic: for `samplers.Stochastic`, whose steps are twice as long as the grid's: the
        student does in one step of 2 / N what its teacher does in two of 1 / N (the same).
    """

    guidance: tuple[float, float] | None = None
    discount: float = 0.0
    stochastic: bool = False

    def init(self, teacher: Any, num_steps: int | Array) -> TrainState:
        """The student starts as the teacher, with fresh optimizer moments.

        Args:
          teacher: parameters of the round before. num_steps: the student's.
        """
        frozen = {"teacher": teacher, "num_steps": jnp.asarray(num_steps, jnp.int32)}
        return TrainState.create({self.learner: Learner.create(teacher, self.optimizer)}, frozen)

    def examples(self, state, batch, key):
        time_key, noise_key, dropout_key, guidance_key = jax.random.split(key, 4)
        x, label, condition = batch["image"], batch.get("label"), batch.get("condition")
        num_steps = state.frozen["num_steps"].astype(x.dtype)

        u = uniform_times(time_key, x.shape[0], self.stratified, x.dtype)
        i = 1 + jnp.minimum(jnp.floor(u * num_steps), num_steps - 1)  # uniform on 1 .. N
        logsnr_t, logsnr_m, logsnr_s, last = round_levels(
            self.diffuser.schedule, i, num_steps, length=2 if self.stochastic else 1
        )
        z, _ = diffusion.noised(noise_key, x, logsnr_t)
        guided = {}
        if self.guidance:
            guided = guided_examples(
                guidance_key, len(x), self.guidance, self.discount, self.stratified, x.dtype
            )

        teacher = self.diffuser.denoiser(
            state.frozen["teacher"], label, guided.get("guidance"), condition=condition
        )
        x_target = two_step_target(teacher, z, logsnr_t, logsnr_m, logsnr_s, last)
        examples = {
            "z": z,
            "logsnr": logsnr_t,
            "v": diffusion.v_from_x(z, jax.lax.stop_gradient(x_target), logsnr_t),
            "label": label,
            "condition": condition,
            **guided,
        }
        return examples, dropout_key


def round_levels(
    schedule: Schedule, i: Array, num_steps: int | Array, length: int = 1
) -> tuple[Array, Array, Array, Array]:
    """Where the student's step from t = i / N leads, and its middle.

    Args:
      i: [B], 1 .. N. length: of the step, in units of 1 / N. A step of 2 from i = 1 would leave the
        grid: it is one teacher step to 0, so that m = s.

    Returns:
      logsnr at t, m and s, and whether s = 0 is reached by two teacher steps: [B] each.
    """
    middle, end = jnp.maximum(i - length / 2, 0), jnp.maximum(i - length, 0)
    levels = (schedule(j / num_steps) for j in (i, middle, end))
    return *levels, i == length


def two_step_target(
    teacher: Denoiser, z: Array, logsnr_t: Array, logsnr_m: Array, logsnr_s: Array, last: Array
) -> Array:
    """x that one DDIM step from t must predict to land where two teacher steps land at s.

    Salimans & Ho 2022, algorithm 2, in its convex form x = c x_2 + (1 - c) x_1 with
    c = expm1((logsnr_m - logsnr_s) / 2) / expm1((logsnr_t - logsnr_s) / 2), which keeps the
    digits that (z_s - q z) / (alpha_s - q alpha_t) cancels when the steps are small.

    Args:
      z: [B, ...]. logsnr_t < logsnr_m < logsnr_s: [B].
      last: [B] bool, s is the data end of the grid, reached from m; there a sampler returns x_hat,
        so c = 1. Where m = s there is only one teacher step, and c = 0.

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
class ProgressiveStage(RegressionStage):
    """Config of the stage: one round for each halving from start_steps to end_steps.

    Dropout is for the teacher's training; students are trained without, as in the paper. Students
    of a model with a guidance input keep it, and its range.

    A cascade stays one: a round's student has so many steps at each level. They are all taught in
    each update, as the cascade was.

    Attributes:
      teacher: name of the stage or round to start from. start_steps: of its sampler.
      stochastic, discount: of `Progressive`.
      long_rounds: rounds with at most this many steps take twice `loop.num_updates`, as the
        paper's to two steps and to one do.
    """

    teacher: str
    start_steps: int
    end_steps: int = 1
    stochastic: bool = False
    discount: float = 0.0
    long_rounds: int = 0

    def rounds(self, diffuser, image_shape, earlier):
        parent = find_parent(earlier, self.teacher, guided=True, cascade=True)
        levels = parent.method if isinstance(parent.method, Levels) else None
        if parent.method.diffuser.resolutions and (self.stochastic or not levels):
            raise ValueError(
                f"{parent.name!r} is a cascade: its rounds are not stochastic, and need the split "
                "of a stage that trained it in this run"
            )
        diffuser = parent.method.diffuser.without_dropout()
        guidance = parent.guidance if diffuser.takes_guidance else None
        rounds, name = [], parent.name
        for num_steps in halvings(self.start_steps, self.end_steps):
            factor = 2 if num_steps <= self.long_rounds else 1
            loop = dataclasses.replace(self.loop, num_updates=factor * self.loop.num_updates)
            method = Progressive(
                diffuser,
                **self.settings(loop),
                discount=self.discount,
                guidance=guidance,
                stochastic=self.stochastic,
            )
            steps, solver = num_steps, "stochastic" if self.stochastic else None
            if levels:
                method, steps = levels.of(method, loop.batch_size), (num_steps,) * len(levels.split)
                solver = f"cascade:ddim:{parse_solver(parent.solver).noise}"
            student = Round(
                f"{self.name}/{num_steps}",
                "progressive",
                method,
                functools.partial(_init_student, method, num_steps),
                loop,
                (steps,),
                solver=solver,
                guidance=guidance,
                parent=name,
            )
            rounds.append(student)
            name = student.name
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

"""Progressive distillation (Salimans & Ho 2022, algorithm 2): halve the steps, round by round."""

import dataclasses
import math
import warnings
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion import Denoiser, Schedule, check_weighting
from pdistill.methods.method import Method, Run, annealed_over, check_microbatches
from pdistill.methods.parts.cascade import check_split, check_split_batch, per_resolution
from pdistill.methods.parts.given import check_given, check_guidable
from pdistill.methods.parts.regression import Examples, regress
from pdistill.methods.parts.times import guidance_weights, importance, uniform_times
from pdistill.networks import Conditioning, Network
from pdistill.samplers import ddim_step, parse_solver
from pdistill.training import Learner, Optimizer, frozen

LARGEST_GAIN = 10  # of errors, beyond which there is a warning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(Method):
    """The student does in one DDIM step what its teacher does in two.

    One stage of a config is a run for each halving from `start_steps` to `end_steps`. The student's
    step count and the length of the run are traced, so all runs share one compiled step. Dropout is
    for the teacher's training; students are trained without, as in the paper. A student of a
    network that takes guidance weights keeps the input and its range (Meng et al. 2023, stage two).
    A cascade stays one: a run's student has so many steps at each resolution, and all are taught in
    each update, as the cascade was.

    Attributes:
      start_steps: steps of the teacher's sampler.
      weighting, stratified: as in `Teacher`.
      stochastic: for `samplers.Stochastic`, whose steps are twice as long as the grid's: the
        student does in one step of 2 / N what its teacher does in two of 1 / N (the same).
      guidance: weight w by which the first round's teacher is guided, by a pair of evaluations; its
        student needs one, and the later ones have w in them. 0 for no guidance.
      discount: as in `importance`, for a network that takes guidance weights.
      long_rounds: runs with at most this many steps take twice `loop.num_updates`, as the paper's
        to two steps and to one do.
      split, max_noise: as in `per_resolution`, for a cascade.
    """

    optimizer: Optimizer
    start_steps: int
    end_steps: int = 1
    weighting: str = "v_mse"
    stratified: bool = False
    stochastic: bool = False
    guidance: float = 0.0
    discount: float = 0.0
    long_rounds: int = 0
    split: tuple[int, ...] = ()
    max_noise: float = 0.2
    name: ClassVar[str] = "progressive"

    class State(struct.PyTreeNode):
        student: Learner
        teacher: Network = frozen()
        num_steps: Array = frozen()
        num_updates: Array = frozen()

    def __post_init__(self):
        check_weighting(self.weighting)
        halvings(self.start_steps, self.end_steps)  # raises
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be a weight of at least 0; got {self.guidance}")

    def unfold(self, stage: Run, model: Network) -> list[Run]:
        """A run for each halving, which starts from the one before."""
        runs, given, method = [], dict(stage.given), self
        counts = halvings(self.start_steps, self.end_steps)
        if stage.measured_at:
            raise ValueError(
                f"measured_at: each round is measured at its own count, {counts}; leave it out; "
                f"got {stage.measured_at}"
            )
        for num_steps in counts:
            length = stage.loop.num_updates * (2 if num_steps <= self.long_rounds else 1)
            run = dataclasses.replace(
                stage,
                name=f"{stage.name}/{num_steps}",
                method=method,
                given=given,
                arguments={"num_steps": num_steps, "num_updates": length},
                loop=dataclasses.replace(stage.loop, num_updates=length),
                measured_at=(num_steps,),
            )
            runs.append(run)
            given = given | {"teacher": run.name}
            method = dataclasses.replace(self, guidance=0.0)
        return runs

    def check_batch(self, batch_size: int) -> None:
        sizes = (batch_size,)
        if self.split:
            check_split_batch(self.split, batch_size)
            sizes = tuple(n * batch_size // sum(self.split) for n in self.split)
        check_microbatches(self, sizes)

    def made_for(self, *, num_steps, num_updates=0):
        return (num_steps,)

    def objection(self, run, *, made_for, denoises, sampler):
        counts = made_for and made_for[0]  # of a cascade one for each resolution
        longer = self.stochastic and sampler != "stochastic"  # a step is two of these
        fitting = {(2 if longer else 1) * int(count) for count in np.ravel(counts)}
        if denoises and fitting <= {2 * run.arguments["num_steps"]}:
            return ""
        if not denoises or len(fitting) > 1 or fitting == {1}:
            return super().objection(run, made_for=made_for, denoises=denoises, sampler=sampler)
        return (
            f"progressive learns from it with start_steps={fitting.pop()} only; set that, or name "
            "another stage"
        )

    def over(self, num_updates: int) -> "Progressive":
        """The same method: a state knows its length, so that runs of any share what is compiled."""
        annealed_over(self, num_updates)  # raises
        return self

    def init(
        self, key: Array, *, teacher: Network, num_steps: int, num_updates: int | None = None
    ) -> State:
        """The student starts as the teacher, with fresh moments; nothing is random.

        Its rate is annealed over `num_updates`, or the optimizer's own.
        """
        del key
        check_given(teacher, "teacher", guided=True, cascade=True)
        self._warn_of_eps(teacher)
        check_split(self.split, self.max_noise, teacher)
        if teacher.sampler == "stochastic" and not self.stochastic:
            raise ValueError(
                "teacher is a student of stochastic steps, twice as long; set stochastic"
            )
        teacher, sampler = teacher.without_dropout(), "stochastic" if self.stochastic else ""
        if teacher.resolutions:
            if self.stochastic:
                raise ValueError("teacher is a cascade, whose rounds cannot be stochastic")
            sampler = f"cascade:ddim:{parse_solver(teacher.sampler).noise}"
        guidance = teacher.guidance if teacher.takes_guidance else None
        student = teacher.unguided().replace(sampler=sampler, guidance=guidance)
        if num_updates is None:
            num_updates = self.optimizer.num_updates
        counts = (jnp.asarray(n, jnp.int32) for n in (num_steps, num_updates))
        if self.guidance:
            check_guidable(teacher, "teacher")
            if teacher.takes_guidance:
                raise ValueError("the teacher takes weights as an input; leave guidance at 0")
        else:
            teacher = student
        return self.State(Learner.of(student, self.optimizer), teacher, *counts)

    def _warn_of_eps(self, teacher: Network) -> None:
        """Warns of a teacher whose errors in eps the first step of its students multiplies."""
        if teacher.head not in ("eps", "eps_variance"):
            return
        length = 2 if self.stochastic else 1
        counts = halvings(self.start_steps, self.end_steps)
        gains = {n: first_step_gain(teacher.schedule, n, length) for n in counts}
        if gains[self.end_steps] > LARGEST_GAIN:
            good = [n for n in counts if gains[n] <= LARGEST_GAIN]
            warnings.warn(
                "progressive: the teacher predicts eps, whose errors count "
                f"{gains[self.end_steps]:,.0f} times in the first of {self.end_steps} steps: "
                "expect no good student there; take a teacher that predicts v, x or both"
                + (f", or end_steps={good[-1]}" if good else ""),
                stacklevel=3,
            )

    def step(self, state: State, batch, key):
        examples = [
            self.examples(teacher, state.num_steps, rows, below, own_key)
            for teacher, rows, below, own_key in per_resolution(
                state.teacher, batch, key, self.split, self.max_noise
            )
        ]
        student, metrics = regress(
            state.student, examples, self.weighting, num_updates=state.num_updates
        )
        return state.replace(student=student), metrics

    def examples(self, teacher: Network, num_steps: Array, batch, below, key: Array) -> Examples:
        """Examples for the student, from the images of one resolution."""
        time_key, noise_key, _, weight_key = jax.random.split(key, 4)
        x, schedule = batch["image"], teacher.schedule
        told, weight = Conditioning.of(batch, image=below), None
        if teacher.takes_guidance and teacher.guidance:
            w = guidance_weights(weight_key, len(x), teacher.guidance, self.stratified, x.dtype)
            told, weight = told.replace(guidance=w), importance(w, self.discount)
        w = jnp.full(len(x), self.guidance, x.dtype)
        taught = told.replace(guidance=w) if self.guidance else told

        num_steps = num_steps.astype(x.dtype)
        u = uniform_times(time_key, len(x), self.stratified, x.dtype)
        i = 1 + jnp.minimum(jnp.floor(u * num_steps), num_steps - 1)  # uniform on 1 .. N
        length = 2 if self.stochastic else 1
        logsnr_t, logsnr_m, logsnr_s, last = round_levels(schedule, i, num_steps, length)
        z, _ = diffusion.noised(noise_key, x, logsnr_t)
        x_target = two_step_target(teacher.denoiser(taught), z, logsnr_t, logsnr_m, logsnr_s, last)
        v = diffusion.v_from_x(z, stop_gradient(x_target), logsnr_t)
        return Examples(z, logsnr_t, v, told, weight)

    def product(self, state: State) -> Network:
        return state.student.averaged


def round_levels(
    schedule: Schedule, i: Array, num_steps: int | Array, length: int = 1
) -> tuple[Array, Array, Array, Array]:
    """Levels of the student's step from t = i / N, and of its middle.

    Args:
      i: [B], 1 .. N. length: length of the step, in units of 1 / N. A step of 2 from i = 1 would
        leave the
        grid: it is one teacher step to 0, so that m = s.

    Returns:
      logsnr at t, m and s, and whether s = 0 is reached by two teacher steps: [B] each.
    """
    middle, end = jnp.maximum(i - length / 2, 0), jnp.maximum(i - length, 0)
    levels = (schedule(j / num_steps) for j in (i, middle, end))
    return *levels, i == length


def first_step_gain(schedule: Schedule, num_steps: int, length: int = 1) -> float:
    """Factor by which an error of eps counts in z after the first of `num_steps` DDIM steps.

    It is alpha_s sigma_t / alpha_t - sigma_s, as z_s = alpha_s (z - sigma_t eps) / alpha_t +
    sigma_s eps; for one step nearly 1 / alpha of the largest noise.

    Args:
      length: the length of a step, in units of 1 / num_steps.
    """
    with jax.ensure_compile_time_eval():
        times = jnp.array([1.0, max(1 - length / num_steps, 0.0)])
        (alpha_t, alpha_s), (sigma_t, sigma_s) = diffusion.alpha_sigma(schedule(times))
        return float(alpha_s * sigma_t / alpha_t - sigma_s)


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
        so c = 1. With m = s there is only one teacher step, and c = 0.

    Returns:
      [B, ...].
    """
    chex.assert_shape([logsnr_t, logsnr_m, logsnr_s, last], z.shape[:1])
    level = lambda logsnr: diffusion.expand(logsnr, z)  # noqa: E731
    x_1 = teacher(z, logsnr_t)
    z_m = ddim_step(z, x_1, level(logsnr_t), level(logsnr_m))
    x_2 = teacher(z_m, logsnr_m)
    c = jnp.expm1((logsnr_m - logsnr_s) / 2) / jnp.expm1((logsnr_t - logsnr_s) / 2)
    c = level(jnp.where(last, 1.0, c))
    return c * x_2 + (1 - c) * x_1


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

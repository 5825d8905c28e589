"""Consistency trajectory models (Kim et al. 2023): jump from any time to any earlier time.

One network is a score model, a one-step generator and all between. Its estimate of a long jump is
compared with one from a point further down the teacher's trajectory, after both have gone on to
the data; it is also trained to denoise and, if there is an adversary, to deceive.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import KarrasSchedule, Schedule
from pdistill.methods.adversarial import Judge
from pdistill.methods.adversary import AdversarialStage, Adversary
from pdistill.methods.balance import balanced_update
from pdistill.methods.distances import Distance
from pdistill.methods.stage import Round, find_parent, settings_of
from pdistill.networks import Diffuser
from pdistill.samplers import heun_step
from pdistill.training import Learner, Optimizer, TrainState, transfer

# Of the adaptive weights, from the released code.
LIMITS = {"denoising": (0.0, 1e4), "adversarial": (0.01, 10.0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtmSettings:
    """What jumps are compared, and what else is learnt.

    Attributes:
      layer: path of the parameters whose gradients' norms weigh the losses.
      levels: of the grid. solver_steps: the most that the teacher takes at once.
      to_data: s is always the data's end; with solver_steps=1, averaged_target and denoising=0 this
        is consistency distillation (Song et al. 2023).
      averaged_target: the target's first jump is the average's, as in the paper, instead of the
        student's own without gradient, as in the released code.
      denoising, adversarial: factors on the weights of these losses; 0 leaves the first one out.
    """

    layer: str
    levels: int = 18
    solver_steps: int = 17
    to_data: bool = False
    averaged_target: bool = False
    denoising: float = 1.0
    adversarial: float = 1.0

    def __post_init__(self):
        if not 1 <= self.solver_steps < self.levels:
            raise ValueError(
                f"solver_steps must be at least 1 and less than levels; got {self.solver_steps} "
                f"and {self.levels}"
            )
        if not (self.denoising >= 0 and self.adversarial > 0):
            raise ValueError(
                "denoising must not be negative, and adversarial be positive; got "
                f"{self.denoising} and {self.adversarial}"
            )


@dataclasses.dataclass(frozen=True)
class Ctm(CtmSettings):
    """One update of the student and, with an adversary, one of that.

    The student's moving average is what estimate and target go on to the data with, and what is
    exported. The released code updates the two sides of the GAN in turn, each on batches of its
    own; here they share a batch, so that an update is two of theirs.

    Attributes:
      diffuser: the student's. Its network takes a target, its schedule makes the grid.
      teacher: whose Heun steps lead from t to u; None for the average's own jump from t to u, which
        needs no teacher.
      distance: of estimate and target.
    """

    diffuser: Diffuser
    optimizer: Optimizer
    teacher: Diffuser | None
    distance: Distance = Distance("pixels")  # noqa: RUF009
    adversary: Adversary | None = None

    def __post_init__(self):
        super().__post_init__()
        self.optimizer.check_whole_batches("optimizer")

    def init(
        self,
        key: Array,
        start: Any,
        teacher: Any = None,
        *,
        image_shape: tuple[int, ...],
    ) -> TrainState:
        """A student that begins as a teacher, as another student, or from scratch.

        Args:
          start: parameters to begin with; None for scratch.
          teacher: the teacher's, if not `start`.
        """
        student_key, adversary_key = jax.random.split(key)
        params = self.diffuser.init(student_key, image_shape)
        if start is not None:
            params, _ = transfer(params, start)
        learners = {"student": Learner.create(params, self.optimizer)}
        frozen = {"distance": self.distance.init()}
        if self.teacher:
            frozen["teacher"] = start if teacher is None else teacher
        if self.adversary:
            learners["discriminator"], frozen["discriminator"] = self.adversary.init(
                adversary_key, image_shape, frozen.get("teacher", params)
            )
        return TrainState.create(learners, frozen)

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        student_key, estimate_key, *judge_keys = jax.random.split(key, 5)
        x, label = batch["image"], batch.get("label")
        state, metrics = self._update_student(state, x, label, student_key)
        if self.adversary is None:
            return state, metrics
        z, jump = self._draw(x, estimate_key)
        fakes = self._estimate(state.learners["student"], z, jump, label)
        state, more = self.adversary.update(state, fakes, x, label, tuple(judge_keys))
        return state, metrics | more

    def _update_student(self, state, x, label, key):
        draw_key, denoising_key, judge_key = jax.random.split(key, 3)
        student = state.learners["student"]
        z, jump = self._draw(x, draw_key)
        target = self._target(state, z, jump, label)

        def losses(params):
            estimate = self._estimate(student.replace(params=params), z, jump, label)
            apart = self.distance(state.frozen["distance"], estimate, target)
            terms, carried = {"consistency": jnp.mean(apart)}, None
            if self.denoising:
                terms["denoising"] = self._denoise(params, x, label, denoising_key)
            if self.adversary:
                terms["adversarial"], carried = self.adversary.generator_loss(
                    state, estimate, label, judge_key
                )
            return terms, carried

        student, metrics, carried = balanced_update(
            losses, student, self.optimizer, state.step, layer=self.layer, first="consistency",
            limits=LIMITS,
            factors={"denoising": self.denoising, "adversarial": self.adversarial},
        )  # fmt: skip
        learners = state.learners | {"student": student}
        if self.adversary:
            learners["discriminator"] = learners["discriminator"].replace(carried=carried)
        return state.replace(learners=learners), metrics

    def _draw(self, x: Array, key: Array) -> tuple[Array, "Jumps"]:
        """Jumps for a batch, and its images at their beginnings."""
        jump_key, noise_key = jax.random.split(key)
        jump = draw_jumps(
            jump_key, len(x), self.grid(x.dtype), self.solver_steps, to_data=self.to_data
        )
        z, _ = diffusion.noised(noise_key, x, jump.t)
        return z, jump

    def _estimate(self, student: Learner, z: Array, jump: "Jumps", label: Array | None) -> Array:
        """From t to s by the student, and on to the data by its average.

        The average's parameters are constants here, but not its input.
        """
        z_s = self.diffuser.jump(student.params, label)(z, jump.t, jump.s)
        return self.diffuser.jump(student.ema, label)(z_s, jump.s, jump.end)

    def _target(self, state: TrainState, z: Array, jump: "Jumps", label: Array | None) -> Array:
        """From t to u by the teacher, to s by the student, on to the data by its average."""
        student = state.learners["student"]
        average = self.diffuser.jump(student.ema, label)
        params = student.ema if self.averaged_target else student.params
        z_u = self._solve(state, z, jump, label)
        z_s = self.diffuser.jump(params, label)(z_u, jump.u, jump.s)
        return jax.lax.stop_gradient(average(z_s, jump.s, jump.end))

    def _solve(self, state: TrainState, z: Array, jump: "Jumps", label: Array | None) -> Array:
        """z at u."""
        if self.teacher is None:
            own = self.diffuser.jump(state.learners["student"].ema, label)
            return own(z, jump.t, jump.u)
        denoise = self.teacher.denoiser(state.frozen["teacher"], label)
        grid = self.grid(z.dtype)

        def step(n, z):
            here = jump.first + n
            return heun_step(denoise, z, grid[here], grid[here + 1])

        return jax.lax.fori_loop(0, jump.steps, step, z)

    def _denoise(self, params: Any, x: Array, label: Array | None, key: Array) -> Array:
        """The denoising loss, with the weight SNR + 1, at noise levels of its own law."""
        level_key, noise_key = jax.random.split(key)
        logsnr = denoising_levels(level_key, len(x), self.diffuser.schedule, x.dtype)
        z, eps = diffusion.noised(noise_key, x, logsnr)
        v_hat = self.diffuser.v(params, z, logsnr, label)
        v = diffusion.v_target(x, eps, logsnr)
        return jnp.mean(diffusion.denoising_loss(v_hat, v, logsnr))

    def grid(self, dtype=jnp.float32) -> Array:
        """Log-SNRs from noise to data, [levels]."""
        return self.diffuser.schedule(jnp.linspace(1, 0, self.levels, dtype=dtype))

    def export(self, state: TrainState) -> Any:
        """The moving average."""
        return state.learners["student"].ema

    def advice(self, means: dict[str, float]) -> str | None:
        """The adversary's."""
        return self.adversary and self.adversary.advice(means)


class Jumps(NamedTuple):
    """A batch of jumps on a grid: log-SNRs [B] from t by way of u and s to the end.

    Attributes:
      first: index of t in the grid, [B]. steps: from t to u, the same for all: a scalar.
    """

    t: Array
    u: Array
    s: Array
    end: Array
    first: Array
    steps: Array


def draw_jumps(
    key: Array, batch: int, grid: Array, solver_steps: int, *, to_data: bool = False
) -> Jumps:
    """The joint law of (t, u, s) in the released code, on a grid [N] from noise to data.

    The number k of solver steps, one for all, has a probability proportional to k, k <=
    solver_steps; t is uniform among the levels that k steps can start from; s is uniform among u
    and the levels after it or, with `to_data`, the last.
    """
    step_key, first_key, last_key = jax.random.split(key, 3)
    counts = jnp.arange(1, solver_steps + 1)
    steps = 1 + jax.random.categorical(step_key, jnp.log(counts.astype(grid.dtype)))
    last = len(grid) - 1
    first = jax.random.randint(first_key, (batch,), 0, last - steps + 1)
    middle = first + steps
    end = jnp.full((batch,), last)
    s = end if to_data else jax.random.randint(last_key, (batch,), middle, last + 1)
    return Jumps(grid[first], grid[middle], grid[s], grid[end], first, steps)


def denoising_levels(key: Array, batch: int, schedule: Schedule, dtype=jnp.float32) -> Array:
    """Log-SNRs [batch] of the denoising loss in the released code.

    Half are EDM's, log(sigma / alpha) ~ N(-1.2, 1.2^2); half are uniform among the noisier seven
    tenths of the schedule's times.
    """
    edm_key, noisy_key = jax.random.split(key)
    half = batch // 2
    edm = -2 * (-1.2 + 1.2 * jax.random.normal(edm_key, (half,), dtype))
    noisy = schedule(1 - jax.random.uniform(noisy_key, (batch - half,), dtype, 0.0, 0.7))
    return jnp.concatenate([edm, noisy])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtmStage(CtmSettings, AdversarialStage):
    """Config of the stage, one round.

    Attributes:
      teacher: name of the stage or round whose trajectories it learns; "" for its own.
      start: name of the stage or round to start from; "" for the teacher or, without, scratch.
      num_steps: step counts it is measured at; the exported model samples with the first.
      sigma_min, sigma_max, rho: of the grid in training and sampling, `diffusion.KarrasSchedule`.
      distance: a name, as in `Distance`.
      judges: none for no adversary.
      select: metric by which, at each save, the model to export is chosen; "" for the last one.
    """

    teacher: str = ""
    start: str = ""
    num_steps: tuple[int, ...] = (1, 2, 4)
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    distance: str = "pixels"
    judges: tuple[Judge, ...] = ()
    discriminator_optimizer: Optimizer | None = None
    loss: str = "hinge"
    r1: float = 0.0
    select: str = ""

    def rounds(self, diffuser, image_shape, earlier):
        schedule = KarrasSchedule(self.sigma_min, self.sigma_max, self.rho)
        teacher = None
        if self.teacher:
            teacher = find_parent(earlier, self.teacher)
            diffuser = teacher.method.diffuser.without_dropout()
            _check_range(schedule, diffuser.schedule)
        start = find_parent(earlier, self.start) if self.start else teacher
        student = diffuser.with_target(schedule)
        shapes = student.param_shapes(image_shape)
        if start:
            _, moved = transfer(shapes, start.method.diffuser.param_shapes(image_shape))
            if moved.unused:
                raise ValueError(f"{start.name!r} has {moved.unused[0]}, which the student lacks")
        if self.layer not in traverse_util.flatten_dict(shapes, sep="/"):
            raise ValueError(f"layer: no parameters have the path {self.layer!r}")
        if self.judges and self.discriminator_optimizer is None:
            raise ValueError("judges need a discriminator_optimizer")
        method = Ctm(
            student,
            self.optimizer_for(self.loop),
            teacher and diffuser,
            Distance(self.distance),
            self.adversary(diffuser if teacher else student) if self.judges else None,
            **settings_of(self, CtmSettings),
        )
        init = functools.partial(method.init, image_shape=image_shape)
        # Of a stage that starts elsewhere than at its teacher, both are needed.
        other = teacher if start is not teacher else None
        given = (start, other) if other else (start,)
        parents = [p and p.method.diffuser.param_shapes(image_shape) for p in given]
        if self.judges:
            self.check_judges(init, *parents)
        return [
            Round(
                self.name,
                "ctm",
                method,
                init,
                self.loop,
                self.num_steps,
                solver="gamma",
                parent=start and start.name,
                teacher=other and other.name,
                select=self.select,
            )
        ]


def _check_range(grid: Schedule, teacher: Schedule) -> None:
    """Raises ValueError if the grid has noise levels that the teacher's schedule has not."""
    low, high = (float(teacher(jnp.asarray(t))) for t in (1.0, 0.0))
    small = 1e-3  # ends that are the same may round differently
    if float(grid(jnp.asarray(1.0))) < low - small or float(grid(jnp.asarray(0.0))) > high + small:
        raise ValueError(
            f"the teacher knows sigma / alpha from {math.exp(-high / 2):.3g} to "
            f"{math.exp(-low / 2):.3g}; set sigma_min and sigma_max within"
        )

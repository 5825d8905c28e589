"""Consistency trajectory models (Kim et al. 2023): jump from any time to any earlier time.

One network is a score model, a one-step generator and all between. Its estimate of a long jump is
compared with one from a point further down the teacher's trajectory, after both have gone on to
the data; it is also trained to denoise and, if there is an adversary, to deceive.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion import KarrasSchedule, Schedule, check_data_std
from pdistill.methods.method import Method
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.balance import OUTPUT, balanced_update, find_layer
from pdistill.methods.parts.distance import Distance, check_distance_name
from pdistill.methods.parts.given import check_given
from pdistill.methods.parts.times import within
from pdistill.networks import Conditioning, Network
from pdistill.samplers import heun_step
from pdistill.training import Learner, Optimizer, frozen

# Of the adaptive weights, from the released code.
LIMITS = {"denoising": (0.0, 1e4), "adversarial": (0.01, 10.0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ctm(Method):
    """One update of the student and, with an adversary, one of the critic.

    The student's moving average is what estimate and target go on to the data with, and what is
    exported. The released code updates the two sides of the GAN in turn, each on batches of its
    own; here they share a batch, so that an update is two of theirs.

    The student learns the trajectories of the "teacher" or, without one, its own: then the average
    jumps from t to u. It starts from "start", else from the teacher, else from scratch.

    Attributes:
      layer: path of the parameters whose gradients' norms weigh the losses, as in `find_layer`.
      schedule: the student's; it makes the grid in training and in sampling. The default, EDM's,
        leaves out noise levels that the teacher's schedule has not.
      grid_points: size of the grid. solver_steps: the most of its steps that the teacher takes at
        once.
      to_data: s is always the data's end; with solver_steps=1, averaged_target and denoising=0 this
        is consistency distillation (Song et al. 2023).
      averaged_target: the target's first jump is the average's, as in the paper, instead of the
        student's own without gradient, as in the released code.
      denoising, adversarial: factors on the weights of these losses; 0 leaves the first one out.
      data_std: deviation of the data that the denoising loss is weighted for, as in
        `diffusion.v_weight`; the released code has 0.5.
      target_decay: decay of another average, with which estimate and target go on to the data; 0
        for the exported one. The released code has 0.9999 beside 0.999 for one of its models.
      distance: name of the `Distance` of estimate and target.
      adversary: None for none.
    """

    optimizer: Optimizer
    layer: str = OUTPUT
    schedule: KarrasSchedule = KarrasSchedule()  # noqa: RUF009
    grid_points: int = 18
    solver_steps: int = 17
    to_data: bool = False
    averaged_target: bool = False
    denoising: float = 1.0
    adversarial: float = 1.0
    data_std: float = 1.0
    target_decay: float = 0.0
    distance: str = "pixels"
    adversary: Adversary | None = None
    name: ClassVar[str] = "ctm"

    class State(struct.PyTreeNode):
        student: Learner
        critic: Learner | None
        target: Network | None  # the average of `target_decay`
        teacher: Network | None = frozen()
        distance: Distance = frozen()
        eyes: dict[str, Any] | None = frozen()

        @property
        def average(self) -> Network:
            """The average with which estimate and target go on to the data."""
            return self.target or self.student.averaged

    def __post_init__(self):
        check_distance_name(self.distance)
        check_data_std(self.data_std)
        if not 1 <= self.solver_steps < self.grid_points:
            raise ValueError(
                "solver_steps must be at least 1 and less than grid_points; got "
                f"{self.solver_steps} and {self.grid_points}"
            )
        if not 0 <= self.target_decay < 1:
            raise ValueError(f"target_decay must be in [0, 1); got {self.target_decay}")
        if not (self.denoising >= 0 and self.adversarial > 0):
            raise ValueError(
                "denoising must not be negative, and adversarial be positive; got "
                f"{self.denoising} and {self.adversarial}"
            )

    @property
    def measured_at(self):
        return (1, 2, 4)

    @property
    def denoises(self):
        return self.denoising > 0

    def parts(self, step: int) -> tuple[str, ...]:
        return ("student", *(self.adversary.parts(step) if self.adversary else ()))

    def init(
        self,
        key: Array,
        *,
        model: Network,
        teacher: Network | None = None,
        start: Network | None = None,
    ) -> State:
        for role, network in (("teacher", teacher), ("start", start)):
            if network:
                check_given(network, role)
        schedule = self.schedule
        if teacher:
            teacher = teacher.without_dropout()
            schedule = within("schedule", schedule, teacher.schedule)
        student_key, critic_key = jax.random.split(key)
        student = (teacher or model).with_target(schedule)
        sampler = "gamma:1" if self.to_data else "gamma"  # by the jumps it learns
        student = student.replace(sampler=sampler, guidance=None).init(student_key)
        if first := start or teacher:
            student, moved = student.taking(first)
            if moved.unused:
                raise ValueError(f"the student lacks {moved.unused[0]}, which its start has")
        find_layer(self.layer, student)
        critic = eyes = None
        if self.adversary:
            if not teacher:
                self.adversary.check_without_teacher()
            critic, eyes = self.adversary.init(critic_key, student.image_shape, teacher or student)
        learner = Learner.of(student, self.optimizer, whole_batches=True)
        target = jax.tree.map(jnp.copy, student) if self.target_decay else None
        return self.State(learner, critic, target, teacher, Distance.load(self.distance), eyes)

    def step(self, state: State, batch, key, parts=("student", "discriminator", "r1")):
        student_key, estimate_key, *critic_keys = jax.random.split(key, 5)
        draw_key, denoising_key, judge_key = jax.random.split(student_key, 3)
        x, told, average = batch["image"], Conditioning.of(batch), state.average
        z, jump = self.draw(average, x, draw_key)
        target = self.target(state, z, jump, told)

        def losses(student):
            estimate = self.estimate(student, average, z, jump, told)
            terms, carried = {"consistency": jnp.mean(state.distance(estimate, target))}, None
            if self.denoising:
                terms["denoising"] = self.denoise(student, x, told, denoising_key)
            if self.adversary:
                terms["adversarial"], carried = self.adversary.deceive(
                    state.critic, state.eyes, estimate, told.label, judge_key
                )
            return terms, carried

        student, metrics, carried = balanced_update(
            losses,
            state.student,
            layer=self.layer,
            first="consistency",
            limits=LIMITS,
            factors={"denoising": self.denoising, "adversarial": self.adversarial},
        )
        state = state.replace(student=student)
        if state.target:
            moved = optax.incremental_update(student.network, state.target, 1 - self.target_decay)
            state = state.replace(target=moved)
        if self.adversary is None:
            return state, metrics
        z, jump = self.draw(average, x, estimate_key)
        fakes = self.estimate(student.network, state.average, z, jump, told)
        critic, more = self.adversary.update(
            state.critic.replace(carried=carried),
            state.eyes, fakes, x, told.label, tuple(critic_keys), parts,
        )  # fmt: skip
        return state.replace(critic=critic), metrics | more

    def draw(self, student: Network, x: Array, key: Array) -> tuple[Array, "Jumps"]:
        """Images of a batch at the beginnings of random jumps, and the jumps."""
        jump_key, noise_key = jax.random.split(key)
        grid = self.grid(student.schedule, x.dtype)
        jump = draw_jumps(jump_key, len(x), grid, self.solver_steps, to_data=self.to_data)
        z, _ = diffusion.noised(noise_key, x, jump.t)
        return z, jump

    def estimate(self, student: Network, average: Network, z, jump: "Jumps", told) -> Array:
        """Images: from t to s by the student, and on to the data by its average.

        The average's parameters are constants here, but not its input.
        """
        z_s = student.jump(z, jump.t, jump.s, told)
        return self.go_on(average, z_s, jump, told)

    def target(self, state: State, z: Array, jump: "Jumps", told: Conditioning) -> Array:
        """Images: from t to u by the teacher, to s by the student, to the data by its average."""
        average = state.average
        first = average if self.averaged_target else state.student.network
        z_u = self.solve(state, z, jump, told)
        z_s = first.jump(z_u, jump.u, jump.s, told)
        return stop_gradient(self.go_on(average, z_s, jump, told))

    def go_on(self, average: Network, z_s: Array, jump: "Jumps", told: Conditioning) -> Array:
        """Images: from s to the data by the average; with `to_data` s is there already."""
        return z_s if self.to_data else average.jump(z_s, jump.s, jump.end, told)

    def solve(self, state: State, z: Array, jump: "Jumps", told: Conditioning) -> Array:
        """z at u: by the teacher's Heun steps or, without a teacher, the average's jump."""
        average = state.average
        if state.teacher is None:
            return average.jump(z, jump.t, jump.u, told)
        denoise, grid = state.teacher.denoiser(told), self.grid(average.schedule, z.dtype)

        def step(n, z):
            here = jump.first + n
            return heun_step(denoise, z, grid[here], grid[here + 1])

        return jax.lax.fori_loop(0, jump.steps, step, z)

    def denoise(self, student: Network, x: Array, told: Conditioning, key: Array) -> Array:
        """The denoising loss, with the weight SNR + 1 / data_std^2, at levels of its own law."""
        level_key, noise_key = jax.random.split(key)
        logsnr = denoising_levels(level_key, len(x), student.schedule, x.dtype)
        z, eps = diffusion.noised(noise_key, x, logsnr)
        v = diffusion.v_target(x, eps, logsnr)
        v_hat = student.v(z, logsnr, told)
        losses = diffusion.denoising_loss(v_hat, v, logsnr, data_std=self.data_std)
        return jnp.mean(losses)

    def grid(self, schedule: Schedule, dtype=jnp.float32) -> Array:
        """Log-SNRs from noise to data, [grid_points]."""
        return schedule(jnp.linspace(1, 0, self.grid_points, dtype=dtype))

    def product(self, state: State) -> Network:
        return state.student.averaged

    def advice(self, means: dict[str, float]) -> str | None:
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

"""Flow maps: one network that jumps from any noise level to any lower one, by what such jumps obey.

Consistency models, MeanFlow, shortcut models and Lagrangian maps are one family: they choose which
identity the map is trained by, which jumps, whose velocity, and a weight. `PRESETS` has the papers'
choices; docs/methods/flow_map.md tells which is which.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion import logsnr_of_angle
from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given, check_guidable
from pdistill.methods.parts.identities import eulerian, lagrangian, semigroup
from pdistill.methods.parts.jumps import Cut, JumpLaw
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer, frozen, value_and_grad

IDENTITIES = ("eulerian", "lagrangian", "semigroup")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMap(Method):
    """The network's jumps obey an identity of the probability flow's.

    It starts from "start", else from the teacher, else from scratch. With a teacher the flow is the
    teacher's (distillation), without one the data's.

    Attributes:
      identity: "eulerian", "lagrangian" or "semigroup", as in `parts.identities`.
      own_velocity: the velocity along a jump is the network's own, F(z, t, t), as in improved
        MeanFlow's tangent; without a teacher the Lagrangian identity needs it, since no pair of
        data and noise is known where a jump ends.
      jumps: the law of the levels t and s. between: for "semigroup", the law of u.
      power, floor: weight of an example, (|residual|^2 + floor)^-power without gradient, with the
        sum over its values, as in the papers.
      normalised: if positive, the Eulerian residual g becomes g / (|g| + normalised) (sCM's tangent
        normalisation).
      warmup: updates over which the Eulerian identity's second term comes in (sCM's tangent
        warm-up).
      guidance: weight w of the teacher's velocity, 0 for none.
    """

    optimizer: Optimizer
    identity: str = "eulerian"
    own_velocity: bool = False
    jumps: JumpLaw = JumpLaw()  # noqa: RUF009
    between: Cut = Cut()  # noqa: RUF009
    power: float = 0.0
    floor: float = 1e-3
    normalised: float = 0.0
    warmup: int = 0
    guidance: float = 0.0
    name: ClassVar[str] = "flow_map"

    class State(struct.PyTreeNode):
        student: Learner
        teacher: Network | None = frozen()

    def __post_init__(self):
        if self.identity not in IDENTITIES:
            raise ValueError(
                f"identity must be one of {', '.join(IDENTITIES)}; got {self.identity!r}"
            )
        if self.identity != "eulerian" and (self.normalised or self.warmup):
            raise ValueError("normalised and warmup are of the Eulerian identity; leave them out")
        own = self.identity == "lagrangian" and self.own_velocity
        if not self.jumps.instantaneous and (
            own or (self.identity == "semigroup" and self.between.at == "half")
        ):
            raise ValueError(
                "the flow of any field satisfies this identity, so that nothing would be learnt: "
                "let jumps.instantaneous be above 0, where the velocity is"
            )
        if self.power < 0 or self.floor <= 0 or self.normalised < 0 or self.warmup < 0:
            raise ValueError(
                "power, normalised and warmup must not be negative, and floor be positive; got "
                f"{self.power}, {self.normalised}, {self.warmup} and {self.floor}"
            )

    @property
    def measured_at(self):
        return (1, 2, 4)

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
        if self.guidance:
            if not teacher:
                raise ValueError("guidance is the teacher's: give a teacher, or leave it out")
            check_guidable(teacher, "teacher")
        if self.identity == "lagrangian" and not (teacher or self.own_velocity):
            raise ValueError(
                "the Lagrangian identity needs a velocity where jumps end: give a teacher or set "
                "own_velocity"
            )
        first = start or teacher
        student = (first or model).with_target((first or model).schedule)
        student = student.replace(sampler="gamma", guidance=None).init(key)
        if first:
            student, _ = student.taking(first)
        teacher = teacher and teacher.without_dropout()
        return self.State(Learner.of(student, self.optimizer), teacher)

    def step(self, state: State, batch, key):
        example_key, dropout_key = jax.random.split(key)

        def loss(student, rows, key):
            prediction, target = self.sides(student, state, rows, key)
            squares = jnp.square(prediction - target)
            square = jnp.sum(squares, axis=tuple(range(1, squares.ndim)))
            weight = stop_gradient(square + self.floor) ** -self.power
            return jnp.mean(weight * square), {"residual": jnp.mean(squares)}

        rows = self.examples(state, batch, example_key)
        (value, more), grads = value_and_grad(loss, state.student, rows, dropout_key, has_aux=True)
        student, norms = state.student.update(grads)
        return state.replace(student=student), {"loss": value, **more, **norms}

    def examples(self, state: State, batch, key: Array) -> "Rows":
        """Jumps of a batch, with the velocity where each begins: the teacher's or the pair's."""
        jump_key, noise_key = jax.random.split(key)
        x, told = batch["image"], Conditioning(label=batch.get("label"))
        t, s = self.jumps.draw(jump_key, len(x), state.student.network.schedule, x.dtype)
        z, eps = diffusion.noised(noise_key, x, t)
        if state.teacher:
            v = stop_gradient(self.teach(state.teacher, z, t, told))
        else:
            v = diffusion.v_target(x, eps, t)
        return Rows(z, v, t, s, told)

    def sides(
        self, student: Network, state: State, rows: "Rows", key: Array | None = None
    ) -> tuple[Array, Array]:
        """The identity's prediction and target [B, ...]; `key` is that of dropout."""
        told, count = rows.told, state.student.count

        def F(z, t, s):  # of angles
            told_s = told.replace(target=logsnr_of_angle(s))
            return student.v(z, logsnr_of_angle(t), told_s, dropout_key=key)

        def velocity(z, s):
            if state.teacher and not self.own_velocity:
                return self.teach(state.teacher, z, logsnr_of_angle(s), told)
            return F(z, s, s)

        z, v, t, s = rows.z, rows.v, diffusion.angle(rows.t), diffusion.angle(rows.s)
        if self.identity == "eulerian":
            along = stop_gradient(F(z, t, t)) if self.own_velocity else v
            warm = jnp.minimum(count / self.warmup, 1.0) if self.warmup else 1.0
            f, target = eulerian(F, z, t, s, v, along, warm)
            return f, stop_gradient(f - self.normalise(f - target))
        if self.identity == "lagrangian":
            return lagrangian(F, z, t, s, v, velocity)
        progress = count / max(self.optimizer.num_updates, 1)
        way, short = self.between.way(rows.t, rows.s, progress), self.between.at != "half"
        return semigroup(F, z, t, s, way, v, v if short else F(z, t, t - way), short)

    def normalise(self, residual: Array) -> Array:
        """The residual [B, ...] of each example over its norm plus `normalised`."""
        if not self.normalised:
            return residual
        axes = tuple(range(1, residual.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(residual), axis=axes, keepdims=True))
        return residual / (norm + self.normalised)

    def teach(self, teacher: Network, z: Array, t: Array, told: Conditioning) -> Array:
        """The teacher's velocity at log-SNRs t [B]."""
        if self.guidance:
            told = told.replace(guidance=jnp.full(len(z), self.guidance, z.dtype))
        return teacher.v(z, t, told)

    def product(self, state: State) -> Network:
        return state.student.averaged


class Rows(NamedTuple):
    """Jumps of a batch: z [B, ...] at log-SNRs t [B], to s [B], and the velocity v at z."""

    z: Array
    v: Array
    t: Array
    s: Array
    told: Conditioning


# The papers' choices, as values of a stage. Levels are those of log(sigma / alpha); what a paper
# has besides (a network's form, a schedule, learnt weights) is not in them.
PRESETS: dict[str, dict[str, Any]] = {
    "mean_flow": {  # Geng et al. 2025; code of ImageNet 256
        "jumps": {"level": (-0.4, 1.0), "instantaneous": 0.75},
        "power": 1.0,
        "floor": 1e-2,
    },
    "improved_mean_flow": {  # Geng et al. 2025b
        "own_velocity": True,
        "jumps": {"level": (-0.4, 1.0), "instantaneous": 0.5},
        "power": 1.0,
        "floor": 1e-2,
    },
    "sct": {  # Lu & Song 2024; the same with a teacher is sCD
        "jumps": {"level": (-1.0, 1.4), "to": "data"},
        "normalised": 0.1,
        "warmup": 10_000,
    },
    "ect": {  # Geng et al. 2024
        "identity": "semigroup",
        "jumps": {"level": (-1.1, 2.0), "to": "data"},
        "between": {"at": "ect", "q": 2.0, "stages": 8},
        "power": 0.5,
        "floor": 1e-8,
    },
    "shortcut": {  # Frans et al. 2024
        "identity": "semigroup",
        "jumps": {"to": "dyadic", "most": 64, "instantaneous": 0.75},
    },
    "soflow": {  # Luo et al. 2025, on CIFAR-10
        "identity": "semigroup",
        "jumps": {"level": (-0.9, 1.6), "end": (-4.0, 1.6)},
        "between": {"at": "shrinking", "least": 3e-4},
        "power": 0.75,
        "floor": 1e-3,
    },
    "tvm": {  # Zhou et al. 2025; with a teacher, leave own_velocity out
        "identity": "lagrangian",
        "own_velocity": True,
        "jumps": {"to": "gap", "end": (-0.8, 1.0), "instantaneous": 0.5},
    },
}
PRESETS["scd"] = PRESETS["sct"]

"""Flow maps: one network that jumps from any noise level to any lower one, by what such jumps obey.

Consistency models, MeanFlow, shortcut models and Lagrangian maps are one family: they choose which
identity the map is trained by, which jumps, whose velocity, and a weight. `PRESETS` has the papers'
choices; docs/methods/flow_map.md tells which is which.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import FrozenDict
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion.guidance import acting
from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given, check_guidable
from pdistill.methods.parts.identities import eulerian, lagrangian, output_of, semigroup
from pdistill.methods.parts.jumps import Cut, JumpLaw, Rows
from pdistill.methods.parts.own_guidance import draw_guidance, draw_levels, guided
from pdistill.methods.parts.presets import PRESETS
from pdistill.methods.parts.times import check_interval, check_weights, check_within
from pdistill.methods.parts.weights import learnt_weights, normalise, weight_learner
from pdistill.methods.teacher import guidable, hide
from pdistill.networks import Conditioning, Network
from pdistill.runtime.mesh import devices_of_batch
from pdistill.training import Learner, Optimizer, frozen, value_and_grad

__all__ = ["PRESETS", "FlowMap"]

IDENTITIES = ("eulerian", "lagrangian", "semigroup")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMap(Method):
    """The network's jumps obey an identity of the probability flow's.

    It starts from "start", else from the teacher, else from scratch. With a teacher the flow is the
    teacher's (distillation), and the student has no dropout but what `network` says; without one
    it is the data's, and dropout is that of what it starts as. With `below`, a map to the data, it
    learns only levels from `jumps.least` on, and `below` is the map under them (truncated
    consistency models, Lee et al. 2024).

    Attributes:
      identity: "eulerian", "lagrangian" or "semigroup", as in `parts.identities`.
      own_velocity: the velocity along a jump is the network's own, as in improved MeanFlow's
        tangent: F(z, t, t), or that of a second head, which learns v beside. Without a teacher the
        Lagrangian identity needs it, since no pair of data and noise is known where a jump ends.
      jumps: the law of the levels t and s. between: for "semigroup", the law of u.
      power, floor: weight of an example, (|residual|^2 + floor)^-power without gradient, with the
        sum over its values, as in the papers.
      learnt_weight: the weight exp(-w) of the mean square is learnt, w a function of t and s, by
        the loss exp(-w) mean square + w (Karras et al. 2024, sCM).
      normalised: if positive, the Eulerian residual g becomes g / (|g| + normalised) (sCM's tangent
        normalisation).
      warmup: updates over which the Eulerian identity's second term comes in (sCM's tangent
        warm-up).
      difference: dF/dt of the Eulerian identity by a central difference of this step in the angle,
        for embeddings of time that are too fast to be differentiated; 0 for the derivative.
      guidance: () for none; (w,) for one weight; (low, high) for weights that the network takes as
        an input, drawn with log(1 + w) uniform (improved MeanFlow). The teacher is guided, or
        without one the pair's velocity, by `guided`.
      omega: share of the pair's velocity in a guided one, as in `guided`.
      guided_levels: lowest and highest log(sigma / alpha) of the flow where guidance acts; () for
        all. A network that takes `guidance_levels` is told levels that are drawn, from a time below
        one half to one above it, and all for jumps of no length (improved MeanFlow).
      label_dropout: fraction of examples whose label is hidden; they are guided only by a
        teacher's guide.
      network: arguments in which the student differs from what it starts as.
      target_decay: decay of an average of the student, without dropout, whose jumps and velocities
        targets are made of, in the place of the student's own; 0 for those.
    """

    optimizer: Optimizer
    identity: str = "eulerian"
    own_velocity: bool = False
    jumps: JumpLaw = JumpLaw()  # noqa: RUF009
    between: Cut = Cut()  # noqa: RUF009
    power: float = 0.0
    floor: float = 1e-3
    learnt_weight: bool = False
    normalised: float = 0.0
    warmup: int = 0
    difference: float = 0.0
    guidance: tuple[float, ...] = ()
    omega: float = 1.0
    guided_levels: tuple[float, ...] = ()
    label_dropout: float = 0.0
    network: Mapping[str, Any] = FrozenDict()
    target_decay: float = 0.0
    name: ClassVar[str] = "flow_map"

    class State(struct.PyTreeNode):
        student: Learner
        weight: Learner | None
        teacher: Network | None = frozen()
        below: Network | None = frozen()

        @property
        def target(self) -> Network | None:
            """The average of `target_decay`, which the learner carries: states without go on."""
            return self.student.carried.get("target")

    def __post_init__(self):
        if self.identity not in IDENTITIES:
            raise ValueError(
                f"identity must be one of {', '.join(IDENTITIES)}; got {self.identity!r}"
            )
        if self.identity != "eulerian" and (self.normalised or self.warmup):
            raise ValueError("normalised and warmup are of the Eulerian identity; leave them out")
        if self.identity != "eulerian" and self.difference:
            raise ValueError("difference is of the Eulerian identity; leave it out")
        if self.identity == "semigroup" and self.own_velocity:
            raise ValueError("the semigroup identity has no velocity; leave own_velocity out")
        own = self.identity == "lagrangian" and self.own_velocity
        if not self.jumps.instantaneous and (
            own or (self.identity == "semigroup" and self.between.at == "half")
        ):
            raise ValueError(
                "the flow of any field satisfies this identity, so that nothing would be learnt: "
                "let jumps.instantaneous be above 0, where the velocity is"
            )
        averages = own or self.identity == "semigroup"
        if not (self.target_decay == 0 or (averages and 0 < self.target_decay < 1)):
            raise ValueError(
                "target_decay is in [0, 1), for the semigroup identity, or for the Lagrangian with "
                f"own_velocity; got {self.target_decay}"
            )
        least = {n: getattr(self, n) for n in ("power", "normalised", "warmup", "difference")}
        if min(least.values()) < 0 or self.floor <= 0:
            raise ValueError(
                f"{', '.join(least)} must not be negative, and floor be positive; got "
                f"{', '.join(map(str, least.values()))} and {self.floor}"
            )
        if len(self.guidance) == 2:
            check_weights("guidance", self.guidance)
        elif self.guidance and not (len(self.guidance) == 1 and 0 < self.guidance[0] < math.inf):
            raise ValueError(
                "guidance must be (), (w,) with w finite and above 0, or (low, high); got "
                f"{self.guidance}"
            )
        if self.guided_levels:
            check_interval("guided_levels", self.guided_levels, -math.inf, math.inf)
            if not self.guidance:
                raise ValueError("guided_levels are where guidance acts; give guidance too")
        if not (0 < self.omega <= 1 and 0 <= self.label_dropout < 1):
            raise ValueError(
                "omega must be in (0, 1] and label_dropout in [0, 1); got "
                f"{self.omega} and {self.label_dropout}"
            )

    @property
    def measured_at(self):
        return (1, 2) if self.jumps.least else (1, 2, 4)

    def most_steps(self, network: Network) -> int:
        return self.jumps.most_steps(network.schedule)

    @property
    def denoises(self):
        law = self.jumps
        # At jumps as short as one likes an identity says F = v; a law of its own for the ends makes
        # hardly any of them at most levels.
        return law.instantaneous > 0 or law.to == "below" or (law.to == "ordered" and not law.end)

    def check_batch(self, batch_size: int) -> None:
        super().check_batch(batch_size)
        self.jumps.check_batch(batch_size)

    def init(
        self,
        key: Array,
        *,
        model: Network,
        teacher: Network | None = None,
        start: Network | None = None,
        below: Network | None = None,
    ) -> State:
        if bool(below) != bool(self.jumps.least) or (below and self.identity != "semigroup"):
            raise ValueError(
                "a map below and jumps.least go together, for the semigroup identity: give both or "
                "none"
            )
        if below and len(self.guidance) == 2:
            raise ValueError("a map below is told no weights: give guidance as one weight, its own")
        for role, network in (("teacher", teacher), ("start", start), ("below", below)):
            if network:
                check_given(network, role)
        if self.identity == "lagrangian" and not (teacher or self.own_velocity):
            raise ValueError(
                "the Lagrangian identity needs a velocity where jumps end: give a teacher or set "
                "own_velocity"
            )
        teacher = teacher and teacher.without_dropout()
        first = start or teacher
        student = (first or model).with_target((first or model).schedule)
        if teacher:
            check_within("start", student.schedule, teacher.schedule)
            student = student.without_dropout()
        student = student.with_module(self.network)
        self.jumps.check_within(student.schedule)
        self.check_guidance(student, teacher)
        if student.has_velocity and not self.own_velocity:
            raise ValueError("a network with a second head is for own_velocity; set it, or no head")
        weights = None
        if len(self.guidance) == 2:
            student, weights = student.with_module({"guidance": True}), self.guidance
        network_key, weight_key = jax.random.split(key)
        sampler = "gamma:1" if self.jumps.to == "data" else "gamma"  # by the jumps it learns
        student = student.replace(sampler=sampler, guidance=weights).init(network_key)
        if first:
            student, _ = student.taking(first)
        weight = weight_learner(weight_key, self.optimizer) if self.learnt_weight else None
        below = below and below.without_dropout()
        carried = {"target": jax.tree.map(jnp.copy, student)} if self.target_decay else {}
        learner = Learner.of(student, self.optimizer, carried=carried)
        return self.State(learner, weight, teacher, below)

    def check_guidance(self, student: Network, teacher: Network | None) -> None:
        """Raises ValueError if nobody knows the guided velocity."""
        guidable(student, self.label_dropout)  # raises
        if self.guidance and teacher:
            check_guidable(teacher, "teacher")
        elif self.guidance and not self.label_dropout:
            raise ValueError(
                "guidance without a teacher is towards the labels of the network's own velocity: "
                "set label_dropout, such as 0.1, so that it also learns the one without"
            )
        somewhere = self.guided_levels or student.takes_guidance_levels
        if self.own_velocity and len(self.guidance) == 2 and self.guidance[0] and somewhere:
            raise ValueError(
                "outside of the levels where guidance acts the network's own velocity is that of "
                f"weight 0: let guidance begin there, so that it is learnt; got {self.guidance}"
            )
        if student.takes_guidance_levels and (self.guided_levels or len(self.guidance) < 2):
            raise ValueError(
                "a network that takes guidance_levels is for weights as an input, and draws them: "
                "give guidance as (low, high) and leave guided_levels out"
            )

    def step(self, state: State, batch, key):
        example_key, dropout_key = jax.random.split(key)

        def loss(student, rows, key):
            own = None
            if student.has_velocity:
                own = student.velocity(rows.z, rows.t, rows.told_at(rows.t), dropout_key=key)
            prediction, target = self.sides(student, state, rows, own, key)
            square = jnp.square(prediction - target).reshape(len(rows.t), -1)
            weight, slopes = self.weigh(state, rows, square)
            value = jnp.mean(weight * jnp.sum(square, axis=1))
            if student.has_velocity:  # the second head learns v
                apart = jnp.sum(jnp.square(own - rows.v).reshape(len(rows.t), -1), axis=1)
                value += jnp.mean(apart * self.adaptive(apart))
            return value, ({"residual": jnp.mean(square)}, slopes)

        rows = self.examples(state, batch, example_key)
        (value, (more, slopes)), grads = value_and_grad(
            loss, state.student, rows, dropout_key, has_aux=True
        )
        student, norms = state.student.update(grads)
        if state.target:
            moved = optax.incremental_update(student.network, state.target, 1 - self.target_decay)
            student = student.replace(carried={"target": moved})
        weight = state.weight and state.weight.update(slopes)[0]
        state = state.replace(student=student, weight=weight)
        return state, {"loss": value, **more, **norms}

    def examples(self, state: State, batch, key: Array) -> Rows:
        """Jumps of a batch, with the velocity where each begins: the teacher's or the pair's."""
        jump_key, noise_key, label_key, weight_key, level_key = jax.random.split(key, 5)
        x, network = batch["image"], state.student.network
        t, s = self.jumps.draw(jump_key, len(x), network.schedule, x.dtype)
        z, eps = diffusion.noised(noise_key, x, t)
        told = hide(label_key, Conditioning.of(batch), self.label_dropout, network)
        w = draw_guidance(weight_key, self.guidance, told, state.teacher or network, x.dtype)
        levels = draw_levels(level_key, t, s, network, self.guided_levels)
        told = told.replace(
            guidance=w if network.takes_guidance else None,
            guidance_levels=levels if network.takes_guidance_levels else None,
        )
        rows = Rows(z, diffusion.v_target(x, eps, t), t, s, told, w, levels)
        if state.teacher:
            return rows._replace(v=stop_gradient(self.teach(state.teacher, z, t, rows)))
        if w is None:
            return rows
        w = acting(w, levels, t)
        own = state.target or network
        return rows._replace(v=guided(own, z, t, rows.told_at(t), w, rows.v, self.omega))

    def sides(
        self, student: Network, state: State, rows: Rows, own=None, key: Array | None = None
    ) -> tuple[Array, Array]:
        """The prediction and its target [B, ...]: an identity's, or v for jumps of no length.

        The first rows, which have none, are left out of the identity, whose target costs more
        evaluations.

        Args:
          own: the second head's velocity at z. key: for dropout.
        """
        still, both = self.count_still(len(rows.t)), []
        if still:
            same = jax.tree.map(lambda a: a[:still], rows)
            its_key = None if key is None else jax.random.fold_in(key, 1)
            t, s = diffusion.angle(same.t), diffusion.angle(same.s)
            f = output_of(student, same.told, its_key)(same.z, t, s)
            both.append((f, stop_gradient(f - normalise(f - same.v, self.normalised))))
        if still < len(rows.t):
            moving = jax.tree.map(lambda a: a[still:], (rows, own))
            both.append(self.identity_sides(student, state, *moving, key))
        return tuple(jnp.concatenate(side) for side in zip(*both, strict=True))

    def count_still(self, num: int) -> int:
        """Number of jumps of no length that each microbatch, of `num` rows, begins with.

        A multiple of the devices' number; of the others the identity takes care.
        """
        parts = self.optimizer.microbatches
        still = self.jumps.count_same(parts * num) // parts
        return still - still % devices_of_batch()

    def identity_sides(
        self, student: Network, state: State, rows: Rows, own: Array | None, key: Array | None
    ) -> tuple[Array, Array]:
        """The identity's prediction and target, as of `sides`, of jumps of any length."""
        told, count = rows.told, state.student.count.astype(rows.t.dtype)
        average, its_key = (state.target, None) if state.target else (student, key)
        F, later = output_of(student, told, key), output_of(average, told, its_key)

        def velocity(z, s):
            s = diffusion.logsnr_of_angle(s)
            if state.teacher and not self.own_velocity:
                return self.teach(state.teacher, z, s, rows)
            return average.velocity(z, s, rows.told_at(s), dropout_key=its_key)

        def second(z, u, s):  # of two jumps, the map below where that begins there
            if not state.below:
                return later(z, u, s)
            border = math.atan(math.exp(self.jumps.least[0]))
            known = output_of(state.below, told)(z, u, s)
            return jnp.where(diffusion.expand(u, z) < border, known, later(z, u, s))

        z, v, t, s = rows.z, rows.v, diffusion.angle(rows.t), diffusion.angle(rows.s)
        if self.identity == "eulerian":
            if self.own_velocity and own is None:
                own = student.velocity(z, rows.t, rows.told_at(rows.t), dropout_key=key)
            along = stop_gradient(own) if self.own_velocity else v
            warm = jnp.minimum(count / self.warmup, 1.0) if self.warmup else 1.0
            f, target = eulerian(F, z, t, s, v, along, warm, self.difference)
            return f, stop_gradient(f - normalise(f - target, self.normalised))
        if self.identity == "lagrangian":
            return lagrangian(F, z, t, s, v, velocity)
        progress = count / max(self.optimizer.num_updates, 1)
        way, short = self.between.way(rows.t, rows.s, progress), self.between.at != "half"
        first = v if short else later(z, t, t - way)
        return semigroup(F, z, t, s, way, v, first, short, second)

    def weigh(self, state: State, rows: Rows, square: Array) -> tuple[Array, Any]:
        """Weights [B] of examples with squares [B, D], and the gradient of what makes them.

        The weights have no gradient.
        """
        square = stop_gradient(square)
        weight, of_law = self.adaptive(jnp.sum(square, axis=1)), self.jumps.weights(rows.t)
        if state.weight is None:
            return weight * of_law, None
        expected = weight * jnp.mean(square, axis=1)  # without the law's, or it is learnt away
        learnt, slopes = learnt_weights(state.weight.network, rows.t, rows.s, expected)
        return weight * learnt / square.shape[1] * of_law, slopes

    def adaptive(self, square: Array) -> Array:
        """Weights of examples with square residuals [B], without gradient."""
        return (stop_gradient(square) + self.floor) ** -self.power

    def teach(self, teacher: Network, z: Array, t: Array, rows: Rows) -> Array:
        """The teacher's velocity at log-SNRs t [B], guided as the rows say."""
        w = None if rows.w is None else acting(rows.w, rows.levels, t)
        told = Conditioning(label=rows.told.label, text=rows.told.text, guidance=w)
        return teacher.v(z, t, told)

    def product(self, state: State) -> Network:
        return state.student.averaged

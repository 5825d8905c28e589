"""A method in one file, as a user would add it: MeanFlow and sCM on the circle, in small."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.methods import Method
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer, frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(Method):
    """F with z_s = cos(d) z - sin(d) F keeps z_s along the flow: F = v - tan(d) (z + dF/dphi).

    Attributes:
      instantaneous: fraction of the examples with s = t.
      to_data: s is always the data's end (sCM).
      power: of the adaptive weight.
    """

    optimizer: Optimizer
    instantaneous: float = 0.5
    to_data: bool = False
    power: float = 1.0
    name: ClassVar[str] = "mean_flow"

    class State(struct.PyTreeNode):
        student: Learner
        teacher: Network = frozen()

    @property
    def measured_at(self):
        return (1, 2)

    def init(self, key, *, teacher: Network) -> State:
        student = teacher.with_target(teacher.schedule).replace(sampler="gamma")
        student, _ = student.init(key).taking(teacher)
        return self.State(Learner.of(student, self.optimizer), teacher)

    def step(self, state: State, batch, key):
        time_key, noise_key, same_key = jax.random.split(key, 3)
        x, told, num = batch["image"], Conditioning(label=batch.get("label")), len(batch["image"])
        schedule = state.teacher.schedule
        s, t = schedule(jnp.sort(jax.random.uniform(time_key, (2, num), x.dtype), axis=0))
        s = jnp.full_like(t, schedule(jnp.zeros((), x.dtype))) if self.to_data else s
        s = jnp.where(jax.random.bernoulli(same_key, self.instantaneous, (num,)), t, s)
        z, _ = diffusion.noised(noise_key, x, t)
        v = stop_gradient(state.teacher.v(z, t, told))
        phi = diffusion.angle(t)
        d = diffusion.expand(phi - diffusion.angle(s), z)

        def loss(student):
            def F(z, phi):
                return student.v(z, diffusion.logsnr_of_angle(phi), told.replace(target=s))

            f, dF = jax.jvp(F, (z, phi), (v, jnp.ones_like(phi)))
            g = stop_gradient(jnp.cos(d) * (f - v) + jnp.sin(d) * (z + dF))
            axes = tuple(range(1, g.ndim))
            square = jnp.mean(g**2, axis=axes)
            pulled = jnp.mean((f - stop_gradient(f) + g) ** 2, axis=axes)
            return jnp.mean(pulled / (square + 1e-2) ** self.power), jnp.mean(square)

        slope = jax.value_and_grad(loss, has_aux=True)
        (value, residual), grads = slope(state.student.network)
        student, norms = state.student.update(grads)
        return state.replace(student=student), {"loss": value, "residual": residual, **norms}

    def product(self, state: State) -> Network:
        return state.student.averaged

"""GAN fine-tuning (D2O and D2O-F, Zheng & Yang 2025): a diffusion network becomes a generator.

No distillation loss: a few evaluations of the network make an image, which a discriminator
compares with real ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import struct
from flax.core import FrozenDict
from jax import Array

from pdistill.methods.method import Method
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.generate import begin_generator, generate_few
from pdistill.methods.parts.given import check_given
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer, frozen, preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gan(Method):
    """In turn, an update of the generator, one of the discriminator, and at times one for R1.

    The "teacher" is what judges of that name see with; the generator starts from "start", or from
    the teacher.

    Attributes:
      adversary: the discriminator and its losses.
      num_steps: evaluations of the generator's network.
      fixed: the generator's parameters that stay as they are, a key of `training.PRESETS`.
      scratch: it starts from fresh parameters, with `network`'s changes of the module's arguments.
    """

    optimizer: Optimizer
    adversary: Adversary
    num_steps: int = 1
    fixed: str = "none"
    scratch: bool = False
    network: Mapping[str, Any] = FrozenDict()
    name: ClassVar[str] = "gan"

    class State(struct.PyTreeNode):
        generator: Learner
        critic: Learner
        eyes: dict[str, Any] = frozen()

    def __post_init__(self):
        preset(self.fixed)  # raises
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {self.num_steps}")

    @property
    def measured_at(self):
        return (self.num_steps,)

    def made_for(self):
        return (self.num_steps,)

    def objection(self, run, *, made_for, denoises, sampler):
        if denoises or self.scratch or "start" in run.given:  # a generator may go on
            return ""
        return (
            "the generator would begin as its denoiser; give a start, set scratch, or name another "
            "stage"
        )

    def parts(self, step: int) -> tuple[str, ...]:
        return ("generator", *self.adversary.parts(step))

    def init(self, key: Array, *, teacher: Network, start: Network | None = None) -> State:
        check_given(teacher, "teacher", one_step=True)
        start_key, critic_key = jax.random.split(key)
        generator = begin_generator(
            start_key, teacher, start, scratch=self.scratch, changes=self.network
        ).replace(sampler="one_step" if self.num_steps == 1 else "")
        critic, eyes = self.adversary.init(
            critic_key, generator.image_shape, teacher.without_dropout()
        )
        learner = Learner.of(
            generator, self.optimizer, whole_batches=True, fixed=preset(self.fixed)
        )
        return self.State(learner, critic, eyes)

    def step(self, state: State, batch, key, parts=("generator", "discriminator", "r1")):
        generator_key, discriminator_key, r1_key = jax.random.split(key, 3)
        x, told = batch["image"], Conditioning.of(batch)

        noise_key, judge_key = jax.random.split(generator_key)
        shape = (len(x), *state.generator.network.shape)
        z = jax.random.normal(noise_key, shape, x.dtype)

        def deceiving(generator):
            images = self.generate(generator, z, told)
            return self.adversary.deceive(state.critic, state.eyes, images, told.label, judge_key)

        slope = jax.value_and_grad(deceiving, has_aux=True)
        (value, carried), grads = slope(state.generator.network)
        generator, norms = state.generator.update(grads)
        critic = state.critic.replace(carried=carried)

        noise_key, fake_key, real_key = jax.random.split(discriminator_key, 3)
        z = jax.random.normal(noise_key, shape, x.dtype)
        fakes = self.generate(generator.network, z, told)
        keys = fake_key, real_key, r1_key
        critic, more = self.adversary.update(critic, state.eyes, fakes, x, told.label, keys, parts)
        return state.replace(generator=generator, critic=critic), {"loss": value, **norms, **more}

    def generate(self, generator: Network, z: Array, told: Conditioning) -> Array:
        """Images of noise z [B, h, w, C]."""
        return generate_few(generator.denoiser(told), z, generator.schedule, self.num_steps)

    def product(self, state: State) -> Network:
        return state.generator.averaged

    def advice(self, means: dict[str, float]) -> str | None:
        return self.adversary.advice(means)

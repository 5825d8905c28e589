"""GAN fine-tuning (D2O and D2O-F, Zheng & Yang 2025): a diffusion network becomes a generator.

No distillation loss: a few evaluations of the network make an image, which a discriminator
compares with real ones.
"""

import dataclasses
import functools

import jax
from jax import Array

from pdistill.methods.adversarial_generator import (
    AdversarialGenerator,
    AdversarialGeneratorStage,
)
from pdistill.training import TrainState


@dataclasses.dataclass(frozen=True)
class Gan(AdversarialGenerator):
    """In turn, an update of the generator, one of the discriminator, and at times one for R1.

    Attributes:
      num_steps: evaluations of the generator's network.
    """

    num_steps: int = 1

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        generator_key, discriminator_key, r1_key = jax.random.split(key, 3)
        x, label = batch["image"], batch.get("label")
        state, metrics = self._update_generator(state, x, label, generator_key)

        noise_key, fake_key, real_key = jax.random.split(discriminator_key, 3)
        fakes = self._generate(state.learners["student"].params, state, x, label, noise_key)
        keys = fake_key, real_key, r1_key
        state, more = self.adversary.update(state, fakes, x, label, keys)
        return state, metrics | more

    def _update_generator(self, state, x, label, key):
        noise_key, judge_key = jax.random.split(key)
        student = state.learners["student"]

        def loss(params):
            images = self._generate(params, state, x, label, noise_key)
            return self.adversary.generator_loss(state, images, label, judge_key)

        (value, carried), grads = jax.value_and_grad(loss, has_aux=True)(student.params)
        student, norms = student.update(grads, self.optimizer, state.step)
        return self.advance(state, student, carried), {"loss": value, **norms}

    def _generate(self, params, state, x, label, key):
        """As many images as there are in x."""
        noise = jax.random.normal(key, x.shape, x.dtype)
        return self.generate(params, state, noise, label, self.num_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanStage(AdversarialGeneratorStage):
    """Config of the stage, one round.

    Attributes:
      num_steps: of `Gan`.
    """

    num_steps: int = 1

    def rounds(self, diffuser, image_shape, earlier):
        diffuser, start, teacher = self.origins(earlier, one_step=True)
        method = Gan(**self.common(diffuser, teacher), num_steps=self.num_steps)
        return [
            self.round_of(
                method,
                functools.partial(method.init, image_shape=image_shape),
                image_shape,
                start,
                teacher,
                method_name="gan",
                num_steps=(self.num_steps,),
                solver="one_step" if self.num_steps == 1 else None,
            )
        ]

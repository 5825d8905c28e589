"""GAN fine-tuning (D2O and D2O-F, Zheng & Yang 2025): a diffusion network becomes a generator.

No distillation loss: a few evaluations of the network make an image, which a discriminator
compares with real ones.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import Array

from pdistill.methods.adversary import AdversarialStage, Adversary
from pdistill.methods.generator import generate_few
from pdistill.methods.stage import GeneratorStage
from pdistill.networks import Diffuser
from pdistill.training import PRESETS, Learner, Optimizer, TrainState, count, merge, partition


@dataclasses.dataclass(frozen=True)
class Gan:
    """In turn, an update of the generator, one of the discriminator, and at times one for R1.

    Attributes:
      diffuser: the generator's network. num_steps: its evaluations.
      frozen: patterns of the parameters that stay as they are, as in `training.partition`.
    """

    diffuser: Diffuser
    optimizer: Optimizer
    adversary: Adversary
    num_steps: int = 1
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        self.optimizer.check_whole_batches("optimizer")

    def init(
        self, key: Array, generator: Any, teacher: Any, image_shape: tuple[int, ...]
    ) -> TrainState:
        """From the generator's first parameters, and those that the judges "teacher" see with."""
        start, held = partition(generator, self.frozen)
        discriminator, frozen = self.adversary.init(key, image_shape, teacher)
        learners = {
            "student": Learner.create(start, self.optimizer),
            "discriminator": discriminator,
        }
        return TrainState.create(learners, {"student": held, "discriminator": frozen})

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
        discriminator = state.learners["discriminator"].replace(carried=carried)
        state = state.replace(learners={"student": student, "discriminator": discriminator})
        return state, {"loss": value, **norms}

    def _generate(self, params, state, x, label, key):
        params = merge(params, state.frozen["student"])
        noise = jax.random.normal(key, x.shape, x.dtype)
        denoise = self.diffuser.denoiser(params, label)
        return generate_few(denoise, noise, self.diffuser.schedule, self.num_steps)

    def export(self, state: TrainState) -> Any:
        """The generator's parameters: the moving average of those that learn, and the others."""
        return merge(state.learners["student"].ema, state.frozen["student"])

    def advice(self, means: dict[str, float]) -> str | None:
        """The adversary's."""
        return self.adversary.advice(means)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanStage(AdversarialStage, GeneratorStage):
    """Config of the stage, one round.

    Attributes:
      frozen: what of the generator does not learn, a key of `training.PRESETS`.
      num_steps: of `Gan`.
    """

    frozen: str = "none"
    num_steps: int = 1

    def rounds(self, diffuser, image_shape, earlier):
        diffuser, start, teacher = self.origins(earlier, one_step=True)
        judging = teacher.method.diffuser.without_dropout()
        if self.frozen not in PRESETS:
            raise ValueError(f"frozen must be one of {', '.join(PRESETS)}; got {self.frozen!r}")
        learning, frozen = partition(diffuser.param_shapes(image_shape), PRESETS[self.frozen])
        method = Gan(
            diffuser,
            self.optimizer_for(self.loop),
            self.adversary(judging),
            self.num_steps,
            PRESETS[self.frozen],
        )
        init = functools.partial(method.init, image_shape=image_shape)
        self.check_judges(init, *(d.param_shapes(image_shape) for d in (diffuser, judging)))
        return [
            self.round_of(
                method,
                init,
                image_shape,
                start,
                teacher,
                method_name="gan",
                num_steps=(self.num_steps,),
                solver="one_step" if self.num_steps == 1 else None,
                trainable_fraction=count(learning) / (count(learning) + count(frozen)),
            )
        ]

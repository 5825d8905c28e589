"""GAN fine-tuning (D2O and D2O-F, Zheng & Yang 2025): a diffusion network becomes a generator.

No distillation loss: a few evaluations of the network make an image, which a discriminator
compares with real ones.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.files import one_line
from pdistill.methods.adversarial import LOSSES, Discriminator, Judge, over_judges, r1_penalty
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
      loss: a key of LOSSES.
      r1: gamma; R1 is gamma / 2 times its penalty on real images without augmentation. 0 for none.
      r1_interval: updates between two R1 updates, each of which counts as many times.
    """

    diffuser: Diffuser
    optimizer: Optimizer
    discriminator: Discriminator
    discriminator_optimizer: Optimizer
    loss: str = "non_saturating"
    r1: float = 1e-4
    r1_interval: int = 16
    num_steps: int = 1
    frozen: tuple[str, ...] = ()

    TOLD_APART: ClassVar[float] = 0.02  # a discriminator's loss below which nothing is learnt

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if not self.r1 >= 0 or self.r1_interval < 1:
            raise ValueError(
                f"r1 must not be negative and r1_interval at least 1; got {self.r1} and "
                f"{self.r1_interval}"
            )
        if self.optimizer.microbatches > 1 or self.discriminator_optimizer.microbatches > 1:
            raise ValueError("a GAN takes whole batches; leave microbatches at 1")
        if self.discriminator_optimizer.ema_decay or self.discriminator_optimizer.ema_ramp:
            raise ValueError("discriminator_optimizer has no moving average; leave ema_* at 0")

    def init(
        self, key: Array, generator: Any, teacher: Any, image_shape: tuple[int, ...]
    ) -> TrainState:
        """From the generator's first parameters, and those that the judges "teacher" see with."""
        start, held = partition(generator, self.frozen)
        judges, frozen, carried = self.discriminator.init(key, image_shape, teacher)
        optimizer = self._lazy_optimizer
        learners = {
            "student": Learner.create(start, self.optimizer),
            "discriminator": Learner.create(judges, optimizer, averaged=False, carried=carried),
        }
        return TrainState.create(learners, {"student": held, "discriminator": frozen})

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        generator_key, discriminator_key, r1_key = jax.random.split(key, 3)
        x, label = batch["image"], batch.get("label")
        state, metrics = self._update_generator(state, x, label, generator_key)
        state, more = self._update_discriminator(state, x, label, discriminator_key)
        if self.r1:
            due = (state.step % self.r1_interval == 0) & (state.step > 0)
            update = functools.partial(self._update_r1, x=x, label=label, key=r1_key)
            zeros = {"r1": jnp.zeros((), x.dtype), "r1_grad_norm": jnp.zeros((), x.dtype)}
            state, r1 = jax.lax.cond(due, update, lambda state: (state, zeros), state)
            more |= r1
        return state, metrics | more

    def _update_generator(self, state, x, label, key):
        noise_key, judge_key = jax.random.split(key)
        student = state.learners["student"]

        def loss(params):
            images = self._generate(params, state, x, label, noise_key)
            logits, carried = self._judge(state, images, label, judge_key)
            return over_judges(LOSSES[self.loss].generator, logits), carried

        (value, carried), grads = jax.value_and_grad(loss, has_aux=True)(student.params)
        student, norms = student.update(grads, self.optimizer, state.step)
        discriminator = state.learners["discriminator"].replace(carried=carried)
        state = state.replace(learners={"student": student, "discriminator": discriminator})
        return state, {"loss": value, **norms}

    def _update_discriminator(self, state, x, label, key):
        noise_key, fake_key, real_key = jax.random.split(key, 3)
        fakes = self._generate(state.learners["student"].params, state, x, label, noise_key)
        discriminator = state.learners["discriminator"]

        def loss(params):
            learner = discriminator.replace(params=params)
            fake, carried = self._judge(state, fakes, label, fake_key, learner)
            learner = learner.replace(carried=carried)
            real, carried = self._judge(state, x, label, real_key, learner)
            kind = LOSSES[self.loss]
            value = over_judges(kind.fake, fake) + over_judges(kind.real, real)
            return value, (carried, {"real_logit": real, "fake_logit": fake})

        (value, (carried, logits)), grads = jax.value_and_grad(loss, has_aux=True)(
            discriminator.params
        )
        state, norm = self._apply(state, grads, carried)
        means = {
            name: over_judges(lambda a: a, judged) / len(judged) for name, judged in logits.items()
        }
        return state, {"discriminator_loss": value, "discriminator_grad_norm": norm, **means}

    def _update_r1(self, state, x, label, key):
        discriminator = state.learners["discriminator"]

        def loss(params):
            learner = discriminator.replace(params=params)
            logits = lambda x: self._judge(state, x, label, key, learner, augmented=False)[0]  # noqa: E731
            penalty = r1_penalty(logits, x)
            return self.r1_interval * self.r1 / 2 * penalty, penalty

        grads, penalty = jax.grad(loss, has_aux=True)(discriminator.params)
        state, norm = self._apply(state, grads, discriminator.carried)
        # Times the interval, so that the log's mean is that of the penalty.
        return state, {"r1": self.r1_interval * penalty, "r1_grad_norm": norm}

    def _apply(self, state: TrainState, grads: Any, carried: Any) -> tuple[TrainState, Array]:
        """Updates the discriminator; returns its gradient's norm too."""
        discriminator, norms = state.learners["discriminator"].update(
            grads, self._lazy_optimizer, state.step
        )
        learners = state.learners | {"discriminator": discriminator.replace(carried=carried)}
        return state.replace(learners=learners), norms["grad_norm"]

    def _generate(self, params, state, x, label, key):
        params = merge(params, state.frozen["student"])
        noise = jax.random.normal(key, x.shape, x.dtype)
        denoise = self.diffuser.denoiser(params, label)
        return generate_few(denoise, noise, self.diffuser.schedule, self.num_steps)

    def _judge(self, state, x, label, key, learner=None, augmented=True):
        learner = learner or state.learners["discriminator"]
        frozen = state.frozen["discriminator"]
        return self.discriminator(learner.params, frozen, learner.carried, x, label, key, augmented)

    @property
    def _lazy_optimizer(self) -> Optimizer:
        """The discriminator's, corrected for the R1 updates between the others (Karras 2020).

        They count in its schedule too, which must not end before the generator's.
        """
        optimizer = self.discriminator_optimizer
        if not self.r1:
            return optimizer
        ratio = self.r1_interval / (self.r1_interval + 1)
        return dataclasses.replace(
            optimizer,
            learning_rate=ratio * optimizer.learning_rate,
            b1=optimizer.b1**ratio,
            b2=optimizer.b2**ratio,
            warmup=round(optimizer.warmup / ratio),
            num_updates=round(optimizer.num_updates / ratio),
        )

    def export(self, state: TrainState) -> Any:
        """The generator's parameters: the moving average of those that learn, and the others."""
        return merge(state.learners["student"].ema, state.frozen["student"])

    def advice(self, means: dict[str, float]) -> str | None:
        """What is wrong with the means of an interval of updates, and what may help."""
        if means["discriminator_loss"] > self.TOLD_APART:
            return None
        return (
            f"the discriminator tells all images apart (its loss is "
            f"{means['discriminator_loss']:.2g}), so the generator learns nothing: lower "
            "discriminator_optimizer.learning_rate, raise r1, or augment"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanStage(GeneratorStage):
    """Config of the stage, one round.

    Attributes:
      judges, augmentations, strength: of `Discriminator`, "teacher" being the stage's.
      discriminator_optimizer: `optimizer` is the generator's.
      frozen: what of the generator does not learn, a key of `training.PRESETS`.
      num_steps, loss, r1, r1_interval: of `Gan`.
    """

    judges: tuple[Judge, ...]
    discriminator_optimizer: Optimizer
    augmentations: tuple[str, ...] = ()
    strength: float = 1.0
    frozen: str = "none"
    num_steps: int = 1
    loss: str = "non_saturating"
    r1: float = 1e-4
    r1_interval: int = 16

    def rounds(self, diffuser, image_shape, earlier):
        diffuser, start, teacher = self.origins(earlier, one_step=True)
        judging = teacher.method.diffuser.without_dropout()
        if self.frozen not in PRESETS:
            raise ValueError(f"frozen must be one of {', '.join(PRESETS)}; got {self.frozen!r}")
        learning, frozen = partition(diffuser.param_shapes(image_shape), PRESETS[self.frozen])
        method = Gan(
            diffuser,
            self.optimizer_for(self.loop),
            Discriminator(self.judges, judging, self.augmentations, self.strength),
            dataclasses.replace(self.discriminator_optimizer, num_updates=self.loop.num_updates),
            self.loss,
            self.r1,
            self.r1_interval,
            self.num_steps,
            PRESETS[self.frozen],
        )
        init = functools.partial(method.init, image_shape=image_shape)
        shapes = (d.param_shapes(image_shape) for d in (diffuser, judging))
        try:
            jax.eval_shape(init, jax.random.key(0), *shapes)
        except Exception as error:  # whatever Flax and JAX raise for judges that do not fit
            raise ValueError(f"judges: {one_line(error)}") from error
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

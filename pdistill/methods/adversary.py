"""A discriminator under training, for any method whose network makes images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.methods.adversarial import LOSSES, Discriminator, Judge, over_judges, r1_penalty
from pdistill.methods.stage import TrainingStage
from pdistill.networks import Diffuser
from pdistill.runtime.files import one_line
from pdistill.training import Learner, Optimizer, TrainState


@dataclasses.dataclass(frozen=True)
class Adversary:
    """What images cost their generator, and the updates of who says so; "discriminator" in a state.

    Attributes:
      loss: a key of LOSSES.
      r1: gamma; R1 is gamma / 2 times its penalty on real images without augmentation. 0 for none.
      r1_interval: updates between two R1 updates, each of which counts as many times.
    """

    discriminator: Discriminator
    optimizer: Optimizer
    loss: str = "non_saturating"
    r1: float = 1e-4
    r1_interval: int = 16

    TOLD_APART: ClassVar[float] = 0.02  # a discriminator's loss below which nothing is learnt

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if not self.r1 >= 0 or self.r1_interval < 1:
            raise ValueError(
                f"r1 must not be negative and r1_interval at least 1; got {self.r1} and "
                f"{self.r1_interval}"
            )
        self.optimizer.check_whole_batches("discriminator_optimizer", averaged=False)

    def init(
        self, key: Array, image_shape: tuple[int, ...], teacher: Any
    ) -> tuple[Learner, dict[str, Any]]:
        """The learner, and what of the discriminator is frozen; arguments as for its `init`."""
        params, frozen, carried = self.discriminator.init(key, image_shape, teacher)
        return Learner.create(params, self.lazy_optimizer, averaged=False, carried=carried), frozen

    def generator_loss(
        self, state: TrainState, images: Array, label: Array | None, key: Array
    ) -> tuple[Array, Any]:
        """What the images [B, H, W, C] cost: a scalar; and what the discriminator carries on."""
        logits, carried = self._judge(state, images, label, key)
        return over_judges(LOSSES[self.loss].generator, logits), carried

    def update(
        self,
        state: TrainState,
        fakes: Array,
        x: Array,
        label: Array | None,
        keys: tuple[Array, Array, Array],
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of the discriminator and, where one is due, one for R1.

        Args:
          keys: for judging the fakes [B, H, W, C], the real images x [B, H, W, C], and R1.
        """
        *keys, r1_key = keys
        state, metrics = self.update_discriminator(state, fakes, x, label, *keys)
        if self.r1:
            due = (state.step % self.r1_interval == 0) & (state.step > 0)
            update = functools.partial(self.update_r1, x=x, label=label, key=r1_key)
            zeros = {"r1": jnp.zeros((), x.dtype), "r1_grad_norm": jnp.zeros((), x.dtype)}
            state, r1 = jax.lax.cond(due, update, lambda state: (state, zeros), state)
            metrics |= r1
        return state, metrics

    def update_discriminator(self, state, fakes, x, label, fake_key, real_key):
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

    def update_r1(self, state, x, label, key):
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
            grads, self.lazy_optimizer, state.step
        )
        learners = state.learners | {"discriminator": discriminator.replace(carried=carried)}
        return state.replace(learners=learners), norms["grad_norm"]

    def _judge(self, state, x, label, key, learner=None, augmented=True):
        learner = learner or state.learners["discriminator"]
        frozen = state.frozen["discriminator"]
        return self.discriminator(learner.params, frozen, learner.carried, x, label, key, augmented)

    @property
    def lazy_optimizer(self) -> Optimizer:
        """The optimizer, corrected for the R1 updates between the others (Karras et al. 2020).

        They count in its schedule too, which must not end before the generator's.
        """
        optimizer = self.optimizer
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
class AdversarialStage(TrainingStage):
    """Config of a stage with an adversary.

    Attributes:
      judges, augmentations, strength: of `Discriminator`.
      discriminator_optimizer: `optimizer` is the generator's.
      loss, r1, r1_interval: of `Adversary`.
    """

    judges: tuple[Judge, ...]
    discriminator_optimizer: Optimizer
    augmentations: tuple[str, ...] = ()
    strength: float = 1.0
    loss: str = "non_saturating"
    r1: float = 1e-4
    r1_interval: int = 16

    def check_judges(self, init: Callable[..., TrainState], *params: Any) -> None:
        """Raises ValueError for judges that do not fit; `init` takes a key and trees of shapes."""
        try:
            jax.eval_shape(init, jax.random.key(0), *params)
        except Exception as error:  # whatever Flax and JAX raise
            raise ValueError(f"judges: {one_line(error)}") from error

    def adversary(self, diffuser: Diffuser) -> Adversary:
        """The adversary that the fields describe; `diffuser` is of its judges' "teacher"."""
        return Adversary(
            Discriminator(self.judges, diffuser, self.augmentations, self.strength),
            dataclasses.replace(self.discriminator_optimizer, num_updates=self.loop.num_updates),
            self.loss,
            self.r1,
            self.r1_interval,
        )

"""A discriminator under training, for any method whose network makes images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from jax import Array

from pdistill.methods.parts.adversarial import (
    FAKE,
    GENERATOR,
    LOSSES,
    REAL,
    over_judges,
    r1_penalty,
)
from pdistill.methods.parts.discriminator import Discriminator, Judge, check_judges, open_eyes
from pdistill.networks import Network
from pdistill.networks.discriminators import FROZEN
from pdistill.runtime.files import one_line
from pdistill.runtime.kernels import without_kernels
from pdistill.training import Learner, Metrics, Optimizer

Eyes = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversary:
    """Settings of a discriminator and its functions; its learner, the critic, is in the state.

    The functions take the critic and its eyes, the frozen feature networks of `open_eyes`.

    Attributes:
      judges, augmentations, strength: as in `Discriminator`.
      optimizer: the critic's.
      loss: one of LOSSES.
      mean_of_judges: losses are means over judges, as in the code of CTM and PaGoDA, instead of
        sums, as in that of D2O.
      r1: gamma; R1 is gamma / 2 times its penalty on real images without augmentation. 0 for none.
      r1_interval: updates between two R1 updates, each of which counts as many times.
    """

    judges: tuple[Judge, ...]
    optimizer: Optimizer
    augmentations: tuple[str, ...] = ()
    strength: float = 1.0
    loss: str = "non_saturating"
    mean_of_judges: bool = False
    r1: float = 1e-4
    r1_interval: int = 16

    TOLD_APART: ClassVar[float] = 0.02  # a discriminator's loss below which nothing is learnt

    def __post_init__(self):
        check_judges(self.judges, self.augmentations, self.strength)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if not self.r1 >= 0 or self.r1_interval < 1:
            raise ValueError(
                f"r1 must not be negative and r1_interval at least 1; got {self.r1} and "
                f"{self.r1_interval}"
            )

    def check_without_teacher(self) -> None:
        """Raises ValueError if a judge looks through a teacher."""
        if any(judge.features == "teacher" for judge in self.judges):
            raise ValueError("there is no teacher to judge with; give judges other features")

    def parts(self, step: int) -> tuple[str, ...]:
        """Losses of the critic in update number `step`: R1 is due at every `r1_interval`-th."""
        due = self.r1 and step > 0 and step % self.r1_interval == 0
        return ("discriminator", "r1") if due else ("discriminator",)

    def init(
        self, key: Array, image_shape: tuple[int, ...], teacher: Network
    ) -> tuple[Learner, Eyes]:
        """The critic at its start, and its eyes.

        Raises:
          ValueError: judges that do not fit the images or the teacher.
        """
        if any(judge.conditional for judge in self.judges) and not teacher.num_labels:
            raise ValueError("a conditional judge needs a model with labels")
        if teacher.takes_text and any(judge.features == "teacher" for judge in self.judges):
            raise ValueError(
                "a judge that looks through the teacher tells it no prompts; give judges other "
                "features for a model of prompts"
            )
        eyes = open_eyes(self.judges, teacher)
        blank = Discriminator(
            None, self.judges, teacher.num_labels, self.augmentations, self.strength
        )
        try:
            discriminator, carried = blank.init(key, image_shape, eyes)
        except Exception as error:  # whatever Flax and JAX raise
            raise ValueError(f"judges: {one_line(error)}") from error
        critic = Learner.of(
            discriminator,
            self.lazy_optimizer,
            averaged=False,
            whole_batches=True,
            carried=carried,
            fixed=FROZEN if any(judge.mixing for judge in self.judges) else (),
        )
        return critic, eyes

    def cost(self, costs: Mapping[str, Any], logits: Sequence[Array]) -> Array:
        """The loss of all judges' logits, by one of the tables of costs: a scalar."""
        total = over_judges(costs[self.loss], logits)
        return total / len(logits) if self.mean_of_judges else total

    def deceive(
        self, critic: Learner, eyes: Eyes, images: Array, label: Array | None, key: Array
    ) -> tuple[Array, Any]:
        """The generator's loss for its images [B, H, W, C], and what the critic carries on."""
        logits, carried = critic.network(eyes, critic.carried, images, label, key)
        return self.cost(GENERATOR, logits), carried

    def update(
        self,
        critic: Learner,
        eyes: Eyes,
        fakes: Array,
        x: Array,
        label: Array | None,
        keys: tuple[Array, Array, Array],
        parts: tuple[str, ...],
    ) -> tuple[Learner, Metrics]:
        """One update of the critic and, where it is due, one for R1.

        Args:
          fakes, x: generated and real images [B, H, W, C].
          keys: for judging the fakes, the real images, and R1. parts: a result of `parts`.
        """
        *keys, r1_key = keys
        critic, metrics = self.update_discriminator(critic, eyes, fakes, x, label, *keys)
        if "r1" in parts:
            critic, more = self.update_r1(critic, eyes, x, label, r1_key)
            metrics |= more
        return critic, metrics

    def update_discriminator(self, critic, eyes, fakes, x, label, fake_key, real_key):
        """One update that tells real images from fakes."""

        def loss(discriminator):
            fake, carried = discriminator(eyes, critic.carried, fakes, label, fake_key)
            real, carried = discriminator(eyes, carried, x, label, real_key)
            value = self.cost(FAKE, fake) + self.cost(REAL, real)
            return value, (carried, {"real_logit": real, "fake_logit": fake})

        slope = jax.value_and_grad(loss, has_aux=True)
        (value, (carried, logits)), grads = slope(critic.network)
        critic, norms = critic.update(grads)
        means = {
            name: over_judges(lambda a: a, judged) / len(judged) for name, judged in logits.items()
        }
        return critic.replace(carried=carried), {
            "discriminator_loss": value,
            "discriminator_grad_norm": norms["grad_norm"],
            **means,
        }

    def update_r1(self, critic, eyes, x, label, key):
        """One update on the R1 penalty, which counts as many times as there are updates between."""

        def loss(discriminator):
            logits = lambda x: discriminator(  # noqa: E731
                eyes, critic.carried, x, label, key, augmented=False
            )[0]
            penalty = r1_penalty(logits, x)
            return self.r1_interval * self.r1 / 2 * penalty, penalty

        with without_kernels():  # a gradient's gradient
            grads, penalty = jax.grad(loss, has_aux=True)(critic.network)
        critic, norms = critic.update(grads)
        return critic, {"r1": penalty, "r1_grad_norm": norms["grad_norm"]}

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
        """A warning if the discriminator tells all images apart, and what may help."""
        if means["discriminator_loss"] > self.TOLD_APART:
            return None
        return (
            f"the discriminator tells all images apart (its loss is "
            f"{means['discriminator_loss']:.2g}), so the generator learns nothing: lower "
            "adversary.optimizer.learning_rate, raise adversary.r1, or augment"
        )

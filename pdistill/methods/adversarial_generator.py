"""A generator of few evaluations that deceives a discriminator, part of which may be frozen."""

import dataclasses
from typing import Any

from jax import Array

from pdistill.methods.adversary import AdversarialStage, Adversary
from pdistill.methods.generator import generate_few
from pdistill.methods.stage import GeneratorStage, Method, Round
from pdistill.networks import Diffuser
from pdistill.training import PRESETS, Learner, Optimizer, TrainState, count, merge, partition


@dataclasses.dataclass(frozen=True)
class AdversarialGenerator:
    """What methods have in common that update such a generator and its discriminator in turn.

    Attributes:
      diffuser: the generator's network.
      frozen: patterns of the parameters that stay as they are, as in `training.partition`.
    """

    diffuser: Diffuser
    optimizer: Optimizer
    adversary: Adversary
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        self.optimizer.check_whole_batches("optimizer")

    def init(
        self, key: Array, generator: Any, teacher: Any, image_shape: tuple[int, ...], **frozen: Any
    ) -> TrainState:
        """From the generator's first parameters, and those that the judges "teacher" see with.

        Args:
          frozen: more that is frozen.
        """
        learning, held = partition(generator, self.frozen)
        discriminator, of_judges = self.adversary.init(key, image_shape, teacher)
        learners = {
            "student": Learner.create(learning, self.optimizer),
            "discriminator": discriminator,
        }
        return TrainState.create(learners, {"student": held, "discriminator": of_judges} | frozen)

    def generate(
        self, params: Any, state: TrainState, z: Array, label: Array | None, num_steps: int = 1
    ) -> Array:
        """Images [B, H, W, C] of noise z [B, h, w, C] by `params`, those that learn."""
        denoise = self.diffuser.denoiser(merge(params, state.frozen["student"]), label)
        return generate_few(denoise, z, self.diffuser.schedule, num_steps)

    def advance(self, state: TrainState, student: Learner, carried: Any) -> TrainState:
        """After an update of the generator, whose images left the discriminator with `carried`."""
        discriminator = state.learners["discriminator"].replace(carried=carried)
        return state.replace(learners={"student": student, "discriminator": discriminator})

    def export(self, state: TrainState) -> Any:
        """The generator's parameters: the moving average of those that learn, and the others."""
        return merge(state.learners["student"].ema, state.frozen["student"])

    def advice(self, means: dict[str, float]) -> str | None:
        """The adversary's."""
        return self.adversary.advice(means)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialGeneratorStage(AdversarialStage, GeneratorStage):
    """Config of a stage with such a method.

    Attributes:
      frozen: what of the generator does not learn, a key of `training.PRESETS`.
    """

    frozen: str = "none"

    def common(self, diffuser: Diffuser, teacher: Round) -> dict[str, Any]:
        """Settings of `AdversarialGenerator`."""
        if self.frozen not in PRESETS:
            raise ValueError(f"frozen must be one of {', '.join(PRESETS)}; got {self.frozen!r}")
        return {
            "diffuser": diffuser,
            "optimizer": self.optimizer_for(self.loop),
            "adversary": self.adversary(teacher.method.diffuser.without_dropout()),
            "frozen": PRESETS[self.frozen],
        }

    def round_of(self, method: Method, init, noise_shape, start, teacher, **settings):
        """As `GeneratorStage.round_of`, with the fraction that learns.

        Raises:
          ValueError: no parameters are frozen by the rule, or the judges do not fit.
        """
        shapes = method.diffuser.param_shapes(noise_shape)
        learning, _ = partition(shapes, method.frozen)
        r = super().round_of(
            method, init, noise_shape, start, teacher,
            trainable_fraction=count(learning) / count(shapes), **settings,
        )  # fmt: skip
        parents = (start,) if start is teacher else (start, teacher)
        self.check_judges(r.init, *(p.method.diffuser.param_shapes(noise_shape) for p in parents))
        return r

"""The teacher: a diffusion model trained in continuous time (Salimans & Ho 2022, algorithm 1)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import diffusion
from pdistill.methods.regression import Regression, RegressionStage, uniform_times
from pdistill.methods.stage import Method, Round
from pdistill.networks import Diffuser
from pdistill.samplers import Steps
from pdistill.training import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class Teacher(Regression):
    """Denoise real images at random noise levels.

    Attributes:
      label_dropout: fraction of examples whose label is hidden, so that the network also learns
        the unconditional denoiser (classifier-free guidance, Ho & Salimans 2022).
    """

    learner: ClassVar[str] = "model"
    label_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be in [0, 1]; got {self.label_dropout}")
        if self.label_dropout and not self.diffuser.num_labels:
            raise ValueError("label_dropout needs a network with labels; set its num_labels")

    def init(self, key: Array, image_shape: tuple[int, ...]) -> TrainState:
        params = self.diffuser.init(key, image_shape)
        return TrainState.create({self.learner: Learner.create(params, self.optimizer)}, frozen={})

    def examples(self, state, batch, key):
        time_key, noise_key, dropout_key, label_key = jax.random.split(key, 4)
        x, label = batch["image"], batch.get("label")
        if self.label_dropout:
            hidden = jax.random.bernoulli(label_key, self.label_dropout, label.shape)
            label = jnp.where(hidden, self.diffuser.num_labels, label)
        t = uniform_times(time_key, x.shape[0], self.stratified, x.dtype)
        logsnr = self.diffuser.schedule(t)
        z, eps = diffusion.noised(noise_key, x, logsnr)
        examples = {
            "z": z,
            "logsnr": logsnr,
            "v": diffusion.v_target(x, eps, logsnr),
            "label": label,
            "condition": batch.get("condition"),
        }
        return examples, dropout_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromScratchStage(RegressionStage):
    """Config of a stage that trains a diffusion model from scratch, in one round.

    Attributes:
      num_steps: step counts it is measured at; the exported model samples with the first.
      label_dropout: of `Teacher`; with it the model can be guided.
      network: the arguments in which the network differs from the model's.
    """

    num_steps: tuple[Steps, ...]
    label_dropout: float = 0.0
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def teacher_of(self, diffuser: Diffuser) -> Teacher:
        return Teacher(diffuser, **self.settings(self.loop), label_dropout=self.label_dropout)

    def round_of(
        self, method: Method, method_name: str, image_shape: tuple[int, ...], **settings: Any
    ) -> Round:
        """The stage's round; `settings` are more of `Round`."""
        return Round(
            self.name,
            method_name,
            method,
            lambda key, parent: method.init(key, image_shape),
            self.loop,
            self.num_steps,
            guidance=(0.0, math.inf) if self.label_dropout else None,
            **settings,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStage(FromScratchStage):
    """Config of the stage.

    Attributes:
      head: instead of the model's.
    """

    head: str | None = None

    def rounds(self, diffuser, image_shape, earlier):
        diffuser = diffuser.with_network(self.network)
        if self.head:
            diffuser = diffuser.with_head(self.head, image_shape[-1])
        return [self.round_of(self.teacher_of(diffuser), "teacher", image_shape)]

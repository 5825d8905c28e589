"""The teacher: a diffusion model trained in continuous time (Salimans & Ho 2022, algorithm 1)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import struct
from flax.core import FrozenDict
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import check_weighting
from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given
from pdistill.methods.parts.regression import Examples, regress
from pdistill.methods.parts.times import check_law, noise_levels
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(Method):
    """Denoise real images at random noise levels.

    It starts from fresh parameters, or goes on from those of "start", with a fresh optimizer.

    Attributes:
      weighting: weight of the loss, a key of `diffusion.WEIGHTINGS`.
      level: mean and deviation of log(sigma / alpha), normal: a logit-normal time for rectified
        flows, where a schedule's shift a adds log(a) to the mean, and a lognormal sigma for EDM. ()
        for times that are uniform in the schedule's.
      stratified: spread the batch's times evenly, see `times.uniform_times`; the paper does not.
      label_dropout: fraction of examples whose label and prompt are hidden, so that the network
        also learns the unconditional denoiser (classifier-free guidance, Ho & Salimans 2022).
      head: instead of the model's; "" for that.
      network: arguments in which the network differs from the model's.
      direction: also align the velocity's direction, see `diffusion.direction_loss`, as
        LightningDiT does.
    """

    optimizer: Optimizer
    weighting: str = "v_mse"
    level: tuple[float, ...] = ()
    stratified: bool = False
    label_dropout: float = 0.0
    head: str = ""
    network: Mapping[str, Any] = FrozenDict()
    direction: bool = False
    name: ClassVar[str] = "teacher"

    class State(struct.PyTreeNode):
        model: Learner

    def __post_init__(self):
        check_weighting(self.weighting)
        check_law("level", self.level)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be in [0, 1]; got {self.label_dropout}")

    def init(self, key: Array, *, model: Network, start: Network | None = None) -> State:
        if start:
            check_given(start, "start")
            if self.head not in ("", start.head):
                raise ValueError(
                    f"head: start predicts {start.head}, and what it has learnt is not "
                    f"{self.head}; leave head out, or train from scratch"
                )
            model = start.unguided().replace(sampler="")
        model = model.with_module(self.network)
        if self.head:
            model = model.with_head(self.head)
        model = guidable(model, self.label_dropout).init(key)
        if start:
            model, _ = model.taking(start)
        return self.State(Learner.of(model, self.optimizer))

    def step(self, state: State, batch, key):
        time_key, noise_key, dropout_key, label_key = jax.random.split(key, 4)
        x, network = batch["image"], state.model.network
        told = hide(label_key, Conditioning.of(batch), self.label_dropout, network)
        schedule = network.schedule
        logsnr = noise_levels(time_key, len(x), self.level, schedule, self.stratified, x.dtype)
        z, eps = diffusion.noised(noise_key, x, logsnr)
        v = diffusion.v_target(x, eps, logsnr)
        examples = Examples(z, logsnr, v, told)
        model, metrics = regress(state.model, examples, self.weighting, dropout_key, self.direction)
        return state.replace(model=model), metrics

    def product(self, state: State) -> Network:
        return state.model.averaged


def guidable(model: Network, label_dropout: float) -> Network:
    """A model that can be guided by any weight if it is trained with label dropout.

    Raises:
      ValueError: it has no labels or prompts to leave out.
    """
    if not label_dropout:
        return model
    if not (model.num_labels or model.takes_text):
        raise ValueError(
            "label_dropout needs a network with labels or text; set its num_labels, text_pooled or "
            "text_tokens"
        )
    return model.replace(guidance=(0.0, math.inf))


def hide(key: Array, told: Conditioning, fraction: float, network: Network) -> Conditioning:
    """Labels and prompts of B images, of which a random fraction is told neither."""
    if not fraction:
        return told
    hidden = jax.random.bernoulli(key, fraction, (len(told.label),))
    return told.without(network.num_labels, hidden)

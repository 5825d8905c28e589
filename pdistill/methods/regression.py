"""Regression of one network on a v target: what teacher and students share."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import check_weighting, denoising_loss
from pdistill.methods.stage import TrainingStage
from pdistill.networks import Diffuser
from pdistill.training import LoopConfig, Optimizer, TrainState, value_and_grad


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionStage(TrainingStage):
    """Config of a stage whose method is a `Regression`; the attributes are that one's."""

    weighting: str = "v_mse"
    stratified: bool = False

    def settings(self, loop: LoopConfig) -> dict[str, Any]:
        """What every `Regression` takes, for a round of this length."""
        return {
            "optimizer": self.optimizer_for(loop),
            "weighting": self.weighting,
            "stratified": self.stratified,
        }


@dataclasses.dataclass(frozen=True)
class Regression(abc.ABC):
    """A method that regresses one network on v.

    Attributes:
      weighting: of the loss, a key of `diffusion.WEIGHTINGS`.
      stratified: spread the batch's times evenly, see `uniform_times`; the papers do not.
      learner: name of the network that learns.
    """

    learner: ClassVar[str] = "student"
    diffuser: Diffuser
    optimizer: Optimizer
    weighting: str = "v_mse"
    stratified: bool = False

    def __post_init__(self):
        check_weighting(self.weighting)

    @abc.abstractmethod
    def examples(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[dict[str, Any], Array]:
        """What the network is to learn from a batch.

        Returns:
          {"z": [B, ...], "logsnr": [B], "v": target [B, ...]}, and "label" and "guidance", [B]
          each, and "condition" for a network that takes them; "importance", [B], is how much each
          counts. And a key for dropout.
        """

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        examples, dropout_key = self.examples(state, batch, key)
        return self.regress(state, [examples], dropout_key)

    def regress(
        self, state: TrainState, parts: Sequence[dict[str, Any]], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of the learner towards v at z.

        Args:
          parts: of the batch, `examples` each; those of one part have one shape. key: for dropout.

        Returns:
          The state and {"loss", "grad_norm", "param_norm"}.
        """
        learner = state.learners[self.learner]

        def losses(params, examples, key):
            z, logsnr = examples["z"], examples["logsnr"]
            inputs = {name: examples.get(name) for name in ("label", "guidance", "condition")}
            v_hat = self.diffuser.v(params, z, logsnr, **inputs, dropout_key=key)
            losses = denoising_loss(v_hat, examples["v"], logsnr, self.weighting)
            return losses * examples.get("importance", 1.0)

        def loss(params, parts, key):
            return jnp.mean(jnp.concatenate([losses(params, part, key) for part in parts]))

        value, grads = value_and_grad(loss, learner.params, parts, key, self.optimizer.microbatches)
        learner, norms = learner.update(grads, self.optimizer, state.step)
        return state.replace(learners={self.learner: learner}), {"loss": value, **norms}

    def export(self, state: TrainState) -> Any:
        """The parameters to sample with, and to start other stages from: the moving average."""
        return state.learners[self.learner].ema


def uniform_times(key: Array, batch: int, stratified: bool, dtype=jnp.float32) -> Array:
    """Times in [0, 1): [batch], independent, or evenly spread from one random offset.

    The second (Kingma et al. 2021, appendix I.1) has the same expectation and less variance.
    """
    if not stratified:
        return jax.random.uniform(key, (batch,), dtype)
    t = (jnp.arange(batch, dtype=dtype) + jax.random.uniform(key, (), dtype)) / batch
    return jnp.minimum(t, 1 - jnp.finfo(dtype).epsneg)  # the last one may round to 1


def guided_examples(
    key: Array,
    batch: int,
    interval: tuple[float, float],
    discount: float,
    stratified: bool,
    dtype=jnp.float32,
) -> dict[str, Array]:
    """What examples of random guidance weights have: "guidance" and "importance", [batch] each.

    Weights are drawn in [low, high) as `uniform_times`, but in a random order, so that with
    stratified times the two do not go together. The importance of w is (1 + w) ** -discount, since
    guided targets, and so their errors, grow with 1 + w.
    """
    low, high = interval
    draw_key, order_key = jax.random.split(key)
    u = uniform_times(draw_key, batch, stratified, dtype)
    w = low + (high - low) * jax.random.permutation(order_key, u)
    return {"guidance": w, "importance": (1 + w) ** -discount}

"""Guided distillation, stage one (Meng et al. 2023): one network for a range of guidance weights.

Stage two is `progressive`, starting from the model that this stage makes.
"""

import dataclasses
from typing import ClassVar

import jax
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion import check_weighting
from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given, check_guidable
from pdistill.methods.parts.regression import Examples, Taught, regress
from pdistill.methods.parts.times import (
    check_weights,
    guidance_weights,
    importance,
    uniform_times,
)
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """The student, told w, predicts what its teacher's guided pair of evaluations does.

    The paper leaves the loss's weight open; the default, SNR + 1, is the mean square of v.

    Attributes:
      guidance: range of w, drawn uniformly for each example.
      discount: as in `importance`; the paper has 0.
      weighting, stratified: as in `Teacher`.
    """

    optimizer: Optimizer
    guidance: tuple[float, ...] = (0.0, 4.0)
    discount: float = 0.0
    weighting: str = "v_mse"
    stratified: bool = False
    name: ClassVar[str] = "guided"

    def __post_init__(self):
        check_weighting(self.weighting)
        check_weights("guidance", self.guidance)

    def init(self, key: Array, *, teacher: Network) -> Taught:
        """The student starts as the teacher's conditional network, whatever w is."""
        check_given(teacher, "teacher")
        check_guidable(teacher, "teacher")
        teacher = teacher.without_dropout()
        student = teacher.with_module({"guidance": True}).replace(guidance=self.guidance)
        student, _ = student.init(key).taking(teacher)
        return Taught(Learner.of(student, self.optimizer), teacher)

    def step(self, state: Taught, batch, key):
        time_key, noise_key, _, weight_key = jax.random.split(key, 4)
        x = batch["image"]
        t = uniform_times(time_key, len(x), self.stratified, x.dtype)
        w = guidance_weights(weight_key, len(x), self.guidance, self.stratified, x.dtype)
        logsnr = state.student.network.schedule(t)
        z, _ = diffusion.noised(noise_key, x, logsnr)
        told = Conditioning.of(batch, guidance=w)
        v = stop_gradient(state.teacher.v(z, logsnr, told))  # (1 + w) v_cond - w v_uncond
        examples = Examples(z, logsnr, v, told, importance(w, self.discount))
        student, metrics = regress(state.student, examples, self.weighting)
        return state.replace(student=student), metrics

    def product(self, state: Taught) -> Network:
        return state.student.averaged

"""Score matching on a teacher: another network learns what it predicts at every noise level."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax.core import FrozenDict
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion import check_weighting
from pdistill.methods.method import Method
from pdistill.methods.parts.given import check_given
from pdistill.methods.parts.regression import Examples, Taught, regress
from pdistill.methods.parts.times import uniform_times
from pdistill.networks import Conditioning, Network
from pdistill.training import Learner, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreMatching(Method):
    """The student's v is regressed on its teacher's, of real images (TSM, Song et al. 2024).

    Attributes:
      network: arguments in which the student's network differs from the teacher's.
      weighting, stratified: as in `Teacher`.
    """

    optimizer: Optimizer
    network: Mapping[str, Any] = FrozenDict()
    weighting: str = "v_mse"
    stratified: bool = False
    name: ClassVar[str] = "score_matching"

    def __post_init__(self):
        check_weighting(self.weighting)

    @property
    def measured_at(self):
        return (1,)

    def init(self, key: Array, *, teacher: Network) -> Taught:
        check_given(teacher, "teacher")
        teacher = teacher.without_dropout()
        student = teacher.with_module(self.network).replace(guidance=None, sampler="").init(key)
        return Taught(Learner.of(student, self.optimizer), teacher)

    def step(self, state: Taught, batch, key):
        time_key, noise_key = jax.random.split(key)
        x, told = batch["image"], Conditioning.of(batch)
        t = uniform_times(time_key, len(x), self.stratified, x.dtype)
        logsnr = state.student.network.schedule(t)
        z, _ = diffusion.noised(noise_key, x, logsnr)
        v = stop_gradient(state.teacher.v(z, logsnr, told))
        examples = Examples(z, logsnr, v, told)
        student, metrics = regress(state.student, examples, self.weighting)
        return state.replace(student=student), metrics

    def product(self, state: Taught) -> Network:
        return state.student.averaged

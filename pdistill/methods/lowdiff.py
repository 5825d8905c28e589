"""LowDiff (Xu et al. 2025): one network for a cascade of resolutions, most steps at the lowest.

The paper's abstract and its reviews could be read. From the paper: one network is shared by all
resolutions, told which by an embedding, and makes each image on the condition of the one before;
the rest is our own design, as `per_resolution`, `UNet` and `LowDiff` say.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax.core import FrozenDict
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import check_weighting
from pdistill.methods.method import Method, check_microbatches
from pdistill.methods.parts.cascade import check_split, per_resolution
from pdistill.methods.parts.regression import Examples, regress
from pdistill.methods.parts.times import uniform_times
from pdistill.methods.teacher import Teacher, guidable, hide
from pdistill.networks import Conditioning, Network
from pdistill.samplers import parse_solver
from pdistill.training import Learner, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowDiff(Method):
    """Denoise real images of every resolution, each beside the one below. All defaults are ours.

    A later `progressive` halves the steps of all resolutions.

    Attributes:
      resolutions: pixels a side, rising by factors of two, four, ...; the last is the data's.
      split, max_noise: as in `per_resolution`; the split adds up to the batch.
      solver: a deterministic one, for each resolution. noise: std on the condition in sampling.
      shifts: added to the schedule's log-SNR at each resolution; by default 2 log(R / r) for images
        of r of R pixels. Averages of n pixels have 1 / n of the noise's variance, so that this
        makes equal times equally noisy.
      label_dropout: as in `Teacher`; the model can then be guided, towards the label only.
      weighting, stratified, network: as in `Teacher`.
    """

    optimizer: Optimizer
    resolutions: tuple[int, ...]
    split: tuple[int, ...]
    max_noise: float = 0.2
    solver: str = "ddim"
    noise: float = 0.1
    shifts: tuple[float, ...] = ()
    label_dropout: float = 0.0
    weighting: str = "v_mse"
    stratified: bool = False
    network: Mapping[str, Any] = FrozenDict()
    name: ClassVar[str] = "lowdiff"

    State = Teacher.State

    def __post_init__(self):
        check_weighting(self.weighting)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be in [0, 1]; got {self.label_dropout}")
        if not self.noise <= self.max_noise:
            raise ValueError(
                f"noise {self.noise} in sampling is more than any in training; max_noise is "
                f"{self.max_noise}"
            )
        if parse_solver(self.sampler).solver.stochastic:
            raise ValueError(f"solver must be deterministic; got {self.solver!r}")

    @property
    def sampler(self) -> str:
        """Name of the solver that samples the cascade."""
        return f"cascade:{self.solver}:{self.noise}"

    def check_batch(self, batch_size: int) -> None:
        if sum(self.split) != batch_size:
            raise ValueError(f"split {self.split} must add up to loop.batch_size {batch_size}")
        check_microbatches(self, self.split)

    def init(self, key: Array, *, model: Network) -> State:
        if not hasattr(model.module, "resolutions"):
            raise ValueError(
                f"{type(model.module).__name__} has one resolution; UNet and DiT can have more"
            )
        model = model.with_module({**self.network, "resolutions": self.resolutions})
        check_split(self.split, self.max_noise, model)
        by_size = tuple(2 * math.log(self.resolutions[-1] / size) for size in self.resolutions)
        model = model.replace(shifts=self.shifts or by_size, sampler=self.sampler)
        return self.State(Learner.of(guidable(model, self.label_dropout).init(key), self.optimizer))

    def step(self, state: State, batch, key):
        network, examples = state.model.network, []
        # The first resolution's `own_key` is `key`: of the four it has, this is the one left out.
        dropout_key = jax.random.split(key, 4)[2]
        for level, rows, below, own_key in per_resolution(
            network, batch, key, self.split, self.max_noise
        ):
            time_key, noise_key, _, label_key = jax.random.split(own_key, 4)
            x = rows["image"]
            told = hide(label_key, Conditioning.of(rows, image=below), self.label_dropout, network)
            t = uniform_times(time_key, len(x), self.stratified, x.dtype)
            logsnr = level.schedule(t)
            z, eps = diffusion.noised(noise_key, x, logsnr)
            v = diffusion.v_target(x, eps, logsnr)
            examples.append(Examples(z, logsnr, v, told))
        model, metrics = regress(state.model, examples, self.weighting, dropout_key)
        return state.replace(model=model), metrics

    def product(self, state: State) -> Network:
        return state.model.averaged

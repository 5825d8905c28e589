"""The sampler of improved DDPM (Nichol & Dhariwal 2021), with a learnt variance."""

import dataclasses
import numbers

import jax.numpy as jnp

from pdistill.diffusion import DdpmSchedule
from pdistill.samplers.solvers import Solver, ancestral_step


@dataclasses.dataclass(frozen=True)
class ImprovedDdpm(Solver):
    """DDPM's ancestral sampler with learnt variances, as ADM's and DiT's samples are drawn.

    For a `diffusion.DenoiserWithVariance`. N > 1 steps are at the time steps that are nearest to N
    equally spaced ones from the last to the first, as `space_timesteps` of their code has them but
    for halves, which its sums round to either side. The last step returns x_hat.
    """

    name = "iddpm"
    model = "variance"
    stochastic = True

    def level(self, schedule, i, num_steps, dtype):
        if not isinstance(schedule, DdpmSchedule):
            raise ValueError(
                f"{self.name} is for the discrete noise levels of DDPM, `DdpmSchedule`; got "
                f"{schedule}"
            )
        if isinstance(num_steps, numbers.Integral) and num_steps > schedule.num:
            raise ValueError(
                f"{self.name} takes at most the {schedule.num} time steps; got {num_steps}"
            )
        # Whole numbers, so that a count that is traced makes the same steps as one that is not.
        rest, ways = num_steps - 1 - i, jnp.maximum(num_steps - 1, 1)
        step = (2 * rest * (schedule.num - 1) + ways) // (2 * ways)
        step = jnp.where(num_steps == 1, schedule.num - 1, step)
        t = jnp.where(i == num_steps, 0, step + 1).astype(dtype) / schedule.num
        return schedule(t)

    def step(self, denoise, z, made, logsnr_t, logsnr_s, key, memory):
        x_hat, fraction = made
        return ancestral_step(z, x_hat, logsnr_t, logsnr_s, fraction, key), memory

    def end(self, z, made, logsnr_t):
        return made[0]

"""The sampler of improved DDPM (Nichol & Dhariwal 2021), with a learnt variance."""

import dataclasses

import jax.numpy as jnp

from pdistill.diffusion import DdpmSchedule
from pdistill.samplers.solvers import Solver, ancestral_step


@dataclasses.dataclass(frozen=True)
class ImprovedDdpm(Solver):
    """DDPM's ancestral sampler with learnt variances, as ADM's and DiT's samples are drawn.

    For a `diffusion.DenoiserWithVariance`. N steps are at the time steps that are nearest to N
    equally spaced ones from the last to the first, as `space_timesteps` of their code has them;
    the last one returns x_hat.
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
        # From the first step on, so that halves are rounded to the same side.
        number = (num_steps - 1 - i).astype(dtype)
        step = jnp.round(number * (schedule.num - 1) / jnp.maximum(num_steps - 1, 1))
        step = jnp.where(num_steps == 1, schedule.num - 1, step)
        return schedule(jnp.where(i == num_steps, 0, (step + 1) / schedule.num))

    def step(self, denoise, z, made, logsnr_t, logsnr_s, key, memory):
        x_hat, fraction = made
        return ancestral_step(z, x_hat, logsnr_t, logsnr_s, fraction, key), memory

    def end(self, z, made, logsnr_t):
        return made[0]

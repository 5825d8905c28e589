"""A generator of a few network evaluations, for methods that differentiate its images."""

import jax.numpy as jnp
from jax import Array

from pdistill.diffusion import Denoiser, Schedule
from pdistill.samplers import ddim_step


def generate_few(denoise: Denoiser, z: Array, schedule: Schedule, num_steps: int = 1) -> Array:
    """What `samplers.sample` makes of the noise z [B, ...] in DDIM steps, unrolled; no clipping.

    One step is x_hat at the largest noise. Unrolled, because gradients of convolutions are slow in
    a loop on CPUs, and few steps compile quickly.
    """
    for i in range(num_steps, 0, -1):
        logsnr_t, logsnr_s = schedule(jnp.array([i, i - 1], z.dtype) / num_steps)
        x_hat = denoise(z, jnp.broadcast_to(logsnr_t, z.shape[:1]))
        if i > 1:
            z = ddim_step(z, x_hat, logsnr_t, logsnr_s)
    return x_hat

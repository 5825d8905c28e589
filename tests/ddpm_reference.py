"""DDPM's sampler with learned range variances in NumPy, in betas as guided-diffusion has it."""

import numpy as np


def space_timesteps(num, steps):
    """Time steps of a respaced process; with one, where noise is."""
    if steps == 1:
        return [num - 1]
    place, found = 0.0, []
    for _ in range(steps):
        found.append(round(place))
        place += (num - 1) / (steps - 1)
    return found


def p_sample_loop(predict, betas, num_steps, z, draw, clip=None):
    """The loop of a SpacedDiffusion, also DiT's: samples from noise z.

    Args:
      predict: (z, time step, product of 1 - beta up to it) -> eps, share of the larger variance.
      draw: number of a step -> its noise.
    """
    steps = space_timesteps(len(betas), num_steps)
    kept = np.cumprod(1 - betas)[steps]
    before = np.append(1.0, kept[:-1])
    betas = 1 - kept / before
    posterior = betas * (1 - before) / (1 - kept)
    clipped = np.log(np.append(posterior[1:2], posterior[1:]))
    for i in reversed(range(num_steps)):
        eps, share = predict(z, steps[i], kept[i])
        x = np.sqrt(1 / kept[i]) * z - np.sqrt(1 / kept[i] - 1) * eps
        x = x if clip is None else np.clip(x, *clip)
        mean = betas[i] * np.sqrt(before[i]) / (1 - kept[i]) * x
        mean += (1 - before[i]) * np.sqrt(1 - betas[i]) / (1 - kept[i]) * z
        log_variance = share * np.log(betas[i]) + (1 - share) * clipped[i] if i else 0
        z = mean + (i > 0) * np.exp(0.5 * log_variance) * draw(num_steps - 1 - i)
    return z

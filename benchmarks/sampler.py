"""Images a second of one jitted sampler and of diffusers' loop, with the same weights and steps.

    pip install -e '.[bench]'
    python -m benchmarks.sampler

DDIM in float32, by U-Nets of diffusers' shape on 32x32 images and by DiTs on latents of 16x16
(`dit`) and 32x32 (`dit_b2`), from the same noise; `relative_difference` says how far the images are
apart. diffusers runs as it is and with its network under torch.compile. `ratio` is ours over
diffusers as it is, of the first size.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.common import medians, parser, take_turns
from benchmarks.rivals import from_torch, ratios, run, start, to_torch, twins, wait
from pdistill.model.sampling import Sampling
from pdistill.training import count


@torch.inference_mode()
def diffusers_sample(network: Any, scheduler: Any, noise: torch.Tensor, num_steps: int) -> Any:
    """Samples as diffusers' pipelines do."""
    scheduler.set_timesteps(num_steps)
    z = noise
    for step in scheduler.timesteps:
        z = scheduler.step(network(z, step).sample, step, z).prev_sample
    wait()
    return z


def prepare(size: str, batch_size: int, num_steps: int) -> Callable[[int], dict[str, Any]]:
    """Compiles the samplers of one size of network; returns rounds -> the figures, measured."""
    network, scheduler, own = twins(size)
    noise = np.random.default_rng(0).normal(size=(batch_size, *own.shape)).astype(np.float32)
    theirs, sampling = to_torch(noise), Sampling(num_steps, clip=None)
    sample = jax.jit(lambda own, z: sampling.run(own, key=None, z_init=z))
    sample = sample.lower(own, noise).compile()
    compiled = torch.compile(network)
    rivals = {
        "diffusers": lambda: diffusers_sample(network, scheduler, theirs, num_steps),
        "diffusers, compiled": lambda: diffusers_sample(compiled, scheduler, theirs, num_steps),
    }
    made, failed = start(rivals)
    contenders = {"pdistill": lambda: sample(own, noise)} | {name: rivals[name] for name in made}
    other = from_torch(made["diffusers"])
    flops = batch_size * num_steps * own.flops(own.shape)

    def measure(rounds: int) -> dict[str, Any]:
        ours = np.asarray(sample(own, noise))
        seconds = medians(take_turns(contenders, rounds))
        return {
            "parameters": count(own.params),
            "images_per_second": {name: batch_size / time for name, time in seconds.items()},
            "gigaflops_per_second": {name: flops / time / 1e9 for name, time in seconds.items()},
            **ratios(seconds),
            "relative_difference": float(np.linalg.norm(ours - other) / np.linalg.norm(other)),
            "failed": failed,
        }

    return measure


def compare(size: str, batch_size: int, num_steps: int, rounds: int) -> dict[str, Any]:
    """Images a second of each, of one size of network."""
    return prepare(size, batch_size, num_steps)(rounds)


if __name__ == "__main__":
    run(
        parser("sampler", __doc__),
        compare,
        {"batch_size": 16, "num_steps": 4, "rounds": 7},
        "images",
    )

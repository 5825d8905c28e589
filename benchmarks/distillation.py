"""Steps a second of progressive distillation: this package against a plain loop in PyTorch.

    pip install -e '.[bench]'
    python -m benchmarks.distillation

Both teach the same network with the same weights (see `benchmarks.rivals`) on the same random
images: two DDIM steps of the teacher, one of the student, the gradient of the SNR + 1 loss,
clipping, Adam and a moving average, in float32. The loop in PyTorch is the shortest that does this,
as it is and with the networks under torch.compile. Ours is the update that training runs. `ratio`
is ours over the plain loop; the losses of both, from other random numbers, say that they do the
same.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.common import medians, parser, take_turns
from benchmarks.rivals import ratios, run, start, to_torch, twins
from pdistill.diffusion import CosineSchedule
from pdistill.methods import Progressive
from pdistill.networks import Network
from pdistill.runtime.costs import flops
from pdistill.runtime.mesh import make_mesh
from pdistill.training import (
    Optimizer,
    compile_update,
    count,
    init_state,
    kinds_of,
    start_of,
    take_frozen,
)

STEPS = 4  # of the student
RATE, DECAY, CLIP = 1e-4, 0.999, 1.0


def torch_step(network: torch.nn.Module, compiled: bool) -> Callable[[torch.Tensor], float]:
    """Makes a function from images [B, C, H, W] to the loss of one update of a student.

    The student starts as `network`.
    """
    teacher = copy.deepcopy(network).requires_grad_(False)
    student = copy.deepcopy(network).train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), RATE)
    run_teacher, run_student = teacher, student
    if compiled:
        run_teacher, run_student = torch.compile(teacher), torch.compile(student)

    def scales(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = (t * math.pi / 2)[:, None, None, None]
        return torch.cos(angle), torch.sin(angle)

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = scales(t)
        return alpha * z - sigma * run_teacher(z, 999 * t).sample

    def step(x: torch.Tensor) -> float:
        t = (1 + torch.randint(STEPS, x.shape[:1], device=x.device)) / STEPS
        middle, end = t - 0.5 / STEPS, t - 1 / STEPS
        alpha, sigma = scales(t)
        z = alpha * x + sigma * torch.randn_like(x)
        with torch.no_grad():
            alpha_m, sigma_m = scales(middle)
            alpha_s, sigma_s = scales(end)
            x_1 = denoise(z, t)
            z_m = alpha_m * x_1 + sigma_m / sigma * (z - alpha * x_1)
            x_2 = denoise(z_m, middle)
            z_s = alpha_s * x_2 + sigma_s / sigma_m * (z_m - alpha_m * x_2)
            q = sigma_s / sigma
            target = (z_s - q * z) / (alpha_s - q * alpha)
            v = (alpha * z - target) / sigma
        loss = torch.nn.functional.mse_loss(run_student(z, 999 * t).sample, v)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), student.parameters(), strict=True):
                mean.lerp_(new, 1 - DECAY)
        return loss.item()

    return step


class Ours:
    """Our updates as training dispatches them, on a data set on the device."""

    def __init__(self, network: Network, images: np.ndarray):
        teacher = network.replace(schedule=CosineSchedule())
        method = Progressive(
            optimizer=Optimizer(RATE, ema_decay=DECAY, clip_norm=CLIP),
            start_steps=2 * STEPS,
            end_steps=STEPS,
        )
        mesh = make_mesh(1, 1, jax.devices()[:1])

        def init(teacher):
            return method.init(jax.random.key(0), teacher=teacher, num_steps=STEPS)

        state, self._frozen = take_frozen(init_state(init, mesh, teacher))
        self._state = start_of(state, mesh)
        self._kinds = kinds_of(method, range(1), 1)(0)
        update = compile_update(method, mesh, False)
        self._resident = {"image": jnp.asarray(images), "label": jnp.zeros(len(images), jnp.int32)}
        self._raw = {"index": jnp.arange(len(images))[None]}
        self._key = jax.random.key(0)
        inputs = (self._state, self._frozen, self._resident, self._raw, self._key)
        traced = update.trace(*inputs, **self._kinds)
        self.flops = flops(traced.jaxpr.jaxpr)
        self._program = traced.lower().compile()

    def __call__(self) -> float:
        self._state, metrics = self._program(
            self._state, self._frozen, self._resident, self._raw, self._key,
            which=self._kinds["which"],
        )  # fmt: skip
        return float(metrics["values"]["loss"][0])


def prepare(size: str, batch_size: int) -> Callable[[int], dict[str, Any]]:
    """Compiles the updates of one size of network; returns rounds -> the figures, measured."""
    network, _, own = twins(size)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *own.shape), np.uint8)
    theirs = to_torch(images.astype(np.float32) / 127.5 - 1)
    ours = Ours(own, images)
    plain, compiled = (torch_step(network, compiled) for compiled in (False, True))
    rivals = {"PyTorch": lambda: plain(theirs), "PyTorch, compiled": lambda: compiled(theirs)}
    losses, failed = start(rivals)
    contenders = {"pdistill": ours} | {name: rivals[name] for name in losses}

    def measure(rounds: int) -> dict[str, Any]:
        first = {"pdistill": ours()} | losses
        seconds = medians(take_turns(contenders, rounds))
        rates = {name: ours.flops / time / 1e9 for name, time in seconds.items()}
        return {
            "parameters": count(own.params),
            "first_loss": first,
            "steps_per_second": {name: 1 / time for name, time in seconds.items()},
            "gigaflops_per_second": rates,
            **ratios(seconds),
            "failed": failed,
        }

    return measure


def compare(size: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Steps a second of each, of one size of network."""
    return prepare(size, batch_size)(rounds)


if __name__ == "__main__":
    run(parser("distillation", __doc__), compare, {"batch_size": 16, "rounds": 7}, "steps")

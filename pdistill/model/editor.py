"""Edits of images by a model, in about as few evaluations as it samples with.

    editor = Editor(load("runs/emoji/student/4"))
    blue = editor.change(key, images, strength=0.75, prompt="blue heart")
    whole = editor.inpaint(key, images, known, prompt="fluent cat face")

Guided distillation (Meng et al. 2023, section 5) shows such edits by its students; noise levels and
the way of known pixels are those of SDEdit (Meng et al. 2022) and RePaint (Lugmayr et al. 2022).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import samplers
from pdistill.data.images import average
from pdistill.diffusion import diffuse
from pdistill.model.model import Model
from pdistill.model.sampling import Sampling, decoded, latents_of
from pdistill.networks import Network
from pdistill.networks.checks import check_floats
from pdistill.samplers import Ddim, Gamma, Heun, Multistep, Solver, Stochastic
from pdistill.samplers.noise import as_threefry


@dataclasses.dataclass(frozen=True, eq=False)
class Editor:
    """Edits of images [B, H, W, C] in [-1, 1], of the model's shape.

    Labels, prompts and guidance of the edited images are given as to `Model.sample`.
    Images of a model of latents are encoded and decoded by its codec, which changes them a little
    also where nothing else does. A change and an inpainting cost no more evaluations than a sample,
    a transfer at most twice as many.

    Attributes:
      model: a denoiser at all noise levels, a generator of a few or a jump; no cascade.
      num_steps: steps of a whole sample; None for the model's own.

    Raises:
      ValueError: a cascade, or a generator of a single level, which has no image on its way; or a
        model whose images are enlarged in the end.
    """

    model: Model
    num_steps: int | None = None

    def __post_init__(self):
        kind = self.model.sampling.solver.model
        if kind in ("cascade", "one_step"):
            what = "cascade" if kind == "cascade" else "generator of one step"
            raise ValueError(f"the model is a {what}, which knows no image on its way to another")
        if self.model.network.enlarged > 1:
            raise ValueError(
                "the model enlarges what it makes, and knows no image of the whole size; edit "
                "small images by the model that it enlarges, its card's parent"
            )
        _ = self.sampling  # raises

    def change(self, key: Array, images: Array, *, strength: float = 0.6, **told: Any) -> Array:
        """The images with noise, denoised again as they are told to be: SDEdit.

        Args:
          strength: part of the steps that are made again, in (0, 1]: 0.5 of 4 steps costs 2 and
            keeps colours and shapes, 1 keeps nothing.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be in (0, 1]; got {strength}")
        network, sampling = self.model.network, self.sampling
        count = math.ceil(round(strength * sampling.num_steps, 9))
        told = self.model.told(len(images), **told)
        return _change(network, as_threefry(key), images, told, sampling=sampling, count=count)

    def inpaint(self, key: Array, images: Array, known: Array, **told: Any) -> Array:
        """The images with other pixels in the place of those that are not `known`, as told.

        Args:
          known: bool [B, H, W, 1] or [1, H, W, 1]; these pixels are kept exactly. A cell of latents
            counts as known if all of its pixels are.
        """
        known = jnp.broadcast_to(jnp.asarray(known, bool), (*images.shape[:-1], 1))
        told = self.model.told(len(images), **told)
        return _inpaint(
            self.model.network, as_threefry(key), images, known, told, sampling=self.sampling
        )

    def encode(self, images: Array, **told: Any) -> Array:
        """Noise [B, h, w, c] that the model's flow makes these images of, as many steps back.

        Raises:
          ValueError: the model knows a few noise levels only, or is a student of stochastic steps.
        """
        self._check_flow()
        told = self.model.told(len(images), **told)
        return _encode(self.model.network, images, told, num_steps=self.sampling.num_steps)

    def transfer(self, images: Array, before: Mapping[str, Any], after: Mapping[str, Any]) -> Array:
        """The images encoded as told `before` and decoded as told `after`: another style or class.

        Both ways are the flow's, without fresh noise, and cost their evaluations. It raises as
        `encode` does.
        """
        z = self.encode(images, **before)
        told = self.model.told(len(images), **after)
        sampling = self.sampling
        if sampling.solver.stochastic:  # fresh noise leaves nothing of the images
            sampling = sampling.changed(solver=Gamma() if sampling.solver.jumps else Ddim())
        return _decode(self.model.network, z, told, sampling=sampling)

    @property
    def sampling(self) -> Sampling:
        """The sampling of a whole image; parts of it make the edits.

        It is the model's, or one of as many evaluations in the place of a solver of denoisers whose
        levels are not those of equal times.
        """
        sampling = self.model.sampling_with(self.num_steps)
        solver = sampling.solver
        if solver.model == "multistep" or type(solver).level is Solver.level:
            return sampling
        return sampling.changed(solver=Heun() if solver.evaluations_per_step == 2 else Ddim())

    def _check_flow(self) -> None:
        if self.sampling.solver.model == "multistep":
            raise ValueError(
                "the model knows a few noise levels only, so that no flow encodes images; change "
                "and inpaint them"
            )
        if isinstance(self.sampling.solver, Stochastic):
            raise ValueError(
                "the model is a student of stochastic steps, of which no flow encodes images; "
                "change and inpaint them"
            )


def _run(function: Any, network: Network, sampling: Sampling, **start: Any) -> Array:
    """Images by a model's sampling of a denoiser, or of a jump."""
    x = samplers.sample(
        function, schedule=network.schedule, solver=sampling.solver, clip=sampling.clip, **start
    )
    return decoded(network, x)


@functools.partial(jax.jit, static_argnames=("sampling", "count"))
def _change(network, key, images, told, *, sampling: Sampling, count: int):
    noise_key, key = jax.random.split(key)
    x, num = latents_of(network, images), sampling.num_steps
    solver, start = sampling.solver, {}
    if isinstance(solver, Multistep):  # its levels are not those of equal times
        levels = solver.levels[num - count : num]
        sampling = sampling.changed(count, Multistep(levels))
        start = {"num_steps": count}
        level = jnp.asarray(levels[0], x.dtype)
    else:
        times = tuple(i / num for i in range(count, -1, -1))
        start = {"times": times}
        level = network.schedule(jnp.asarray(times[0], x.dtype))
    z = diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), level)
    function = sampling.function(network, told)
    return _run(function, network, sampling, key=key, z_init=z, **start)


@functools.partial(jax.jit, static_argnames="sampling")
def _inpaint(network, key, images, known, told, *, sampling: Sampling):
    check_floats(images)
    noise_key, key = jax.random.split(key)
    mean = jnp.sum(jnp.where(known, images, 0), (1, 2), keepdims=True)
    mean /= jnp.maximum(known.sum((1, 2), keepdims=True), 1).astype(mean.dtype)
    x = latents_of(network, jnp.where(known, images, mean))
    cells = average(known.astype(x.dtype), known.shape[1] // x.shape[1]) == 1
    eps = jax.random.normal(noise_key, x.shape, x.dtype)
    function = sampling.function(network, told)

    def at(z: Array, logsnr: Array) -> Array:
        """z with the known cells as they are at this noise level."""
        return jnp.where(cells, diffuse(x, eps, logsnr), z)

    def denoise(z: Array, logsnr: Array) -> Array:
        return jnp.where(cells, x, function(at(z, logsnr), logsnr))

    def jump(z: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
        return at(function(at(z, logsnr_t), logsnr_t, logsnr_s), logsnr_s)

    made = _run(
        jump if sampling.solver.jumps else denoise, network, sampling,
        key=key, z_init=eps, num_steps=sampling.num_steps,
    )  # fmt: skip
    return jnp.where(known, images, made)


@functools.partial(jax.jit, static_argnames="num_steps")
def _encode(network, images, told, *, num_steps: int):
    return samplers.encode(
        network.denoiser(told),
        latents_of(network, images),
        schedule=network.schedule,
        num_steps=num_steps,
        solver="ddim",
    )


@functools.partial(jax.jit, static_argnames="sampling")
def _decode(network, z, told, *, sampling: Sampling):
    return sampling.run(network, told, key=None, z_init=z)

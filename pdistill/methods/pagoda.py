"""PaGoDA (Kim et al. 2024): a one-step decoder that grows beyond its teacher's resolution.

The teacher's probability-flow ODE encodes real images, reduced to its resolution, to latents; a
generator learns to make the images themselves of them, at that resolution or, with levels behind
its last one, at a higher one, and to deceive a discriminator with what it makes of noise.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array

from pdistill.methods.adversarial_generator import (
    AdversarialGenerator,
    AdversarialGeneratorStage,
)
from pdistill.methods.balance import balanced_update
from pdistill.methods.distances import Distance
from pdistill.methods.latents import LatentsConfig
from pdistill.training import TrainState, partition
from pdistill.training.transfer import transfer

LIMITS = {"adversarial": (0.01, 10.0)}  # of the adaptive weight, from the released code


@dataclasses.dataclass(frozen=True)
class Pagoda(AdversarialGenerator):
    """One update of the generator and one of the discriminator.

    The released code takes them in turn, each on batches of its own, and has the network's raw
    output for the image, which is twice the teacher's denoised one at first; here they share a
    batch, and the image is the denoised one. The generator's network may have `grown`.

    Attributes:
      distance: of an image and what is made of its latent.
      adversarial: factor on the weight of that loss. layer: path of the parameters whose gradients'
        norms make the weight; "" for a weight of one.
    """

    distance: Distance = Distance("pixels")  # noqa: RUF009
    adversarial: float = 0.2
    layer: str = ""

    def __post_init__(self):
        super().__post_init__()
        if not self.adversarial > 0:
            raise ValueError(f"adversarial must be positive; got {self.adversarial}")

    def init(
        self,
        key: Array,
        start: Any,
        teacher: Any,
        image_shape: tuple[int, ...],
        noise_shape: tuple[int, ...],
    ) -> TrainState:
        """As the base does, with a generator that begins as `start`, as far as that goes."""
        generator_key, key = jax.random.split(key)
        params, _ = transfer(self.diffuser.init(generator_key, noise_shape), start, reshaped=True)
        return super().init(key, params, teacher, image_shape, distance=self.distance.init())

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """`batch["latent"]` [B, h, w, C] are the latents of its images."""
        student_key, noise_key, *judge_keys = jax.random.split(key, 5)
        x, label = batch["image"], batch.get("label")
        state, metrics = self._update_generator(state, x, batch["latent"], label, student_key)
        eps = jax.random.normal(noise_key, batch["latent"].shape, x.dtype)
        fakes = self.generate(state.learners["student"].params, state, eps, label)
        state, more = self.adversary.update(state, fakes, x, label, tuple(judge_keys))
        return state, metrics | more

    def _update_generator(self, state, x, latent, label, key):
        noise_key, judge_key = jax.random.split(key)
        eps = jax.random.normal(noise_key, latent.shape, x.dtype)

        def losses(params):
            x_hat = self.generate(params, state, latent, label)
            fakes = self.generate(params, state, eps, label)
            apart = self.distance(state.frozen["distance"], x_hat, x)
            deceiving, carried = self.adversary.generator_loss(state, fakes, label, judge_key)
            return {"reconstruction": jnp.mean(apart), "adversarial": deceiving}, carried

        student, metrics, carried = balanced_update(
            losses, state.learners["student"], self.optimizer, state.step, layer=self.layer,
            first="reconstruction", limits=LIMITS, factors={"adversarial": self.adversarial},
        )  # fmt: skip
        return self.advance(state, student, carried), metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class PagodaStage(AdversarialGeneratorStage):
    """Config of the stage: a generator of images of `resolution`, one round.

    The `teacher`'s trajectories encode; `start` may be a stage with a smaller generator.

    Attributes:
      grown: channels of the levels that the generator has beyond the teacher.
      latents: how images are encoded.
      distance: a name, as in `Distance`. adversarial, layer: of `Pagoda`.
    """

    grown: tuple[int, ...] = ()
    latents: LatentsConfig = LatentsConfig()  # noqa: RUF009
    distance: str = "pixels"
    adversarial: float = 0.2
    layer: str = ""
    loss: str = "hinge"
    r1: float = 0.0

    def rounds(self, diffuser, image_shape, earlier):
        diffuser, start, teacher = self.origins(earlier)
        if not hasattr(diffuser.network, "grown"):
            raise ValueError(f"{type(diffuser.network).__name__} cannot grow; UNet can")
        noise_shape, factor = teacher.image_shape, 2 ** len(self.grown)
        if image_shape[0] != factor * noise_shape[0]:
            raise ValueError(
                f"with {len(self.grown)} levels of `grown`, {teacher.name!r} of {noise_shape[0]} "
                f"pixels grows to {factor * noise_shape[0]}, not to {image_shape[0]}"
            )
        diffuser = diffuser.with_network({"grown": self.grown})
        method = Pagoda(
            **self.common(diffuser, teacher),
            distance=Distance(self.distance),
            adversarial=self.adversarial,
            layer=self.layer,
        )
        shapes = diffuser.param_shapes(noise_shape)
        learning, _ = partition(shapes, method.frozen)
        if self.layer and self.layer not in traverse_util.flatten_dict(learning, sep="/"):
            raise ValueError(f"layer: no parameters that learn have the path {self.layer!r}")
        card = {"latents": dataclasses.asdict(self.latents)}
        if not self.scratch:
            of_start = start.method.diffuser.param_shapes(noise_shape)
            _, moved = transfer(shapes, of_start, reshaped=True)
            card["transferred"] = moved._asdict()
        return [
            self.round_of(
                method,
                functools.partial(method.init, image_shape=image_shape, noise_shape=noise_shape),
                noise_shape,
                start,
                teacher,
                method_name="pagoda",
                num_steps=(1,),
                solver="one_step",
                latents=self.latents,
                card=card,
            )
        ]

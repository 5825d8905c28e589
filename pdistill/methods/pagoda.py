"""PaGoDA (Kim et al. 2024): a one-step decoder that grows beyond its teacher's resolution.

The teacher's probability-flow ODE encodes real images, reduced to its resolution, to latents; a
generator learns to make the images themselves of them, at that resolution or, with levels behind
its last one, at a higher one, and to deceive a discriminator with what it makes of noise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jax import Array

from pdistill.methods.columns import Latents
from pdistill.methods.method import Method
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.balance import balanced_update, find_layer
from pdistill.methods.parts.distance import Distance, check_distance_name
from pdistill.methods.parts.generate import begin_generator, generate_few
from pdistill.methods.parts.given import check_given
from pdistill.networks import Conditioning, Network, Transfer
from pdistill.training import Learner, Optimizer, frozen, preset

LIMITS = {"adversarial": (0.01, 10.0)}  # of the adaptive weight, from the released code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pagoda(Method):
    """One update of the generator and one of the discriminator.

    The released code takes them in turn, each on batches of its own, and has the network's raw
    output for the image, which is twice the teacher's denoised one at first; here they share a
    batch, and the image is the denoised one. The "teacher"'s trajectories encode; the generator
    starts from "start", which may be smaller, or from the teacher.

    Attributes:
      grown: channels of the levels that the generator has beyond the teacher.
      latents: the encoding of images.
      distance: name of the `Distance` of an image and the one made of its latent.
      adversarial: factor on the weight of that loss. layer: path of the parameters whose gradients'
        norms make the weight, as in `find_layer`; "" for a weight of one.
      adversary, fixed, scratch, network: as in `Gan`.
    """

    optimizer: Optimizer
    adversary: Adversary
    grown: tuple[int, ...] = ()
    latents: Latents = Latents()  # noqa: RUF009
    distance: str = "pixels"
    adversarial: float = 0.2
    layer: str = ""
    fixed: str = "none"
    scratch: bool = False
    network: Mapping[str, Any] = FrozenDict()
    name: ClassVar[str] = "pagoda"

    class State(struct.PyTreeNode):
        generator: Learner
        critic: Learner
        eyes: dict[str, Any] = frozen()
        distance: Distance = frozen()
        transferred: Transfer | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self):
        preset(self.fixed)  # raises
        check_distance_name(self.distance)
        if not self.adversarial > 0:
            raise ValueError(f"adversarial must be positive; got {self.adversarial}")

    @property
    def measured_at(self):
        return (1,)

    @property
    def columns(self):
        return (self.latents,)

    def parts(self, step: int) -> tuple[str, ...]:
        return ("generator", *self.adversary.parts(step))

    def init(self, key: Array, *, teacher: Network, start: Network | None = None) -> State:
        """The generator begins as `start`, as far as that goes."""
        check_given(teacher, "teacher")
        start_key, key = jax.random.split(key)
        start = begin_generator(
            start_key, teacher, start, scratch=self.scratch, changes=self.network
        )
        if not hasattr(start.module, "grown"):
            raise ValueError(f"{type(start.module).__name__} cannot grow; a U-Net can")
        fresh_key, critic_key = jax.random.split(key)
        grown = start.with_module({"grown": self.grown}).replace(sampler="one_step")
        generator, moved = grown.init(fresh_key).taking(start, reshaped=True)
        fixed = preset(self.fixed, generator.params)
        if self.layer:
            find_layer(self.layer, generator, fixed)
        critic, eyes = self.adversary.init(
            critic_key, generator.image_shape, teacher.without_dropout()
        )
        learner = Learner.of(generator, self.optimizer, whole_batches=True, fixed=fixed)
        distance, moved = Distance.load(self.distance), None if self.scratch else moved
        return self.State(learner, critic, eyes, distance, moved)

    def step(self, state: State, batch, key, parts=("generator", "discriminator", "r1")):
        generator_key, fresh_key, *critic_keys = jax.random.split(key, 5)
        x, latent, told = batch["image"], batch["latent"], Conditioning.of(batch)
        noise_key, judge_key = jax.random.split(generator_key)
        eps, fresh = (jax.random.normal(k, latent.shape, x.dtype) for k in (noise_key, fresh_key))

        def losses(generator):
            x_hat = self.generate(generator, latent, told)
            fakes = self.generate(generator, eps, told)
            deceiving, carried = self.adversary.deceive(
                state.critic, state.eyes, fakes, told.label, judge_key
            )
            apart = jnp.mean(state.distance(x_hat, x))
            return {"reconstruction": apart, "adversarial": deceiving}, carried

        generator, metrics, carried = balanced_update(
            losses,
            state.generator,
            layer=self.layer,
            first="reconstruction",
            limits=LIMITS,
            factors={"adversarial": self.adversarial},
        )
        fakes = self.generate(generator.network, fresh, told)
        critic, more = self.adversary.update(
            state.critic.replace(carried=carried),
            state.eyes, fakes, x, told.label, tuple(critic_keys), parts,
        )  # fmt: skip
        return state.replace(generator=generator, critic=critic), metrics | more

    def generate(self, generator: Network, z: Array, told: Conditioning) -> Array:
        """Images [B, H, W, C] of noise or latents z [B, h, w, C]."""
        return generate_few(generator.denoiser(told), z, generator.schedule)

    def product(self, state: State) -> Network:
        return state.generator.averaged

    def card(self, state: State) -> dict[str, Any]:
        card = {"latents": dataclasses.asdict(self.latents)}
        return card | ({"transferred": state.transferred._asdict()} if state.transferred else {})

    def advice(self, means: dict[str, float]) -> str | None:
        return self.adversary.advice(means)

"""A codec: a KL autoencoder (Kingma & Welling 2014; Rombach et al. 2022) of the data's images."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jax import Array

from pdistill.methods.method import Method
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.balance import balanced_update
from pdistill.methods.parts.distance import Distance, check_distance_name
from pdistill.networks import Codec, Network, Posterior, build_codec
from pdistill.runtime.own_code import consent
from pdistill.training import Learner, Optimizer, frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class KlCodec(Method):
    """Encode images, draw latents, and decode them to the images again.

    The losses are those of latent diffusion: the mean absolute error of pixels and of their
    differences, which keeps edges, a distance of images, the KL divergence of the latents from a
    standard normal distribution, and a discriminator's.

    Attributes:
      network: arguments of the autoencoder, and under "name" which it is, a key of
        `networks.CODECS`; image_channels are the data's.
      kl: weight of the KL divergence, a mean over the latents.
      edges: weight of the differences of neighbouring pixels.
      distance: name of a further distance, as in `Distance`, and its weight.
      distance_weight: 0 for none.
      adversary: a discriminator of the decoder's images; None for none. adversarial: its weight.
    """

    optimizer: Optimizer
    network: Mapping[str, Any] = FrozenDict()
    kl: float = 1e-3
    edges: float = 0.5
    distance: str = "pixels"
    distance_weight: float = 0.5
    adversary: Adversary | None = None
    adversarial: float = 0.1
    name: ClassVar[str] = "codec"
    makes_codec: ClassVar[bool] = True

    class State(struct.PyTreeNode):
        codec: Learner
        critic: Learner | None
        distance: Distance = frozen()
        eyes: dict[str, Any] = frozen()

    def __post_init__(self):
        check_distance_name(self.distance)
        weights = ("kl", "edges", "distance_weight", "adversarial")
        if wrong := [name for name in weights if not getattr(self, name) >= 0]:
            raise ValueError(f"{wrong[0]} must not be negative; got {getattr(self, wrong[0])}")

    def parts(self, step: int) -> tuple[str, ...]:
        return self.adversary.parts(step) if self.adversary else ()

    def init(self, key: Array, *, model: Network) -> State:
        codec_key, critic_key = jax.random.split(key)
        codec, critic, eyes = self.blank(model.shape).init(codec_key), None, {}
        if self.adversary:
            self.adversary.check_without_teacher()
            critic, eyes = self.adversary.init(critic_key, model.shape, model)
        learner = Learner.of(codec, self.optimizer, whole_batches=True)
        return self.State(learner, critic, Distance.load(self.distance), eyes)

    def blank(self, image_shape: tuple[int, ...]) -> Codec:
        """The codec without parameters, for images [H, W, C], with latents that are not scaled.

        Raises:
          ValueError: arguments, or an image shape, that the autoencoder cannot have.
        """
        arguments = {"image_channels": image_shape[-1], **self.network}
        with consent():
            module = build_codec(arguments.pop("name", "autoencoder_residual"), arguments)
        least, channels = 4 * module.factor, module.latent_channels
        tile = math.ceil(max(image_shape[:2]) / least) * least
        codec = Codec(None, module, (0.0,) * channels, (1.0,) * channels, tile)
        codec.latent_shape(image_shape)  # raises
        return codec

    def step(self, state: State, batch, key, parts=("discriminator",)):
        noise_key, judge_key, *critic_keys = jax.random.split(key, 5)
        x, label = batch["image"], batch.get("label")

        def losses(codec):
            posterior = codec.encode(x)
            y = codec.decode(codec.latents(posterior, noise_key))
            terms, carried = (
                {
                    "reconstruction": jnp.mean(jnp.abs(y - x)),
                    "edges": edges(y - x),
                    "distance": jnp.mean(state.distance(y, x)),
                    "kl": divergence(posterior),
                },
                None,
            )
            if self.adversary:
                terms["adversarial"], carried = self.adversary.deceive(
                    state.critic, state.eyes, y, label, judge_key
                )
            return terms, (y, carried)

        factors = {
            "edges": self.edges,
            "distance": self.distance_weight,
            "kl": self.kl,
            "adversarial": self.adversarial,
        }
        codec, metrics, (y, carried) = balanced_update(
            losses, state.codec, layer="", first="reconstruction", limits={}, factors=factors
        )
        state = state.replace(codec=codec)
        if self.adversary is None:
            return state, metrics
        critic = state.critic.replace(carried=carried)
        critic, more = self.adversary.update(
            critic, state.eyes, y, x, label, tuple(critic_keys), parts
        )
        return state.replace(critic=critic), metrics | more

    def product(self, state: State) -> Codec:
        return state.codec.averaged

    def advice(self, means: dict[str, float]) -> str | None:
        return self.adversary and self.adversary.advice(means)


def edges(error: Array) -> Array:
    """Mean absolute differences of neighbours in errors [B, H, W, C], added over directions."""
    return sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2))


def divergence(posterior: Posterior) -> Array:
    """KL divergence of latents from N(0, 1), (m^2 + s^2 - 1 - log s^2) / 2, a mean over latents."""
    mean, logvar = posterior
    return jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar) / 2

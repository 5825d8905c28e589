"""What adversarial training is made of: the losses, the R1 penalty, judges on frozen features."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import diffusion
from pdistill.data.augment import AUGMENTATIONS, augment
from pdistill.features import efficientnet_lite0
from pdistill.networks import Diffuser
from pdistill.networks.discriminators import FROZEN, SPECTRAL, ProjectedDiscriminator
from pdistill.training import merge, partition

FEATURES = ("pixels", "teacher", "efficientnet_lite0")


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """What a logit costs: for the generator, and for the discriminator on either kind of image."""

    generator: Callable[[Array], Array]
    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]


LOSSES = {
    "non_saturating": AdversarialLoss(
        generator=lambda logit: jax.nn.softplus(-logit),
        real=lambda logit: jax.nn.softplus(-logit),
        fake=jax.nn.softplus,
    ),
    "hinge": AdversarialLoss(
        generator=jnp.negative,
        real=lambda logit: jax.nn.relu(1 - logit),
        fake=lambda logit: jax.nn.relu(1 + logit),
    ),
}


def over_judges(function: Callable[[Array], Array], logits: Sequence[Array]) -> Array:
    """The sum over judges of the mean of `function` over a judge's logits [B, n]: a scalar.

    D2O's code sums over the images of a device too: with b of them, a weight g of R1 there is g / b
    here.
    """
    return sum(jnp.mean(function(judged)) for judged in logits)


def r1_penalty(logits: Callable[[Array], Sequence[Array]], x: Array) -> Array:
    """Mean over images of the squared gradient of the sum of an image's logits (Mescheder 2018).

    Args:
      logits: x [B, H, W, C] -> [B, n] of each judge.
    """
    gradient = jax.grad(lambda x: sum(jnp.sum(judged) for judged in logits(x)))(x)
    return jnp.sum(jnp.square(gradient)) / len(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Config of one feature network and the heads on its maps.

    Attributes:
      features: one of FEATURES; "teacher" is the encoder of the model that training starts from.
      halvings, width, mixing, batch_norm: of `ProjectedDiscriminator`.
      conditional: the heads are told the labels.
      resolution: that images are resized to before; 0 for their own.
      logsnr: noise level at which the teacher sees the images.
    """

    features: str
    halvings: tuple[int, ...]
    width: int = 512
    mixing: int = 64
    batch_norm: bool = True
    conditional: bool = False
    resolution: int = 0
    logsnr: float = 4.0

    def __post_init__(self):
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}; got {self.features}")
        if self.width < 1 or min(self.mixing, self.resolution, *self.halvings, 0) < 0:
            raise ValueError(
                "width must be at least 1, and halvings, mixing and resolution not negative; got "
                f"{self.width}, {self.halvings}, {self.mixing} and {self.resolution}"
            )


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """Several judges of an image in [-1, 1], after the same random augmentation.

    Attributes:
      judges: at least one. diffuser: of "teacher" features.
      augmentations: of `data.augment`, and their strength.
    """

    judges: tuple[Judge, ...]
    diffuser: Diffuser
    augmentations: tuple[str, ...] = ()
    strength: float = 1.0

    def __post_init__(self):
        if not self.judges:
            raise ValueError("a discriminator needs at least one judge")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be in [0, 1]; got {self.strength}")
        for name in self.augmentations:
            if name not in AUGMENTATIONS:
                known = ", ".join(AUGMENTATIONS)
                raise ValueError(f"augmentations must be among {known}; got {name!r}")
        for judge in self.judges:
            if judge.conditional and not self.diffuser.num_labels:
                raise ValueError("a conditional judge needs a model with labels")
            if judge.features == "efficientnet_lite0":
                efficientnet_lite0.load_params()  # raises without the weights

    def init(self, key: Array, image_shape: tuple[int, ...], teacher: Any) -> tuple[Any, Any, Any]:
        """Parameters that learn, those that do not, and what evaluations carry on.

        Args:
          teacher: the diffuser's parameters.
        """
        networks = {}
        for judge in self.judges:
            if judge.features == "teacher":
                networks["teacher"] = teacher
            elif judge.features == "efficientnet_lite0":
                networks[judge.features] = efficientnet_lite0.load_params()
        params, carried = {}, {}
        x = jnp.zeros((2, *image_shape))
        for name, judge, k in zip(
            self._names, self.judges, jax.random.split(key, len(self.judges)), strict=True
        ):
            label = jnp.zeros(2, jnp.int32)
            maps = self._maps(judge, networks, x, label, k)
            variables = self._network(judge).init(k, maps, label)
            params[name], carried[name] = variables["params"], variables[SPECTRAL]
        learning, frozen = partition(params, FROZEN if self._mixes else ())
        return learning, {"heads": frozen, "networks": networks}, carried

    def __call__(
        self,
        params: Any,
        frozen: Any,
        carried: Any,
        x: Array,
        label: Array | None,
        key: Array,
        augmented: bool = True,
    ) -> tuple[list[Array], Any]:
        """Logits [B, n] of each judge for images x [B, H, W, C], and what is carried on."""
        augment_key, noise_key = jax.random.split(key)
        if augmented:
            x = augment(augment_key, x, self.augmentations, self.strength)
        params = merge(params, frozen["heads"])
        logits, new = [], {}
        for name, judge in zip(self._names, self.judges, strict=True):
            maps = self._maps(judge, frozen["networks"], x, label, noise_key)
            variables = {"params": params[name], SPECTRAL: carried[name]}
            judged, updates = self._network(judge).apply(variables, maps, label, mutable=[SPECTRAL])
            logits.append(judged)
            new[name] = updates[SPECTRAL]
        return logits, new

    @property
    def _names(self) -> list[str]:
        return [f"{i}_{judge.features}" for i, judge in enumerate(self.judges)]

    @property
    def _mixes(self) -> bool:
        return any(judge.mixing for judge in self.judges)

    def _network(self, judge: Judge) -> ProjectedDiscriminator:
        return ProjectedDiscriminator(
            judge.halvings,
            judge.width,
            judge.mixing,
            self.diffuser.num_labels if judge.conditional else 0,
            judge.batch_norm,
        )

    def _maps(self, judge: Judge, networks: Any, x: Array, label: Array | None, key: Array):
        """The judge's feature maps of x."""
        if judge.resolution:
            shape = (len(x), judge.resolution, judge.resolution, x.shape[3])
            x = jax.image.resize(x, shape, "bilinear", antialias=False)
        match judge.features:
            case "pixels":
                return (x,)
            case "efficientnet_lite0":
                x = jnp.broadcast_to(x, (*x.shape[:3], 3))
                return (
                    efficientnet_lite0.EfficientNetLite0().apply(networks[judge.features], x).maps
                )
            case "teacher":
                logsnr = jnp.full(len(x), judge.logsnr, x.dtype)
                z, _ = diffusion.noised(key, x, logsnr)
                return self.diffuser.maps(networks["teacher"], z, logsnr, label)

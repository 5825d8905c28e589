"""The discriminator: judges of an image on frozen features, as a value with its parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from pdistill import diffusion
from pdistill.data.augment import AUGMENTATIONS, augment
from pdistill.features import efficientnet_lite0
from pdistill.networks import Conditioning, Network
from pdistill.networks.discriminators import SPECTRAL, ProjectedDiscriminator

FEATURES = ("pixels", "teacher", "efficientnet_lite0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Config of one feature network and the heads on its maps.

    Attributes:
      features: one of FEATURES; "teacher" is the encoder of the teacher.
      halvings, width, mixing, batch_norm: as in `ProjectedDiscriminator`.
      conditional: the heads are told the labels.
      resolution: pixels a side that images are resized to before; 0 for their own.
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


class Discriminator(struct.PyTreeNode):
    """Several judges of an image in [-1, 1], after the same random augmentation.

    Attributes:
      params: the heads' parameters, by judge.
      judges: at least one. num_labels: number of labels that conditional judges are told.
      augmentations: names in `data.augment`, and their strength.
    """

    params: Any
    judges: tuple[Judge, ...] = struct.field(pytree_node=False)
    num_labels: int = struct.field(pytree_node=False, default=0)
    augmentations: tuple[str, ...] = struct.field(pytree_node=False, default=())
    strength: float = struct.field(pytree_node=False, default=1.0)

    def init(
        self, key: Array, image_shape: tuple[int, ...], eyes: dict[str, Any]
    ) -> tuple["Discriminator", Any]:
        """The discriminator with fresh heads, and what its evaluations carry on.

        Args:
          eyes: the feature networks, of `open_eyes`.
        """
        params, carried = {}, {}
        x, label = jnp.zeros((2, *image_shape)), jnp.zeros(2, jnp.int32)
        keys = jax.random.split(key, len(self.judges))
        for name, judge, k in zip(self._names, self.judges, keys, strict=True):
            maps = _maps(judge, eyes, x, label, k)
            variables = self._heads(judge).init(k, maps, label)
            params[name], carried[name] = variables["params"], variables[SPECTRAL]
        return self.replace(params=params), carried

    def __call__(
        self,
        eyes: dict[str, Any],
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
        logits, new = [], {}
        for name, judge in zip(self._names, self.judges, strict=True):
            maps = _maps(judge, eyes, x, label, noise_key)
            variables = {"params": self.params[name], SPECTRAL: carried[name]}
            judged, updates = self._heads(judge).apply(variables, maps, label, mutable=[SPECTRAL])
            logits.append(judged)
            new[name] = updates[SPECTRAL]
        return logits, new

    @property
    def _names(self) -> list[str]:
        return [f"{i}_{judge.features}" for i, judge in enumerate(self.judges)]

    def _heads(self, judge: Judge) -> ProjectedDiscriminator:
        return ProjectedDiscriminator(
            judge.halvings,
            judge.width,
            judge.mixing,
            self.num_labels if judge.conditional else 0,
            judge.batch_norm,
        )


def check_judges(
    judges: tuple[Judge, ...], augmentations: tuple[str, ...], strength: float
) -> None:
    """Raises ValueError for settings of a discriminator that cannot be."""
    if not judges:
        raise ValueError("a discriminator needs at least one judge")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1]; got {strength}")
    for name in augmentations:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise ValueError(f"augmentations must be among {known}; got {name!r}")
    if any(judge.features == "efficientnet_lite0" for judge in judges):
        efficientnet_lite0.load_params()  # raises without the weights


def open_eyes(judges: tuple[Judge, ...], teacher: Network) -> dict[str, Any]:
    """The frozen feature networks of judges, by name."""
    eyes = {}
    for judge in judges:
        if judge.features == "teacher":
            eyes["teacher"] = teacher
        elif judge.features == "efficientnet_lite0":
            eyes[judge.features] = efficientnet_lite0.load_params()
    return eyes


def _maps(judge: Judge, eyes: dict[str, Any], x: Array, label: Array | None, key: Array):
    """The judge's feature maps of images."""
    if judge.resolution:
        shape = (len(x), judge.resolution, judge.resolution, x.shape[3])
        x = jax.image.resize(x, shape, "bilinear", antialias=False)
    match judge.features:
        case "pixels":
            return (x,)
        case "efficientnet_lite0":
            x = jnp.broadcast_to(x, (*x.shape[:3], 3))
            return efficientnet_lite0.maps(eyes[judge.features], x)
        case "teacher":
            logsnr = jnp.full(len(x), judge.logsnr, x.dtype)
            z, _ = diffusion.noised(key, x, logsnr)
            return eyes["teacher"].features(z, logsnr, Conditioning(label=label))

"""The fake score of distribution matching, with the classifier on its encoder or the teacher's."""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from pdistill.networks import NOTHING, Conditioning, Network
from pdistill.networks.discriminators import BottleneckHead

FEATURES = ("fake_score", "teacher")


class FakeScore(struct.PyTreeNode, kw_only=True):
    """A network that learns the score of generated images and, perhaps, a classifier of them.

    The classifier is a head on one map of an encoder, which tells generated images from real ones
    (DMD2).

    Attributes:
      head: the classifier's parameters, or None.
      features: whose encoder it looks at, one of FEATURES.
      bottleneck: index of that encoder's map; what comes after an earlier one is not
        computed.
    """

    head: Any = None
    network: Network
    features: str = struct.field(pytree_node=False, default="fake_score")
    bottleneck: int = struct.field(pytree_node=False, default=-1)

    def with_classifier(self, key: Array, teacher: Network) -> "FakeScore":
        """The same with a fresh classifier.

        Raises:
          ValueError: the encoder has no such map.
        """
        z, logsnr = jnp.zeros((1, *teacher.shape)), jnp.zeros(1)
        maps = teacher.features(z, logsnr, NOTHING)
        if not -len(maps) <= self.bottleneck < len(maps):
            raise ValueError(
                f"bottleneck must be the index of one of the encoder's {len(maps)} maps; got "
                f"{self.bottleneck}"
            )
        return self.replace(head=BottleneckHead().init(key, maps[self.bottleneck]))

    def going_on(self, earlier: "FakeScore") -> "FakeScore":
        """The same with the parameters of an earlier one: a classifier's too, of the same map."""
        network, _ = self.network.taking(earlier.network)
        place = self.features, self.bottleneck
        alike = earlier.head is not None and place == (earlier.features, earlier.bottleneck)
        takes = self.head is not None and alike
        return self.replace(network=network, head=earlier.head if takes else self.head)

    def logit(self, teacher: Network, z: Array, logsnr: Array, told: Conditioning) -> Array:
        """The classifier's logit of noised images z [B, H, W, C]: [B], high for real ones."""
        if self.features == "teacher":
            maps = teacher.features(z, logsnr, told.replace(target=None))
        else:
            maps = self.network.features(z, logsnr, told)
        return BottleneckHead().apply(self.head, maps[self.bottleneck])

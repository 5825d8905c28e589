"""The interface of feature extractors, and the extractor made of a frozen network."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from pdistill.runtime.mesh import batch_sharding, make_mesh, replicated


class Extractor(Protocol):
    """Frozen features of images.

    Attributes:
      name: key in `EXTRACTORS`.
      preprocessing: a description, in words, of the steps before the network.
      fingerprint: changes with the weights; part of the key of cached statistics.
      channels: channels that its images may have; None for any.
      size: height and width that its images must have; None for any.
    """

    name: str
    preprocessing: str
    fingerprint: str
    channels: tuple[int, ...] | None
    size: int | None

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Maps uint8 [N, H, W, C] to {"features": [N, D]}; a classifier adds {"logits": [N, K]}."""
        ...

    def width(self, shape: tuple[int, ...]) -> int:
        """Number of features D of an image [H, W, C], without computing any."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """An `Extractor` made of a pure function, jitted, in batches of one shape, over all devices.

    Attributes:
      apply: (params, images uint8 [B, H, W, C]) -> {"features": [B, D], ...}.
      params: the network's parameters, any tree.
      batch_size: images in a batch, rounded up to a multiple of the devices.
    """

    name: str
    apply: Callable[[Any, Array], dict[str, Array]]
    params: Any
    preprocessing: str
    fingerprint: str
    channels: tuple[int, ...] | None
    size: int | None = None
    batch_size: int = 64

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        batch_size = -(-min(self.batch_size, len(images)) // self._mesh.size) * self._mesh.size
        parts = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            batch = jax.device_put(np.pad(batch, padding), batch_sharding(self._mesh))
            parts.append(self._jitted(self._placed, batch))
        gathered = [process_allgather(part, tiled=True) for part in parts]
        return {
            name: np.concatenate([part[name] for part in gathered])[: len(images)]
            for name in gathered[0]
        }

    def width(self, shape: tuple[int, ...]) -> int:
        image = jax.ShapeDtypeStruct((1, *shape), np.uint8)
        return jax.eval_shape(self.apply, self.params, image)["features"].shape[1]

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return make_mesh()

    @functools.cached_property
    def _placed(self) -> Any:
        return jax.device_put(self.params, replicated(self._mesh))

    @functools.cached_property
    def _jitted(self) -> Callable[[Any, Array], dict[str, Array]]:
        return jax.jit(self.apply)


def fingerprint(params: Any) -> str:
    """Computes the first 16 digits of the SHA-256 of a tree's arrays, in the tree's order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]

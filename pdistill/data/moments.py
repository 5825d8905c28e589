"""Moments of a data set's images, by a codec: means and log-variances of latents, on disk.

They are computed once, of each image and, for training with mirroring, of its mirror image;
training draws latents of them. A folder has moments.json and shards, 00000.npy and so on, each
written whole or not at all, so that what was stopped goes on where it was.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from pdistill.data.images import to_float
from pdistill.data.shards import SHARD, Shards, check_same, check_whole, map_arrays, write_array
from pdistill.data.sources import Dataset
from pdistill.runtime.files import write_atomically
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import place_rows
from pdistill.runtime.processes import in_all

ABOUT = "moments.json"
FORMAT = np.float16  # of files: its error is far below a latent's own deviation


@dataclasses.dataclass(frozen=True)
class Moments:
    """A description of a folder of moments; equal ones hold the same numbers.

    Attributes:
      codec: fingerprint of the codec. data: name of the data set and split. num: images.
      shape: a row's, [h, w, C]: mean and log-variance, then those of the mirror image.
      content: digest of the images.
    """

    codec: int
    data: str
    num: int
    shape: tuple[int, ...]
    content: str

    @property
    def shards(self) -> int:
        return -(-self.num // SHARD)

    def missing(self, folder: Path) -> list[Path]:
        """Shards that are not there.

        Raises:
          ValueError: the folder holds moments of another codec, or of other images.
        """
        check_same(folder / ABOUT, self._plain(), "moments", "the codec")
        return [p for i in range(self.shards) if not (p := folder / f"{i:05}.npy").exists()]

    def write(
        self,
        folder: Path,
        dataset: Dataset,
        codec: Any,
        *,
        flip: bool,
        batch_size: int,
        mesh: Mesh,
    ) -> None:
        """Writes the shards that are missing, from all processes together.

        Args:
          codec: a tree of arrays on the mesh; its `encode` makes of images [B, H, W, C] in [-1, 1]
            means and log-variances, [B, h, w, c] each.
          flip: also of mirrored images.
        """
        missing = [path.name for path in self.missing(folder)]
        if in_all(not missing):
            return
        first = jax.process_index() == 0
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / ABOUT, json.dumps(self._plain(), indent=2) + "\n")
        sync_global_devices(f"begins {folder}")

        @jax.jit
        def moments(codec: Any, images: Array) -> Array:
            x = to_float(images)
            both = (x, x[:, :, ::-1]) if flip else (x,)
            found = [a for each in both for a in codec.encode(each)]
            return jnp.concatenate(found, -1).astype(FORMAT)

        for i in range(self.shards):
            path, start = folder / f"{i:05}.npy", i * SHARD
            num = min(SHARD, self.num - start)
            if path.name not in missing:
                continue

            def batch(indices: np.ndarray, start: int = start, num: int = num) -> Array:
                rows = start + indices % num
                return moments(codec, place_rows(dataset.images.__getitem__, rows, mesh))

            shown = f"latents {i + 1}/{self.shards}"
            found = np.concatenate(list(gather_batches(batch, num, batch_size, mesh, shown)))
            if first:
                write_array(path, found)
        sync_global_devices(f"wrote {folder}")

    def read(self, folder: Path, channels: int | None = None) -> "Shards":
        """The rows of a whole folder, [num, h, w, C], on disk.

        Args:
          channels: the first ones, instead of all.

        Raises:
          ValueError: shards are missing, or are of something else.
        """
        check_whole(folder, self.missing(folder), self.shards)
        arrays = map_arrays(folder, [folder / f"{i:05}.npy" for i in range(self.shards)])
        found = {(a.shape[1:], a.dtype) for a in arrays}
        if found != {(self.shape, np.dtype(FORMAT))} or sum(map(len, arrays)) != self.num:
            raise ValueError(f"{folder} is damaged: its shards are not {self.shape}; delete it")
        return Shards(arrays, channels or self.shape[-1])

    def _plain(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

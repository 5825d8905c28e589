"""Columns that a teacher makes: latents of the images, and pairs of noise and samples."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from pdistill import samplers
from pdistill.data import Dataset, to_float
from pdistill.data.columns import Rows
from pdistill.data.images import average
from pdistill.networks import Codec, Conditioning, Network, Posterior
from pdistill.runtime.files import read_arrays, write_arrays
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import batch_sharding, place_rows
from pdistill.runtime.temporary import replacing
from pdistill.samplers import Solver, parse_solver


@dataclasses.dataclass(frozen=True)
class Latents:
    """Latents of the images: the noise that a teacher's probability-flow ODE leads to.

    A codec's latents are encoded as one draw an image, since the teacher has learnt drawn ones. The
    rows are float16 [N, 1, h, w, C], or [N, 2, h, w, C] with the mirrored image's behind each.

    Attributes:
      num_steps, solver: the encoding; PaGoDA's is 40 of "edm".
    """

    num_steps: int = 39
    solver: str = "heun"
    name: ClassVar[str] = "latent"
    aligned: ClassVar[bool] = True
    path: ClassVar[str] = ""

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"latents need at least one step; got num_steps={self.num_steps}")
        _deterministic(self.solver, "latents")

    @property
    def file(self) -> str:
        return f"latents_{self.solver}_{self.num_steps}.npy"

    def shapes(self, network: Network, num_images: int, flip: bool):
        shape = (num_images, 1 + flip, *network.shape)
        return {"latent": jax.ShapeDtypeStruct(shape, jnp.float16)}

    def encode(self, network: Network, x: Array, label: Array | None = None) -> Array:
        """Latents of images x [B, h, w, C] in [-1, 1], about unit normal."""
        return samplers.encode(
            network.denoiser(Conditioning(label=label)),
            x,
            schedule=network.schedule,
            num_steps=self.num_steps,
            solver=parse_solver(self.solver),
        )

    def make(
        self,
        path: Path,
        network: Network,
        dataset: Dataset,
        *,
        flip: bool,
        seed: int,
        batch_size: int,
        mesh: Mesh,
        codec: Codec | None = None,
    ) -> None:
        """Encodes all images, averaged to the network's shape, or draws of all moments."""
        check_not_prompted(network, "latents")
        factor, num = dataset.image_shape[0] // network.shape[0], len(dataset)
        key = jax.random.key(seed, impl="threefry2x32")

        def drawn(moments: Array, key: Array) -> Array:
            posterior = jnp.split(moments[None].astype(jnp.float32), 2, axis=-1)
            return codec.latents(Posterior(*posterior), key)[0]

        @jax.jit
        def latents(network: Network, images: Array, label: Array, indices: Array) -> Array:
            if codec:
                moments = jnp.split(images, 1 + flip, axis=-1)
                both = [jax.vmap(drawn)(each, _row_keys(key, indices)) for each in moments]
            else:
                x = average(to_float(images), factor)
                both = (x, x[:, :, ::-1]) if flip else (x,)
            encoded = [self.encode(network, each, label) for each in both]
            return jnp.stack(encoded, axis=1).astype(jnp.float16)

        def examples(rows: np.ndarray) -> tuple[np.ndarray, ...]:
            return *dataset.examples(rows), rows.astype(np.int32)

        def batch(indices: np.ndarray) -> Array:
            return latents(network, *place_rows(examples, indices % num, mesh))

        first = jax.process_index() == 0
        shape, start = (num, 1 + flip, *network.shape), 0
        with replacing(path, mine=first) as temporary:
            if first:
                array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for found in gather_batches(batch, num, batch_size, mesh, self.name):
                if first:
                    array[start : start + len(found)] = found
                start += len(found)
            if first:
                array.flush()
        sync_global_devices(f"latents in {path}")

    def read(self, path: Path) -> Rows:
        return {"latent": np.load(path, mmap_mode="r")}

    def batch(self, rows: dict[str, Array], mirrored: Array | None) -> Array:
        """Latents [B, h, w, C] in float32 of the images as they are, mirrored or not."""
        latents = rows["latent"]
        if mirrored is None:
            return latents[:, 0].astype(jnp.float32)
        return jnp.where(mirrored, latents[:, 1], latents[:, 0]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Noise, and the images that a teacher's sampler makes of it: for regression losses (DMD).

    Images, labels and the noise's keys are kept; the noise is drawn again when it is needed.

    Attributes:
      num: number of pairs. num_steps, solver: the teacher's, deterministic; DMD's is 18 of "edm".
      guidance: the teacher's weight; None for none.
      path: file of such pairs, made by `python -m pdistill.pairs`; "" to make them in the run.
    """

    num: int
    num_steps: int = 18
    solver: str = "heun"
    guidance: float | None = None
    path: str = ""
    name: ClassVar[str] = "pairs"
    aligned: ClassVar[bool] = False

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num must be at least 1; got {self.num}")
        samplers.check_steps(_deterministic(self.solver, "pairs"), self.num_steps)

    @property
    def file(self) -> str:
        weight = "" if self.guidance is None else f"_w{self.guidance:g}"
        return f"pairs_{self.solver}_{self.num_steps}{weight}_{self.num}.npz"

    def shapes(self, network: Network, num_images: int = 0, flip: bool = False):
        del num_images, flip
        return {
            "image": jax.ShapeDtypeStruct((self.num, *network.image_shape), jnp.float16),
            "label": jax.ShapeDtypeStruct((self.num,), jnp.int32),
            "key": jax.ShapeDtypeStruct((self.num, 2), jnp.uint32),
        }

    def make(
        self,
        path: Path,
        network: Network,
        dataset: Dataset | None = None,
        *,
        flip: bool = False,
        seed: int,
        batch_size: int,
        mesh: Mesh,
        codec: Codec | None = None,
        fingerprint: int | None = None,
    ) -> None:
        """Samples the teacher at labels that take turns; the images, float16, are not clipped.

        A codec's latents are left as they are; the file then also has its fingerprint, if given.
        """
        del dataset, flip, codec
        check_not_prompted(network, "pairs")
        key = jax.random.key(seed, impl="threefry2x32")
        num_labels = max(network.num_labels, 1)
        guidance = network.effective_guidance(self.guidance)

        @jax.jit
        def generate(network: Network, indices: Array) -> Array:
            w = None if guidance is None else jnp.full(len(indices), float(guidance))
            images = samplers.sample(
                network.denoiser(Conditioning(label=indices % num_labels, guidance=w)),
                None,
                z_init=noise(_row_keys(key, indices), network.shape),
                schedule=network.schedule,
                num_steps=self.num_steps,
                solver=parse_solver(self.solver),
            )
            return images.astype(jnp.float16)

        def batch(indices: np.ndarray) -> Array:
            return generate(network, jax.device_put(indices.astype(np.int32), batch_sharding(mesh)))

        images = list(gather_batches(batch, self.num, batch_size, mesh, self.name))
        if jax.process_index() == 0:
            pairs = {
                "image": np.concatenate(images),
                "label": np.arange(self.num, dtype=np.int32) % num_labels,
                "key": np.asarray(jax.random.key_data(key)),
            }
            made_by = {} if fingerprint is None else {"codec": np.array(fingerprint)}
            write_arrays(path, pairs | made_by)
        sync_global_devices(f"pairs in {path}")

    def read(self, path: Path) -> Rows:
        try:
            pairs = read_arrays(path)
            images, labels, key = pairs["image"], pairs["label"], pairs["key"]
            key = jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no pairs: {error}") from error
        keys = jax.random.key_data(_row_keys(key, jnp.arange(len(images))))
        return {"image": images, "label": labels, "key": np.asarray(keys)}

    def check_codec(self, path: Path, codec: Mapping[str, int] | None) -> None:
        """Raises ValueError for pairs that are latents of another codec than the one of this
        identity, or images: None. Files of earlier versions have the checksum for a fingerprint."""
        with np.load(path) as archive:
            found = int(archive["codec"]) if "codec" in archive else None
        if found not in (codec.values() if codec else (None,)):
            raise ValueError(
                f"{path} was made by a model of {'images' if found is None else 'another codec'}; "
                "make pairs with the teacher of this stage"
            )

    def batch(self, rows: dict[str, Array], mirrored: Array | None) -> dict[str, Array]:
        """{"noise": [B, h, w, C], "image": [B, H, W, C], float32; "label": [B]}."""
        del mirrored
        keys = jax.random.wrap_key_data(rows["key"], impl="threefry2x32")
        image = rows["image"].astype(jnp.float32)
        return {"noise": noise(keys, image.shape[1:]), "image": image, "label": rows["label"]}


def check_not_prompted(network: Network, what: str) -> None:
    """Raises ValueError for a network of prompts, which columns know nothing of."""
    if network.takes_text:
        raise ValueError(
            f"{what} are made with labels, and this model takes prompts; give a model without "
            "text, or leave them out"
        )


def noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """Noise [B, *shape] of a key each, [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _row_keys(key: Array, indices: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def _deterministic(text: str, what: str) -> Solver:
    """The solver of this name; ValueError for one that draws noise or jumps."""
    solver = parse_solver(text)
    if solver.stochastic or solver.jumps:
        raise ValueError(f"{what} need a deterministic solver of denoisers; got {text!r}")
    return solver


def check_rows(column: Any, rows: Rows, shapes: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raises ValueError unless a column's rows have these shapes."""
    for name, wanted in shapes.items():
        found = rows[name].shape if name in rows else "not there"
        if found != wanted.shape:
            raise ValueError(f"{column.path or column.file}: {name} is {found}, not {wanted.shape}")

"""Samples from parameters: one jitted function of fixed shape, the same for every model."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill import samplers
from pdistill.data import to_uint8
from pdistill.diffusion import Denoiser, DenoiserWithVariance, Jump
from pdistill.diffusion.guidance import acting
from pdistill.networks import NOTHING, Conditioning, Network
from pdistill.networks.checks import check_floats
from pdistill.runtime.gather import gather_batches
from pdistill.runtime.mesh import batch_sharding, batches_over, replicated
from pdistill.samplers import Cascade, Solver
from pdistill.samplers.noise import as_threefry


class SamplingError(ValueError):
    """A model whose samples cannot be used."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A way to sample: a solver, its steps, and the range that x_hat is clipped to.

    Attributes:
      num_steps: steps; of a cascade those of each resolution.
      solver: a solver; a name, as in `samplers.parse_solver`, becomes one.
      clip: range that x_hat is clipped to, or None.
    """

    num_steps: samplers.Steps
    solver: Solver | Cascade | str = samplers.Ddim()  # noqa: RUF009
    clip: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "solver", samplers.parse_solver(self.solver))
        samplers.check_steps(self.solver, self.num_steps)
        if self.clip is not None:
            low, high = self.clip
            if not float(low) < float(high):
                raise ValueError(f"clip must be (low, high) or None; got {self.clip}")

    def changed(
        self,
        num_steps: samplers.Steps | None = None,
        solver: Solver | Cascade | str | None = None,
    ) -> "Sampling":
        """The same with other steps, or another solver, where they are given."""
        return dataclasses.replace(
            self,
            num_steps=self.num_steps if num_steps is None else num_steps,
            solver=self.solver if solver is None else solver,
        )

    @property
    def nfe(self) -> int:
        """Network evaluations for one sample."""
        return samplers.num_evaluations(self.solver, self.num_steps)

    def effective_nfe(self, network: Network) -> float:
        """Number of evaluations at the full resolution that have the FLOPs of a sample's.

        It is `nfe`, but for a cascade, most of whose evaluations are of smaller images.
        """
        if not isinstance(self.solver, Cascade):
            return self.nfe
        flops = [network.flops(size) for size in network.sizes]
        counts = (samplers.num_evaluations(self.solver.solver, n) for n in self.num_steps)
        return sum(n * of_level for n, of_level in zip(counts, flops, strict=True)) / flops[-1]

    def run(
        self,
        network: Network,
        told: Conditioning = NOTHING,
        *,
        num_steps: Array | None = None,
        **start: Any,
    ) -> Array:
        """Samples [B, ...] float32, from `key` and `shape` or `z_init`, as `samplers.sample`.

        Latents are decoded by the network's codec, if it has one. A traced `num_steps` replaces the
        sampling's own.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        how = {"num_steps": num_steps, "solver": self.solver, "clip": self.clip}
        if isinstance(self.solver, Cascade):
            x = samplers.sample_cascade(network.cascade(told), **start, **how)
        else:
            function = self.function(network, told)
            x = samplers.sample(function, **start, schedule=network.schedule, **how)
        bounds = (-1, 1) if network.codec else self.clip
        x = decoded(network, x)
        return x if network.enlarged == 1 else enlarge(x, network.enlarged, bounds)

    def function(
        self, network: Network, told: Conditioning = NOTHING
    ) -> Denoiser | Jump | DenoiserWithVariance:
        """The denoiser, with its variance if the solver heeds it, or the jump to sample.

        It evaluates no pair where guidance acts on no row.
        """
        others = {"jump": network.jump, "variance": network.denoise_with_variance}
        function = others.get(self.solver.model, network.denoise)
        whole, alone = (
            functools.partial(function, told=each) for each in (told, told.replace(guidance=None))
        )
        levels = network.guidance_levels if told.guidance_levels is None else told.guidance_levels
        if told.guidance is None or network.takes_guidance or levels is None:
            return whole

        def evaluate(z: Array, logsnr: Array, *to: Array) -> Any:
            w = acting(told.guidance, levels, logsnr)
            return jax.lax.cond(jnp.any(w != 0), whole, alone, z, logsnr, *to)

        return evaluate


def latents_of(network: Network, images: Array) -> Array:
    """Images [B, H, W, C] as the network makes them: means of a codec's latents, if it has one.

    Raises:
      ValueError: images of uint8.
    """
    check_floats(images)
    return network.codec.latents(network.codec.encode(images)) if network.codec else images


def decoded(network: Network, x: Array) -> Array:
    """Images of what the network makes: of a codec's latents, clipped to [-1, 1], if it has one."""
    return jnp.clip(network.codec.decode(x), -1, 1) if network.codec else x


def enlarge(x: Array, factor: int, bounds: tuple[float, float] | None = None) -> Array:
    """Bicubic interpolation of [B, H, W, C] to factor times its size, clipped, as it overshoots."""
    batch, height, width, channels = x.shape
    large = jax.image.resize(x, (batch, factor * height, factor * width, channels), "cubic")
    return large if bounds is None else jnp.clip(large, *bounds)


def generate(
    network: Network,
    key: Array,
    indices: Array,
    told: Conditioning = NOTHING,
    *,
    sampling: Sampling,
) -> Array:
    """Samples number `indices` [B] of the stream `key`, or of a key each: [B, H, W, C] float32.

    Compiled once for one step, once for all other counts; labels and guidance weights do not
    recompile. Sample i depends on `key` and i alone: not on the batch, the mesh, or the model's
    other samples; nor on JAX's default generator.
    """
    known = network, as_threefry(key), indices, told
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(known))
    # Within another program the count is fixed, so that it can be differentiated. One step has no
    # loop, and may end at an image that is larger than its noise.
    if traced or isinstance(sampling.solver, Cascade) or sampling.num_steps == 1:
        return _generate(*known, None, sampling=sampling)
    any_count = dataclasses.replace(sampling, num_steps=max(2, sampling.solver.min_steps))
    return _generate(*known, np.int32(sampling.num_steps), sampling=any_count)


@functools.partial(jax.jit, static_argnames="sampling")
def _generate(network, key, indices, told, num_steps, *, sampling):
    keys = jax.vmap(jax.random.fold_in, (0 if key.ndim else None, 0))(key, indices)
    shape = (*indices.shape, *network.shape)
    return sampling.run(network, told, num_steps=num_steps, key=keys, shape=shape)


def generate_over(
    mesh: Mesh, network: Network, key: Array, num: int, told: Conditioning, *, sampling: Sampling
) -> Array:
    """Samples 0 .. num - 1 as `generate`, of which each device of a mesh computes a part.

    The result is whole on every device.
    """
    rows = np.arange(-(-num // mesh.size) * mesh.size) % num
    place = jax.lax.with_sharding_constraint  # also within another program
    told = jax.tree.map(lambda a: place(a[rows], batch_sharding(mesh)), told)
    with batches_over(mesh):
        images = generate(network, key, place(rows, batch_sharding(mesh)), told, sampling=sampling)
    return place(images, replicated(mesh))[:num]


_to_uint8 = jax.jit(to_uint8)
_is_finite = jax.jit(lambda images: jnp.isfinite(images).all())


def generate_batches(
    network: Network,
    key: Array,
    num: int,
    *,
    sampling: Sampling,
    told: Conditioning = NOTHING,
    batch_size: int,
    mesh: Mesh,
    description: str | None = None,
    raw: bool = False,
) -> Iterator[np.ndarray]:
    """`num` samples as uint8 [B, H, W, C], in batches of one compiled shape; float32 if `raw`.

    Sample i is number i of the stream `key`; of keys [num], number 0 of the i-th.
    B is `batch_size`, rounded up to a multiple of the devices of the mesh, over which a batch is
    cut; the last batch is filled up and cut back.
    `told` is what the network is told of each sample, NumPy arrays [num, ...] or what is indexed by
    rows as they are; `description` stands beside a progress bar, None shows no bar.

    Raises:
      SamplingError: a sample is not finite.
    """

    def draw(indices: np.ndarray) -> Array:
        place = functools.partial(jax.device_put, device=batch_sharding(mesh))
        rows = jax.tree.map(lambda a: place(a[indices % num]), told)
        keys = place(key[indices % num]) if key.ndim else key
        numbers = np.zeros_like(indices) if key.ndim else indices
        images = generate(network, keys, place(numbers), rows, sampling=sampling)
        finite = _is_finite(images)
        images = images if raw else _to_uint8(images)
        if not finite:
            raise SamplingError("the model's samples are not finite: it has diverged")
        return images

    # None ahead, so that the time of a batch is its own.
    yield from gather_batches(draw, num, batch_size, mesh, description, ahead=0)


class Timed:
    """Passes batches of `generate_batches` on, keeps the first `keep` images and every time.

    Attributes:
      first: uint8 [up to keep, H, W, C], once they have come.
    """

    def __init__(self, batches: Iterator[np.ndarray], keep: int):
        self._batches = batches
        self._keep = keep
        self._times: list[tuple[int, float]] = []  # images and seconds of each batch
        self.first: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        clock = time.monotonic()
        for images in self._batches:
            self._times.append((len(images), time.monotonic() - clock))
            if self.first is None:
                self.first = images[: self._keep]
            elif len(self.first) < self._keep:
                self.first = np.concatenate([self.first, images])[: self._keep]
            yield images
            clock = time.monotonic()

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds an image of the fastest batch after the first, which compiles.

        None for fewer than two: a busy moment may have slowed the only one.
        """
        size = self._times[0][0]  # that of all; the last one is cut back from it
        seconds = [seconds for _, seconds in self._times[1:]]
        return min(seconds) / size if len(seconds) > 1 else None

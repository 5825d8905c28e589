"""A network with what is needed to read it: its head and its schedule."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pdistill import diffusion
from pdistill.data.images import repeat
from pdistill.diffusion import Denoiser, Jump, Schedule
from pdistill.networks.registry import change_network
from pdistill.runtime import costs
from pdistill.samplers import Condition, Level


@dataclasses.dataclass(frozen=True)
class Diffuser:
    """Reads a network's output as v or as a denoiser. Static and hashable; parameters are passed.

    Labels are dropped for a network that takes none (num_labels = 0).

    Attributes:
      network: network(z [B, ...], logsnr [B], label [B] or None, train=bool) -> output; one with a
        field `guidance` or `target` that is true also takes guidance=[B] or target=[B], and one of
        several `resolutions` condition=(image [B, h, w, C], log-SNR of its noise [B]).
      head: what the output is, one of `diffusion.HEADS`.
      schedule: the noise schedule it is trained and sampled on.
      shifts: of the schedule's log-SNR at each of the network's resolutions; () for none.
    """

    network: nn.Module
    head: str
    schedule: Schedule
    shifts: tuple[float, ...] = ()

    def __post_init__(self):
        diffusion.output_channels(self.head, 1)  # raises for an unknown head
        if self.shifts and len(self.shifts) != len(self.resolutions):
            raise ValueError(
                f"shifts must be one for each of the resolutions {self.resolutions}; got "
                f"{self.shifts}"
            )
        if any(self.shifts) and not hasattr(self.schedule, "shift"):
            raise ValueError("shifts need a schedule that has a shift: the cosine schedule")

    @property
    def num_labels(self) -> int:
        """Labels the network takes; 0 if it is unconditional."""
        return getattr(self.network, "num_labels", 0)

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance weight is an input of the network, not a pair of evaluations."""
        return getattr(self.network, "guidance", False)

    @property
    def takes_target(self) -> bool:
        """Whether the log-SNR to jump to is an input of the network."""
        return getattr(self.network, "target", False)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Pixels a side of the images of a cascade, smallest first; () for a plain network."""
        return getattr(self.network, "resolutions", ())

    def at(self, size: int) -> "Diffuser":
        """The same at one resolution of its network: with the schedule that it has there."""
        if not self.shifts:
            return self
        shift = self.shifts[self.resolutions.index(size)]
        schedule = self.schedule
        if shift:
            schedule = dataclasses.replace(schedule, shift=schedule.shift + shift)
        return dataclasses.replace(self, schedule=schedule, shifts=())

    def init(self, key: Array, shape: tuple[int, ...]) -> Any:
        """Parameters for one example of `shape`; of several resolutions it is the largest."""
        params = {}
        for size in self.sizes(shape)[::-1]:
            # What they share is drawn alike for each, by its name.
            params = self.network.init(key, *self._blank(size))["params"] | params
        return params

    def sizes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the images at each resolution, smallest first, for images of `shape` [H, W, C].

        Raises:
          ValueError: the largest resolution is another.
        """
        if not self.resolutions:
            return [tuple(shape)]
        if tuple(shape[:2]) != (self.resolutions[-1],) * 2:
            raise ValueError(
                f"resolutions end at {self.resolutions[-1]}, but images are of {tuple(shape)}"
            )
        return [(size, size, shape[-1]) for size in self.resolutions]

    def v(
        self,
        params: Any,
        z: Array,
        logsnr: Array,
        label: Array | None = None,
        guidance: Array | None = None,
        target: Array | None = None,
        condition: Condition | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """v_hat [B, ...]; with dropout if a key for it is given. Others as for `denoiser`."""
        predict = self._predictor(
            diffusion.v_from_output, params, label, guidance, target, condition, dropout_key
        )
        return predict(z, logsnr)

    def denoiser(
        self,
        params: Any,
        label: Array | None = None,
        guidance: Array | None = None,
        target: Array | None = None,
        condition: Condition | None = None,
    ) -> Denoiser:
        """denoise(z [B, ...], logsnr [B]) -> x_hat, with everything else closed over.

        Args:
          label: [B]. guidance: weights w [B], or None for no guidance. Unless the network takes
            them as an input, they cost a second evaluation, without label, in the same call.
          target: [B], for a network that takes it; None for the level it starts from, where one
            that jumps is a denoiser.
          condition: for a network of several resolutions, beyond the smallest: images [B, h, w, C]
            of the resolution before, and the log-SNR of their noise [B].
        """
        return self._predictor(diffusion.x_from_output, params, label, guidance, target, condition)

    def levels(
        self, params: Any, label: Array | None = None, guidance: Array | None = None
    ) -> list[Level]:
        """Those of the cascade that its resolutions are, smallest first; arguments as before.

        Raises:
          ValueError: the network is not one of several resolutions.
        """
        if not self.resolutions:
            raise ValueError("this network has no resolutions; its model is no cascade")

        def denoiser(condition):
            return self.denoiser(params, label, guidance, condition=condition)

        return [Level(size, self.at(size).schedule, denoiser) for size in self.resolutions]

    def jump(self, params: Any, label: Array | None = None, guidance: Array | None = None) -> Jump:
        """jump(z [B, ...], logsnr_t [B], logsnr_s [B]) -> z at logsnr_s; exactly z for s = t.

        The DDIM step cos(phi_t - phi_s) z - sin(phi_t - phi_s) v, with v for g of Kim et al. (2023,
        eq. 4). v is told the target if the network takes it, and else is the denoiser's. Other
        arguments as for `denoiser`.
        """

        def jump(z, logsnr_t, logsnr_s):
            v = self._predictor(diffusion.v_from_output, params, label, guidance, logsnr_s)
            turn = diffusion.expand(diffusion.angle(logsnr_t) - diffusion.angle(logsnr_s), z)
            return jnp.cos(turn) * z - jnp.sin(turn) * v(z, logsnr_t)

        return jump

    def maps(
        self,
        params: Any,
        z: Array,
        logsnr: Array,
        label: Array | None = None,
        target: Array | None = None,
    ) -> tuple[Array, ...]:
        """What the network's encoder makes of z: maps [B, h, w, C] of z's dtype, finest first.

        Of a U-Net the last of each level on the way down, of a transformer each block's.

        Raises:
          ValueError: the network shows none.
        """
        label = label if self.num_labels else None
        inputs = {"target": target} if self.takes_target else {}
        _, sown = self.network.apply(
            {"params": params}, z, logsnr, label, **inputs, mutable=["maps"]
        )
        if "maps" not in sown:
            raise ValueError(f"{type(self.network).__name__} shows no maps of an encoder")
        return tuple(h.astype(z.dtype) for h in sown["maps"]["maps"])

    def evaluations(self, guidance: float | None) -> int:
        """Network evaluations in one call of `denoiser`."""
        return 1 if guidance is None or self.takes_guidance else 2

    def effective_guidance(self, guidance: float | None) -> float | None:
        """The weight to sample with: w = 0 needs no pair, so that it costs one evaluation."""
        return None if guidance == 0 and not self.takes_guidance else guidance

    def flops(self, shape: tuple[int, ...]) -> int:
        """Of one evaluation for one image [H, W, C], as `costs.flops`."""
        return _flops(self, tuple(shape))

    def _blank(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """Inputs of the network for one image of zeros."""
        zeros = jnp.zeros(1)
        inputs = (jnp.zeros((1, *shape)), zeros, zeros.astype(int) if self.num_labels else None)
        if shape[0] in self.resolutions[1:]:
            before = self.resolutions[self.resolutions.index(shape[0]) - 1]
            inputs += (None, None, (jnp.zeros((1, before, before, shape[-1])), zeros))
        return inputs

    def _predictor(
        self, convert, params, label, guidance, target=None, condition=None, dropout_key=None
    ):
        """(z, logsnr) -> the output as x or v, by `convert`."""
        rngs = None if dropout_key is None else {"dropout": dropout_key}

        def predict(z, logsnr, label, target, condition):
            inputs = {"guidance": guidance} if self.takes_guidance else {}
            if self.takes_target:
                inputs["target"] = target
            if condition is not None:
                inputs["condition"] = condition
            output = self.network.apply(
                {"params": params}, z, logsnr, label if self.num_labels else None,
                **inputs, train=dropout_key is not None, rngs=rngs,
            )  # fmt: skip
            z = repeat(z, output.shape[1] // z.shape[1])  # for a network that has grown
            return convert(self.head, z, output, logsnr)

        def pair(z, logsnr):
            labels = jnp.concatenate([label, jnp.full_like(label, self.num_labels)])
            z, logsnr, *others = jax.tree.map(
                lambda a: jnp.concatenate([a, a]), (z, logsnr, target, condition)
            )
            return jnp.split(predict(z, logsnr, labels, *others), 2)

        if self.evaluations(guidance) == 2:
            if label is None:
                raise ValueError("guidance is towards a label; give label too")
            return diffusion.guide(pair, guidance)
        return lambda z, logsnr: predict(z, logsnr, label, target, condition)

    def with_head(self, head: str, channels: int) -> "Diffuser":
        """The same with another head, for images of `channels` channels."""
        network = self.network.clone(out_channels=diffusion.output_channels(head, channels))
        return dataclasses.replace(self, network=network, head=head)

    def with_guidance(self) -> "Diffuser":
        """The same with a network that takes the guidance weight; it has a few more parameters."""
        return dataclasses.replace(self, network=self.network.clone(guidance=True))

    def with_network(self, arguments: Mapping[str, Any]) -> "Diffuser":
        """The same with a network of other arguments; raises as `build_network`."""
        if not arguments:
            return self
        return dataclasses.replace(self, network=change_network(self.network, arguments))

    def with_target(self, schedule: Schedule) -> "Diffuser":
        """The same with a network that takes the target of a jump, to be sampled on `schedule`.

        It has a few more parameters.

        Raises:
          ValueError: the network cannot.
        """
        if not hasattr(self.network, "target"):
            raise ValueError(f"{type(self.network).__name__} takes no target to jump to")
        return dataclasses.replace(self, network=self.network.clone(target=True), schedule=schedule)

    def without_dropout(self) -> "Diffuser":
        """The same with a network that has no dropout; parameters are shared."""
        if not getattr(self.network, "dropout", 0.0):
            return self
        return dataclasses.replace(self, network=self.network.clone(dropout=0.0))

    def param_shapes(self, shape: tuple[int, ...]) -> Any:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.tree.map(lambda leaf: leaf, _param_shapes(self, tuple(shape)))


@functools.lru_cache(maxsize=64)  # tracing a large network takes seconds
def _param_shapes(diffuser: Diffuser, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(lambda: diffuser.init(jax.random.key(0), shape))


@functools.lru_cache(maxsize=64)
def _flops(diffuser: Diffuser, shape: tuple[int, ...]) -> int:
    side = diffuser.resolutions[-1:]
    params = diffuser.param_shapes((*side, *side, shape[-1]) if side else shape)
    inputs = jax.eval_shape(lambda: diffuser._blank(shape))
    apply = lambda params, inputs: diffuser.network.apply({"params": params}, *inputs)  # noqa: E731
    return costs.flops(jax.make_jaxpr(apply)(params, inputs).jaxpr)

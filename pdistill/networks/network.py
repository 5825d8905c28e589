"""A network as a value: parameters, and what is needed to read them as v, as x_hat or as a jump."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from pdistill import diffusion
from pdistill.data.images import repeat
from pdistill.diffusion import Denoiser, Schedule
from pdistill.networks import traced
from pdistill.networks.checks import check_guide, check_network, check_variance
from pdistill.networks.conditioning import NOTHING, Conditioning, Text, guiding_weight
from pdistill.networks.registry import brief, change_network
from pdistill.networks.transfer import Transfer, transfer
from pdistill.runtime.mesh import cut_batch, in_turns, out_of_turns
from pdistill.samplers import Level, LowRes

static = functools.partial(struct.field, pytree_node=False)


class Network(struct.PyTreeNode):
    """A diffusion network with its parameters: a pytree that is called, differentiated, averaged.

    Only `params` is traced. Two networks of the same static fields share compiled functions. A
    *blank* network has None for its parameters: `init` makes them.

    Attributes:
      params: nested dictionary of arrays, or None.
      module: called as module(z [B, h, w, C], logsnr [B], told, train=bool) -> output.
      head: meaning of the output, a key of `diffusion.HEADS`.
      schedule: the noise schedule that it is trained and sampled on.
      shape: shape of the noise that one image is made from, [h, w, C].
      shifts: shifts of the schedule's log-SNR at each of the module's resolutions; () for none.
      guidance: lowest and highest weight w to sample with; None for a network that takes none.
      guidance_levels: log-SNRs (low, high) between which a pair of evaluations is guided; elsewhere
        w = 0. None for all.
      guidance_channels: the first channels, which alone are guided by a pair; None for all.
      sampler: the solver that it must be sampled with, as in `samplers.parse_solver`; "" for any
        solver.
      enlarged: factor by which images are enlarged in the end, by bicubic interpolation.
      codec: a `Codec` that decodes samples, which are its latents; None for a network of images,
        and wherever one is trained.
      guide: another network, whose predictions guidance has in the place of those without label,
        see `guided_by`; None wherever a network is trained.
    """

    params: Any
    module: nn.Module = static()
    head: str = static()
    schedule: Schedule = static()
    shape: tuple[int, ...] = static()
    shifts: tuple[float, ...] = static(default=())
    guidance: tuple[float, float] | None = static(default=None)
    guidance_levels: tuple[float, float] | None = static(default=None)
    guidance_channels: int | None = static(default=None)
    sampler: str = static(default="")
    enlarged: int = static(default=1)
    codec: Any = None
    guide: "Network | None" = None

    def __repr__(self) -> str:
        """Everything but the values of the parameters, of which the number is said."""
        count = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        fields = ", ".join(
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name not in ("params", "module", "codec")
            and getattr(self, field.name) != field.default
        )
        decoded = f", {self.codec}" if self.codec else ""
        return f"Network({brief(self.module)}, {fields}, {count:,} parameters{decoded})"

    # ---------------------------------------------------------------- predictions

    def v(
        self, z: Array, logsnr: Array, told: Conditioning = NOTHING, *, dropout_key=None
    ) -> Array:
        """v_hat [B, ...] of z [B, ...] at logsnr [B]; with dropout if a key for it is given."""
        return self._predict(diffusion.v_from_output, z, logsnr, told, dropout_key)

    def velocity(
        self, z: Array, logsnr: Array, told: Conditioning = NOTHING, *, dropout_key=None
    ) -> Array:
        """v_hat [B, ...] where a jump begins: of a second head, else `v` of a jump of no length.

        A second head's output is read as the first's. It learns nothing by `v`.
        """
        told = told.replace(target=None)
        second = self.has_velocity
        return self._predict(diffusion.v_from_output, z, logsnr, told, dropout_key, second)

    def denoise(self, z: Array, logsnr: Array, told: Conditioning = NOTHING) -> Array:
        """x_hat [B, ...] of z [B, ...] at logsnr [B].

        Labels are dropped for a network that takes none. Guidance weights cost a second evaluation,
        of the guide or without label, in the same call, unless they are an input of the network.

        Raises:
          ValueError: weights without a label or a prompt to guide towards.
        """
        return self._predict(diffusion.x_from_output, z, logsnr, told)

    def denoise_with_variance(
        self, z: Array, logsnr: Array, told: Conditioning = NOTHING
    ) -> tuple[Array, Array]:
        """x_hat as of `denoise`, and `diffusion.variance_fraction`, which guidance leaves alone.

        Raises:
          ValueError: the head is not "eps_variance".
        """
        check_variance(self)

        def convert(head, z, output, logsnr):
            x = diffusion.x_from_output(head, z, output, logsnr)
            said = diffusion.variance_fraction(output) if head == self.head else 0 * x  # a guide
            return jnp.concatenate([x, said], axis=-1)

        of_x = self.replace(guidance_channels=self.guidance_channels or z.shape[-1])
        return tuple(jnp.split(of_x._predict(convert, z, logsnr, told), 2, axis=-1))

    def jump(
        self, z: Array, logsnr_t: Array, logsnr_s: Array, told: Conditioning = NOTHING
    ) -> Array:
        """z at logsnr_s [B] from z [B, ...] at logsnr_t [B]; exactly z for s = t.

        See `diffusion.jump`: v is told the target if the network takes it, and else is the
        denoiser's, so that this is DDIM's step.
        """
        v = self.v(z, logsnr_t, told.replace(target=logsnr_s))
        return diffusion.jump(z, v, logsnr_t, logsnr_s)

    def features(self, z: Array, logsnr: Array, told: Conditioning = NOTHING) -> tuple[Array, ...]:
        """Maps [B, h, w, C] that the encoder makes of z, in z's dtype, finest first.

        A U-Net shows the last map of each level on the way down, a transformer each block's.

        Raises:
          ValueError: the network shows none.
        """
        inputs = cut_batch((z, logsnr, self._heard(told)))
        _, sown = self.module.apply({"params": self.params}, *inputs, mutable=["maps"])
        if "maps" not in sown:
            raise ValueError(f"{type(self.module).__name__} shows no maps of an encoder")
        return tuple(h.astype(z.dtype) for h in sown["maps"]["maps"])

    def denoiser(self, told: Conditioning = NOTHING) -> Denoiser:
        """denoise(z, logsnr) -> x_hat, with everything else closed over."""
        return lambda z, logsnr: self.denoise(z, logsnr, told)

    def _predict(self, convert, z, logsnr, told, dropout_key=None, second=False) -> Array:
        """The output as x or as v, by `convert`; guided by a pair of evaluations if need be."""
        if told.guidance is None or self.takes_guidance:
            return self._read(convert, z, logsnr, told, dropout_key, second)
        if told.label is None and told.text is None and not self.guide:
            raise ValueError("guidance is towards a label or a prompt; give one too")
        weight, told = guiding_weight(told, self, logsnr), told.replace(guidance=None)

        def pair(z, logsnr):
            def read(*both):
                return self._read(convert, *both, dropout_key, second)

            if self.guide:
                weaker = self.guide._read(convert, z, logsnr, told, None, False)
                return read(z, logsnr, told), weaker
            return self.with_and_without(read, z, logsnr, told)

        levels = self.guidance_levels if told.guidance_levels is None else told.guidance_levels
        return diffusion.guide(pair, weight, interval=levels, channels=self.guidance_channels)(
            z, logsnr
        )

    def with_and_without(
        self, read: Callable, z: Array, logsnr: Array, told: Conditioning
    ) -> tuple[Array, Array]:
        """read(z, logsnr, told) [B, ...] with labels and prompts and without, in one evaluation.

        Weights of guidance that a network takes are 0 without them.
        """
        free = told.without(self.num_labels)
        if told.guidance is not None:
            free = free.replace(guidance=jnp.zeros_like(told.guidance))
        return out_of_turns(read(*in_turns((z, logsnr, told), (z, logsnr, free))))

    def _read(self, convert, z, logsnr, told, dropout_key, second) -> Array:
        """The output, or the second head's, by `convert`."""
        train = dropout_key is not None
        output = self.module.apply(
            {"params": self.params}, *cut_batch((z, logsnr, self._heard(told))), train=train,
            rngs={"dropout": dropout_key} if train else None, mutable=second and ["velocity"],
        )  # fmt: skip
        if second:
            (output,) = output[1]["velocity"]["velocity"]
        z = repeat(z, output.shape[1] // z.shape[1])  # for a network that has grown
        return convert(self.head, z, output, logsnr)

    def _heard(self, told: Conditioning) -> Conditioning:
        """The part of `told` that the network listens to."""
        return Conditioning(
            label=told.label if self.num_labels else None,
            text=told.text if self.takes_text else None,
            guidance=told.guidance if self.takes_guidance else None,
            guidance_levels=told.guidance_levels if self.takes_guidance_levels else None,
            target=told.target if self.takes_target else None,
            image=told.image,
        )

    # ---------------------------------------------------------------- what it is

    @property
    def num_labels(self) -> int:
        """Number of labels it takes; 0 if it is unconditional."""
        return getattr(self.module, "num_labels", 0)

    @property
    def text_widths(self) -> tuple[int, int]:
        """Widths of the pooled embeddings and the tokens of prompts that it takes; 0 for none."""
        return tuple(getattr(self.module, name, 0) for name in ("text_pooled", "text_tokens"))

    @property
    def takes_text(self) -> bool:
        """Whether it takes prompts."""
        return any(self.text_widths)

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance weight is an input of the network, not a pair of evaluations."""
        return getattr(self.module, "guidance", False)

    @property
    def takes_guidance_levels(self) -> bool:
        """Whether the levels at which guidance acts are an input of the network."""
        return getattr(self.module, "guidance_levels", False)

    @property
    def takes_target(self) -> bool:
        """Whether the log-SNR to jump to is an input of the network."""
        return getattr(self.module, "target", False)

    @property
    def has_velocity(self) -> bool:
        """Whether it has a second head, see `velocity`."""
        return getattr(self.module, "velocity", False)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Pixels a side of the images of a cascade, smallest first; () for a plain network."""
        return getattr(self.module, "resolutions", ())

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image, [H, W, C]: larger than `shape` for a network that has grown."""
        factor = 2 ** len(getattr(self.module, "grown", ()))
        made = (factor * self.shape[0], factor * self.shape[1], self.shape[2])
        height, width, channels = self.codec.image_shape(made) if self.codec else made
        return (self.enlarged * height, self.enlarged * width, channels)

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Shapes of the images at each resolution, smallest first."""
        if not self.resolutions:
            return [self.shape]
        return [(size, size, self.shape[-1]) for size in self.resolutions]

    def evaluations(self, guidance: float | None) -> int:
        """Network evaluations in one call of `denoise` with this weight."""
        return 1 if guidance is None or self.takes_guidance else 2

    def effective_guidance(self, guidance: float | None) -> float | None:
        """The weight to sample with: w = 0 needs no pair, so that it costs one evaluation."""
        return None if guidance == 0 and not self.takes_guidance else guidance

    def flops(self, shape: tuple[int, ...] | None = None) -> int:
        """Operations of one evaluation for one image of `shape`, as `costs.flops` counts them."""
        return traced.flops(self.blank, tuple(shape or self.shape))

    # ---------------------------------------------------------------- cascades

    def at(self, size: int) -> "Network":
        """The same network at one of its resolutions, with the schedule that it has there."""
        if not self.resolutions:
            return self
        schedule = self.schedule
        if shift := dict(zip(self.resolutions, self.shifts, strict=False)).get(size):
            schedule = schedule.shifted(shift)
        return self.replace(schedule=schedule, shifts=(), shape=(size, size, self.shape[-1]))

    def cascade(self, told: Conditioning = NOTHING) -> list[Level]:
        """The cascade's resolutions with their denoisers, smallest first.

        Raises:
          ValueError: the network is not one of several resolutions.
        """
        if not self.resolutions:
            raise ValueError("this network has no resolutions; its model is no cascade")

        def denoiser(image: LowRes | None) -> Denoiser:
            return self.denoiser(told.replace(image=image))

        return [Level(size, self.at(size).schedule, denoiser) for size in self.resolutions]

    # ---------------------------------------------------------------- other networks

    @property
    def blank(self) -> "Network":
        """The same network without parameters, codec and guide: hashable."""
        return self.replace(params=None, codec=None, guide=None)

    @property
    def of_latents(self) -> "Network":
        """The same network and parameters, with a codec's latents for samples."""
        return self.replace(codec=None, enlarged=1)

    @property
    def shapes(self) -> "Network":
        """The network with the shapes of its parameters, `jax.ShapeDtypeStruct`."""
        # A copy of the tree: what is remembered stays as it is.
        alike = self.blank.replace(guidance=None, sampler="")  # of the same parameters
        return self.replace(params=jax.tree.map(lambda leaf: leaf, traced.shapes(alike)))

    def init(self, key: Array) -> "Network":
        """The network with fresh parameters.

        Raises:
          ValueError: shifts or a shape that the module cannot have.
        """
        check_network(self)
        params, module = {}, self.without_dropout().module  # whose parameters are the same
        for shape in self.sizes[::-1]:
            # What the resolutions share is drawn alike for each, by its name.
            params = traced.init(module, key, self.example(shape)) | params
        return self.replace(params=params)

    def taking(self, source: "Network", *, reshaped: bool = False) -> tuple["Network", Transfer]:
        """The network with the source's parameters where the paths are the same, and a report.

        See `transfer`, whose ValueError it raises.
        """
        params, moved = transfer(self.params, source.params, reshaped=reshaped)
        return self.replace(params=params), moved

    def with_head(self, head: str) -> "Network":
        """A blank network with another head."""
        channels = diffusion.output_channels(head, self.shape[-1])
        return self.blank.replace(module=self.module.clone(out_channels=channels), head=head)

    def with_module(self, arguments: Mapping[str, Any]) -> "Network":
        """A blank network whose module has other arguments; raises as `build_network`."""
        return self.blank.replace(module=change_network(self.module, arguments))

    def with_target(self, schedule: Schedule) -> "Network":
        """A blank network that takes the target of a jump, to be sampled on `schedule`.

        Raises:
          ValueError: the module cannot.
        """
        if not hasattr(self.module, "target"):
            raise ValueError(f"{type(self.module).__name__} takes no target to jump to")
        return self.blank.replace(module=self.module.clone(target=True), schedule=schedule)

    def guided_by(self, guide: "Network") -> "Network":
        """The network with another one that guides it, by any weight (autoguidance).

        With weight w it predicts D + w (D - D_guide) (Karras et al. 2024). A guide without labels
        makes that classifier-free guidance, by a network of its own.

        Raises:
          ValueError: a guide of other images or labels, or networks that no guide fits.
        """
        check_guide(self, guide)
        return self.replace(guide=guide.replace(codec=None, guide=None), guidance=(0.0, math.inf))

    def unguided(self) -> "Network":
        """The network as one that takes no guidance weights: as a student of it starts."""
        return self.replace(guidance=None, guide=None)

    def without_dropout(self) -> "Network":
        """The same network and parameters, with a module that has no dropout."""
        if not getattr(self.module, "dropout", 0.0):
            return self
        return self.replace(module=self.module.clone(dropout=0.0))

    def example(self, shape: tuple[int, ...]) -> tuple[Array, Array, Conditioning]:
        """Inputs of the module for one image of zeros."""
        zeros = jnp.zeros(1)
        told = Conditioning(label=zeros.astype(int) if self.num_labels else None)
        if self.takes_text:
            told = told.replace(text=Text.zeros(1, *self.text_widths))
        if shape[0] in self.resolutions[1:]:
            below = self.resolutions[self.resolutions.index(shape[0]) - 1]
            told = told.replace(image=LowRes(jnp.zeros((1, below, below, shape[-1])), zeros))
        return jnp.zeros((1, *shape)), zeros, told

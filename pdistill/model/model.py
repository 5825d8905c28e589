"""A trained denoiser with its sampler."""

import dataclasses
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdistill import samplers
from pdistill.diffusion import Denoiser, Jump
from pdistill.model.card import made_for, num_steps, works_on_latents
from pdistill.model.sampling import Sampling, generate, generate_over
from pdistill.model.text import PromptEncoder
from pdistill.networks import Conditioning, Network, Text
from pdistill.networks.checks import check_known, check_variance
from pdistill.runtime.mesh import mesh_of
from pdistill.samplers.noise import as_threefry


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained denoiser with its sampler.

    Attributes:
      network: the network with its parameters.
      card: model.json as a dictionary: what this is, where it comes from, how to sample it.
      prompts: encoder of prompts; None for a model without text.
    """

    network: Network
    card: dict[str, Any]
    prompts: PromptEncoder | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        steps = samplers.format_steps(self.sampling.num_steps)
        return (
            f"Model({self.card['stage']!r} by {self.card['method']}: images of {size}, {steps} "
            f"steps of {self.sampling.solver.name}, {self.network!r})"
        )

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that an image is made from, [h, w, C]: mostly the image's own."""
        return self.network.shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image, [H, W, C]."""
        return tuple(self.card["data"]["shape"])

    @property
    def sampling(self) -> Sampling:
        """The sampling that the model is made for."""
        return Sampling(
            num_steps=num_steps(self.card),
            solver=samplers.parse_solver(self.card["solver"]),
            clip=None if self.card["clip"] is None else tuple(self.card["clip"]),
        )

    def sampling_with(
        self,
        num_steps: samplers.Steps | None = None,
        solver: samplers.Solver | samplers.Cascade | str | None = None,
    ) -> Sampling:
        """The model's sampling with other steps, or another solver, where they are given.

        Raises:
          ValueError: steps or a solver that the model is not made for.
        """
        own = self.sampling
        sampling = own.changed(num_steps, solver)
        kinds = ("one_step", "multistep", "cascade")
        bound = own.solver.model in kinds or isinstance(own.solver, samplers.Stochastic)
        bound |= bool(self.card.get("sampler"))
        if bound and type(sampling.solver) is not type(own.solver):
            raise ValueError(
                f"this model is made for the solver {own.solver.name}; got {sampling.solver.name}: "
                "leave the solver out"
            )
        if own.solver.model == "multistep":
            known, asked = own.solver.levels, sampling.solver.levels
            if not set(asked) <= set(known):
                raise ValueError(
                    f"this model knows the log-SNRs {known} only; got {asked}: give some of its "
                    "own, or leave the solver out"
                )
        elif sampling.solver.model == "multistep":
            check_known(sampling.solver.levels, self.network.schedule)
        if sampling.solver.model == "variance":
            check_variance(self.network, sampling.num_steps)
        counts = made_for(self.card)
        if counts and sampling.num_steps not in counts:
            only = " or ".join(str(samplers.format_steps(n)) for n in counts)
            raise ValueError(
                f"this model is made for {only} steps; got num_steps={sampling.num_steps}: leave "
                "num_steps out, or load a model of other steps"
            )
        return sampling

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """Lowest and highest guidance weight; None for a model that takes none."""
        return self.network.guidance

    @property
    def needs_label(self) -> bool:
        """Whether it takes labels, and has learnt no images without one."""
        return bool(self.network.num_labels) and not self._knows_without

    @property
    def _knows_without(self) -> bool:
        """Whether it has learnt images without a label, or a prompt; a guide does not tell it."""
        if "knows_without" in self.card:
            return self.card["knows_without"]
        if self.network.guide:
            return True
        # Earlier cards do not say: guided students always had their label, maps need not have had.
        always = self.network.takes_guidance and not self.network.takes_target
        return self.guidance_range is not None and not always

    def denoiser(
        self,
        label: Array | None = None,
        guidance: Array | None = None,
        text: Text | None = None,
    ) -> Denoiser:
        """denoise(z [B, H, W, C], logsnr [B]) -> x_hat, for `samplers` or any JAX code.

        `label` and `guidance` are [B], `text` is what `prompts` makes of B prompts. Nothing is
        checked here.
        """
        return self.network.denoiser(Conditioning(label=label, text=text, guidance=guidance))

    def jump(
        self,
        label: Array | None = None,
        guidance: Array | None = None,
        text: Text | None = None,
    ) -> Jump:
        """jump(z [B, H, W, C], logsnr_t [B], logsnr_s [B]) -> z at s, see `Network.jump`.

        For `samplers.sample` with `samplers.Gamma`. Nothing is checked here.
        """
        told = Conditioning(label=label, text=text, guidance=guidance)
        return lambda z, logsnr_t, logsnr_s: self.network.jump(z, logsnr_t, logsnr_s, told)

    def sample(
        self,
        key: Array,
        num: int,
        *,
        label: Array | int | str | None = None,
        prompt: str | Sequence[str] | Text | None = None,
        num_steps: samplers.Steps | None = None,
        solver: samplers.Solver | samplers.Cascade | str | None = None,
        guidance: Array | float | None = None,
        guidance_levels: tuple[float, float] | None = None,
        latents: bool = False,
    ) -> Array:
        """Generates `num` images; compiled once for each `num` and solver, and for one step.

        Each device of a mesh that the parameters are spread over makes a part of the images.

        Args:
          label: a label for all, or one for each, in 0 .. num_labels - 1 or by `label_names`; None
            for a network without labels. A network with labels takes None as "no label", which only
            one that was trained with some left out has learnt: there is a warning for others.
          prompt: a prompt for all, or one for each, for a model with text: strings, or what
            `prompts` has made of `num` of them; "" and None are "no prompt".
          guidance: weight w for all, or one for each, in `guidance_range`; None is no guidance.
            Other weights do not recompile.
          guidance_levels: log-SNRs (low, high) between which guidance acts, for a model that is
            guided by two evaluations or takes them; None for all, or as the model's card says.
          latents: leave latents as they are, [num, h, w, c].
          num_steps, solver: instead of the model's own; a solver or its name, such as "heun". A
            cascade takes a tuple of steps, those of each resolution.

        Returns:
          [num, H, W, C] float32 in [-1, 1]; latents, without a codec. Images of a model of pixels
          whose card has no `clip`, or whose solver adds to the clipped ones, may go beyond. Image i
          depends on `key` and i, not on `num`.

        Raises:
          ValueError: latents of a model of images, a seed for a key, bad counts, a label or weight
            out of range or for a model without.
        """
        key, told = as_threefry(key), self.told(num, label, guidance, guidance_levels, prompt)
        if latents and not works_on_latents(self.card):
            raise ValueError("this model makes images, not latents; leave latents out")
        if key.ndim:
            raise ValueError(f"key must be one key, such as jax.random.key(0); got {key.shape}")
        sampling = self.sampling_with(num_steps, solver)
        network = self.network.of_latents if latents else self.network
        if mesh := mesh_of(network.params):
            return generate_over(mesh, network, key, num, told, sampling=sampling)
        return generate(network, key, jnp.arange(num), told, sampling=sampling)

    def told(
        self,
        num: int,
        label: Array | int | str | None = None,
        guidance: Array | float | None = None,
        guidance_levels: tuple[float, float] | None = None,
        prompt: str | Sequence[str] | Text | None = None,
    ) -> Conditioning:
        """Makes the conditioning of `num` images of the arguments of `sample`; raises as that."""
        if not isinstance(num, numbers.Integral):
            raise ValueError(f"num must be an integer; got {num!r}")
        if num < 1:
            raise ValueError(f"num must be at least 1; got {num}")
        label = self._labels(label, num)
        text, prompted = self._text(prompt, num, guided=guidance is not None)
        return Conditioning(
            label=label,
            text=text,
            guidance=self._weights(guidance, label is not None or prompted, num),
            guidance_levels=self._levels(guidance_levels, guidance, num),
        )

    def _labels(self, label, num):
        num_labels = self.network.num_labels
        if label is None:
            if self.needs_label:
                warnings.warn(
                    "this model was told the label of every image that it was trained on, and not "
                    f"what images without one are; give label, in 0 .. {num_labels - 1}",
                    stacklevel=4,
                )
            return None
        if not num_labels:
            raise ValueError("this model has no labels; leave label out")
        label = self.label_numbers(label)
        traced = _is_traced(label)
        label = jnp.asarray(label) if traced else np.asarray(label)
        if not jnp.issubdtype(label.dtype, jnp.integer) or label.shape not in ((), (num,)):
            raise ValueError(f"label must be one integer, or {num} of them; got {label}")
        if not traced and (label.min() < 0 or label.max() >= num_labels):
            raise ValueError(f"labels must be in 0 .. {num_labels - 1}; got {label}")
        return jnp.broadcast_to(jnp.asarray(label, jnp.int32), (num,))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, of the data set that it was trained on; () where they have none."""
        return tuple(self.card.get("label_names", ()))

    def label_numbers(self, label: Any) -> Any:
        """Returns labels, of which names, one or a list of them, become numbers.

        Raises:
          ValueError: a name that no label has.
        """
        if isinstance(label, str):
            if label not in self.label_names:
                known = ", ".join(self.label_names[:20]) or "none"
                raise ValueError(f"no label is called {label!r}; names of labels: {known}")
            return self.label_names.index(label)
        if isinstance(label, list | tuple):
            return [self.label_numbers(each) for each in label]
        return label

    def _text(self, prompt, num, guided):
        """Makes what the network is told; tells if any is a prompt, as `guided` has to know."""
        text = None if prompt is None else self._encoded(prompt, num)
        always = self.network.takes_text and not self._knows_without
        # Before the broadcast, while prompts are NumPy's: to look at a device's waits for it.
        lacking = _lacking(text) if always or guided else np.zeros(1, bool)
        if always and lacking.any():
            warnings.warn(
                "this model was told a prompt for every image, and samples without one are of "
                "nothing that it has learnt; give prompt",
                stacklevel=4,
            )
        if text is not None:
            text = jax.tree.map(lambda a: jnp.broadcast_to(a, (num, *a.shape[1:])), text)
        return text, not lacking.all()

    def _encoded(self, prompt, num):
        if not self.network.takes_text:
            raise ValueError("this model takes no prompts; leave prompt out")
        if isinstance(prompt, Text):
            text = prompt
        elif self.prompts is None:
            raise ValueError("this model does not say how it takes prompts; give a Text")
        else:
            text = self.prompts(prompt)
        if len(text.mask) not in (1, num):
            raise ValueError(f"prompt must be one, or {num} of them; got {len(text.mask)}")
        return text

    def _weights(self, guidance, towards, num):
        if guidance is None:
            return None
        guidance = jnp.asarray(guidance) if _is_traced(guidance) else guidance
        self.check_guidance(guidance)
        network = self.network
        # An input of weights that has neither was learnt from a teacher that a guide led.
        led = network.takes_guidance and not (network.num_labels or network.takes_text)
        if not (towards or network.guide or led):
            what = "prompt" if network.takes_text else "label"
            raise ValueError(f"guidance is towards a {what}; give {what} too")
        if np.shape(guidance) not in ((), (num,)):
            raise ValueError(f"guidance must be one weight, or {num} of them; got {guidance}")
        return jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), (num,))

    def _levels(self, levels, guidance, num):
        if levels is None:
            return None
        if guidance is None:
            raise ValueError("guidance_levels are where guidance acts; give guidance too")
        if self.network.takes_guidance and not self.network.takes_guidance_levels:
            raise ValueError(
                "this model's guidance acts where it was trained with it; leave guidance_levels out"
            )
        low, high = levels
        if not _is_traced(levels) and not low < high:
            raise ValueError(f"guidance_levels must be log-SNRs, (low, high); got {levels}")
        return jnp.broadcast_to(jnp.asarray(levels, jnp.float32), (num, 2))

    def check_guidance(self, guidance: Array | float) -> None:
        """Raises ValueError for weights that the model does not take."""
        if self.guidance_range is None:
            raise ValueError(
                "this model was not trained for guidance; leave guidance out, or load it with a "
                "guide, another model"
            )
        low, high = self.guidance_range
        if _is_traced(guidance):
            return
        if not (np.min(guidance) >= low and np.max(guidance) <= high):  # also for NaN
            raise ValueError(f"guidance must be in [{low:g}, {high:g}]; got {guidance}")


def _lacking(text: Text | None) -> np.ndarray:
    """Tells which rows have no prompt, bool [B]; none of a traced mask, as far as is known."""
    if text is None:
        return np.ones(1, bool)
    traced = _is_traced(text.mask)
    return np.zeros(len(text.mask), bool) if traced else ~np.asarray(text.mask).any(1)


def _is_traced(a: Any) -> bool:
    """Whether a number, or one in a list or an array, is traced, so that it cannot be checked."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(a))

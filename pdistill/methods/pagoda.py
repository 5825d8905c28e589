"""PaGoDA (Kim et al. 2024): a one-step decoder that grows beyond its teacher's resolution.

The teacher's probability-flow ODE encodes real images, reduced to its resolution, to latents; a
generator learns to make the images themselves of them, at that resolution or, with levels behind
its last one, at a higher one, and to deceive a discriminator with what it makes of noise.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array

from pdistill.methods.adversary import AdversarialStage, Adversary
from pdistill.methods.balance import balanced_update
from pdistill.methods.distances import Distance
from pdistill.methods.generator import generate_few
from pdistill.methods.latents import LatentsConfig
from pdistill.methods.stage import Round, find_parent
from pdistill.networks import Diffuser
from pdistill.training import PRESETS, Learner, Optimizer, TrainState, count, merge, partition
from pdistill.training.transfer import transfer

LIMITS = {"adversarial": (0.01, 10.0)}  # of the adaptive weight, from the released code


@dataclasses.dataclass(frozen=True)
class Pagoda:
    """One update of the generator and one of the discriminator.

    The released code takes them in turn, each on batches of its own, and has the network's raw
    output for the image, which is twice the teacher's denoised one at first; here they share a
    batch, and the image is the denoised one.

    Attributes:
      diffuser: the generator's; its network may have `grown`.
      frozen: patterns of the parameters that stay as they are, as in `training.partition`.
      distance: of an image and what is made of its latent.
      adversarial: factor on the weight of that loss. layer: path of the parameters whose gradients'
        norms make the weight; "" for a weight of one.
    """

    diffuser: Diffuser
    optimizer: Optimizer
    adversary: Adversary
    frozen: tuple[str, ...] = ()
    distance: Distance = Distance("pixels")  # noqa: RUF009
    adversarial: float = 0.2
    layer: str = ""

    def __post_init__(self):
        self.optimizer.check_whole_batches("optimizer")
        if not self.adversarial > 0:
            raise ValueError(f"adversarial must be positive; got {self.adversarial}")

    def init(
        self,
        key: Array,
        start: Any,
        teacher: Any = None,
        *,
        image_shape: tuple[int, ...],
        noise_shape: tuple[int, ...],
    ) -> TrainState:
        """A generator that begins as `start`, as far as that goes.

        Args:
          start: parameters of the teacher or of a smaller generator. teacher: the teacher's, for
            judges that see with it; None for `start`.
        """
        generator_key, key = jax.random.split(key)
        params, _ = transfer(self.diffuser.init(generator_key, noise_shape), start, reshaped=True)
        learning, held = partition(params, self.frozen)
        teacher = start if teacher is None else teacher
        discriminator, frozen = self.adversary.init(key, image_shape, teacher)
        learners = {
            "student": Learner.create(learning, self.optimizer),
            "discriminator": discriminator,
        }
        held = {"student": held, "discriminator": frozen, "distance": self.distance.init()}
        return TrainState.create(learners, held)

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """`batch["latent"]` [B, h, w, C] are the latents of its images."""
        student_key, noise_key, *judge_keys = jax.random.split(key, 5)
        x, label = batch["image"], batch.get("label")
        state, metrics = self._update_generator(state, x, batch["latent"], label, student_key)
        eps = jax.random.normal(noise_key, batch["latent"].shape, x.dtype)
        fakes = self._generate(state.learners["student"].params, state, eps, label)
        state, more = self.adversary.update(state, fakes, x, label, tuple(judge_keys))
        return state, metrics | more

    def _update_generator(self, state, x, latent, label, key):
        noise_key, judge_key = jax.random.split(key)
        eps = jax.random.normal(noise_key, latent.shape, x.dtype)

        def losses(params):
            x_hat = self._generate(params, state, latent, label)
            fakes = self._generate(params, state, eps, label)
            apart = self.distance(state.frozen["distance"], x_hat, x)
            deceiving, carried = self.adversary.generator_loss(state, fakes, label, judge_key)
            return {"reconstruction": jnp.mean(apart), "adversarial": deceiving}, carried

        student, metrics, carried = balanced_update(
            losses, state.learners["student"], self.optimizer, state.step, layer=self.layer,
            first="reconstruction", limits=LIMITS, factors={"adversarial": self.adversarial},
        )  # fmt: skip
        discriminator = state.learners["discriminator"].replace(carried=carried)
        learners = {"student": student, "discriminator": discriminator}
        return state.replace(learners=learners), metrics

    def _generate(self, params, state, z, label):
        denoise = self.diffuser.denoiser(merge(params, state.frozen["student"]), label)
        return generate_few(denoise, z, self.diffuser.schedule)

    def export(self, state: TrainState) -> Any:
        """The generator's parameters: the moving average of those that learn, and the others."""
        return merge(state.learners["student"].ema, state.frozen["student"])

    def advice(self, means: dict[str, float]) -> str | None:
        """The adversary's."""
        return self.adversary.advice(means)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PagodaStage(AdversarialStage):
    """Config of the stage: a generator of images of `resolution`, one round.

    Attributes:
      teacher: name of the stage whose trajectories encode. start: of a stage with a smaller
        generator to start from; "" for the teacher.
      grown: channels of the levels that the generator has beyond the teacher.
      latents: how images are encoded.
      frozen: what does not learn, a key of `training.PRESETS`.
      distance: a name, as in `Distance`. adversarial, layer: of `Pagoda`.
      select: metric by which, at each save, the model to export is chosen; "" for the last one.
    """

    teacher: str
    start: str = ""
    grown: tuple[int, ...] = ()
    latents: LatentsConfig = LatentsConfig()  # noqa: RUF009
    frozen: str = "none"
    distance: str = "pixels"
    adversarial: float = 0.2
    layer: str = ""
    loss: str = "hinge"
    r1: float = 0.0
    select: str = ""

    def rounds(self, diffuser, image_shape, earlier):
        teacher = find_parent(earlier, self.teacher)
        start = find_parent(earlier, self.start, one_step=True) if self.start else teacher
        noise_shape, judging = teacher.image_shape, teacher.method.diffuser.without_dropout()
        if not hasattr(judging.network, "grown"):
            raise ValueError(f"{type(judging.network).__name__} cannot grow; UNet can")
        factor = 2 ** len(self.grown)
        if image_shape[0] != factor * noise_shape[0]:
            raise ValueError(
                f"with {len(self.grown)} levels of `grown`, {teacher.name!r} of {noise_shape[0]} "
                f"pixels grows to {factor * noise_shape[0]}, not to {image_shape[0]}"
            )
        if self.frozen not in PRESETS:
            raise ValueError(f"frozen must be one of {', '.join(PRESETS)}; got {self.frozen!r}")
        diffuser = judging.with_network({"grown": self.grown})
        shapes = diffuser.param_shapes(noise_shape)
        learning, held = partition(shapes, PRESETS[self.frozen])
        if self.layer and self.layer not in traverse_util.flatten_dict(learning, sep="/"):
            raise ValueError(f"layer: no parameters that learn have the path {self.layer!r}")
        method = Pagoda(
            diffuser,
            self.optimizer_for(self.loop),
            self.adversary(judging),
            PRESETS[self.frozen],
            Distance(self.distance),
            self.adversarial,
            self.layer,
        )
        init = functools.partial(method.init, image_shape=image_shape, noise_shape=noise_shape)
        parents = (start,) if start is teacher else (start, teacher)
        of_parents = [p.method.diffuser.param_shapes(noise_shape) for p in parents]
        _, moved = transfer(shapes, of_parents[0], reshaped=True)
        self.check_judges(init, *of_parents)
        return [
            Round(
                self.name,
                "pagoda",
                method,
                init,
                self.loop,
                (1,),
                solver="one_step",
                parent=start.name,
                teacher=None if start is teacher else teacher.name,
                trainable_fraction=count(learning) / math.fsum(map(count, (learning, held))),
                select=self.select,
                latents=self.latents,
                noise_shape=noise_shape,
                card={"transferred": moved._asdict()},
            )
        ]

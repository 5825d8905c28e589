"""Distribution matching (DMD, Yin et al. 2023; DMD2, Yin et al. 2024): match what is generated.

A generator learns from the difference of two scores of its noised images: the teacher's, which is
that of real images, and a fake score, learnt meanwhile from generated ones.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.core import FrozenDict
from jax import Array
from jax.lax import stop_gradient

from pdistill import diffusion
from pdistill.diffusion import KarrasSchedule, check_data_std
from pdistill.diffusion.schedules import ends
from pdistill.methods.columns import Pairs
from pdistill.methods.method import Method
from pdistill.methods.parts.adversarial import FAKE, GENERATOR, REAL
from pdistill.methods.parts.fake_score import FEATURES, FakeScore
from pdistill.methods.parts.generate import begin_generator, generator_solver, simulate_inputs
from pdistill.methods.parts.given import check_given, check_guidable
from pdistill.methods.parts.times import check_interval, uniform_times, within
from pdistill.networks import Conditioning, Network
from pdistill.samplers import Multistep
from pdistill.training import Learner, Optimizer, frozen, value_and_grad, vjp

NORMALISERS = ("dmd2", "dmd", "none")
LOSS = "non_saturating"  # the only adversarial loss of DMD2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dmd(Method):
    """Every update is one of the fake score; every K-th also one of the generator, before it.

    Both learn from the same fresh images of the generator, which starts from "start", or from the
    "teacher". If "start" was made by this method, its fake score and, where it looks at the same
    map, its classifier go on too, as in DMD2's code.

    Attributes:
      fake_optimizer: for the fake score and, on its encoder, the classifier.
      fake_updates: K, updates of the fake score for one of the generator.
      generated_at: log-SNRs at which the generator is called, rising; more than one make it a
        multistep generator, trained on inputs that it would meet in sampling (backward simulation).
        They must divide the batch, and best each device's part of it. () for the end of its
        schedule alone, where a one-step generator is sampled.
      matching, adversarial, regression: weights of the generator's losses; 0 leaves one out.
      discriminating: weight of the classifier's loss beside the fake score's.
      normaliser: kind of the matching gradient, one of NORMALISERS, see `matching_gradient`.
      guidance: weight w of the teacher's score.
      features, bottleneck: the map that the classifier looks at, see `FakeScore`; a U-Net's is the
        last one.
      told_level: the fake score is told at which of `generated_at` its images were made. In the
        paper
        it is not: then the images of all levels together match the data, and one level's may be too
        dark as another's are too bright.
      noise: levels of all noised images, t in [0, 1]; for matching, t in `matching_times`. The
        default, EDM's, leaves out those that the teacher does not know. Images are not scaled
        to unit deviation here, so that EDM's sigma is ours with noise.data_std = 1.
      data_std: deviation of the images that the fake score's loss is weighted for, as in
        `diffusion.v_weight`; DMD2's code has 0.5.
      pairs: noise and samples of the teacher for the regression loss.
      scratch, network: as in `Gan`.
    """

    optimizer: Optimizer
    fake_optimizer: Optimizer
    fake_updates: int = 5
    generated_at: tuple[float, ...] = ()
    matching: float = 1.0
    adversarial: float = 0.0
    regression: float = 0.0
    discriminating: float = 1e-2
    normaliser: str = "dmd2"
    guidance: float = 0.0
    features: str = "fake_score"
    bottleneck: int = -1
    told_level: bool = False
    noise: KarrasSchedule = KarrasSchedule()  # noqa: RUF009
    data_std: float = 1.0
    matching_times: tuple[float, ...] = (0.02, 0.98)
    pairs: Pairs | None = None
    scratch: bool = False
    network: Mapping[str, Any] = FrozenDict()
    name: ClassVar[str] = "dmd"

    class State(struct.PyTreeNode):
        generator: Learner
        fake_score: Learner
        teacher: Network = frozen()
        labels: Array = frozen()

    def __post_init__(self):
        if self.generated_at:
            Multistep(self.generated_at)  # raises unless they rise
        if self.told_level and len(self.generated_at) <= 1:
            raise ValueError("told_level is for several levels in generated_at")
        for name, known in (("normaliser", NORMALISERS), ("features", FEATURES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.fake_updates < 1:
            raise ValueError(f"fake_updates must be at least 1; got {self.fake_updates}")
        weights = self.matching, self.adversarial, self.regression
        every = (*weights, self.discriminating, self.guidance)
        if not all(0 <= weight < math.inf for weight in every) or not any(weights):
            raise ValueError(
                "weights must be finite and not be negative, nor matching, adversarial and "
                f"regression all zero; got {self}"
            )
        check_data_std(self.data_std)
        check_interval("matching_times", self.matching_times, 0.0, 1.0)
        if bool(self.regression) != bool(self.pairs):
            raise ValueError("regression and pairs go together; give both or none")

    @property
    def measured_at(self):
        return (len(self.generated_at) or 1,)

    @property
    def columns(self):
        return (self.pairs,) if self.pairs else ()

    def parts(self, step: int) -> tuple[str, ...]:
        return ("generator", "fake_score") if step % self.fake_updates == 0 else ("fake_score",)

    def over(self, num_updates: int) -> "Dmd":
        """Each optimizer is annealed over the updates of its own network."""
        generator_updates = -(-num_updates // self.fake_updates)
        return dataclasses.replace(
            self,
            optimizer=dataclasses.replace(self.optimizer, num_updates=generator_updates),
            fake_optimizer=dataclasses.replace(self.fake_optimizer, num_updates=num_updates),
        )

    def check_batch(self, batch_size: int) -> None:
        super().check_batch(batch_size)
        if batch_size % (len(self.generated_at) or 1):
            raise ValueError(
                f"loop.batch_size must be a multiple of the {len(self.generated_at)} levels in "
                f"generated_at; got {batch_size}"
            )

    def init(
        self,
        key: Array,
        *,
        teacher: Network,
        start: Network | None = None,
        fake_score: FakeScore | None = None,
        labels: Sequence[int] | None = None,
    ) -> State:
        """The fake score starts as the teacher, or goes on as `fake_score`.

        Args:
          labels: labels to generate images of; None for all of the network's. They are traced, so
            that students of parts of equal size share one compiled step.
        """
        self._check(teacher)
        teacher, (start_key, key) = teacher.without_dropout(), jax.random.split(key)
        generator = begin_generator(
            start_key, teacher, start, scratch=self.scratch, changes=self.network
        ).replace(sampler=generator_solver(self.generated_at))

        fresh_key, head_key = jax.random.split(key)
        network = teacher.unguided().replace(sampler="")
        if self.told_level:
            told = network.with_target(teacher.schedule).replace(module=_told(teacher.module))
            network, _ = told.init(fresh_key).taking(network)
        fake = FakeScore(network=network, features=self.features, bottleneck=self.bottleneck)
        if self.adversarial:
            fake = fake.with_classifier(head_key, teacher)
        if fake_score and not self.scratch and _of_the_same_teacher(fake_score.network, teacher):
            fake = fake.going_on(fake_score)
        labels = range(generator.num_labels) if labels is None else labels
        return self.State(
            Learner.of(generator, self.optimizer),
            Learner.of(fake, self.fake_optimizer, averaged=False),
            teacher,
            jnp.array(labels, jnp.int32),
        )

    def step(self, state: State, batch, key, parts=("generator", "fake_score")):
        label_key, input_key, generator_key, fake_key = jax.random.split(key, 4)
        x, generator, metrics = batch["image"], state.generator.network, {}
        told = Conditioning.of(batch)
        if told.text is None and generator.num_labels:  # else the labels of the prompts' images
            told = Conditioning(label=jax.random.choice(label_key, state.labels, (len(x),)))
        z, level = simulate_inputs(generator.denoiser, self.levels(generator), x, told, input_key)
        rows = z, level, told

        if "generator" in parts:
            images, pull_back = vjp(lambda net, rows: net.denoise(*rows), state.generator, rows)
            learner, metrics = self.update_generator(
                state, images, pull_back, rows, batch.get("pairs"), generator_key
            )
            state = state.replace(generator=learner)
        else:
            images = generator.denoise(*rows)

        fake, more = self.update_fake_score(state, stop_gradient(images), rows, batch, fake_key)
        brightness = images.mean(axis=tuple(range(1, images.ndim)))
        more |= {"brightness": brightness.mean(), "brightness_std": brightness.std()}
        return state.replace(fake_score=fake), metrics | more

    def levels(self, generator: Network) -> tuple[float, ...]:
        """Log-SNRs at which the generator is called."""
        return self.generated_at or ends(generator.schedule)[:1]

    def update_generator(self, state: State, images, pull_back, rows, pairs, key):
        """One update on the slopes of the losses at the images."""
        matching_key, adversarial_key = jax.random.split(key)
        _, level, told = rows
        loss, slope, metrics = jnp.zeros((), images.dtype), jnp.zeros_like(images), {}
        if self.matching:
            gradient = self.gradient(state, images, level, told, matching_key)
            part = self.matching * gradient / gradient.size
            loss, slope = loss + self.matching * jnp.mean(gradient**2) / 2, slope + part
            metrics["matching_grad_norm"] = jnp.linalg.norm(part.ravel())
        if self.adversarial:

            def deceiving(images):
                noisy = self.noised(images, state, *jax.random.split(adversarial_key))
                logit = self.logit(state.fake_score.network, state, noisy, level, told)
                return self.adversarial * jnp.mean(GENERATOR[LOSS](logit))

            value, part = jax.value_and_grad(deceiving)(images)
            loss, slope = loss + value, slope + part
            metrics |= {"adversarial": value, "gan_grad_norm": jnp.linalg.norm(part.ravel())}
        grads = pull_back(slope)
        if self.regression:
            value, more = value_and_grad(self.regress, state.generator, pairs)
            loss, grads = loss + value, jax.tree.map(jnp.add, grads, more)
            metrics["regression"] = value
        learner, norms = state.generator.update(grads)
        return learner, {"loss": loss, **norms, **metrics}

    def gradient(self, state: State, images, level, told, key) -> Array:
        """The matching gradient at images [B, H, W, C], see `matching_gradient`."""
        time_key, noise_key = jax.random.split(key)
        z, logsnr, _ = self.noised(images, state, time_key, noise_key, self.matching_times)
        w = jnp.full(len(z), self.guidance, z.dtype) if self.guidance else None
        real = state.teacher.denoise(z, logsnr, told.replace(guidance=w))
        fake = state.fake_score.network.network.denoise(z, logsnr, self.fake_told(told, level))
        return matching_gradient(images, real, fake, logsnr, self.normaliser)

    def regress(self, generator: Network, pairs, key=None) -> Array:
        """Squared distance, in pixels, of the generator's images to what the teacher's sampler
        made of the same noise (DMD, section 3.3, where it is LPIPS: its VGG16 is not here)."""
        del key
        level = jnp.full(len(pairs["noise"]), self.levels(generator)[0], pairs["noise"].dtype)
        x_hat = generator.denoise(pairs["noise"], level, Conditioning(label=pairs["label"]))
        return self.regression * jnp.mean(jnp.square(x_hat - pairs["image"]))

    def update_fake_score(self, state: State, images, rows, batch, key):
        """One update on denoising generated images and, with a classifier, telling them apart."""
        time_key, noise_key, fake_key, real_key = jax.random.split(key, 4)
        z, logsnr, eps = self.noised(images, state, time_key, noise_key)
        v = diffusion.v_target(images, eps, logsnr)
        _, level, told = rows
        learner, x, told_x = state.fake_score, batch["image"], Conditioning.of(batch)

        def loss(fake: FakeScore, rows, key):
            z, logsnr, v, noisy, noisy_x, level, told, told_x = rows
            v_hat = fake.network.v(z, logsnr, self.fake_told(told, level))
            losses = diffusion.denoising_loss(v_hat, v, logsnr, data_std=self.data_std)
            denoising = jnp.mean(losses)
            if not self.adversarial:
                return denoising, {"fake_score_loss": denoising}
            generated = self.logit(fake, state, noisy, level, told)
            real = self.logit(fake, state, noisy_x, level, told_x)
            classifying = jnp.mean(FAKE[LOSS](generated)) + jnp.mean(REAL[LOSS](real))
            return denoising + self.discriminating * classifying, {
                "fake_score_loss": denoising,
                "discriminator_loss": classifying,
                "real_logit": real.mean(),
                "fake_logit": generated.mean(),
            }

        noisy = noisy_x = None
        if self.adversarial:
            noisy = self.noised(images, state, *jax.random.split(fake_key))
            noisy_x = self.noised(x, state, *jax.random.split(real_key))
        everything = (z, logsnr, v, noisy, noisy_x, level, told, told_x)
        (_, metrics), grads = value_and_grad(loss, learner, everything, has_aux=True)
        learner, norms = learner.update(grads)
        return learner, metrics | {"fake_score_grad_norm": norms["grad_norm"]}

    def logit(self, fake: FakeScore, state: State, noisy, level, told) -> Array:
        """The classifier's logit of images that are `noised`: [B]."""
        z, logsnr, _ = noisy
        return fake.logit(state.teacher, z, logsnr, self.fake_told(told, level))

    def fake_told(self, told: Conditioning, level) -> Conditioning:
        """The fake score's conditioning: with the level of the images, if `told_level`."""
        return told.replace(target=level) if self.told_level else told

    def noised(self, x, state: State, time_key, noise_key, times=(0.0, 1.0)):
        """Noised images at random levels that the teacher knows, the levels [B], and the noise."""
        low, high = times
        t = uniform_times(time_key, len(x), stratified=True, dtype=x.dtype)
        if len(self.generated_at) > 1:  # they come in turn, the times in order
            t = jax.random.permutation(jax.random.fold_in(time_key, 1), t)
        levels = within("noise", self.noise, state.teacher.schedule)
        logsnr = levels(low + (high - low) * t)
        z, eps = diffusion.noised(noise_key, x, logsnr)
        return z, logsnr, eps

    def product(self, state: State) -> Network:
        return state.generator.averaged

    def _check(self, teacher: Network) -> None:
        """Raises ValueError for a teacher that these settings cannot use."""
        check_given(teacher, "teacher")
        within("noise", self.noise, teacher.schedule)  # raises
        if self.guidance or (self.pairs and self.pairs.guidance is not None):
            check_guidable(teacher, "teacher")
        if self.told_level and teacher.takes_target:
            raise ValueError("told_level: the teacher takes a target of its own")
        noisiest, _ = ends(teacher.schedule)
        [first, *more] = self.generated_at or (noisiest,)
        if not more and not math.isclose(first, noisiest, abs_tol=1e-3):
            raise ValueError(
                f"generated_at: a one-step generator is sampled at the end of its schedule, logsnr "
                f"{noisiest:g}; got {first:g}; leave it out"
            )


def _told(module: nn.Module) -> nn.Module:
    """A module like the teacher's that is also told a level, beside the noise's in every block."""
    late = {"target_blocks": 0} if hasattr(module, "target_blocks") else {}
    return module.clone(target=True, **late)


def _of_the_same_teacher(network: Network, teacher: Network) -> bool:
    """Whether a fake score has the teacher's form, but perhaps an input for levels."""
    forms = [teacher.module]
    if hasattr(teacher.module, "target"):
        forms.append(_told(teacher.module))
    alike = (network.head, network.schedule) == (teacher.head, teacher.schedule)
    return alike and network.module in forms


def matching_gradient(
    x: Array, x_real: Array, x_fake: Array, logsnr: Array, normaliser: str = "dmd2"
) -> Array:
    """Direction, up to the sign, in which images should change to be distributed as real ones.

    w alpha (s_fake - s_real) of the scores at a noised image, which is w SNR (x_fake - x_real) of
    its denoised ones; its mean over noise, with w = 1, is the gradient of
    KL(p_fake || p_real) at that level.

    Args:
      x: images [B, ...]. x_real, x_fake: denoised by the teacher and by the fake score, [B, ...].
      normaliser: "none" has w = 1; "dmd2" w SNR = 1 / mean |x - x_real| over an image (the code of
        DMD2); "dmd" alpha times that (the paper of DMD, eq. 8).

    Returns:
      [B, ...].
    """
    chex.assert_equal_shape([x, x_real, x_fake])
    chex.assert_shape(logsnr, x.shape[:1])
    difference = x_fake - x_real
    if normaliser == "none":
        return diffusion.expand(jnp.exp(logsnr), x) * difference
    size = jnp.mean(jnp.abs(x - x_real), axis=tuple(range(1, x.ndim)), keepdims=True)
    gradient = difference / jnp.maximum(size, jnp.finfo(x.dtype).tiny)
    if normaliser == "dmd":
        alpha, _ = diffusion.alpha_sigma(logsnr)
        return diffusion.expand(alpha, x) * gradient
    return gradient

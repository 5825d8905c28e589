"""Distribution matching (DMD, Yin et al. 2023; DMD2, Yin et al. 2024): match what is generated.

A generator learns from the difference of two scores of its noised images: the teacher's, which is
that of real images, and a fake score, learnt meanwhile from generated ones.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdistill import diffusion
from pdistill.diffusion import KarrasSchedule
from pdistill.methods.adversarial import LOSSES
from pdistill.methods.generator import generator_solver, simulate_inputs
from pdistill.methods.pairs import PairsConfig, draw_pairs
from pdistill.methods.regression import uniform_times
from pdistill.methods.stage import GeneratorStage, check_guidable, settings_of
from pdistill.networks import Diffuser
from pdistill.networks.discriminators import BottleneckHead
from pdistill.samplers import Multistep
from pdistill.training import Learner, Optimizer, TrainState, transfer

NORMALISERS = ("dmd2", "dmd", "none")
FEATURES = ("fake_score", "teacher")
REAL = LOSSES["non_saturating"]  # the only adversarial loss of DMD2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmdSettings:
    """What a generator learns from, and how often.

    Attributes:
      fake_updates: K, updates of the fake score for one of the generator.
      levels: logsnr at which the generator is called, rising; more than one make it a multistep
        generator, trained on inputs that it would meet in sampling (backward simulation). They
        must divide the batch, and best each device's part of it.
      matching, adversarial, regression: weights of the generator's losses; 0 leaves one out.
      discriminating: weight of the classifier's loss beside the fake score's.
      normaliser: of the matching gradient, one of NORMALISERS, see `matching_gradient`.
      guidance: weight w of the teacher's score.
      features: whose encoder the classifier looks at, one of FEATURES.
      bottleneck: which of that encoder's maps, as an index. A U-Net's is the last one; what comes
        after an earlier one is not computed for the classifier.
      told_level: the fake score is told at which of `levels` its images were made. In the paper it
        is not: then the images of all levels together match the data, and one level's may be too
        dark as another's are too bright.
      noise: levels of all noised images, t in [0, 1]; for matching, t in `matching_times`. Images
        are not scaled to unit deviation here, so that EDM's sigma is ours with data_std = 1.
    """

    fake_updates: int = 5
    levels: tuple[float, ...] = (-20.0,)
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
    matching_times: tuple[float, ...] = (0.02, 0.98)

    def __post_init__(self):
        Multistep(self.levels)  # raises unless they rise
        if self.told_level and len(self.levels) == 1:
            raise ValueError("told_level is for several levels")
        for name, known in (("normaliser", NORMALISERS), ("features", FEATURES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.fake_updates < 1:
            raise ValueError(f"fake_updates must be at least 1; got {self.fake_updates}")
        weights = self.matching, self.adversarial, self.regression
        if min(*weights, self.discriminating, self.guidance) < 0 or not any(weights):
            raise ValueError(
                "weights must not be negative, nor matching, adversarial and regression all zero; "
                f"got {self}"
            )
        if len(self.matching_times) != 2 or not (
            0 <= self.matching_times[0] < self.matching_times[1] <= 1
        ):
            raise ValueError(f"matching_times must be (low, high); got {self.matching_times}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dmd(DmdSettings):
    """Every update is one of the fake score; every K-th also one of the generator, before it.

    Both learn from the same fresh images of the generator.

    Attributes:
      diffuser: the network that learns to generate. teacher: that of the scores.
      fake_optimizer: of the fake score and, on its encoder, the classifier.
    """

    diffuser: Diffuser
    teacher: Diffuser
    optimizer: Optimizer
    fake_optimizer: Optimizer

    def __post_init__(self):
        super().__post_init__()
        self.optimizer.check_whole_batches("optimizer")
        self.fake_optimizer.check_whole_batches("fake_optimizer", averaged=False)

    @property
    def fake(self) -> Diffuser:
        """Of the fake score."""
        return self.teacher.with_target(self.teacher.schedule) if self.told_level else self.teacher

    def init(
        self,
        key: Array,
        generator: Any,
        teacher: Any,
        image_shape: tuple[int, ...],
        labels: Sequence[int] | None = None,
        fake_score: Any = None,
    ) -> TrainState:
        """From the generator's first parameters; the fake score starts as the teacher.

        Args:
          labels: that images are generated of; None for all of the network's. They are traced, so
            that students of parts of equal size share one compiled step.
          fake_score: `extra` of the training that the generator comes from: as in DMD2's code, that
            fake score and, if it has one, its classifier go on instead.
        """
        fresh_key, head_key = jax.random.split(key)
        fake = {"network": teacher}
        if self.told_level:
            fake["network"], _ = transfer(self.fake.init(fresh_key, image_shape), teacher)
        if self.adversarial:
            x, logsnr = jnp.zeros((1, *image_shape)), jnp.zeros(1)
            maps = self.teacher.maps(teacher, x, logsnr)
            fake["head"] = BottleneckHead().init(head_key, maps[self.bottleneck])
        if fake_score is not None:
            fake, _ = transfer(fake, fake_score)
        learners = {
            "student": Learner.create(generator, self.optimizer),
            "fake_score": Learner.create(fake, self.fake_optimizer, averaged=False),
        }
        labels = range(self.diffuser.num_labels) if labels is None else labels
        frozen = {"teacher": teacher, "labels": jnp.array(labels, jnp.int32)}
        return TrainState.create(learners, frozen)

    def due(self, step: int | Array) -> bool | Array:
        """Whether update `step` is also one of the generator."""
        return step % self.fake_updates == 0

    def step(
        self,
        state: TrainState,
        batch: dict[str, Array],
        key: Array,
        due: bool | Array | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        label_key, input_key, generator_key, fake_key = jax.random.split(key, 4)
        x = batch["image"]
        label = self._draw_labels(label_key, state.frozen["labels"], len(x))
        student = state.learners["student"]
        generator = functools.partial(self.diffuser.denoiser, student.params)
        z, level = simulate_inputs(generator, self.levels, x, label, input_key)

        due = self.due(state.step) if due is None else due
        update = functools.partial(self._update_generator, state, z, level, label, generator_key)
        shapes = jax.eval_shape(update)[2]

        def only_generate():
            images = self.diffuser.denoiser(student.params, label)(z, level)
            return student, images, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        student, images, metrics = jax.lax.cond(due, update, only_generate)
        fake, more = self._update_fake_score(
            state, jax.lax.stop_gradient(images), level, label, x, batch.get("label"), fake_key
        )
        brightness = images.mean(axis=tuple(range(1, images.ndim)))
        more |= {"brightness": brightness.mean(), "brightness_std": brightness.std()}
        return state.replace(learners={"student": student, "fake_score": fake}), metrics | more

    def _update_generator(self, state, z, level, label, key):
        """The new student, its images before the update, and what is logged."""
        matching_key, adversarial_key, pairs_key = jax.random.split(key, 3)
        student = state.learners["student"]
        images, pull_back = jax.vjp(
            lambda params: self.diffuser.denoiser(params, label)(z, level), student.params
        )
        loss, slope = jnp.zeros((), z.dtype), jnp.zeros_like(images)  # the loss's, at the images
        metrics = {}
        if self.matching:
            gradient = self._matching(state, images, level, label, matching_key)
            part = self.matching * gradient / gradient.size
            loss, slope = loss + self.matching * jnp.mean(gradient**2) / 2, slope + part
            metrics["matching_grad_norm"] = jnp.linalg.norm(part.ravel())
        if self.adversarial:
            value, part = jax.value_and_grad(self._adversarial)(
                images, state, level, label, adversarial_key
            )
            loss, slope = loss + value, slope + part
            metrics |= {"adversarial": value, "gan_grad_norm": jnp.linalg.norm(part.ravel())}
        (grads,) = pull_back(slope)
        if self.regression:
            value, more = jax.value_and_grad(self._regression)(
                student.params, state.frozen["pairs"], z.shape, pairs_key
            )
            loss, grads = loss + value, jax.tree.map(jnp.add, grads, more)
            metrics["regression"] = value
        updates = state.step // self.fake_updates
        student, norms = student.update(grads, self.optimizer, updates)
        # Times K, so that the log's means are those of the updates that there were.
        metrics = {"loss": loss, **norms, **metrics}
        return student, images, {k: self.fake_updates * v for k, v in metrics.items()}

    def _matching(self, state, images, level, label, key):
        time_key, noise_key = jax.random.split(key)
        z, logsnr, _ = self._noised(images, time_key, noise_key, self.matching_times)
        w = jnp.full(len(z), self.guidance, z.dtype) if self.guidance else None
        real = self.teacher.denoiser(state.frozen["teacher"], label, w)(z, logsnr)
        params = state.learners["fake_score"].params["network"]
        fake = self.fake.denoiser(params, label, target=level)
        return matching_gradient(images, real, fake(z, logsnr), logsnr, self.normaliser)

    def _adversarial(self, images, state, level, label, key):
        logit = self._logit(state.learners["fake_score"].params, state, images, level, label, key)
        return self.adversarial * jnp.mean(REAL.generator(logit))

    def _regression(self, params, pairs, shape, key):
        """Of the generator's images on those that the teacher's sampler made of the same noise."""
        z, x, label = draw_pairs(pairs, key, shape)
        level = jnp.full(len(z), self.levels[0], z.dtype)
        x_hat = self.diffuser.denoiser(params, label)(z, level)
        return self.regression * jnp.mean(jnp.square(x_hat - x))

    def _update_fake_score(self, state, images, level, label, x, x_label, key):
        time_key, noise_key, fake_key, real_key = jax.random.split(key, 4)
        z, logsnr, eps = self._noised(images, time_key, noise_key)
        fake = state.learners["fake_score"]

        def loss(params):
            v_hat = self.fake.v(params["network"], z, logsnr, label, target=level)
            v = diffusion.v_target(images, eps, logsnr)
            denoising = jnp.mean(diffusion.denoising_loss(v_hat, v, logsnr))
            if not self.adversarial:
                return denoising, {"fake_score_loss": denoising}
            generated = self._logit(params, state, images, level, label, fake_key)
            real = self._logit(params, state, x, level, x_label, real_key)
            classifying = jnp.mean(REAL.fake(generated)) + jnp.mean(REAL.real(real))
            return denoising + self.discriminating * classifying, {
                "fake_score_loss": denoising,
                "discriminator_loss": classifying,
                "real_logit": real.mean(),
                "fake_logit": generated.mean(),
            }

        grads, metrics = jax.grad(loss, has_aux=True)(fake.params)
        fake, norms = fake.update(grads, self.fake_optimizer, state.step)
        return fake, metrics | {"fake_score_grad_norm": norms["grad_norm"]}

    def _logit(self, params, state, x, level, label, key):
        """The classifier's of images, noised to any level: [B]."""
        z, logsnr, _ = self._noised(x, *jax.random.split(key))
        if self.features == "teacher":
            maps = self.teacher.maps(state.frozen["teacher"], z, logsnr, label)
        else:
            maps = self.fake.maps(params["network"], z, logsnr, label, level)
        return BottleneckHead().apply(params["head"], maps[self.bottleneck])

    def _noised(self, x, time_key, noise_key, times=(0.0, 1.0)):
        """z, its levels and its noise."""
        low, high = times
        t = uniform_times(time_key, len(x), stratified=True, dtype=x.dtype)
        if len(self.levels) > 1:  # they come in turn, the times in order
            t = jax.random.permutation(jax.random.fold_in(time_key, 1), t)
        t = low + (high - low) * t
        logsnr = self.noise(t)
        z, eps = diffusion.noised(noise_key, x, logsnr)
        return z, logsnr, eps

    def _draw_labels(self, key, labels, num):
        return jax.random.choice(key, labels, (num,)) if self.diffuser.num_labels else None

    def export(self, state: TrainState) -> Any:
        """The generator's parameters: the moving average."""
        return state.learners["student"].ema

    def extra(self, state: TrainState) -> Any:
        """The parameters of the fake score and, if there is one, its classifier."""
        return state.learners["fake_score"].params


def matching_gradient(
    x: Array, x_real: Array, x_fake: Array, logsnr: Array, normaliser: str = "dmd2"
) -> Array:
    """How images should change, up to the sign, for their distribution to be the real one.

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
    difference = x_fake - x_real
    if normaliser == "none":
        return diffusion.expand(jnp.exp(logsnr), x) * difference
    size = jnp.mean(jnp.abs(x - x_real), axis=tuple(range(1, x.ndim)), keepdims=True)
    gradient = difference / jnp.maximum(size, jnp.finfo(x.dtype).tiny)
    if normaliser == "dmd":
        alpha, _ = diffusion.alpha_sigma(logsnr)
        return diffusion.expand(alpha, x) * gradient
    return gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmdStage(DmdSettings, GeneratorStage):
    """Config of the stage, one round.

    Attributes:
      fake_optimizer: of `Dmd`; `optimizer` is the generator's.
      pairs: of the regression loss, the teacher's.
    """

    fake_optimizer: Optimizer
    pairs: PairsConfig | None = None

    def rounds(self, diffuser, image_shape, earlier):
        diffuser, start, teacher = self.origins(earlier)
        if bool(self.regression) != bool(self.pairs):
            raise ValueError("regression and pairs go together; give both or none")
        if self.guidance or (self.pairs and self.pairs.guidance is not None):
            check_guidable(teacher)
        if self.told_level and teacher.method.diffuser.takes_target:
            raise ValueError(f"told_level: {teacher.name!r} takes a target of its own")
        noisiest = float(diffuser.schedule(1.0))
        if len(self.levels) == 1 and not math.isclose(self.levels[0], noisiest, abs_tol=1e-3):
            raise ValueError(
                f"levels: a one-step generator is sampled at the end of its schedule, logsnr "
                f"{noisiest:g}; got {self.levels[0]:g}"
            )
        if self.loop.batch_size % len(self.levels):
            raise ValueError(
                f"loop.batch_size must be a multiple of the {len(self.levels)} levels; got "
                f"{self.loop.batch_size}"
            )
        if self.loop.max_grad_norm and self.fake_updates > 1:
            raise ValueError("loop.max_grad_norm is for a network that every update moves")
        if self.loop.log_every % self.fake_updates:
            raise ValueError(
                f"loop.log_every must be a multiple of fake_updates={self.fake_updates}; got "
                f"{self.loop.log_every}"
            )
        generator_updates = -(-self.loop.num_updates // self.fake_updates)
        method = Dmd(
            diffuser=diffuser,
            teacher=teacher.method.diffuser.without_dropout(),
            optimizer=dataclasses.replace(self.optimizer, num_updates=generator_updates),
            fake_optimizer=dataclasses.replace(
                self.fake_optimizer, num_updates=self.loop.num_updates
            ),
            **settings_of(self, DmdSettings),
        )
        if self.adversarial:
            self._check_bottleneck(method.teacher, image_shape)

        resumes = (
            not self.scratch
            and isinstance(start.method, Dmd)
            and start.method.teacher == method.teacher
        )
        looks_alike = resumes and all(
            getattr(start.method, name) == getattr(self, name)
            for name in ("features", "bottleneck")
        )

        def init(key: Array, first: Any, of_teacher: Any, fake_score: Any = None) -> TrainState:
            if fake_score and not looks_alike:  # a classifier of other maps is of no use
                fake_score = {"network": fake_score["network"]}
            return method.init(key, first, of_teacher, image_shape, self.labels, fake_score)

        return [
            self.round_of(
                method,
                init,
                image_shape,
                start,
                teacher,
                resumes=resumes,
                method_name="dmd",
                num_steps=(len(self.levels),),
                solver=generator_solver(self.levels),
                pairs=self.pairs,
            )
        ]

    def _check_bottleneck(self, diffuser: Diffuser, image_shape: tuple[int, ...]) -> None:
        x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        level = jax.ShapeDtypeStruct((1,), jnp.float32)
        maps = jax.eval_shape(diffuser.maps, diffuser.param_shapes(image_shape), x, level)
        if not -len(maps) <= self.bottleneck < len(maps):
            raise ValueError(
                f"bottleneck must be the index of one of the encoder's {len(maps)} maps; got "
                f"{self.bottleneck}"
            )

"""Score matching on a teacher: another network learns what it predicts at every noise level."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from pdistill import diffusion
from pdistill.methods.regression import Regression, RegressionStage, uniform_times
from pdistill.methods.stage import Round, find_parent
from pdistill.networks import Diffuser
from pdistill.training import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class ScoreMatching(Regression):
    """The student's v is regressed on its teacher's, of real images (TSM, Song et al. 2024).

    Attributes:
      teacher: whose parameters are `state.frozen["teacher"]`.
    """

    teacher: Diffuser | None = None

    def init(self, key: Array, teacher: Any, image_shape: tuple[int, ...]) -> TrainState:
        """The student starts from scratch."""
        return self._from(self.diffuser.init(key, image_shape), teacher)

    def _from(self, student: Any, teacher: Any) -> TrainState:
        learner = Learner.create(student, self.optimizer)
        return TrainState.create({self.learner: learner}, {"teacher": teacher})

    def examples(self, state, batch, key):
        time_key, noise_key, dropout_key, guidance_key = jax.random.split(key, 4)
        x, label = batch["image"], batch.get("label")
        t = uniform_times(time_key, x.shape[0], self.stratified, x.dtype)
        logsnr = self.diffuser.schedule(t)
        z, _ = diffusion.noised(noise_key, x, logsnr)
        guided = self._guided(guidance_key, x)
        v = self.teacher.v(state.frozen["teacher"], z, logsnr, label, guided.get("guidance"))
        examples = {
            "z": z,
            "logsnr": logsnr,
            "v": jax.lax.stop_gradient(v),
            "label": label,
            **guided,
        }
        return examples, dropout_key

    def _guided(self, key: Array, x: Array) -> dict[str, Array]:
        """Of a teacher that is guided, as `guided_examples`."""
        del key, x
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreMatchingStage(RegressionStage):
    """Config of the stage, one round.

    Attributes:
      teacher: name of the stage or round to learn from.
      network: the arguments in which the student's network differs from the teacher's.
      num_steps: step counts it is measured at. labels: of the images; None for all.
    """

    teacher: str
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_steps: tuple[int, ...] = (1,)
    labels: tuple[int, ...] | None = None

    def rounds(self, diffuser, image_shape, earlier):
        parent = find_parent(earlier, self.teacher)
        teacher = parent.method.diffuser.without_dropout()
        method = ScoreMatching(
            teacher.with_network(self.network), **self.settings(self.loop), teacher=teacher
        )
        return [
            Round(
                self.name,
                "score_matching",
                method,
                functools.partial(method.init, image_shape=image_shape),
                self.loop,
                self.num_steps,
                parent=parent.name,
                labels=self.labels,
            )
        ]

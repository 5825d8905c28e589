"""What a method tells the experiment: config stages, and the training runs they unfold into."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from pdistill.data.images import check_average
from pdistill.evaluation import check_distance
from pdistill.methods.latents import LatentsConfig
from pdistill.methods.pairs import PairsConfig
from pdistill.networks import Diffuser
from pdistill.samplers import Steps, parse_solver
from pdistill.training import LoopConfig, Optimizer, Steppable, TrainState


class Method(Steppable, Protocol):
    """What the loop needs of a method, and what its stage does: settings and pure functions.

    One that a round `resumes` has `extra(state)` too: parameters of other networks to go on with.
    """

    diffuser: Diffuser

    def export(self, state: TrainState) -> Any:
        """The parameters to sample with."""
        ...


@dataclasses.dataclass(frozen=True)
class Untrained:
    """The method of a round that only makes its model, of what others have learnt."""

    diffuser: Diffuser


@dataclasses.dataclass(frozen=True)
class Round:
    """One training run: trained, exported to <workdir>/<name>/model, and measured.

    Attributes:
      name: also its folder. method_name: what results.jsonl calls the method.
      init: (key, parent's parameters or None) -> initial state; after the parent's it gets those of
        `teacher`, if there is one, and what `resumes` says. None for a model that is not trained
        here.
      loop: its length; None for a model that is not trained here.
      num_steps: step counts to measure at, of a cascade those of all levels each time; the model
        samples with the first.
      solver: to sample the model with, as in `samplers.parse_solver`; None for any.
      guidance: (low, high) of the weights the model may be sampled with; None if it takes none.
      parent: name of the round whose exported parameters `init` gets, or None.
      teacher: of another round that it needs besides, or None.
      resumes: `init` gets, last of all, what the parent's `Method.extra` was as well.
      trainable_fraction: of the model's parameters, those that learn.
      select: metric by which the exported model is chosen among those of all saves, at the first
        of num_steps; "" for the last one.
      pairs: of the teacher, or of the parent if there is no other, which training finds in
        `state.frozen["pairs"]`; None for none.
      labels: of the images to train on; None for all.
      measured: False for what is only a part of a later model.
      students: nothing is trained: the model is these rounds' models, stacked.
      imported: nothing is trained: the model is that of this directory.
      latents: of the images, by the teacher or, if there is no other, by the parent, which each
        batch has as "latent"; None for none.
      upsampled: nothing is trained: the model is the parent's, with its samples enlarged so much.
      card: more entries for its model's card.
      image_shape: of its images, [H, W, C], to which the data's are averaged; None for its stage's.
      noise_shape: of what they are made from, [h, w, C]; None for `image_shape`.
    """

    name: str
    method_name: str
    method: Method | Untrained
    init: Callable[..., TrainState] | None
    loop: LoopConfig | None
    num_steps: tuple[Steps, ...]
    solver: str | None = None
    guidance: tuple[float, float] | None = None
    parent: str | None = None
    teacher: str | None = None
    resumes: bool = False
    trainable_fraction: float = 1.0
    select: str = ""
    pairs: PairsConfig | None = None
    labels: tuple[int, ...] | None = None
    measured: bool = True
    students: tuple[str, ...] = ()
    imported: str = ""
    latents: LatentsConfig | None = None
    upsampled: int = 1
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_shape: tuple[int, ...] | None = None
    noise_shape: tuple[int, ...] | None = None

    def __post_init__(self):
        counts = [count for steps in self.num_steps for count in np.atleast_1d(steps)]
        if not counts or min(counts) < 1:
            raise ValueError(f"num_steps must be counts of at least 1; got {self.num_steps}")
        if self.select:
            check_distance(self.select, "select")

    @property
    def parents(self) -> tuple[str | None, ...]:
        """Names of the rounds whose parameters `init` gets, in order; None for no parameters."""
        return (self.parent, self.teacher) if self.teacher else (self.parent,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
    """Config of a stage: an entry of the config's `stages`. A method subclasses it.

    Attributes:
      name: unique in the experiment.
      resolution: pixels a side that images are averaged to; 0 for those of the data.
    """

    name: str
    resolution: int = 0

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the stage's images, [H, W, C], from the data's.

        Raises:
          ValueError: the data's cannot be averaged to the resolution.
        """
        if not self.resolution:
            return image_shape
        check_average(image_shape, self.resolution)
        return (self.resolution, self.resolution, image_shape[-1])

    @abc.abstractmethod
    def rounds(
        self, diffuser: Diffuser, image_shape: tuple[int, ...], earlier: Mapping[str, Round]
    ) -> list[Round]:
        """The training runs of the stage, in order.

        Args:
          diffuser: the config's model. image_shape: of the stage's images.
          earlier: the rounds of the stages before, by name.

        Raises:
          ValueError: settings that cannot work together.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingStage(Stage):
    """Config of a stage that trains.

    Attributes:
      loop, optimizer: of each round.
    """

    loop: LoopConfig
    optimizer: Optimizer

    def optimizer_for(self, loop: LoopConfig) -> Optimizer:
        """The optimizer, annealed over `loop`.

        Raises:
          ValueError: its microbatches do not divide the batch.
        """
        if loop.batch_size % self.optimizer.microbatches:
            raise ValueError(
                f"optimizer.microbatches {self.optimizer.microbatches} must divide "
                f"loop.batch_size {loop.batch_size}"
            )
        return dataclasses.replace(self.optimizer, num_updates=loop.num_updates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorStage(TrainingStage):
    """Config of a stage that makes a generator of few evaluations.

    Attributes:
      teacher: name of the stage or round that judges it, and that it starts from.
      start: name of another stage or round that it starts from; "" for the teacher.
      scratch: it starts from scratch.
      network: arguments in which its network differs from the teacher's, with `scratch`.
      labels: that it learns to make; None for all.
      select: metric by which, at each save, the model to export is chosen; "" for the last one.
    """

    teacher: str
    start: str = ""
    scratch: bool = False
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[int, ...] | None = None
    select: str = ""

    def origins(self, earlier: Mapping[str, Round], **kinds: bool) -> tuple[Diffuser, Round, Round]:
        """The generator, the round it starts from and the teacher's.

        Args:
          kinds: of `find_parent`.
        """
        if self.network and not self.scratch:
            raise ValueError("another network starts from scratch; set scratch")
        teacher = find_parent(earlier, self.teacher, **kinds)
        start = find_parent(earlier, self.start, one_step=True) if self.start else teacher
        diffuser = start.method.diffuser.without_dropout()
        return diffuser.with_network(self.network), start, teacher

    def round_of(
        self,
        method: Method,
        init: Callable[[Array, Any, Any], TrainState],
        noise_shape: tuple[int, ...],
        start: Round,
        teacher: Round,
        **settings: Any,
    ) -> Round:
        """The stage's round.

        Args:
          init: (key, the generator's first parameters, the teacher's) -> initial state; also gets
            whatever more `Round.init` does.
          noise_shape: of what the generator makes images from, [h, w, C].
          settings: more of `Round`.
        """

        def begin(key: Array, first: Any, of_teacher: Any = None, *more: Any) -> TrainState:
            generator_key, key = jax.random.split(key)
            of_teacher = first if of_teacher is None else of_teacher
            if self.scratch:
                first = method.diffuser.init(generator_key, noise_shape)
            return init(key, first, of_teacher, *more)

        return Round(
            name=self.name,
            method=method,
            init=begin,
            loop=self.loop,
            parent=start.name,
            teacher=None if start is teacher else teacher.name,
            select=self.select,
            labels=self.labels,
            noise_shape=noise_shape,
            **settings,
        )


def find_parent(
    earlier: Mapping[str, Round],
    name: str,
    *,
    guided: bool = False,
    one_step: bool = False,
    cascade: bool = False,
) -> Round:
    """The round called `name`, or the last one of the stage called `name`.

    Args:
      guided: whether the method can start from a network that takes guidance weights.
      one_step: whether it can start from a generator that knows pure noise or few levels only.
      cascade: whether it can start from a network of several resolutions.

    Raises:
      ValueError: there is none, or it is one that the method cannot start from.
    """
    candidates = rounds_of(name, earlier.values())
    if not candidates:
        known = ", ".join(earlier) or "none"
        raise ValueError(
            f"it starts from {name!r}, which no earlier stage makes; there are: {known}"
        )
    found = candidates[-1]
    if found.students:
        raise ValueError(f"{found.name!r} is of several students; start from one of them")
    if found.method.diffuser.takes_guidance and not guided:
        raise ValueError(f"{found.name!r} takes guidance weights, this method does not")
    kind = parse_solver(found.solver).model if found.solver else "denoiser"
    if kind == "cascade" and not cascade:
        raise ValueError(f"{found.name!r} is a cascade, which this method cannot start from")
    if not one_step and kind in ("one_step", "multistep"):
        raise ValueError(f"{found.name!r} knows the few noise levels that it generates at only")
    return found


def check_guidable(r: Round) -> None:
    """Raises ValueError unless a round's model can be guided."""
    if r.guidance is None:
        raise ValueError(f"{r.name!r} cannot be guided: train it with labels and label_dropout")


def settings_of(stage: Stage, kind: type) -> dict[str, Any]:
    """Those of a stage's fields that it has from the dataclass `kind`, which its method has too."""
    return {f.name: getattr(stage, f.name) for f in dataclasses.fields(kind)}


def rounds_of(name: str, rounds: Iterable[Round]) -> list[Round]:
    """Those of the stage called `name`, or the one called so itself."""
    return [r for r in rounds if name in (r.name, r.name.rpartition("/")[0])]

"""What a method tells the experiment: config stages, and the training runs they unfold into."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pdistill.evaluation import check_distance
from pdistill.networks import Diffuser
from pdistill.training import LoopConfig, Optimizer, Steppable, TrainState


class Method(Steppable, Protocol):
    """What the loop needs of a method, and what its stage does: settings and pure functions."""

    diffuser: Diffuser

    def export(self, state: TrainState) -> Any:
        """The parameters to sample with."""
        ...


@dataclasses.dataclass(frozen=True)
class Round:
    """One training run: trained, exported to <workdir>/<name>/model, and measured.

    Attributes:
      name: also its folder. method_name: what results.jsonl calls the method.
      init: (key, parent's parameters or None) -> initial state; after the parent's it gets those of
        `teacher`, if there is one.
      loop: its length. num_steps: step counts to measure at; the model samples with the first.
      solver: to sample the model with, as in `samplers.parse_solver`; None for any.
      guidance: (low, high) of the weights the model may be sampled with; None if it takes none.
      parent: name of the round whose exported parameters `init` gets, or None.
      teacher: of another round that it needs besides, or None.
      trainable_fraction: of the model's parameters, those that learn.
      select: metric by which the exported model is chosen among those of all saves, at the first
        of num_steps; "" for the last one.
    """

    name: str
    method_name: str
    method: Method
    init: Callable[..., TrainState]
    loop: LoopConfig
    num_steps: tuple[int, ...]
    solver: str | None = None
    guidance: tuple[float, float] | None = None
    parent: str | None = None
    teacher: str | None = None
    trainable_fraction: float = 1.0
    select: str = ""

    def __post_init__(self):
        if not self.num_steps or min(self.num_steps) < 1:
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
      name: unique in the experiment. loop, optimizer: of each round.
    """

    name: str
    loop: LoopConfig
    optimizer: Optimizer

    def optimizer_for(self, loop: LoopConfig) -> Optimizer:
        """The optimizer, annealed over `loop`."""
        return dataclasses.replace(self.optimizer, num_updates=loop.num_updates)

    @abc.abstractmethod
    def rounds(
        self, diffuser: Diffuser, image_shape: tuple[int, ...], earlier: Mapping[str, Round]
    ) -> list[Round]:
        """The training runs of the stage, in order.

        Args:
          diffuser: the config's model. earlier: the rounds of the stages before, by name.

        Raises:
          ValueError: settings that cannot work together.
        """


def find_parent(
    earlier: Mapping[str, Round], name: str, *, guided: bool = False, one_step: bool = False
) -> Round:
    """The round called `name`, or the last one of the stage called `name`.

    Args:
      guided: whether the method can start from a network that takes guidance weights.
      one_step: whether it can start from a generator that knows pure noise only.

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
    if found.method.diffuser.takes_guidance and not guided:
        raise ValueError(f"{found.name!r} takes guidance weights, this method does not")
    if found.solver == "one_step" and not one_step:
        raise ValueError(f"{found.name!r} makes images of pure noise only")
    return found


def rounds_of(name: str, rounds: Iterable[Round]) -> list[Round]:
    """Those of the stage called `name`, or the one called so itself."""
    return [r for r in rounds if name in (r.name, r.name.rpartition("/")[0])]

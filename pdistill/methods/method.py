"""The form of a method: its hyperparameters and three pure functions."""

import dataclasses
import inspect
import operator
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pdistill.data.columns import Column
from pdistill.networks import Network
from pdistill.samplers import Steps
from pdistill.training import LoopConfig, Optimizer


class Method:
    """A frozen dataclass of hyperparameters, whose subclasses have three pure functions.

    - `init(key, *, teacher: Network, start: Network | None = None)` makes the state before the
      first update, a `flax.struct.PyTreeNode`, of networks that earlier runs have made, by the
      names that the config has for them. Any name will do; the annotation tells that an argument is
      such a network. `model: Network` is the config's own, blank. ValueError for networks that it
      cannot use.
    - `step(state, batch, key)` does one update and returns the new state and metrics, see
      `training.update.Steppable`. `batch` has "image" [B, H, W, C], "label" [B] and the columns'
      rows. A method whose updates are not all alike takes `parts` as well. A method without `step`
      has no updates.
    - `product(state)` returns the network that was learnt.

    A method that only unfolds into runs of others, as `MultiStudent` does, has none of them. The
    fields are what a config's stage says of the method. This class has defaults; no part of an
    algorithm is here.

    Attributes:
      name: its name in configs and results.jsonl.
      makes_codec: its product is a codec, so that it works on images where others do on latents.
    """

    name: ClassVar[str]
    makes_codec: ClassVar[bool] = False

    def unfold(self, stage: "Run", model: Network) -> list["Run"]:
        """The runs of a stage with this method, in order; `model` is the config's, blank."""
        del model
        return [stage]

    @property
    def measured_at(self) -> tuple[Steps, ...]:
        """Step counts to measure its product at; () where the config must say them."""
        return ()

    def made_for(self, **arguments: Any) -> tuple[Steps, ...]:
        """Step counts that its product is made for, given `Run.arguments`; () for any.

        A method without `step` or this function has those of the model that its own comes from.
        """
        del arguments
        return ()

    def most_steps(self, network: Network) -> int:
        """The most steps that `network`, its product, is made for; 0 where `made_for` says it."""
        del network
        return 0

    @property
    def denoises(self) -> bool:
        """Whether its product learns to denoise, as all but maps do that only learn to jump."""
        return True

    def objection(
        self, run: "Run", *, made_for: tuple[Steps, ...], denoises: bool, sampler: str
    ) -> str:
        """Reason, with advice, why a run of it cannot learn from a teacher; "" if it can.

        By default a teacher must know every noise level: be made for any count, and denoise.

        Args:
          made_for, denoises: as above, of the teacher. sampler: as of its `Network`.
        """
        del run, sampler
        if denoises and not made_for:
            return ""
        return f"{self.name} needs a denoiser at every noise level; name another stage"

    def parts(self, step: int) -> tuple[str, ...]:
        """Names of the losses that update number `step` has; () where all updates are alike."""
        del step
        return ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that a batch has, made by the network that is given as "teacher"."""
        return ()

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError for a batch size that the method cannot use."""
        check_microbatches(self, (batch_size,))

    def card(self, state: Any) -> dict[str, Any]:
        """More entries for the card of the model, plain data, by the shapes of its state."""
        del state
        return {}

    def advice(self, means: dict[str, float]) -> str | None:
        """A warning about the metrics' means over an interval of updates, and what may help."""
        del means
        return None

    def over(self, num_updates: int) -> "Method":
        """The method with its optimizers annealed over a run of so many updates."""
        return annealed_over(self, num_updates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: trained, exported to <workdir>/<name>/model, and measured.

    A stage of a config is one as well, which its method may unfold into several.

    Attributes:
      name: unique in the experiment; also its folder.
      given: names of the runs, or of the stages (then of their last runs), whose networks
        `Method.init` gets, by its names for them.
      arguments: plain values that `Method.init` gets besides.
      loop: length of the training; None for a method of zero updates.
      measured_at: step counts to measure at, of a cascade those of all resolutions each time; the
        model samples with the first. () for those that the method makes it for.
      select: metric by which the exported model is chosen among those of all saves, and of all
        averages with `ema_widths`; "" for the last, of the first average.
      labels: labels of the images to train on; None for all.
      prompt_part: (k, K) to train on part k of K of the captions, by k-means; None for all.
      resolution: pixels a side that images are averaged to; 0 for those of the data.
      measured: False for what is only a part of a later model.
    """

    name: str
    method: Method
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loop: LoopConfig | None = None
    measured_at: tuple[Steps, ...] = ()
    select: str = ""
    labels: tuple[int, ...] | None = None
    prompt_part: tuple[int, int] | None = None
    resolution: int = 0
    measured: bool = True

    def unfold(self, model: Network) -> list["Run"]:
        """The runs of a stage, in order, each with its method annealed over its loop."""
        runs = self.method.unfold(self, model)
        return [
            dataclasses.replace(run, method=run.method.over(run.loop.num_updates))
            if run.loop
            else run
            for run in runs
        ]


def annealed_over(value: Any, num_updates: int) -> Any:
    """A value whose optimizers, itself or in its fields and tuples, are annealed over a run."""
    if isinstance(value, Optimizer):
        return dataclasses.replace(value, num_updates=num_updates)
    if type(value) is tuple:
        items = tuple(annealed_over(item, num_updates) for item in value)
        return value if all(map(operator.is_, items, value)) else items
    changes = {}
    for name, old in _fields(value):
        new = annealed_over(old, num_updates)
        if new is not old:
            changes[name] = new
    return dataclasses.replace(value, **changes) if changes else value


def optimizers(value: Any, path: str = "") -> Iterator[tuple[str, Optimizer]]:
    """The optimizers of a method, with the names of their fields."""
    if isinstance(value, Optimizer):
        yield path, value
        return
    for i, item in enumerate(value if type(value) is tuple else ()):
        yield from optimizers(item, f"{path}[{i}]")
    for name, item in _fields(value):
        yield from optimizers(item, f"{path}.{name}" if path else name)


def _fields(value: Any) -> list[tuple[str, Any]]:
    """Names and values of a dataclass's fields; [] for anything else."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]


def check_microbatches(method: Any, sizes: Sequence[int]) -> None:
    """Raises ValueError unless the microbatches of all optimizers divide batches of these sizes."""
    for name, optimizer in optimizers(method):
        for size in sizes:
            if size % optimizer.microbatches:
                raise ValueError(
                    f"{name}.microbatches {optimizer.microbatches} must divide the {size} images "
                    "that go into an update together"
                )


def roles(method: Any) -> tuple[str, ...]:
    """Names of the earlier networks that a method's `init` may be given, such as "teacher".

    They are the arguments that are annotated as Network or Network | None, but for "model".
    """
    found = [p for p in arguments(method).values() if p.kind is not p.VAR_KEYWORD]
    return tuple(p.name for p in found if _is_network(p.annotation) and p.name != "model")


def required_roles(method: Any) -> tuple[str, ...]:
    """Names among `roles` that a method does not do without, such as "teacher"."""
    return tuple(name for name in roles(method) if name not in optional_roles(method))


def optional_roles(method: Any) -> tuple[str, ...]:
    """Names among `roles` that a method does without, such as "start"."""
    found = arguments(method)
    return tuple(name for name in roles(method) if found[name].default is None)


def arguments(method: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a method's `init`, by name; none for one that only unfolds.

    Annotations that a file has as text are evaluated, but Network is known; see `evaluated`.
    """
    if (init := getattr(method, "init", None)) is None:
        return {}
    names = {"Network": Network} | getattr(inspect.unwrap(init), "__globals__", {})
    found = inspect.signature(init).parameters
    return {n: p.replace(annotation=evaluated(p.annotation, names)) for n, p in found.items()}


def evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """A type of an annotation that is text, or has text in it.

    One that cannot be evaluated, such as of a name that only type checkers import, stays as it is.
    """
    try:
        it = types.SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(it, names)["it"]
    except Exception:  # whatever its code raises
        return annotation


def _is_network(annotation: Any) -> bool:
    kinds = typing.get_args(annotation) or (annotation,)
    return {*kinds} - {type(None)} == {Network}

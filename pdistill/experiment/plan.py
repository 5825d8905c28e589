"""The plan of an experiment: every run's state and product as shapes, before anything compiles.

The check before a run, the dry run, the tests of configs and the benchmarks all read this plan; the
runner performs the same one with arrays.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pdistill.data.columns import check_column
from pdistill.data.images import check_average
from pdistill.evaluation import check_distance
from pdistill.experiment.codecs import (
    CodecSource,
    check_for_latents,
    check_same_codec,
    codec_source,
    model_of_shape,
)
from pdistill.experiment.config import ConfigError, ExperimentConfig, trains
from pdistill.experiment.imported import Imported
from pdistill.experiment.made import check_arguments, check_made
from pdistill.methods import Method, Run
from pdistill.methods.columns import check_not_prompted
from pdistill.methods.method import arguments as arguments_of
from pdistill.methods.method import optimizers
from pdistill.methods.multi_student import Joined
from pdistill.networks import Codec, Network
from pdistill.runtime.own_code import is_own, said
from pdistill.samplers import Steps, format_steps, parse_solver
from pdistill.training.learner import learner_with_widths
from pdistill.training.stacking import stacked, unstacked

# A folder below the run directory: its parts are not empty, "." or "..", and can be written down.
STAGE_NAME = r"(?!\.{1,2}(/|$))[^/\\\x00-\x1f\x7f]+(/(?!\.{1,2}(/|$))[^/\\\x00-\x1f\x7f]+)*"


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run with the shapes of what it makes.

    Attributes:
      given: names of the runs whose networks it gets, by the method's names for them.
      arguments: values that `Method.init` gets besides.
      state: before the first update. network: its product, a codec's instead of a network.
      image_shape: shape of the images that it makes or, a codec, is trained on, [H, W, C].
      codec: the one whose latents it works on; None for a run that works on images.
      measured_at: step counts, of a cascade those of all resolutions each time.
      made_for: the only step counts that its model takes, likewise; () for any.
    """

    run: Run
    given: Mapping[str, str]
    arguments: Mapping[str, Any]
    state: Any
    network: Network | Codec
    image_shape: tuple[int, ...]
    measured_at: tuple[Steps, ...] = ()
    made_for: tuple[Steps, ...] = ()
    codec: "CodecSource | None" = None

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def parent(self) -> str | None:
        """Name of the run that its model comes from: its start, its teacher, or the first given."""
        names = (self.given.get("start"), self.given.get("teacher"), *self.given.values())
        return next(filter(None, names), None)

    @property
    def trains(self) -> bool:
        """Whether it has updates."""
        return trains(self.run.method)

    @property
    def makes_codec(self) -> bool:
        """Whether its product is a codec, which no solver samples."""
        return isinstance(self.network, Codec)

    def factor(self, data_shape: tuple[int, ...]) -> int:
        """Factor by which the data's images, [H, W, C], are reduced for it."""
        return data_shape[0] // self.image_shape[0]

    def init(self, key: Any, given: Mapping[str, Any]) -> Any:
        """The state, from the networks and parts of states that it is given, by `self.given`."""
        named = {name.removeprefix("start."): value for name, value in given.items()}
        state = self.run.method.init(key, **unstacked(named), **self.arguments)
        return stacked(state) if self.run.loop and self.run.loop.scan_blocks else state

    def begin(self, key: Any, given: Mapping[str, Any]) -> tuple[Any, Network | Codec]:
        """The state of `init` and its product: one trace of both takes half as long as two."""
        state = self.init(key, given)
        return state, unstacked(self.run.method.product(state))


def plan(experiment: ExperimentConfig, image_shape: tuple[int, ...]) -> dict[str, Planned]:
    """All runs of an experiment in order, by name.

    Args:
      image_shape: shape of the data's images, [H, W, C].

    Raises:
      ConfigError: a run that cannot be; the message names its stage.
    """
    model = None  # until the first stage has imported one
    if experiment.model:
        try:
            model = experiment.model.build(image_shape, fits=not experiment.codec)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
    planned: dict[str, Planned] = {}
    for i, stage in enumerate(experiment.stages):
        name = stage.name
        if not re.fullmatch(STAGE_NAME, name):
            raise ConfigError(
                f"stages[{i}].name must name a folder below the run directory, such as gan or "
                f"gan/small, without backslashes and control characters; got {name!r}"
            )
        try:
            codec = codec_source(experiment, stage, planned)
            sized = functools.partial(_sized, experiment, model, codec, image_shape)
            for run in stage.unfold(sized(stage)[0]):
                name = run.name
                if name in planned:
                    raise ConfigError(f"stages[{i}].name: {name!r} is used twice")
                planned[name] = _plan_run(run, *sized(run), planned, codec)
                model = model or planned[name].network.blank.replace(sampler="", guidance=None)
        except ConfigError:
            raise
        except Exception as error:
            own = is_own(stage.method)  # whose code may raise anything
            if not (own or isinstance(error, ValueError)):
                raise
            what = said(error) if own else error
            raise ConfigError(f"stages[{i}] ({name}): {what}") from error
    return planned


def _sized(
    experiment: ExperimentConfig,
    model: Network | None,
    codec: "CodecSource | None",
    image_shape: tuple[int, ...],
    run: Run,
) -> tuple[Network | None, tuple[int, ...]]:
    """The config's model for a run's images or latents, and their shape; ValueError for none."""
    shape = tuple(image_shape)
    if run.resolution:
        check_average(image_shape, run.resolution)
        shape = (run.resolution, run.resolution, image_shape[-1])
    if codec:
        shape = codec.blank.latent_shape(shape)
    return model and model_of_shape(model, experiment, shape, codec), shape


def _plan_run(
    run: Run,
    model: Network | None,
    shape: tuple[int, ...],
    earlier: Mapping[str, Planned],
    codec: "CodecSource | None" = None,
) -> Planned:
    if codec:
        check_for_latents(run.method)
    given, values = _bind(run, earlier, codec)
    parameters = arguments_of(run.method)
    arguments = dict(run.arguments)
    if "model" in parameters:
        arguments["model"] = model
    if "labels" in parameters:
        arguments["labels"] = run.labels
    draft = Planned(run, given, arguments, None, model, shape)
    check_arguments(run.method, {*values, *arguments})
    if "teacher" in given:
        _check_teacher(run, earlier[given["teacher"]])
    _check_columns(run.method, values.get("teacher"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, network = jax.eval_shape(draft.begin, key, values)
    check_made(run.method, state, network)
    if isinstance(network, Codec):
        _check_codec(run)
        run = dataclasses.replace(run, measured=False)
        return dataclasses.replace(draft, run=run, state=state, network=network)
    made = network.image_shape
    _check_shape(made, shape)
    steps = run.measured_at or run.method.measured_at
    _check_run(run, steps)
    if not learner_with_widths(state) and run.loop and run.loop.snapshot_every:
        raise ValueError(
            "loop.snapshot_every keeps the averages of ema_widths; set those of its optimizer, or "
            "leave it at 0"
        )
    steps = tuple(_of_all_resolutions(n, network) for n in steps)
    most = run.method.most_steps(network)
    made_for = run.method.made_for(**run.arguments) or tuple(range(1, most + 1))
    says = any(
        getattr(type(run.method), name) is not getattr(Method, name)
        for name in ("made_for", "most_steps")
    )
    if not (trains(run.method) or says) and draft.parent:  # made of earlier models
        made_for = earlier[draft.parent].made_for
    made_for = tuple(_of_all_resolutions(n, network) for n in made_for)
    if made_for and not run.measured_at:
        steps = tuple(n for n in steps if n in made_for) or steps
    if made_for and not set(steps) <= set(made_for):
        raise ValueError(f"measured_at: its model is made for {made_for} steps; got {steps}")
    return dataclasses.replace(
        draft,
        state=state,
        network=network,
        image_shape=codec.blank.image_shape(made) if codec else made,
        codec=codec,
        measured_at=steps,
        made_for=made_for,
    )


def _bind(
    run: Run, earlier: Mapping[str, Planned], codec: "CodecSource | None"
) -> tuple[dict[str, str], dict[str, Any]]:
    """Names of the runs that a run is given, and the shapes of their networks.

    A parameter of `Method.init` that is called like a learner of its start's state, such as the
    fake score, is given that learner's network of the start's last state, as "start.<name>".
    """
    parameters = arguments_of(run.method)
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given, values = {}, {}
    for role, name in run.given.items():
        if role not in parameters and not any_name:
            raise ValueError(f"method {run.method.name} takes no {role!r}")
        found = find_run(name, earlier)
        if found.makes_codec:
            raise ValueError(f"{role}: {name!r} makes a codec, not a network; name another stage")
        check_same_codec(role, name, found.codec, codec)
        given[role], values[role] = found.name, found.network
    if parts := isinstance(run.method, Joined) and run.method.by_prompts:  # the run finds centres
        width = next(iter(values.values())).text_widths[0]
        values["centres"] = jax.ShapeDtypeStruct((parts, width), "float32")
    if isinstance(run.method, Imported):
        values["loaded"] = run.method.shapes
    start = earlier[given["start"]] if "start" in given else None
    for name in [name for name in parameters if start and name not in (*given, "model")]:
        learner = getattr(start.state, name, None)
        if learner is not None and hasattr(learner, "network"):
            given[f"start.{name}"] = start.name
            values[f"start.{name}"] = learner.network
    return given, values


def _check_columns(method: Method, teacher: Network | None) -> None:
    """Raises ValueError for columns that a method's teacher, if it has one, cannot make."""
    for column in method.columns:
        check_column(column)
        if teacher is None:
            raise ValueError(
                f"its column {column.name!r} is made by the network that init takes as teacher, "
                "and it takes none"
            )
        check_not_prompted(teacher, column.name)


def _check_teacher(run: Run, found: Planned) -> None:
    """Raises ValueError for a teacher that does not know what a run is to learn from it."""
    method = found.run.method
    objection = run.method.objection(
        run,
        made_for=found.made_for,
        denoises=method.denoises,
        sampler=found.network.sampler,
    )
    if not objection:
        return
    lacks = "is a map, which has learnt to jump and may not know how to denoise"
    if found.made_for:
        counts = " or ".join(str(format_steps(n)) for n in found.made_for)
        lacks = f"is made for num_steps={counts} and knows a few noise levels only"
    raise ValueError(f"teacher: {found.name!r}, by {method.name}, {lacks}, but {objection}")


def find_run(name: str, earlier: Mapping[str, Planned]) -> Planned:
    """The run of this name, or the last one of the stage of this name; ValueError if none is."""
    found = [p for p in earlier.values() if name in (p.name, p.name.rpartition("/")[0])]
    if not found:
        known = ", ".join(earlier) or "none"
        raise ValueError(
            f"it starts from {name!r}, which no earlier stage makes; there are: {known}"
        )
    return earlier.get(name) or found[-1]


def _check_shape(made: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises ValueError unless a run makes images [H, W, C] of its stage's shape."""
    if made[-1] != wanted[-1]:
        raise ValueError(
            f"it makes images of {made[-1]} channels, but the data has {wanted[-1]}; give other "
            "data, or start from another model"
        )
    if made != wanted:
        raise ValueError(
            f"it makes images of {_pixels(made)}, where its stage is to make images of "
            f"{_pixels(wanted)}; set resolution to {made[0]}, read the data at that size, as "
            f"data.name=NAME@{made[0]}, or start from another stage"
        )


def _check_run(run: Run, steps: tuple[Steps, ...]) -> None:
    """Raises ValueError for settings of a run that cannot be."""
    if not steps:
        raise ValueError("measured_at must give at least one count of sampling steps")
    counts = [count for n in steps for count in (n if isinstance(n, tuple) else (n,))]
    if min(counts) < 1:
        raise ValueError(f"measured_at must be counts of at least 1; got {steps}")
    if run.select:
        check_distance(run.select, "select")
    if run.loop:
        run.method.check_batch(run.loop.batch_size)


def _check_codec(run: Run) -> None:
    """Raises ValueError for settings that a run has no use for that makes a codec."""
    for name in ("measured_at", "select"):
        if getattr(run, name):
            raise ValueError(f"{name} is for models that sample; leave it out for a codec")
    if run.loop:
        if run.loop.snapshot_every:
            raise ValueError("loop.snapshot_every is for models that sample; leave it at 0")
        run.method.check_batch(run.loop.batch_size)


def check_devices(run: Run, num: int) -> None:
    """Raises ConfigError unless each of so many devices has rows in all parts of a run's batch."""
    batch = run.loop.batch_size
    if batch % num:
        raise ConfigError(f"{run.name}: batch_size {batch} must be a multiple of the {num} devices")
    for name, optimizer in optimizers(run.method):
        if batch % (num * optimizer.microbatches):
            raise ConfigError(
                f"{run.name}: {name}.microbatches {optimizer.microbatches} must divide the "
                f"{batch // num} images of batch_size {batch} that each of the {num} devices has"
            )


def _of_all_resolutions(steps: Steps, network: Network) -> Steps:
    """Step counts of each resolution of a cascade from one for all."""
    cascade = bool(network.sampler) and parse_solver(network.sampler).model == "cascade"
    if not cascade:
        return steps
    if isinstance(steps, int):
        return (steps,) * len(network.resolutions)
    if len(steps) != len(network.resolutions):
        raise ValueError(
            f"measured_at: each must be of the resolutions {network.resolutions}; got {steps}"
        )
    return steps


def _pixels(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:2])) + " pixels"


def first_of_each_method(runs: Mapping[str, Planned]) -> list[Planned]:
    """The first run of each method that trains, in order; a subclass is another method."""
    found: dict[type, Planned] = {}
    for planned in runs.values():
        if planned.trains:
            found.setdefault(type(planned.run.method), planned)
    return list(found.values())

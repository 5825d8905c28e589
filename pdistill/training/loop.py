"""The one training loop. It knows no method: a method is `step(state, batch, key)`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.data import Pipeline, make_batch
from pdistill.runtime.mesh import (
    batch_sharding,
    local_columns,
    param_sharding,
    replicated,
    to_device,
)
from pdistill.runtime.processes import Agreement
from pdistill.runtime.terminal import say
from pdistill.training.checkpoints import Checkpointer
from pdistill.training.interruption import Interrupted, StopSignals
from pdistill.training.logging import LogFile, MetricWriter, Progress
from pdistill.training.offload import into_device_memory, into_host_memory
from pdistill.training.state import TrainState

AROUND = 3  # updates shown before and after one that is not finite


class Diverged(ArithmeticError):
    """Too many updates were left out. None of them has touched the state."""


class Steppable(Protocol):
    """A frozen, hashable description of a method; it is a static argument of jit.

    It may also have `advice(means) -> str | None`: what is wrong with the metrics' means over an
    interval of updates, and what may help; and `due(step) -> bool`: whether an update has a part
    that not all have. Where it is known before the dispatch, `step` gets it as `due`, so that the
    part is compiled without a condition.
    """

    def step(
        self, state: TrainState, batch: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of every learner; metrics include "loss" and "grad_norm"."""
        ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train and how often to do what, in updates.

    Attributes:
      num_updates: of the whole run. batch_size: images an update, over all devices.
      substeps: updates in one dispatch (a scan). All intervals are multiples of it. Use 1 for
        convolutions on a CPU, whose gradients XLA runs ten times slower inside a loop.
      log_every, save_every: intervals.
      max_skipped: updates that may be left out because a metric (a loss, a gradient's norm) was
        not finite, or the gradient too large; one more stops the run.
      max_grad_norm: of the student's gradient, before clipping, in an update that is not left out;
        0 for any.
      offload: what is frozen, such as a teacher, stays in the host's memory and comes to the device
        anew in each dispatch.
    """

    num_updates: int
    batch_size: int = 128
    substeps: int = 10
    log_every: int = 100
    save_every: int = 1000
    max_skipped: int = 20
    max_grad_norm: float = 0.0
    offload: bool = False

    def __post_init__(self):
        for name in ("num_updates", "batch_size", "substeps", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.max_skipped < 0:
            raise ValueError(f"max_skipped must not be negative; got {self.max_skipped}")
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm must not be negative; got {self.max_grad_norm}")
        for name in ("num_updates", "log_every", "save_every"):
            if getattr(self, name) % self.substeps:
                raise ValueError(
                    f"{name} must be a multiple of substeps={self.substeps}; "
                    f"got {getattr(self, name)}"
                )
        if self.save_every % self.log_every:  # so that a resumed run logs the same means
            raise ValueError(
                f"save_every must be a multiple of log_every={self.log_every}; "
                f"got {self.save_every}"
            )

    @property
    def images_seen(self) -> int:
        """In all updates, an image as often as it is drawn."""
        return self.num_updates * self.batch_size


def init_state(init: Callable[..., TrainState], mesh: Mesh, *args: Any) -> TrainState:
    """Shapes, then shardings, then `jit(init)`: no array is ever in the wrong place.

    `init(*args)` must not return an argument as it is, or donation would delete it.
    """
    shardings = param_sharding(jax.eval_shape(init, *args), mesh)
    return jax.jit(init, out_shardings=shardings)(*args)


@functools.lru_cache(maxsize=8)
def compile_update(
    method: Steppable,
    mesh: Mesh,
    flip: bool,
    factor: int = 1,
    max_grad_norm: float = 0.0,
    offload: bool = False,
) -> Callable:
    """update(state without frozen, frozen, resident, raw, key, **due) -> (state, metrics).

    Metrics are [substeps] each, with "skipped" so far and whether each update is "kept". One jitted
    scan over the substeps in `raw`; the state is donated.
    Equal methods share it, so rounds that differ only in the frozen trees compile once. `due` is
    static, for one substep.
    """

    def substep(state, frozen, resident, raw, key, **due):
        augment_key, method_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = make_batch(resident, raw, augment_key, flip=flip, factor=factor)
        new, metrics = method.step(state.replace(frozen=frozen), batch, method_key, **due)
        kept = jnp.stack([jnp.isfinite(value) for value in metrics.values()]).all()
        if max_grad_norm:
            kept &= metrics["grad_norm"] <= max_grad_norm
        learners = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old), new.learners, state.learners
        )
        skipped = state.skipped + jnp.where(kept, 0, 1)
        state = state.replace(step=state.step + 1, skipped=skipped, learners=learners)
        return state, metrics | {"skipped": skipped, "kept": kept}

    def update(state, frozen, resident, raw, key, **due):
        if offload:
            frozen = into_device_memory(frozen)

        def body(state, raw):
            return substep(state, frozen, resident, raw, key, **due)

        if jax.tree.leaves(raw)[0].shape[0] == 1:
            # On a CPU a convolution's gradient is ten times slower in a loop or a condition (jax
            # issue 12868).
            state, metrics = body(state, jax.tree.map(lambda a: a[0], raw))
            metrics = jax.tree.map(lambda a: a[None], metrics)
        else:
            state, metrics = jax.lax.scan(body, state, raw)
        return jax.lax.with_sharding_constraint(state, param_sharding(state, mesh)), metrics

    return jax.jit(update, donate_argnums=0, static_argnames="due")


def train(
    method: Steppable,
    state: TrainState,
    pipeline: Pipeline,
    config: LoopConfig,
    key: Array,
    *,
    name: str,
    directory: Path,
    writer: MetricWriter,
    mesh: Mesh,
    flip: bool = False,
    factor: int = 1,
    stop: StopSignals | None = None,
    on_save: Callable[[int, TrainState], None] = lambda step, state: None,
) -> TrainState:
    """Trains from the newest checkpoint in `directory`, or from `state`, to the end.

    Args:
      state: the initial state; donated. key: the seed of every random number of the run.
      name: what progress lines and TensorBoard call the run.
      directory: of checkpoints/ and log.jsonl. writer: of the TensorBoard events.
      flip, factor: of `data.make_batch`. stop: asked after every dispatch; several processes stop
        at the same one.
      on_save: (updates done, state), called before each save of the run's plan and at its end;
        after a crash perhaps again for the same update.

    Returns:
      The state after `config.num_updates` updates.

    Raises:
      Diverged: more than `config.max_skipped` updates were left out.
      Interrupted: `stop` was requested; the state so far is saved.
    """
    frozen = into_host_memory(state.frozen) if config.offload else state.frozen

    def whole(state: TrainState) -> TrainState:
        return state.replace(frozen=into_device_memory(frozen) if config.offload else frozen)

    state = state.replace(frozen=frozen)
    stop = stop or StopSignals()
    with stop.deferred(), Checkpointer(directory / "checkpoints") as checkpointer:
        batches = pipeline.iterator(config.substeps, local_columns(mesh, pipeline.batch_size))
        restored = checkpointer.restore(state)
        if restored is not None:
            state, iterator_state = restored
            batches.set_state(iterator_state)
        start = int(state.step)
        if start >= config.num_updates:
            return whole(state)
        if start:
            say(f"{name:<16} resumes at step {start}")

        update = compile_update(method, mesh, flip, factor, config.max_grad_norm, config.offload)
        resident = to_device(pipeline.resident_arrays(), replicated(mesh))
        progress = Progress(name, config.num_updates, start)
        state = state.replace(frozen={})
        lines = LogFile(directory / "log.jsonl", keep=lambda row: row["step"] <= start)
        advice = getattr(method, "advice", lambda means: None)
        due = getattr(method, "due", None) if config.substeps == 1 else None

        def log(step: int, interval: list[dict[str, Array]]) -> None:
            metrics = concatenate(jax.device_get(interval))
            first = step - len(metrics["skipped"]) + 1
            scalars, trouble = summarize(metrics, first)
            scalars["steps_per_second"] = progress.report(step, scalars)
            lines.append({"step": step, **scalars, **trouble})
            if trouble:
                say(f"{name:<16} {describe(trouble)}")
            elif warning := advice(scalars):
                say(f"{name:<16} warning: {warning}")
            if scalars["skipped"] > config.max_skipped:
                found = describe(trouble) if trouble else f"{scalars['skipped']} were left out"
                raise Diverged(
                    f"{name}: {found}. That is more than loop.max_skipped = "
                    f"{config.max_skipped}; the last good checkpoint is in "
                    f"{directory / 'checkpoints'}. Try a lower learning rate."
                )
            finite = {f"{name}/{k}": v for k, v in scalars.items() if np.isfinite(v)}
            writer.write_scalars(step, finite)

        agreed = Agreement(mesh)
        interval, late = [], None  # metrics are read one dispatch late: the device never waits
        for step in range(start, config.num_updates, config.substeps):
            raw = to_device(next(batches), batch_sharding(mesh, leading=1))
            flags = {"due": due(step)} if due else {}
            state, metrics = update(state, frozen, resident, raw, key, **flags)
            if late:
                log(*late)
                late = None
            interval.append(metrics)
            done = step + config.substeps
            if done % config.log_every == 0 or done == config.num_updates:
                late, interval = (done, interval), []
            planned = done % config.save_every == 0 or done == config.num_updates
            stopping = agreed(stop.requested is not None, wait=planned)
            if planned or stopping:
                if stopping and interval:  # cut short, so that its updates are logged
                    late, interval = (done, interval), []
                if late:  # before the save: a run that resumes from it does not log this again
                    log(*late)
                    late = None
                if planned:
                    on_save(done, whole(state))
                checkpointer.save(done, state, batches.get_state())
            if stopping:
                cause = stop.requested or "another process"
                raise Interrupted(f"stopped by {cause}: {name} is saved at step {done}")
    return whole(state)


def concatenate(interval: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The metrics of all updates of an interval, from those of its dispatches."""
    return {name: np.concatenate([m[name] for m in interval]) for name in interval[0]}


def summarize(
    metrics: dict[str, np.ndarray], first: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """A row of the log, from the metrics of updates number `first`, `first` + 1, ...

    Returns:
      The mean of each metric over the updates that were kept and "skipped", the run's count so far;
      and, if one was not, {"left_out": such updates, "grad_norms": {update: norm} of these and the
      ones around them}.
    """
    kept = metrics["kept"]
    values = {name: value for name, value in metrics.items() if name not in ("skipped", "kept")}
    scalars = {
        name: float(np.mean(value[kept])) if kept.any() else float("nan")
        for name, value in values.items()
    }
    scalars["skipped"] = int(metrics["skipped"][-1])
    if kept.all():
        return scalars, {}
    bad = np.flatnonzero(~kept)[:AROUND]
    around = [i for i in range(len(kept)) if np.abs(bad - i).min() <= AROUND]
    norms = {first + i: f"{values['grad_norm'][i]:.3g}" for i in around}
    return scalars, {"left_out": [first + int(i) for i in bad], "grad_norms": norms}


def describe(trouble: dict[str, Any]) -> str:
    """What `summarize` found, for people."""
    norms = ", ".join(f"{norm} at {step}" for step, norm in trouble["grad_norms"].items())
    return (
        "not finite or of too large a gradient, so left out, from update "
        f"{trouble['left_out'][0]}; grad_norm {norms}"
    )

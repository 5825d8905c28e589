"""The one training loop. It knows no method: a method is `step(state, batch, key)`."""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.data import Pipeline
from pdistill.runtime.interruption import Interrupted, StopSignals
from pdistill.runtime.mesh import batch_sharding, local_columns, replicated, to_device
from pdistill.runtime.processes import LAG, Agreement
from pdistill.runtime.terminal import say
from pdistill.training.checkpoints import Checkpointer
from pdistill.training.logging import LogFile, Progress, Writer
from pdistill.training.metrics import concatenate, describe, summarize
from pdistill.training.offload import into_device_memory, into_host_memory
from pdistill.training.profiling import Profiler
from pdistill.training.state import TrainState, take_frozen
from pdistill.training.update import Steppable, compile_update, kinds_of, start_of

SLOW_LOOPS = ("cpu",)  # platforms; see jax issue 12868


class Diverged(ArithmeticError):
    """Too many updates were left out. None of them has touched the state.

    Attributes:
      updates: number of updates until then, with those left out.
    """

    def __init__(self, message: str, updates: int):
        super().__init__(message)
        self.updates = updates


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and intervals of training, in updates.

    Attributes:
      num_updates: length of the run. batch_size: images an update, over all devices.
      substeps: updates in one dispatch (a scan), but on a CPU, see `on`. All intervals are
        multiples of it. Parts of an update that not all have are compiled by themselves with 1, and
        else behind a switch.
      log_every, save_every: intervals.
      snapshot_every: interval of the saves at which an experiment keeps the averages of
        `Optimizer.ema_widths`, as models in <run>/averages; 0 for none.
      max_skipped: updates that may be left out because a metric (a loss, a gradient's norm) was
        not finite, or the gradient too large; one more stops the run.
      max_grad_norm: largest "grad_norm", before clipping, of an update that is not left out; 0 for
        any.
      profile_at: updates done when a profile of a few begins, in <run>/profile; 0 for none.
      offload: whether frozen networks, such as a teacher, stay in the host's memory and come to the
        device anew in each dispatch.
      scan_blocks: whether the equal blocks of transformers are one loop over stacked parameters, so
        that an update takes as long to compile for any number of them; best with `remat`, and on
        accelerators.
    """

    num_updates: int
    batch_size: int = 128
    substeps: int = 10
    log_every: int = 100
    save_every: int = 1000
    max_skipped: int = 20
    max_grad_norm: float = 0.0
    offload: bool = False
    profile_at: int = 0
    snapshot_every: int = 0
    scan_blocks: bool = False

    def __post_init__(self):
        for name in ("num_updates", "batch_size", "substeps", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.max_skipped < 0:
            raise ValueError(f"max_skipped must not be negative; got {self.max_skipped}")
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm must not be negative; got {self.max_grad_norm}")
        if self.profile_at < 0:
            raise ValueError(f"profile_at must not be negative; got {self.profile_at}")
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

        if self.snapshot_every < 0 or self.snapshot_every % self.save_every:
            raise ValueError(
                f"snapshot_every must be 0 or a multiple of save_every={self.save_every}; "
                f"got {self.snapshot_every}"
            )

    @property
    def images_seen(self) -> int:
        """In all updates, an image as often as it is drawn."""
        return self.num_updates * self.batch_size

    def on(self, mesh: Mesh, start: int = 0) -> Self:
        """The same for these devices, from update number `start` on: whose dispatches may be short.

        On CPUs a dispatch is one update: inside a loop XLA computes a convolution's gradient on one
        thread there, ten times slower, and a dispatch costs a CPU next to nothing. A run that goes
        on where such a one was stopped still meets all intervals.
        """
        slow = mesh.devices.flat[0].platform in SLOW_LOOPS
        return dataclasses.replace(self, substeps=1 if slow else math.gcd(start, self.substeps))

    def saves_at(self, done: int) -> bool:
        """Whether a save is planned after so many updates."""
        return done > 0 and (done % self.save_every == 0 or done == self.num_updates)


def train(
    method: Steppable,
    state: Any,
    pipeline: Pipeline,
    config: LoopConfig,
    key: Array,
    *,
    name: str,
    directory: Path,
    writer: Writer,
    mesh: Mesh,
    flip: bool = False,
    factor: int = 1,
    codec: Any = None,
    stop: StopSignals | None = None,
    on_save: Callable[[int, Any], None] = lambda step, state: None,
    on_save_is_long: bool = False,
    on_start: Callable[[int], None] = lambda start: None,
) -> Any:
    """Trains from the newest checkpoint in `directory`, or from `state`, to the end.

    Args:
      state: the method's initial state; donated but for what is frozen. key: seeds the run.
      name: the run's, in progress lines and TensorBoard. writer: takes the metrics.
      directory: place of checkpoints/ and log.jsonl. flip, factor, codec: as for `data.make_batch`.
      stop: asked after every dispatch; several processes stop at the same one.
      on_save: (updates done, the method's state), called after each planned save, and again where a
        run goes on from one. on_save_is_long: it is called once the save is on disk, and a signal
        in it stops at once. on_start: (updates done before), called when the first are under way.

    Returns:
      The method's state after `config.num_updates` updates.

    Raises:
      Diverged: more than `config.max_skipped` updates were left out.
      Interrupted: `stop` was requested; the state so far is saved.
    """
    (learning, frozen), stop = take_frozen(state), stop or StopSignals()
    frozen, whole = _keep_frozen(frozen, config.offload)
    with stop.deferred(), Checkpointer(directory / "checkpoints") as checkpointer:
        with stop.at_once():
            state, position = _restore(checkpointer, start_of(learning, mesh), config, name)
            if config.saves_at(start := int(state.step)):  # it may have been stopped there
                on_save(start, whole(state))
        if start >= config.num_updates:
            return whole(state)
        config, columns = config.on(mesh, start), local_columns(mesh, pipeline.batch_size)
        with (
            pipeline.iterator(config.substeps, columns) as batches,
            TrainingLog(method, config, name, directory, writer, start) as log,
        ):
            if position is not None:
                batches.set_state(position)
            settings = flip, factor, config.max_grad_norm, config.offload, codec
            update = compile_update(method, mesh, *settings)
            dispatch = _dispatcher(update, method, config, frozen, pipeline, batches, key, mesh)
            at_once = stop.at_once if on_save_is_long else None
            save = _saver(on_save, at_once, whole, writer, checkpointer, batches)
            state = _loop(state, start, config, dispatch, log, save, on_start, stop, mesh)
        return whole(state)


def _keep_frozen(frozen: Any, offload: bool) -> tuple[Any, Callable[[TrainState], Any]]:
    """Puts what does not learn where it is kept; returns it and what completes a state with it."""
    if offload:
        frozen = into_host_memory(frozen)

    def whole(state: TrainState) -> Any:
        return state.method.replace(**(into_device_memory(frozen) if offload else frozen))

    return frozen, whole


def _restore(
    checkpointer: Checkpointer, state: TrainState, config: LoopConfig, name: str
) -> tuple[TrainState, Any]:
    """The newest checkpoint's state and the position in the data, or `state` and None."""
    state, position = checkpointer.restore(state) or (state, None)
    if 0 < int(state.step) < config.num_updates:
        say(f"{name:<16} resumes at step {state.step}")
    return state, position


def _dispatcher(update, method, config, frozen, pipeline, batches, key, mesh) -> Callable:
    """dispatch(state, step, log) -> state and metrics: the next updates, from `step` on."""
    kinds = kinds_of(method, range(config.num_updates), config.substeps)
    resident = to_device(pipeline.resident_arrays(), replicated(mesh))

    def dispatch(state: TrainState, step: int, log: "TrainingLog"):
        raw = to_device(next(batches), batch_sharding(mesh, leading=1))
        with log.compiling(kinds(step)["kinds"]):
            return update(state, frozen, resident, raw, key, **kinds(step))

    return dispatch


def _saver(on_save, at_once, whole, writer, checkpointer, batches) -> Callable:
    """save(updates done, state, whether it stops then): a checkpoint, and what follows from one."""

    def save(step: int, state: TrainState, stopping: bool) -> None:
        writer.flush()
        checkpointer.save(step, state, batches.get_state())
        if stopping or at_once:
            checkpointer.wait()
        if not stopping:
            with at_once() if at_once else contextlib.nullcontext():
                on_save(step, whole(state))

    return save


def _loop(state, start, config, dispatch, log, save, on_start, stop, mesh) -> TrainState:
    """Dispatches updates from number `start` on; logs and saves where it is due."""
    agreed = Agreement(mesh)
    interval, late = [], None  # metrics are read one dispatch late: the device never waits
    ahead: collections.deque[Array] = collections.deque()
    for step in range(start, config.num_updates, config.substeps):
        log.profile(step, state.step)
        with stop.at_once() if step == start else contextlib.nullcontext():  # it compiles
            state, metrics = dispatch(state, step, log)
            if step == start:
                on_start(start)
        ahead.append(metrics["kept"])
        if len(ahead) > LAG:  # of dispatches, whose batches wait on the device
            jax.block_until_ready(ahead.popleft())
        if late:
            log(*late)
            late = None
        interval.append(metrics)
        done = step + config.substeps
        if done % config.log_every == 0 or done == config.num_updates:
            late, interval = (done, interval), []
        planned = config.saves_at(done)
        stopping = agreed(stop.requested is not None, wait=planned)
        if planned or stopping:
            if stopping and interval:  # cut short, so that its updates are logged
                late, interval = (done, interval), []
            if late:  # before the save: a run that resumes from it does not log this again
                log(*late)
                late = None
            save(done, state, stopping)
        if stopping:
            cause = stop.requested or "another process"
            raise Interrupted(f"stopped by {cause}: {log.name} is saved at step {done}")
    return state


class TrainingLog:
    """The log of a run in training: its terminal line, log.jsonl, the writer's scalars, a profile.

    Raises:
      Diverged: from a call, when more than `config.max_skipped` updates were left out.
    """

    def __init__(
        self,
        method: Steppable,
        config: LoopConfig,
        name: str,
        directory: Path,
        writer: Writer,
        start: int,
    ):
        self.name = name
        self._method = method
        self._config = config
        self._directory = directory
        self._writer = writer
        self._compiled: set[Any] = set()
        self._progress = Progress(name, config.num_updates, start)
        self.profile = Profiler(directory / "profile", config.profile_at)
        path = directory / "log.jsonl"
        self._rows = LogFile(path, keep=lambda row: row["step"] <= start, kinds={"step": int})
        writer.rewind(name, start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._progress.__exit__()
        self.profile.__exit__()

    def compiling(self, kinds: Any) -> contextlib.AbstractContextManager:
        """A context for a dispatch, whose time counts in no rate if it compiles these kinds."""
        if kinds in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(kinds)
        return self._progress.compiling(self._config.substeps)

    def __call__(self, step: int, interval: list[dict[str, Any]]) -> None:
        """Logs the updates of an interval, after `step` updates."""
        metrics = concatenate(jax.device_get(interval))
        scalars, trouble = summarize(metrics, step - len(metrics["kept"]) + 1)
        rate = self._progress.report(step, scalars)
        if rate is not None:
            scalars["steps_per_second"] = rate
        self._rows.append({"step": step, **scalars, **trouble})
        if trouble:
            say(f"{self.name:<16} {describe(trouble)}")
        elif warning := self._method.advice(scalars):
            say(f"{self.name:<16} warning: {warning}")
        if scalars["skipped"] > self._config.max_skipped:
            found = describe(trouble) if trouble else f"{scalars['skipped']} were left out"
            raise Diverged(
                f"{self.name}: {found}. That is more than loop.max_skipped = "
                f"{self._config.max_skipped}; the last good checkpoint is in "
                f"{self._directory / 'checkpoints'}. Try a lower learning rate.",
                step,
            )
        finite = {f"{self.name}/{k}": v for k, v in scalars.items() if np.isfinite(v)}
        self._writer.write_scalars(step, finite)

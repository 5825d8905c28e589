"""Updates of later runs, compiled while an earlier run trains."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import jax
import numpy as np
from jax.sharding import Mesh

from pdistill.data import Dataset
from pdistill.experiment.config import ExperimentConfig
from pdistill.experiment.plan import Planned
from pdistill.experiment.trace import trace_update
from pdistill.methods import Run
from pdistill.model.codecs import blank_codec
from pdistill.runtime import background, compilations
from pdistill.runtime.files import one_line
from pdistill.runtime.terminal import say
from pdistill.training import kinds_of


def pays() -> bool:
    """Whether to compile beside a run that trains: not on its cores, nor in several processes.

    Several would have to compile in one order, as each may wait for the others.
    """
    return jax.default_backend() != "cpu" and jax.process_count() == 1


@dataclasses.dataclass(eq=False)
class Ahead:
    """Compiles a run's update in the background, one run's at a time.

    The loop, which asks for the same program, then finds it in this process or, should shapes know
    less than networks do, in the cache on disk.

    Attributes:
      data: the training images, with their text once it is there. runs: all of the experiment.
    """

    workdir: Path
    config: ExperimentConfig
    data: Dataset
    runs: Mapping[str, Planned]
    mesh: Mesh
    _thread: Thread | None = dataclasses.field(default=None, init=False)
    _name: str = dataclasses.field(default="", init=False)  # of the run that the thread is at

    def begin(self, planned: Planned) -> None:
        """Begins with a run's update, if that pays and the one before is done."""
        if pays() and not self._is_busy():
            self._name = planned.name
            self._thread = background.start(self._work, planned)

    def wait(self, planned: Planned) -> None:
        """Waits for a run's update, if it has begun: a second compilation would take longer."""
        if self._is_busy() and self._name == planned.name:
            with compilations.waiting(planned.name):
                self._thread.join()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _work(self, planned: Planned) -> None:
        try:
            with compilations.counted() as found:
                self._compile(planned)
            if found.seconds is not None:
                say(f"{planned.name:<16} {found}, before it trains")
        except Exception as error:  # whatever it is, the run itself will meet it or do without
            say(f"{planned.name:<16} is compiled when it trains: {one_line(error)}")

    def _compile(self, planned: Planned) -> None:
        """Compiles all of a run's programs of updates, unless their inputs are not known yet."""
        run, codec = planned.run, planned.codec
        shape = self._data_shape(run)
        if codec:
            directory = codec.directory(self.workdir)
            if not directory.exists():
                return
            # With its scale, which the plan of a run that makes it does not know.
            codec = dataclasses.replace(codec, blank=blank_codec(directory))
            planned = dataclasses.replace(planned, codec=codec)
        if not shape:
            return
        loop = run.loop.on(self.mesh)
        steps = range(0, loop.num_updates, loop.substeps)
        kinds = kinds_of(run.method, range(loop.num_updates), loop.substeps)
        for step in sorted({kinds(step)["kinds"]: step for step in reversed(steps)}.values()):
            trace_update(
                planned,
                self.runs,
                self.config,
                self.mesh,
                shape,
                step,
                loop.substeps,
                rows=self.data.column_arrays(),
            ).traced.lower().compile()

    def _data_shape(self, run: Run) -> tuple[int, ...] | None:
        """Shape of the images that a run is trained on, [N, H, W, C]; None if only it will know."""
        shape = self.data.images.shape
        if not self.config.data.resident or not (run.labels or run.prompt_part):
            return shape  # of streamed data, their number is in no program
        if run.prompt_part or not all(column.aligned for column in run.method.columns):
            return None
        return (int(np.isin(self.data.labels, run.labels).sum()), *shape[1:])

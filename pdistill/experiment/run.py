"""A config's stages, run in order: each round is trained, exported, measured and reported.

Everything is resumable: a round that has its model is not trained again, a measurement that has
its row is not made again, and training goes on from the newest checkpoint.
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from pdistill import model as models
from pdistill import report
from pdistill.data import Dataset, Pipeline, load_dataset
from pdistill.experiment.config import ConfigError, ExperimentConfig, as_plain, parse
from pdistill.experiment.directory import claim
from pdistill.experiment.measure import Measurements
from pdistill.experiment.rows import stable_hash
from pdistill.experiment.select import Selection
from pdistill.methods import Round
from pdistill.methods.latents import make_latents
from pdistill.methods.pairs import make_pairs, read_pairs
from pdistill.runtime.files import write_arrays
from pdistill.runtime.mesh import make_mesh, replicated, to_device
from pdistill.runtime.processes import in_all
from pdistill.runtime.terminal import format_seconds, say
from pdistill.samplers import parse_solver
from pdistill.training import Diverged, StopSignals, TrainState, init_state, train
from pdistill.training.logging import MetricWriter


def run(
    config: Any, workdir: str | Path, *, new: bool = False, stop: StopSignals | None = None
) -> None:
    """Runs an experiment to its end, from wherever it stopped, and builds its report.

    Args:
      config: a ConfigDict, as in configs/. workdir: the run directory.
      new: start again; what the run directory holds is moved aside.
      stop: may ask the run to save and stop.

    Raises:
      ConfigError: before anything is compiled, if the config cannot run.
      Diverged, CheckpointError, ModelError: it cannot go on. Interrupted: it was asked to stop.
    """
    began = time.monotonic()
    plain = as_plain(config)
    experiment = Experiment(parse(plain), Path(workdir), stop or StopSignals())
    experiment.claim(plain, new)
    with MetricWriter(workdir) as writer:
        for r in experiment.rounds:
            experiment.run_round(r, writer)
    if jax.process_index() == 0:
        path = report.build(workdir)
        print(f"\n{report.table(experiment.measurements.rows)}")
        print(f"\nReport: {path}  ({format_seconds(time.monotonic() - began)})")
    sync_global_devices("reported")  # a process that ends waits for the others only briefly


class Experiment:
    """One run directory and what fills it."""

    def __init__(self, config: ExperimentConfig, workdir: Path, stop: StopSignals):
        self.config = config
        self.workdir = workdir
        self.stop = stop
        try:
            self.train_data = load_dataset(config.data.name, config.data.train)
            self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(str(error)) from error
        self.rounds = config.rounds(self.train_data.image_shape)
        for r in self.rounds:
            if r.pairs and r.pairs.path:
                try:
                    read_pairs(r.pairs, r.image_shape)
                except ValueError as error:
                    raise ConfigError(f"{r.name}: pairs.path: {error}") from error
            if r.loop and r.loop.batch_size % self.mesh.size:
                raise ConfigError(
                    f"{r.name}: batch_size {r.loop.batch_size} must be a multiple of the "
                    f"{self.mesh.size} devices"
                )
        self.measurements = Measurements(workdir, config, self.train_data, self.rounds, self.mesh)
        self._key = jax.random.key(config.seed)

    def claim(self, config: dict[str, Any], new: bool) -> None:
        """Takes the run directory for `config`, the plain form of this experiment's."""
        try:
            claim(self.workdir, config, self.config.stages, self.rounds, new=new)
            self.measurements.open()
        except OSError as error:
            raise ConfigError(f"cannot use the run directory {self.workdir}: {error}") from error

    def run_round(self, r: Round, writer: MetricWriter) -> None:
        """Trains, exports and measures one round, whatever of that is not done yet."""
        if not in_all(self._is_trained(r)):  # nobody makes it before all have looked
            if r.imported:
                models.load(r.imported)  # raises before it is copied
                source, target = models.find(r.imported), self.workdir / r.name / "model"
                models.copy(source, target, stage=r.name, source=r.imported)
            elif r.students:
                self._join(r)
            elif r.upsampled > 1:
                self._enlarge(r)
            else:
                self._train_and_export(r, writer)
        if not r.measured:
            return
        if missing := self.measurements.missing(r):
            model = models.load(self.workdir / r.name / "model", self.mesh)
            for drawing in missing:
                self.measurements.measure(r, model, drawing, writer)

    def _is_trained(self, r: Round) -> bool:
        directory = self.workdir / r.name / "model"
        if not (directory.exists() and r.loop):
            return directory.exists()
        return models.read_card(directory)["train_steps"] == r.loop.num_updates

    def _train_and_export(self, r: Round, writer: MetricWriter) -> None:
        directory = self.workdir / r.name
        parents = [name and self._params(name) for name in r.parents]
        extra = [models.load_extra(self.workdir / r.parent, self.mesh)] if r.resumes else []
        init_key, train_key = jax.random.split(jax.random.fold_in(self._key, stable_hash(r.name)))
        state = init_state(r.init, self.mesh, init_key, *parents, *extra)
        if r.pairs:
            pairs = to_device(self._pairs(r, parents[-1]), replicated(self.mesh))
            state = state.replace(frozen=state.frozen | {"pairs": pairs})
        pipeline = Pipeline(
            self._dataset(r, parents[-1]),
            r.loop.batch_size,
            seed=stable_hash(f"{self.config.seed}/{r.name}"),
            resident=self.config.data.resident,
        )
        del parents, extra  # the state has copies
        save = functools.partial(self._save_model, r)
        export = r.method.export
        resumed = any(later.resumes and later.parent == r.name for later in self.rounds)
        export_extra = r.method.extra if resumed else lambda state: None
        selection = None
        if r.select:
            measure = functools.partial(self.measurements.of_params, r)
            selection = Selection(directory, r.name, measure, save, writer)

        def on_save(step: int, state: TrainState) -> None:
            if selection:
                selection(step, export(state), export_extra(state))

        try:
            state = train(
                r.method, state, pipeline, r.loop, train_key,
                name=r.name, directory=directory, writer=writer, mesh=self.mesh,
                flip=self.config.data.flip, factor=self._factor(r), stop=self.stop, on_save=on_save,
            )  # fmt: skip
        except Diverged as error:
            if not (selection and selection.found):
                raise
            say(f"warning: {error}")
        self.measurements.forget_pictures(r)
        if selection:
            selection.finish(**_length(r))
        else:
            save(directory / "model", export(state), r.loop.num_updates, export_extra(state))

    def _dataset(self, r: Round, teacher: Any) -> Dataset:
        """What a round is trained on; latents are made if they are not beside the teacher yet."""
        data = self.train_data
        if r.latents:
            maker = self._teacher_of(r)
            path = self.workdir / maker.name / r.latents.name
            if not in_all(path.exists()):
                make_latents(
                    path, maker.method.diffuser, teacher, r.latents, data,
                    shape=r.noise_shape, flip=self.config.data.flip,
                    batch_size=self.config.evaluation.batch_size, mesh=self.mesh,
                )  # fmt: skip
            data = dataclasses.replace(data, latents=np.load(path, mmap_mode="r"))
        return data.of_labels(r.labels) if r.labels else data

    def _teacher_of(self, r: Round) -> Round:
        """The round that a round learns from."""
        [found] = [other for other in self.rounds if other.name == (r.teacher or r.parent)]
        return found

    def _factor(self, r: Round) -> int:
        """By which the data's images are reduced for a round."""
        return self.train_data.image_shape[0] // r.image_shape[0]

    def _params(self, name: str) -> Any:
        """Of an earlier round's model."""
        return models.load(self.workdir / name / "model", self.mesh).params

    def _join(self, r: Round) -> None:
        """Makes the model of several students."""
        students = [self._params(name) for name in r.students]
        params = {"networks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *students)}
        self.measurements.forget_pictures(r)
        self._save_model(r, self.workdir / r.name / "model", params, r.card["train_steps"])

    def _enlarge(self, r: Round) -> None:
        """Makes the model whose samples are the parent's, enlarged."""
        source, target = (self.workdir / name / "model" for name in (r.parent, r.name))
        models.copy(
            source, target, stage=r.name, method=r.method_name, num_steps=r.num_steps[0],
            upsampled=r.upsampled, data=models.read_card(source)["data"] | {"shape": r.image_shape},
        )  # fmt: skip

    def _pairs(self, r: Round, teacher: Any) -> dict[str, np.ndarray]:
        """The teacher's pairs, made if they are not beside it yet."""
        if r.pairs.path:
            return read_pairs(r.pairs, r.image_shape)
        maker = self._teacher_of(r)
        path = self.workdir / maker.name / r.pairs.name
        if not in_all(path.exists()):
            pairs = make_pairs(
                maker.method.diffuser, teacher, r.pairs, shape=r.image_shape,
                seed=stable_hash(f"{self.config.seed}/{maker.name}/pairs"),
                batch_size=self.config.evaluation.batch_size, mesh=self.mesh,
            )  # fmt: skip
            if jax.process_index() == 0:
                write_arrays(path, pairs)
            return pairs
        return dict(np.load(path))

    def _save_model(
        self, r: Round, directory: Path, params: Any, step: int, extra: Any = None
    ) -> None:
        """Exports the parameters of update `step`."""
        solver = r.solver or "ddim"
        models.save(
            directory, r.method.diffuser, params, extra,
            kind="routed" if r.students else parse_solver(solver).model,
            solver=solver, num_steps=r.num_steps[0],
            clip=self.measurements.clip, num_labels=r.method.diffuser.num_labels,
            guidance=r.guidance and [w if math.isfinite(w) else None for w in r.guidance], data={
                "name": self.train_data.name, "shape": r.image_shape,
                "noise_shape": r.noise_shape, "scale": "image / 127.5 - 1",
            },
            stage=r.name, method=r.method_name, parent=r.parent,
            trainable_fraction=r.trainable_fraction, selected_step=step, **r.card, **_length(r),
        )  # fmt: skip


def _length(r: Round) -> dict[str, int]:
    """How long a round's training is, for its model's card; of several students it has that."""
    if not r.loop:
        return {}
    return {"train_steps": r.loop.num_updates, "images_seen": r.loop.images_seen}

"""A config's stages, performed in order: each run is trained, exported, measured and reported.

Everything is resumable: a run that has its model is not trained again, a measurement that has its
row is not made again, and training goes on from the newest checkpoint.
"""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from pdistill import model as models
from pdistill import report
from pdistill.data import Dataset, Pipeline, load_dataset
from pdistill.data.columns import Column, given_file, keep_origin
from pdistill.data.text import first_captions
from pdistill.experiment.ahead import Ahead
from pdistill.experiment.averages import products, snapshot_directory
from pdistill.experiment.cards import (
    inherited,
    length,
    of_diverged,
    product_card,
    shapes,
    updates_of,
)
from pdistill.experiment.codecs import in_latents, keep_codec
from pdistill.experiment.config import ConfigError, ExperimentConfig, as_plain, parse
from pdistill.experiment.directory import check_seed, claim, taken
from pdistill.experiment.estimate import tell_estimate
from pdistill.experiment.given import given_to, rows_given
from pdistill.experiment.imported import Imported
from pdistill.experiment.measure import Measurements
from pdistill.experiment.plan import Planned, plan
from pdistill.experiment.rows import stable_hash
from pdistill.experiment.select import Selection
from pdistill.experiment.text import of_prompts, plan_text, prompt_centres, with_text
from pdistill.experiment.trace import check_update
from pdistill.model import standardised
from pdistill.model.codecs import blank_codec
from pdistill.networks import Codec, Network
from pdistill.runtime import compilations
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.processes import in_all
from pdistill.runtime.terminal import end_line, format_seconds, say, update, write
from pdistill.training import Diverged, StopSignals, init_state, train
from pdistill.training.logging import Writer, forget_later
from pdistill.training.overview import write_parameters
from pdistill.training.stacking import unstacked
from pdistill.training.writers import MissingExtra, default_writer, find_wandb


def run(
    config: Any,
    workdir: str | Path,
    *,
    new: bool = False,
    stop: StopSignals | None = None,
    writers: Sequence[Any] = (),
) -> None:
    """Runs an experiment to its end, from wherever it stopped, and builds its report.

    Args:
      config: a ConfigDict, as in configs/. workdir: the run directory.
      new: start again; what the run directory holds is moved aside.
      stop: may ask the run to save and stop.
      writers: more places for metrics, with the methods of clu's `metric_writers.MetricWriter`.

    Raises:
      ConfigError: before anything is compiled, if the config cannot run.
      Diverged, CheckpointError, ModelError: it cannot go on. Interrupted: it was asked to stop.
    """
    plain = as_plain(config)
    experiment = Experiment(parse(plain), Path(workdir), stop or StopSignals(), new)
    with taken(experiment.workdir, new=new):
        experiment.claim(plain)
        try:
            experiment.embed()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        experiment.check_imported()
        experiment.estimate()
        with default_writer(workdir, wandb=experiment.config.wandb, others=writers) as writer:
            for planned in experiment.runs.values():
                with compilations.named(planned.name):
                    experiment.perform(planned, writer)
        if jax.process_index() == 0:
            update("the report is made")
            path = report.build(workdir)
            end_line()
            table = report.table(experiment.measurements.rows)
            took = format_seconds(time.monotonic() - experiment.began)
            write(f"\n{table}\n\nReport: {path}  ({took})", to=sys.stdout)
        sync_global_devices("reported")  # a process that ends waits for the others only briefly


class Experiment:
    """One run directory and what fills it."""

    def __init__(
        self, config: ExperimentConfig, workdir: Path, stop: StopSignals, new: bool = False
    ):
        check_seed(config.seed, None if new else workdir)
        self._key = jax.random.key(config.seed)
        self.began = time.monotonic()
        self._reporting = 0.0  # seconds
        self.config = config
        self.workdir = workdir
        self.stop = stop
        try:
            self.train_data = load_dataset(
                config.data.name, config.data.train, in_memory=config.data.resident
            )
            self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
            if config.wandb and jax.process_index() == 0:  # which writes there
                find_wandb()
        except (ValueError, FileNotFoundError, MissingExtra) as error:
            raise ConfigError(str(error)) from error
        self.runs = plan(config, self.train_data.image_shape)
        for planned in self.runs.values():
            self._check(planned)
        self._text_plan = plan_text(config, self.runs, self.train_data)
        self.measurements = Measurements(workdir, config, self.train_data, self.runs, self.mesh)
        self._ahead = Ahead(workdir, config, self.train_data, self.runs, self.mesh)

    def _check(self, planned: Planned) -> None:
        """Raises ConfigError for what a run's plan does not show: files, and devices."""
        run = planned.run
        for column in run.method.columns:
            if column.path:
                try:
                    self._read(column, planned, given_file(column))
                except ValueError as error:
                    raise ConfigError(f"{run.name}: {column.name}.path: {error}") from error
        check_update(planned, self.runs, self.config, self.mesh, self.train_data.images.shape)

    def claim(self, config: dict[str, Any]) -> None:
        """Takes the run directory for `config`, the plain form of this experiment's."""
        data, stages = self.train_data, self.config.stages
        try:
            known = data.identity()
            claim(self.workdir, config, stages, self.runs, known, self._open, data.digest)
        except OSError as error:
            raise ConfigError(f"cannot use the run directory {self.workdir}: {error}") from error

    def _open(self) -> None:
        updates = {r.name: self._updates(r) for r in self.runs.values() if r.trains}
        self.measurements.open(updates)

    def embed(self) -> None:
        """Makes the embeddings of the captions, if networks take prompts."""
        if self._text_plan:
            found = with_text(self.train_data, self.workdir, self.config, self._text_plan)
            self.train_data, self._text, self._prompts = found
            self._ahead.data = self.train_data
            self.measurements.text = first_captions(self.train_data.columns["text"].rows)

    def check_imported(self) -> None:
        """Reads the models that stages after training import: ModelError now if one is damaged."""
        ahead = False
        for planned in self.runs.values():
            missing = not in_all(self._is_trained(planned))
            if missing and ahead and isinstance(planned.run.method, Imported):
                planned.run.method.load(self.mesh)
            ahead |= missing and planned.trains

    def estimate(self) -> None:
        """Says what the training that is ahead will take, if the config asks for that."""
        if not self.config.estimate:
            return
        ahead = [r for r in self.runs.values() if r.trains and not self._is_trained(r)]
        if in_all(bool(ahead)):
            shape, rows = self.train_data.images.shape, self.train_data.column_arrays()
            tell_estimate(ahead, self.runs, self.config, self.mesh, shape, rows)

    def perform(self, planned: Planned, writer: Writer) -> None:
        """Trains, exports and measures one run, whatever of that is not done yet."""
        if not in_all(self._is_trained(planned)):  # nobody makes it before all have looked
            if planned.trains:
                self._train_and_export(planned, writer)
            else:
                state = planned.init(self._key, self._given(planned))
                self.measurements.forget(planned, writer)
                network = planned.run.method.product(state)
                self._save_model(planned, self._directory(planned) / "model", network, 0)
        elif planned.trains:
            updates = planned.run.loop.num_updates
            forget_later(self._directory(planned), planned.name, updates, writer)
        if planned.makes_codec:
            self.measurements.measure_codec(planned)
            self._report()
        if not planned.run.measured:
            return
        if missing := self.measurements.missing(planned):
            model = models.load(self._directory(planned) / "model", self.mesh)
            for measurement in missing:
                self.measurements.measure(planned, model, measurement, writer)
                self._report()

    def _report(self) -> None:
        """Builds the report from the first measurement on, in a fiftieth of the time at most."""
        before = time.monotonic()
        too_often = self._reporting > (before - self.began) / 50
        if jax.process_index() > 0 or too_often or not self.measurements.rows:
            return
        try:
            path = report.build(self.workdir)
            if not self._reporting:
                say(f"{'report':<16} {path}, which grows as the run goes on")
        except OSError as error:  # the last report is the one that has to be
            say(f"warning: there is no report for now: {error}")
        self._reporting += time.monotonic() - before

    def _directory(self, planned: Planned) -> Path:
        return self.workdir / planned.name

    def _is_trained(self, planned: Planned) -> bool:
        directory = self._directory(planned) / "model"
        return self._updates(planned) is not None if planned.trains else directory.exists()

    def _updates(self, planned: Planned) -> int | None:
        """Updates of a run's model; None if there is none, or one that will be trained on."""
        later = [r for r in self.runs.values() if planned.name in r.given.values()]
        used = any(self._directory(r).exists() for r in later)
        return updates_of(planned, self._directory(planned) / "model", used)

    def _train_and_export(self, planned: Planned, writer: Writer) -> None:
        run, directory = planned.run, self._directory(planned)
        key = jax.random.fold_in(self._key, stable_hash(run.name))
        init_key, train_key = jax.random.split(key)
        given = self._given(planned)
        if planned.codec:
            keep_codec(directory, planned.codec.directory(self.workdir))
        dataset = self._dataset(planned, given)
        state = init_state(planned.init, self.mesh, init_key, given)
        del given  # the state has copies
        write_parameters(directory, jax.eval_shape(unstacked, planned.state))
        pipeline = Pipeline(
            dataset,
            run.loop.batch_size,
            seed=stable_hash(f"{self.config.seed}/{run.name}"),
            resident=self.config.data.resident,
        )
        save = functools.partial(self._save_model, planned)
        selection = None
        if run.select:
            measure = functools.partial(self.measurements.of_network, planned)
            selection = Selection(directory, run.name, measure, save, writer)

        def on_save(step: int, state: Any) -> None:
            if selection:
                selection(step, products(run.method, state))
            self._keep_snapshots(planned, state, step)
            self._report()

        def on_start(step: int) -> None:
            if selection:
                selection.rewind(step)
            self._compile_after(planned)

        self._ahead.wait(planned)
        about = length(planned) | {"diverged": None}
        try:
            state = train(
                run.method, state, pipeline, run.loop, train_key,
                name=run.name, directory=directory, writer=writer, mesh=self.mesh,
                flip=self.config.data.flip, factor=planned.factor(self.train_data.image_shape),
                codec=self._codec(planned),
                stop=self.stop, on_save=on_save, on_save_is_long=bool(run.select),
                on_start=on_start,
            )  # fmt: skip
        except Diverged as error:
            if not (selection and selection.found):
                raise
            say(f"warning: {error}")
            about = of_diverged(planned, error.updates)
        self.measurements.forget(planned, writer)
        if selection:
            selection.finish(**about)
        else:
            first = products(run.method, state)[0]
            save(directory / "model", first.network, run.loop.num_updates, **first.average)

    def _compile_after(self, planned: Planned) -> None:
        """Begins to compile the update of the run that will train after this one."""
        names = list(self.runs)
        later = [self.runs[name] for name in names[names.index(planned.name) + 1 :]]
        for run in later:
            if run.trains and not self._is_trained(run):
                return self._ahead.begin(run)

    def _keep_snapshots(self, planned: Planned, state: Any, step: int) -> None:
        """Saves all averages of update `step` as models, if snapshots are due.

        After a crash perhaps again, with the same values.
        """
        every, last = planned.run.loop.snapshot_every, planned.run.loop.num_updates
        if not every or (step % every and step != last):
            return
        for product in products(planned.run.method, state):
            directory = snapshot_directory(self._directory(planned), step, product.width)
            self._save_model(planned, directory, product.network, step, **product.average)

    def _given(self, planned: Planned) -> dict[str, Any]:
        return given_to(planned, self.runs, self.workdir, self.mesh, self._centres)

    @functools.cache  # noqa: B019  # an experiment lives as long as its program
    def _centres(self, parts: int) -> np.ndarray:
        """The centres of the parts of the captions, [parts, P]."""
        return prompt_centres(self.workdir, self.train_data, parts, self.config.seed)

    def _dataset(self, planned: Planned, given: dict[str, Any]) -> Dataset:
        """The data set that a run is trained on, with its columns, made if they are not there."""
        data = self._examples(planned)
        for column in planned.run.method.columns:
            path = given_file(column)
            if not column.path:
                maker = self.runs[planned.given["teacher"]]
                path = self._directory(maker) / column.file
                made_by = models.read_card(path.parent / "model")["checksum"]
                keep_origin(column, path, self.train_data, made_by)
                if not in_all(path.exists()):
                    column.make(
                        path, given["teacher"], self._examples(maker), flip=self.config.data.flip,
                        seed=stable_hash(f"{self.config.seed}/{maker.name}/{column.name}"),
                        batch_size=self.config.evaluation.batch_size, mesh=self.mesh,
                        codec=self._codec(maker),
                    )  # fmt: skip
            rows = self._read(column, planned, path)
            data = data.with_column(column.name, rows, column.aligned)
        if planned.run.prompt_part:
            k, parts = planned.run.prompt_part
            return of_prompts(data, k, self._centres(parts))
        return data.of_labels(planned.run.labels) if planned.run.labels else data

    def _read(self, column: Column, planned: Planned, path: Path) -> dict[str, Any]:
        """The rows of a column's file; ValueError for other rows than the run's plan has."""
        num, flip = len(self.train_data), self.config.data.flip
        return rows_given(column, path, planned, self.runs, self.workdir, num, flip)

    def _codec(self, planned: Planned) -> Codec | None:
        """The codec of a run, blank, as it was saved; None for a run that works on images."""
        return planned.codec and blank_codec(planned.codec.directory(self.workdir))

    def _examples(self, planned: Planned) -> Dataset:
        """The training images or, for a run with a codec, moments of them at the run's size."""
        if not planned.codec:
            return self.train_data
        directory, folder = planned.codec.directory(self.workdir), None
        data, flip = self.train_data.of_shape(planned.image_shape), self.config.data.flip
        if planned.codec.stage:
            size = "" if data is self.train_data else f"@{planned.image_shape[0]}"
            folder = self.workdir / planned.codec.stage / f"latents{size}"
        return in_latents(
            data, directory, folder, otherwise=self.workdir / f"latents/{planned.image_shape[0]}",
            flip=flip, batch_size=self.config.evaluation.batch_size, mesh=self.mesh,
            in_memory=self.config.data.resident,
        )  # fmt: skip

    def _save_model(
        self, planned: Planned, directory: Path, network: Network, step: int, **more: Any
    ) -> None:
        """Exports the network of update `step`, with `more` entries of its card."""
        if planned.makes_codec:
            return self._save_codec(planned, directory, network)
        network = unstacked(network)
        clip = self.measurements.clip(planned)
        card = product_card(planned, network, data=self.train_data, clip=clip)
        card |= {"generator": str(jax.random.key_impl(self._key)), "selected_step": step}
        card |= inherited(planned, self.workdir) | planned.run.method.card(planned.state)
        card |= length(planned) | more
        if planned.codec:
            card["codec"] = planned.codec.entry(self.workdir, directory)
            card["data"] = card["data"] | shapes(planned, network)  # also of one from elsewhere
        if network.takes_text:
            card["text"] = self._prompts.entry(self._text, directory)
        update(f"{planned.name:<16} exports to {directory}")
        models.save(directory, network, **card, stage=planned.name)

    def _save_codec(self, planned: Planned, directory: Path, codec: Codec) -> None:
        """Exports a codec, whose latents of the training images are scaled to deviation one."""
        data = self._dataset(planned, {}).of_shape(planned.image_shape)
        size, shown = self.config.evaluation.batch_size, f"{planned.name:<16} scale of latents"
        codec = standardised(codec, data.images, size, self.mesh, shown)
        update(f"{planned.name:<16} exports to {directory}")
        models.save_codec(
            directory, codec, stage=planned.name, method=planned.run.method.name,
            data={"name": data.name, "shape": planned.image_shape}, **length(planned),
        )  # fmt: skip

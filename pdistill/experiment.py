"""A config's stages, run in order: each round is trained, exported, measured and reported.

Everything is resumable: a round that has its model is not trained again, a measurement that has
its row is not made again, and training goes on from the newest checkpoint.
"""

import dataclasses
import json
import math
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdistill import model as models
from pdistill import report
from pdistill.config import ConfigError, ExperimentConfig, parse
from pdistill.data import Pipeline, load_dataset
from pdistill.evaluation import (
    DISTANCES,
    NEIGHBOURS,
    Evaluator,
    Reference,
    Sampling,
    generate_batches,
)
from pdistill.files import write_arrays, write_atomically
from pdistill.methods import Round
from pdistill.model import Model
from pdistill.results import (
    draw_labels,
    evaluation_key,
    identity,
    measure,
    row_key,
    stable_hash,
)
from pdistill.samplers import parse_solver
from pdistill.selection import Selection
from pdistill.sharding import make_mesh
from pdistill.training import Diverged, StopSignals, TrainState, init_state, train
from pdistill.training.logging import LogFile, MetricWriter, format_seconds, say

GRID_IMAGES = 64  # kept of every set of samples, for the figures
# Keys of a config that may change between runs of one directory: they change no result.
HARMLESS = (
    r"stages\[\d+\]\.loop\.(log_every|max_skipped)|stages\[(?P<save>\d+)\]\.loop\.save_every|"
    r"mesh\..*|data\.resident|"
    r"evaluation\.inception_weights"
)
PICTURE_IMAGES = 1000  # that spectra are averaged over


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
    try:
        plain = json.loads(config.to_json())
    except TypeError as error:
        raise ConfigError(f"a config holds plain values only: {error}") from error
    experiment = Experiment(parse(plain), Path(workdir), stop or StopSignals())
    experiment.claim(plain, new)
    with MetricWriter(workdir) as writer:
        for r in experiment.rounds:
            experiment.run_round(r, writer)
    if jax.process_index() == 0:
        path = report.build(workdir)
        print(f"\n{report.table(experiment.results.rows)}")
        print(f"\nReport: {path}  ({format_seconds(time.monotonic() - began)})")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One way in which a model is sampled and measured.

    Attributes:
      guidance: weight; None for a model that takes none. pictured: its samples are kept.
      first: of the first guidance weight. own: the model's own solver and steps, and `first`.
    """

    sampling: Sampling
    guidance: float | None
    pictured: bool
    first: bool
    own: bool

    @property
    def name(self) -> str:
        """In samples.npz: the step count, and the weight if it is not the first."""
        steps = str(self.sampling.num_steps)
        return steps if self.first else f"{steps}@{self.guidance:g}"


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
            if r.loop.batch_size % self.mesh.size:
                raise ConfigError(
                    f"{r.name}: batch_size {r.loop.batch_size} must be a multiple of the "
                    f"{self.mesh.size} devices"
                )
            outside = [
                w
                for w in config.evaluation.guidance
                if r.guidance and not r.guidance[0] <= w <= r.guidance[1]
            ]
            if outside:
                raise ConfigError(
                    f"evaluation.guidance: {r.name} takes weights in {list(r.guidance)}; "
                    f"got {outside[0]:g}"
                )
            if r.select and not r.select.startswith(DISTANCES):
                raise ConfigError(f"{r.name}: select must be a distance, fid, fd_* or kid*; got "
                                  f"{r.select!r}")  # fmt: skip
            if r.select:
                self._evaluator((r.select,), config.evaluation.references[:1])
        self.evaluator = self._evaluator(config.evaluation.metrics, config.evaluation.references)
        self._solvers = [parse_solver(text) for text in config.evaluation.solvers]
        self._key = jax.random.key(config.seed)

    def claim(self, config: dict[str, Any], new: bool) -> None:
        """Takes the run directory: writes config.json, or checks the one that is there.

        Rows of a model that will be trained on are dropped.
        """
        try:
            if new and self.workdir.exists() and jax.process_index() == 0:
                say(f"{self.workdir} is moved to {_move_aside(self.workdir)}")
            self._claim(config)
        except OSError as error:
            raise ConfigError(f"cannot use the run directory {self.workdir}: {error}") from error

    def _claim(self, config: dict[str, Any]) -> None:
        path = self.workdir / "config.json"
        if path.exists():
            try:
                before = json.loads(path.read_text())["config"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path} is damaged: {error!r}; --new starts again") from error
            changed = [d for d in differences(before, config) if not self._is_harmless(*d)]
            if changed:
                lines = "; ".join(f"{key}: {old!r} -> {new!r}" for key, old, new in changed)
                raise ConfigError(
                    f"{self.workdir} holds a run with another config; give another --workdir, or "
                    f"--new to start again there. They differ in: {lines}"
                )
        if jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            resolved = {"config": config, "versions": models.versions(), "commit": git_commit()}
            write_atomically(path, json.dumps(resolved, indent=2) + "\n")
        updates = {r.name: r.loop.num_updates for r in self.rounds}
        self.results = LogFile(
            self.workdir / "results.jsonl",
            keep=lambda row: row["train_steps"] == updates.get(row["stage"], row["train_steps"]),
        )

    def _is_harmless(self, key: str, old: Any, new: Any) -> bool:
        """Whether a run may go on with this change of its config."""
        if match := re.fullmatch(HARMLESS, key):
            chosen = match["save"] and getattr(self.config.stages[int(match["save"])], "select", "")
            return not chosen  # the saves are what the model is chosen among
        last = len(self.config.stages) - 1
        name = self.config.stages[last].name
        return (
            key == f"stages[{last}].loop.num_updates"
            and isinstance(old, int)
            and old < new
            and [r.name for r in self.rounds if r.name == name or r.name.startswith(f"{name}/")]
            == [name]
        )

    def run_round(self, r: Round, writer: MetricWriter) -> None:
        """Trains, exports and measures one round, whatever of that is not done yet."""
        directory = self.workdir / r.name
        if not self._is_trained(r):
            self._train_and_export(r, directory, writer)
        todo = [drawing for drawing in self._drawings(r) if not self._is_measured(r, drawing)]
        if todo:
            model = models.load(directory / "model", self.mesh)
            for drawing in todo:
                self._measure(r, model, drawing, writer)

    def _is_trained(self, r: Round) -> bool:
        directory = self.workdir / r.name / "model"
        return directory.exists() and models.read_card(directory)["train_steps"] == (
            r.loop.num_updates
        )

    def _train_and_export(self, r: Round, directory: Path, writer: MetricWriter) -> None:
        parent = r.parent and models.load(self.workdir / r.parent / "model", self.mesh).params
        init_key, train_key = jax.random.split(jax.random.fold_in(self._key, stable_hash(r.name)))
        state = init_state(r.init, self.mesh, init_key, parent)
        pipeline = Pipeline(
            self.train_data,
            r.loop.batch_size,
            seed=stable_hash(f"{self.config.seed}/{r.name}"),
            resident=self.config.data.resident,
        )
        selection = self._selection(r, directory, writer) if r.select else None

        def on_save(step: int, state: TrainState) -> None:
            if selection:
                selection(step, r.method.export(state))

        try:
            state = train(
                r.method, state, pipeline, r.loop, train_key,
                name=r.name, directory=directory, writer=writer, mesh=self.mesh,
                flip=self.config.data.flip, stop=self.stop, on_save=on_save,
            )  # fmt: skip
        except Diverged as error:
            if not (selection and selection.found):
                raise
            say(f"warning: {error}")
        for name in ("samples.npz", "pictures.npz"):  # of the model before, if it is trained on
            (directory / name).unlink(missing_ok=True)
        if selection:
            selection.finish(**self._length(r))
        else:
            self._save_model(r, directory / "model", r.method.export(state), r.loop.num_updates)

    def _save_model(self, r: Round, directory: Path, params: Any, step: int) -> None:
        """Exports the parameters of update `step`."""
        models.save(
            directory, r.method.diffuser, params,
            kind="one_step" if r.solver == "one_step" else "denoiser",
            solver=r.solver or "ddim", num_steps=r.num_steps[0],
            clip=self._clip, num_labels=r.method.diffuser.num_labels,
            guidance=r.guidance and [w if math.isfinite(w) else None for w in r.guidance], data={
                "name": self.train_data.name, "shape": self.train_data.image_shape,
                "scale": "image / 127.5 - 1",
            },
            stage=r.name, method=r.method_name, parent=r.parent,
            trainable_fraction=r.trainable_fraction, selected_step=step, **self._length(r),
        )  # fmt: skip

    def _length(self, r: Round) -> dict[str, int]:
        """How long a round's training is, for its model's card."""
        updates = r.loop.num_updates
        return {"train_steps": updates, "images_seen": updates * r.loop.batch_size}

    def _selection(self, r: Round, directory: Path, writer: MetricWriter) -> Selection:
        """By samples of the noise and the labels that the model will be measured with."""
        evaluator = self._evaluator((r.select,), self.config.evaluation.references[:1])
        num, diffuser = evaluator.num_samples, r.method.diffuser
        sampling = Sampling(r.num_steps[0], parse_solver(r.solver or "ddim"), self._clip)

        def generate(params: Any) -> np.ndarray:
            batches = generate_batches(
                diffuser, params, evaluation_key(self.config.seed), num, sampling=sampling,
                shape=self.train_data.image_shape, batch_size=self.config.evaluation.batch_size,
                labels=draw_labels(diffuser, self.train_data.labels, num, self.config.seed),
                mesh=self.mesh,
            )  # fmt: skip
            return np.concatenate(list(batches))

        def save(directory: Path, params: Any, step: int) -> None:
            self._save_model(r, directory, params, step)

        return Selection(directory, r.name, evaluator, generate, save, writer)

    def _measure(self, r: Round, model: Model, drawing: Drawing, writer: MetricWriter) -> None:
        num = self.evaluator.num_samples if self.evaluator.metrics else GRID_IMAGES
        sampling = drawing.sampling
        rows, samples = measure(
            model,
            self.evaluator,
            stage=r.name,
            sampling=sampling,
            guidance=drawing.guidance,
            num=num,
            seed=self.config.seed,
            batch_size=self.config.evaluation.batch_size,
            mesh=self.mesh,
            labels=draw_labels(model.diffuser, self.train_data.labels, num, self.config.seed),
            keep=PICTURE_IMAGES,
        )
        self._keep_pictures(r, drawing, samples, writer)
        present = {row_key(row) for row in self.results.rows}
        for row in rows:
            if row_key(row) not in present:
                self.results.append(row)
        values = "  ".join(
            f"{row['metric']} {row['reference'] or ''} {row['value']:.3f}" for row in rows
        )
        weight = "" if drawing.guidance is None else f" w {drawing.guidance:g}"
        say(f"{r.name:<16} {sampling.solver.name} {sampling.num_steps} steps{weight}: {values}")
        name = f"{r.name}/{sampling.solver.name}{weight.replace(' ', '_')}"
        scalars = {f"{name}/{row['metric']}/{row['reference']}": row["value"] for row in rows}
        writer.write_scalars(sampling.nfe, scalars)

    def _is_measured(self, r: Round, drawing: Drawing) -> bool:
        sampled = identity(
            r.name, r.method.diffuser, drawing.sampling, drawing.guidance, self.config.seed
        )
        expected = {
            row_key(sampled | {"metric": metric, "reference": reference})
            for metric, reference in self.evaluator.expected()
        }
        rows = {row_key(row) for row in self.results.rows}
        return expected <= rows and (
            not drawing.pictured
            or (
                drawing.name in self._arrays(r, "samples.npz")
                and (not drawing.own or bool(self._arrays(r, "pictures.npz")))
            )
        )

    def _arrays(self, r: Round, name: str) -> dict[str, np.ndarray]:
        path = self.workdir / r.name / name
        return dict(np.load(path)) if path.exists() else {}

    def _keep_pictures(self, r: Round, drawing: Drawing, samples: np.ndarray, writer) -> None:
        """Adds the first solver's samples to samples.npz, {drawing's name: uint8 [n, H, W, C]}.

        The model's own samples also make pictures.npz, see `Evaluator.pictures`.
        """
        if not drawing.pictured or jax.process_index() > 0:
            return
        if drawing.own:
            arrays = self.evaluator.pictures(samples)
            write_arrays(self.workdir / r.name / "pictures.npz", arrays)
        grid = samples[:GRID_IMAGES]
        grids = self._arrays(r, "samples.npz") | {drawing.name: grid}
        write_arrays(self.workdir / r.name / "samples.npz", grids)
        writer.write_images(
            drawing.sampling.num_steps, {f"{r.name}/samples/{drawing.name}": report.tile(grid)}
        )

    def _drawings(self, r: Round) -> list[Drawing]:
        solvers = [parse_solver(r.solver)] if r.solver else self._solvers
        weights = (None,) if r.guidance is None else self.config.evaluation.guidance
        return [
            Drawing(
                Sampling(num_steps, solver, self._clip),
                weight,
                pictured=solver == solvers[0],
                first=weight == weights[0],
                own=(solver, num_steps, weight) == (solvers[0], r.num_steps[0], weights[0]),
            )
            for solver in solvers
            for num_steps in r.num_steps
            for weight in weights
        ]

    @property
    def _clip(self) -> tuple[float, float] | None:
        return (-1.0, 1.0) if self.config.evaluation.clip else None

    def _evaluator(self, metrics: Sequence[str], references: Sequence[str]) -> Evaluator:
        """Of these metrics, against these splits."""
        settings = self.config.evaluation

        def reference(split: str) -> Reference:
            data = self.train_data
            if split != self.config.data.train:
                data = load_dataset(self.config.data.name, split)
            return Reference(data.name, data.images, data.labels)

        try:
            return Evaluator(
                [reference(split) for split in references],
                metrics,
                num_samples=settings.num_samples,
                features=settings.features,
                held_out=reference(settings.held_out) if NEIGHBOURS in metrics else None,
                options={"inception": {"weights": settings.inception_weights or None}},
            )
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"evaluation: {error}") from error


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two plain configs differ, as (key, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        prefix = f"{path}." if path else ""
        pairs = [(f"{prefix}{key}", old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(path, old, new)]
    return [found for p, a, b in pairs for found in differences(a, b, p)]


def _move_aside(directory: Path) -> Path:
    """Renames to the first of <directory>.1, .2, ... that is free."""
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    return directory.rename(target)


def git_commit() -> str | None:
    """The commit of the code that runs, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

"""A config's stages, run in order: each round is trained, exported, measured and reported.

Everything is resumable: a round that has its model is not trained again, a measurement that has
its row is not made again, and training goes on from the newest checkpoint.
"""

import json
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdistill import model as models
from pdistill import report
from pdistill.config import ConfigError, ExperimentConfig, parse
from pdistill.data import Dataset, Pipeline, load_dataset
from pdistill.evaluation import NEIGHBOURS, Evaluator, Sampling, draw, generate_batches
from pdistill.files import write_atomically
from pdistill.methods import Round
from pdistill.samplers import parse_solver
from pdistill.sharding import make_mesh
from pdistill.training import init_state, train
from pdistill.training.logging import LogFile, MetricWriter, format_seconds, say

ROW_KEY = (
    *("stage", "nfe", "solver", "variance", "metric", "reference", "seed", "guidance", "gamma"),
)
GRID_IMAGES = 64  # kept of every set of samples, for the figures


def run(config: Any, workdir: str | Path) -> None:
    """Runs an experiment to its end, from wherever it stopped, and builds its report.

    Args:
      config: a ConfigDict, as in configs/. workdir: the run directory.

    Raises:
      ConfigError: before anything is compiled, if the config cannot run.
    """
    began = time.monotonic()
    plain = json.loads(config.to_json())
    experiment = Experiment(parse(plain), Path(workdir))
    experiment.claim(plain)
    with MetricWriter(workdir) as writer:
        for r in experiment.rounds:
            experiment.run_round(r, writer)
    if jax.process_index() == 0:
        path = report.build(workdir)
        print(f"\n{report.table(experiment.results.rows)}")
        print(f"\nReport: {path}  ({format_seconds(time.monotonic() - began)})")


class Experiment:
    """One run directory and what fills it."""

    def __init__(self, config: ExperimentConfig, workdir: Path):
        self.config = config
        self.workdir = workdir
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
        self.evaluator = self._evaluator()
        self._solvers = [parse_solver(text) for text in config.evaluation.solvers]
        self._key = jax.random.key(config.seed)

    def claim(self, config: dict[str, Any]) -> None:
        """Takes the run directory: writes config.json, or checks the one that is there."""
        path = self.workdir / "config.json"
        if path.exists():
            changed = differences(json.loads(path.read_text())["config"], config)
            if changed:
                raise ConfigError(
                    f"{self.workdir} holds a run with another config; give another --workdir. "
                    "They differ in: " + "; ".join(changed)
                )
        elif jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            resolved = {"config": config, "versions": models.versions(), "commit": git_commit()}
            write_atomically(path, json.dumps(resolved, indent=2) + "\n")
        self.results = LogFile(self.workdir / "results.jsonl")

    def run_round(self, r: Round, writer: MetricWriter) -> None:
        """Trains, exports and measures one round, whatever of that is not done yet."""
        directory = self.workdir / r.name
        if not (directory / "model").exists():
            self._train_and_export(r, directory, writer)
        todo = [s for s in self._samplings(r) if not self._is_measured(r, s)]
        if todo:
            params = models.load(directory / "model", self.mesh).params
            for sampling in todo:
                self._measure(r, params, sampling, writer)

    def _train_and_export(self, r: Round, directory: Path, writer: MetricWriter) -> None:
        parent = r.parent and models.load(self.workdir / r.parent / "model", self.mesh).params
        init_key, train_key = jax.random.split(jax.random.fold_in(self._key, _hash(r.name)))
        state = init_state(r.init, self.mesh, init_key, parent)
        pipeline = Pipeline(
            self.train_data,
            r.loop.batch_size,
            seed=_hash(f"{self.config.seed}/{r.name}"),
            resident=self.config.data.resident,
        )
        state = train(
            r.method, state, pipeline, r.loop, train_key,
            name=r.name, directory=directory, writer=writer, mesh=self.mesh,
            flip=self.config.data.flip,
        )  # fmt: skip
        params = r.method.export(state)
        models.save(
            directory / "model", r.method.diffuser, params,
            kind="denoiser", solver="ddim", num_steps=r.num_steps[0],
            clip=self._clip, num_labels=r.method.diffuser.num_labels,
            guidance=None, data={
                "name": self.train_data.name, "shape": self.train_data.image_shape,
                "scale": "image / 127.5 - 1",
            },
            method=r.method_name, parent=r.parent, trainable_fraction=1.0,
            train_steps=r.loop.num_updates, images_seen=r.loop.num_updates * r.loop.batch_size,
        )  # fmt: skip

    def _measure(self, r: Round, params: Any, sampling: Sampling, writer: MetricWriter) -> None:
        num = GRID_IMAGES
        if self.evaluator.metrics:
            num = self.config.evaluation.num_samples or self.evaluator.num_samples
        batches = generate_batches(
            r.method.diffuser, params,
            jax.random.fold_in(self._key, _hash("evaluation")),  # the same noise for every model
            num, sampling=sampling, shape=self.train_data.image_shape,
            labels=self._labels(num) if r.method.diffuser.num_labels else None,
            batch_size=self.config.evaluation.batch_size, mesh=self.mesh,
        )  # fmt: skip
        samples, seconds_per_image = draw(batches)
        self._keep_grid(r, sampling, samples[:GRID_IMAGES], writer)
        rows = [
            self._identity(r, sampling)
            | {
                "method": r.method_name,
                "metric": m.metric,
                "value": m.value,
                "num_samples": m.num_samples,
                "reference": m.reference,
                "seconds_per_image": seconds_per_image,
                "train_steps": r.loop.num_updates,
                "images_seen": r.loop.num_updates * r.loop.batch_size,
                "device": jax.devices()[0].device_kind,
                "rounding": "nearest",
            }
            for m in self.evaluator.measure(samples)
        ]
        present = {row_key(row) for row in self.results.rows}
        for row in rows:
            if row_key(row) not in present:
                self.results.append(row)
        values = "  ".join(f"{m['metric']} {m['reference']} {m['value']:.3f}" for m in rows)
        say(f"{r.name:<16} {sampling.solver.name} {sampling.num_steps} steps: {values}")
        name = f"{r.name}/{sampling.solver.name}"
        scalars = {f"{name}/{m['metric']}/{m['reference']}": m["value"] for m in rows}
        writer.write_scalars(sampling.nfe, scalars)

    def _identity(self, r: Round, sampling: Sampling) -> dict[str, Any]:
        """The part of a row that says what was sampled."""
        identity = {
            "stage": r.name,
            "nfe": sampling.nfe,
            "solver": sampling.solver.name,
            "seed": self.config.seed,
        }
        if sampling.solver.stochastic:
            identity["variance"] = sampling.solver.variance
        return identity

    def _is_measured(self, r: Round, sampling: Sampling) -> bool:
        expected = {
            row_key(self._identity(r, sampling) | {"metric": metric, "reference": dataset.name})
            for metric, dataset in self.evaluator.pairs()
        }
        rows = {row_key(row) for row in self.results.rows}
        return expected <= rows and (
            sampling.solver != self._solvers[0] or str(sampling.num_steps) in self._grids(r)
        )

    def _grids(self, r: Round) -> dict[str, np.ndarray]:
        path = self.workdir / r.name / "samples.npz"
        return dict(np.load(path)) if path.exists() else {}

    def _keep_grid(self, r: Round, sampling: Sampling, samples: np.ndarray, writer) -> None:
        """Adds the first solver's samples to samples.npz, {step count: uint8 [n, H, W, C]}."""
        if sampling.solver != self._solvers[0] or jax.process_index() > 0:
            return
        path = self.workdir / r.name / "samples.npz"
        temporary = path.with_name("samples.tmp.npz")
        np.savez(temporary, **(self._grids(r) | {str(sampling.num_steps): samples}))
        temporary.replace(path)
        writer.write_images(sampling.num_steps, {f"{r.name}/samples": report.tile(samples)})

    def _samplings(self, r: Round) -> list[Sampling]:
        return [
            Sampling(num_steps, solver, self._clip)
            for solver in self._solvers
            for num_steps in r.num_steps
        ]

    @property
    def _clip(self) -> tuple[float, float] | None:
        return (-1.0, 1.0) if self.config.evaluation.clip else None

    def _labels(self, num: int) -> np.ndarray:
        """Labels [num] with the training data's distribution, the same for every model."""
        rng = np.random.RandomState(_hash(f"{self.config.seed}/labels"))
        return rng.choice(self.train_data.labels, num)

    def _evaluator(self) -> Evaluator:
        settings = self.config.evaluation

        def split(name: str) -> Dataset:
            if name == self.config.data.train:
                return self.train_data
            return load_dataset(self.config.data.name, name)

        try:
            return Evaluator(
                [split(name) for name in settings.references],
                split(settings.held_out) if NEIGHBOURS in settings.metrics else None,
                settings.metrics,
            )
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"evaluation: {error}") from error


def row_key(row: dict[str, Any]) -> tuple:
    """What makes a row of results.jsonl unique."""
    return tuple(row.get(name) for name in ROW_KEY)


def differences(old: Any, new: Any, path: str = "config") -> list[str]:
    """Where two plain configs differ, as "path: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(f"{path}.{key}", old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
    return [line for p, a, b in pairs for line in differences(a, b, p)]


def git_commit() -> str | None:
    """The commit of the code that runs, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _hash(text: str) -> int:
    """31 bits of text, the same in every process."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF

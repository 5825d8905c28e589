"""Measurements of a run's models: those to be made, and those that are there already."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pdistill import report
from pdistill.data import Dataset, load_dataset
from pdistill.evaluation import NEIGHBOURS, Evaluator, Reference
from pdistill.experiment import rows as results
from pdistill.experiment.config import ConfigError, ExperimentConfig
from pdistill.experiment.imported import Imported, own_sampling
from pdistill.experiment.plan import Planned
from pdistill.features import Extractor
from pdistill.model import Model
from pdistill.model.card import find
from pdistill.model.codecs import load_codec, reconstructions
from pdistill.model.sampling import Sampling, Timed
from pdistill.networks import Codec, Conditioning, Network, Text
from pdistill.runtime.files import write_arrays
from pdistill.runtime.terminal import conclude, format_count, update
from pdistill.samplers import Gamma, format_steps, parse_solver
from pdistill.training.logging import Writer
from pdistill.training.stacking import unstacked

GRID_IMAGES = 64  # kept of every set of samples, for the figures
PICTURE_IMAGES = 1000  # that spectra are averaged over


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One way in which a model is sampled and measured.

    Attributes:
      guidance: weight; None for a model that takes none. pictured: its samples are kept.
      first: sampled at the first guidance weight. main: sampled as the card says, and `first`.
    """

    sampling: Sampling
    guidance: float | None
    pictured: bool
    first: bool
    main: bool

    @property
    def name(self) -> str:
        """In samples.npz: the step count, and the weight if it is not the first."""
        steps = str(format_steps(self.sampling.num_steps))
        return steps if self.first else f"{steps}@{self.guidance:g}"

    @property
    def solver(self) -> str:
        """Name of the solver, for people, such as gamma:0.5."""
        solver = self.sampling.solver
        return f"{solver.name}:{solver.gamma:g}" if solver.jumps else solver.name

    @property
    def weight(self) -> str:
        """The guidance weight, for people; "" if there is none."""
        return "" if self.guidance is None else f" w {self.guidance:g}"

    @property
    def tag(self) -> str:
        """The part of TensorBoard's names that tells how it was sampled."""
        return self.solver + self.weight.replace(" ", "_")


class Measurements:
    """The rows of results.jsonl and the pictures beside each model.

    Attributes:
      text: prompts of the training images, for networks that take some; set before any is measured.

    Args:
      data: the training images. runs: all of the experiment.

    Raises:
      ConfigError: metrics, references or weights of guidance that these runs do not allow.
    """

    def __init__(
        self,
        workdir: Path,
        config: ExperimentConfig,
        data: Dataset,
        runs: Mapping[str, Planned],
        mesh: Mesh,
    ):
        self._workdir = workdir
        self._data = data
        self._mesh = mesh
        self._config = config
        self._settings = config.evaluation
        self._splits = {config.data.train: data}
        self._references: dict[tuple[str, tuple[int, ...]], Reference] = {}
        self._codecs: dict[Path, Codec] = {}
        self._extractors: dict[str, Extractor] = {}
        self.text: Text | None = None
        sampled = [r for r in runs.values() if not r.makes_codec]
        for r in sampled:
            self._check_guidance(r)
            self._check_labels(r)
        try:
            for r in sampled:
                self._measurements(r)  # raises for steps that a solver cannot take
            splits = self._settings.references
            self._evaluators = {
                shape: self._build(self._settings.metrics, splits, shape)
                for shape in {r.image_shape for r in runs.values() if r.run.measured}
                | {r.image_shape for r in runs.values() if r.makes_codec}
            }
            self._selecting = {
                (r.run.select, r.image_shape): self._build(
                    (r.run.select,), splits[:1], r.image_shape
                )
                for r in runs.values()
                if r.run.select
            }
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"evaluation: {error}") from error

    def open(self, updates: Mapping[str, int | None]) -> None:
        """Reads what is there; drops rows of models whose run has other `updates`, see `open_log`.

        Raises:
          OSError: it cannot be read or written. ConfigError: a metric has rows of another space;
            nothing is written.
        """
        path = self._workdir / "results.jsonl"
        self._log = results.open_log(path, updates, self._evaluators.values())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self._log.rows

    def missing(self, r: Planned) -> list[Measurement]:
        """Measurements of a run's model that are still to be made."""
        return [
            measurement
            for measurement in self._measurements(r)
            if not self._is_measured(r, measurement)
        ]

    def measure(self, r: Planned, model: Model, measurement: Measurement, writer: Writer) -> None:
        """Adds the rows and pictures of one measurement."""
        sampling, evaluator = measurement.sampling, self._evaluators[r.image_shape]
        num = evaluator.num_samples if evaluator.metrics else GRID_IMAGES
        steps = format_count(format_steps(sampling.num_steps), "step")
        what = f"{r.name:<16} {measurement.solver} {steps}{measurement.weight}"
        update(f"{what}: samples and measures {num:,} images")
        in_turns = model.network.takes_text
        drawn = results.draw_rows(len(self._data), num, self._config.seed, in_turns=in_turns)
        rows, samples = results.measure(
            model,
            evaluator,
            stage=r.name,
            guidance=measurement.guidance,
            keep=PICTURE_IMAGES,
            prompts=[self._prompts[i] for i in drawn] if evaluator.takes_prompts else None,
            description=what,
            **self._sampling_arguments(model.network, sampling, num),
        )
        nfe = self._identity(r, measurement)["nfe"]
        pictured = self._keep_pictures(r, measurement, samples)
        rows = self._append(rows)
        conclude(f"{what}: {results.format_values(rows)}")
        if pictured:
            grid = report.tile(samples[:GRID_IMAGES])
            writer.write_images(nfe, {f"{r.name}/samples/{measurement.name}": grid})
        name = f"{r.name}/{measurement.tag}"
        scalars = {f"{name}/{row['metric']}/{row['reference']}": row["value"] for row in rows}
        writer.write_scalars(nfe, scalars)
        writer.flush()

    def measure_codec(self, r: Planned) -> None:
        """Adds the rows of training images that a codec has encoded and decoded, of no evaluations.

        They say how close latents can come. Nothing is done where they are there already.
        """
        evaluator = self._evaluators[r.image_shape]
        if not evaluator.metrics:
            return
        what = {
            **{"stage": r.name, "num_steps": 0, "nfe": 0, "solver": "codec"},
            "seed": self._config.seed,
        }
        num = min(evaluator.num_samples, len(self._data))
        if self._has(what, evaluator, num):
            return
        shown = f"{r.name:<16} encoded and decoded"
        images = self._data.of_shape(r.image_shape).images
        update(f"{shown}: measures {num:,} images")
        chosen = np.linspace(0, len(images) - 1, num).astype(int)
        codec = self._codec(find(self._workdir / r.name))
        batches = reconstructions(
            codec, images, chosen, self._settings.batch_size, self._mesh, shown
        )
        about = {
            "method": r.run.method.name,
            "train_steps": r.run.loop.num_updates,
            "images_seen": r.run.loop.images_seen,
            "seconds_per_image": None,
            "device": jax.devices()[0].device_kind,
            "devices": self._mesh.size,
        }
        prompts = [self._prompts[i] for i in chosen] if evaluator.takes_prompts else None
        measured = evaluator.measure(batches, self._data.labels[chosen], prompts, paired=True)
        rows = self._append([what | row | about for row in measured])
        conclude(f"{shown}: {results.format_values(rows)}")

    def _has(self, what: dict[str, Any], evaluator: Evaluator, num: float = math.inf) -> bool:
        """Whether all rows of an evaluator are there for what was sampled, `num` at most."""
        expected = {
            results.row_key(what | {"metric": metric, "reference": reference})
            for metric, reference in evaluator.expected(num)
        }
        return expected <= {results.row_key(row) for row in self.rows}

    def _append(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Logs rows but for those that are there: of other metrics, or until a kill."""
        present = {results.row_key(row) for row in self.rows}
        rows = [row for row in rows if results.row_key(row) not in present]
        for row in rows:
            self._log.append(row)
        return rows

    def of_network(self, r: Planned, network: Network) -> tuple[dict[str, Any], np.ndarray]:
        """The row by which a run's model is chosen, and its first samples, uint8 [n, H, W, C].

        The noise and the labels are those that the model will be measured with, and so are the
        batches, whose sums are then the same; of the samples n = `PICTURE_IMAGES` are kept at most.
        """
        evaluator = self._selecting[r.run.select, r.image_shape]
        update(f"{r.name:<16} measures {r.run.select} of {evaluator.num_samples:,} images")
        solver = parse_solver(network.sampler or "ddim")
        network = unstacked(network)
        if r.codec:
            network = network.replace(codec=self._codec(r.codec.directory(self._workdir)))
        sampling = Sampling(r.measured_at[0], solver, self.clip(r))
        how = self._sampling_arguments(network, sampling, evaluator.num_samples)
        batches = results.draw_samples(network, description=f"{r.name:<16} {r.run.select}", **how)
        samples = Timed(batches, PICTURE_IMAGES)
        [row] = evaluator.measure(samples, how["told"].label, paired=network.takes_text)
        return row, samples.first

    @functools.cached_property
    def _prompts(self) -> list[str]:
        """The main caption of each training image."""
        return [captions[0] for captions in self._data.captions]

    def clip(self, r: Planned) -> tuple[float, float] | None:
        """Range that a run's x_hat is clipped to in sampling, or None, as for latents."""
        _, clip = own_sampling(r.run.method)
        return clip if self._settings.clip and not r.codec else None

    def _codec(self, directory: Path) -> Codec:
        if directory not in self._codecs:
            self._codecs[directory] = load_codec(directory, self._mesh)
        return self._codecs[directory]

    def _sampling_arguments(self, network: Network, sampling: Sampling, num: int) -> dict[str, Any]:
        """Arguments that all samples are drawn with."""
        data = Conditioning(label=self._data.labels, text=self.text)
        return {
            "sampling": sampling,
            "num": num,
            "told": results.draw_told(network, data, num, self._config.seed),
            "seed": self._config.seed,
            "batch_size": self._settings.batch_size,
            "mesh": self._mesh,
        }

    def _identity(self, r: Planned, m: Measurement) -> dict[str, Any]:
        return results.identity(r.name, r.network, m.sampling, m.guidance, self._config.seed)

    def _is_measured(self, r: Planned, measurement: Measurement) -> bool:
        sampled = self._identity(r, measurement)
        return self._has(sampled, self._evaluators[r.image_shape]) and (
            not measurement.pictured
            or (
                measurement.name in self._arrays(r, "samples.npz")
                and (not measurement.main or bool(self._arrays(r, "pictures.npz")))
            )
        )

    def _arrays(self, r: Planned, name: str) -> dict[str, np.ndarray]:
        path = self._workdir / r.name / name
        return dict(np.load(path)) if path.exists() else {}

    def _keep_pictures(self, r: Planned, measurement: Measurement, samples: np.ndarray) -> bool:
        """Adds the first solver's samples to samples.npz, {measurement's name: uint8 [n, H, W, C]}.

        The model's own samples also make pictures.npz, see `Evaluator.pictures`. Tells whether they
        were not there yet.
        """
        if not measurement.pictured:
            return False
        # By all processes, which compute features together.
        pictures = self._evaluators[r.image_shape].pictures(samples) if measurement.main else None
        before = self._arrays(r, "samples.npz")
        if jax.process_index() == 0:
            if pictures:
                write_arrays(self._workdir / r.name / "pictures.npz", pictures)
            grids = before | {measurement.name: samples[:GRID_IMAGES]}
            write_arrays(self._workdir / r.name / "samples.npz", grids)
        return measurement.name not in before

    def forget(self, r: Planned, writer: Writer) -> None:
        """Deletes pictures, rows, and what is logged, of the model that is about to be replaced."""
        self._log.drop(lambda row: row["stage"] == r.name)
        for name in ("samples.npz", "pictures.npz"):
            (self._workdir / r.name / name).unlink(missing_ok=True)
        measured = () if r.makes_codec else self._measurements(r)
        for name in {"samples", *(measurement.tag for measurement in measured)}:
            writer.rewind(f"{r.name}/{name}", 0)

    def _measurements(self, r: Planned) -> list[Measurement]:
        names = self._settings.solvers or own_sampling(r.run.method)[:1]
        names = (r.network.sampler,) if r.network.sampler else names
        solvers = [parse_solver(name) for name in names]
        if solvers[0].jumps and self._settings.gammas:
            solvers = [Gamma(gamma) for gamma in self._settings.gammas]
        weights = (None,) if r.network.guidance is None else self._settings.guidance
        return [
            Measurement(
                Sampling(num_steps, solver, self.clip(r)),
                weight,
                pictured=solver == solvers[0],
                first=weight == weights[0],
                main=(solver, num_steps, weight) == (solvers[0], r.measured_at[0], weights[0]),
            )
            for solver in solvers
            for num_steps in r.measured_at
            for weight in weights
            # One jump is the same for every gamma, and one step not for every solver.
            if num_steps != 1 or solver == solvers[0] or not (solver.jumps or solver.min_steps > 1)
        ]

    def _check_guidance(self, r: Planned) -> None:
        for w in self._settings.guidance:
            low, high = r.network.guidance or (w, w)
            if not low <= w <= high:
                raise ConfigError(
                    f"evaluation.guidance: {r.name} takes weights in {[low, high]}; got {w:g}"
                )

    def _check_labels(self, r: Planned) -> None:
        num_labels, classes = r.network.num_labels, self._data.num_labels
        if 0 < num_labels < classes:
            raise ConfigError(
                f"{r.name}: num_labels {num_labels} is less than the {classes} classes of "
                f"{self._data.name}"
            )
        if isinstance(r.run.method, Imported) and num_labels > classes:
            raise ConfigError(
                f"{r.name}: the imported model takes {num_labels} labels, but {self._data.name} "
                f"has {classes} classes; give the data that it was trained on, as data.name"
            )
        metrics = self._settings.metrics if r.run.measured else ()
        told = [name for name in metrics if name.startswith("label_accuracy")]
        if not num_labels and told:
            raise ConfigError(f"evaluation.metrics: {told[0]}, but {r.name} takes no labels")
        if not r.network.takes_text and "clip_score" in metrics:
            raise ConfigError(f"evaluation.metrics: clip_score, but {r.name} takes no prompts")

    def _reference(self, split: str, shape: tuple[int, ...]) -> Reference:
        """A split's images at a shape; each is made once."""
        if (split, shape) not in self._references:
            if split not in self._splits:
                self._splits[split] = load_dataset(
                    self._config.data.name, split, in_memory=self._config.data.resident
                )
            data = self._splits[split].of_shape(shape)
            self._references[split, shape] = Reference.of_dataset(data)
        return self._references[split, shape]

    def _build(
        self, metrics: Sequence[str], splits: Sequence[str], shape: tuple[int, ...]
    ) -> Evaluator:
        settings = self._settings
        held_out = self._reference(settings.held_out, shape) if NEIGHBOURS in metrics else None
        return Evaluator(
            [self._reference(split, shape) for split in splits],
            metrics,
            num_samples=settings.num_samples,
            features=settings.features,
            held_out=held_out,
            options={"inception": {"weights": settings.inception_weights or None}},
            training=self._reference(self._config.data.train, shape),
            mirrored=self._config.data.flip,
            extractors=self._extractors,
        )

"""What is measured of a run's models, and what is there already."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pdistill import report
from pdistill.data import Dataset, load_dataset
from pdistill.evaluation import NEIGHBOURS, Evaluator, Reference
from pdistill.experiment.config import ConfigError, ExperimentConfig
from pdistill.experiment.rows import draw_samples, identity, measure, row_key
from pdistill.methods import Round
from pdistill.model import Model
from pdistill.model.sampling import Sampling
from pdistill.runtime.files import write_arrays
from pdistill.runtime.terminal import say
from pdistill.samplers import Gamma, format_steps, parse_solver
from pdistill.training.logging import LogFile, MetricWriter

GRID_IMAGES = 64  # kept of every set of samples, for the figures
PICTURE_IMAGES = 1000  # that spectra are averaged over


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
        steps = str(format_steps(self.sampling.num_steps))
        return steps if self.first else f"{steps}@{self.guidance:g}"


class Measurements:
    """The rows of results.jsonl and the pictures beside each model.

    Args:
      data: what is trained on. rounds: all of the experiment.

    Raises:
      ConfigError: metrics, references or weights of guidance that these rounds do not allow.
    """

    def __init__(
        self,
        workdir: Path,
        config: ExperimentConfig,
        data: Dataset,
        rounds: Sequence[Round],
        mesh: Mesh,
    ):
        self._workdir = workdir
        self._data = data
        self._mesh = mesh
        self._config = config
        self._settings = config.evaluation
        self._rounds = rounds
        self._splits = {config.data.train: data}
        self._references: dict[tuple[str, tuple[int, ...]], Reference] = {}
        for r in rounds:
            self._check_guidance(r)
            self._check_labels(r)
        try:
            for r in rounds:
                self._drawings(r)  # raises for steps that a solver cannot take
            splits = self._settings.references
            self._evaluators = {
                shape: self._build(self._settings.metrics, splits, shape)
                for shape in {r.image_shape for r in rounds if r.measured}
            }
            self._selecting = {
                (r.select, r.image_shape): self._build((r.select,), splits[:1], r.image_shape)
                for r in rounds
                if r.select
            }
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"evaluation: {error}") from error

    def open(self) -> None:
        """Reads what is there. Rows of a model that will be trained on are dropped.

        Raises:
          OSError: it cannot be read or written.
        """
        updates = {r.name: r.loop.num_updates for r in self._rounds if r.loop}
        self._log = LogFile(
            self._workdir / "results.jsonl",
            keep=lambda row: row["train_steps"] == updates.get(row["stage"], row["train_steps"]),
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self._log.rows

    def missing(self, r: Round) -> list[Drawing]:
        """What is still to be measured of a round's model."""
        return [drawing for drawing in self._drawings(r) if not self._is_measured(r, drawing)]

    def measure(self, r: Round, model: Model, drawing: Drawing, writer: MetricWriter) -> None:
        """Adds the rows and pictures of one drawing."""
        sampling, evaluator = drawing.sampling, self._evaluators[r.image_shape]
        rows, samples = measure(
            model,
            evaluator,
            stage=r.name,
            guidance=drawing.guidance,
            num=evaluator.num_samples if evaluator.metrics else GRID_IMAGES,
            keep=PICTURE_IMAGES,
            **self._how(sampling),
        )
        self._keep_pictures(r, drawing, samples, writer)
        present = {row_key(row) for row in self.rows}
        for row in rows:
            if row_key(row) not in present:
                self._log.append(row)
        values = "  ".join(
            f"{row['metric']} {row['reference'] or ''} {row['value']:.3f}" for row in rows
        )
        weight = "" if drawing.guidance is None else f" w {drawing.guidance:g}"
        solver = sampling.solver.name
        if sampling.solver.jumps:
            solver += f":{sampling.solver.gamma:g}"
        steps = format_steps(sampling.num_steps)
        say(f"{r.name:<16} {solver} {steps} steps{weight}: {values}")
        name = f"{r.name}/{solver}{weight.replace(' ', '_')}"
        scalars = {f"{name}/{row['metric']}/{row['reference']}": row["value"] for row in rows}
        writer.write_scalars(sampling.nfe, scalars)

    def of_params(self, r: Round, params: Any) -> tuple[dict[str, Any], np.ndarray]:
        """The row by which a round's model is chosen, and its samples, uint8 [N, H, W, C].

        The noise and the labels are those that the model will be measured with.
        """
        evaluator = self._selecting[r.select, r.image_shape]
        solver = parse_solver(r.solver or "ddim")
        batches, labels = draw_samples(
            r.method.diffuser,
            params,
            shape=r.noise_shape,
            num=evaluator.num_samples,
            **self._how(Sampling(r.num_steps[0], solver, self.clip)),
        )
        samples = np.concatenate(list(batches))
        [row] = evaluator.measure([samples], labels)
        return row, samples

    @property
    def clip(self) -> tuple[float, float] | None:
        """Of x_hat, in sampling."""
        return (-1.0, 1.0) if self._settings.clip else None

    def _how(self, sampling: Sampling) -> dict[str, Any]:
        """What all drawings of samples have in common."""
        return {
            "sampling": sampling,
            "labels": self._data.labels,
            "seed": self._config.seed,
            "batch_size": self._settings.batch_size,
            "mesh": self._mesh,
        }

    def _is_measured(self, r: Round, drawing: Drawing) -> bool:
        seed = self._config.seed
        sampled = identity(r.name, r.method.diffuser, drawing.sampling, drawing.guidance, seed)
        expected = {
            row_key(sampled | {"metric": metric, "reference": reference})
            for metric, reference in self._evaluators[r.image_shape].expected()
        }
        return expected <= {row_key(row) for row in self.rows} and (
            not drawing.pictured
            or (
                drawing.name in self._arrays(r, "samples.npz")
                and (not drawing.own or bool(self._arrays(r, "pictures.npz")))
            )
        )

    def _arrays(self, r: Round, name: str) -> dict[str, np.ndarray]:
        path = self._workdir / r.name / name
        return dict(np.load(path)) if path.exists() else {}

    def _keep_pictures(
        self, r: Round, drawing: Drawing, samples: np.ndarray, writer: MetricWriter
    ) -> None:
        """Adds the first solver's samples to samples.npz, {drawing's name: uint8 [n, H, W, C]}.

        The model's own samples also make pictures.npz, see `Evaluator.pictures`.
        """
        if not drawing.pictured:
            return
        # By all processes, which compute features together.
        pictures = self._evaluators[r.image_shape].pictures(samples) if drawing.own else None
        if jax.process_index() > 0:
            return
        if pictures:
            write_arrays(self._workdir / r.name / "pictures.npz", pictures)
        grid = samples[:GRID_IMAGES]
        grids = self._arrays(r, "samples.npz") | {drawing.name: grid}
        write_arrays(self._workdir / r.name / "samples.npz", grids)
        writer.write_images(
            drawing.sampling.nfe, {f"{r.name}/samples/{drawing.name}": report.tile(grid)}
        )

    def forget_pictures(self, r: Round) -> None:
        """Those of the model before, when a round's model is trained on."""
        for name in ("samples.npz", "pictures.npz"):
            (self._workdir / r.name / name).unlink(missing_ok=True)

    def _drawings(self, r: Round) -> list[Drawing]:
        names = (r.solver,) if r.solver else self._settings.solvers
        solvers = [parse_solver(name) for name in names]
        if solvers[0].jumps:
            solvers = [Gamma(gamma) for gamma in self._settings.gammas]
        weights = (None,) if r.guidance is None else self._settings.guidance
        return [
            Drawing(
                Sampling(num_steps, solver, self.clip, r.upsampled),
                weight,
                pictured=solver == solvers[0],
                first=weight == weights[0],
                own=(solver, num_steps, weight) == (solvers[0], r.num_steps[0], weights[0]),
            )
            for solver in solvers
            for num_steps in r.num_steps
            for weight in weights
            # One jump is the same for every gamma.
            if num_steps != 1 or not solver.jumps or solver == solvers[0]
        ]

    def _check_guidance(self, r: Round) -> None:
        for w in self._settings.guidance:
            if r.guidance and not r.guidance[0] <= w <= r.guidance[1]:
                raise ConfigError(
                    f"evaluation.guidance: {r.name} takes weights in {list(r.guidance)}; got {w:g}"
                )

    def _check_labels(self, r: Round) -> None:
        num_labels, classes = r.method.diffuser.num_labels, self._data.num_labels
        if 0 < num_labels < classes:
            raise ConfigError(
                f"{r.name}: num_labels {num_labels} is less than the {classes} classes of "
                f"{self._data.name}"
            )
        if r.measured and not num_labels and "label_accuracy" in self._settings.metrics:
            raise ConfigError(f"evaluation.metrics: label_accuracy, but {r.name} takes no labels")

    def _reference(self, split: str, shape: tuple[int, ...]) -> Reference:
        """A split's images at a shape; each is made once."""
        if (split, shape) not in self._references:
            if split not in self._splits:
                self._splits[split] = load_dataset(self._config.data.name, split)
            data = self._splits[split]
            data = data.at(shape[0]) if shape != data.image_shape else data
            self._references[split, shape] = Reference(data.name, data.images, data.labels)
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
        )

"""Rows of results.jsonl: what was measured, how, and on what."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdistill.evaluation import NEIGHBOURS, Evaluator
from pdistill.experiment.config import ConfigError
from pdistill.model import Model
from pdistill.model.sampling import Sampling, Timed, generate_batches
from pdistill.networks import Conditioning, Network
from pdistill.report.table import three_digits
from pdistill.runtime.files import read_jsonl
from pdistill.runtime.terminal import say
from pdistill.samplers import Cascade, format_steps
from pdistill.samplers.noise import GENERATOR
from pdistill.training.logging import LogFile

KEY = (
    *("stage", "nfe", "num_steps", "solver", "variance"),
    *("metric", "reference", "seed", "guidance", "gamma", "churn"),
)
OF_A_MODEL = {"stage": str, "train_steps": int | None}  # kinds of what says whose a row is


def row_key(row: dict[str, Any]) -> tuple:
    """The values that make a row unique."""
    return tuple(row.get(name) for name in KEY)


def format_values(rows: Sequence[dict[str, Any]]) -> str:
    """Formats metrics, references and values of rows in a line, for people."""
    return "  ".join(
        f"{row['metric']} {row['reference'] or ''} {three_digits(row['value'])}" for row in rows
    )


def open_log(
    path: Path, updates: Mapping[str, int | None], evaluators: Iterable[Evaluator]
) -> LogFile:
    """Opens results.jsonl without the rows of models whose run has other updates.

    Ratios of earlier versions, to training images without their mirrors, are left out where an
    evaluator counts these.

    Args:
      updates: their number, by the run's name; None for one that will be trained, whose rows stay
        until it has been.

    Raises:
      OSError: it cannot be read or written, or a row does not say which model it is of.
      ConfigError: an evaluator's metric has rows of another feature space; nothing is written.
    """

    def is_current(row: dict[str, Any]) -> bool:
        return row["train_steps"] == updates.get(row["stage"], row["train_steps"])

    def stays(row: dict[str, Any]) -> bool:
        return (is_current(row) or updates.get(row["stage"], 0) is None) and not outdated(row)

    def outdated(row: dict[str, Any]) -> bool:
        return mirrored and row.get("metric") == NEIGHBOURS and "mirrored" not in row

    read, mirrored = read_jsonl(path, OF_A_MODEL), False
    rows = [row for row in read if is_current(row)]
    for evaluator in evaluators:
        _check_spaces(rows, evaluator)
        mirrored = mirrored or any(getattr(m, "mirrored", False) for m in evaluator.metrics)
    if any(map(outdated, read)):
        say(f"rows of {NEIGHBOURS} that do not count mirrors are measured again")
    return LogFile(path, keep=stays)


def _check_spaces(rows: Sequence[dict[str, Any]], evaluator: Evaluator) -> None:
    """Raises ConfigError if an evaluator's metric has rows of another feature space."""
    spaces = {name: metric.features for metric in evaluator.metrics for name in metric.names(0)}
    for row in rows:
        before = row.get("features")
        if (now := spaces.get(row.get("metric"), before)) != before:
            raise ConfigError(
                f"{row['metric']} of {row['stage']} was measured in {before}, and would be in "
                f"{now}: set evaluation.features to {before!r}, or give another --workdir"
            )


def identity(
    stage: str, network: Network, sampling: Sampling, guidance: float | None, seed: int
) -> dict[str, Any]:
    """The part of a row that says what was sampled."""
    fields = {
        "stage": stage,
        "num_steps": format_steps(sampling.num_steps),
        "nfe": sampling.nfe * network.evaluations(network.effective_guidance(guidance)),
        "solver": sampling.solver.name,
        "seed": seed,
    }
    for setting in ("variance", "gamma", "churn"):
        if hasattr(sampling.solver, setting):
            fields[setting] = getattr(sampling.solver, setting)
    if guidance is not None:
        fields["guidance"] = float(guidance)
    return fields


def draw_samples(
    network: Network,
    *,
    sampling: Sampling,
    num: int,
    told: Conditioning,
    seed: int,
    batch_size: int,
    mesh: Mesh,
    guidance: float | None = None,
    description: str | None = None,
) -> Iterator[np.ndarray]:
    """Yields batches, uint8 [B, H, W, C], of `num` samples of the same noise for every model.

    Args:
      told: their labels and prompts, as of `draw_told`.
      guidance: weight; None for a model that takes none.
      description: text beside a progress bar; None shows no bar.
    """
    weight = network.effective_guidance(guidance)
    if weight is not None:
        told = told.replace(guidance=np.full(num, weight, np.float32))
    return generate_batches(
        network, evaluation_key(seed), num, sampling=sampling, told=told, batch_size=batch_size,
        mesh=mesh, description=description,
    )  # fmt: skip


def measure(
    model: Model,
    evaluator: Evaluator,
    *,
    stage: str,
    sampling: Sampling,
    guidance: float | None,
    num: int,
    seed: int,
    batch_size: int,
    mesh: Mesh,
    told: Conditioning,
    prompts: Sequence[str] | None,
    keep: int,
    description: str | None = None,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Draws samples of a model, as `draw_samples`, and measures them.

    Args:
      prompts: the prompts in `told`, as strings, for metrics that take them.
      keep: number of samples to return.
      description: text beside a progress bar; None shows no bar.

    Returns:
      The rows, and the first samples, uint8 [keep, H, W, C].
    """
    batches = draw_samples(
        model.network, sampling=sampling, num=num, told=told, seed=seed,
        batch_size=batch_size, mesh=mesh, guidance=guidance, description=description,
    )  # fmt: skip
    samples = Timed(batches, keep)
    in_turns = model.network.takes_text  # see `draw_told`
    measured = evaluator.measure(samples, told.label, prompts, paired=in_turns)
    about = {
        "method": model.card["method"],
        "seconds_per_image": samples.seconds_per_image,
        "train_steps": model.card["train_steps"],
        "images_seen": model.card["images_seen"],
        "rounding": "nearest",
        "generator": GENERATOR,
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
    }
    what = identity(stage, model.network, sampling, guidance, seed)
    if isinstance(sampling.solver, Cascade):
        pairs = what["nfe"] / sampling.nfe  # two evaluations for one, where it is guided
        cost = pairs * sampling.effective_nfe(model.network)
        about["effective_nfe"] = round(cost, 3)
    return [what | row | about for row in measured], samples.first


def evaluation_key(seed: int) -> Array:
    """Key of the noise that every model of a run is measured with."""
    return jax.random.fold_in(jax.random.key(seed), stable_hash("evaluation"))


def draw_told(network: Network, data: Conditioning, num: int, seed: int) -> Conditioning:
    """Labels and prompts of `num` images of a data set, the same for every model that takes them.

    Prompts are `Chosen`: tokens of all samples may be more than the host's memory holds.

    Args:
      data: labels [N] and prompts of N images, NumPy arrays.

    Raises:
      ValueError: there are no prompts for a network that takes them.
    """
    if network.takes_text and data.text is None:
        raise ValueError("this model takes prompts; give --prompts, a file of them")
    wanted = Conditioning(
        label=data.label if network.num_labels else None,
        text=data.text if network.takes_text else None,
    )
    leaves = jax.tree.leaves(wanted)
    if not leaves:
        return wanted
    rows = draw_rows(len(leaves[0]), num, seed, in_turns=network.takes_text)
    return Conditioning(
        label=None if wanted.label is None else wanted.label[rows],
        text=jax.tree.map(lambda a: Chosen(a, rows), wanted.text),
    )


class Chosen:
    """Rows of an array or of a file, in an order of their own, read when they are asked for."""

    def __init__(self, array: Any, rows: np.ndarray):
        self._array = array
        self._rows = rows

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return self._array[self._rows[numbers]]


def draw_rows(size: int, num: int, seed: int, *, in_turns: bool) -> np.ndarray:
    """Draws `num` of `size` rows, the same for every model: [num].

    Args:
      in_turns: each row once before any is drawn again, as prompts are; where each has one picture,
        prompts that a draw leaves out would be most of a distance. False draws independently, as
        is usual for labels.
    """
    random = np.random.RandomState(stable_hash(f"{seed}/labels"))
    if not in_turns:
        return random.choice(size, num)
    return np.concatenate([random.permutation(size) for _ in range(-(-num // size))])[:num]


def stable_hash(text: str) -> int:
    """A hash of text, 31 bits, the same in every process."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF

"""Contents of a run directory, read once for the whole report."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdistill.runtime.files import read_jsonl

NUMBER, NUMBER_OR_NONE, TEXT_OR_NONE = int | float, int | float | None, str | None
RESULTS = {  # what every row has
    "stage": str, "nfe": NUMBER_OR_NONE, "solver": TEXT_OR_NONE, "seed": NUMBER_OR_NONE,
    "metric": str, "reference": TEXT_OR_NONE, "value": NUMBER,
}  # fmt: skip
SELECTION = {"step": int, "metric": str, "value": NUMBER, "spectrum": list}
PICTURES = {"neighbours", "spectrum", "data_spectrum"}
OF_DRAWS = ("fid", "fd_", "kid", "cmmd", "recall")  # beginnings of metrics with such a margin
BY_SIZE = ("pagoda", "upsampled")  # methods


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A run directory's results, samples and logs.

    Runs that share a group, such as "progressive/32" and "progressive/16", are kept together.
    Groups, and runs in them, are in the order in which results.jsonl first names them; any it
    does not name come last.

    Attributes:
      name: name of the directory.
      rows: rows of results.jsonl.
      config: config.json, or None.
      samples: {group: {step count: uint8 [N, H, W, C]}}, from samples.npz; a cascade's counts are
        text, "8+4+2". If runs of a group share one, the last counts: it is distilled for it.
      guided: {"run, step count": {weight: uint8 [N, H, W, C]}}, of runs with several weights.
      pictures: {run: arrays of pictures.npz}, see `evaluation.Evaluator.pictures`.
      losses: {group: {run: (steps [N], losses [N])}}, from the rows of log.jsonl that have one.
      selections: {run: rows of selection.jsonl}, of runs whose model was chosen among several.
    """

    name: str
    rows: list[dict[str, Any]]
    config: dict[str, Any] | None
    samples: dict[str, dict[int | str, np.ndarray]]
    guided: dict[str, dict[str, np.ndarray]]
    pictures: dict[str, dict[str, np.ndarray]]
    losses: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    selections: dict[str, list[dict[str, Any]]]


def group(run: str, method: str | None = None) -> str:
    """Names a run's group, the part before the first "/": "progressive/4" -> "progressive".

    Runs of methods whose images have several sizes are groups of their own.
    """
    return run if method in BY_SIZE else run.partition("/")[0]


def all_steps(count: int | str) -> int:
    """Sums the steps of all resolutions: 8 for 8, 14 for "8+4+2"."""
    return sum(map(int, str(count).split("+")))


def grouping(rows: Sequence[dict[str, Any]]) -> Callable[[str], str]:
    """Returns a function from a run to its group, for runs measured in these rows and others."""
    methods = {row["stage"]: row.get("method") for row in rows}
    return lambda run: group(run, methods.get(run))


def read(workdir: str | Path) -> RunDirectory:
    """Reads a run directory; files that are missing, but for results.jsonl, count as empty.

    Raises:
      FileNotFoundError: there is no results.jsonl. OSError: a file is damaged, or cannot be read.
    """
    workdir = Path(workdir).resolve()
    if not (workdir / "results.jsonl").exists():
        raise FileNotFoundError(f"no results.jsonl in {workdir}; give a run directory")
    rows = read_rows(workdir)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    group_of = grouping(rows)

    config = _config(workdir)
    of_config = _stages_of(config)

    def files(name: str) -> dict[str, Path]:
        return _files(workdir, name, stages, of_config)

    samples, guided = {}, {}
    for run, path in files("samples.npz").items():
        with _whole(path), np.load(path) as archive:
            for name in archive.files:
                steps, _, weight = name.partition("@")
                if not re.fullmatch(r"\d+(\+\d+)*", steps):
                    continue  # an array of a user's
                if not weight:  # the first one
                    count = int(steps) if steps.isdigit() else steps
                    samples.setdefault(group_of(run), {})[count] = archive[name]
                    continue
                if config is None:
                    continue  # nothing else knows the first weight
                first = _first_weight(workdir, config)
                weights = guided.setdefault(f"{run}, {steps}", {first: archive[steps]})
                weights[weight] = archive[name]

    pictures = {}
    for run, path in files("pictures.npz").items():
        with _whole(path), np.load(path) as archive:
            if {*archive.files} >= PICTURES:  # or it is a user's
                pictures[run] = dict(archive)

    losses = {}
    for run, path in files("log.jsonl").items():
        with _whole(path):
            logged = read_jsonl(path, {"step": int})
            curve = [(row["step"], row["loss"]) for row in logged if "loss" in row]
        if curve:
            losses.setdefault(group_of(run), {})[run] = tuple(np.array(curve, float).T)

    found = files("selection.jsonl")
    selections = {run: log for run, path in found.items() if (log := _rows(path, SELECTION))}

    return RunDirectory(workdir.name, rows, config, samples, guided, pictures, losses, selections)


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run's results.jsonl; none if it is not there.

    Rows of earlier versions have no bias and margin of independent draws where samples were made
    for the reference's images in turns: by a codec, or after the captions of the training images.

    Raises:
      OSError: a row lacks what all have, or it cannot be read.
    """
    rows = _rows(workdir / "results.jsonl", RESULTS)
    config = _config(workdir) if (workdir / "captions.json").exists() else None
    with _whole(workdir / "config.json"):
        trained = config and f":{config['config']['data']['train']}"
    for row in rows:
        in_turns = trained and str(row["reference"]).endswith(trained)
        if (row["nfe"] == 0 or in_turns) and row["metric"].startswith(OF_DRAWS):
            for name in ("bias", "margin", "standard_error"):
                row.pop(name, None)
    return rows


def _config(workdir: Path) -> dict[str, Any] | None:
    """A run's config.json; None if it is not there."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    with _whole(path):
        return json.loads(path.read_text())


def _rows(path: Path, kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, all of which have values of these kinds."""
    with _whole(path):
        return read_jsonl(path, kinds)


def _first_weight(workdir: Path, config: dict[str, Any]) -> str:
    """The first guidance weight of a run's config, as the names of arrays have others."""
    with _whole(workdir / "config.json"):
        return f"{config['config']['evaluation']['guidance'][0]:g}"


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Names the file that is read within if it is damaged."""
    try:
        yield
    except (OSError, MemoryError):  # which say what it is about
        raise
    except Exception as error:  # NumPy, zipfile and json have no common one
        raise OSError(f"{path} is damaged; move it away, or put back a whole one") from error


def _stages_of(config: Any) -> list[str] | None:
    """The names of a run's stages, or None if what is there as its config does not say them."""
    try:
        return [stage["name"] for stage in config["config"]["stages"]]
    except (KeyError, TypeError):
        return None


def _files(
    workdir: Path, name: str, stages: list[str], of_config: list[str] | None
) -> dict[str, Path]:
    """Finds the files called `name`: {run: path}, in the order of groups and stages.

    Not among checkpoints, whose folders come and go while a run saves one, and not of stages that
    were taken out of the config before they had a row.
    """
    groups = list(dict.fromkeys(map(group, stages)))

    def place(run: str) -> tuple:
        return _index(groups, group(run)), _index(stages, run), run

    def is_there(run: str) -> bool:
        below_one = any(f"{run}/".startswith(f"{stage}/") for stage in of_config or ())
        return of_config is None or below_one or run in stages

    found = {}
    for folder, below, names in os.walk(workdir):
        below[:] = [each for each in below if each != "checkpoints"]
        run = Path(folder).relative_to(workdir).as_posix()
        if name in names and run != "." and is_there(run):
            found[run] = Path(folder) / name
    return {run: found[run] for run in sorted(found, key=place)}


def _index(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)

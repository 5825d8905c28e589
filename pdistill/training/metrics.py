"""Metrics of many updates as a row of the log."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Entries of a row that are no metrics of a method.
RESERVED = ("step", "skipped", "steps_per_second", "left_out", "grad_norms")
AROUND = 3  # updates shown before and after one that is not finite


def concatenate(interval: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of all updates of an interval, from those of its dispatches.

    Values that a dispatch does not have are zeros that its updates did not have.
    """
    names = dict.fromkeys(name for metrics in interval for name in metrics["values"])

    def join(field: str, empty: type) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate(
                [m[field].get(name, np.zeros(m["kept"].shape, empty)) for m in interval]
            )
            for name in names
        }

    return {
        "values": join("values", np.float32),
        "had": join("had", np.bool_),
        "kept": np.concatenate([m["kept"] for m in interval]),
        "skipped": np.concatenate([m["skipped"] for m in interval]),
    }


def summarize(metrics: dict[str, Any], first: int) -> tuple[dict[str, float], dict[str, Any]]:
    """A row of the log, from the metrics of updates number `first`, `first` + 1, ...

    Returns:
      The mean of each metric over the updates that had it and were kept (NaN if none was kept, no
      entry if none had it) and "skipped", the run's count so far; and, if one was left out,
      {"left_out": such updates, "grad_norms": {update: norm} of these and the ones around them}.
    """
    kept, scalars = metrics["kept"], {}
    for name, values in metrics["values"].items():
        if (had := metrics["had"][name]).any():
            counted = values[kept & had]
            scalars[name] = float(np.mean(counted)) if counted.size else float("nan")
    scalars["skipped"] = int(metrics["skipped"][-1])
    if kept.all():
        return scalars, {}
    bad = np.flatnonzero(~kept)[:AROUND]
    around = [i for i in range(len(kept)) if np.abs(bad - i).min() <= AROUND]
    norms = {first + i: f"{_largest_norm(metrics, i):.3g}" for i in around}
    return scalars, {"left_out": [first + int(i) for i in bad], "grad_norms": norms}


def _largest_norm(metrics: dict[str, Any], i: int) -> float:
    """The largest gradient's norm that update i of an interval had; NaN if one was."""
    return max(
        (
            float(values[i])
            for name, values in metrics["values"].items()
            if name.endswith("grad_norm") and metrics["had"][name][i]
        ),
        key=lambda norm: (np.isnan(norm), norm),
    )


def describe(trouble: dict[str, Any]) -> str:
    """The trouble that `summarize` found, for people."""
    norms = ", ".join(f"{norm} at {step}" for step, norm in trouble["grad_norms"].items())
    return (
        "not finite or of too large a gradient, so left out, from update "
        f"{trouble['left_out'][0]}; grad_norm {norms}"
    )

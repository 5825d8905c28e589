"""Measures a model at every save of its training, and keeps the best one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices

from pdistill import model as models
from pdistill.evaluation import radial_spectrum
from pdistill.networks import Network
from pdistill.runtime.temporary import replace
from pdistill.runtime.terminal import say
from pdistill.training.logging import LogFile, Writer

IMAGES = 1000  # that a spectrum is averaged over


class Selection:
    """The best model of a training run, in <directory>/best, and the log that it is chosen by.

    A row of selection.jsonl is {"step", "metric", "value", "spectrum"}; smaller values are better.

    Args:
      measure: network -> the row of the one metric that decides, and the samples measured,
        uint8 [N, H, W, C]. save: (directory, network, step) -> None.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        measure: Callable[[Network], tuple[dict[str, Any], np.ndarray]],
        save: Callable[[Path, Network, int], None],
        writer: Writer,
    ):
        self._directory = directory
        self._name = name
        self._measure = measure
        self._save = save
        self._writer = writer
        best, model = directory / "best", directory / "model"
        if jax.process_index() == 0 and model.exists() and not best.exists():
            model.rename(best)  # of a run that is trained on
        sync_global_devices(f"selecting in {directory}")

    def __call__(self, step: int, network: Network) -> None:
        """Measures the model of update `step`, and keeps it if it is the best."""
        rows = LogFile(self._directory / "selection.jsonl", keep=lambda row: row["step"] < step)
        measured, samples = self._measure(network)
        value, metric = measured["value"], measured["metric"]
        before = min((row["value"] for row in rows.rows), default=np.inf)
        better = bool(broadcast_one_to_all(np.int32(value < before)))
        say(
            f"{self._name:<16} step {step}: {metric} {value:.4g}"
            + (", the best so far" if better else f" (best {before:.4g})")
        )
        self._writer.write_scalars(step, {f"{self._name}/{metric}": value})
        if better:
            self._save(self._directory / "best", network, step)
        spectrum = [round(float(power), 5) for power in radial_spectrum(samples[:IMAGES])]
        rows.append({"step": step, "metric": metric, "value": value, "spectrum": spectrum})

    @property
    def found(self) -> bool:
        """Whether there is a best model."""
        return (self._directory / "best").exists()

    def finish(self, **card: Any) -> None:
        """Makes the best model the run's, with these changes of its card."""
        best = self._directory / "best"
        step = models.read_card(best)["selected_step"]
        say(f"{self._name:<16} the model of step {step} is kept")
        sync_global_devices(f"read {best}")
        if jax.process_index() == 0:
            models.change_card(best, **card)
            replace(best, self._directory / "model")
        sync_global_devices(f"selected {self._directory}")

"""Measures a model at every save of its training, and keeps the best one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices

from pdistill import model as models
from pdistill.evaluation import radial_spectrum
from pdistill.experiment.averages import Product
from pdistill.networks import Network
from pdistill.runtime.temporary import replace
from pdistill.runtime.terminal import conclude, say
from pdistill.training.logging import LogFile, Writer


class Selection:
    """The best model of a training run, in <directory>/best, and the log that it is chosen by.

    The model of a finished run that is trained on stays where it is until a better one is found.

    A row of selection.jsonl is {"step", "metric", "value", "spectrum"}, and "width" of an average
    with `ema_widths`; smaller values are better.

    Args:
      measure: network -> the row of the one metric that decides, and the first samples measured,
        uint8 [n, H, W, C], that a spectrum is averaged over. save: (directory, network, step,
        **card) -> None.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        measure: Callable[[Network], tuple[dict[str, Any], np.ndarray]],
        save: Callable[..., None],
        writer: Writer,
    ):
        self._directory = directory
        self._name = name
        self._measure = measure
        self._save = save
        self._writer = writer
        self._best, self._model = directory / "best", directory / "model"
        there = self._kept.exists()
        path, kinds = directory / "selection.jsonl", {"step": int, "value": int | float}
        self._log = LogFile(path, keep=lambda row: there, kinds=kinds)

    def rewind(self, step: int) -> None:
        """Forgets what was measured after update `step`, from which training goes on.

        All is forgotten if the best is of a later one: the first model that is measured, which may
        be that of `step`, takes its place.
        """
        best = min(self._log.rows, key=lambda row: row["value"], default={"step": step})
        self._log.drop(lambda row: max(row["step"], best["step"]) > step)

    def __call__(self, step: int, products: Sequence[Product]) -> None:
        """Measures the models of update `step`, and keeps one if it is the best so far.

        A run that goes on from this update does not measure again those that have their rows.
        """
        self.rewind(step)
        measured = [row.get("width") for row in self._log.rows if row["step"] == step]
        for product in products:
            if product.width not in measured:
                self._measure_and_keep(step, product)

    def _measure_and_keep(self, step: int, product: Product) -> None:
        measured, samples = self._measure(product.network)
        value, metric = measured["value"], measured["metric"]
        before = min((row["value"] for row in self._log.rows), default=np.inf)
        better = bool(broadcast_one_to_all(np.int32(value < before)))
        conclude(
            f"{self._name:<16} step {step}{_of(product)}: {metric} {value:.4g}"
            + (", the best so far" if better else f" (best {before:.4g})")
        )
        if better:
            self._save(self._best, product.network, step, **product.average)
        spectrum = [round(float(power), 5) for power in radial_spectrum(samples)]
        row = {"step": step, "metric": metric, "value": value, "spectrum": spectrum}
        self._writer.write_scalars(step, {f"{self._name}/{metric}{_of(product, '/')}": value})
        self._writer.flush()  # what has its row is not written again
        self._log.append(row | ({"width": product.width} if product.width else {}))

    @property
    def _kept(self) -> Path:
        """The best model's directory: its own one, or that of a finished run that is trained on."""
        return self._best if self._best.exists() else self._model

    @property
    def found(self) -> bool:
        """Whether there is a best model of this training."""
        return bool(self._log.rows) and self._kept.exists()

    def finish(self, **card: Any) -> None:
        """Makes the best model the run's, with these changes of its card."""
        kept = models.read_card(self._kept)
        width = f", width {kept['average']['width']:g}" if "average" in kept else ""
        say(f"{self._name:<16} the model of step {kept['selected_step']}{width} is kept")
        sync_global_devices(f"read {self._directory}")
        if jax.process_index() == 0:
            models.change_card(self._kept, **card)
            if self._best.exists():
                replace(self._best, self._model)
        sync_global_devices(f"selected {self._directory}")


def _of(product: Product, between: str = " width ") -> str:
    """The width of a product's average after some words, or ""."""
    return f"{between}{product.width:g}" if product.width else ""

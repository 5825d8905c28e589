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

IMAGES = 1000  # that a spectrum is averaged over


class Selection:
    """The best model of a training run, in <directory>/best, and the log that it is chosen by.

    A row of selection.jsonl is {"step", "metric", "value", "spectrum"}, and "width" of an average
    with `ema_widths`; smaller values are better.

    Args:
      measure: network -> the row of the one metric that decides, and the samples measured,
        uint8 [N, H, W, C]. save: (directory, network, step, **card) -> None.
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
        best, model = directory / "best", directory / "model"
        if jax.process_index() == 0 and model.exists() and not best.exists():
            model.rename(best)  # of a run that is trained on
        sync_global_devices(f"selecting in {directory}")

    def __call__(self, step: int, products: Sequence[Product]) -> None:
        """Measures the models of update `step`, and keeps one if it is the best so far.

        A run that goes on from this update does not measure them again if it has their rows.
        """
        rows = LogFile(self._directory / "selection.jsonl", keep=lambda row: row["step"] <= step)
        if self.found and sum(row["step"] == step for row in rows.rows) == len(products):
            return
        rows.drop(lambda row: row["step"] == step)
        for product in products:
            self._measure_and_keep(step, product, rows)

    def _measure_and_keep(self, step: int, product: Product, rows: LogFile) -> None:
        measured, samples = self._measure(product.network)
        value, metric = measured["value"], measured["metric"]
        before = min((row["value"] for row in rows.rows), default=np.inf)
        better = bool(broadcast_one_to_all(np.int32(value < before)))
        conclude(
            f"{self._name:<16} step {step}{_of(product)}: {metric} {value:.4g}"
            + (", the best so far" if better else f" (best {before:.4g})")
        )
        self._writer.write_scalars(step, {f"{self._name}/{metric}{_of(product, '/')}": value})
        if better:
            self._save(self._directory / "best", product.network, step, **product.average)
        spectrum = [round(float(power), 5) for power in radial_spectrum(samples[:IMAGES])]
        row = {"step": step, "metric": metric, "value": value, "spectrum": spectrum}
        self._writer.flush()  # what has its row is not written again
        rows.append(row | ({"width": product.width} if product.width else {}))

    @property
    def found(self) -> bool:
        """Whether there is a best model."""
        return (self._directory / "best").exists()

    def finish(self, **card: Any) -> None:
        """Makes the best model the run's, with these changes of its card."""
        best = self._directory / "best"
        kept = models.read_card(best)
        width = f", width {kept['average']['width']:g}" if "average" in kept else ""
        say(f"{self._name:<16} the model of step {kept['selected_step']}{width} is kept")
        sync_global_devices(f"read {best}")
        if jax.process_index() == 0:
            models.change_card(best, **card)
            replace(best, self._directory / "model")
        sync_global_devices(f"selected {self._directory}")


def _of(product: Product, between: str = " width ") -> str:
    """The width of a product's average after some words, or ""."""
    return f"{between}{product.width:g}" if product.width else ""

"""The products of a run's state, one for each of its averages, and their snapshots."""

from pathlib import Path
from typing import Any, NamedTuple

from pdistill.methods import Method
from pdistill.model import AVERAGES
from pdistill.networks import Network
from pdistill.training.learner import learner_with_widths, with_average


class Product(NamedTuple):
    """A network that a run could export.

    Attributes:
      average: entries of its card, {"average": {"width", "updates"}}; {} without `ema_widths`.
    """

    network: Network
    average: dict[str, Any]

    @property
    def width(self) -> float | None:
        return self.average["average"]["width"] if self.average else None


def products(method: Method, state: Any) -> list[Product]:
    """The products of a method's state: one, or one for each of `ema_widths`, the method's first.

    An average counts the updates that its learner has kept, which need not be the loop's.
    """
    learner = learner_with_widths(state)
    if learner is None:
        return [Product(method.product(state), {})]
    updates = int(learner.count)
    return [
        Product(
            method.product(with_average(state, i)),
            {"average": {"width": width, "updates": updates}},
        )
        for i, width in enumerate(learner.optimizer.ema_widths)
    ]


def snapshot_directory(run: Path, step: int, width: float) -> Path:
    """Place of the snapshot of an average after `step` updates."""
    return run / AVERAGES / str(step) / f"{width:g}"

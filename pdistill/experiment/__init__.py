"""An experiment: its config, its run directory, what it measures."""

from pdistill.experiment.run import run

__all__ = ["run"]

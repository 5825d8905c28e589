"""Reports of a run for people: pictures, tables and report.html."""

from pathlib import Path

from pdistill.report.grids import tile
from pdistill.report.table import table

__all__ = ["build", "table", "tile"]


def build(folder: str | Path) -> Path:
    """Builds report.html of a run's directory, see `html.build`."""
    from pdistill.report import html  # matplotlib takes as long to import as JAX

    return html.build(folder)

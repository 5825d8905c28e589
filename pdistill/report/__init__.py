"""Reports of a run for people: pictures, tables and report.html."""

from pdistill.report.grids import tile
from pdistill.report.html import build
from pdistill.report.table import table

__all__ = ["build", "table", "tile"]

"""Makes the report of a run again, or prints the rows of several runs as one table.

    pdistill report runs/digits
    pdistill report runs/digits runs/digits_gan

In such a table a stage is called by its run, too.
"""

from pathlib import Path
from typing import Any

from pdistill.cli.options import command_parser
from pdistill.report.html import build
from pdistill.report.runs import read_rows
from pdistill.report.table import table
from pdistill.runtime.files import in_home
from pdistill.runtime.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("report", __doc__)
    parser.add_argument(
        "workdirs", nargs="+", type=in_home, metavar="RUN", help="a run's directory"
    )
    options = parser.parse_args(arguments)
    with plain_errors(OSError, ValueError):
        if len(options.workdirs) == 1:
            print(build(options.workdirs[0]))
        else:
            print(table(merged(options.workdirs)))


def merged(workdirs: list[Path]) -> list[dict[str, Any]]:
    """Rows of all runs, with stages such as "digits: teacher".

    Raises:
      FileNotFoundError: a run has no rows. OSError: its rows are damaged. ValueError: two runs have
        one name.
    """
    names = [workdir.resolve().name for workdir in workdirs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must have names of their own; got {', '.join(names)}")
    found = []
    for name, workdir in zip(names, workdirs, strict=True):
        rows = read_rows(workdir)
        if not rows:
            raise FileNotFoundError(f"{workdir} has no results.jsonl with rows; give runs")
        found += [row | {"stage": f"{name}: {row['stage']}"} for row in rows]
    return found

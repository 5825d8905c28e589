"""Makes the report of a run again: python -m pdistill.report WORKDIR"""

import argparse

from pdistill.report.html import build
from pdistill.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pdistill.report", description=__doc__)
    parser.add_argument("workdir", help="a run directory, with results.jsonl")
    options = parser.parse_args(arguments)
    with plain_errors(FileNotFoundError):
        print(build(options.workdir))


if __name__ == "__main__":
    main()

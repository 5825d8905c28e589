"""Makes the report of a run again: python -m pdistill.report WORKDIR"""

import argparse
import sys

from pdistill.report.html import build


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pdistill.report", description=__doc__)
    parser.add_argument("workdir", help="a run directory, with results.jsonl")
    try:
        print(build(parser.parse_args(arguments).workdir))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

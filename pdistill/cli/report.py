"""Makes the report of a run again: python -m pdistill.report WORKDIR"""

from pdistill.cli.options import command_parser
from pdistill.report.html import build
from pdistill.runtime.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("report", __doc__)
    parser.add_argument("workdir", help="a run directory, with results.jsonl")
    options = parser.parse_args(arguments)
    with plain_errors(FileNotFoundError):
        print(build(options.workdir))


if __name__ == "__main__":
    main()

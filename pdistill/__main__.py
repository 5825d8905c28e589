"""pdistill COMMAND ARGUMENTS; `pdistill COMMAND --help` tells a command's own."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "runs an experiment, or goes on with it: pdistill train digits_pd --workdir=DIR",
    "plan": "what a run would take: pdistill plan --config=digits_pd --devices=8,64",
    "show": "what a config says, with all defaults: pdistill show digits_pd",
    "sample": "draws a grid of a model's images",
    "evaluate": "measures a model, or anyone's images",
    "compare": "how far students are from their teachers, on the same noise",
    "pairs": "makes noise-image pairs of a teacher",
    "partition": "parts of a model's labels whose embeddings are near each other",
    "convert": "makes a model directory of somebody else's weights",
    "export": "writes a model's sampler, or the model, for other programs",
    "report": "makes the report of a run again",
    "prepare": "puts a data set on disk",
}


def main(arguments: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("-h", "--help", "help"):
        print(_usage())
    elif command == "train":
        train(rest)
    elif command == "plan":
        train(rest, plan=True)
    elif command in COMMANDS:
        importlib.import_module(f"pdistill.cli.{command}").main(rest)
    else:
        what = f"there is no command {command!r}" if command else "give a command"
        print(f"error: {what}; they are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def train(arguments: Sequence[str], plan: bool = False) -> None:
    """`pdistill train` and `plan`; signals end the program in order from its first moment."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until a run takes over; imports take seconds
        signal.signal(number, lambda *_: sys.exit(os.EX_TEMPFAIL))

    from pdistill.runtime.cpu import use_huge_pages

    use_huge_pages()  # a new start, so before the other imports

    from pdistill.cli.train import start

    start(arguments, plan=plan)


def _usage() -> str:
    lines = [f"  {name:<10} {about}" for name, about in COMMANDS.items()]
    return "\n".join([__doc__, "", *lines])


if __name__ == "__main__":
    main()

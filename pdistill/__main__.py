"""pdistill COMMAND ARGUMENTS; `pdistill COMMAND --help` tells a command's own."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence

from pdistill.runtime.interruption import ProgramSignals

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
    "average": "makes an average of another length of a finished run's snapshots",
    "export": "writes a model's sampler, or the model, for other programs",
    "report": "makes the report of a run again, or one table of several",
    "prepare": "puts a data set on disk",
}


def main(arguments: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("-h", "--help", "help"):
        print(_usage())
    elif command in COMMANDS:
        run(command, rest, program=arguments is None)
    else:
        what = f"there is no command {command!r}" if command else "give a command"
        print(f"error: {what}; they are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def run(command: str, arguments: Sequence[str] | None = None, program: bool = False) -> None:
    """Runs a command; signals end it in order from its first moment, before what imports JAX.

    Args:
      arguments: by default those of the command line.
      program: whether this is all that the program does, so that signals stay so to its end.
    """
    training = command in ("train", "plan")
    stop = ProgramSignals("; the same command goes on" if command == "train" else "")
    with contextlib.ExitStack() as stack:
        stop.__enter__() if program else stack.enter_context(stop)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal may be of ASCII only
        arguments = sys.argv[1:] if arguments is None else arguments
        if command != "train":
            stack.enter_context(_read_to_its_end())
        if not training:
            importlib.import_module(f"pdistill.cli.{command}").main(arguments)
            return

        from pdistill.runtime.cpu import use_huge_pages

        use_huge_pages()  # a new start, so before the other imports

        from pdistill.cli.train import start

        start(arguments, plan=command == "plan", stop=stop)


@contextlib.contextmanager
def _read_to_its_end() -> Iterator[None]:
    """Ends a command whose output is read no further, as by `| head`, without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _usage() -> str:
    lines = [f"  {name:<10} {about}" for name, about in COMMANDS.items()]
    return "\n".join([__doc__, "", *lines])


if __name__ == "__main__":
    main()

"""What the command lines share."""

import argparse

from pdistill.runtime.cpu import set_xla_flags
from pdistill.samplers import parse_steps


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """For `python -m pdistill.<name>`; its description is shown as it is. Sets XLA's flags too."""
    set_xla_flags()
    return argparse.ArgumentParser(
        prog=f"python -m pdistill.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def steps_option(parser: argparse.ArgumentParser) -> None:
    """--num_steps, of a command that samples with a model."""
    help = "instead of the model's own; a cascade's: 8+4+2"
    parser.add_argument("--num_steps", type=parse_steps, help=help)

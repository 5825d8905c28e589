"""Options that the command lines share."""

import argparse

from PIL import ImageColor

from pdistill.runtime.cpu import set_xla_flags
from pdistill.samplers import parse_steps


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Makes a parser for `python -m pdistill.<name>`, and sets XLA's flags.

    The description is shown as it is.
    """
    set_xla_flags()
    return argparse.ArgumentParser(
        prog=f"python -m pdistill.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def codec_option(parser: argparse.ArgumentParser) -> None:
    """Adds --codec, for a command that loads a model."""
    help = "where the codec of a model of latents is, if not where the model's card says"
    parser.add_argument("--codec", help=help)


def guide_option(parser: argparse.ArgumentParser) -> None:
    """Adds --guide, for a command that samples with a model."""
    help = "model that guides it, if not as the model's card says"
    parser.add_argument("--guide", help=help)


def steps_option(parser: argparse.ArgumentParser) -> None:
    """Adds --num_steps, for a command that samples with a model."""
    help = "sampling steps instead of the model's own; for a cascade, 8+4+2"
    parser.add_argument("--num_steps", type=parse_steps, help=help)


def picture_options(parser: argparse.ArgumentParser) -> None:
    """Adds --channels and --background, for a command that reads pictures."""
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="of pictures in a folder; default: 1 if all are grey, else 3",
    )
    parser.add_argument(
        "--background",
        type=_colour,
        default="white",
        help="colour behind transparent parts of pictures, such as black or #808080; default: "
        "%(default)s",
    )


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no colour; give a name, such as black, or #rrggbb"
        ) from None
    return text

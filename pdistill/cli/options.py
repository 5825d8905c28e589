"""Options that the command lines share."""

import argparse
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from jax.sharding import Mesh
from PIL import ImageColor

from pdistill.runtime.compilations import tell_compilations
from pdistill.runtime.cpu import set_xla_flags
from pdistill.runtime.files import in_home
from pdistill.runtime.programs import keep_programs
from pdistill.samplers import parse_steps
from pdistill.samplers.noise import SEEDS

if TYPE_CHECKING:
    from pdistill.evaluation import Reference, StatisticsReference
    from pdistill.model import Model

MOST_NUMBERS = 5_000_000  # that one option lists


class Parser(argparse.ArgumentParser):
    """An argument parser that knows what a misspelt option may have been."""

    def error(self, message: str) -> NoReturn:
        given = message.partition("unrecognized arguments: ")[2].split()
        names = (text.partition("=")[0] for text in given if text.startswith("--"))
        known = self._option_string_actions
        near = [n for name in names for n in difflib.get_close_matches(name, known, 1, cutoff=0.75)]
        super().error(message + (f"; did you mean {', '.join(near)}?" if near else ""))


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Makes a parser for `pdistill <name>`, and sets XLA's flags and cache.

    The description is shown as it is.
    """
    set_xla_flags()
    keep_programs()
    tell_compilations()
    return Parser(
        prog=f"pdistill {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def codec_option(parser: argparse.ArgumentParser) -> None:
    """Adds --codec, for a command that loads a model."""
    help = "where the codec of a model of latents is, if not where the model's card says"
    parser.add_argument("--codec", help=help)


def own_code_option(parser: argparse.ArgumentParser) -> None:
    """Adds --own_code, for a command that loads a model or a codec."""
    help = "import, and so run, the modules that a model's or a codec's card names"
    parser.add_argument("--own_code", action="store_true", help=help)


def guide_option(parser: argparse.ArgumentParser) -> None:
    """Adds --guide, for a command that samples with a model."""
    help = "model that guides it, if not as the model's card says"
    parser.add_argument("--guide", help=help)


def load_model(options: argparse.Namespace, mesh: Mesh | None = None) -> "Model":
    """Loads the model of a command's --model, with the parts that its options name; as `load`."""
    from pdistill.model import load  # not for commands without a model

    names = ("codec", "guide", "text_encoder", "own_code")
    parts = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return load(options.model, mesh, **parts)


def check_pictures(model: "Model", path: str, advice: str = "give --codec") -> None:
    """Raises ValueError, with `advice`, for latents that no codec decodes, also of 3 channels."""
    from pdistill.model.card import works_on_latents

    channels = model.image_shape[-1]
    of_latents = works_on_latents(model.card) and not model.network.codec
    if of_latents or channels not in (1, 3):
        what = "latents" if of_latents else "arrays"
        raise ValueError(
            f"{path} makes {what} of {channels} channels, which are no pictures; {advice}"
        )


def text_encoder_option(parser: argparse.ArgumentParser) -> None:
    """Adds --text_encoder, for a command that gives a model prompts."""
    help = "folder of a model's text encoder, or package, if not as the model's card says"
    parser.add_argument("--text_encoder", help=help)


def prompts_option(parser: argparse.ArgumentParser) -> None:
    """Adds --prompts, for a command that gives a model prompts."""
    help = "file of prompts for a model with text, one a line, which take turns"
    parser.add_argument("--prompts", type=in_home, help=help)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one a line, of which empty ones are left out.

    Raises:
      OSError: there is no such file. ValueError: it has no prompts, or is not in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # also with a mark before them
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8; save it so ({error})") from error
    prompts = [line.strip() for line in lines]
    if not any(prompts):
        raise ValueError(f"{path} has no prompts; write one a line")
    return [prompt for prompt in prompts if prompt]


def labels_after(
    reference: "Reference | StatisticsReference", num_labels: int, model: str
) -> np.ndarray:
    """Labels [N] after which a model's samples are drawn: the reference's, or else each once.

    Raises:
      ValueError: the model, of `num_labels`, has not all of the reference's.
    """
    if reference.labels is None:
        return np.arange(num_labels)
    labels = np.asarray(reference.labels)
    if num_labels and labels.max() >= num_labels:
        raise ValueError(
            f"{model} takes labels from 0 to {num_labels - 1}, and {reference.name} has "
            f"{labels.max()}: give a reference of the data that it was trained on"
        )
    return labels


def numbers(text: str) -> list[int]:
    """Reads "1,5,7" or "0-99" as numbers, not negative; several ranges may be joined."""
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not found:
            raise argparse.ArgumentTypeError(f"give numbers such as 3, 1,5,7 or 0-9; got {text!r}")
        if len(numbers) + len(found) > MOST_NUMBERS:
            raise argparse.ArgumentTypeError(f"give at most {MOST_NUMBERS:,} numbers; got {text!r}")
        numbers += found
    return numbers


def seed_option(parser: argparse.ArgumentParser, of: str) -> None:
    """Adds --seed, for a command that draws random numbers."""
    parser.add_argument("--seed", type=_seed, default=0, help=f"seed of {of} (default 0)")


def _seed(text: str) -> int:
    """Reads a seed; of others JAX would take the last 32 bits, as one of these."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= SEEDS:
        raise argparse.ArgumentTypeError(f"give a seed from 0 to {SEEDS - 1}; got {text!r}")
    return int(text)


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

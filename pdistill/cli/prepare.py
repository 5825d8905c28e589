"""Puts a published data set, a folder of images, or emoji on disk; see `pdistill.data.prepare`.

With --codec the moments of a set's latents are written beside it too, with --text_encoder the
embeddings of its captions, also of a set that is there.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pdistill.cli.options import Parser, own_code_option, picture_options
from pdistill.data.captions import WRITE
from pdistill.data.emoji import SIDE
from pdistill.data.prepare import prepare, prepare_emoji, prepare_images
from pdistill.data.published import PUBLISHED, image_shape
from pdistill.data.resize import KERNELS
from pdistill.data.sources import data_dir, load_dataset
from pdistill.data.tfds_writer import PrepareError
from pdistill.experiment.codecs import in_latents
from pdistill.experiment.text import embedded
from pdistill.model.card import find
from pdistill.model.codecs import blank_codec
from pdistill.model.text import load_text_encoder
from pdistill.networks.text import TextEncoder
from pdistill.runtime.files import in_home
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.own_code import consent
from pdistill.runtime.terminal import plain_errors

LARGEST = 4096  # pixels a side of pictures
OF_PICTURES = ("resolution", "resize")
OF_IMAGES = ("no_labels", "captions", "held_out", "channels", "background")
SOURCES = {  # words for where pictures come from, by the option that says so, and what it takes
    "published": ("a published set", ("archive",)),
    "images": ("--images", ("name", *OF_PICTURES, *OF_IMAGES)),
    "emoji": ("--emoji", ("name", "emoji_groups", *OF_PICTURES)),
    "": ("a set that is there", ("name",)),
}
OF_PARTS = {  # options by the one that says what else is prepared
    "codec": ("no_flip", "batch_size", "own_code"),
    "text_encoder": ("text_tokens",),
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pdistill prepare",
        description="Prepares a published data set, a folder of images or emoji for load_dataset.",
    )
    add = parser.add_argument
    add("published", nargs="?", choices=PUBLISHED, help="a data set to download")
    add("--archive", type=in_home, help="a copy of it, file or folder, to use instead")
    add(
        "--images",
        type=in_home,
        help="a folder of images; sub-folders are classes, or train, test and val with classes",
    )
    add("--emoji", type=in_home, help="a folder in which the npm packages of emoji are unpacked")
    add("--emoji_groups", help="smileys,animals,food or the like; default: all")
    add("--name", help="name of the new data set; default of --emoji: emoji, or emoji_small")
    add("--resolution", type=int, help="pixels a side; default: the images' own, at most 64")
    add("--resize", choices=KERNELS, default="area", help="default: %(default)s")
    add("--no_labels", action="store_true", help="sub-folders are not classes")
    add(
        "--captions",
        choices=("found", "none"),
        default="found",
        help="those of images, in .txt beside them or metadata.jsonl; default: %(default)s",
    )
    add(
        "--held_out",
        type=int,
        help="images for a split test, if there is but train; default: a tenth, at most 10,000",
    )
    add("--codec", help="directory of a codec, whose latents of the images are prepared too")
    add("--text_encoder", help="folder or package of one, whose embeddings are prepared too")
    add(
        "--text_tokens",
        action="store_true",
        help="those of all tokens of captions, not pooled alone",
    )
    add("--no_flip", action="store_true", help="no latents of mirrored images")
    add("--split", default="train", help="split that these are for; default: %(default)s")
    add("--batch_size", type=int, default=64, help="images that --codec encodes at a time")
    picture_options(parser)
    own_code_option(parser)
    add("--data_dir", type=in_home, default=data_dir(), help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    sources = sum(map(bool, (args.published, args.images, args.emoji)))
    known = (args.codec or args.text_encoder) and args.name and not sources
    if sources != 1 and not known:
        parser.error(
            f"give either one of {', '.join(PUBLISHED)} or --images=FOLDER or --emoji=FOLDER"
        )
    if args.images and not args.name:
        parser.error("--images needs --name=NAME")
    _check_taken(parser, args)
    if args.resolution is not None and not 1 <= args.resolution <= LARGEST:
        parser.error(f"--resolution must be from 1 to {LARGEST}; got {args.resolution}")
    if args.emoji:
        args.name = args.name or ("emoji_small" if args.emoji_groups else "emoji")
        args.resolution, args.channels = args.resolution or SIDE, 3
    root = args.data_dir
    with plain_errors(PrepareError, ValueError, OSError), consent(args.own_code):
        if args.codec:
            _check_codec(args, root)
        if args.text_encoder:
            _check_text(args, root)
        encoder = args.text_encoder and load_text_encoder(args.text_encoder)
        prepared = args.published and args.codec and (root / args.published).exists()
        if not known and not prepared:
            _say_ready(_prepare(args, root), root)
        os.environ["TFDS_DATA_DIR"] = str(root)  # where `load_dataset` looks
        if args.codec:
            _encode(args, args.name or args.published)
        if encoder:
            _embed(args, encoder)


def _check_taken(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a message for options that nothing would take."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    what, taken = SOURCES[next((name for name in SOURCES if name in given), "")]
    some = {name for _, names in SOURCES.values() for name in names}  # not taken by all
    for name in sorted(given & some - set(taken)):
        others = [words for source, (words, names) in SOURCES.items() if source and name in names]
        parser.error(f"--{name} is for {' or '.join(others)}, not for {what}; leave it out")
    for part, names in OF_PARTS.items():
        if unused := sorted(given & set(names)) if part not in given else ():
            parser.error(f"--{unused[0]} needs --{part}")
    if "split" in given and not given & set(OF_PARTS):
        parser.error("--split needs --codec or --text_encoder")


def _prepare(args: argparse.Namespace, root: Path) -> Path:
    """Writes a data set without latents; returns its folder."""
    if args.published:
        return prepare(args.published, root, args.archive)
    if args.emoji:
        groups = args.emoji_groups.split(",") if args.emoji_groups else ()
        return prepare_emoji(args.emoji, root, args.name, args.resolution, args.resize, groups)
    return prepare_images(
        args.images,
        root,
        args.name,
        args.resolution,
        args.resize,
        not args.no_labels,
        channels=args.channels,
        background=args.background,
        held_out=args.held_out,
        captioned=False if args.captions == "none" else bool(args.text_encoder) or None,
        multiple=blank_codec(args.codec).factor if args.codec else 1,
    )


def _check_codec(args: argparse.Namespace, root: Path) -> None:
    """Raises ValueError for a codec that images will not fit, before any are prepared.

    Pictures become those of the codec's channels, unless --channels says otherwise.
    """
    codec = blank_codec(args.codec)
    if args.published:
        codec.latent_shape(image_shape(args.published))
    if not (args.images or args.emoji):
        return
    _check_new(args, root, "codec", "latents")
    args.channels = args.channels or codec.module.image_channels
    side = args.resolution or codec.factor  # a default one is a multiple of it
    codec.latent_shape((side, side, args.channels))


def _check_text(args: argparse.Namespace, root: Path) -> None:
    """Raises PrepareError for embeddings of captions that there cannot be, before any are made."""
    if args.published or args.captions == "none":
        what = f"{args.published} has none" if args.published else "leave --captions=none out"
        raise PrepareError(f"--text_encoder makes embeddings of captions: {what}")
    _check_new(args, root, "text_encoder", "embeddings")


def _check_new(args: argparse.Namespace, root: Path, part: str, what: str) -> None:
    """Raises PrepareError if pictures are given for a set that is there, to which `part` may be."""
    option = "--images" if args.images else "--emoji"
    if (args.images or args.emoji) and (root / args.name).exists():
        raise PrepareError(
            f"{root / args.name} is there already: leave out {option} to add {what} to it, as "
            f"--name={args.name} --{part}={getattr(args, part)}, or delete it"
        )


def _encode(args: argparse.Namespace, name: str) -> None:
    """Writes the moments of a prepared set."""
    data, began = load_dataset(name, args.split, in_memory=False), time.monotonic()
    flip = not args.no_flip
    in_latents(
        data, find(args.codec), None, flip=flip, batch_size=args.batch_size, mesh=make_mesh(),
        in_memory=False,
    )  # fmt: skip
    rate = len(data) * (1 + flip) / (time.monotonic() - began)
    print(f"latents of {data.name}: {rate:.0f} images/s")


def _embed(args: argparse.Namespace, encoder: TextEncoder) -> None:
    """Writes the embeddings of a prepared set's captions."""
    data = load_dataset(args.name or args.published, args.split, in_memory=False)
    if data.captions is None:
        raise PrepareError(
            f"{data.name} has no captions for --text_encoder: {WRITE}, and prepare that with "
            "--images under another name"
        )
    pooled, tokens = encoder.widths
    embedded(data, encoder, (pooled, tokens if args.text_tokens else 0))
    print(f"embeddings of {data.name} by {args.text_encoder}")


def _say_ready(folder: Path, root: Path) -> None:
    setting = "" if root == data_dir() else f"with TFDS_DATA_DIR={root}, "
    print(f"{folder} is ready: {setting}load_dataset({folder.parent.name!r})")

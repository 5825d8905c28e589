"""Puts a published data set, or a folder of images, on disk; see `pdistill.data.prepare`.

With --codec the moments of a set's latents are written beside it too, also of one that is there.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pdistill.cli.options import picture_options
from pdistill.data.prepare import prepare, prepare_images
from pdistill.data.published import PUBLISHED
from pdistill.data.resize import KERNELS
from pdistill.data.sources import data_dir, load_dataset
from pdistill.data.tfds_writer import PrepareError
from pdistill.experiment.codecs import in_latents
from pdistill.model.card import find
from pdistill.model.codecs import blank_codec
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.terminal import plain_errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pdistill.data.prepare",
        description="Prepares a published data set, or a folder of images, for load_dataset.",
    )
    add = parser.add_argument
    add("published", nargs="?", choices=PUBLISHED, help="a data set to download")
    add("--archive", type=Path, help="a copy of it, file or folder, to use instead")
    add(
        "--images",
        type=Path,
        help="a folder of images; sub-folders are classes, or train, test and val with classes",
    )
    add("--name", help="name of the new data set")
    add("--resolution", type=int, help="pixels a side; default: the images' own, at most 64")
    add("--resize", choices=KERNELS, default="area", help="default: %(default)s")
    add("--no_labels", action="store_true", help="sub-folders are not classes")
    add(
        "--held_out",
        type=int,
        help="images for a split test, if there is but train; default: a tenth, at most 10,000",
    )
    add("--codec", help="directory of a codec, whose latents of the images are prepared too")
    add("--no_flip", action="store_true", help="no latents of mirrored images")
    add("--split", default="train", help="split that --codec is for; default: %(default)s")
    add("--batch_size", type=int, default=64, help="images that --codec encodes at a time")
    picture_options(parser)
    add("--data_dir", type=Path, default=data_dir(), help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    known = args.codec and args.name and not args.images and not args.published
    if bool(args.published) == bool(args.images) and not known:
        parser.error(f"give either one of {', '.join(PUBLISHED)} or --images=FOLDER")
    if args.images and not args.name:
        parser.error("--images needs --name=NAME")
    if args.resolution is not None and args.resolution < 1:
        parser.error("--resolution must be 1 or more")
    root = args.data_dir.expanduser()
    with plain_errors(PrepareError, ValueError, OSError):
        if args.codec:
            _check_codec(args, root)
        if known or (args.published and args.codec and (root / args.published).exists()):
            folder = None
        elif args.published:
            folder = prepare(args.published, root, args.archive)
        else:
            folder = prepare_images(
                args.images,
                root,
                args.name,
                args.resolution,
                args.resize,
                not args.no_labels,
                channels=args.channels,
                background=args.background,
                held_out=args.held_out,
            )
        if folder:
            _say_ready(folder, root)
        if args.codec:
            os.environ["TFDS_DATA_DIR"] = str(root)  # where `load_dataset` looks
            _encode(args, args.name or args.published)


def _check_codec(args: argparse.Namespace, root: Path) -> None:
    """Raises ValueError for a codec that images will not fit, before any are prepared.

    Pictures become those of the codec's channels, unless --channels says otherwise.
    """
    codec = blank_codec(args.codec)
    if not args.images:
        return
    if (root / args.name).exists():
        raise PrepareError(
            f"{root / args.name} is there already: leave out --images to add latents to it, as "
            f"--name={args.name} --codec={args.codec}, or delete it"
        )
    args.channels = args.channels or codec.module.image_channels
    side = args.resolution or codec.factor
    codec.latent_shape((side, side, args.channels))


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


def _say_ready(folder: Path, root: Path) -> None:
    setting = "" if root == data_dir() else f"with TFDS_DATA_DIR={root}, "
    print(f"{folder} is ready: {setting}load_dataset({folder.parent.name!r})")


if __name__ == "__main__":
    main()

"""Puts a published data set, or a folder of images, on disk; see `pdistill.data.prepare`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pdistill.cli.options import picture_options
from pdistill.data.prepare import prepare, prepare_images
from pdistill.data.published import PUBLISHED
from pdistill.data.resize import KERNELS
from pdistill.data.sources import data_dir
from pdistill.data.tfds_writer import PrepareError
from pdistill.runtime.terminal import plain_errors


def main(argv: Sequence[str] | None = None) -> None:
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
    picture_options(parser)
    add("--data_dir", type=Path, default=data_dir(), help="default: %(default)s")
    args = parser.parse_args(argv)
    if bool(args.published) == bool(args.images):
        parser.error(f"give either one of {', '.join(PUBLISHED)} or --images=FOLDER")
    if args.images and not args.name:
        parser.error("--images needs --name=NAME")
    if args.resolution is not None and args.resolution < 1:
        parser.error("--resolution must be 1 or more")
    root = args.data_dir.expanduser()
    with plain_errors(PrepareError, OSError):
        if args.published:
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
    setting = "" if root == data_dir() else f"with TFDS_DATA_DIR={root}, "
    print(f"{folder} is ready: {setting}load_dataset({folder.parent.name!r})")


if __name__ == "__main__":
    main()

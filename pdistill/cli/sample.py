"""Draws a grid of images: python -m pdistill.sample --model=DIR --num=64 --out=grid.png"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

from pdistill.cli.options import command_parser, steps_option
from pdistill.data import to_uint8
from pdistill.model import load
from pdistill.report.grids import tile
from pdistill.runtime.terminal import plain_errors
from pdistill.samplers import format_steps, parse_solver


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("sample", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    parser.add_argument("--num", type=int, default=64, help="number of images (default 64)")
    parser.add_argument("--out", default="grid.png", help="picture to write (default grid.png)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=int, help="label of all images, for a model with labels")
    parser.add_argument(
        "--guidance", type=float, help="guidance weight, for a model that takes one"
    )
    steps_option(parser)
    parser.add_argument("--solver", help="solver instead of the model's own, such as gamma:0.5")
    parser.add_argument(
        "--scale",
        type=int,
        help="side of the square that shows a pixel (default: about 32 an image)",
    )
    options = parser.parse_args(arguments)
    with plain_errors(ValueError, OSError):
        model = load(options.model)
        images = model.sample(
            jax.random.key(options.seed),
            options.num,
            label=options.label,
            guidance=options.guidance,
            num_steps=options.num_steps,
            solver=options.solver and parse_solver(options.solver),
        )
        grid = tile(np.asarray(to_uint8(images)), options.scale)
        out = Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(out)
    steps = format_steps(options.num_steps or model.sampling.num_steps)
    print(f"{options.num} images, {steps} steps -> {out}")


if __name__ == "__main__":
    main()

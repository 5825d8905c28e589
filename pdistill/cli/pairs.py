"""Makes noise-image pairs with a teacher, for regression losses.

    python -m pdistill.pairs --model=runs/digits/teacher --num=10000 --out=pairs.npz

The .npz holds "image" [N, H, W, C] float16, "label" [N] and "key". The noise of pair i is
`jax.random.normal(jax.random.fold_in(key, i), (H, W, C))`. The images of a model of
latents are its latents, and "codec" is the fingerprint of its codec.
"""

from pdistill.cli.options import (
    codec_option,
    command_parser,
    guide_option,
    load_model,
    own_code_option,
    seed_option,
)
from pdistill.methods.columns import Pairs
from pdistill.runtime.files import check_writable, in_home
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("pairs", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    codec_option(parser)
    own_code_option(parser)
    guide_option(parser)
    parser.add_argument("--num", type=int, required=True, help="number of pairs")
    parser.add_argument("--out", type=in_home, required=True, help=".npz to write")
    parser.add_argument("--num_steps", type=int, default=18, help="default: %(default)s")
    parser.add_argument("--solver", default="heun", help="default: %(default)s")
    parser.add_argument(
        "--guidance", type=float, help="guidance weight, for a model that takes one"
    )
    seed_option(parser, "the noise")
    parser.add_argument("--batch_size", type=int, default=500)
    options = parser.parse_args(arguments)
    with plain_errors(ValueError, OSError):
        check_writable(options.out, ".npz")
        config = Pairs(options.num, options.num_steps, options.solver, options.guidance)
        mesh = make_mesh()
        model = load_model(options, mesh)
        if options.guidance is not None:
            model.check_guidance(options.guidance)
        _ = model.sampling_with(config.num_steps, config.solver)  # raises
        config.make(
            options.out, model.network, seed=options.seed, batch_size=options.batch_size, mesh=mesh,
            fingerprint=model.card.get("codec", {}).get("fingerprint"),
        )  # fmt: skip
    print(f"{config.num} pairs of {config.num_steps} steps -> {options.out}")

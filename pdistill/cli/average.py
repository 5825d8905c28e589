"""Makes an average of another length of a finished run's snapshots (post-hoc EMA).

    python -m pdistill.average --run=runs/digits/teacher --width=0.07 --out=runs/digits/teacher_07

The run was trained with optimizer.ema_widths and loop.snapshot_every. The result is a model, which
`sample`, `evaluate` and `export` take.
"""

from pdistill.cli.options import command_parser, own_code_option
from pdistill.model import posthoc_average, save
from pdistill.runtime.files import in_home
from pdistill.runtime.own_code import consent
from pdistill.runtime.terminal import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("average", __doc__)
    parser.add_argument(
        "--run", type=in_home, required=True, help="a run's directory, with averages/"
    )
    parser.add_argument(
        "--width",
        type=float,
        required=True,
        help="relative standard deviation of its profile, above 0 and at most 0.2886",
    )
    parser.add_argument(
        "--out", type=in_home, required=True, help="model directory to write; must be new"
    )
    own_code_option(parser)
    options = parser.parse_args(arguments)
    with plain_errors(ValueError, OSError), consent(options.own_code):
        if options.out.exists():
            raise ValueError(f"{options.out} is there already; give a new --out")
        model = posthoc_average(options.run, options.width)
        save(options.out, model.network, **model.card)
    about = model.card["average"]
    print(
        f"the average of width {options.width:g} after {about['updates']:,} updates, of "
        f"{about['snapshots']} snapshots (its profile is {about['error']:.1%} off) -> {options.out}"
    )

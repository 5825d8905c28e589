"""Writes a model's sampler as a file that plain JAX runs, or the model as a folder for a hub.

    python -m pdistill.export --model=runs/digits/progressive/4 --out=sampler.stablehlo
    python -m pdistill.export --model=runs/digits/progressive/4 --to=safetensors --out=folder

The sampler needs only jax (and flatbuffers) to run, on CPUs, GPUs and TPUs, for any batch:

    sampler = jax.export.deserialize(open("sampler.stablehlo", "rb").read())
    images = sampler.call(jax.random.key(0), jax.numpy.arange(16))
"""

import dataclasses
from pathlib import Path

from pdistill.cli.options import (
    codec_option,
    command_parser,
    guide_option,
    load_model,
    own_code_option,
    read_prompts,
    steps_option,
    text_encoder_option,
)
from pdistill.interop import write_folder, write_sampler
from pdistill.interop.stablehlo import sampler_arguments
from pdistill.model import Model
from pdistill.runtime.files import check_writable, in_home
from pdistill.runtime.terminal import plain_errors

# Options that are for one kind of file only.
ONLY = {
    "stablehlo": ("num_steps", "start", "weights"),
    "safetensors": ("dtype", "prompts", "text_encoder"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("export", __doc__)
    parser.add_argument("--model", required=True, help="a stage's or a model's directory")
    codec_option(parser)
    own_code_option(parser)
    guide_option(parser)
    text_encoder_option(parser)
    parser.add_argument("--out", type=in_home, required=True, help="file, or folder, to write")
    parser.add_argument("--to", choices=("stablehlo", "safetensors"), default="stablehlo")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format of --to=safetensors",
    )
    parser.add_argument(
        "--prompts",
        type=in_home,
        help="file of prompts, a line each, whose embeddings --to=safetensors takes along: "
        "they need no text encoder then",
    )
    steps_option(parser)
    parser.add_argument(
        "--start",
        choices=("key", "noise"),
        default="key",
        help="argument of the sampler: a key and the samples' numbers, or noise",
    )
    parser.add_argument(
        "--weights",
        choices=("inside", "beside"),
        default="inside",
        help="inside the file, or beside it as .npz, to be the sampler's first argument",
    )
    options = parser.parse_args(arguments)
    with plain_errors(ValueError, OSError):
        for kind, names in ONLY.items():
            for name in names:
                if options.to != kind and getattr(options, name) != parser.get_default(name):
                    raise ValueError(f"--{name} is not for --to={options.to}; leave it out")
        if options.to == "stablehlo":
            check_writable(options.out)
        model = load_model(options)
        if options.prompts:
            model = _with_prompts(model, options.prompts)
        if options.to == "safetensors":
            write_folder(options.out, model, options.dtype)
            print(f"{options.model} -> {options.out}")
            return
        inside = options.weights == "inside"
        files = write_sampler(
            options.out, model, num_steps=options.num_steps, start=options.start, inside=inside
        )
    call = ", ".join(sampler_arguments(model, start=options.start, inside=inside))
    print(f"{options.model} -> {', '.join(map(str, files))}: call({call})")


def _with_prompts(model: Model, path: Path) -> Model:
    """The model with the embeddings of a file's prompts at hand."""
    if model.prompts is None:
        raise ValueError("this model takes no prompts; leave --prompts out")
    prompts = list(dict.fromkeys(read_prompts(path)))
    return dataclasses.replace(model, prompts=model.prompts.knowing(prompts))

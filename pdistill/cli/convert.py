"""Makes the directory of a model, or of a codec, from somebody else's weights.

    python -m pdistill.convert --from=diffusers --source=ddpm-cifar10-32 --out=models/ddpm
    python -m pdistill.convert --from=edm --source=edm-cifar10-32x32-cond-vp.pkl --out=models/edm
    python -m pdistill.convert --from=edm2 --source=edm2-img512-xs-2147483-0.135.pkl --out=models/xs
    python -m pdistill.convert --from=adm --source=64x64_diffusion.pt --out=models/adm \
        --flags="--image_size 64 --class_cond True --learn_sigma True ..."
    python -m pdistill.convert --from=official_pd --source=cifar_8 --image_size=32 --out=models/pd
    python -m pdistill.convert --from=diffusers --source=stable-diffusion/vae --out=models/codec
    python -m pdistill.convert --from=sit --source=SiT-XL-2-256.pt --out=models/sit \
        --codec=models/codec

--from says what the source is:

  diffusers     a folder with a UNet2DModel or a DiTTransformer2DModel (safetensors), its config
                and its scheduler's; or with an AutoencoderKL or an AutoencoderTiny, a codec
  edm           a network's pickle of Karras et al. 2022; nothing in it is executed
  edm2          a network's pickle of Karras et al. 2024, with --guide another one, converted, for
                autoguidance; or the folder of sd-vae-ft-mse, for the codec of its latents
  adm           a state dict of guided-diffusion, with its MODEL_FLAGS as --flags
  sit, dit, lightningdit
                a state dict (.pt, .safetensors) of SiT, of DiT by its authors, of LightningDiT
  ldm           an autoencoder's checkpoint of latent-diffusion, such as VA-VAE: a codec
  official_pd   a checkpoint of the official progressive distillation release
  safetensors   a folder written by pdistill.export --to=safetensors
"""

import inspect

from pdistill.cli.options import command_parser, own_code_option
from pdistill.interop import CONVERTERS, ConversionError, with_codec, write_model
from pdistill.networks import Codec
from pdistill.runtime.files import in_home
from pdistill.runtime.own_code import consent
from pdistill.runtime.terminal import plain_errors
from pdistill.training import CheckpointError


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser("convert", __doc__)
    parser.add_argument("--from", required=True, dest="format", choices=sorted(CONVERTERS))
    parser.add_argument("--source", type=in_home, required=True, help="file or folder to convert")
    parser.add_argument(
        "--out", type=in_home, required=True, help="model directory to write; must be new"
    )
    parser.add_argument("--num_steps", type=int, help="sampling steps, if the source does not say")
    parser.add_argument("--image_size", type=int, help="official_pd: height of its images")
    parser.add_argument("--head", help="official_pd: its network's prediction, if not as released")
    parser.add_argument("--guide", help="edm2: model directory of the network that guides it")
    parser.add_argument("--flags", help="adm: the flags of guided-diffusion that built it")
    parser.add_argument(
        "--statistics", type=in_home, help="ldm: its latents' mean and std, latents_stats.pt"
    )
    parser.add_argument("--codec", help="networks of latents: directory of their codec")
    parser.add_argument("--heads", type=int, help="sit, dit, lightningdit: attention's heads")
    parser.add_argument(
        "--variance", action="store_true", default=None,
        help="dit, adm: keep the learnt variance, and sample with it",
    )  # fmt: skip
    own_code_option(parser)
    options = vars(parser.parse_args(arguments))
    format, source, out = options.pop("format"), str(options.pop("source")), options.pop("out")
    own_code = options.pop("own_code")
    given = {name: value for name, value in options.items() if value is not None}
    with plain_errors(ValueError, OSError, CheckpointError), consent(own_code):
        if out.exists():
            raise ConversionError(f"{out} is there already; give a new --out")
        codec = given.pop("codec", None)  # of any format
        _check(format, given)
        conversion = CONVERTERS[format](source, **given)
        if codec is not None:
            conversion = with_codec(conversion, codec)
        write_model(out, conversion)
    made = conversion.network
    if isinstance(made, Codec):
        print(f"{source} -> {out}: {made}")
    else:
        steps = conversion.card["num_steps"]
        weight = conversion.card.get("published", {}).get("guidance")
        said = "" if weight is None else f", published with w = {weight:g} (scale {weight + 1:g})"
        print(f"{source} -> {out}: {type(made.module).__name__}, {steps} steps{said}")


def _check(format: str, given: dict[str, object]) -> None:
    """Raises ConversionError for options that this format does not take, or lacks."""
    known = inspect.signature(CONVERTERS[format]).parameters
    for name in given:
        if name not in known:
            raise ConversionError(f"--{name} is not for --from={format}; leave it out")
    for name, parameter in known.items():
        if name != "source" and parameter.default is parameter.empty and name not in given:
            raise ConversionError(f"--from={format} needs --{name}; give it too")
    if min(given.get(name, 1) for name in ("num_steps", "image_size", "heads")) < 1:
        raise ConversionError("--num_steps, --image_size and --heads must be at least 1")

"""Samplers as StableHLO files, which plain JAX runs on any device and for any batch."""

import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from jax import export as jax_export

from pdistill.model import Model
from pdistill.model.sampling import generate
from pdistill.networks import Conditioning, Text
from pdistill.runtime.files import write_arrays
from pdistill.runtime.kernels import without_kernels
from pdistill.runtime.temporary import replacing
from pdistill.samplers import Steps
from pdistill.samplers.noise import GENERATOR

PLATFORMS = ("cpu", "cuda", "tpu")
TEXT = ("mask", "tokens", "pooled")
PARTS = ("codec", "guide")  # fields of a network with parameters of their own
LARGEST = 2**31 - 2**27  # bytes of weights inside a file, a flatbuffer, which has 2 GiB at most


def sampler_arguments(model: Model, *, start: str, inside: bool) -> dict[str, Any]:
    """Lists the exported sampler's arguments in order, {name: tree of shapes}, with the batch "b".

    weights: {"block_0/qkv/kernel": array, ...}, unless they are inside.
    key: a typed threefry key, if `start` is "key".
    index: int32 [b], numbers of the samples in the key's stream.
    noise: standard normal [b, H, W, C], if `start` is "noise".
    label: int32 [b], for a model with labels; `num_labels` means "no label".
    mask, tokens, pooled: bool [b, l], float32 [b, l, D] and [b, P], for a model with text: what
    `model.prompts` makes of prompts, of which it takes the tokens, the pooled ones or both.
    guidance: float32 [b], for a model that takes weights; 0 is no guidance.
    """
    b, length = jax_export.symbolic_shape("b, l")
    arguments = {}
    if not inside:
        flat = weights(model)
        arguments["weights"] = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in flat.items()}
    if start == "key":
        arguments["key"] = jax.eval_shape(lambda: jax.random.key(0, impl=GENERATOR))
        arguments["index"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    else:
        arguments["noise"] = jax.ShapeDtypeStruct((b, *model.noise_shape), jnp.float32)
    if model.network.num_labels:
        arguments["label"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    if model.network.takes_text:
        pooled, tokens = model.network.text_widths
        arguments["mask"] = jax.ShapeDtypeStruct((b, length), bool)
        if tokens:
            arguments["tokens"] = jax.ShapeDtypeStruct((b, length, tokens), jnp.float32)
        if pooled:
            arguments["pooled"] = jax.ShapeDtypeStruct((b, pooled), jnp.float32)
    if model.guidance_range is not None:
        arguments["guidance"] = jax.ShapeDtypeStruct((b,), jnp.float32)
    return arguments


def weights(model: Model) -> dict[str, Array]:
    """A model's parameters by their paths, a codec's below "codec/", a guide's below "guide/"."""
    params = dict(model.network.params)
    params |= {name: part.params for name, part in _parts(model).items()}
    return traverse_util.flatten_dict(params, sep="/")


def _parts(model: Model) -> dict[str, Any]:
    """The parts that a model's network has of `PARTS`, by name."""
    return {name: part for name in PARTS if (part := getattr(model.network, name))}


def export_sampler(
    model: Model, *, num_steps: Steps | None = None, start: str = "key", inside: bool = True
) -> jax_export.Exported:
    """Exports the sampler of `model`, for PLATFORMS and a symbolic batch.

    Args:
      num_steps: sampling steps instead of the model's own.
      start: "key" draws the first noise as `Model.sample` does: sample number i of a key is the
        same in both, to the bit on one version and device. "noise" takes it as an argument, which
        needs a deterministic solver.
      inside: the weights are constants of the program, not its first argument.

    Returns:
      An `Exported`: see `sampler_arguments` for its `call`; it returns [b, H, W, C] float32.

    Raises:
      ValueError: the steps are impossible, `start` is another word, or "noise" for a solver that
        draws more.
    """
    if start not in ("key", "noise"):
        raise ValueError(f"start must be 'key' or 'noise'; got {start!r}")
    sampling = model.sampling_with(num_steps)
    if start == "noise" and sampling.solver.stochastic:
        raise ValueError(f"the solver {sampling.solver.name} draws noise at each step: use a key")
    arguments = sampler_arguments(model, start=start, inside=inside)

    def sample(*values: Any) -> Array:
        named = dict(zip(arguments, values, strict=True))
        # Nothing is folded into constants, so that the numbers are those of Model.sample.
        flat = jax.lax.optimization_barrier(weights(model) if inside else named["weights"])
        params = traverse_util.unflatten_dict(flat, sep="/")
        parts = {n: p.replace(params=params.pop(n)) for n, p in _parts(model).items()}
        network = model.network.replace(params=params, **parts)
        text = {name: named[name] for name in TEXT if name in named}
        told = Conditioning(
            label=named.get("label"),
            text=Text(**text) if text else None,
            guidance=named.get("guidance"),
        )
        if start == "noise":
            return sampling.run(network, told, key=None, z_init=named["noise"])
        return generate(network, named["key"], named["index"], told, sampling=sampling)

    with without_kernels():
        return jax_export.export(jax.jit(sample), platforms=PLATFORMS)(*arguments.values())


def write_sampler(
    path: str | Path, model: Model, *, num_steps: Steps | None, start: str, inside: bool
) -> list[Path]:
    """Writes `export_sampler`'s result to `path`, with weights beside it as .npz if not inside.

    Returns:
      The paths of the files.

    Raises:
      ValueError: the program and its weights would be the same file, or these would replace
        another one, or they are too large to be inside.
    """
    path = Path(path)
    beside = path.with_suffix(".npz")
    size = sum(a.nbytes for a in weights(model).values())
    if inside and size > LARGEST:  # before minutes of lowering
        raise ValueError(
            f"the weights have {size / 2**30:.1f} GiB, and a program with its weights inside has "
            f"{LARGEST / 2**30:.1f} GiB of them at most; give --weights=beside"
        )
    if not inside and path.suffix == ".npz":
        raise ValueError(f"{path} is for the weights beside the program; give another name")
    if not inside and beside.exists() and _names(beside) != set(weights(model)):
        raise ValueError(
            f"{beside} is there, and holds no weights of such a model, which would replace it; "
            "give another name"
        )
    exported = export_sampler(model, num_steps=num_steps, start=start, inside=inside)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path]
    if not inside:
        files.append(beside)
        write_arrays(files[-1], weights(model))
    with replacing(path) as temporary:
        temporary.write_bytes(exported.serialize())
    return files


def _names(path: Path) -> set[str]:
    """Names of the arrays in an .npz; none of a file that is something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()

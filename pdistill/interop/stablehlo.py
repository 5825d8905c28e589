"""A model's sampler as StableHLO: a file that plain JAX runs, on any device and for any batch."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from jax import export as jax_export

from pdistill.model import Model
from pdistill.model.sampling import generate
from pdistill.runtime.files import write_arrays
from pdistill.samplers import Steps

PLATFORMS = ("cpu", "cuda", "tpu")


def sampler_arguments(model: Model, *, start: str, inside: bool) -> dict[str, Any]:
    """What the exported sampler is called with, in order: name -> tree of shapes, batch "b".

    weights: {"block_0/qkv/kernel": array, ...}, unless they are inside. key: a typed key, and
    index [b] int32, the numbers of the samples in its stream; or noise [b, H, W, C], standard
    normal. label [b] int32, for a model with labels: `num_labels` is "no label". guidance [b]
    float32, for a model that takes weights: 0 is none.
    """
    (b,) = jax_export.symbolic_shape("b")
    arguments = {}
    if not inside:
        flat = traverse_util.flatten_dict(model.params, sep="/")
        arguments["weights"] = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in flat.items()}
    if start == "key":
        arguments["key"] = jax.eval_shape(lambda: jax.random.key(0))
        arguments["index"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    else:
        arguments["noise"] = jax.ShapeDtypeStruct((b, *model.noise_shape), jnp.float32)
    if model.diffuser.num_labels:
        arguments["label"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    if model.guidance_range is not None:
        arguments["guidance"] = jax.ShapeDtypeStruct((b,), jnp.float32)
    return arguments


def export_sampler(
    model: Model, *, num_steps: Steps | None = None, start: str = "key", inside: bool = True
) -> jax_export.Exported:
    """The sampler of `model`, for PLATFORMS and a symbolic batch.

    Args:
      num_steps: instead of the model's own.
      start: "key" draws the first noise, as `Model.sample` does: sample number i of a key is the
        same in both, to the bit on one version and device. "noise" is given it, which needs a
        deterministic solver.
      inside: the weights are constants of the program, not its first argument.

    Returns:
      An `Exported`: see `sampler_arguments` for its `call`; it returns [b, H, W, C] float32.

    Raises:
      ValueError: impossible steps, or noise for a solver that draws more.
    """
    sampling = model.sampling.changed(num_steps)
    if start == "noise" and sampling.solver.stochastic:
        raise ValueError(f"the solver {sampling.solver.name} draws noise at each step: use a key")
    arguments = sampler_arguments(model, start=start, inside=inside)

    def sample(*values: Any) -> Array:
        named = dict(zip(arguments, values, strict=True))
        params = model.params
        if not inside:
            params = traverse_util.unflatten_dict(named["weights"], sep="/")
        # Nothing is folded into constants, so that the numbers are those of Model.sample.
        params = jax.lax.optimization_barrier(params)
        inputs = model.diffuser, params
        conditions = named.get("label"), named.get("guidance")
        if start == "noise":
            return sampling.run(*inputs, *conditions, key=None, z_init=named["noise"])
        numbered = *inputs, named["key"], named["index"], *conditions
        return generate(*numbered, sampling=sampling, shape=model.noise_shape)

    return jax_export.export(jax.jit(sample), platforms=PLATFORMS)(*arguments.values())


def write_sampler(
    path: str | Path, model: Model, *, num_steps: Steps | None, start: str, inside: bool
) -> list[Path]:
    """Writes `export_sampler`'s result to `path`, weights beside it as .npz. The files written."""
    path = Path(path)
    exported = export_sampler(model, num_steps=num_steps, start=start, inside=inside)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path]
    if not inside:
        files.append(path.with_suffix(".npz"))
        write_arrays(files[-1], traverse_util.flatten_dict(model.params, sep="/"))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(exported.serialize())
    os.replace(temporary, path)
    return files

"""Weights that make several losses pull equally on one late layer (Esser et al. 2021, eq. 7)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import Array

from pdistill.networks import Network
from pdistill.training import Learner, Metrics, partition
from pdistill.training.stacking import unstacked

SMALL = 1e-4  # added to the norm that is divided by
OUTPUT = "output"  # the layer that `find_layer` finds by itself


def balance(
    pullback: Callable[[Mapping[str, Array]], Any],
    losses: Mapping[str, Array],
    layer: str,
    first: str,
    limits: Mapping[str, tuple[float, float]],
) -> dict[str, Array]:
    """Weight of each loss: 1 for `first`; for others its gradient's norm over theirs, clipped.

    Args:
      pullback: cotangents of `losses` -> the gradient with respect to all parameters, as `jax.vjp`
        gives it. One leaf of its results for a single loss is used; the compiler removes what leads
        to the others.
      losses: scalars by name. layer: path of that leaf, such as "conv_out/kernel".
      limits: least and greatest weight of each of the others.
    """

    def norm(name: str) -> Array:
        one = {other: jnp.full_like(loss, other == name) for other, loss in losses.items()}
        gradient = traverse_util.flatten_dict(pullback(one), sep="/")[layer]
        return optax.tree.norm(gradient)

    pull = norm(first)
    weights = {
        name: jnp.clip(pull / (norm(name) + SMALL), *limits[name])
        for name in losses
        if name != first
    }
    return jax.lax.stop_gradient({first: jnp.ones_like(pull)} | weights)


def balanced_update(
    losses: Callable[[Any], tuple[dict[str, Array], Any]],
    learner: Learner,
    *,
    layer: str,
    first: str,
    limits: Mapping[str, tuple[float, float]],
    factors: Mapping[str, float],
) -> tuple[Learner, Metrics, Any]:
    """One update on a weighted sum of losses.

    Args:
      losses: network -> scalars by name, and anything else.
      layer: as for `find_layer`; "" for weights of one. first, limits: as for `balance`.
      factors: on the weights of some losses.

    Returns:
      The learner; {"loss", the losses, "<name>_weight" of those with factors, "grad_norm",
      "param_norm"}; and what `losses` returned besides.
    """
    terms, pullback, rest = jax.vjp(losses, learner.network, has_aux=True)
    if layer:
        layer = find_layer(layer, unstacked(learner.network), learner.fixed)
        weights = balance(lambda g: unstacked(pullback(g)[0]).params, terms, layer, first, limits)
    else:
        weights = {name: jnp.ones_like(loss) for name, loss in terms.items()}
    weights = {name: factors.get(name, 1.0) * weight for name, weight in weights.items()}
    learner, norms = learner.update(pullback(weights)[0])
    metrics = {f"{name}_weight": weights[name] for name in factors if name in weights}
    metrics["loss"] = sum(weights[name] * terms[name] for name in terms)
    return learner, metrics | terms | norms, rest


def find_layer(layer: str, network: Network, fixed: tuple[str, ...] = ()) -> str:
    """Path of the parameters whose gradients weigh the losses.

    Args:
      layer: the path, or OUTPUT for the kernel of the network's last layer, of any network.
      fixed: patterns of the parameters that do not learn.

    Raises:
      ValueError: the network has no such layer that learns; the message lists those it has.
    """
    learning, _ = partition(network.params, fixed)
    flat = traverse_util.flatten_dict(learning, sep="/")
    if layer in flat:
        return layer
    kernels = [path for path in flat if path.endswith("/kernel")]
    if layer == OUTPUT:
        module = network.module
        channels = module.out_channels * getattr(module, "patch", 1) ** 2
        wide = [path for path in kernels if flat[path].shape[-1] == channels]
        biases = {path: flat.get(path.replace("kernel", "bias")) for path in wide}
        found = [path for path in wide if getattr(biases[path], "shape", None) == (channels,)]
        found = found or [path for path in wide if biases[path] is None]
        if len(found) == 1:
            return found[0]
        problem = f"{len(found) or 'no'} layers that learn have {channels} outputs"
    else:
        problem = f"no parameters that learn have the path {layer!r}"
    raise ValueError(
        f"layer: {problem}; give {OUTPUT!r} for the network's last layer, or one of: "
        f"{', '.join(kernels)}"
    )

"""Muon: orthogonalised momentum for the matrices between a network's layers, Adam for the rest."""

import math
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from pdistill.networks.blocks import STACKED

RMS = 0.2  # of an update, about Adam's, so that both have one learning rate (Liu et al. 2025)

# Layers that read or write pixels, waves of a noise level, or labels: the ends of our networks, of
# those of a size of a cascade ("conv_in_8"), of diffusers', of EDM's and of SiT's, and of learnt
# weights of losses ("w"). Embeddings and positions are no kernels.
ENDS = re.compile(
    r"(^|[/.])((patches|conv_in\d*|conv_out\d*)(_\d+)?|w|(velocity_)?pixels|logsnr_in|dense0|class_emb"
    r"|guidance_in/linear|guidance_levels_in/Dense_0|\w+_in/in|logits?(/conv)?|pos_embed\.proj"
    r"|proj_out_2|linear_1|\d+x\d+_conv|\w*_aux_\w+|out_conv|map_layer0|map_label|emb_noise|emb_label"
    r"|x_embedder\.proj|t_embedder\.mlp\.0|final_layer\.linear)/kernel$"
)


def matrix_axes(path: str, shape: tuple[int, ...]) -> MuonDimensionNumbers | None:
    """Axes of a parameter as a matrix from inputs to outputs; None for one that Adam updates.

    A convolution is one matrix from all that it sees of its input, [height * width * in, out]. A
    projection to attention heads, [in, heads, size] or [in, 3, heads, size], has one matrix for
    each of query, key and value, and one back from them, [heads, size, out] with
    out = heads * size, the matrix [heads * size, out]. Each of stacked blocks has its own.

    Args:
      path: such as "params/block_0/qkv/kernel".
    """
    if f"/{STACKED}/" in path:
        axes = matrix_axes(path.replace(f"/{STACKED}/", "/block/"), shape[1:])
        return axes and MuonDimensionNumbers(
            *(tuple(i + 1 if i >= 0 else i for i in side) for side in axes)
        )
    if len(shape) < 2 or not path.endswith("kernel") or ENDS.search(path):
        return None
    to_heads = len(shape) > 2 and shape[0] == shape[-2] * shape[-1]
    if to_heads or (len(shape) == 3 and shape[-1] != shape[0] * shape[1]):  # of text, of any width
        return MuonDimensionNumbers((0,), (-2, -1))
    return MuonDimensionNumbers(tuple(range(len(shape) - 1)), (-1,))


def muon_and_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Scales updates by Muon (Jordan et al. 2024) where `matrix_axes` has axes, else by Adam.

    Muon has Nesterov momentum of 0.95 and five Newton-Schulz iterations; its update of a matrix
    [n, m] is scaled by 0.2 sqrt(max(n, m)). The arguments are Adam's.
    """
    muon = optax.chain(
        scale_by_muon(weight_dimension_numbers=_axes), optax.stateless(_with_the_rms_of_adam)
    )
    return optax.partition(
        {"muon": muon, "adam": optax.scale_by_adam(b1, b2, eps)},
        lambda params: jax.tree.map(
            lambda axes: "adam" if axes is None else "muon",
            _axes(params),
            is_leaf=lambda axes: axes is None or isinstance(axes, MuonDimensionNumbers),
        ),
    )


def _axes(params: Any) -> Any:
    def axes(path: Any, parameter: Any) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return matrix_axes(name, parameter.shape)

    return jax.tree_util.tree_map_with_path(axes, params)


def _with_the_rms_of_adam(updates: Any, params: Any) -> Any:
    del params

    def scaled(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
        sides = (
            math.prod(update.shape[i] for i in side)
            for side in (axes.reduction_axis, axes.output_axis)
        )
        return RMS * math.sqrt(max(sides)) * update

    return jax.tree.map(scaled, updates, _axes(updates))

"""Freezing: rules for the paths of parameters that stay as they are."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from flax import traverse_util

# Patterns of the paths, "block_0/qkv/kernel", of what is frozen. "d2o_f" is the rule of D2O-F
# (Zheng & Yang 2025) for U-Nets: the blocks' convolutions and attention's output. The others freeze
# the embedding's layers in the blocks too, which may be large. All know our names of a U-Net's
# layers, EDM's and diffusers'.
BLOCKS = (
    r"(block_?\d+|sample|_up|_down|in[01]|(nets|samplers)\.\d+)"
    r"/(conv(_res)?\d|temb_proj|affine|time_emb_proj|emb_linear)/"
)
PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "d2o_f": (
        r"(block_?\d+|attn_\d+|sample|up|down|in[01]|(nets|samplers)\.\d+)"
        r"[./](conv(_res)?\d|(attn_)?proj)|attentions\.\d+/to_out",
    ),
    "unet": (BLOCKS, r"attn_\d+/proj_out/|(block\d+|in0)/(attn_)?proj/|attentions\.\d+/to_out"),
    "unet_qkv": (
        BLOCKS,
        r"attn_\d+/(q|k|v|proj_out)/|(block\d+|in0)/(attn_)?(qkv|proj)/|attentions\.\d+/to_",
    ),
    # While PaGoDA grows, all but the finest level of the base network's decoder and what is
    # behind it is frozen; with 64 pixels theirs also trains the second finest level but for its
    # first block.
    "pagoda": (r"^(conv_in|dense\d|class_emb)/", r"^(down_\d+|mid|up_[1-9]\d*)\."),
    "pagoda_64": (
        r"^(conv_in|dense\d|class_emb)/",
        r"^(down_\d+|mid|up_[2-9]\d*)\.",
        r"^up_1\.(block|attn)_0/",
    ),
    "dit": (r"(mlp_in|mlp_out|attention_out|modulation)/kernel",),
    "dit_qkv": (r"(mlp_in|mlp_out|attention_out|modulation|qkv)/kernel",),
}


# Those for growing of U-Nets that are not ours, whose levels count from the coarsest: the levels of
# the decoder that learn at least in part, and the paths of the decoder's levels and before it.
GROWING = {"pagoda": 1, "pagoda_64": 2}
DECODER = r"^(?:dec\.|up_blocks\.)(\d+)"
ENCODER = r"^(enc\.|map_|emb_|conv_in/|time_embedding|class_embedding|down_blocks|mid_block)"


def preset(name: str, params: Any = None) -> tuple[str, ...]:
    """Patterns of the preset of this name for a network's parameters, or for ours.

    Raises:
      ValueError: it is not in PRESETS.
    """
    if name not in PRESETS:
        raise ValueError(f"fixed must be one of {', '.join(PRESETS)}; got {name!r}")
    paths = traverse_util.flatten_dict(params or {}, sep="/")
    levels = sorted({int(m[1]) for path in paths if (m := re.match(DECODER, path))})
    if name not in GROWING or not levels:
        return PRESETS[name]
    held = [rf"^(dec\.|up_blocks\.){n}\D" for n in levels[: -GROWING[name]]]
    if GROWING[name] == 2 and len(levels) > 1:  # of the second finest, the first block
        n = levels[-2]
        held.append(rf"^dec\.{n}x{n}_(up|in0|block0)/|^up_blocks\.{n}\.(resnets|attentions)\.0/")
    return (ENCODER, *held)


def partition(params: Any, frozen: Sequence[str]) -> tuple[Any, Any]:
    """Cuts a nested dictionary in two: (what learns, what is frozen).

    Args:
      frozen: patterns, searched for in paths such as "block_0/qkv/kernel".

    Raises:
      ValueError: a pattern that no path has.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in frozen:
        if not any(re.search(pattern, path) for path in flat):
            raise ValueError(f"no parameter's path has {pattern!r}; paths are like {min(flat)!r}")
    held = {path for path in flat if any(re.search(pattern, path) for pattern in frozen)}
    return tuple(
        traverse_util.unflatten_dict({path: flat[path] for path in flat if (path in held) == part},
                                     sep="/")
        for part in (False, True)
    )  # fmt: skip


def merge(learning: Any, frozen: Any) -> Any:
    """The inverse of `partition`."""
    flat = traverse_util.flatten_dict(learning) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def count(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

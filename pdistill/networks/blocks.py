"""Equal blocks of a transformer: one after the other, or in one loop over stacked parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

STACKED = "stacked_blocks"  # the name that the parameters of all blocks have in one tree


def apply_blocks(
    network: Any,
    make: Callable[..., nn.Module],
    tokens: Array,
    embedding: Array,
    late: Array,
    *rest: Any,
) -> tuple[Array, list[Array]]:
    """Tokens [B, T, C] after a network's blocks, in its compact call, and after each of them.

    Parameters as of `stack_blocks` make that a loop, whose body is compiled once. It has the tokens
    after each block only if the collection "maps" is wanted.

    Args:
      network: a module with `BLOCK`, `depth` and `target_blocks`. make: (name) -> a block, called
        as block(tokens, embedding, *rest) -> tokens.
      embedding, late: [B, C], of the blocks, and of the last `target_blocks` of them.
    """
    depth, first_late = network.depth, network.depth - network.target_blocks
    if not network.has_variable("params", STACKED):
        maps = []
        for i in range(depth):
            known = late if i >= first_late else embedding
            tokens = make(name=network.BLOCK.format(i))(tokens, known, *rest)
            maps.append(tokens)
        return tokens, maps
    shown = network.is_mutable_collection("maps")

    def step(block: nn.Module, tokens: Array, i: Array) -> tuple[Array, Array | None]:
        known = jnp.where(i >= first_late, late, embedding) if network.target_blocks else embedding
        tokens = block(tokens, known, *rest)
        return tokens, tokens if shown else None

    loop = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True})
    tokens, maps = loop(make(name=STACKED), tokens, jnp.arange(depth))
    return tokens, list(maps) if shown else []


def stack_blocks(params: Mapping[str, Any], block: str, depth: int) -> dict[str, Any]:
    """Parameters with those of equal blocks stacked along a first axis, as `STACKED`.

    Args:
      block: the blocks' names, such as "block_{}". depth: their number.
    """
    names = [block.format(i) for i in range(depth)]
    others = {name: value for name, value in params.items() if name not in names}
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    return others | {STACKED: blocks}


def unstack_blocks(params: Mapping[str, Any], block: str, depth: int) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    others = {name: value for name, value in params.items() if name != STACKED}
    blocks = {
        block.format(i): jax.tree.map(lambda leaf, i=i: leaf[i], params[STACKED])
        for i in range(depth)
    }
    return others | blocks

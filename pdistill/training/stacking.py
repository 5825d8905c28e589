"""States whose transformers have the parameters of their blocks stacked, to be compiled once."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from pdistill.networks import Network
from pdistill.networks.blocks import STACKED, stack_blocks, unstack_blocks
from pdistill.training.learner import Learner


def stacked(state: Any) -> Any:
    """A state with the blocks of all its networks stacked, and of their averages and moments.

    Networks without equal blocks stay as they are, and learners of which a part is fixed, whose
    rules are for the names of single blocks.

    Raises:
      ValueError: there is nothing to stack.
    """
    changed = _changed(_stack, state)
    if jax.tree.structure(changed) == jax.tree.structure(state):
        raise ValueError(
            "loop.scan_blocks: no network of this stage has equal blocks that all learn or all "
            "stay; DiT and SiT have, so leave it out for others"
        )
    return changed


def unstacked(tree: Any) -> Any:
    """The inverse of `stacked`, for whatever of it is there: networks as their files have them."""
    return _changed(_unstack, tree)


def _changed(change: Callable[[Network], Network], tree: Any) -> Any:
    def of(part: Any) -> Any:
        if not isinstance(part, Network):
            return part
        guide = part.guide and of(part.guide)
        held = part.params is not None and hasattr(part.module, "BLOCK")
        return (change(part) if held else part).replace(guide=guide)

    return jax.tree.map(of, tree, is_leaf=_is_whole)


def _is_whole(part: Any) -> bool:
    return isinstance(part, Network) or (isinstance(part, Learner) and bool(part.fixed))


def _stack(network: Network) -> Network:
    module = network.module
    return network.replace(params=stack_blocks(network.params, module.BLOCK, module.depth))


def _unstack(network: Network) -> Network:
    if STACKED not in network.params:
        return network
    return network.replace(params=_taken_apart(network.params, network.module))


@functools.partial(jax.jit, static_argnums=1)  # of large networks these are hundreds of slices
def _taken_apart(params: Any, module: Any) -> Any:
    return unstack_blocks(params, module.BLOCK, module.depth)

"""Parameters from one network to another that has some of the same names."""

from typing import Any, NamedTuple

from flax import traverse_util


class Transfer(NamedTuple):
    """What `transfer` did, by paths such as "block_0/qkv/kernel"."""

    copied: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]


def transfer(fresh: Any, source: Any) -> tuple[Any, Transfer]:
    """`fresh`, with `source`'s in the place of those of the same path.

    Args:
      fresh, source: nested dictionaries of arrays, or of their shapes.

    Raises:
      ValueError: two of one path have different shapes.
    """
    new, old = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, source))
    copied = [path for path in new if path in old]
    for path in copied:
        if new[path].shape != old[path].shape:
            raise ValueError(f"{path} is {old[path].shape} there and {new[path].shape} here")
    report = Transfer(
        tuple(copied),
        tuple(path for path in new if path not in old),
        tuple(path for path in old if path not in new),
    )
    merged = new | {path: old[path] for path in copied}
    return traverse_util.unflatten_dict(merged, sep="/"), report

"""Parameters from one network to another that has some of the same names."""

from typing import Any, NamedTuple

from flax import traverse_util


class Transfer(NamedTuple):
    """Report of a `transfer`, by paths such as "block_0/qkv/kernel"."""

    copied: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]


def transfer(fresh: Any, source: Any, *, reshaped: bool = False) -> tuple[Any, Transfer]:
    """`fresh`, with `source`'s in the place of those of the same path.

    Args:
      fresh, source: nested dictionaries of arrays, or of their shapes.
      reshaped: two of one path may have different shapes; then the fresh one stays.

    Raises:
      ValueError: two of one path have different shapes.
    """
    new, old = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, source))
    differing = [path for path in new if path in old and new[path].shape != old[path].shape]
    if differing and not reshaped:
        path = differing[0]
        raise ValueError(f"{path} is {old[path].shape} there and {new[path].shape} here")
    copied = [path for path in new if path in old and path not in differing]
    report = Transfer(
        tuple(copied),
        tuple(path for path in new if path not in copied),
        tuple(path for path in old if path not in copied),
    )
    merged = new | {path: old[path] for path in copied}
    return traverse_util.unflatten_dict(merged, sep="/"), report

"""States of methods, and which of their fields stay as they are in training."""

import dataclasses
from typing import Any

from flax import struct
from jax import Array


def frozen(**arguments: Any) -> Any:
    """A field of a method's state that does not learn, such as the teacher.

    It is not donated, not in checkpoints, and may be kept in the host's memory.
    """
    return struct.field(metadata={"frozen": True}, **arguments)


def take_frozen(state: Any) -> tuple[Any, dict[str, Any]]:
    """A method's state with None for its frozen fields, and these by name."""
    names = [f.name for f in dataclasses.fields(state) if f.metadata.get("frozen")]
    held = {name: getattr(state, name) for name in names}
    return state.replace(**dict.fromkeys(names)), held


class TrainState(struct.PyTreeNode):
    """The loop's state, from update to update.

    Attributes:
      step: updates done, int32 scalar. skipped: updates left out, see `LoopConfig`.
      method: the method's state, without its frozen fields.
    """

    step: Array
    skipped: Array
    method: Any

"""Everything that talks to Orbax: training checkpoints, and exported parameters."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pdistill.training.state import TrainState


class Checkpointer:
    """Asynchronous checkpoints of one training run, newest `keep` kept. Use with `with`."""

    def __init__(self, directory: str | Path, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def save(self, step: int, state: TrainState, iterator_state: dict[str, int]) -> None:
        """Returns once the arrays are copied; writing goes on in the background."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_saved_part(state)),
            iterator=ocp.args.JsonSave(iterator_state),
        )
        self._manager.save(step, args=items)

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, int]] | None:
        """The newest checkpoint, placed and sharded as `target`; None if there is none.

        `target.frozen` is kept: frozen parameters are not in a checkpoint. The other arrays of
        `target` are freed first, so that the state is never in memory twice.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(_saved_part(target))),
            iterator=ocp.args.JsonRestore(),
        )
        for leaf in jax.tree.leaves(_saved_part(target)):
            leaf.delete()
        restored = self._manager.restore(step, args=items)
        state = target.replace(**restored.state)
        return state, restored.iterator


def _saved_part(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "learners": state.learners}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)


def save_params(directory: str | Path, params: Any) -> None:
    """Writes a parameter tree to a new directory."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(directory).absolute(), params)


def load_params(directory: str | Path, shapes: Any, shardings: Any) -> Any:
    """Reads what `save_params` wrote.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` to expect. shardings: tree of shardings to place by.

    Raises:
      ValueError: the tree or its shapes are not those expected.
    """
    target = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(directory).absolute(), target)

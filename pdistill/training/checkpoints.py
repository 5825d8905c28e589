"""Training checkpoints, by Orbax."""

import errno
import re
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices

from pdistill.runtime.arrays import (
    CheckpointError,
    checksum,
    tree_handler,
    with_keys,
    without_keys,
    writing,
)
from pdistill.runtime.files import one_line
from pdistill.runtime.processes import in_all
from pdistill.runtime.temporary import replace
from pdistill.runtime.terminal import say
from pdistill.training.state import TrainState

FORMAT = 2  # of a checkpoint; 0.1.0 wrote none
MISSING = (errno.ENOENT, errno.ENOTDIR)  # errors that are of the files themselves


class Checkpointer:
    """Asynchronous checkpoints of one training run, newest `keep` kept. Use with `with`."""

    def __init__(self, directory: str | Path, keep: int = 2):
        path = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            path,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_handlers={"state": tree_handler(), "about": ocp.JsonCheckpointHandler()},
        )
        # Reads without waiting for the other processes, which may fail to read their parts.
        self._reader = ocp.CheckpointManager(path, options=_alone())

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._reader.close()
        with writing(self._manager.directory, quiet=kind is not None):
            self._manager.close()

    def save(self, step: int, state: TrainState, iterator_state: dict[str, int]) -> None:
        """Returns once the arrays are copied; writing goes on in the background.

        Raises:
          CheckpointError: this one, or the one before, could not be written. The ones before stay.
        """
        if step in self._manager.all_steps():
            return
        about = {"format": FORMAT, "iterator": iterator_state, "checksum": checksum(state)}
        state = without_keys(state)
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about))
        with writing(self._manager.directory):
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns once all that was saved is on disk; raises CheckpointError if it cannot be."""
        with writing(self._manager.directory):
            self._manager.wait_until_finished()

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, int]] | None:
        """The newest checkpoint that can be read, placed and sharded as `target`, or None.

        Newer ones that cannot are reported and put aside, as <step>.damaged.

        Args:
          target: arrays, which are freed first, so that the state is never in memory twice, or
            their shapes with shardings.

        Raises:
          CheckpointError: there are checkpoints, but none can be read, or the newest cannot be now,
            as for want of memory or of its disk, or they are of another version. They stay as they
            are.
        """
        shapes = jax.eval_shape(lambda tree: tree, target)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(target)), about=ocp.args.JsonRestore()
        )
        errors: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            self._check_format(step)
            if not errors:
                for leaf in jax.tree.leaves(target):
                    if isinstance(leaf, jax.Array):
                        leaf.delete()
            restored, error = self._read(step, items)
            if not in_all(error is None or _is_damage(error)):
                path = self._manager.directory / str(step)
                raise CheckpointError(
                    f"cannot read {path}, which need not be damaged: "
                    f"{one_line(error) if error else 'another process cannot'}. Once the cause is "
                    "gone the same command goes on; without that folder, from the save before"
                )
            if not in_all(error is None):
                errors[step] = error or ValueError("another process cannot read its part")
                continue
            if checksum(restored.state) != restored.about["checksum"]:
                errors[step] = ValueError("its arrays are not those that were saved")
                continue
            for damaged in errors:
                self._put_aside(damaged, used=step)
            return with_keys(restored.state, shapes), restored.about["iterator"]
        if errors:
            raise CheckpointError(
                f"no checkpoint in {self._manager.directory} can be read; move it away to train "
                f"this round from its start. The newest: {one_line(errors[max(errors)])}"
            )
        return None

    def _check_format(self, step: int) -> None:
        """Raises CheckpointError for a checkpoint of another version, if it can be read at all."""
        about, _ = self._read(step, ocp.args.Composite(about=ocp.args.JsonRestore()))
        if about is not None and about.about.get("format") != FORMAT:
            raise CheckpointError(
                f"the checkpoints in {self._manager.directory} are of another version of pdistill, "
                "whose training this one cannot go on with; finish the run with that version, or "
                "move them away to train this run from its start"
            )

    def _read(self, step: int, items: Any) -> tuple[Any, Exception | None]:
        found: Exception | None = None
        for _ in range(2):  # a disk in a network may fail once
            try:
                return self._reader.restore(step, args=items), None
            except Exception as error:  # whatever Orbax and its storage raise for damaged files
                found = error
        return None, found

    def _put_aside(self, step: int, used: int) -> None:
        path = Path(self._manager.directory) / str(step)
        say(f"warning: checkpoint {path} is damaged; the one of step {used} is used")
        if jax.process_index() == 0:
            replace(path, path.with_name(f"{step}.damaged"))  # it may be the second one
        sync_global_devices(f"moved {path}")
        self._manager.reload()


def _is_damage(error: BaseException | None) -> bool:
    """Whether an error of reading is the files' own, not one of memory or of their disk."""
    while error is not None:
        code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's errors have no errno
        number = int(code[1]) if code else getattr(error, "errno", None)
        of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if of_memory or number not in (None, *MISSING):
            return False
        error = error.__cause__ or error.__context__
    return True


def _alone() -> ocp.CheckpointManagerOptions:
    """For a manager of this process only."""
    index = jax.process_index()
    processes = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    return ocp.CheckpointManagerOptions(create=False, multiprocessing_options=processes)


def _abstract(tree: Any) -> Any:
    """Shapes of what is stored for a tree, with the tree's shardings."""
    stored = jax.eval_shape(without_keys, tree)
    return jax.tree.map(
        lambda a, like: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=like.sharding), stored, tree
    )

"""Networks, states and columns of earlier runs that a run begins with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pdistill import model as models
from pdistill.data.columns import Column, Rows
from pdistill.experiment.imported import Imported
from pdistill.experiment.plan import Planned
from pdistill.experiment.trace import shapes_in_training
from pdistill.methods.columns import check_rows
from pdistill.methods.multi_student import Joined
from pdistill.model.card import codec_identity
from pdistill.networks import Network
from pdistill.runtime.mesh import replicated, to_device
from pdistill.training import Checkpointer, CheckpointError


def given_to(
    planned: Planned,
    runs: Mapping[str, Planned],
    workdir: Path,
    mesh: Mesh,
    centres: Callable[[int], np.ndarray],
) -> dict[str, Any]:
    """The networks, and parts of its start's last state, that a run begins with.

    Args:
      runs: all of the experiment. centres: number of parts of the captions -> their centres.

    Raises:
      ModelError, CheckpointError: one is not there, or cannot be read.
    """
    given: dict[str, Any] = {}
    for role, name in planned.given.items():
        if role.startswith("start."):
            learner = getattr(last_state(runs[name], workdir, mesh), role.removeprefix("start."))
            given[role] = learner.network
        else:
            network = models.load(workdir / name / "model", mesh).network
            given[role] = _as_planned(network.replace(codec=None), runs[name])
    method = planned.run.method
    if parts := isinstance(method, Joined) and method.by_prompts:
        given["centres"] = to_device(centres(parts), replicated(mesh))
    if isinstance(method, Imported):
        given["loaded"] = method.load(mesh)
    return given


def _as_planned(network: Network, maker: Planned) -> Network:
    """A network with the `remat` that the config has now, which need not be its card's."""
    module = maker.network.module
    if not hasattr(module, "remat"):
        return network
    return network.replace(module=network.module.clone(remat=module.remat))


def rows_given(
    column: Column,
    path: Path,
    planned: Planned,
    runs: Mapping[str, Planned],
    workdir: Path,
    num_images: int,
    flip: bool,
) -> Rows:
    """Reads a column's file; ValueError for other rows than the run's plan has."""
    rows = column.read(path)
    if column.path and hasattr(column, "check_codec"):
        codec = planned.codec and planned.codec.directory(workdir)
        if not codec or codec.exists():  # a stage's is checked once it is there
            column.check_codec(path, codec and codec_identity(codec))
    teacher = runs[planned.given["teacher"]].network
    check_rows(column, rows, column.shapes(teacher, num_images, flip))
    return rows


def last_state(planned: Planned, workdir: Path, mesh: Mesh) -> Any:
    """A finished run's state after its last update, without its frozen fields."""
    shapes, _ = shapes_in_training(planned.state, mesh)
    with Checkpointer(workdir / planned.name / "checkpoints") as checkpointer:
        restored = checkpointer.restore(shapes)
    folder, last = workdir / planned.name, planned.run.loop.num_updates
    wanted = f"a later stage goes on with what {planned.name} has learnt"
    again = f"; remove that folder to train {planned.name} again"
    if restored is None:
        raise CheckpointError(f"{wanted}, whose checkpoints are not in {folder}{again}")
    state, _ = restored
    card = models.read_card(folder / "model", codec=planned.makes_codec)
    if int(state.step) != last and "diverged" not in card:
        raise CheckpointError(
            f"{wanted} in {last} updates, and the newest checkpoint in {folder} that can be read "
            f"is of {state.step}{again}"
        )
    return state.method

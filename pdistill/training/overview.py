"""The table of a run's parameters."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from flax import traverse_util

from pdistill.runtime.files import write_atomically
from pdistill.training.freezing import count, partition
from pdistill.training.learner import Learner
from pdistill.training.state import take_frozen


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """One line of the table."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    frozen: str


def describe_parameters(params: Any, fixed_paths: Collection[str] = ()) -> str:
    """Tabulates names, shapes and sizes of parameters, and which of them do not learn.

    Args:
      params: a tree of arrays or of their shapes; no value is fetched.
      fixed_paths: the paths of what is frozen, such as "block_0/qkv/kernel", or of a part of the
        tree that is frozen as a whole, such as "teacher".
    """
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    parts = tuple(f"{path}/" for path in fixed_paths)
    fixed = {name for name in flat if f"{name}/".startswith(parts)}
    rows = [
        ParameterRow(
            name=name,
            shape=tuple(flat[name].shape),
            dtype=str(flat[name].dtype),
            size=flat[name].size,
            frozen="frozen" if name in fixed else "",
        )
        for name in sorted(flat)
    ]
    columns = [field.name for field in dataclasses.fields(ParameterRow)]
    table = parameter_overview.make_table(rows, column_names=columns)
    held = count([flat[name] for name in fixed])
    return f"{table}\nTotal: {count(flat):,} parameters, of which {held:,} are frozen.\n"


def describe_state(state: Any) -> str:
    """Tabulates the parameters of a method's state: those of learners and of frozen fields."""
    params, fixed = {}, []
    learning, frozen = take_frozen(state)
    is_learner = lambda part: isinstance(part, Learner)  # noqa: E731
    for path, value in jax.tree_util.tree_leaves_with_path(learning, is_leaf=is_learner):
        if is_learner(value):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            params[name] = getattr(value.network, "params", value.network)
            if value.fixed:
                _, held = partition(params[name], value.fixed)
                paths = traverse_util.flatten_dict(held, sep="/")
                fixed += [f"{name}/{path}" for path in paths]
    for name, value in frozen.items():
        params[name] = getattr(value, "params", value)
        fixed.append(name)
    return describe_parameters(params, fixed)


def write_parameters(directory: Path, state: Any) -> None:
    """Writes the table of a method's state as parameters.txt, from the first process."""
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "parameters.txt", describe_state(state))

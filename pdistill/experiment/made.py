"""Checks of what a method is given and makes, as shapes, before anything compiles."""

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from pdistill.experiment.kinds import trains
from pdistill.methods import Method
from pdistill.methods.method import arguments, roles
from pdistill.model import check_kept
from pdistill.networks import Codec, Network
from pdistill.runtime.own_code import is_own, said


def check_arguments(method: Method, found: Collection[str]) -> None:
    """Raises ValueError unless a method's `init` is given all that it does not do without."""
    known = {name.removeprefix("start.") for name in found}
    for name, parameter in list(arguments(method).items())[1:]:  # behind its key
        wanted = parameter.default is parameter.empty and "VAR" not in parameter.kind.name
        if wanted and name not in known:
            if name in roles(method):
                raise ValueError(f"it needs {name!r}, the name of an earlier stage")
            raise ValueError(
                f"its init needs {name!r}, which nothing gives: a network of an earlier stage is "
                "annotated as Network or Network | None, and any other value is a field"
            )


def check_made(method: Method, state: Any, product: Any) -> None:
    """Raises ValueError for a state that no loop can train, or a product that no card can keep."""
    if trains(method) and not (dataclasses.is_dataclass(state) and hasattr(state, "replace")):
        raise ValueError(
            "init must return a flax.struct.PyTreeNode, whose fields are learners and networks; it "
            f"returns {type(state).__name__}"
        )
    if not isinstance(product, Network | Codec):
        raise ValueError(f"product must return a Network; it returns {type(product).__name__}")
    if isinstance(product, Network):
        check_kept(product)
    if is_own(method):
        try:
            hash(method)
        except TypeError as error:
            raise ValueError(f"its fields must be hashable, as tuples are: {error}") from error
        try:
            json.dumps(method.card(state))
        except Exception as error:
            raise ValueError(
                f"card must return plain values; the state has shapes there only: {said(error)}"
            ) from error

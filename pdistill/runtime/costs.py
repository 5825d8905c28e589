"""Costs of a compiled step, its arithmetic in the jaxpr and its communication in the HLO."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SHAPE = re.compile(r"(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")
_INSTRUCTION = re.compile(r" = (.*?) ([a-z-]+)\(")
_CALLED = re.compile(r"(?:body|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


def flops(jaxpr: Any) -> int:
    """Counts the floating-point operations of products and convolutions, two a multiplication.

    They are counted in the whole jaxpr, on all devices together. A loop counts as often as it runs
    (a `while` of unknown length once); of branches, the one that is known to be
    taken counts, or else the dearest. Operations between the products are left out.
    """
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: Any) -> int:
    """Counts the operations of one equation, those of the jaxprs in it included."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // features
    inner = [flops(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        taken = getattr(equation.invars[0], "val", None)  # a literal has it
        return max(inner) if taken is None else inner[int(taken)]
    return sum(inner) * params.get("length", 1)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def collective_bytes(hlo: str) -> int:
    """Counts the bytes that all collectives of a compiled module's text result in, on one device.

    A loop counts as often as it runs; of branches, the dearest counts. A ring moves up to twice as
    many bytes for an all-reduce.
    """
    bodies, entry, lines = {}, "", []
    for line in hlo.splitlines():
        if line.endswith("{") and "->" in line:  # a computation begins
            entered, name = re.match(r"(ENTRY )?%?([\w.-]+)", line).groups()
            lines = bodies[name] = []
            entry = name if entered else entry
        else:
            lines.append(line)
    counted: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in counted:
            counted[name] = sum(_collective_bytes_of(line, count) for line in bodies[name])
        return counted[name]

    return count(entry)


def _collective_bytes_of(line: str, count: Any) -> int:
    """Counts the bytes of one instruction; `count` gives those of a computation by its name."""
    found = _INSTRUCTION.search(line)
    if not found:
        return 0
    shapes, operation = found.groups()
    if operation.removesuffix("-start") in COLLECTIVES:
        return sum(_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(shapes))
    if operation not in ("while", "call", "conditional"):
        return 0
    called = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        called += [name.strip(" %") for name in branches.split(",")]
    trips = _TRIPS.search(line)
    return max(map(count, called)) * (int(trips[1]) if trips else 1)


def _bytes(dtype: str, dims: str) -> int:
    """Bytes of an array by its type and dimensions in HLO, such as "bf16" and "4,8"."""
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return int(np.prod([int(d) for d in dims.split(",") if d])) * bits // 8

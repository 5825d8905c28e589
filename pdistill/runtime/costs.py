"""What a compiled step costs: arithmetic, counted in its jaxpr; communication, in its HLO."""

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
    """Floating-point operations of all matrix products and convolutions: two a multiplication.

    Of the whole jaxpr, on all devices together: loops count as often as they run (a `while` whose
    length is unknown once), of branches the one that is known to be taken, or the dearest. What is
    between the products is left out.
    """
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: Any) -> int:
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
        taken = getattr(equation.invars[0], "val", None)  # of a literal
        return max(inner) if taken is None else inner[int(taken)]
    return sum(inner) * params.get("length", 1)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def collective_bytes(hlo: str) -> int:
    """Bytes of the results of all collectives, on one device, in the text of a compiled module.

    Loops count as often as they run, of branches the dearest. A ring moves up to twice as many
    bytes for an all-reduce.
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
    found = _INSTRUCTION.search(line)
    if not found:
        return 0
    shapes, operation = found.groups()
    if operation.removesuffix("-start") in COLLECTIVES:
        return sum(_bytes(kind, dims) for kind, dims in _SHAPE.findall(shapes))
    if operation not in ("while", "call", "conditional"):
        return 0
    called = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        called += [name.strip(" %") for name in branches.split(",")]
    trips = _TRIPS.search(line)
    return max(map(count, called)) * (int(trips[1]) if trips else 1)


def _bytes(kind: str, dims: str) -> int:
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
    return int(np.prod([int(d) for d in dims.split(",") if d])) * bits // 8

"""Pickles that are looked at before they are loaded."""

import pickle
import pickletools
from typing import IO, Any

LARGEST = 10**6  # values in a tuple, written out
DEEPEST = 200  # tuples in tuples, as in networks in networks
# Opcodes that put values into what is on the stack already.
FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


def check_pickle(stream: IO[bytes]) -> None:
    """Reads a pickle from `stream` and raises ValueError for values that nest without bounds.

    A pickle can name a value again without writing it again: 64 tuples, each of the one before
    twice, are a few hundred bytes, and a value of 2^64 parts for whoever hashes or prints it.
    Nothing is built here: the pickle's stack holds each value's size and depth only.

    Raises:
      Exception: any error, if the pickle is damaged.
    """
    stack: list[tuple[int, int] | None] = []  # None is a mark
    memo: dict[int, tuple[int, int]] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if stack[-1] is None:
                raise ValueError("it takes a mark for a value")
            memo[len(memo) if argument is None else argument] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        taken, before = [], opcode.stack_before
        if pickletools.markobject in before:
            while (value := stack.pop()) is not None:
                taken.append(value)
            before = before[: before.index(pickletools.markobject)]
        taken += [stack.pop() for _ in before]
        if None in taken and name != "POP":
            raise ValueError("it takes a mark for a value")
        taken = [value for value in taken if value is not None]
        whole = (
            1 + sum(size for size, _ in taken),
            1 + max((deep for _, deep in taken), default=0),
        )
        if name in FILLING:
            whole = taken[-1]
        elif whole[0] > LARGEST or whole[1] > DEEPEST:
            raise ValueError("values are nested in it without bounds")
        stack += [None if kind is pickletools.markobject else whole for kind in opcode.stack_after]


class CheckedUnpickler(pickle.Unpickler):
    """An unpickler that looks at each pickle before it loads it, see `check_pickle`."""

    def __init__(self, stream: IO[bytes]):
        super().__init__(stream)
        self._stream = stream

    def load(self) -> Any:
        start = self._stream.tell()
        check_pickle(self._stream)
        self._stream.seek(start)
        return super().load()

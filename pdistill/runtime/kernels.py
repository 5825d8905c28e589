"""Whether programs may have kernels of one platform, which forward mode cannot differentiate."""

import contextlib
import contextvars
from collections.abc import Iterator

_allowed = contextvars.ContextVar("allowed", default=True)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """A context for what `jax.jvp` traces, or is exported for other platforms."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def kernels_allowed() -> bool:
    return _allowed.get()

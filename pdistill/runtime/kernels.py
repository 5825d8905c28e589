"""Whether programs may have kernels of one platform, which can be differentiated once, backward."""

import contextlib

import jax

_allowed = jax.make_user_context(True)  # part of what jit keeps its programs by


def without_kernels() -> contextlib.AbstractContextManager:
    """Makes a context in which networks have no kernels of cuDNN or Pallas.

    For `jax.jvp`, `jax.linearize` and a gradient's gradient of what a network computes, and for
    programs that are exported for other platforms.
    """
    return _allowed(False)


def kernels_allowed() -> bool:
    return _allowed.value

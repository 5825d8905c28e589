"""The kind of device that JAX takes, for what is decided before JAX may be asked."""

import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys


def has_plugin() -> bool:
    """Tells whether JAX has been given an accelerator's plugin; none may be there."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


@functools.cache
def platform() -> str:
    """Returns "cpu", "gpu", "tpu" or whatever JAX calls the devices that it takes here.

    If it could be other than "cpu", a program of its own asks JAX: asking starts the devices,
    after which no XLA flag is read any more and no other process can be joined.
    """
    if not has_plugin() or os.environ.get("JAX_PLATFORMS") == "cpu":
        return "cpu"
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "cpu"  # what is wrong JAX will tell in this process

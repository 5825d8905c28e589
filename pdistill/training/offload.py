"""Frozen networks in the host's memory, on a device only while an update uses them."""

from typing import Any

import jax


def into_host_memory(tree: Any) -> Any:
    """Arrays moved to host memory that the device reads from; what the device had is freed."""
    return jax.device_put(tree, jax.memory.Space.Host, donate=True)


def into_device_memory(tree: Any) -> Any:
    """The same arrays in the device's memory, sharded as they are; in a jitted function too."""
    return jax.device_put(tree, jax.memory.Space.Device)

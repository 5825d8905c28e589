"""Several processes of one run: how they find each other, and how they agree to stop."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from pdistill.runtime.mesh import batch_sharding, to_device

# Seconds without a sign of life after which a process counts as lost, and that one which ends
# waits for the others: together less than a minute.
LOST_AFTER = 25
# Seconds that a process waits for those that have not joined; with the imports, under a minute too.
JOIN_TIMEOUT = 45
# Dispatches after which all processes have read what one of them has said. It is more than one so
# that the device has work while the host reads.
LAG = 2


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = JOIN_TIMEOUT,
) -> None:
    """Makes this process one of several; what is None is what SLURM, GKE or a Cloud TPU says.

    Args:
      coordinator: host:port of process 0, which listens there.
      timeout: seconds to wait for the others; JAX then aborts this process, which raises nothing.

    Raises:
      ValueError: nothing says it, or not all of it.
    """
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=LOST_AFTER,
        shutdown_timeout_seconds=LOST_AFTER,
    )


def in_all(here: bool) -> bool:
    """Whether something holds in every process; all must ask."""
    return bool(process_allgather(np.array(here)).all())


@jax.jit
def _any(flags: Array) -> Array:
    return jnp.max(flags)


class Agreement:
    """Whether any process wants to stop, known to all of them at the same dispatch.

    Each signal reaches each process at another moment. All ask once a dispatch; the answer is that
    of `LAG` dispatches before, so that nobody waits for the device to be idle. One process knows at
    once.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._asked: collections.deque[Array] = collections.deque()

    def __call__(self, wanted: bool, *, wait: bool) -> bool:
        """Whether to stop now, in all processes.

        Args:
          wanted: what this process says. wait: for what the others say now.
        """
        if jax.process_count() == 1:
            return wanted
        local = np.full(jax.local_device_count(), wanted, np.int32)
        self._asked.append(_any(to_device(local, batch_sharding(self._mesh))))
        found = False
        while len(self._asked) > (0 if wait else LAG):
            found |= bool(self._asked.popleft())
        return found

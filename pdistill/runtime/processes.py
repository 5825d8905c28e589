"""Several processes of one run, which find each other and agree to stop."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from pdistill.runtime.mesh import batch_sharding, to_device

# Seconds without a sign of life after which a process counts as lost, and seconds that a process
# which ends waits for the others: together less than a minute.
LOST_AFTER = 25
# Seconds that a process waits for those that have not joined; with the imports, under a minute too.
JOIN_TIMEOUT = 45
# Dispatches after which all processes have read one process's word. With more than one, the device
# has work while the host reads.
LAG = 2


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = JOIN_TIMEOUT,
) -> None:
    """Makes this process one of several; SLURM, GKE or a Cloud TPU tell whatever is None.

    Args:
      coordinator: host:port of process 0, which listens there.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      timeout: seconds to wait for the others; JAX then aborts this process, which raises nothing.

    Raises:
      ValueError: a value is None that nothing else tells.
    """
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=LOST_AFTER,
        shutdown_timeout_seconds=LOST_AFTER,
    )


def leave() -> None:
    """Ends the connection of processes that all end now; each waits for the others."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def in_all(here: bool) -> bool:
    """Tells whether something holds in every process; all must ask."""
    return bool(process_allgather(np.array(here)).all())


@jax.jit
def _any(flags: Array) -> Array:
    return jnp.max(flags)


class Agreement:
    """An agreement to stop if any process wants to, reached by all at the same dispatch.

    A signal reaches each process at another moment. All ask once a dispatch; the answer is the one
    of `LAG` dispatches before, so that nobody waits for the device to be idle. A single process
    knows at once.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._asked: collections.deque[Array] = collections.deque()

    def __call__(self, wanted: bool, *, wait: bool) -> bool:
        """Tells whether to stop now, in all processes.

        Args:
          wanted: this process wants to stop.
          wait: wait until it is known whether the others want to stop now.
        """
        if jax.process_count() == 1:
            return wanted
        local = np.full(jax.local_device_count(), wanted, np.int32)
        self._asked.append(_any(to_device(local, batch_sharding(self._mesh))))
        found = False
        while len(self._asked) > (0 if wait else LAG):
            found |= bool(self._asked.popleft())
        return found

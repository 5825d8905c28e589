"""A trace of a few updates, which TensorBoard's profile page or Perfetto shows."""

from pathlib import Path
from typing import Any, Self

import jax

PROFILED = 5  # updates, rounded up to whole dispatches


class Profiler:
    """A profile of a few updates, from the first process; leaving the context ends it.

    `clu.periodic_actions.Profile` would do this, but cannot be imported without TensorFlow.

    Args:
      directory: place of the profile. start_at: updates done when it begins, 0 for never; a run
        that resumes behind it makes none. num_updates: at least as many are traced.
    """

    def __init__(self, directory: Path, start_at: int, num_updates: int = PROFILED):
        self._directory = directory
        self._start_at = start_at if jax.process_index() == 0 else 0
        self._num_updates = num_updates
        self._before: int | None = None
        self._stop_at: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if self._stop_at is not None:
            self._stop()

    def __call__(self, step: int, pending: Any) -> None:
        """Begins or ends the trace where it is due; to be called before every dispatch.

        Args:
          step: updates dispatched so far. pending: arrays of the last one, which is waited for
            where the trace begins and ends, so that it has whole updates.
        """
        before = step - 1 if self._before is None else self._before
        self._before = step
        if self._stop_at is not None:
            if step >= self._stop_at:
                jax.block_until_ready(pending)
                self._stop()
        elif self._start_at and before < self._start_at <= step:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(str(self._directory))
            self._stop_at = step + self._num_updates

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._stop_at = None

"""tests/tiny_experiment.py with a longer teacher, which takes its time in a job's first start.

PACE is the seconds that a dispatch waits: there is a run in training to be disturbed, for as long
on any machine. Nothing that it computes changes.
"""

import os
import time

from ml_collections import ConfigDict
from tiny_experiment import tiny

from pdistill.runtime.processes import Agreement

UPDATES = 200  # two in a dispatch


def get_config() -> ConfigDict:
    """The experiment; --config reads it in every process."""
    if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        _slow_down(float(os.environ.get("PACE", "0")))
    config = tiny()
    config.stages[0]["loop"] |= {"num_updates": UPDATES, "log_every": 20, "save_every": 100}
    return config


def _slow_down(seconds: float) -> None:
    agreed = Agreement.__call__

    def slow(*arguments, **options) -> bool:
        time.sleep(seconds)
        return agreed(*arguments, **options)

    Agreement.__call__ = slow

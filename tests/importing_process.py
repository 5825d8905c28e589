"""One of several processes that import models together, without measuring them.

python tests/importing_process.py WORKDIR COORDINATOR NUM_PROCESSES PROCESS_ID

WORKDIR has a model in each folder of `MODELS`; WORKDIR/run is the run directory. At the end every
process loads them for itself.
"""

import dataclasses
import sys
from pathlib import Path

from jax.experimental.multihost_utils import sync_global_devices
from ml_collections import ConfigDict
from tiny_experiment import leaves, tiny

from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.directory import taken
from pdistill.experiment.run import Experiment
from pdistill.runtime import processes
from pdistill.training import StopSignals
from pdistill.training.logging import MetricWriter

MODELS = ("directory", "hub")


def importing(workdir):
    """A config of one stage for each model, whose parameters are cut over two devices."""
    config = tiny()
    config.mesh = ConfigDict({"fsdp": 2})
    config.stages = tuple(
        ConfigDict({"name": name, "method": "imported", "path": str(workdir / name)})
        for name in MODELS
    )
    return as_plain(config)


def run(workdir):
    """Performs the stages, up to their models."""
    config = importing(workdir)
    experiment = Experiment(parse(config), workdir / "run", StopSignals())
    with taken(experiment.workdir, new=False), MetricWriter(experiment.workdir) as writer:
        experiment.claim(config)
        for planned in experiment.runs.values():
            unmeasured = dataclasses.replace(planned.run, measured=False)
            experiment.perform(dataclasses.replace(planned, run=unmeasured), writer)


if __name__ == "__main__":
    workdir, (coordinator, num, index) = Path(sys.argv[1]), sys.argv[2:]
    processes.join(coordinator, int(num), int(index))
    run(workdir)
    for name in MODELS:
        print("sum", sum(float(abs(a).sum()) for a in leaves(workdir / name)))
    sync_global_devices("loaded")  # a process that ends waits for the others only briefly

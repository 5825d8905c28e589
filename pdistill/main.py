"""Runs an experiment: python -m pdistill.main --config=configs/digits_pd.py --workdir=runs/digits

The same command again goes on where it stopped, whether it ended by itself, by SIGTERM or Ctrl-C
(it saves first and exits with 75), or by a crash. --config.seed=1 and the like change the config.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from pdistill import experiment, processes
from pdistill.config import ConfigError
from pdistill.evaluation import EvaluationError
from pdistill.model import ModelError
from pdistill.terminal import plain_errors, say
from pdistill.training import EXIT_CODE, CheckpointError, Diverged, Interrupted, StopSignals

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, as in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; made if it is not there.")
_NEW = flags.DEFINE_bool("new", False, "Start again; what the run directory holds is moved aside.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, which SLURM, GKE or a Cloud TPU tells about."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One of several processes: host:port of the first, which listens there."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is, with --coordinator, from 0.")


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every save
    if _DISTRIBUTED.value or _COORDINATOR.value:
        try:
            processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        except ValueError as error:
            sys.exit(f"error: {error}")
    errors = ConfigError, CheckpointError, Diverged, EvaluationError, ModelError
    try:
        with plain_errors(*errors), StopSignals() as stop:
            experiment.run(_CONFIG.value, _WORKDIR.value, new=_NEW.value, stop=stop)
    except Interrupted as interruption:
        say(f"{interruption}; the same command goes on")
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)

"""Runs an experiment: python -m pdistill.main --config=configs/digits_pd.py --workdir=runs/digits

The same command again goes on where it stopped, whether it ended by itself, by SIGTERM or Ctrl-C
(it saves first, if it has begun, and exits with 75), or by a crash. --config.seed=1 and the like
change the config.
"""

import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):  # until a run takes over; imports take seconds
        signal.signal(number, lambda *_: sys.exit(os.EX_TEMPFAIL))

from pdistill.cpu import set_xla_flags, use_huge_pages

if __name__ == "__main__":
    use_huge_pages()  # a new start, so before the other imports

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pdistill import experiment, processes
from pdistill.config import ConfigError
from pdistill.dry_run import dry_run
from pdistill.evaluation import EvaluationError
from pdistill.model import ModelError
from pdistill.terminal import plain_errors, say
from pdistill.training import EXIT_CODE, CheckpointError, Diverged, Interrupted, StopSignals

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, as in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; made if it is not there.")
_NEW = flags.DEFINE_bool("new", False, "Start again; what the run directory holds is moved aside.")
_DRY_RUN = flags.DEFINE_list(
    "dry_run",
    None,
    "Only plan the run's memory, for these numbers of devices, such as 8,64,256.",
)
_DATA_SHAPE = flags.DEFINE_list(
    "data_shape", None, "N,H,W,C of the data set, for a dry run where it is not."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, which SLURM, GKE or a Cloud TPU tells about."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One of several processes: host:port of the first, which listens there."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is, with --coordinator, from 0.")
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", processes.JOIN_TIMEOUT, "Seconds to wait for processes that start later.", 1
)


def main(_) -> None:
    set_xla_flags()
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every save
    if _DRY_RUN.value:
        with plain_errors(ConfigError):
            devices = _counts("dry_run", _DRY_RUN.value)
            shape = _DATA_SHAPE.value and _counts("data_shape", _DATA_SHAPE.value, 4)
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", max(devices))
            dry_run(_CONFIG.value, devices, shape)
        return
    if _DISTRIBUTED.value or _COORDINATOR.value:
        try:
            place = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
            processes.join(*place, _JOIN_TIMEOUT.value)
        except ValueError as error:
            sys.exit(f"error: {error}")
    errors = ConfigError, CheckpointError, Diverged, EvaluationError, ModelError, OSError
    try:
        with plain_errors(*errors), StopSignals() as stop:
            experiment.run(_CONFIG.value, _WORKDIR.value, new=_NEW.value, stop=stop)
    except Interrupted as interruption:
        say(f"{interruption}; the same command goes on")
        sys.exit(EXIT_CODE)


def _counts(flag: str, texts: list[str], num: int | None = None) -> tuple[int, ...]:
    """The numbers of a flag, `num` of them."""
    if not all(text.isdigit() and int(text) for text in texts) or (num and len(texts) != num):
        raise ConfigError(f"--{flag} takes {num or 'some'} counts; got {','.join(texts)}")
    return tuple(map(int, texts))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "dry_run"],
        lambda values: bool(values["workdir"] or values["dry_run"]),
        "--workdir says where the run goes",
    )
    app.run(main)

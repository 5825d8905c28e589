"""Runs an experiment: python -m pdistill.main --config=configs/digits_pd.py --workdir=runs/digits

The same command again goes on where it stopped, whether it ended by itself, by SIGTERM or Ctrl-C
(it saves first, if it has begun, and exits with 75), or by a crash. --config.seed=1 and the like
change the config.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Sequence

import jax
from absl import app, flags
from ml_collections import config_flags

from pdistill import experiment
from pdistill.cli import config_file
from pdistill.data.records import DataError
from pdistill.evaluation import EvaluationError
from pdistill.experiment.config import ConfigError
from pdistill.experiment.dry_run import dry_run
from pdistill.model import ModelError, SamplingError
from pdistill.runtime import background, processes
from pdistill.runtime.compilations import tell_compilations
from pdistill.runtime.cpu import set_xla_flags
from pdistill.runtime.files import in_home, one_line
from pdistill.runtime.interruption import Interrupted, ProgramSignals
from pdistill.runtime.own_code import consent
from pdistill.runtime.programs import keep_programs
from pdistill.runtime.terminal import plain_errors, plain_messages, write
from pdistill.training import CheckpointError, Diverged

PLANNED = "8"  # devices, unless `plan` is told
PLANS = ("config", "devices", "data_shape", "own_code")  # flags of `plan`
PLAN = """Plans an experiment: pdistill plan --config=imagenet64_pd --devices=8,64

Each stage's parameters, memory, arithmetic and communication, by numbers of devices; nothing is
trained, and the devices need not be there. --config.seed=1 and the like change the config.
"""

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, as in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; made if it is not there.")
_NEW = flags.DEFINE_bool("new", False, "Start again; what the run directory holds is moved aside.")
_DRY_RUN = flags.DEFINE_list(
    "dry_run",
    None,
    "Only plan the run's memory, for these numbers of devices, such as 8,64,256.",
)
flags.DEFINE_alias("devices", "dry_run")
flags.FLAGS["devices"].help = f"Numbers of devices, such as 8,64; {PLANNED} by default."
_DATA_SHAPE = flags.DEFINE_list(
    "data_shape", None, "N,H,W,C of the data set, for a dry run where it is not."
)
_OWN_CODE = flags.DEFINE_bool(
    "own_code", False, "Run code that the cards of a teacher or a codec name, which you trust."
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


def main(_, stop: ProgramSignals) -> None:
    set_xla_flags()
    if not (_DISTRIBUTED.value or _COORDINATOR.value):  # whose processes must compile alike
        keep_programs()
    tell_compilations()
    if _DRY_RUN.value:
        with plain_errors(ConfigError), _consent():
            devices = _counts("devices", _DRY_RUN.value)
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
        stop.install()  # JAX has set a handler of SIGTERM
    errors = ConfigError, CheckpointError, DataError, Diverged, EvaluationError, ModelError
    try:
        with plain_errors(*errors, SamplingError, OSError), _consent():
            experiment.run(_CONFIG.value, in_home(_WORKDIR.value), new=_NEW.value, stop=stop)
    except Interrupted as interruption:
        message = "" if jax.process_index() else str(interruption)
        sys.stdout.flush()
        processes.leave()
        stop.end(message)


def _consent() -> contextlib.AbstractContextManager:
    """Consent to code that cards name, if the user gives it; a config's own words need none."""
    return consent() if _OWN_CODE.value else contextlib.nullcontext()


def _counts(flag: str, texts: list[str], num: int | None = None) -> tuple[int, ...]:
    """The numbers of a flag, `num` of them."""
    if not all(text.isdigit() and int(text) for text in texts) or (num and len(texts) != num):
        raise ConfigError(f"--{flag} takes {num or 'some'} counts; got {','.join(texts)}")
    return tuple(map(int, texts))


def start(arguments: Sequence[str], stop: ProgramSignals, plan: bool = False) -> None:
    """The program, for arguments as on its command line.

    Args:
      stop: its signals.
      plan: only plan, for the devices that --devices says.
    """
    # By no `say`, which asks JAX for the process, before it is told how many there are.
    plain_messages(write)
    arguments = _named_config(list(arguments))
    if plan and not any(re.match("--?(devices|dry_run)(=|$)", a) for a in arguments):
        arguments.append(f"--devices={PLANNED}")
    for flag in flags.FLAGS.get_flags_for_module(__name__):  # which --help shows
        if flag.name in PLANS if plan else flag.name != "devices":
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    sys.modules["__main__"].__doc__ = PLAN if plan else __doc__
    sys.argv[1:] = arguments  # where config_flags looks too
    with background.left_at_end():
        app.run(functools.partial(main, stop=stop), flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    """Reads the flags; ends the program, with a line that says why, unless all is understood."""
    try:
        program, *unknown = flags.FLAGS(arguments)
    except flags.Error as error:
        sys.exit(f"error: {one_line(error)}; --help lists the flags")
    if _CONFIG.value is None:
        sys.exit("error: give the config first, such as digits_pd; --help lists the flags")
    if unknown:
        hint = "a change is --config.KEY=VALUE; --help lists the flags"
        sys.exit(f"error: what is {unknown[0]!r}? {hint}")
    if not (_WORKDIR.value or _DRY_RUN.value):
        sys.exit("error: --workdir=DIR must say where the run goes")
    return [program]


def _named_config(arguments: list[str]) -> list[str]:
    """With `config_file` for the config that --config, or the first argument, names."""
    if arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--config={arguments[0]}"
    for i, argument in enumerate(arguments):
        if argument in ("-config", "--config"):
            argument = "=".join(arguments[i : i + 2])
            arguments[i : i + 2] = [argument]
        if match := re.fullmatch("(--?config=)(.*)", argument, re.DOTALL):
            name = config_file.for_data(config_file.find_config(match[2]), arguments)
            arguments[i] = f"{match[1]}{config_file.__file__}:{name}"  # for its defaults
            config_file.check_overrides(config_file.get_config(name), arguments)
    return arguments

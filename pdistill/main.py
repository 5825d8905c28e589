"""Runs an experiment: python -m pdistill.main --config=configs/digits_pd.py --workdir=runs/digits

The same command again goes on where it stopped. --config.seed=1 and the like change the config.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pdistill import experiment
from pdistill.config import ConfigError
from pdistill.training import Diverged

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, as in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; made if it is not there.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, as on a TPU pod; JAX finds the others."
)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every save
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    try:
        experiment.run(_CONFIG.value, _WORKDIR.value)
    except (ConfigError, Diverged) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)

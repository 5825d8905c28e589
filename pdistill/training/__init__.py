"""State, loop, checkpoints, sharding, optimizers: the machinery, which knows no method."""

from pdistill.runtime.arrays import (
    CheckpointError,
    checksum,
    load_params,
    params_shapes,
    save_params,
)
from pdistill.training.checkpoints import Checkpointer
from pdistill.training.freezing import PRESETS, count, merge, partition
from pdistill.training.gradients import value_and_grad
from pdistill.training.interruption import EXIT_CODE, Interrupted, StopSignals
from pdistill.training.loop import (
    Diverged,
    LoopConfig,
    Steppable,
    compile_update,
    init_state,
    train,
)
from pdistill.training.optimizers import Optimizer
from pdistill.training.state import Learner, TrainState
from pdistill.training.transfer import Transfer, transfer

__all__ = [
    "EXIT_CODE",
    "PRESETS",
    "CheckpointError",
    "Checkpointer",
    "Diverged",
    "Interrupted",
    "Learner",
    "LoopConfig",
    "Optimizer",
    "Steppable",
    "StopSignals",
    "TrainState",
    "Transfer",
    "checksum",
    "compile_update",
    "count",
    "init_state",
    "load_params",
    "merge",
    "params_shapes",
    "partition",
    "save_params",
    "train",
    "transfer",
    "value_and_grad",
]

"""Learners, the loop, checkpoints, optimizers: the machinery, which knows no method."""

from pdistill.runtime.arrays import CheckpointError
from pdistill.runtime.interruption import EXIT_CODE, Interrupted, StopSignals
from pdistill.training.checkpoints import Checkpointer
from pdistill.training.freezing import PRESETS, count, merge, partition, preset
from pdistill.training.gradients import value_and_grad, vjp
from pdistill.training.learner import Learner, Metrics
from pdistill.training.loop import Diverged, LoopConfig, train
from pdistill.training.optimizers import Optimizer
from pdistill.training.state import TrainState, frozen, take_frozen
from pdistill.training.update import compile_update, init_state, kinds_of, start_of

__all__ = [
    "EXIT_CODE",
    "PRESETS",
    "CheckpointError",
    "Checkpointer",
    "Diverged",
    "Interrupted",
    "Learner",
    "LoopConfig",
    "Metrics",
    "Optimizer",
    "StopSignals",
    "TrainState",
    "compile_update",
    "count",
    "frozen",
    "init_state",
    "kinds_of",
    "merge",
    "partition",
    "preset",
    "start_of",
    "take_frozen",
    "train",
    "value_and_grad",
    "vjp",
]

"""One of several processes that train a small network together, in float32 and in float64.

python tests/one_process.py WORKDIR FSDP UPDATES SIGNALLED [COORDINATOR NUM_PROCESSES PROCESS_ID]

Process number SIGNALLED sends itself SIGTERM at its first save; -1 for none.
"""

import functools
import math
import os
import signal
import sys
from pathlib import Path

import jax
from flax import linen as nn
from tiny_training import Double, in_double, noise_dataset

from pdistill.data import Pipeline
from pdistill.diffusion import CosineSchedule
from pdistill.methods import Teacher
from pdistill.networks import NOTHING, Network
from pdistill.runtime import processes
from pdistill.runtime.files import read_jsonl
from pdistill.runtime.mesh import make_mesh
from pdistill.training import (
    EXIT_CODE,
    Interrupted,
    LoopConfig,
    Optimizer,
    StopSignals,
    init_state,
    train,
)
from pdistill.training.logging import MetricWriter

SHAPE = (8, 8, 1)
DATA = noise_dataset(64, SHAPE)
DTYPES = ("float32", "float64")


class TwoLayers(nn.Module):
    """Two layers: what several processes make of it does not depend on more, and it compiles
    quickly. Its first layer is large enough to be cut over the fsdp axis."""

    dtype: str

    @nn.compact
    def __call__(self, z, logsnr, told=NOTHING, *, train=False):
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        h = dense(128)(z.reshape(len(z), -1)) + dense(128)(logsnr[:, None] / 10)
        return dense(math.prod(SHAPE))(nn.tanh(h)).reshape(z.shape)


def run(directory, num_updates, fsdp, dtype, *, stop=None, on_save=lambda step, state: None):
    """Trains, or goes on, in `directory` / `dtype`; returns the losses of all updates."""
    double = dtype == "float64"
    jax.config.update("jax_enable_x64", double)
    jax.config.update("jax_disable_most_optimizations", not double)
    method = (Double if double else Teacher)(
        optimizer=Optimizer(1e-3, warmup=2, ema_decay=0.9, clip_norm=0.0)
    )
    model = Network(None, module=TwoLayers(dtype), head="v", schedule=CosineSchedule(), shape=SHAPE)

    def init(key):
        state = method.init(key, model=model)
        return in_double(state) if double else state

    mesh = make_mesh(-1, fsdp)
    pipeline = Pipeline(DATA, 16, seed=0, resident=double)  # each way of reading
    config = LoopConfig(num_updates, 16, substeps=1, log_every=1, save_every=10)
    with jax.numpy_dtype_promotion("standard"), MetricWriter(directory) as writer:
        train(
            method, init_state(init, mesh, jax.random.key(0)), pipeline, config, jax.random.key(1),
            name=dtype, directory=Path(directory) / dtype, writer=writer, mesh=mesh, stop=stop,
            on_save=on_save,
        )  # fmt: skip
    return [row["loss"] for row in read_jsonl(Path(directory) / dtype / "log.jsonl")]


if __name__ == "__main__":
    workdir, fsdp, num_updates, signalled, *place = sys.argv[1:]
    how = {}
    if place:
        processes.join(place[0], int(place[1]), int(place[2]))
        if signalled == place[2]:
            how = {"on_save": lambda step, state: os.kill(os.getpid(), signal.SIGTERM)}
    try:
        with StopSignals() as stop:
            for dtype in DTYPES:
                run(workdir, int(num_updates), int(fsdp), dtype, stop=stop, **how)
    except Interrupted as interruption:
        print(interruption)
        sys.exit(EXIT_CODE)

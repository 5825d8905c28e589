"""A whole experiment in seconds, also as a program that kills itself where it is told to.

    python tests/tiny_experiment.py WORKDIR [MODULE ATTRIBUTE COUNT before|after]

With the last four, it sends itself SIGKILL before or after the COUNT-th call of a function.
"""

import functools
import importlib
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import pdistill
from pdistill.configs import (
    digits_ctm,
    digits_dmd,
    digits_gan,
    digits_guided,
    digits_msd,
    digits_pagoda,
    digits_pd,
    fashion_lowdiff,
)

LOOP = {"num_updates": 8, "batch_size": 16, "substeps": 2, "log_every": 4, "save_every": 4}


def shrink(config: ConfigDict, **loop: int) -> ConfigDict:
    """A very small network, a few updates of every stage, and few samples."""
    small = {
        "dit": {"features": 16, "depth": 1, "heads": 2},
        "unet": {"channels": 8, "embedding_channels": 16},
    }
    config.model.network.arguments.update(small[config.model.network.name])
    for stage in config.stages:
        if "loop" in stage:
            stage["loop"] = LOOP | loop
            stage["optimizer"]["warmup"] = 2
    config.evaluation = ConfigDict(
        {"num_samples": 64, "metrics": ("fd_pixels",), "references": ("train",)}
    )
    return config


def tiny() -> ConfigDict:
    """digits_pd, 4 -> 1 steps."""
    config = shrink(digits_pd.get_config())
    teacher, progressive = config.stages
    teacher["measured_at"] = (4, 1)
    progressive.update(start_steps=4, long_rounds=0)
    config.evaluation = ConfigDict({"num_samples": 64, "batch_size": 48})
    return config


get_config = tiny  # for --config=tests/tiny_experiment.py


def tiny_guided() -> ConfigDict:
    """digits_guided, 4 -> 2 steps, measured at two weights."""
    config = shrink(digits_guided.get_config())
    teacher, guided, progressive = config.stages
    teacher["measured_at"] = guided["measured_at"] = (4,)
    progressive.update(start_steps=4, end_steps=2, long_rounds=0)
    config.evaluation.update(metrics=("fd_pixels", "label_accuracy"))
    config.evaluation.guidance = (0.0, 2.0)
    return config


def tiny_gan() -> ConfigDict:
    """digits_gan: teacher, and a generator of which the best is kept, of any number of updates."""
    config = digits_gan.get_config()
    config.stages = config.stages[:2]
    shrink(config, num_updates=12)
    teacher, gan = config.stages
    teacher["measured_at"] = (2, 1)
    gan.update(fixed="dit", select="fd_pixels")
    gan["optimizer"]["anneal"] = gan["adversary"]["optimizer"]["anneal"] = "constant"
    gan["adversary"]["r1_interval"] = 4
    config.evaluation.metrics += ("class_shares",)
    return config


def tiny_dmd() -> ConfigDict:
    """digits_dmd: teacher, a generator of one step and, after that, one of four."""
    config = digits_dmd.get_config()
    stages = {stage["name"]: stage for stage in config.stages}
    config.stages = tuple(stages[name] for name in ("teacher", "dm", "dm_gan_multistep"))
    shrink(config)
    teacher, dm, multistep = config.stages
    teacher["measured_at"] = (2,)
    dm["bottleneck"] = multistep["bottleneck"] = 0
    dm["adversarial"] = 1e-2
    multistep["start"] = "dm"
    return config


def tiny_msd() -> ConfigDict:
    """digits_msd: two students with score matching, and with pairs."""
    config = digits_msd.get_config()
    teacher, msd, *_ = config.stages
    config.stages = (teacher,)
    shrink(config)
    teacher["measured_at"] = (2,)
    msd["score_matching"]["loop"] = msd["student"]["loop"] = LOOP
    msd["score_matching"]["optimizer"]["warmup"] = 2
    msd["score_matching"]["network"] = {"features": 8}
    msd["student"].update(fake_updates=2, regression=0.25, pairs={"num": 40, "num_steps": 2})
    config.stages = (teacher, msd)
    return config


def tiny_ctm() -> ConfigDict:
    """digits_ctm, measured at one and two steps with two gammas."""
    config = digits_ctm.get_config()
    config.stages = config.stages[:3]
    shrink(config, num_updates=4)
    teacher, ctm, gan = config.stages
    teacher["measured_at"] = (2,)
    for stage in (ctm, gan):
        stage.update(grid_points=4, solver_steps=2, measured_at=(1, 2))
    judge = gan["adversary"]["judges"][1]  # compiles quickly, without R1 above all
    gan["adversary"].update(judges=(dict(judge) | {"halvings": (1,), "width": 8},), r1=0.0)
    config.evaluation.gammas = (0.0, 1.0)
    return config


def leaves(directory: Path) -> list[np.ndarray]:
    """The parameters of a model or a stage."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(pdistill.load(directory).network)]


def check_events(workdir: Path) -> None:
    """Asserts that TensorBoard has every step of every name once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir)).Reload()
    assert any("/samples/" in tag for tag in events.Tags()["images"])
    for kind in ("scalars", "images"):
        for tag in events.Tags()[kind]:
            steps = [event.step for event in getattr(events, kind.capitalize())(tag)]
            assert len(steps) == len(set(steps)), tag


def tiny_pagoda() -> ConfigDict:
    """digits_pagoda, mirrored; the generator grows from the teacher at once."""
    config = digits_pagoda.get_config()
    teacher, _, grown, upsampled = config.stages
    config.stages = (teacher, grown, upsampled)
    shrink(config, num_updates=4, substeps=1)
    config.model.network.arguments.multipliers = (1,)
    config.data.flip = True
    teacher["measured_at"] = upsampled["measured_at"] = (2,)
    del grown["start"]
    judge = dict(grown["adversary"]["judges"][1]) | {"halvings": (1,), "width": 8}
    grown["adversary"].update(judges=(judge,), r1=0.0)
    grown.update(grown=(8,), latents={"num_steps": 3, "solver": "heun"})
    return config


def tiny_lowdiff() -> ConfigDict:
    """fashion_lowdiff on the digits: 4x4 -> 8x8, measured at two divisions of three steps."""
    config = shrink(fashion_lowdiff.get_config(), substeps=1)
    config.data.name = "digits"
    config.model.network.arguments.update(
        patch=1, multipliers=(1, 1), head_channels=8, attention_sizes=()
    )
    teacher, lowdiff, distilled = config.stages
    teacher["measured_at"] = (2,)
    lowdiff.update(resolutions=(4, 8), split=(10, 6), measured_at=((2, 1), (1, 2)))
    distilled.update(start_steps=2, split=(10, 6))
    distilled["loop"]["batch_size"] = 8
    return config


def die_at(module: str, attribute: str, count: int, when: str) -> None:
    """Replaces a function (or a method, "Class.method") by one that kills this process."""
    owner = importlib.import_module(module)
    *classes, name = attribute.split(".")
    for cls in classes:
        owner = getattr(owner, cls)
    function, calls = getattr(owner, name), iter(range(1, count + 1))

    @functools.wraps(function)
    def deadly(*args, **kwargs):
        last = next(calls, None) == count
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


if __name__ == "__main__":
    workdir, *point = sys.argv[1:]
    if point:
        die_at(point[0], point[1], int(point[2]), point[3])
    from pdistill import experiment

    experiment.run(tiny(), workdir)

"""Runs whose transformers have their blocks in one loop: the same models, in the same files."""

import shutil

import jax
import numpy as np
import pytest
from tiny_experiment import leaves, tiny, tiny_gan

from pdistill import experiment, model
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.plan import plan

pytestmark = pytest.mark.eight_devices


def config_of(make, scan_blocks):
    config = make()
    config.model.network.arguments.depth = 2
    config.evaluation.references = ("train",)
    for stage in config.stages:
        stage["loop"]["scan_blocks"] = scan_blocks
    return config


def tiny_students():
    """digits_pd, 4 -> 1 steps, with several averages, one of which is kept at each save."""
    config = tiny()
    config.mesh = {"data": 4, "fsdp": 2}
    students = config.stages[1]
    students["optimizer"].update(ema_decay=0.0, ema_widths=(0.1, 0.2))
    students["loop"]["snapshot_every"] = 4
    return config


@pytest.fixture(scope="module")
def runs(finished):
    return [finished(config_of(tiny_students, scan)) for scan in (False, True)]


def test_models_are_the_same(runs):
    """Up to sums in another order, with the names that parameters have in files."""
    plain, looped = runs
    names = [path.relative_to(plain) for path in sorted(plain.rglob("model.json"))]
    assert len(names) == 3 + 2 * 2 * 2
    for name in names:
        ours, theirs = (model.load(run / name.parent).network.params for run in (looped, plain))
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)
        assert {"block_0", "block_1"} <= set(ours)
    tables = [(run / "progressive/2/parameters.txt").read_text() for run in runs]
    assert tables[0] == tables[1]


def test_a_run_that_was_cut_ends_the_same(runs, tmp_path):
    _, looped = runs
    copy = tmp_path / "run"
    shutil.copytree(looped, copy)
    shutil.rmtree(copy / "progressive/1/model")
    shutil.rmtree(copy / "progressive/1/checkpoints/8")
    experiment.run(config_of(tiny_students, True), copy)
    for a, b in zip(*(leaves(run / "progressive/1") for run in (copy, looped)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_not_changed_under_way(runs):
    """Checkpoints have the state as it is trained."""
    with pytest.raises(ConfigError, match=r"stages\[0\].loop.scan_blocks: True -> False"):
        experiment.run(config_of(tiny_students, False), runs[1])


@pytest.mark.parametrize("make", [tiny_gan, tiny], ids=["a part fixed", "convolutions"])
def test_networks_that_have_nothing_to_stack_are_refused(make):
    config = config_of(make, False)
    if make is tiny:
        arguments = {"channels": 8, "embedding_channels": 16, "multipliers": (1,), "blocks": 1}
        config.model.network = {"name": "unet", "arguments": arguments}
    config.stages[1]["loop"]["scan_blocks"] = True
    with pytest.raises(ConfigError, match=r"\): loop.scan_blocks: no network of this stage has"):
        plan(parse(as_plain(config)), (8, 8, 1))

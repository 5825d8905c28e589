"""Mutated configs and model files: they work, or one clear error says why not."""

import copy
import json
import random
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_experiment import tiny

import pdistill
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.dry_run import dry_run
from pdistill.experiment.run import Experiment
from pdistill.model import ModelError
from pdistill.training import StopSignals

JUNK = (
    None, True, -1, 0, 1, 3, 10**9, 0.5, -2.5, float("nan"), float("inf"), "", "digits", "ddim",
    "ancestral:medium:2", [], [0], ["x"], [[]], {}, {"name": 3}, {"a": {"b": 1}},
)  # fmt: skip


def places(tree, path=()):
    """Paths to everything in a tree of dictionaries and lists."""
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
        else:
            found.append((*path, key))
    return found


def mutate(tree, rng):
    """One place gets junk, another name, a double, or goes."""
    tree = copy.deepcopy(tree)
    *parents, key = rng.choice(places(tree))
    node = tree
    for parent in parents:
        node = node[parent]
    what = rng.choice(("junk", "junk", "junk", "rename", "remove", "extra"))
    if what == "junk" or isinstance(node, list):
        node[key] = copy.deepcopy(rng.choice(JUNK))
    elif what == "rename":
        node[key[:-1] or "x"] = node.pop(key)
    elif what == "remove":
        del node[key]
    else:
        node[key + "s"] = node[key]
    return tree


def test_mutated_configs(tmp_path):
    """200 of them, each with one or two mutations, as far as they go before a compile."""
    rng = random.Random(0)
    plain = as_plain(tiny())
    refused = 0
    for number in range(200):
        mutated = mutate(plain, rng)
        if number % 2:
            mutated = mutate(mutated, rng)
        try:
            Experiment(parse(mutated), tmp_path / str(number), StopSignals())
        except ConfigError as error:
            refused += 1
            assert len(str(error)) < 1000
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {differences(plain, mutated)}") from error
    assert 100 < refused < 200


def differences(old, new):
    from pdistill.experiment.directory import differences

    return differences(old, new)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory of untrained parameters."""
    network = parse(as_plain(tiny())).model.build((8, 8, 1)).init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("models") / "model"
    pdistill.model.save(
        directory, network, kind="denoiser", solver="ddim", num_steps=2,
        clip=(-1.0, 1.0), num_labels=0, guidance=None, data={"shape": (8, 8, 1), "scale": ""},
        method="teacher", stage="teacher", parent=None, train_steps=1, images_seen=1,
    )  # fmt: skip
    return directory


def sample_or_none(directory):
    """An image of the model, or None if one clear error refuses it."""
    try:
        return np.asarray(pdistill.load(directory).sample(jax.random.key(0), num=1))
    except ModelError as error:
        assert "\n" not in str(error)
        assert str(directory.name) in str(error)
        return None


def test_mutated_model_cards(model, tmp_path):
    """What is not refused makes the same images, unless it says to be sampled otherwise."""
    rng, whole = random.Random(1), sample_or_none(model)
    card = json.loads((model / "model.json").read_text())
    refused = 0
    for number in range(70):
        copied = tmp_path / f"model{number}"
        shutil.copytree(model, copied)
        mutated = mutate(card, rng)
        (copied / "model.json").write_text(json.dumps(mutated))
        try:
            image = sample_or_none(copied)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {differences(card, mutated)}") from error
        if image is None:
            refused += 1
        elif not np.array_equal(image, whole):
            found = {key.partition("[")[0] for key, *_ in differences(card, mutated)}
            ends = {f"schedule.arguments.logsnr_{end}" for end in ("min", "max")}
            assert found <= {"num_steps", "solver", "clip", *ends}, f"mutation {number}: {found}"
    assert 30 < refused < 70


def test_damaged_model_files(model, tmp_path):
    """Each file in turn: cut, emptied, overwritten in the middle, or missing.

    Whatever is not refused makes the same images.
    """
    rng, whole = random.Random(2), sample_or_none(model)
    files = [p.relative_to(model) for p in sorted(model.rglob("*")) if p.is_file()]
    for number in range(40):
        copied = tmp_path / f"model{number}"
        shutil.copytree(model, copied)
        victim = copied / rng.choice(files)
        data = victim.read_bytes()
        how = rng.choice(("cut", "empty", "overwrite", "remove"))
        cut = rng.randrange(len(data) + 1)
        if how == "remove":
            victim.unlink()
        else:
            noise = bytes(rng.randrange(256) for _ in data[cut : cut + 20])
            content = {
                "cut": data[:cut],
                "empty": b"",
                "overwrite": data[:cut] + noise + data[cut + 20 :],
            }
            victim.write_bytes(content[how])
        try:
            image = sample_or_none(copied)
        except Exception as error:
            raise AssertionError(f"{number}: {victim.name} {how} at {cut}") from error
        same = image is None or np.array_equal(image, whole)
        assert same, f"{number}: {victim.name} {how} at {cut}"


def test_values_that_are_not_plain(tmp_path):
    config = tiny()
    with config.unlocked():
        config.data = ConfigDict({"name": {1, 2}})
    with pytest.raises(ConfigError, match="plain values only"):
        pdistill.experiment.run(config, tmp_path)
    with pytest.raises(ConfigError, match="plain values only"):
        dry_run(config, (1,))

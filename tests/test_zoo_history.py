"""What comes into the zoo, and what stays out of it."""

import json

import jax
import pytest

import pdistill
from benchmarks import zoo
from pdistill import model as models
from pdistill.diffusion import DdpmSchedule
from pdistill.interop.conversion import Conversion, teacher_card, write_model
from pdistill.networks import DiT, Network
from pdistill.runtime.files import write_jsonl


def trained(run, seed, *distances, **changes):
    """A stage of a run, with rows of two spaces at the two steps of its card, and at one."""
    module = DiT(1, features=8, depth=1, heads=1)
    blank = Network(None, module=module, head="eps", schedule=DdpmSchedule(), shape=(8, 8, 1))
    network = jax.jit(blank.init)(jax.random.key(seed))
    card = teacher_card(network, method="teacher", source="student", num_steps=2)
    write_model(run / "student" / "model", Conversion(network, card))
    common = {"stage": "student", "reference": "digits:train", "num_samples": 64, "solver": "ddim"}
    write_jsonl(
        run / "results.jsonl",
        [
            common | {"num_steps": 2, "metric": metric, "value": value} | changes
            for metric, value in zip(("fd_pixels", "fd_classifier"), distances, strict=False)
        ]
        + [common | {"num_steps": 1, "metric": "fd_pixels", "value": 99.0}],
    )
    return run / "student"


@pytest.fixture
def place(tmp_path):
    out = tmp_path / "zoo" / "digits" / "2"
    zoo.main([f"--model={trained(tmp_path / 'run', 0, 10.0, 50.0)}", f"--out={out}"])
    return out


def test_a_model_is_replaced_by_one_that_is_better_in_both_spaces(place, tmp_path):
    better = trained(tmp_path / "better", 1, 9.0, 40.0)
    zoo.main([f"--model={better}", f"--out={place}"])
    checksums = [models.read_card(better / "model")["checksum"]]
    first, second = json.loads((place.parent / "history.json").read_text())
    assert (first["model"], second["model"]) == ("2", "2")
    assert second["checksum"] == checksums[0] != first["checksum"]
    pixels = "fd_pixels to digits:train"  # those at the steps of its card
    assert first[pixels] == {"before": None, "after": 10.0}
    assert second[pixels] == {"before": 10.0, "after": 9.0}
    assert second["fd_classifier to digits:train"] == {"before": 50.0, "after": 40.0}
    assert pdistill.load(place).network.shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("distances", "changes", "why"),
    [
        ((9.0, 45.1), {}, r"fd_classifier to digits:train is 50 there and 45.1"),
        ((float("nan"), 40.0), {}, r"fd_pixels to digits:train is 10 there and nan"),
        ((1.0,), {}, r"the new model has fd_pixels to digits:train; measure both alike"),
        ((1.0, 1.0), {"num_samples": 32}, "measure both alike"),
    ],
)
def test_a_model_stays_out(place, tmp_path, distances, changes, why):
    weights = (place / "model.safetensors").read_bytes()
    other = trained(tmp_path / "other", 1, *distances, **changes)
    with pytest.raises(SystemExit, match=why):
        zoo.main([f"--model={other}", f"--out={place}"])
    assert (place / "model.safetensors").read_bytes() == weights
    assert len(json.loads((place.parent / "history.json").read_text())) == 1


def test_one_space_does_not_decide(tmp_path):
    out = tmp_path / "zoo" / "digits" / "2"
    zoo.main([f"--model={trained(tmp_path / 'run', 0, 10.0)}", f"--out={out}"])
    with pytest.raises(SystemExit, match="two distances decide"):
        zoo.main([f"--model={trained(tmp_path / 'other', 1, 1.0)}", f"--out={out}"])

"""The small models of the repository: that they are what their rows say."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import pdistill
from pdistill.cli import evaluate

ZOO = Path(__file__).parents[1] / "zoo"
pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason="the zoo is in the repository only")
MODELS = sorted(path.parent.relative_to(ZOO) for path in ZOO.glob("*/*/rows.json"))


@pytest.mark.parametrize("name", MODELS, ids=str)
def test_they_load_and_are_small(name):
    model = pdistill.load(ZOO / name)
    assert (ZOO / name / "model.safetensors").stat().st_size < 16 * 2**20
    rows = json.loads((ZOO / name / "rows.json").read_text())
    assert {row["stage"] for row in rows} == {model.card["stage"]}
    assert model.sampling.num_steps in {row["num_steps"] for row in rows}


def test_together_they_are_small():
    assert MODELS
    sizes = [path.stat().st_size for path in ZOO.rglob("*") if path.is_file()]
    assert sum(sizes) < 64 * 2**20


def test_half_precision_has_the_distance_of_its_row(tmp_path):
    """That of the digits' student in one step, whose row is of float32."""
    rows = json.loads((ZOO / "digits/1/rows.json").read_text())
    wanted = next(row for row in rows if row["metric"] == "fd_pixels")
    out = tmp_path / "rows.jsonl"
    evaluate.main(
        [
            f"--model={ZOO / 'digits/1'}",
            f"--reference={wanted['reference']}",
            "--metrics=fd_pixels",
            f"--num_samples={wanted['num_samples']}",
            f"--out={out}",
        ]
    )
    [found] = map(json.loads, out.read_text().splitlines())
    assert found["value"] == pytest.approx(wanted["value"], rel=0.05)


<<<<<<< HEAD
def test_a_red_heart_needs_no_text_encoder():
    """Of its caption's embedding: red in the middle, white in the corners."""
    model = pdistill.load(ZOO / "emoji/4")
    [image] = np.asarray(model.sample(jax.random.key(0), 1, prompt="fluent red heart"))
    red, green, _ = image[28:36, 28:36].mean((0, 1))
    assert red > 0.5 > -0.2 > green
    assert image[:6, :6].min() > 0.8
=======
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
>>>>>>> bd56a85f069ec600b351e028b937a92e500cf1ec

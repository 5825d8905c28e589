"""The small models of the repository: that they are what their rows say."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import pdistill
from pdistill.cli import evaluate
from pdistill.interop.hub import title
from pdistill.model import ModelError

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
    assert model.prompts is None or model.prompts.identity  # by which another encoder is refused
    assert f"\n# {title(model)}\n" in (ZOO / name / "README.md").read_text()


def test_titles_say_what_a_model_is():
    """Whatever its stage was called in the run that made it."""
    titles = [title(pdistill.load(ZOO / name)) for name in ("digits/teacher", "digits/1")]
    assert titles == [
        "digits, 64 evaluations, teacher",
        "digits, 1 evaluation, progressive distillation",
    ]


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


def test_a_red_heart_needs_no_text_encoder():
    """Of its caption's embedding: red in the middle, white in the corners."""
    model = pdistill.load(ZOO / "emoji/4")
    [image] = np.asarray(model.sample(jax.random.key(0), 1, prompt="fluent red heart"))
    red, green, _ = image[28:36, 28:36].mean((0, 1))
    assert red > 0.5 > -0.2 > green
    assert image[:6, :6].min() > 0.8


def test_prompts_that_need_none_are_named():
    model = pdistill.load(ZOO / "emoji/4", text_encoder="nothing")
    with pytest.raises(
        ModelError, match=r"no folder nothing.*; without it there are .*'red heart'"
    ):
        model.prompts("heart")

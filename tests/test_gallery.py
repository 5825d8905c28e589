"""The page of pictures, of random networks."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pdistill
from benchmarks import gallery
from pdistill import model as models
from pdistill.data import to_uint8
from pdistill.diffusion import CosineSchedule
from pdistill.networks import DiT, Network
from pdistill.report.grids import tile

SHAPE = (8, 8, 1)
STEPS = {"teacher": 4, "1": 1}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of the page, of a teacher of any number of steps and a student of one."""
    out = tmp_path_factory.mktemp("gallery")
    module = DiT(1, features=8, depth=1, heads=2, num_labels=3)
    blank = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=SHAPE)
    for i, (name, steps) in enumerate(STEPS.items()):
        rng = np.random.default_rng(i)
        network = jax.tree.map(
            lambda a, rng=rng: jnp.asarray(rng.normal(scale=0.3, size=a.shape), a.dtype),
            blank.shapes,
        )
        models.save(
            out / name, network, kind="denoiser", solver="ddim", num_steps=steps,
            made_for=[steps] * (steps == 1), clip=(-1.0, 1.0), guidance=None, stage=name,
            data={"shape": SHAPE, "name": "squares:train"}, method="teacher", train_steps=1,
            images_seen=1,
        )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        folders = [str(out / name) for name in STEPS]
        patch.setattr(sys, "argv", ["gallery", "--models", *folders, f"--out={out}", "--rounds=1"])
        gallery.main()
    return out


def test_page_has_each_model_and_its_pictures(page):
    text = (page / "gallery.md").read_text()
    assert "## squares\n" in text
    for name, steps in STEPS.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{page / name}` |")]
        assert [cell.strip() for cell in row.split("|")[4:6]] == [str(steps)] * 2
    for name in ("squares", "squares_steps"):
        assert f"](gallery/{name}.webp)" in text
        assert 0 < (page / f"gallery/{name}.webp").stat().st_size < gallery.LARGEST


def test_a_model_of_a_one_step_solver_has_one_count(page):
    shown = gallery.read(str(page / "1"), None)
    card = shown.model.card | {"solver": "one_step", "made_for": []}
    assert shown._replace(model=dataclasses.replace(shown.model, card=card)).counts == (1,)


def test_models_of_an_earlier_version_are_named(page):
    teacher, student = (gallery.read(str(page / name), None) for name in STEPS)
    assert gallery.earlier([teacher, student]) == []
    card = student.model.card | {"versions": {"pdistill": "0.0.1"}}
    old = student._replace(model=dataclasses.replace(student.model, card=card))
    [sentence] = gallery.earlier([teacher, old])
    assert sentence.endswith(f"other networks: `{page / '1'}` by pdistill 0.0.1.")


def test_a_weight_of_no_model_is_refused(page, monkeypatch, capsys):
    flags = ["gallery", "--models", str(page / "1"), f"--out={page}", "--guidance"]
    monkeypatch.setattr(sys, "argv", [*flags, "teacher=2"])
    with pytest.raises(SystemExit, match="--guidance of teacher, which --models lacks"):
        gallery.main()
    monkeypatch.setattr(sys, "argv", [*flags, "2"])
    with pytest.raises(SystemExit, match="2"):
        gallery.main()
    assert "give FOLDER=WEIGHT; got '2'" in capsys.readouterr().err


def test_free_models_are_drawn_at_the_steps_of_the_others(page):
    shown = [gallery.read(str(page / name), None) for name in STEPS]
    rows = gallery.grids(shown)
    assert {name: sorted(cells) for name, cells in rows.items()} == {
        str(page / "teacher"): [1, 4],
        "students": [1],
    }
    labels = np.arange(gallery.NUM) % 3
    teacher = pdistill.load(page / "teacher")
    desired = to_uint8(teacher.sample(jax.random.key(0), gallery.NUM, label=labels, num_steps=1))
    np.testing.assert_array_equal(rows[str(page / "teacher")][1], desired)


def test_animation_goes_from_the_same_noise_to_each_models_samples(page):
    animation = Image.open(page / "gallery/squares_steps.webp")
    assert animation.n_frames == 5
    panels = []
    for moment in range(5):
        animation.seek(moment)
        pixels = np.asarray(animation.convert("RGB"))[24:]
        width = (pixels.shape[1] - 12) // 2
        panels.append((pixels[:, :width], pixels[:, -width:]))
    np.testing.assert_array_equal(*panels[0])
    for side, name in enumerate(STEPS):
        labels = np.arange(gallery.ANIMATED) % 3
        images = pdistill.load(page / name).sample(
            jax.random.key(0), gallery.ANIMATED, label=labels
        )
        desired = tile(np.asarray(to_uint8(images)), scale=8)
        np.testing.assert_array_equal(panels[4][side], desired)
        done = [np.array_equal(frame[side], desired) for frame in panels]
        assert done == [moment >= STEPS[name] for moment in range(5)]


def test_pictures_that_are_too_large_lose_a_little(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    gallery.write(tmp_path / "whole.webp", [picture])
    np.testing.assert_array_equal(Image.open(tmp_path / "whole.webp"), noise)
    monkeypatch.setattr(gallery, "LARGEST", 8000)
    gallery.write(tmp_path / "small.webp", [picture])
    assert 2000 < (tmp_path / "small.webp").stat().st_size <= 8000

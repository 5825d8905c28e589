"""CMMD against its definition in NumPy, CLIP scores against transformers' cosines."""

import numpy as np
import pytest
from tiny_text import make as text_fixtures
from tiny_vision import CLIP, FOLDER, make, save_clip, shrink

from pdistill import evaluate
from pdistill.evaluation import EvaluationError, Evaluator, Reference
from pdistill.evaluation.clip import PromptEmbedder, clip_score, cmmd, kernel_sum
from pdistill.evaluation.jackknife import NORMAL
from pdistill.evaluation.metrics import Cmmd, Collected, feature_space
from pdistill.features import load_extractor
from pdistill.features.vision import load_text_tower
from pdistill.interop.vision import image_encoder
from pdistill.runtime.files import read_jsonl
from pdistill.runtime.torch_files import WeightsError

PROMPTS = text_fixtures["PROMPTS"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_cmmd_by_its_definition(monkeypatch):
    """Each row with each, in the published units, whatever the blocks are."""
    monkeypatch.setattr("pdistill.evaluation.clip.BLOCK", 7)
    x, y = unit(RNG.normal(size=(20, 5)) + 1), unit(RNG.normal(size=(30, 5)))

    def kernel(a, b):
        return np.mean([np.exp(-np.sum((p - q) ** 2) / 200) for p in a for q in b])

    desired = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert desired > 0.5
    np.testing.assert_allclose(cmmd(x, y)[0], desired, rtol=1e-10)
    np.testing.assert_allclose(cmmd(np.float32(x), y)[0], desired, rtol=1e-5)
    assert abs(cmmd(x, x)[0]) < 1e-9
    assert cmmd(x, y, kernel_sum(y)) == cmmd(x, y)


def test_the_error_of_cmmd():
    """By leaving out each sample, and as large as the spread over other samples."""
    y, sets = unit(RNG.normal(size=(60, 5))), unit(RNG.normal(size=(100, 40, 5)) + 0.5)
    values, errors = np.transpose([cmmd(x, y) for x in sets])
    x = sets[0]
    without = [cmmd(np.delete(x, i, axis=0), y)[0] for i in range(40)]
    np.testing.assert_allclose(errors[0] ** 2, 39 * np.var(without), rtol=1e-6)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_a_reference_is_compared_with_itself_once(monkeypatch):
    """For all models that it measures."""
    sums = []
    monkeypatch.setattr("pdistill.evaluation.metrics.kernel_sum", lambda y: sums.append(y) or 90.0)
    reference = Reference("noise", np.zeros((9, 2, 2, 3), np.uint8))
    monkeypatch.setattr(reference, "features", lambda _: unit(np.ones((9, 5))))
    for x in unit(RNG.normal(size=(2, 6, 5))):
        [row] = Cmmd("clip").measure(Collected(features=x), reference, None)
        assert row["value"] == cmmd(x, reference.features(None), 90.0)[0]
    assert len(sums) == 1


def test_scores_of_transformers_cosines(folder):
    """Of strings, by the text tower and its tokenizer; negative ones count as zero."""
    images = np.float64(image_encoder(folder, module=CLIP)(make["images"]("clip")))
    embed = PromptEmbedder(load_text_tower(folder))
    text = embed(PROMPTS)
    with np.load(FOLDER / "clip.npz") as arrays:
        desired = arrays["cosines"]
    assert desired.min() < -0.05
    assert desired.max() > 0.05
    images = unit(images)
    np.testing.assert_allclose(images @ text.T, desired, atol=2e-5)
    scores = 100 * np.maximum(desired[:, :3].diagonal(), 0)
    found = clip_score(images, text[:3])
    np.testing.assert_allclose(found, (scores.mean(), scores.std() / 3**0.5), rtol=1e-3)
    embed._encoder = None  # known prompts are not encoded again
    np.testing.assert_array_equal(embed(PROMPTS[::-1]), text[::-1])


@pytest.fixture
def files(folder, tmp_path, monkeypatch):
    """Images and their prompts, and a CLIP of a few layers."""
    shrink(monkeypatch)
    monkeypatch.setenv("PDISTILL_CLIP_L336", str(folder))
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", RNG.integers(0, 256, (12, 9, 9, 3), np.uint8))
    lines = [f"a photo {'of mars ' * i}" for i in range(12)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(files, *arguments):
    what = f"--images={files}/a.npz", f"--reference={files}/b.npz", f"--out={files}/rows.jsonl"
    evaluate.main([*what, *arguments])
    return {row["metric"]: row for row in read_jsonl(files / "rows.jsonl")}


def test_by_the_command_line(files, folder):
    """Prompts stay with their images where a part of both is drawn."""
    prompts = f"--prompts={files}/prompts.txt"
    rows = run(files, "--metrics=cmmd,clip_score", prompts)
    a, b = (
        load_extractor("clip_l336")(np.load(files / f"{name}.npz")["arr_0"])["features"]
        for name in "ab"
    )
    lines = (files / "prompts.txt").read_text().splitlines()
    text = PromptEmbedder(load_text_tower(folder))([line.strip() for line in lines])
    cosines = np.sum(np.float64(a) * text, axis=1)
    scores = 100 * np.maximum(cosines, 0)
    value, error = cmmd(a, b)
    assert rows["cmmd"]["value"] == pytest.approx(value)
    assert "margin" not in rows["cmmd"]  # images of prompts may be made for the reference's
    alone = run(files, "--metrics=cmmd")["cmmd"]
    assert alone["value"] == rows["cmmd"]["value"]
    assert alone["margin"] == pytest.approx(NORMAL * error)
    assert rows["cmmd"]["reference"] == f"{files}/b.npz"
    assert rows["clip_score"]["value"] == pytest.approx(scores.mean())
    assert rows["clip_score"]["reference"] is None
    assert {row["features"] for row in rows.values()} == {"clip_l336"}
    part = run(files, "--metrics=clip_score", prompts, "--num_samples=2")["clip_score"]
    pairs = [np.mean(scores[[i, j]]) for i in range(12) for j in range(i)]
    assert np.abs(np.array(pairs) - part["value"]).min() < 1e-3
    assert part["value"] != pytest.approx(scores[:2].mean())


def test_what_is_refused(files, monkeypatch):
    (files / "few.txt").write_text("a photo\n")
    with pytest.raises(
        SystemExit, match=r"few.txt has 1 prompts for 12 images; write one for each"
    ):
        run(files, "--metrics=clip_score", f"--prompts={files}/few.txt")
    with pytest.raises(SystemExit, match=r"clip_score needs samples of a model .*--prompts; leave"):
        run(files, "--metrics=clip_score")
    reference = Reference("noise", np.zeros((9, 9, 9, 3), np.uint8))
    with pytest.raises(EvaluationError, match="needs samples of a model that takes prompts"):
        Evaluator([reference], ("clip_score",)).measure(iter(()))
    for name in ("config.json", "vocab.json"):
        broken = save_clip(files / name)
        (broken / name).unlink()
        monkeypatch.setenv("PDISTILL_CLIP_L336", str(broken))
        with pytest.raises(WeightsError, match=r"openai/clip-vit-large-patch14-336 and put them"):
            load_text_tower()


def test_the_space_of_precision_and_recall():
    assert feature_space(("clip_score", "cmmd", "fd_pixels")) == "clip_l336"
    assert feature_space(("clip_score", "fd_pixels")) == "pixels"

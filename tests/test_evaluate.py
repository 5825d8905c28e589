"""The command line that measures models and images: what it prints, writes and refuses."""

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from pdistill import compare, evaluate
from pdistill.data import load_dataset
from pdistill.evaluation import Evaluator, Moments, frechet_distance, load_statistics
from pdistill.report.table import three_digits
from pdistill.runtime.files import read_jsonl

sys.path.append(str(Path(__file__).parent / "interop"))
from comparison import save_random


def noise(num, seed, low=0):
    return np.random.default_rng(seed).integers(low, 256, (num, 4, 4, 1), np.uint8)


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "a.npz", noise(200, 0, low=40))
    np.savez(tmp_path / "b.npz", noise(300, 1))
    return tmp_path


def run(*arguments):
    evaluate.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("missing", ["metrics", "reference"])
def test_what_must_be_said(files, capsys, missing):
    given = {"images": files / "a.npz", "metrics": "fd_pixels", "reference": files / "b.npz"}
    with pytest.raises(SystemExit):
        run(*(f"--{name}={value}" for name, value in given.items() if name != missing))
    assert f"the following arguments are required: --{missing}" in capsys.readouterr().err


def test_images_against_images(files, capsys, bars):
    metrics = "fd_pixels,precision_recall"
    out = files / "rows.jsonl"
    run(
        f"--images={files}/a.npz", f"--reference={files}/b.npz", f"--metrics={metrics}",
        f"--out={out}", f"--save_statistics={files}/b_statistics.npz",
    )  # fmt: skip
    rows = read_jsonl(out)
    assert [row["metric"] for row in rows] == ["fd_pixels", "precision", "recall"]
    assert {row["num_samples"] for row in rows} == {200}
    assert {row["stage"] for row in rows} == {f"{files}/a.npz"}
    a, b = (np.load(files / f"{name}.npz")["arr_0"].reshape(-1, 16) / 127.5 - 1 for name in "ab")
    offset, cov_a, cov_b = a.mean(0) - b.mean(0), np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    desired = offset @ offset + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(rows[0]["value"], desired, rtol=1e-9)
    assert "precision" in capsys.readouterr().out
    assert {"images", "computes fd_pixels", "computes precision and recall"} <= set(bars)

    again = files / "again.jsonl"
    run(
        f"--images={files}/a.npz", f"--reference={files}/b_statistics.npz", "--metrics=fd_pixels",
        f"--out={again}",
    )  # fmt: skip
    np.testing.assert_allclose(read_jsonl(again)[0]["value"], rows[0]["value"], rtol=1e-12)


def test_published_statistics_do_not_say_of_how_many_images(files, capsys):
    """The row names them; so many samples as are told are compared."""
    np.savez(files / "published.npz", mu=np.zeros(16), sigma=np.eye(16))
    flags = f"--reference={files}/published.npz", "--metrics=fd_pixels", f"--out={files}/rows.jsonl"
    run(f"--images={files}/a.npz", *flags, "--num_samples=150")
    (row,) = read_jsonl(files / "rows.jsonl")
    assert (row["reference"], row["num_samples"]) == (f"{files}/published.npz", 150)
    model = save_random(files / "model")
    assert "does not say how many images" in refused(capsys, f"--model={model}", *flags)


def test_fewer_samples_are_a_random_subset(tmp_path, capsys):
    """A file sorted by class: its beginning is one class. The row says how it was drawn."""
    data = load_dataset("digits", "train")
    np.savez(tmp_path / "sorted.npz", data.images[np.argsort(data.labels)])
    np.savez(tmp_path / "all.npz", data.images)
    flags = f"--images={tmp_path}/sorted.npz", f"--reference={tmp_path}/all.npz"
    for seed in (0, 0, 1):
        out = f"--out={tmp_path}/rows.jsonl"
        run(*flags, "--metrics=fd_pixels", "--num_samples=300", f"--seed={seed}", out)
    assert "300 of the 1437 images, drawn at random with seed 0" in capsys.readouterr().err
    first, again, other = read_jsonl(tmp_path / "rows.jsonl")
    assert first["value"] < 1  # the first 300 measure 14
    assert first == again
    assert other["value"] != first["value"]
    assert (first["seed"], other["seed"]) == (0, 1)


def test_rows_after_a_line_without_an_end(files):
    """Which an editor or a crash has left: it stays one row, and the others are read."""
    out = files / "rows.jsonl"
    for before, kept in [('{"metric": "mine"}', ["mine"]), ('{"metric": "mi', [])]:
        out.write_text(before)
        run(
            f"--images={files}/a.npz", f"--reference={files}/b.npz", "--metrics=fd_pixels",
            f"--out={out}",
        )  # fmt: skip
        assert [row["metric"] for row in read_jsonl(out)] == [*kept, "fd_pixels"]


def test_statistics_alone(tmp_path):
    path = tmp_path / "digits.npz"
    run("--reference=digits:train", "--metrics=fd_classifier", f"--save_statistics={path}")
    assert load_statistics(path).mean.shape == (64,)
    assert frechet_distance(*[load_statistics(path)] * 2) < 1e-9
    assert load_statistics(path).count == len(load_dataset("digits", "train"))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    capsys.readouterr()
    return str(stop.value)


def test_bad_input_is_one_line_and_writes_no_row(files, capsys):
    out = files / "rows.jsonl"
    images, reference = f"--images={files}/a.npz", f"--reference={files}/b.npz"
    fid, pixels = "--metrics=fid", "--metrics=fd_pixels"
    weights = files / "weights.pth"
    weights.write_bytes(b"not weights")
    np.savez(files / "nan.npz", np.full((9, 4, 4, 1), np.nan))
    np.savez(files / "no_mu.npz", sigma=np.eye(16))
    cases = [
        ((images, reference, fid, f"--inception_weights={weights}"), "weights.pth"),
        ((images, reference, fid, f"--inception_weights={files}/no.pth"), "no.pth"),
        ((f"--images={files}/nan.npz", reference, pixels), "nan.npz: there are NaN"),
        ((images, f"--reference={files}/no_mu.npz", pixels), "no_mu.npz has no 'mu'"),
        ((images, "--reference=digits", pixels), "such as cifar10:train"),
        ((images, reference, "--metrics=fd_pixel"), "got 'fd_pixel'"),
        ((images, reference, pixels, "--num_samples=201"), "has 200 images, fewer than 201"),
        ((images, reference, pixels, "--num_samples=1"), "at least 2"),
        ((images, reference, "--metrics=nearest_neighbour_ratio"), "held-out"),
        (
            (images, reference, "--metrics=nearest_neighbour_ratio", f"--held_out={files}/b.npz"),
            "b.npz, are the training images themselves",
        ),
        ((f"--model={files}/nothing", reference, pixels), "no model in"),
        ((reference, pixels), "give --model or --images"),
        ((images, reference, pixels, "--guidance=3"), "--guidance is for the samples of a --model"),
        ((images, reference, pixels, "--held_out=digits:test"), "--held_out is for nearest_neigh"),
        ((images, reference, pixels, "--flip"), "--flip is for nearest_neighbour_ratio; add it"),
        ((images, reference, pixels, "--label=0"), "--label is for the samples of a --model"),
    ]
    for arguments, message in cases:
        error = refused(capsys, *arguments, f"--out={out}")
        assert message in error
        assert error.startswith("error: ")
        assert "\n" not in error
    assert not out.exists()


def test_rows_that_cannot_be_written_are_still_told(files, capsys, monkeypatch):
    """A place that cannot be written is found before anything is measured."""
    images, reference = f"--images={files}/a.npz", f"--reference={files}/b.npz"
    whole = images, reference, "--metrics=fd_pixels"
    statistics = f"--save_statistics={files}/a.npz/statistics.npz"
    with monkeypatch.context() as patch:
        patch.setattr("pdistill.cli.evaluate.load_reference", None)
        assert "it is a folder; give a file" in refused(capsys, *whole, f"--out={files}")
        assert "a.npz: it is no folder" in refused(capsys, *whole, statistics)
        assert "must end with .npz" in refused(capsys, *whole, "--save_statistics=x.txt")

    def full(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr("pdistill.cli.evaluate.write_jsonl", full)
    with pytest.raises(SystemExit, match="error: no room"):
        run(*whole, f"--out={files}/rows.jsonl")
    assert "fd_pixels" in capsys.readouterr().out


def test_an_image_file_scaled_wrongly(files, capsys):
    np.savez(files / "unit.npz", noise(9, 0) / 255)
    error = refused(
        capsys, f"--images={files}/unit.npz", f"--reference={files}/b.npz", "--metrics=fd_pixels"
    )
    assert "x * 255" in error


def test_warnings_are_a_line(files, capsys):
    np.savez(files / "few.npz", noise(10, 0))
    run(f"--images={files}/few.npz", f"--reference={files}/b.npz", "--metrics=fd_pixels")
    lines = capsys.readouterr().err.splitlines()
    assert next(line for line in lines if " few for " in line).startswith("warning: 10 samples")


# --- Classes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Digits as `pdistill sample` writes images: "images" and "label"."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    data = load_dataset("digits", "train")
    np.savez(path, images=data.images, label=data.labels)
    return path


def test_images_of_some_classes(labelled, tmp_path, capsys):
    """They are compared with such images alone; with a margin in the table."""
    out = tmp_path / "rows.jsonl"
    flags = f"--images={labelled}", "--reference=digits:test", f"--out={out}"
    run(*flags, "--metrics=fd_pixels,label_accuracy,label_accuracy_pixels", "--classes=1,3-4")
    told = capsys.readouterr().out
    assert "digits:test of classes 1,3-4" in told
    rows = {row["metric"]: row for row in read_jsonl(out)}
    parts = []
    for split in ("train", "test"):
        data = load_dataset("digits", split)
        images = data.images[np.isin(data.labels, (1, 3, 4))].reshape(-1, 64) / 127.5 - 1
        parts.append(Moments().add(images).statistics())
    distance = rows["fd_pixels"]
    assert distance["value"] == pytest.approx(frechet_distance(*parts), rel=1e-9)
    assert distance["num_samples"] == parts[0].count
    assert f"{three_digits(distance['value'])} ± {distance['margin']:#.2g}" in told
    assert distance["labels"] == "data"
    assert rows["label_accuracy"]["value"] > 0.95
    data, found = load_dataset("digits", "test"), np.load(labelled)
    means = [data.images[data.labels == c].mean(axis=0) for c in range(10)]  # also of the others
    kept = np.isin(found["label"], (1, 3, 4))
    squares = [np.sum((found["images"][kept] - mean) ** 2, axis=(1, 2, 3)) for mean in means]
    right = np.argmin(squares, axis=0) == found["label"][kept]
    assert rows["label_accuracy_pixels"]["value"] == pytest.approx(right.mean(), abs=1e-12)
    assert 0.8 < right.mean() < 0.9


def test_classes_that_cannot_be(labelled, files, capsys):
    flags = f"--images={labelled}", "--metrics=fd_pixels"
    digits = "--reference=digits:train"
    cases = [
        ((*flags, digits, "--classes=9-12"), "digits:train has no images of class 10; its labels"),
        ((*flags, digits, "--classes=a"), "--classes: give numbers such as 3"),
        (("--model=no", *flags[1:], digits, "--classes=1", "--label=1"), "leave out --label"),
        ((*flags, f"--reference={files}/b.npz", "--classes=1"), "b.npz: it has no labels"),
        (
            (f"--images={files}/a.npz", "--metrics=fd_pixels", digits, "--classes=1"),
            "a.npz has no labels",
        ),
        (
            (*flags, "--reference=digits:test", "--classes=1"),
            "digits:test of classes 1 has 35 images, too few for the covariance of 64 features",
        ),
        ((*flags, f"--reference={files}/b.npz", "--metrics=label_accuracy_pixels"), "with labels"),
    ]
    for arguments, message in cases:
        assert message in refused(capsys, *arguments)


def test_classes_of_a_model(tmp_path, capsys):
    """Its samples have these labels; without labels, or with too few, it is refused."""
    models = {labels: save_random(tmp_path / str(labels), num_labels=labels) for labels in (0, 3)}
    images = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, label=np.arange(90) % 3)
    np.savez(tmp_path / "more.npz", images=images, label=np.arange(90) % 5)
    out = tmp_path / "rows.jsonl"
    flags = "--metrics=fd_pixels", f"--out={out}", "--num_steps=1", "--batch_size=40"
    classes = "--classes=0,2"
    run(f"--model={models[3]}", f"--reference={tmp_path}/data.npz", *flags, classes)
    (row,) = read_jsonl(out)
    assert (row["num_samples"], row["labels"]) == (60, "data")
    assert row["reference"].endswith("data.npz of classes 0,2")
    for option, name in ((classes, "classes"), ("--label=3", "label")):
        refuse = f"--model={models[0]}", f"--reference={tmp_path}/data.npz", option
        assert f"takes no labels; leave --{name} out" in refused(capsys, *refuse, *flags)
    refuse = f"--model={models[3]}", f"--reference={tmp_path}/data.npz", "--label=3"
    assert "--label must be from 0 to 2; got 3" in refused(capsys, *refuse, *flags)
    refuse = f"--model={models[3]}", f"--reference={tmp_path}/more.npz"
    assert "takes labels from 0 to 2, and" in refused(capsys, *refuse, *flags)


def test_rows_say_what_they_differ_by(tmp_path):
    """In one file: which model, after which label, of which prompts, and by which held-out images.

    No two are equal but for values.
    """
    for seed in (0, 1):
        save_random(tmp_path / f"model{seed}", num_labels=3)
        np.savez(tmp_path / f"held{seed}.npz", noise(30, seed))
    np.savez(tmp_path / "data.npz", images=noise(90, 2), label=np.arange(90) % 3)
    out, prompts = tmp_path / "rows.jsonl", tmp_path / "prompts.txt"
    prompts.write_text("a\n" * 90)
    model, images = (f"--model={tmp_path}/model0", f"--images={tmp_path}/data.npz")
    pixels, ratio = "--metrics=kid_pixels", "--metrics=nearest_neighbour_ratio"
    calls = [
        (model, pixels),
        (f"--model={tmp_path}/model1", pixels),
        (model, pixels, "--label=1"),
        (model, pixels, "--label=2"),
        (images, pixels),
        (images, pixels, f"--prompts={prompts}"),
        *((model, ratio, f"--held_out={tmp_path}/held{seed}.npz") for seed in (0, 1)),
        (model, ratio, f"--held_out={tmp_path}/held0.npz", "--flip"),
        (images, pixels, "--background=black"),
        (images, pixels, "--channels=1"),
        (images, pixels, "--inception_weights=mine.pth"),
    ]
    for call in calls:
        steps = ("--num_steps=1",) if images not in call else ()
        run(*call, *steps, f"--reference={tmp_path}/data.npz", f"--out={out}")
    measured = {"value", "margin", "standard_error", "seconds_per_image"}
    said = [
        tuple(sorted((k, str(v)) for k, v in row.items() if k not in measured))
        for row in read_jsonl(out)
    ]
    assert len(said) == len(set(said)) == len(calls)


def test_compare_calls_a_distance_as_evaluate_does(tmp_path, monkeypatch):
    """Such as fid_40, which is to be compared with others of 40 samples only."""
    model = save_random(tmp_path / "model", num_labels=3)
    np.savez(tmp_path / "data.npz", images=noise(40, 0), label=np.full(40, 2))

    class Constant:
        def __init__(self, references, metrics, **_):
            assert metrics == ("fid",)

        def measure(self, batches, paired):
            return [{"value": 1.0}]

    monkeypatch.setattr("pdistill.cli.compare.Evaluator", Constant)
    flags = f"--teacher={model}", f"--students={model}@2", "--metric=fid"
    compare.main([*flags, f"--reference={tmp_path}/data.npz", f"--out={tmp_path}/rows.jsonl"])
    other = save_random(tmp_path / "other", num_labels=3)
    flags = f"--teacher={other}", f"--students={model}@2", "--metric=fid"
    compare.main([*flags, f"--reference={tmp_path}/data.npz", f"--out={tmp_path}/rows.jsonl"])
    row, again = read_jsonl(tmp_path / "rows.jsonl")
    assert (row["metric"], row["num_samples"]) == ("fid_40", 40)
    assert (row["teacher"], again["teacher"]) == (str(model), str(other))
    assert row["checksum"] == row["teacher_checksum"] == again["checksum"] is not None


@pytest.fixture
def told(monkeypatch):
    """What each set of samples was made for: (name of the reference, labels, prompts)."""
    found, measure = [], Evaluator.measure

    def tell(self, batches, labels=None, prompts=None, paired=False):
        found.append((self.references[0].name, labels, prompts))
        assert paired == (prompts is not None)
        return measure(self, batches, labels, prompts, paired)

    monkeypatch.setattr(Evaluator, "measure", tell)
    return found


def test_prompts_of_some_classes(labelled, tmp_path, told):
    """They stay with their images."""
    labels = np.load(labelled)["label"]
    (tmp_path / "prompts.txt").write_text("".join(f"{i}: a {n}\n" for i, n in enumerate(labels)))
    flags = "--reference=digits:train", "--metrics=fd_pixels", "--classes=3,8"
    run(f"--images={labelled}", *flags, f"--prompts={tmp_path}/prompts.txt")
    [(_, found, prompts)] = told
    rows = np.flatnonzero(np.isin(labels, (3, 8)))
    assert prompts == [f"{i}: a {labels[i]}" for i in rows]
    np.testing.assert_array_equal(found, labels[rows])


def test_compare_draws_labels_as_the_reference_and_by_ddim(tmp_path, monkeypatch):
    """Also for a teacher with a solver of its own; the student is sampled as it says."""
    model = save_random(tmp_path / "model", num_labels=3, solver="edm")
    np.savez(tmp_path / "data.npz", images=noise(40, 0), label=np.full(40, 2))
    np.savez(tmp_path / "more.npz", images=noise(40, 0), label=np.full(40, 3))
    drawn = []

    def draw(network, *, sampling, num, told, **_):
        drawn.append((sampling.solver.name, sampling.num_steps, set(told.label.tolist())))
        return iter([noise(num, len(drawn))])

    monkeypatch.setattr("pdistill.cli.compare.draw_samples", draw)
    flags = f"--teacher={model}", f"--students={model}@2"
    compare.main([*flags, f"--reference={tmp_path}/data.npz"])
    assert drawn == [("edm", 4, {2}), ("ddim", 2, {2})]
    out, once = tmp_path / "rows.jsonl", '{"metric": "mine"}\n'
    out.write_text(once)  # to which rows are added
    compare.main([*flags, f"--reference={tmp_path}/data.npz", f"--out={out}"])
    assert [row["metric"] for row in read_jsonl(out)] == ["mine", "fd_pixels"]
    del drawn[2:]
    with pytest.raises(SystemExit, match=rf"cannot write {tmp_path}: it is a folder"):
        compare.main([*flags, f"--reference={tmp_path}/data.npz", f"--out={tmp_path}"])
    assert len(drawn) == 2  # nothing more
    with pytest.raises(SystemExit, match=r"takes labels from 0 to 2, and .*more.npz has 3"):
        compare.main([*flags, f"--reference={tmp_path}/more.npz"])


def test_compare_guides_the_teacher_as_it_was_followed(tmp_path):
    """Of students that have a weight in them, here 0, and of those that take one."""
    same = {"num_labels": 3, "clip": None}  # and the same parameters
    teacher = save_random(tmp_path / "teacher", guidance=(0.0, None), **same)
    student = save_random(tmp_path / "student", **same)
    np.savez(tmp_path / "data.npz", images=noise(40, 0), label=np.arange(40) % 3)
    out = tmp_path / "rows.jsonl"

    def differences(*flags):
        students = f"--students={student}@4,{teacher}@4"
        reference = f"--reference={tmp_path}/data.npz"
        compare.main([f"--teacher={teacher}", students, reference, f"--out={out}", *flags])
        rows = read_jsonl(out)[-2:]  # those before are of other calls
        assert {row["guidance"] for row in rows} == {float(flags[0][-1]) if flags else None}
        return [row["rms_difference"] for row in rows]

    assert differences() == differences("--guidance=0") == [0, 0]
    without, with_weight = differences("--guidance=2")
    assert without > 0.01
    assert with_weight == 0
    with pytest.raises(SystemExit, match="not trained for guidance"):
        compare.main([f"--teacher={student}", f"--students={student}@4", "--guidance=2",
            f"--reference={tmp_path}/data.npz"])  # fmt: skip


def test_labels_take_turns_where_a_reference_has_none(tmp_path, told):
    """A set of images on disk as much as a folder: they are not all 0."""
    for i, image in enumerate(noise(40, 0)):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / f"mine/{i}.png")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "mine", "mine")
    model = save_random(tmp_path / "model", num_labels=3)
    flags = "--metrics=fd_pixels", "--num_steps=1", f"--out={tmp_path}/rows.jsonl"
    folder, tars = str(tmp_path / "mine"), f"{tmp_path}:train"
    for reference in (folder, tars):
        run(f"--model={model}", f"--reference={reference}", *flags)
    drawn = {name: labels for name, labels, _ in told}
    assert set(drawn[tars]) == {0, 1, 2}
    np.testing.assert_array_equal(drawn[tars], drawn[folder])
    assert [row["labels"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [None, None]

"""Several averages of a run: snapshots, others made of them, the best of them, after a crash."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import leaves, tiny

import pdistill
from pdistill import average, evaluate, experiment, sample
from pdistill.experiment.averages import products
from pdistill.experiment.config import ConfigError
from pdistill.methods import Teacher
from pdistill.runtime.files import read_jsonl
from pdistill.training import Learner, Optimizer

WIDTHS = (0.1, 0.2, 0.14)  # the third is tracked, and not used


def averaged():
    """A teacher with snapshots at all of its saves, of whose averages the best is kept."""
    config = tiny()
    config.stages = config.stages[:1]
    teacher = config.stages[0]
    teacher["loop"] = {
        "num_updates": 16, "batch_size": 16, "substeps": 2, "log_every": 4, "save_every": 4,
        "snapshot_every": 4,
    }  # fmt: skip
    teacher["optimizer"].update(ema_decay=0.0, ema_widths=WIDTHS)
    teacher.update(measured_at=(2,), select="fd_pixels")
    config.evaluation.update(metrics=("fd_pixels",), references=("train",))
    return config


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(averaged())


@pytest.fixture
def teacher(workdir, tmp_path):
    """A copy of the run's directory without the snapshots of the third width."""
    third = shutil.ignore_patterns("0.14")
    return shutil.copytree(workdir / "teacher", tmp_path / "run/teacher", ignore=third)


def flat(directory):
    return np.concatenate([np.ravel(leaf) for leaf in leaves(directory)])


def test_all_averages_of_all_saves_are_models(workdir):
    folder = workdir / "teacher/averages"
    found = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("model.json")}
    assert found == {f"{step}/{width:g}" for step in (4, 8, 12, 16) for width in WIDTHS}


def test_the_command_makes_what_was_tracked(workdir, teacher, tmp_path, capsys):
    """A third length of eight snapshots, and a stored one; models for the other commands."""
    first, second, third = (flat(workdir / f"teacher/averages/16/{w:g}") for w in WIDTHS)
    distance = np.linalg.norm(first - second)
    for width, expected, part in ((0.14, third, 0.02), (0.2, second, 1e-6)):
        out = tmp_path / f"{width:g}"
        average.main([f"--run={teacher}", f"--width={width}", f"--out={out}"])
        assert f"of width {width:g} after 16 updates, of 8 snapshots" in capsys.readouterr().out
        assert np.linalg.norm(flat(out) - expected) < part * distance
        assert pdistill.load(out).card["selected_step"] == 16  # as text it is before 4 and 8
    assert np.linalg.norm(third - first) > 0.2 * distance
    sample.main([f"--model={tmp_path / '0.14'}", "--num=4", f"--out={tmp_path / 'grid.png'}"])
    assert (tmp_path / "grid.png").exists()
    evaluate.main(
        [f"--model={tmp_path / '0.14'}", "--reference=digits:train", "--metrics=fd_pixels",
         "--num_samples=16", f"--out={tmp_path / 'rows.jsonl'}"]
    )  # fmt: skip
    assert len(read_jsonl(tmp_path / "rows.jsonl")) == 1


@pytest.mark.parametrize(
    ("width", "kept", "out", "message"),
    [
        ("0.3", "*", "new", "above 0 and at most"),
        ("0.28", "16", "new", "no sum of the 2 snapshots .* nearer to 0.1, 0.2, or train"),
        ("0.14", "none", "new", "no snapshots in .* loop.snapshot_every"),
        ("0.14", "*", ".", "is there already; give a new --out"),
    ],
)
def test_the_command_refuses(teacher, tmp_path, width, kept, out, message):
    for path in set(teacher.glob("averages/*")) - set(teacher.glob(f"averages/{kept}")):
        shutil.rmtree(path)
    with pytest.raises(SystemExit, match=message):
        average.main([f"--run={teacher}", f"--width={width}", f"--out={tmp_path / out}"])
    assert not (tmp_path / "new").exists()


def test_after_a_crash_all_averages_are_the_same(workdir, tmp_path):
    """Lost: the last checkpoint, one of the last snapshots; another is half written."""
    copy = shutil.copytree(workdir, tmp_path / "run")
    folder = copy / "teacher/averages"
    (copy / "teacher/model").rename(copy / "teacher/best")
    for path in ("checkpoints/16", "averages/16/0.14", "averages/16/0.2/params"):
        shutil.rmtree(copy / "teacher" / path)
    (folder / "16/0.2").rename(folder / "16/0.2.tmp-0123456789ab")
    (copy / "results.jsonl").unlink()
    experiment.run(averaged(), copy)
    assert not list(folder.rglob("*.tmp-*"))
    for path in (workdir / "teacher").rglob("model.json"):
        again = copy / path.parent.relative_to(workdir)
        np.testing.assert_array_equal(flat(again), flat(path.parent))


def test_select_chooses_among_averages(workdir):
    log = read_jsonl(workdir / "teacher/selection.jsonl")
    saves = (4, 8, 12, 16)
    assert [(row["step"], row["width"]) for row in log] == [(n, w) for n in saves for w in WIDTHS]
    best = min(log, key=lambda row: row["value"])
    assert sum(row["value"] == best["value"] for row in log) == 1
    card = pdistill.load(workdir / "teacher").card
    assert (card["selected_step"], card["average"]["width"]) == (best["step"], best["width"])
    kept = f"teacher/averages/{best['step']}/{best['width']:g}"
    np.testing.assert_array_equal(flat(workdir / "teacher"), flat(workdir / kept))
    [row] = read_jsonl(workdir / "results.jsonl")
    assert row["value"] == best["value"]  # measured with the same noise
    assert (workdir / "figures/selection_teacher.png").exists()


def test_products_are_the_averages_in_order():
    """They are counted by the updates of their learner. Without widths there is one."""
    learner = Learner.of({"w": jnp.zeros(3)}, Optimizer(0.1, ema_widths=WIDTHS))
    for _ in range(3):
        learner, _ = learner.update({"w": jnp.ones(3)})
    method = Teacher(optimizer=learner.optimizer)
    found = products(method, Teacher.State(learner))
    for product, width, expected in zip(found, WIDTHS, learner.average, strict=True):
        assert product.network is expected
        assert product.average == {"average": {"width": width, "updates": 3}}
    [only] = products(method, Teacher.State(Learner.of({"w": jnp.zeros(3)}, Optimizer(0.1))))
    assert only.average == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"ema_widths": ()}}, "teacher.*snapshot_every keeps the averages"),
        ({"optimizer": {"ema_decay": 0.9}}, "ema_widths stand in for ema_decay"),
        ({"loop": {"snapshot_every": 3}}, "snapshot_every must be 0 or a multiple of save_every=4"),
    ],
)
def test_configs_that_are_refused(tmp_path, change, message):
    config = averaged()
    for key, values in change.items():
        config.stages[0][key].update(values)
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path / "run")

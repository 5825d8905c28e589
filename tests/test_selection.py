"""The best model of a run is what is kept, also after a crash and after divergence."""

import dataclasses
import importlib
import json
import shutil
import weakref

import numpy as np
import pytest
from tiny_experiment import leaves, tiny_gan

import pdistill
from pdistill import compare, experiment
from pdistill.data import load_dataset
from pdistill.experiment import measure
from pdistill.experiment import rows as results
from pdistill.experiment.averages import Product
from pdistill.experiment.cards import of_diverged, updates_of
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.measure import Measurements
from pdistill.experiment.plan import plan
from pdistill.experiment.select import Selection
from pdistill.model.card import CARD, FORMAT
from pdistill.runtime.files import read_json, read_jsonl, write_atomically, write_jsonl
from pdistill.runtime.interruption import Interrupted
from pdistill.runtime.mesh import make_mesh
from pdistill.training import Diverged, StopSignals, loop
from pdistill.training.logging import Writer

running = importlib.import_module("pdistill.experiment.run")  # its function has its name

GAN = "gan"


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(tiny_gan())


def test_the_best_is_kept(workdir):
    log = read_jsonl(workdir / GAN / "selection.jsonl")
    assert [row["step"] for row in log] == [4, 8, 12]
    assert {row["metric"] for row in log} == {"fd_pixels"}
    best = min(log, key=lambda row: row["value"])
    card = pdistill.load(workdir / GAN).card
    assert (card["kind"], card["solver"], card["selected_step"], card["train_steps"]) == (
        "one_step", "one_step", best["step"], 12,
    )  # fmt: skip
    assert 0 < card["trainable_fraction"] < 0.5
    assert not (workdir / GAN / "best").exists()
    # What is measured in the end is the same noise: the same number.
    [row] = [
        row for row in read_jsonl(workdir / "results.jsonl")
        if (row["stage"], row["metric"]) == (GAN, "fd_pixels")
    ]  # fmt: skip
    assert row["value"] == best["value"]
    assert (row["nfe"], row["solver"]) == (1, "one_step")
    assert (workdir / "figures/selection_gan.png").exists()


def test_a_first_stage_that_is_stopped_in_its_first_update_has_saved_nothing(tmp_path, monkeypatch):
    """Whatever files it has opened by then: another config is taken."""

    def stop(_):
        raise Interrupted

    config = tiny_gan()
    config.stages[0]["select"] = "fd_pixels"
    monkeypatch.setattr("pdistill.data.pipeline.BatchIterator.__next__", stop)
    with pytest.raises(Interrupted):
        experiment.run(config, tmp_path)
    assert (tmp_path / "teacher/selection.jsonl").exists()
    config.seed = 1
    running.Experiment(parse(as_plain(config)), tmp_path, StopSignals()).claim(as_plain(config))
    assert read_json(tmp_path / "config.json")["config"]["seed"] == 1


@pytest.mark.parametrize(("lost", "measured"), [(None, 1), ("12", 1), ("", 3)])
def test_after_a_crash_the_same_is_kept(workdir, tmp_path, bars, lost, measured):
    """Lost: the model, half a line and perhaps the last checkpoint, else the run was stopped while
    it measured what that has. A model of a later update is there. Or all checkpoints are moved
    away, and nothing that was measured on the way to them counts, such as a first best of 0."""
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    (copy / GAN / "model").rename(copy / GAN / "best")
    if lost is not None:
        shutil.rmtree(copy / GAN / "checkpoints" / lost)
    log = copy / GAN / "selection.jsonl"
    text = log.read_text()
    first = {"step": 4, "metric": "fd_pixels", "value": 0.0, "spectrum": []}
    log.write_text(text[:-20] if lost != "" else json.dumps(first) + text[text.index("\n") :])
    rows = [row for row in read_jsonl(copy / "results.jsonl") if row["stage"] != GAN]
    (copy / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment.run(tiny_gan(), copy)
    assert bars.count(f"{GAN:<16} fd_pixels") == measured
    assert read_jsonl(log) == read_jsonl(workdir / GAN / "selection.jsonl")
    for ours, theirs in zip(leaves(copy / GAN), leaves(workdir / GAN), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_samples_are_not_kept_while_they_are_measured(tmp_path, monkeypatch):
    """But for the first ones, whatever their number: one batch comes and one goes."""
    settings = parse(as_plain(tiny_gan()))
    data = load_dataset("digits", "train")
    runs = plan(settings, data.image_shape)
    measurements = Measurements(tmp_path, settings, data, runs, make_mesh())
    random, alive, most = np.random.RandomState(0), weakref.WeakSet(), []
    drawn = random.randint(0, 256, (64, *data.image_shape), np.uint8)

    class Images(np.ndarray):  # which can be in a set
        __hash__ = object.__hash__

    def draw_samples(network, **_):
        for start in range(0, len(drawn), 8):
            batch = drawn[start : start + 8].copy().view(Images)
            alive.add(batch)
            most.append(len(alive))
            yield batch

    monkeypatch.setattr(results, "draw_samples", draw_samples)
    monkeypatch.setattr(measure, "PICTURE_IMAGES", 20)
    row, kept = measurements.of_network(runs[GAN], runs[GAN].network)
    assert (len(most), row["num_samples"]) == (8, 64)
    assert max(most) <= 3
    np.testing.assert_array_equal(kept, drawn[:20])


class Recorded(Writer):
    """Lists the steps whose scalars are written out, each with the number of rows until then."""

    def __init__(self, directory):
        self.steps, self._waiting, self._directory = [], [], directory

    def write_scalars(self, step, scalars):
        self._waiting.append(step)

    def flush(self):
        num = len(rows_in(self._directory))
        self.steps += [(step, num) for step in self._waiting]
        self._waiting = []


@pytest.fixture
def selecting(tmp_path):
    """Selections of one run, whose models are the numbers that they are measured by."""
    recorded = Recorded(tmp_path)

    def measure(network):
        if network is None:
            raise Interrupted("stopped")
        return {"metric": "fid", "value": network}, np.zeros((2, 8, 8, 1), np.uint8)

    def save(directory, network, step, **card):
        directory.mkdir(exist_ok=True)
        (directory / "model").write_text(f"{network} of {step}")

    def new():
        return Selection(tmp_path, "run", measure, save, recorded), recorded

    return new


def products_of(*values):
    """Of widths 0.1, 0.2, ...; a single one of none."""
    widths = [{"average": {"width": (i + 1) / 10}} for i in range(len(values))]
    return [Product(v, w if len(values) > 1 else {}) for v, w in zip(values, widths, strict=True)]


def rows_in(directory):
    return [(row["step"], row["value"]) for row in read_jsonl(directory / "selection.jsonl")]


@pytest.mark.parametrize(
    ("start", "kept"), [(0, "5.0 of 4"), (4, "3.0 of 4"), (8, "1.0 of 8"), (12, "1.0 of 8")]
)
def test_what_is_trained_again_is_measured_again(selecting, tmp_path, start, kept):
    """From before the best on the new training's best is kept, though the old one was better."""
    before = {4: 3.0, 8: 1.0, 12: 4.0}
    again = {4: 5.0, 8: 6.0, 12: 7.0}
    selection, _ = selecting()
    for step, value in before.items():
        selection(step, products_of(value))
    selection, _ = selecting()
    selection.rewind(start)
    assert selection.found == (start >= 8)
    if start:  # from 8 on it has its row
        selection(start, products_of(before[start] if start < 8 else 0.0))
    for step in (n for n in again if n > start):
        selection(step, products_of(again[step]))
    assert (tmp_path / "best/model").read_text() == kept
    assert rows_in(tmp_path) == [(n, (before if n <= start else again)[n]) for n in before]


def test_each_average_is_measured_once(selecting, tmp_path):
    """A stop between two leaves the first its row, and its scalar is written out before that."""
    selection, recorded = selecting()
    with pytest.raises(Interrupted):
        selection(4, products_of(2.0, None))
    assert recorded.steps == [(4, 0)]
    selecting()[0](4, products_of(None, 1.0))
    assert recorded.steps == [(4, 0), (4, 1)]
    assert rows_in(tmp_path) == [(4, 2.0), (4, 1.0)]
    assert (tmp_path / "best/model").read_text() == "1.0 of 4"


def test_rows_whose_best_model_is_gone_are_measured_again(selecting, tmp_path):
    selecting()[0](4, products_of(2.0))
    shutil.rmtree(tmp_path / "best")
    selecting()[0](4, products_of(3.0))
    assert rows_in(tmp_path) == [(4, 3.0)]
    assert (tmp_path / "best/model").read_text() == "3.0 of 4"


@pytest.mark.parametrize("better", [True, False])
def test_a_model_stays_until_a_better_one_is_found(selecting, tmp_path, better):
    """Of a finished run that is trained on: until then it is as it was."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model").write_text("2.0 of 4")
    write_jsonl(tmp_path / "selection.jsonl", [{"step": 4, "value": 2.0}])
    selection, _ = selecting()
    assert selection.found
    selection(8, products_of(1.0 if better else 3.0))
    assert (tmp_path / "model/model").read_text() == "2.0 of 4"
    assert (tmp_path / "best").exists() == better
    assert len(rows_in(tmp_path)) == 2


def diverging(monkeypatch, after):
    """The log stops with Diverged after `after` updates, before these are saved."""
    log = loop.TrainingLog.__call__

    def stopping(self, step, metrics):
        if self.name == GAN and step == after:
            raise Diverged("gan: not finite", step)
        log(self, step, metrics)

    monkeypatch.setattr(loop.TrainingLog, "__call__", stopping)


def test_of_a_run_that_diverges_the_best_is_kept(workdir, tmp_path, monkeypatch, capsys):
    """With the updates that it had. The same command has nothing to do; where more updates may be
    left out it goes on, and ends as one that did not diverge."""
    run, config = tmp_path / "run", tiny_gan()
    shutil.copytree(workdir, run, ignore=shutil.ignore_patterns(GAN))
    rows = [row for row in read_jsonl(run / "results.jsonl") if row["stage"] != GAN]
    (run / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with monkeypatch.context() as patch:
        diverging(patch, after=8)
        experiment.run(config, run)
    card = pdistill.load(run / GAN).card
    assert (card["selected_step"], card["train_steps"], card["images_seen"]) == (4, 8, 128)
    assert "not finite" in capsys.readouterr().err
    rows = read_jsonl(run / "results.jsonl")
    assert {row["train_steps"] for row in rows if row["stage"] == GAN} == {8}
    with monkeypatch.context() as patch:
        patch.setattr(running, "train", None)
        experiment.run(config, run)
    assert read_jsonl(run / "results.jsonl") == rows
    config.stages[1]["loop"]["max_skipped"] = 30
    experiment.run(config, run)
    card = pdistill.load(run / GAN).card
    assert card["train_steps"] == 12
    assert "diverged" not in card
    log = read_jsonl(run / GAN / "selection.jsonl")
    assert log == read_jsonl(workdir / GAN / "selection.jsonl")


@pytest.mark.parametrize(
    ("change", "used", "updates", "expected"),
    [
        ({}, False, 8, 8),
        ({"max_skipped": 19}, False, 8, 8),
        ({"max_skipped": 21}, False, 8, None),
        ({"max_skipped": 21}, True, 8, 8),
        ({"num_updates": 16}, False, 8, None),
        ({}, False, 12, 12),  # in its last interval
        ({"max_skipped": 21}, False, 12, None),
        ({"max_skipped": 21}, True, 12, 12),
    ],
)
def test_a_run_that_diverged_goes_on_where_that_may_help(tmp_path, change, used, updates, expected):
    """Not where others have started from its model."""
    planned = plan(parse(as_plain(tiny_gan())), (8, 8, 1))[GAN]
    card = dict.fromkeys(CARD) | of_diverged(planned, updates)
    write_atomically(tmp_path / "model.json", json.dumps({"format": FORMAT} | card))
    loop = dataclasses.replace(planned.run.loop, **change)
    changed = dataclasses.replace(planned, run=dataclasses.replace(planned.run, loop=loop))
    assert updates_of(changed, tmp_path, used) == expected


def test_if_none_was_measured_it_has_diverged(tmp_path, monkeypatch):
    diverging(monkeypatch, after=4)
    with pytest.raises(Diverged):
        experiment.run(tiny_gan(), tmp_path / "run")


@pytest.mark.parametrize("better", [pytest.param(True, marks=pytest.mark.slow), False])
def test_trained_on_it_is_chosen_among_all(workdir, tmp_path, monkeypatch, better):
    """More updates of the last stage, whether or not one of them is better."""
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    before = pdistill.load(copy / GAN).card["selected_step"]
    log = copy / GAN / "selection.jsonl"
    rows = read_jsonl(log)
    value = 1e9 if better else 0.0
    log.write_text("".join(json.dumps(row | {"value": value}) + "\n" for row in rows))
    config = tiny_gan()
    config.stages[1]["loop"]["num_updates"] = 16
    experiment.run(config, copy)
    card = pdistill.load(copy / GAN).card
    assert (card["train_steps"], card["images_seen"]) == (16, 256)
    assert card["selected_step"] == (16 if better else before)
    rows = [row for row in read_jsonl(copy / "results.jsonl") if row["stage"] == GAN]
    assert {row["train_steps"] for row in rows} == {16}
    experiment.run(config, copy)  # nothing is left to do


def test_other_saves_are_another_experiment(workdir):
    """They are what the model is chosen among."""
    config = tiny_gan()
    config.stages[1]["loop"]["save_every"] = 12
    with pytest.raises(ConfigError, match="save_every: 4 -> 12"):
        experiment.run(config, workdir)


def test_select_must_be_a_distance(tmp_path):
    config = tiny_gan()
    config.stages[1]["select"] = "class_shares"
    with pytest.raises(ConfigError, match="select must be a distance"):
        experiment.run(config, tmp_path / "run")


# --- compare --------------------------------------------------------------------------------------


def comparison(workdir, *students, teacher="teacher"):
    arguments = [
        f"--teacher={workdir}/{teacher}", "--reference=digits:train", "--num_samples=128",
        f"--students={','.join(f'{workdir}/{s}' for s in students)}", f"--out={workdir}/c.jsonl",
    ]  # fmt: skip
    compare.main(arguments)
    return read_jsonl(workdir / "c.jsonl")[-len(students) :]  # the others are those of calls before


def test_compare(workdir, capsys, bars):
    """A teacher as its own student is no distance away; another step count is, by its pixels."""
    same, other, gan = comparison(workdir, "teacher@2", "teacher@1", "gan@1")
    assert same["teacher_student"] == pytest.approx(0, abs=1e-8)
    assert same["rms_difference"] == 0
    assert same["data_teacher"] == same["data_student"] == other["data_student"]
    assert other["data_teacher"] != same["data_teacher"]
    unclipped = pdistill.load(workdir / "teacher")
    unclipped.card["clip"] = None
    two, one = (
        np.asarray(np.round(unclipped.sample(
            results.evaluation_key(0), 128, num_steps=n).clip(-1, 1) * 127.5), np.float64)
        for n in (2, 1)
    )  # fmt: skip
    rms = np.sqrt(np.mean((two - one) ** 2)) / 127.5
    assert other["rms_difference"] == pytest.approx(rms, rel=0.01)
    assert gan["rms_difference"] > 0
    assert "teacher_student" in capsys.readouterr().out
    assert {f"samples of {workdir}/{name}" for name in ("teacher", "gan")} <= set(bars)


def test_a_teacher_of_noisy_steps_is_compared_by_ddim(workdir):
    """Its own samples of a noise are many."""
    shutil.copytree(workdir / "teacher", noisy := workdir / "noisy")
    card = read_json(path := noisy / "model/model.json")
    path.write_text(json.dumps(card | {"solver": "ancestral"}))
    [row] = comparison(workdir, "teacher@2", teacher="noisy")
    assert row["rms_difference"] == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--metric=is", "--metric must be"),
        ("--num_samples=1", "at least 2"),
        ("--batch_size=0", "at least 1"),
    ],
)
def test_compare_refuses_options(option, message):
    with pytest.raises(SystemExit, match=message):
        compare.main(["--teacher=t", "--students=s@1", "--reference=digits:train", option])


@pytest.mark.parametrize("student", ["teacher", "teacher@x", "teacher@0", "nothing@2"])
def test_compare_refuses(workdir, student):
    with pytest.raises(SystemExit, match=r"MODEL@K|no model"):
        comparison(workdir, student)

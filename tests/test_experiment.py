"""A whole tiny experiment: what it leaves, that it resumes, and what it refuses."""

import json
import shutil
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_experiment import check_events, leaves, tiny, tiny_ctm, tiny_guided

import pdistill
from pdistill import evaluate, experiment, report, samplers
from pdistill.data import load_dataset
from pdistill.experiment import rows as results
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.measure import Measurements
from pdistill.experiment.plan import plan
from pdistill.experiment.run import Experiment
from pdistill.runtime.files import read_jsonl
from pdistill.runtime.mesh import make_mesh
from pdistill.training import StopSignals

pytestmark = pytest.mark.eight_devices

TIMINGS = ("seconds_per_image",)


@pytest.fixture(scope="module")
def workdir(finished):
    return finished(tiny())


def rows_without_timings(workdir):
    rows = read_jsonl(workdir / "results.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def test_the_run_directory(workdir):
    for name in ("teacher", "progressive/2", "progressive/1"):
        assert (workdir / name / "checkpoints" / "8").is_dir()
        assert (workdir / name / "model" / "model.json").exists()
        assert [row["step"] for row in read_jsonl(workdir / name / "log.jsonl")] == [4, 8]
    assert (workdir / "report.html").exists()
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text())["versions"]["jax"]


def test_every_measurement_has_one_row(workdir):
    rows = read_jsonl(workdir / "results.jsonl")
    keys = [(r["stage"], r["nfe"], r["metric"], r["reference"]) for r in rows]
    models = [("teacher", 4), ("teacher", 1), ("progressive/2", 2), ("progressive/1", 1)]
    metrics = [
        ("fd_pixels", "digits:train"),
        ("fd_pixels", "digits:test"),
        ("nearest_neighbour_ratio", "digits:train"),
    ]
    assert keys == [model + metric for model in models for metric in metrics]
    first = rows[0]
    assert first["num_samples"] == 64
    assert first["images_seen"] == 8 * 16
    assert first["rounding"] == "nearest"
    assert first["value"] > 0


def test_models_load_and_sample_what_was_measured(workdir):
    """The exported student is what results.jsonl and the grids speak of."""

    model = pdistill.load(workdir / "progressive/2")
    assert (model.card["num_steps"], model.card["parent"]) == (2, "teacher")
    assert pdistill.load(workdir / "progressive/1").card["parent"] == "progressive/2"
    with pytest.raises(ValueError, match="made for 2 steps; got num_steps=4"):
        model.sample(jax.random.key(0), 2, num_steps=4)
    assert pdistill.load(workdir / "teacher").sampling_with(3).num_steps == 3
    key = results.evaluation_key(seed=0)
    images = np.round(np.asarray(model.sample(key, num=16)) * 127.5 + 127.5)
    kept = np.load(workdir / "progressive/2/samples.npz")["2"][:16]
    # Another batch size may turn a rounding by one level of 255.
    np.testing.assert_allclose(images, kept.astype(np.float32), atol=1)


def test_random_numbers_of_another_generator_are_refused(workdir):
    """Rows and cards name it."""
    assert {row["generator"] for row in read_jsonl(workdir / "results.jsonl")} == {"threefry2x32"}
    assert pdistill.load(workdir / "teacher").card["generator"] == "threefry2x32"
    with (
        jax.default_prng_impl("rbg"),
        pytest.raises(ConfigError, match="JAX_DEFAULT_PRNG_IMPL=threefry2x32"),
    ):
        experiment.run(tiny(), workdir)


def test_the_same_command_again_changes_nothing(workdir):
    before = (workdir / "results.jsonl").read_text()
    experiment.run(tiny(), workdir)
    assert (workdir / "results.jsonl").read_text() == before


def test_a_run_cut_anywhere_ends_the_same(workdir, tmp_path):
    """Lost: the last student's model, its last checkpoint, half of the rows, half a line."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "progressive/1/model")
    shutil.rmtree(copy / "progressive/1/checkpoints/8")
    lines = (copy / "results.jsonl").read_text().splitlines(keepends=True)
    (copy / "results.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    experiment.run(tiny(), copy)
    assert rows_without_timings(copy) == rows_without_timings(workdir)
    ours, theirs = (leaves(d / "progressive/1") for d in (copy, workdir))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_config_in_the_same_directory_is_refused(workdir):
    config = tiny()
    config.seed = 1
    config.stages[0]["optimizer"]["learning_rate"] = 1e-4
    with pytest.raises(ConfigError, match="seed: 0 -> 1") as error:
        experiment.run(config, workdir)
    assert "; stages[0].optimizer.learning_rate: 0.003 -> 0.0001" in str(error.value)


def test_new_starts_again_and_keeps_what_was_there(workdir, tmp_path, capsys):
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    config = tiny()
    config.stages = config.stages[:1]
    config.evaluation.num_samples = 32
    experiment.run(config, copy, new=True)
    assert f"{copy} is moved to {copy}.1" in capsys.readouterr().err
    assert rows_without_timings(tmp_path / "tiny.1") == rows_without_timings(workdir)
    assert {row["num_samples"] for row in read_jsonl(copy / "results.jsonl")} == {32}


def test_harmless_changes_go_on(workdir, tmp_path):
    """Another mesh, other intervals: nothing is done again."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    config = tiny()
    config.mesh = ConfigDict({"data": 2, "fsdp": 4})
    config.stages[0]["loop"]["log_every"] = 2
    experiment.run(config, copy)
    assert rows_without_timings(copy) == rows_without_timings(workdir)
    assert json.loads((copy / "config.json").read_text())["config"]["mesh"]["fsdp"] == 4


def test_a_stage_that_is_added_goes_on(workdir, tmp_path):
    """It makes what it would have made from the start, and may be taken back until it saves."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    about, rows = json.loads((copy / "config.json").read_text()), copy / "results.jsonl"
    [teacher, students] = about["config"]["stages"]
    config = tiny()
    config.stages = config.stages[:1]
    with pytest.raises(ConfigError, match="another config"):
        experiment.run(config, copy)
    shutil.rmtree(copy / students["name"])
    about["config"]["stages"] = [teacher]
    (copy / "config.json").write_text(json.dumps(about))
    kept = [line for line in rows.read_text().splitlines(True) if '"stage": "teacher"' in line]
    rows.write_text("".join(kept))
    mistaken = tiny()
    mistaken.stages[1]["name"] = "mistaken"
    Experiment(parse(as_plain(mistaken)), copy, StopSignals()).claim(as_plain(mistaken))
    experiment.run(tiny(), copy)
    assert rows_without_timings(copy) == rows_without_timings(workdir)
    assert rows.read_text().startswith("".join(kept))


def test_a_metric_more_is_measured(workdir, tmp_path, bars):
    """The rows that are there stay as they are, and without it again nothing changes."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    config = tiny()
    config.evaluation.metrics = ("fd_classifier", "fd_pixels", "nearest_neighbour_ratio")
    experiment.run(config, copy)
    before, after = (read_jsonl(path / "results.jsonl") for path in (workdir, copy))
    assert after[: len(before)] == before
    assert {row["metric"] for row in after[len(before) :]} == {"fd_classifier"}
    assert len(after) == len(before) * 5 // 3
    steps = ("4 steps", "1 step", "2 steps", "1 step")
    assert [bar[17:] for bar in bars if "ddim" in bar] == [f"ddim {n}" for n in steps]
    assert bars.count("computes fd_classifier") == 2 * len(steps)  # train and test
    experiment.run(tiny(), copy)
    assert read_jsonl(copy / "results.jsonl") == after
    check_events(copy)


def test_a_metric_stays_in_its_space(workdir, tmp_path):
    """A distance before the others would be another space's; a refusal leaves all as it was."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    row = read_jsonl(copy / "results.jsonl")[0] | {"metric": "precision"}
    with (copy / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n{")  # a kill's half line, which goes when it is opened
    config = tiny()
    config.evaluation.metrics = ("fd_classifier", "fd_pixels", "precision_recall")
    files = [copy / "config.json", copy / "results.jsonl"]
    before = [path.read_bytes() for path in files]
    message = "precision of teacher was measured in pixels, and would be in classifier: set eval"
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, copy)
    assert [path.read_bytes() for path in files] == before
    config.evaluation.features = "pixels"
    found = Experiment(parse(as_plain(config)), copy, StopSignals())
    found.claim(as_plain(config))
    [evaluator] = found.measurements._evaluators.values()
    assert [metric.features for metric in evaluator.metrics] == ["classifier", "pixels", "pixels"]


def test_copies_are_looked_for_among_the_training_images(tmp_path):
    """Also where samples are compared with held-out images alone."""
    config = tiny()
    config.evaluation.references = ("test",)
    measurements = Experiment(parse(as_plain(config)), tmp_path, StopSignals()).measurements
    [evaluator] = measurements._evaluators.values()
    assert evaluator.expected() == {
        ("fd_pixels", "digits:test"), ("nearest_neighbour_ratio", "digits:train")
    }  # fmt: skip


def test_a_model_that_is_there_has_the_remat_of_the_config(workdir):
    """Which may change after it was saved."""
    config = tiny()
    config.model.network.arguments.remat = True
    found = Experiment(parse(as_plain(config)), workdir, StopSignals())
    given = found._given(found.runs["progressive/2"])["teacher"]
    assert given.module.remat
    assert given.module == found.runs["teacher"].network.module


def test_the_report_grows_and_the_terminal_says_what_is_done(workdir, tmp_path, reports, capsys):
    """Nothing is reported before the first measurement; then each finds what was measured."""
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "progressive")
    (copy / "results.jsonl").unlink()
    experiment.run(tiny(), copy)
    # Two of the teacher, two saves and one measurement of each student, and the end.
    assert reports == [3, 6, 6, 6, 9, 9, 9, 12, 12]
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    said = [line[1] for line in lines if line and line[0] == "progressive/1"]
    assert said == ["compiles", "was", "step", "step", "exports", "ddim", "ddim"]
    assert sum(line[:1] == ["report"] for line in lines) == 1


@pytest.fixture
def reports(monkeypatch):
    """Numbers of rows found by each report, none of which is made: that takes time."""
    found = []

    def build(directory):
        found.append(len(read_jsonl(directory / "results.jsonl")))
        return directory / "report.html"

    monkeypatch.setattr(report, "build", build)
    return found


def test_a_report_that_cannot_be_made_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    def build(directory):
        raise OSError(f"{directory}/log.jsonl is damaged")

    monkeypatch.setattr(report, "build", build)
    run = SimpleNamespace(
        began=0.0, workdir=tmp_path, measurements=SimpleNamespace(rows=[{}]), _reporting=0.0
    )
    Experiment._report(run)
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"warning: there is no report for now: {tmp_path}/log.jsonl is damaged"


@pytest.mark.parametrize(("spent", "grows"), [(19.0, True), (21.0, False)])
def test_reports_take_a_fiftieth_of_the_time(tmp_path, reports, spent, grows):
    """20 of a run's first 1,000 seconds."""
    (tmp_path / "results.jsonl").touch()
    measurements = SimpleNamespace(rows=[{}])
    run = SimpleNamespace(
        began=time.monotonic() - 1000, workdir=tmp_path, measurements=measurements, _reporting=spent
    )
    Experiment._report(run)
    assert bool(reports) == grows


def test_the_estimate_is_of_what_is_ahead(workdir, tmp_path, monkeypatch):
    """The last round, where it alone is missing; nothing is told of what is done."""
    told = []
    module = sys.modules["pdistill.experiment.run"]  # its function hides it
    monkeypatch.setattr(module, "tell_estimate", lambda ahead, *_: told.append(ahead))
    config = tiny()
    config.estimate = True
    copy = shutil.copytree(workdir, tmp_path / "run")
    experiment.run(config, copy)
    assert not told
    shutil.rmtree(copy / "progressive/1")
    rows = read_jsonl(copy / "results.jsonl")  # of a model that is no more
    wrong = [row | {"value": -1.0} if row["stage"] == "progressive/1" else row for row in rows]
    (copy / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    experiment.run(config, copy)
    assert [[run.name for run in ahead] for ahead in told] == [["progressive/1"]]
    assert rows_without_timings(copy) == rows_without_timings(workdir)


def test_more_steps_of_the_last_stage(tmp_path, capsys):
    """Trained on from its last checkpoint, and measured again under the same names."""
    config = tiny()
    config.stages = config.stages[:1]
    experiment.run(config, tmp_path)
    before = rows_without_timings(tmp_path)
    config.stages[0]["loop"]["num_updates"] = 12
    experiment.run(config, tmp_path)
    assert "teacher goes on to 12 updates instead of 8; an annealed" in capsys.readouterr().err
    after = rows_without_timings(tmp_path)
    assert [row["step"] for row in read_jsonl(tmp_path / "teacher" / "log.jsonl")] == [4, 8, 12]
    assert [results.row_key(row) for row in after] == [results.row_key(row) for row in before]
    assert {row["train_steps"] for row in after} == {12}
    assert all(a["value"] != b["value"] for a, b in zip(after, before, strict=True))
    check_events(tmp_path)

    config.stages[0]["loop"]["num_updates"] = 8
    with pytest.raises(ConfigError, match=r"stages\[0\].loop.num_updates: 12 -> 8"):
        experiment.run(config, tmp_path)


def test_more_steps_of_rounds_that_others_start_from_are_refused(workdir):
    config = tiny()
    config.stages[1]["loop"]["num_updates"] = 12
    with pytest.raises(ConfigError, match=r"stages\[1\].loop.num_updates: 8 -> 12"):
        experiment.run(config, workdir)


def test_run_directories_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the run directory"):
        experiment.run(tiny(), tmp_path / "file" / "run")
    (tmp_path / "config.json").write_text('{"config"')
    with pytest.raises(ConfigError, match=r"config.json is damaged.*--new starts again"):
        experiment.run(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.data.update(name="digit"), "unknown data set 'digit'"),
        (lambda c: c.data.update(train="training"), "train and test"),
        (lambda c: c.update(mesh=ConfigDict({"data": 3, "fsdp": 1})), "does not fit 8 devices"),
        (lambda c: c.stages[0]["loop"].update(batch_size=12), "multiple of the 8 devices"),
        (
            lambda c: c.stages[0]["optimizer"].update(microbatches=4),
            r"teacher: optimizer.microbatches 4 must divide the 2 images .* 8 devices has",
        ),
        (lambda c: c.evaluation.update(metrics=("fd_pixel",)), "metric must be one of"),
        (
            lambda c: c.evaluation.update(solvers=("ddim", "gamma:0.5")),
            "solvers must be for any denoiser, such as ddim; got 'gamma:0.5'",
        ),
        (lambda c: c.evaluation.update(held_out="train"), "digits:train, are the training images"),
        (
            lambda c: c.evaluation.update(metrics=("label_accuracy",)),
            "label_accuracy, but teacher takes no labels",
        ),
        (
            lambda c: c.evaluation.update(metrics=("clip_score",)),
            "clip_score, but teacher takes no prompts",
        ),
        (
            lambda c: c.model.network.arguments.update(num_labels=9),
            "teacher: num_labels 9 is less than the 10 classes of digits",
        ),
        (
            lambda c: c.stages[0]["optimizer"].update(microbatches=3),
            r"stages\[0\] \(teacher\): optimizer.microbatches 3 must divide the 16 images",
        ),
    ],
)
def test_it_refuses_before_it_writes(tmp_path, change, message):
    config = tiny()
    with config.unlocked():
        change(config)
    with pytest.raises(ConfigError, match=message):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_evaluate_gives_the_run_its_numbers_again(workdir, tmp_path, bars):
    """The command line draws the same noise, so another batch size changes only rounding."""
    out = tmp_path / "rows.jsonl"
    evaluate.main(
        [
            f"--model={workdir / 'progressive/2'}", "--metrics=fd_pixels,nearest_neighbour_ratio",
            "--reference=digits:train", "--held_out=digits:test", "--num_samples=64",
            "--batch_size=16", f"--out={out}",
        ]
    )  # fmt: skip
    rows = {row["metric"]: row for row in read_jsonl(out)}
    assert len(rows) == 2
    assert "samples" in bars
    for desired in rows_without_timings(workdir):
        if desired["stage"] == "progressive/2" and desired["reference"] == "digits:train":
            row = {k: v for k, v in rows[desired["metric"]].items() if k not in TIMINGS}
            # A pixel may round to the next of 256 levels.
            np.testing.assert_allclose(row.pop("value"), desired.pop("value"), rtol=1e-3)
            np.testing.assert_allclose(row.pop("bias", 0), desired.pop("bias", 0), rtol=1e-12)
            np.testing.assert_allclose(row.pop("margin", 0), desired.pop("margin", 0), rtol=1e-2)
            whose = {"model": str(workdir / "progressive/2"), "checksum": row["checksum"]}
            assert row == desired | whose


def test_further_solvers_are_measured_at_steps_that_they_can_take(tmp_path):
    """Euler-Maruyama takes two at least; as the first solver it is refused."""
    config = tiny()
    config.stages, config.evaluation.metrics = config.stages[:1], ("fd_pixels",)
    data = load_dataset("digits", "train")

    def measured(*solvers):
        config.evaluation.solvers = solvers
        settings = parse(as_plain(config))
        runs = plan(settings, data.image_shape)
        measurements = Measurements(tmp_path, settings, data, runs, make_mesh())
        measurements.open({})
        return [(m.solver, m.sampling.num_steps) for m in measurements.missing(runs["teacher"])]

    assert measured("ddim", "euler_maruyama") == [("ddim", 4), ("ddim", 1), ("euler_maruyama", 4)]
    with pytest.raises(ConfigError, match="evaluation: euler_maruyama takes at least 2 steps"):
        measured("euler_maruyama", "ddim")


def test_a_guided_experiment(tmp_path):
    """Its rows say the weight, and count a guided pair as two evaluations; its report shows it."""
    experiment.run(tiny_guided(), tmp_path)
    rows = read_jsonl(tmp_path / "results.jsonl")
    found = [(r["stage"], r["method"], r["guidance"], r["nfe"], r["metric"]) for r in rows]
    assert found == [
        (stage, method, weight, nfe, metric)
        for stage, method, weight, nfe in [
            ("teacher", "teacher", 0.0, 4),
            ("teacher", "teacher", 2.0, 8),
            ("guided", "guided", 0.0, 4),
            ("guided", "guided", 2.0, 4),
            ("guided_progressive/2", "progressive", 0.0, 2),
            ("guided_progressive/2", "progressive", 2.0, 2),
        ]
        for metric in ("fd_pixels", "label_accuracy")
    ]
    assert {r["labels"] for r in rows} == {"data"}
    events = EventAccumulator(str(tmp_path)).Reload()  # at the evaluations that the rows have
    logged = {tag: event.step for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert logged["teacher/ddim_w_2/fd_pixels/digits_train"] == 8
    assert logged["guided/ddim_w_2/fd_pixels/digits_train"] == 4
    assert set(np.load(tmp_path / "guided/samples.npz")) == {"4", "4@2"}
    for name in ("guided.png", "guidance_fd_pixels.png", "guidance_label_accuracy.png"):
        assert (tmp_path / "figures" / name).exists()
    card = pdistill.load(tmp_path / "guided_progressive/2").card
    assert (card["guidance"], card["parent"]) == ([0.0, 4.0], "guided")
    assert pdistill.load(tmp_path / "teacher").card["guidance"] == [0.0, None]

    config = tiny_guided()
    config.evaluation.guidance = (0.0, 5.0)
    with pytest.raises(ConfigError, match=r"evaluation.guidance: guided takes weights in \[0.0, 4"):
        experiment.run(config, tmp_path / "other")


@pytest.mark.slow
def test_an_experiment_with_jumps(tmp_path):
    """Rows say gamma, and one step has one; the second student has two parents; models jump."""
    experiment.run(tiny_ctm(), tmp_path)
    rows = read_jsonl(tmp_path / "results.jsonl")
    found = [(r["stage"], r["nfe"], r["solver"], r.get("gamma")) for r in rows]
    jumps = [(1, "gamma", 0.0), (2, "gamma", 0.0), (2, "gamma", 1.0)]
    assert found == [
        ("teacher", 2, "ddim", None),
        *(("ctm", *jump) for jump in jumps),
        *(("ctm_gan", *jump) for jump in jumps),
    ]
    model = pdistill.load(tmp_path / "ctm_gan")
    assert (model.card["kind"], model.card["solver"], model.card["parent"]) == (
        "jump", "gamma", "ctm"
    )  # fmt: skip
    assert model.card["schedule"]["name"] == "karras"
    key = results.evaluation_key(seed=0)
    images = np.round(np.asarray(model.sample(key, num=8)) * 127.5 + 127.5)
    kept = np.load(tmp_path / "ctm_gan/samples.npz")["1"][:8]
    np.testing.assert_allclose(images, kept.astype(np.float32), atol=1)
    for solver in (samplers.Gamma(0.5), samplers.Ddim()):  # it is a denoiser too
        assert model.sample(key, num=2, num_steps=3, solver=solver).shape == (2, 8, 8, 1)
    z = np.ones((1, 8, 8, 1), np.float32)
    level = np.zeros(1, np.float32)
    np.testing.assert_array_equal(model.jump()(z, level, level), z)

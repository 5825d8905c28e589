"""Several writers at once, and Weights & Biases without a network."""

import importlib.util
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_experiment import tiny

from pdistill import experiment
from pdistill.experiment.config import ConfigError
from pdistill.training.logging import Writer
from pdistill.training.writers import MissingExtra, MultiWriter, WandbWriter, default_writer


class Recorder:
    """A writer of a user's: clu's methods, of which it keeps the calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith(("write_", "flush", "close")):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_every_writer_gets_every_call():
    recorders = [Recorder(), Recorder()]
    with MultiWriter(recorders) as writer:
        writer.rewind("teacher", 3)  # which clu's interface does not have
        writer.write_summaries(1, {"a": 1}, {"b": 2})
        writer.write_scalars(1, {"a": 1})
        writer.write_images(1, {"a": 2})
        writer.write_videos(1, {"a": 3})
        writer.write_audios(1, {"a": 4}, sample_rate=8000)
        writer.write_texts(1, {"a": "5"})
        writer.write_histograms(1, {"a": 6}, {"a": 7})
        writer.write_hparams({"a": 8})
        writer.flush()
    expected = [
        ("write_summaries", (1, {"a": 1}, {"b": 2}), {}),
        ("write_scalars", (1, {"a": 1}), {}),
        ("write_images", (1, {"a": 2}), {}),
        ("write_videos", (1, {"a": 3}), {}),
        ("write_audios", (1, {"a": 4}), {"sample_rate": 8000}),
        ("write_texts", (1, {"a": "5"}), {}),
        ("write_histograms", (1, {"a": 6}, {"a": 7}), {}),
        ("write_hparams", ({"a": 8},), {}),
        ("flush", (), {}),
        ("close", (), {}),
    ]
    assert [recorder.calls for recorder in recorders] == [expected, expected]


def test_rewinding_reaches_ours():
    class Ours(Writer):
        def rewind(self, name, step):
            self.rewound = name, step

    writer = Ours()
    MultiWriter([Recorder(), writer]).rewind("teacher", 3)
    assert writer.rewound == ("teacher", 3)


def test_the_default_is_tensorboard_and_what_a_user_adds(tmp_path):
    recorder = Recorder()
    with default_writer(tmp_path, others=[recorder]) as writer:
        writer.write_scalars(3, {"teacher/loss": 0.25})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("teacher/loss")] == [(3, 0.25)]
    assert recorder.calls == [("write_scalars", (3, {"teacher/loss": 0.25}), {}), ("close", (), {})]


def test_without_wandb_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pdistill\[wandb\]'"):
        default_writer(tmp_path, wandb=True)
    assert list(tmp_path.iterdir()) == []  # no events file of a run that never was


def test_a_run_without_wandb_says_so_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny()
    config.wandb = True
    with pytest.raises(ConfigError, match=r"pip install 'pdistill\[wandb\]'"):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs the extra wandb")
def test_wandb_offline(tmp_path, monkeypatch):
    """Two starts of one experiment are one run at Weights & Biases."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with WandbWriter(tmp_path) as writer:
        first = (tmp_path / "wandb_id.txt").read_text()
        writer.write_hparams({"rate": 1e-3})
        writer.write_scalars(3, {"teacher/loss": np.float32(0.25)})
        writer.write_scalars(1, {"student/loss": 0.5})  # a round begins again
        writer.write_images(3, {"teacher/samples": np.zeros((4, 5, 1), np.uint8)})
        writer.write_texts(3, {"teacher/note": "hello"})
        writer.write_histograms(3, {"teacher/params": np.arange(10.0)})
        summary = dict(wandb.run.summary)
    with default_writer(tmp_path, wandb=True) as writer:
        writer.write_scalars(2, {"student/loss": 0.25})
    assert (tmp_path / "wandb_id.txt").read_text() == first
    assert (summary["teacher/loss"], summary["student/loss"]) == (0.25, 0.5)
    assert summary["teacher/samples"]["_type"] == "image-file"
    assert list(tmp_path.rglob(f"run-{first.strip()}.wandb"))

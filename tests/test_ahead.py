"""Updates of later runs that are compiled while an earlier one trains."""

import collections
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import monitoring
from tiny_experiment import tiny, tiny_gan, tiny_msd

from pdistill import experiment
from pdistill.data import load_dataset
from pdistill.experiment import ahead, estimate
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.runtime.compilations import COMPILATION
from pdistill.runtime.mesh import make_mesh
from pdistill.training import compile_update, loop


@pytest.fixture
def pays(monkeypatch):
    monkeypatch.setattr(ahead, "pays", lambda: True)


def test_the_loop_asks_for_what_is_there(tmp_path, pays, capsys):
    """Its update is compiled once, and that in the background."""
    compile_update.cache_clear()  # other tests train such students
    where = collections.Counter()

    def count(event, _, fun_name="", **__):
        main = threading.current_thread() is threading.main_thread()
        where[main] += (event, fun_name) == (COMPILATION, "jit(update)")

    monitoring.register_event_duration_secs_listener(count)
    config = tiny()
    config.evaluation.metrics = ()
    experiment.run(config, tmp_path)
    monitoring.unregister_event_duration_listener(count)
    assert where == {True: 1, False: 1}  # the teacher's, and that of both students
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    [told] = [line for line in lines if line.endswith("before it trains")]
    assert told.startswith("progressive/2 ")
    assert lines.count("progressive/2 was compiled before") == 1


@pytest.mark.parametrize("slow", [(), ("cpu",)])
def test_a_run_takes_the_programs_of_its_estimate(tmp_path, monkeypatch, capsys, slow):
    """Of two updates a dispatch, and of one; the estimate counts one of them."""
    monkeypatch.setattr(loop, "SLOW_LOOPS", slow)
    counts = []

    def trace(*args, **kwargs):
        found = trace_update(*args, **kwargs)
        counts.extend((found.flops, trace_update(*args).flops))
        return found

    monkeypatch.setattr(estimate, "trace_update", trace)
    compile_update.cache_clear()
    config = tiny()
    config.stages, config.evaluation.metrics = config.stages[:1], ()
    config.estimate = True
    experiment.run(config, tmp_path)
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert "teacher was compiled before" in lines
    [told] = [line for line in lines if "to train" in line]
    assert told.startswith("estimate about ")
    assert counts[0] == counts[1]


@pytest.fixture
def started(monkeypatch, tmp_path, pays):
    """started(config) -> for each run that trains, what is traced ahead: shapes and steps."""

    def started(config):
        settings = parse(as_plain(config))
        data = load_dataset("digits", "train")
        runs = plan(settings, data.image_shape)
        traced = collections.defaultdict(list)

        def trace_update(planned, *rest, rows):
            assert not rows  # of data without prompts
            *_, shape, step, substeps = rest
            traced[planned.name].append((shape[0], step, substeps))
            return SimpleNamespace(traced=jax.jit(lambda x: x).trace(1.0))

        monkeypatch.setattr(ahead, "trace_update", trace_update)
        beside = ahead.Ahead(tmp_path, settings, data, runs, make_mesh())
        for planned in runs.values():
            if planned.trains:
                beside.begin(planned)
                beside.wait(planned)
        return dict(traced)

    return started


def test_all_programs_of_a_run_are_compiled(started, monkeypatch):
    assert started(tiny_gan()) == {"teacher": [(1437, 0, 2)], "gan": [(1437, 0, 2)]}
    monkeypatch.setattr(loop, "SLOW_LOOPS", ("cpu",))
    found = started(tiny_gan())
    assert found["teacher"] == [(1437, 0, 1)]
    assert found["gan"] == [(1437, 0, 1), (1437, 4, 1)]  # without R1 and with it


def test_data_of_some_labels(started):
    """Nothing is compiled for the students, of whose labels nobody has counted the pairs."""
    found = started(tiny_msd())
    assert set(found) == {"teacher", "msd/tsm_0", "msd/tsm_1"}
    [(first, *_)], [(second, *_)] = found["msd/tsm_0"], found["msd/tsm_1"]
    labels = load_dataset("digits", "train").labels
    assert (first, second) == (np.sum(labels < 5), np.sum(labels >= 5))


def test_a_failure_is_a_line(started, monkeypatch, capsys):
    def compile_nothing(*_):
        raise RuntimeError("out of memory:\n 16 GB")

    monkeypatch.setattr(ahead.Ahead, "_compile", compile_nothing)
    started(tiny())
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert "teacher is compiled when it trains: out of memory: 16 GB" in lines


@pytest.mark.parametrize(
    ("platform", "processes", "expected"), [("cpu", 1, False), ("gpu", 1, True), ("tpu", 4, False)]
)
def test_where_it_pays(monkeypatch, platform, processes, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert ahead.pays() == expected

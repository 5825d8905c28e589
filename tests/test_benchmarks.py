"""Tables that benchmarks make of results."""

import json
import re
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_experiment import tiny

from benchmarks import (
    accelerator,
    across,
    emoji_students,
    latents,
    mutation,
    ring,
    seeds,
    train_step,
)
from benchmarks.common import ROOT, config_named
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.runtime.files import read_jsonl, write_jsonl

RESULTS = ROOT / "benchmarks/results"
MEASURED = sorted(path.parent.name for path in RESULTS.glob("*/results.jsonl"))


def row(stage, nfe, value, **changes):
    return {
        "stage": stage, "nfe": nfe, "num_steps": nfe, "solver": "ddim", "metric": "fd_pixels",
        "reference": "digits:train", "seed": 0, "value": value, "images_seen": 6400,
    } | changes  # fmt: skip


def write(path, *rows):
    path.mkdir()
    write_jsonl(path / "results.jsonl", rows)
    return path


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("digits", ("digits_methods", "digits_flow_map")),
        *((name, (name,)) for name in ("digits_methods", "cifar10_methods_cpu")),
    ],
)
def test_kept_tables_are_of_the_kept_rows(name, runs):
    rows = across.merge([RESULTS / run for run in runs])
    assert (RESULTS / name / "table.md").read_text().splitlines() == across.table(rows)


@pytest.mark.parametrize("name", [n for n in MEASURED if n != "cifar10_ctm_cpu"])  # says its own
def test_kept_rows_are_of_todays_configs(name):
    """As many updates as the config of this name has, twice as many in long rounds."""
    config = re.sub("_([cg]pu)$", r":\1", name).replace("cifar10_methods:gpu", "cifar10_methods")
    stages = {stage["name"]: stage for stage in config_named(config).stages}
    for row in read_jsonl(RESULTS / name / "results.jsonl"):
        stage = stages.get(row["stage"]) or stages[row["stage"].partition("/")[0]]
        if "loop" in stage and "student" not in stage:
            updates = stage["loop"]["num_updates"]
            assert row["train_steps"] in (updates, updates * (1 + ("long_rounds" in stage)))


def test_one_table_of_several_runs(tmp_path):
    """What is the same is there once; what is not has its run's name; a method's rounds are one."""
    teacher = [row("teacher", 1, 17.0), row("teacher", 64, 0.4)]
    pd = write(
        tmp_path / "pd", *teacher, row("progressive/2", 2, 0.45), row("progressive/1", 1, 0.49)
    )
    others = row("ctm", 1, 0.9, reference="digits:test"), row("ctm", 1, 8.0, metric="fd_classifier")
    one = row("ctm", 1, 0.3)
    ctm = write(tmp_path / "ctm", *teacher, row("progressive/1", 1, 0.6), one, *others)
    assert across.table(across.merge([pd, ctm])) == [
        "| fd_pixels at | images | 1 | 2 | 4 | 8 | most |",
        "|---|---|---|---|---|---|---|",
        "| teacher | 6,400 | 17 |  |  |  | 0.4 at 64 |",
        "| progressive | 12,800 | 0.49 | 0.45 |  |  |  |",
        "| progressive (ctm) | 6,400 | 0.6 |  |  |  |  |",
        "| ctm | 6,400 | 0.3 |  |  |  |  |",
    ]


def test_ways_to_sample_and_runs_are_lines_of_their_own(tmp_path):
    """Also of runs that have no evaluations in common; a number never takes another's place."""
    ways = [
        row("student", 1, 0.3, guidance=0.0),
        row("student", 1, 4.8, guidance=4.0),
        row("student", 1, 4.9, guidance=4.0, gamma=0.5),
        row("t", 8, 0.7),
        row("t", 8, 0.5, solver="ancestral"),
    ]
    a = write(tmp_path / "a", row("teacher", 64, 0.4), row("p/2", 2, 0.6), *ways)
    b = write(tmp_path / "b", row("teacher", 8, 9.9, images_seen=1), row("p/1", 1, 0.7))
    rows = across.merge([a, b])
    assert len(rows) == 9
    lines = across.table(rows)[2:]
    assert {line[2:].partition(" |")[0] for line in lines} == {
        *("teacher", "teacher (b)", "p", "p (b)", "t, solver ddim", "t, solver ancestral"),
        *(f"student, guidance {told}" for told in ("0.0", "4.0", "4.0, gamma 0.5")),
    }
    assert len(lines) == 9
    assert "| teacher (b) | 1 |  |  |  | 9.9 |  |" in lines


@pytest.mark.parametrize(
    "other", [{"reference": "digits:train[:1000]"}, {"num_samples": 100}, {"seed": 1}], ids=str
)
def test_what_cannot_be_compared_is_in_no_table(tmp_path, other):
    a, b = write(tmp_path / "a", row("x", 1, 0.4)), write(tmp_path / "b", row("y", 1, 0.3, **other))
    with pytest.raises(ValueError, match=f"{next(iter(other))} must be the same in all runs"):
        across.merge([a, b])


def test_mean_and_worst_of_seeds(tmp_path):
    runs = [
        write(
            tmp_path / str(seed),
            row("gan", 1, value, seed=seed),
            row("gan", 1, 1 - value, seed=seed, metric="recall"),
            *([row("extra", 1, 1.0)] if seed else []),
        )
        for seed, value in enumerate((0.25, 0.75, 0.5))
    ]
    distance, recall = seeds.summarize(runs)  # what only some have is left out
    assert (distance["mean"], distance["worst"], recall["worst"]) == (0.5, 0.75, 0.25)


def test_the_configs_of_the_updates_are_there():
    for name in train_step.CONFIGS.split(","):
        assert train_step.read(name).stages


def test_the_methods_of_the_ring_are_possible():
    for settings in ring.VARIANTS.values():
        assert ring.method_of(**settings).fake_updates == settings["fake_updates"]


def test_every_module_has_tests_that_are_to_catch_its_mutants():
    config = tomllib.loads(mutation.CONFIG.read_text())
    for path in (mutation.ROOT / "pdistill").rglob("*.py"):
        module = str(path.relative_to(mutation.ROOT / "pdistill"))
        if not mutation.fits(module, config["without"]):
            for file in mutation.tests_of(config, module):
                assert (mutation.ROOT / file).exists(), file


def test_mutants_that_mean_the_same():
    code = "def f(a, *, b: int | None = 1):\n    return a + b"
    same = "def f(a, /, b: int & None = 1):\n    return a + b"
    other = code.replace("1", "2")
    assert mutation.meaning(code) == mutation.meaning(same) != mutation.meaning(other)


SMALL = accelerator.Scale(
    (("train", "digits_pd", "teacher"), ("sampler", "small", 2, 1)), ("float32",), 1, 0.1
)


def test_everything_on_one_accelerator(tmp_path, monkeypatch):
    """Without PyTorch: what compares with it says so, and the rest is measured."""
    out = tmp_path / "results" / "speed.json"
    monkeypatch.setitem(accelerator.SCALES, "cpu", SMALL)
    monkeypatch.setattr(train_step, "read", lambda name: parse(as_plain(tiny())))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.sampler", raising=False)
    monkeypatch.setattr(
        sys, "argv", ["accelerator", "--scale=cpu", f"--out={out}", "--xla_defaults"]
    )
    accelerator.main()
    parts = json.loads(out.read_text())["parts"]
    teacher = parts["train digits_pd teacher"]
    peak = parts["peak"]["peaks"]["float32"]
    assert teacher["utilisation"] == pytest.approx(1e9 * teacher["gigaflops_per_second"] / peak)
    assert "torch" in parts["sampler small"]["error"]
    _, _, first, second, third = out.with_suffix(".md").read_text().splitlines()
    assert first.startswith("| peak | float32 |")
    assert f"{teacher['updates_per_second']:.4g} updates/s" in second
    assert third.startswith("| sampler small |")
    assert "error: import of torch" in third


def test_what_there_is_no_time_for_is_named(tmp_path, monkeypatch):
    """One part is measured while another still compiles, two have not begun; each is on disk."""
    stop, written = threading.Event(), []

    def prepare(part, scale, peaks):
        if part[1] == "slow":
            stop.wait(30)

        def measure():
            written.append(json.loads((tmp_path / "speed.json").read_text())["parts"])
            return {"images_per_second": {"pdistill": 3.0}, "gigaflops_per_second": {"pdistill": 5}}

        return measure

    monkeypatch.setattr(accelerator, "prepare", prepare)
    monkeypatch.setattr(accelerator, "COMPILING", 0.06)  # 0.3 seconds of 5, of which 1 is used
    monkeypatch.setattr(accelerator, "peak_flops", lambda dtype: 1e12)
    parts = [("sampler", name, 1) for name in ("slow", "a", "b", "slow", "c")]
    parts[3] = ("distillation", "slow", 1)
    scale = accelerator.Scale(tuple(parts), ("float32",), 1, 4.0)
    results = accelerator.Results(tmp_path / "speed.json", list(map(accelerator.name_of, parts)))
    pool = ThreadPoolExecutor(2)
    accelerator.run(scale, results, pool, minutes=5 / 60)
    stop.set()
    pool.shutdown()
    found = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert found == results.parts
    beside = ["sampler slow", "distillation slow"]
    assert [found[f"sampler {name}"].get("beside") for name in "ab"] == [beside, beside]
    assert found["sampler c"] == {"left out": "there was no time to compile it"}
    assert found["sampler slow"] == {"left out": "there was no time for it"}
    before_a, before_b = written
    assert before_a["sampler a"]["left out"] == "it was stopped before"
    assert before_b["sampler a"]["images_per_second"] == {"pdistill": 3.0}
    table = (tmp_path / "speed.md").read_text()
    assert (
        "| sampler a | pdistill | 3 images/s | 0.005 |  | beside sampler slow; beside dist" in table
    )
    assert "| sampler c |  |  |  |  | left out: there was no time to compile it |" in table


def test_two_students_by_prompts_beside_one():
    """Of the zoo's teacher, which is in the repository: the config unfolds, and both are alike."""
    runs = plan(parse(as_plain(emoji_students.get_config())), (64, 64, 3))
    assert [*runs] == ["teacher", "two/dmd_0", "two/dmd_1", "two", "one"]
    half, whole = runs["two/dmd_1"], runs["one"]
    assert half.run.prompt_part == (1, 2)
    assert whole.run.prompt_part is None
    assert half.run.loop == whole.run.loop
    assert half.run.method == whole.run.method


def test_time_in_which_the_program_was_stopped_does_not_count(monkeypatch):
    """Of a trial that hangs: 400 seconds from its beginning, but for an hour's stop."""
    workshop = object.__new__(mutation.Workshop)
    workshop.awake, workshop._looked, workshop._free = 0.0, 0.0, []
    mutant = mutation.Mutant("a.py", "", "", 1, "", "")
    trial = mutation.Trial(mutant, (), 0, Path("no folder"), "", 0.0)
    clock = iter([5.0, 3605.0, *(3605.0 + 5 * i for i in range(1, 100))])
    monkeypatch.setattr(mutation.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(mutation.os, "waitpid", lambda *_: (0, 0))
    killed = []
    monkeypatch.setattr(mutation.os, "killpg", lambda *_: killed.append(workshop.awake))
    workshop.running = [trial]

    def watch():
        while True:
            list(workshop.finish(400))

    with pytest.raises(FileNotFoundError):  # its module is put back
        watch()
    assert killed == [400]


def test_tests_that_run_a_mutants_line_come_first():
    """And the quick ones of them; one that has caught something may take four times as long."""
    seconds = {"slow": 3.0, "quick": 1.0, "other": 0.1}
    lines = {"quick": [6, 7], "slow": [7], "other": [8]}
    order = mutation.Order(7, lines, seconds, frozenset())
    assert sorted(seconds, key=order) == ["quick", "slow", "other"]
    order = mutation.Order(7, lines, seconds, frozenset({"slow"}))
    assert sorted(seconds, key=order) == ["slow", "quick", "other"]


def test_updates_of_latents_are_told_and_written(tmp_path, monkeypatch, capsys):
    """With processes that measure at once."""
    done = SimpleNamespace(stdout="a warning\n" + json.dumps({"update": 1.5}))
    processes = SimpleNamespace(run=lambda *_, **__: done, PIPE=None)
    monkeypatch.setattr(latents, "subprocess", processes)
    out = tmp_path / "latents.json"
    monkeypatch.setattr(sys, "argv", ["latents", "--size=S", f"--out={out}", "--xla_defaults"])
    latents.main()
    row = json.loads(out.read_text())
    assert (row["size"], row["mean_flow"]) == ("S", {"update": 1.5})
    assert capsys.readouterr().out.splitlines()[-1] == out.read_text().strip()

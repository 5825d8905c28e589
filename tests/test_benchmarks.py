"""Tables that benchmarks make of results."""

import tomllib

from benchmarks import across, mutation, ring, seeds, train_step
from pdistill.runtime.files import write_jsonl


def row(stage, nfe, value, **changes):
    return {
        "stage": stage, "nfe": nfe, "num_steps": nfe, "solver": "ddim", "metric": "fd_pixels",
        "reference": "digits:train", "seed": 0, "value": value, "images_seen": 6400,
    } | changes  # fmt: skip


def write(path, *rows):
    path.mkdir()
    write_jsonl(path / "results.jsonl", rows)
    return path


def test_one_table_of_several_runs(tmp_path):
    """What is the same is there once; what is not has its run's name; a method's rounds are one."""
    teacher = [row("teacher", 1, 17.0), row("teacher", 64, 0.4)]
    pd = write(
        tmp_path / "pd", *teacher, row("progressive/2", 2, 0.45), row("progressive/1", 1, 0.49)
    )
    others = row("ctm", 1, 0.9, reference="digits:test"), row("ctm", 1, 8.0, metric="fd_classifier")
    few = row("ctm", 1, 0.3, reference="digits:train[:1000]")
    ctm = write(tmp_path / "ctm", *teacher, row("progressive/1", 1, 0.6), few, *others)
    assert across.table(across.merge([pd, ctm])) == [
        "| fd_pixels at | images | 1 | 2 | 4 | 8 | most |",
        "|---|---|---|---|---|---|---|",
        "| teacher | 6,400 | 17 |  |  |  | 0.4 at 64 |",
        "| progressive | 12,800 | 0.49 | 0.45 |  |  |  |",
        "| progressive (ctm) | 6,400 | 0.6 |  |  |  |  |",
        "| ctm | 6,400 | 0.3 |  |  |  |  |",
    ]


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

"""The pages of methods: their code is the source's, what they name exists, and tests cite them."""

import functools
import importlib
import itertools
import re
import textwrap
from pathlib import Path

import jax
import pytest
from test_configs import SHAPES

from benchmarks.common import config_named
from pdistill.experiment import config as configuration
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.methods import METHODS
from pdistill.runtime.mesh import make_mesh

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs/methods").glob("*.md"))}
OF_METHODS = [name for name in PAGES if name != "index"]
SECTIONS = [
    "Algorithm", "Run it", "Read its log", "Pitfalls", "Differences", "Analytic values",
]  # fmt: skip
EXCERPT = re.compile(r"^<!-- from (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Where tests cite a value: a page, and labels such as "A1" or "B4 and B7".
CITED = re.compile(r"docs/methods/(\w+)\.md(?:,\s+([A-Z]\d+(?:(?:, | and )[A-Z]\d+)*))?")
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]


def section(page, name):
    """A page's text from a heading to the next."""
    return re.search(rf"^## {name}[^\n]*\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]


def windows(path, size):
    """All runs of so many lines of a file, without their common indentation."""
    lines = [line.rstrip() for line in (ROOT / path).read_text().splitlines()]
    return {textwrap.dedent("\n".join(lines[i : i + size])) for i in range(len(lines) - size + 1)}


def test_each_method_has_a_page():
    text = "\n".join(PAGES.values())
    assert all(f"`{name}`" in text or f"[{name}]" in text for name in METHODS)
    assert all(f"]({name}.md)" in PAGES["index"] for name in OF_METHODS)


@pytest.mark.parametrize("name", OF_METHODS)
def test_parts_of_a_page(name):
    page = PAGES[name]
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert [heading.split(" from ")[0] for heading in headings] == SECTIONS
    assert "arxiv.org/abs/" in page
    assert len(page.splitlines()) <= 130


@pytest.mark.parametrize("name", OF_METHODS)
def test_code_is_the_sources(name):
    found = EXCERPT.findall(PAGES[name])
    assert found
    assert len(found) == PAGES[name].count("<!-- from")
    for path, code in found:
        code = code.rstrip("\n")
        assert code in windows(path, code.count("\n") + 1), f"not in {path}:\n{code}"


def test_code_that_has_changed_is_found(tmp_path):
    path = tmp_path / "source.py"
    path.write_text("def f():\n    a = 1\n    if a:\n        b = 2\n")
    assert "a = 1\nif a:\n    b = 2" in windows(path, 3)
    assert "a = 1\nif a:\n    b = 3" not in windows(path, 3)
    assert "a = 1\n    b = 2" not in windows(path, 2)


def test_configs_exist():
    for page in PAGES.values():
        for name, variant in re.findall(r"`(?:configs/)?((?:[a-z]+\d*_)+[a-z]+\d*):(\w+)`", page):
            importlib.import_module(f"pdistill.configs.{name}").get_config(variant)
        for name in re.findall(r"--config=configs/(\w+)\.py", page):
            importlib.import_module(f"pdistill.configs.{name}").get_config()
        for name in re.findall(
            r"`((?:digits|fashion|cifar10|imagenet64|lsun|ffhq64)\w*_\w+)`", page
        ):
            assert (ROOT / f"pdistill/configs/{name}.py").exists() or "mnist" in name, name


def test_links_lead_somewhere():
    """Those to other parts of the site are checked where it is built."""
    for page in PAGES.values():
        for link in re.findall(r"\]\((?!https://|\.\./[a-z])([^)#]+)", page):
            assert (ROOT / "docs/methods" / link).exists(), link


# --- logs -----------------------------------------------------------------------------------------

# The runs whose logs a page tells of, and the update at which all of their losses are due.
LOGS = {
    "teacher": [("digits_pd", "teacher", 0)],
    "progressive": [("digits_pd", "progressive/32", 0)],
    "guided": [("digits_guided", "guided", 0)],
    "gan": [("digits_gan", "gan", 16)],
    "dmd": [("digits_dmd", "dm_gan", 0), ("digits_dmd", "dm_regression", 0)],
    "ctm": [("digits_ctm", "ctm_gan", 16)],
    "flow_map": [("digits_flow_map", "mean_flow", 0)],
    "pagoda": [("digits_pagoda", "pagoda/4", 16)],
    "multi_student": [("digits_msd", "msd/tsm_0", 0)],
    "lowdiff": [("fashion_lowdiff", "lowdiff", 0)],
}


@functools.cache
def planned(name):
    """A config's experiment and its runs, with a shallow network where it is a transformer."""
    config = config_named(name)
    if config.model.network.name == "dit":
        config.model.network.arguments.depth = 2
    experiment = configuration.parse(configuration.as_plain(config))
    return experiment, plan(experiment, SHAPES[experiment.data.name])


def logged(name, run, step):
    """Names of the metrics of an update, traced."""
    experiment, runs = planned(name)
    shape = 1000, *SHAPES[experiment.data.name]
    mesh = make_mesh(1, 1, jax.devices()[:1])
    traced = trace_update(runs[run], runs, experiment, mesh, shape, step).traced
    return set(traced.out_info[1]["values"])


SLOW = {"ctm", "dmd", "gan", "lowdiff", "multi_student", "pagoda"}  # to trace


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LOGS]
)
def test_every_metric_is_explained(name):
    rows = re.findall(r"^\| (`.*?) \|", section(PAGES[name], "Read its log"), re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert told == set().union(*itertools.starmap(logged, LOGS[name]))


# --- what tests cite ------------------------------------------------------------------------------


def test_what_tests_cite_is_there():
    cited = set()
    for path in TESTS:
        for page, labels in CITED.findall(path.read_text()):
            assert page in PAGES, f"{path}: {page}"
            cited |= {(page, label) for label in re.findall(r"[A-Z]\d+", labels)}
    assert len(cited) > 50
    values = {
        (page, label)
        for page in OF_METHODS
        for label in re.findall(r"^- \*\*(\w+)\*\* ", section(PAGES[page], "Analytic values"), re.M)
    }
    assert cited <= values, cited - values
    assert values <= cited, f"no test has {values - cited}"


def test_no_test_cites_what_is_not_here():
    """A label without its page, or a document that the repository does not have."""
    for path in TESTS:
        text = path.read_text()
        found = re.search(r'"""([A-Z]\d+[ ,:.]|Card\b|Bench\b)|\bcard\'s\b|method card', text)
        assert not found, f"{path}: {found[0]}"

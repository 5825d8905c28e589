"""The documentation: its code runs, its links lead somewhere, its commands and names exist."""

import ast
import contextlib
import importlib.util
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from pages import DOCS, ROOT, blocks, titled
from tiny_experiment import tiny

import pdistill
from pdistill import experiment, samplers
from pdistill.__main__ import COMMANDS, main
from pdistill.cli.config_file import load_config

PAGES = sorted([ROOT / "README.md", ROOT / "reproduce/README.md", *DOCS.rglob("*.md")])
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def executed(page):
    """The names that a page's Python makes, block after block."""
    names = {}
    for info, text in blocks(page):
        if info == "python":
            exec(compile(text, page.name, "exec"), names)
    return names


def test_a_sampler_for_your_own_network():
    names = executed(DOCS / "your_own_network.md")
    assert names["images"].shape == (16, 32, 32, 3)
    assert np.abs(names["images"]).max() <= 1
    exact = pdistill.diffusion.Gaussian(mean=0.0, std=0.5)
    z = jax.random.normal(jax.random.key(0), (9, 8, 8, 1))
    logsnr = jax.numpy.linspace(-12.0, 12.0, 9)
    ours = names["from_velocity"](names["velocity"])(z, logsnr)
    np.testing.assert_allclose(ours, exact.denoise(z, logsnr), atol=1e-4)
    assert abs(names["x"].std() - 0.5) < 0.02
    assert abs(names["jumped"].std() - 0.5) < 0.02
    jumped = names["from_average"](names["average"])(z, logsnr, logsnr + 1)
    np.testing.assert_allclose(jumped, exact.flow(z, logsnr, logsnr + 1), atol=1e-4)
    unit = pdistill.diffusion.Gaussian(mean=0.0, std=1.0)
    np.testing.assert_allclose(
        names["denoise_edm"](z, logsnr), unit.denoise(z, logsnr), rtol=1e-4, atol=1e-6
    )
    assert names["points"].shape == names["others"].shape == (5, 2)


def test_samplers():
    names = executed(DOCS / "samplers.md")
    assert names["x"].shape == (16, 32, 32, 3)
    assert names["nats"].shape == (16,)
    assert f"`z.std()` therefore {names['z'].std():.2f} " in (DOCS / "samplers.md").read_text()


def test_every_solver_is_on_its_page():
    listed = re.findall(r"^\| `(\w+)\(", (DOCS / "samplers.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(solver.__name__ for solver in samplers.SOLVERS.values())


def test_extending(tmp_path, monkeypatch):
    """The page's method, after a tiny teacher, makes in one step what that makes in two.

    With its network and its schedule, which the models have again when they are loaded.
    """
    for name, text in titled(DOCS / "extending.md").items():
        (tmp_path / name).write_text(text)
    assert 40 <= len((tmp_path / "my_method.py").read_text().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as of a console script
    config = load_config("my_network_config.py")
    stage = dict(config.stages[1])
    small = tiny()
    small.model = config.model
    small.stages = (small.stages[0], stage | {"loop": small.stages[0]["loop"], "teacher_steps": 2})
    experiment.run(small, tmp_path / "run")
    student = pdistill.load(tmp_path / "run/knowledge")
    teacher = pdistill.load(tmp_path / "run/teacher")
    key, num = jax.random.key(0), 16
    target = teacher.sample(key, num=num, num_steps=2)
    apart = [
        np.square(m.sample(key, num=num, num_steps=1) - target).mean() for m in (student, teacher)
    ]
    assert apart[0] < apart[1]
    assert student.network.blank == teacher.network.blank.replace(sampler="one_step")
    assert type(student.network.module).__module__ == "my_network"
    for name in ("my_method", "my_network", "my_config"):
        del sys.modules[name]


@EACH
def test_links(page):
    """To files and headings in the repository; addresses elsewhere are not looked at."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page):
    """The names that headings have, as GitHub and mkdocs make them."""
    headings = re.findall("^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def without_code(page):
    return re.sub("^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@EACH
def test_commands_and_configs(page):
    """Commands that a page tells are ours, and the configs in them load."""
    text = page.read_text()
    for command in re.findall(r"^(?:pdistill|python -m pdistill\.) ?(\w+)", text, re.MULTILINE):
        assert command in (*COMMANDS, "main", "data"), command
    found = re.findall(r"pdistill (?:train|show) ([a-z0-9_]+(?::\w+)?)(?![\w.])", text)
    found += re.findall(r"--config=(?:configs/)?([a-z0-9_]+)(?:\.py)?(?::(\w+))?", text)
    for config in found:
        name = config if isinstance(config, str) else ":".join(filter(None, config))
        if name.startswith("own_images") or name.endswith(":imported"):
            continue
        load_config(name)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("train", "plan")])
def test_a_command_says_how_it_is_called(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: pdistill {command} ")


def test_a_plan_tells_its_own_flags():
    """Not those of training, whose program it is, too."""
    told = subprocess.run(
        [sys.executable, "-m", "pdistill", "plan", "--help"], capture_output=True, text=True
    ).stdout
    assert told.startswith("Plans an experiment")
    flags = re.findall(r"^ +--(\S+):", told, re.MULTILINE)
    assert sorted(flags) == ["[no]own_code", "config", "data_shape", "devices"]


def test_modules_that_run_commands():
    """Those that docs/design.md names."""
    page = (DOCS / "design.md").read_text()
    for command in COMMANDS:
        named = re.search(rf"`pdistill\.([\w.]+)` for `{command}`", page)
        module = named[1] if named else command
        found = importlib.util.find_spec(f"pdistill.{module}") is not None
        assert found == (command not in ("plan", "show")), command


def test_configs_that_take_a_teacher():
    """Those that the page lists do, and it lists all that are not small."""
    page = (DOCS / "your_own_teacher.md").read_text()
    section = page.partition("### Which configs take a teacher")[2].partition("\n## ")[0]
    columns = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")]
    listed = re.findall(r"`(\w+_\w+)`", " ".join(columns))
    for name in listed:
        load_config(f"{name}:imported")
    for path in (ROOT / "pdistill/configs").glob("[cfil]*_*.py"):
        if path.stem not in listed and not path.stem.startswith("fashion"):
            with contextlib.suppress(SystemExit):
                stages = load_config(f"{path.stem}:imported").stages
                assert len(stages) == 1, path  # nothing that would learn from a teacher


def test_commands_are_whole():
    """Also in configs: a run has a directory, a teacher whose file names no codec is given one, a
    folder is made first, and no extra puts a copy in the place of an editable installation."""
    for path in [*PAGES, *sorted((ROOT / "pdistill/configs").glob("*.py"))]:
        text = path.read_text()
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        assert not re.search(r"pip install ['\"]?\.", text), path
        for folder in re.findall(r"\bcd (\w+)", text):
            assert f"mkdir -p {folder} && cd {folder}" in text, path
        bare = []
        for command in re.findall(r"^ *(p\S+ .*)$", re.sub(r"\\\n", "", text), re.MULTILINE):
            if "convert" in command and "img512" in command:
                bare += re.findall(r"--out=(\S+)", command)
            if re.match(r"pdistill train|python -m pdistill\.main", command):
                assert re.search("--(workdir|dry_run)", command), command
                teacher = re.search(r"--config\.teacher=(\S+)", command)
                assert not teacher or teacher[1] not in bare or "--config.codec=" in command


def test_what_pages_import_is_in_the_reference():
    """Also notebooks: a package of its index, or a module or name of one of its pages."""
    reference = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    for page in [*PAGES, *(ROOT / "notebooks").glob("*.ipynb")]:
        text = page.read_text()
        imports = re.findall(r'^[ "]*from (pdistill[\w.]*) import ([\w, ]+)', text, re.MULTILINE)
        named = re.findall(r"`(pdistill\.runtime[\w.]*)\.(\w+)\(", text)
        for module, names in imports + named:
            if f"| [{module}](" not in reference and f"::: {module}\n" not in reference:
                for name in names.split(", "):
                    assert f"::: {module}.{name}\n" in reference, (module, name)


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_results_has_what_the_readme_has():
    """Each config with a figure of ours."""
    section = (ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.search(r"`\w+_\w+(:\w+)?`", line)]
    measured = [re.findall(r"`([\w:*]+)`", line) for line in rows if "not run" not in line]
    assert len(measured) > 10
    page = (DOCS / "results.md").read_text()
    assert [name for names in measured for name in names if f"`{name}`" not in page] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180

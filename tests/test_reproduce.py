"""The scripts of reproduce/ to their last lines, with random weights of the published layouts.

Bash runs a script and notes its commands, which this process then runs, each in its turn.
"""

import json
import lzma
import os
import pickletools
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from pages import ROOT
from PIL import Image

import pdistill
from pdistill import experiment
from pdistill.__main__ import main
from pdistill.cli import config_file
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.runtime.files import read_jsonl

sys.path.append(str(Path(__file__).parent / "interop"))
from comparison import checkpoint
from sit_reference import state_dict

FIXTURES = ROOT / "tests/fixtures/interop"
SCRIPTS = sorted(ROOT.glob("reproduce/*_*.sh"))
# Of each student: its directory, its evaluations, and the stages of its run.
STUDENTS = {
    "edm_cifar10_uncond": ("ect", {1, 2}),
    "edm_cifar10_cond": ("dmd", {1}),
    "edm_imagenet64": ("dmd", {1}),
    "dit_imagenet256": ("guided_progressive/1", {1}),
    "sit_imagenet256": ("mean_flow", {1}),
}
NOTE = """#!/usr/bin/env python3
import json, sys
with open({path!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def edm(name):
    """A pickle of EDM's, with images of 8 x 8; without labels it has another's preconditioning."""
    data = lzma.decompress((FIXTURES / f"edm/{name}.pkl.xz").read_bytes())

    def text(value):
        return b"\x8c" + bytes([len(value)]) + value

    def number(value):
        return b"G" + struct.pack(">d", value)

    for old, new in (("VPPrecond", "EDMPrecond"), ("beta_d", "sigma_data")):
        data = data.replace(text(old.encode()), text(new.encode()))
    return pickletools.optimize(data.replace(number(19.9), number(0.5)))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Files as the scripts name them: four classes, images of 8 x 8, latents of 4 x 4."""
    folder = tmp_path_factory.mktemp("reproduce")
    rng = np.random.default_rng(0)
    for name, source in (
        ("cifar10-32x32-uncond-vp", "ddpmpp_vp"),
        ("cifar10-32x32-cond-vp", "ddpmpp_edm"),
        ("imagenet-64x64-cond-adm", "adm_edm"),
    ):
        (folder / f"edm-{name}.pkl").write_bytes(edm(source))
    layout = {"outputs": 8, "width": 384, "depth": 1, "heads": 6, "side": 2, "labels": 4}
    for name in ("DiT-XL-2-256x256", "SiT-XL-2-256x256"):
        checkpoint(folder / f"{name}.pt", state_dict(**layout), keys=())
    with zipfile.ZipFile(FIXTURES / "codecs/kl.zip") as archive:
        archive.extractall(folder / "sd-vae-ft-ema")
    for name in ("cifar10-32x32", "imagenet-64x64", "VIRTUAL_imagenet256_labeled"):
        np.savez(folder / f"{name}.npz", mu=np.zeros(192), sigma=0.1 * np.eye(192))
    for label in "abcd":
        (folder / "imagenet" / label).mkdir(parents=True)
        for number, pixels in enumerate(rng.integers(0, 256, (8, 8, 8, 3), np.uint8)):
            Image.fromarray(pixels).save(folder / "imagenet" / label / f"{number}.png")
    data = f"--data_dir={folder / 'data'}"
    with pytest.MonkeyPatch.context() as patch:  # a name that is kept for the published set
        patch.setattr("pdistill.data.prepare._check_name", lambda _: None)
        main(
            ["prepare", f"--images={folder / 'imagenet'}", "--name=cifar10", "--resolution=8", data]
        )
    return folder


def commands(script, downloads, runs, scale):
    """The arguments of each call of pdistill that a script makes."""
    shim, path = runs / "bin", runs / "commands"
    shim.mkdir(parents=True)
    (shim / "pdistill").write_text(NOTE.format(path=str(path)))
    (shim / "pdistill").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{shim}:{os.environ['PATH']}", "DOWNLOADS": str(downloads), "RUNS": str(runs),
        "IMAGENET": str(downloads / "imagenet"), "TFDS_DATA_DIR": str(downloads / "data"),
        "SCALE": scale,
    }  # fmt: skip
    subprocess.run(["bash", str(script)], env=environment, check=True)
    return list(map(json.loads, path.read_text().splitlines()))


def train(name, *arguments):
    """`pdistill train`."""
    values = config_of(name, *arguments)
    experiment.run(values.config, values.workdir)


def config_of(name, *arguments):
    """The flags of `pdistill train`, which are a program's."""
    values = flags.FlagValues()
    path = f"{config_file.__file__}:{config_file.find_config(name)}"
    arguments = ["train", f"--config={path}", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(arguments)
    config_file.check_overrides(values.config, arguments)
    return values


def test_scripts_are_those_of_the_table():
    assert [script.stem for script in SCRIPTS] == sorted(STUDENTS)


# U-Nets take a minute or two to compile.
@pytest.mark.parametrize(
    "script",
    [
        script if script.stem == "sit_imagenet256" else pytest.param(script, marks=pytest.mark.slow)
        for script in SCRIPTS
    ],
    ids=lambda script: script.stem,
)
def test_a_script_to_its_last_line(script, downloads, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(downloads / "data"))
    for command, *arguments in commands(script, downloads, tmp_path, "small"):
        train(*arguments) if command == "train" else main([command, *arguments])
    student, evaluations = STUDENTS[script.stem]
    run = tmp_path / script.stem
    rows = read_jsonl(run / "rows.jsonl")
    assert rows[0]["nfe"] > max(evaluations)  # the teacher's
    assert {row["nfe"] for row in rows if row["stage"] == student} == evaluations
    assert all(np.isfinite(row["value"]) for row in rows)
    assert pdistill.load(run / "run" / student).image_shape == (8, 8, 3)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_trains_follows_from_its_teacher(script, downloads, tmp_path, monkeypatch):
    """Files are converted, data prepared, and the stages planned, up to the student's."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(downloads / "data"))
    for command, *arguments in commands(script, downloads, tmp_path, "small"):
        if command == "train":
            runs = plan(parse(as_plain(config_of(*arguments).config)), (8, 8, 3))
            break
        if command == "convert" or (command == "prepare" and "--images" in arguments[0]):
            main([command, *arguments])
    *_, last = runs.values()
    assert last.name == STUDENTS[script.stem][0]
    assert last.image_shape == (8, 8, 3)
    assert {run.run.loop.num_updates for run in runs.values() if run.trains} == {2}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_at_full_scale_a_script_measures_as_the_papers(script, downloads, tmp_path):
    """FID of 50,000 samples; nothing of a config is changed but its teacher. Files are listed."""
    found = commands(script, downloads, tmp_path, "full")
    for command, *arguments in found:
        if command == "train":
            changes = [a.partition("=")[0] for a in arguments if a.startswith("--config.")]
            assert sorted(changes) == ["--config.seed", "--config.teacher"]
        if command == "evaluate":
            assert {"--metrics=fid", "--num_samples=50000"} <= set(arguments)
    said = (ROOT / "reproduce/README.md").read_text()
    assert f"[`{script.name}`]({script.name})" in said
    for name in re.findall(r"DOWNLOADS/([\w.-]+)", script.read_text()):
        assert f"#   {name}" in script.read_text()
        assert (downloads / name).exists()


def test_another_scale_is_refused(downloads, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        commands(SCRIPTS[0], downloads, tmp_path, "medium")

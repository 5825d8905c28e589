"""The variant `imported` of configs, and the page that walks through it."""

import contextlib
import os
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from pages import DOCS, ROOT, blocks
from test_configs import SHAPES

import pdistill
from pdistill import experiment
from pdistill.__main__ import main
from pdistill.cli.config_file import load_config
from pdistill.diffusion import DdpmSchedule, KarrasSchedule
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.interop.conversion import Conversion, teacher_card, write_model
from pdistill.methods.parts.balance import find_layer
from pdistill.networks import DhariwalUNet, DiffusersUNet, DiT, Network, SongUNet
from pdistill.runtime.mesh import make_mesh

PAGE = DOCS / "your_own_teacher.md"
EDM = {"channels": 16, "multipliers": (1, 2), "blocks": 0, "attention_sizes": ()}
DIFFUSERS = DiffusersUNet(
    3, channels=(8, 16), blocks=1, groups=4, middle_groups=4, resample_down=("conv",),
    resample_up=("conv",), wave_channels=8, embedding_channels=16,
)  # fmt: skip
GREY = DiT(1, features=8, depth=1, heads=2)
# Teachers as `convert` makes them, in small: of CIFAR-10 without and with labels, of ImageNet.
TEACHERS = {
    "edm": (SongUNet(3, **EDM), "v", KarrasSchedule(), (32, 32, 3)),
    "guided": (SongUNet(3, num_labels=10, **EDM), "v", KarrasSchedule(), (32, 32, 3)),
    "diffusers": (DIFFUSERS, "eps", DdpmSchedule(), (32, 32, 3)),
    "imagenet": (DhariwalUNet(3, num_labels=1000, **EDM), "v", KarrasSchedule(), (64, 64, 3)),
    "grey": (GREY, "v", DdpmSchedule(), (8, 8, 1)),
    "large": (GREY, "v", DdpmSchedule(), (16, 16, 1)),
    "labels": (GREY.clone(num_labels=12), "v", DdpmSchedule(), (8, 8, 1)),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)

    def write(name):
        if not (folder / name).exists():
            module, head, schedule, shape = TEACHERS[name]
            blank = Network(None, module=module, head=head, schedule=schedule, shape=shape)
            network = jax.tree.map(
                lambda a: jnp.asarray(rng.normal(scale=0.1, size=a.shape), a.dtype), blank.shapes
            )
            card = teacher_card(
                network, method="edm", source=name, num_steps=18, guided=name == "guided"
            )
            write_model(folder / name, Conversion(network, card))
        return folder / name

    return write


def with_teacher(config, teacher):
    return ConfigDict(as_plain(load_config(config)) | {"teacher": str(teacher)})


def planned(config, teacher):
    """The experiment of a config's variant, and its runs: few rounds, judges that trace quickly."""
    plain = as_plain(with_teacher(config, teacher))
    quick = {"start_steps": 2, "distance": "pixels", "parts": 2}
    for stage in plain["stages"]:
        stage |= {key: value for key, value in quick.items() if key in stage}
        if "adversary" in stage:
            stage["adversary"]["judges"] = [{"features": "pixels", "halvings": [1], "width": 8}]
    settings = parse(plain)
    return settings, plan(settings, SHAPES[settings.data.name])


@pytest.mark.parametrize(
    ("config", "teacher", "traced"),
    [
        ("cifar10_pd:imported", "edm", "progressive/1"),
        ("cifar10_guided:imported", "guided", "guided"),
        ("cifar10_gan_frozen:imported", "diffusers", "gan_frozen"),
        ("cifar10_dmd2:cpu:imported", "edm", "dm_gan"),
        *(
            pytest.param(*longer, marks=pytest.mark.slow)
            for longer in (
                ("cifar10_ctm:imported", "diffusers", "ctm"),
                ("imagenet64_msd:imported", "imagenet", "msd/dmd_1"),
                ("imagenet64_to_512_pagoda:imported", "imagenet", "pagoda/128"),
            )
        ),
    ],
)
def test_every_methods_paper_starts_from_it(directory, config, teacher, traced):
    """Networks, noise levels and layers are the teacher's; a whole update fits together."""
    settings, runs = planned(config, directory(teacher))
    module, head, schedule, _ = TEACHERS[teacher]
    first, *students = runs.values()
    assert first.network.module == module
    assert first.measured_at == (18,)
    assert {run.network.head for run in students} == {head}
    assert students[0].network.schedule == schedule or students[0].run.method.name == "ctm"
    shape = (50_000, *SHAPES[settings.data.name])
    update = trace_update(runs[traced], runs, settings, make_mesh(-1, 1), shape)
    _, metrics = update.traced.out_info
    assert metrics["values"]["loss"].shape == (1,)


def test_a_ctm_student_has_the_teachers_noise_levels(directory):
    """EDM's own; DDPM's first step, of beta = 1e-4, is later."""
    for teacher, least in (("edm", 0.002), ("diffusers", 0.01)):
        _, runs = planned("cifar10_ctm:imported", directory(teacher))
        schedule = runs["ctm"].network.schedule
        assert schedule.sigma_min == pytest.approx(least, rel=1e-3)
        assert schedule.sigma_max == 80


def test_a_one_step_generator_is_called_where_it_is_sampled(directory):
    """At the end of the teacher's schedule, sigma = 80, not at log-SNR -20."""
    _, runs = planned("cifar10_dmd2:imported", directory("edm"))
    generator = runs["dmd"].network
    assert runs["dmd"].run.method.levels(generator) == pytest.approx((-2 * np.log(80),), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "teacher", "message"),
    [
        ("digits_pd:imported", "", "(teacher): which model? Give --config.teacher=DIR"),
        ("digits_pd:imported", "nothing", "(teacher): no model in"),
        ("digits_pd", "grey", "teacher: no stage takes it; the variant imported"),
        ("digits_pd:imported", "edm", "images of 3 channels, but the data has 1"),
        (
            "digits_pd:imported",
            "large",
            "of 16x16 pixels, where its stage is to make images of 8x8",
        ),
        ("digits_pd:imported", "labels", "takes 12 labels, but digits:train has 10 classes"),
        ("digits_guided:imported", "grey", "teacher cannot be guided"),
        ("digits_msd:imported", "grey", "(msd): students need a model with labels"),
    ],
)
def test_teachers_that_do_not_fit(directory, tmp_path, config, teacher, message):
    path = directory(teacher) if teacher in TEACHERS else teacher and tmp_path / teacher
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment.run(with_teacher(config, path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_without_one_teacher_has_no_such_variant(capsys):
    with pytest.raises(SystemExit, match="train one teacher; this one trains both-snr,"):
        main(["show", "digits_ablation:imported"])
    with pytest.raises(SystemExit, match=r"whose first stage trains the teacher; .* method codec"):
        main(["show", "emoji:imported"])
    main(["show", "cifar10_ctm:imported"])  # whole, though no teacher is given yet
    shown = capsys.readouterr().out
    assert "teacher: imported, given nothing" in shown
    assert not re.search("^model", shown, re.MULTILINE)


def test_layers_are_found_or_listed(directory):
    networks = {name: pdistill.load(directory(name)).network for name in ("edm", "diffusers")}
    for name, path in (("edm", "dec.32x32_aux_conv"), ("diffusers", "conv_out")):
        assert find_layer("output", networks[name]) == f"{path}/kernel"
    with pytest.raises(ValueError, match=r"layer: no .* 'up_0/kernel'; give 'output' .*conv_out/k"):
        find_layer("up_0/kernel", networks["diffusers"])
    with pytest.raises(ValueError, match="layer: no layers that learn have 3 outputs"):
        find_layer("output", networks["edm"], ("aux_conv",))


@pytest.mark.slow
def test_the_pages_code_runs(tmp_path):
    """What it shows as bash and as python, in order, in a new folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = [(info, code) for info, code in blocks(PAGE) if info in ("bash", "python")]
    assert {language for language, _ in shown} == {"bash", "python"}
    variables = {}
    with contextlib.chdir(tmp_path):
        for language, code in shown:
            if language == "python":
                exec(code, variables)
                continue
            done = subprocess.run(
                ["bash", "-ec", code], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    assert variables["images"].shape == (16, 8, 8, 1)

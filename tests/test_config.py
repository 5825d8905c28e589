import contextlib
import functools
import json
import math
import operator
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from pdistill import configs
from pdistill.__main__ import main
from pdistill.cli import config_file
from pdistill.diffusion import CosineSchedule
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.defaults import fill_defaults, filled
from pdistill.experiment.directory import check_seed, claim, is_harmless
from pdistill.experiment.plan import plan
from pdistill.experiment.run import run
from pdistill.features import efficientnet_lite0
from pdistill.methods.parts.presets import PRESETS
from pdistill.model.card import CARD, FORMAT
from pdistill.networks import DiT
from pdistill.runtime import cpu
from pdistill.training import LoopConfig

CONFIGS = Path(configs.__file__).parent
SHAPE = (8, 8, 1)
LOOP = {"num_updates": 40, "batch_size": 8, "log_every": 20, "save_every": 20}
CONFIG = {
    "data": {"name": "digits"},
    "model": {
        "network": {"name": "dit", "arguments": {"features": 8, "heads": 2}},
        "schedule": {"name": "cosine", "arguments": {}},
    },
    "stages": [
        {
            "name": "teacher",
            "method": "teacher",
            "measured_at": [8, 4],
            "loop": LOOP,
            "optimizer": {"learning_rate": 1e-3},
        },
        {
            "name": "pd",
            "method": "progressive",
            "teacher": "teacher",
            "start_steps": 8,
            "end_steps": 2,
            "loop": LOOP,
            "optimizer": {"learning_rate": 1e-3, "anneal": "linear"},
        },
    ],
}
REMOVED = object()


def changed(path, value):
    """CONFIG with another value at "a.b[0].c"."""
    config = json.loads(json.dumps(CONFIG))
    *parents, last = [int(k) if k.isdigit() else k for k in re.findall(r"\w+", path)]
    place = functools.reduce(operator.getitem, parents, config)
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return config


# --- Configs that can run -----------------------------------------------------------------------


def test_digits_config():
    config = runpy.run_path(str(CONFIGS / "digits_pd.py"))["get_config"]()
    settings = parse(as_plain(config))
    assert not settings.wandb  # nothing leaves the machine unless it is said
    runs = list(plan(settings, SHAPE).values())  # as experiment.run does
    names = ["teacher", *(f"progressive/{n}" for n in (32, 16, 8, 4, 2, 1))]
    assert [r.name for r in runs] == names
    assert [r.given for r in runs] == [{}, *({"teacher": name} for name in names[:-1])]
    assert [r.measured_at for r in runs[1:]] == [(32,), (16,), (8,), (4,), (2,), (1,)]
    # As in the paper, the last two rounds are twice as long.
    lengths = [r.run.loop.num_updates for r in runs]
    assert lengths == [2000, 400, 400, 400, 400, 800, 800]
    assert runs[0].run.method.optimizer.num_updates == lengths[0]
    assert [r.arguments["num_updates"] for r in runs[1:]] == lengths[1:]
    assert len({r.run.method for r in runs[1:]}) == 1  # so they share a compiled update
    network = runs[0].network.blank
    assert network.module == DiT(out_channels=1, patch=4, features=96, depth=3, heads=4)
    assert network.schedule == CosineSchedule()
    assert network.head == "v"
    assert all(r.network.blank == network for r in runs)


@pytest.mark.parametrize(
    "path",
    sorted(set(CONFIGS.glob("[a-z]*.py")) - {CONFIGS / "scale.py"}),
    ids=lambda path: path.stem,
)
def test_configs_refuse_unknown_variants(path):
    """With a message that names all that there are."""
    get_config = runpy.run_path(str(path))["get_config"]
    with pytest.raises(ValueError, match="got 'nonesuch'") as error:
        get_config("nonesuch")
    for variant in ("cpu", "gpu", "x", "both", "polish"):
        with contextlib.suppress(ValueError):
            get_config(variant)
            assert f"'{variant}'" in str(error.value)


def test_defaults_and_conversions():
    parsed = parse(changed("stages[0].optimizer.learning_rate", 1))  # an int for a float
    assert parsed.stages[0].method.optimizer.learning_rate == 1.0
    assert isinstance(parsed.stages[0].method.optimizer.learning_rate, float)
    assert parsed.stages[0].measured_at == (8, 4)
    assert parsed.model.head == "v"
    assert parsed.evaluation.references == ("train", "test")
    assert parsed.seed == 0


@pytest.mark.parametrize(
    ("head", "channels"), [("v", 3), ("x", 3), ("eps", 3), ("velocity", 3), ("both", 6)]
)
def test_output_channels_follow_from_the_head_and_the_data(head, channels):
    runs = plan(parse(changed("model.head", head)), (8, 8, 3)).values()
    assert {r.network.module.out_channels for r in runs} == {channels}
    assert {r.network.head for r in runs} == {head}


def test_an_earlier_run_can_be_the_teacher():
    again = {**CONFIG["stages"][1], "name": "again", "teacher": "pd/4", "start_steps": 4}
    config = {**CONFIG, "stages": [*CONFIG["stages"], again]}
    runs = plan(parse(config), SHAPE).values()
    assert [(r.name, r.given.get("teacher")) for r in runs] == [
        ("teacher", None), ("pd/4", "teacher"), ("pd/2", "pd/4"), ("again/2", "pd/4"),
    ]  # fmt: skip


# --- Defaults -----------------------------------------------------------------------------------


def from_command_line(config, *overrides):
    """The config that a program has after flags have changed it."""
    values = flags.FlagValues()
    path = f"{config_file.__file__}:{config_file.find_config(config)}"
    arguments = ["program", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return values.config


def test_a_config_in_the_home(tmp_path, monkeypatch):
    """Whose ~ a shell leaves as it is in --config=~/mine.py."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(config_file.CONFIGS / "digits_pd.py", tmp_path / "mine.py")
    assert from_command_line("~/mine.py") == from_command_line("digits_pd")
    assert config_file.find_config("~/mine.py:a:b") == f"{tmp_path / 'mine.py'}:a:b"


def test_flags_change_what_a_config_does_not_give():
    config = from_command_line(
        "digits_gan",
        "--config.mesh.fsdp=8",
        "--config.stages[0].loop.num_updates=50",
        "--config.stages[1].fixed=dit",
        "--config.stages[1].adversary.r1_interval=4",
        "--config.stages[1].adversary.judges[0].resolution=16",
        "--config.stages[1].optimizer.weight_decay=0.1",
        "--config.stages[1].measured_at=(1,)",
        "--config.stages[1].start=teacher",
    )
    experiment = parse(as_plain(config))
    teacher, gan, *_ = experiment.stages
    assert experiment.mesh.fsdp == 8
    assert teacher.loop.num_updates == 50
    assert (gan.method.fixed, gan.method.optimizer.weight_decay) == ("dit", 0.1)
    assert [judge.resolution for judge in gan.method.adversary.judges] == [16, 0]
    assert gan.method.adversary.r1_interval == 4
    assert (gan.measured_at, gan.given["start"]) == ((1,), "teacher")
    with pytest.raises(AttributeError, match='mean "fsdp" instead of "fsd"'):
        from_command_line("digits_gan", "--config.mesh.fsd=8")


def checked(config, *overrides):
    """The config after flags that are checked as a program's are."""
    config_file.check_overrides(config_file.get_config(config), list(overrides))
    return from_command_line(config, *overrides)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.sead=1", "unknown key 'sead'; did you mean 'seed'?"),
        (
            "--config.stages[0].loop.num_update=5",
            "unknown key 'stages[0].loop.num_update'; did you mean 'num_updates'?",
        ),
        ("--noconfig.wandbb", "unknown key 'wandbb'; did you mean 'wandb'?"),
        ("--config.stages[2].labels=1", "stages has 2 entries; there is no stages[2]"),
        ("--config.stages.labels=1", "unknown key 'stages.labels'; known keys: none"),
        ("--config.seed.x=1", "unknown key 'seed.x'; known keys: none"),
        ("--config.stages[0.labels=1", "--config.stages[0.labels is not a key such as"),
        (
            "--config.stages[0]=5",
            "--config.stages[0] is a dictionary; change one of its keys, name",
        ),
    ],
)
def test_flags_of_keys_that_are_not_there(flag, message):
    with pytest.raises(SystemExit, match="^error: " + re.escape(message)):
        checked("digits_pd", flag)


@pytest.mark.parametrize("key", ["codec", "guide", "text_encoder"])
def test_flags_say_where_the_parts_of_an_imported_teacher_are(key):
    """As the messages advise that do not find them."""
    config = checked("digits_pd:imported", "--config.teacher=A", f"--config.{key}=B")
    assert getattr(parse(as_plain(config)), key) == "B"


@pytest.mark.parametrize("text", ["fid,is", "(fid, is)", "('fid', 'is')", "[fid,is]"])
def test_lists_in_flags(text):
    config = checked(
        "digits_msd",
        f"--config.evaluation.metrics={text}",
        "--config.evaluation.references=train[:50%],test",
        "--config.evaluation.guidance=0.5",
        "--config.stages[0].measured_at=8,4",
        "--config.stages[0].labels=1,2",
        "--config.stages[1].lists=(1,2),(3,)",
    )
    assert as_plain(config)["evaluation"]["metrics"] == ["fid", "is"]
    assert as_plain(config)["evaluation"]["references"] == ["train[:50%]", "test"]
    assert as_plain(config)["evaluation"]["guidance"] == [0.5]
    assert as_plain(config)["stages"][0]["measured_at"] == [8, 4]
    assert as_plain(config)["stages"][0]["labels"] == [1, 2]
    assert as_plain(config)["stages"][1]["lists"] == [[1, 2], [3]]


def test_command_lines_that_are_not_understood(tmp_path):
    """A line each, without a traceback, before anything runs: a word without -- is no change."""
    lines = {
        "": "give the config first, such as digits_pd",
        "digits_pd": "--workdir=DIR must say where the run goes",
        "digits_pd --workdir=r --config.seed=abc": "flag --config.seed=abc: ",
        "digits_pd --workdir=r config.seed=5": "what is 'config.seed=5'? a change is --config.KEY=",
    }
    program = (
        "from pdistill.__main__ import main\n"
        f"for line in {list(lines)}:\n"
        "  try: main(['train', *line.split()])\n"
        "  except SystemExit as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"GLIBC_TUNABLES": f"{cpu.TUNABLE}=1"},  # which it would start again for
        capture_output=True,
        text=True,
        timeout=60,
    )
    for got, message in zip(told.stdout.splitlines(), lines.values(), strict=True):
        assert got.startswith(f"error: {message}"), told


def test_defaults_keep_references_and_share_nothing():
    shared = {"num_updates": 8}
    stages = ({"name": "a", "method": "teacher", "loop": shared},) * 2
    config = ConfigDict({"seed": 3, "stages": stages})
    config.twice = config.get_ref("seed") * 2
    whole = fill_defaults(config)
    whole.seed = 5
    whole.stages[0]["loop"]["batch_size"] = 7
    assert whole.twice == 10
    assert whole.stages[1]["loop"]["batch_size"] == 128
    assert "batch_size" not in shared


@pytest.mark.parametrize(
    "damage", ["stages", "stages[0]", "stages[1].method", "data", "stages[0].loop"]
)
@pytest.mark.parametrize("value", [None, 3, "text", [], {}])
def test_defaults_leave_errors_to_parse(damage, value):
    config = changed(damage, value)
    if (damage, value) == ("stages", []):
        assert parse(filled(config)) == parse(config)
        return
    with pytest.raises(ConfigError) as before:
        parse(config)
    with pytest.raises(ConfigError) as after:
        parse(filled(config))
    if damage != "stages[0].loop":  # whose missing keys are fewer
        assert str(after.value) == str(before.value)


def test_a_run_that_was_begun_without_defaults_goes_on(tmp_path):
    """config.json has them all; one that has not is compared as if it had."""
    saved(tmp_path / "teacher/model/config.json")
    file, (experiment, whole) = tmp_path / "config.json", (parse(CONFIG), filled(CONFIG))
    runs = plan(experiment, SHAPE)
    claim(tmp_path, CONFIG, experiment.stages, runs, {})
    assert json.loads(file.read_text())["config"] == json.loads(json.dumps(whole))
    file.write_text(json.dumps({"config": CONFIG}))
    claim(tmp_path, whole, experiment.stages, runs, {})
    changed = json.loads(json.dumps(whole))
    changed["stages"][0]["optimizer"]["b1"] = 0.5
    with pytest.raises(ConfigError, match=r"stages\[0\].optimizer.b1: 0.9 -> 0.5"):
        claim(tmp_path, changed, experiment.stages, runs, {})


def saved(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def unsaved(tmp_path):
    """`claim` of a directory that has what a run of CONFIG may leave before its first save."""
    experiment = parse(CONFIG)
    claimed = functools.partial(
        claim, tmp_path, stages=experiment.stages, runs=plan(experiment, SHAPE)
    )
    (tmp_path / "results.jsonl").touch()
    claimed(CONFIG, images={"content": "a"})
    (tmp_path / "teacher/checkpoints").mkdir(parents=True)
    others = ("captions.json", "events.out.tfevents.1.host", ".lock")
    for name in ("text/scale.npz", "text/known.npz", "text/prompts.json", *others):
        saved(tmp_path / name)
    for name in ("text/centres_2.npy", "captions/1-2/00000-pooled.npy", "latents/8/moments.json"):
        saved(tmp_path / name)
    for name in ("codec.json", "log.jsonl", "selection.jsonl", "parameters.txt"):
        saved(tmp_path / "teacher" / name)
    return claimed


@pytest.mark.parametrize(
    "made", ["pd/4/model/config.json", "teacher/checkpoints/10/d/data", "text/mine.txt", "linked"]
)
def test_a_run_that_has_saved_nothing_is_begun_with_another_config(tmp_path, unsaved, made):
    """As after a mistake in the first one; also on other images."""
    unsaved(CONFIG | {"seed": 1}, images={"content": "b"})
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seed"] == 1
    assert not (tmp_path / "text").exists()  # whose scale is of the other data
    assert not (tmp_path / "captions.json").exists()
    assert not (tmp_path / "latents").exists()  # of the other images
    assert not (tmp_path / "teacher/codec.json").exists()  # of the other codec
    if made == "linked":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "pd").symlink_to(tmp_path / "elsewhere")
    else:
        saved(tmp_path / made)
    with pytest.raises(ConfigError, match="on other training images"):
        unsaved(CONFIG | {"seed": 1}, images={"content": "c"})
    with pytest.raises(ConfigError, match="seed: 1 -> 2"):
        unsaved(CONFIG | {"seed": 2}, images={"content": "b"})
    assert made == "linked" or (tmp_path / made).exists()


REMNANTS = (
    "wandb_id.txt", "wandb/run-1/files/x", "teacher/checkpoints/8.orbax-checkpoint-tmp/state/x",
    "latents/8/00000.npy.tmp-0123456789ab", "text.tmp-0123456789ab/prompts.json",
    "config.json.tmp-0123456789ab", "teacher/profile/plugins/profile/1/x", "teacher/.nfs0000001a",
)  # fmt: skip


@pytest.mark.parametrize("left", REMNANTS)
def test_remnants_of_a_kill_are_nothing_saved(tmp_path, unsaved, left):
    """Before the first save, of a library as of ours; folders of such names are not."""
    saved(tmp_path / left)
    if left.startswith("wandb/"):
        (tmp_path / "wandb/latest-run").symlink_to("run-1")
    unsaved(CONFIG | {"seed": 1}, images={})
    assert (tmp_path / left).exists() == (".tmp-" not in left and left != "wandb_id.txt")
    saved(tmp_path / f"{left.partition('/')[0]}_/model/model.json")
    with pytest.raises(ConfigError, match="seed: 1 -> 2"):
        unsaved(CONFIG | {"seed": 2}, images={})


def test_another_config_is_another_run_of_wandb(tmp_path, unsaved):
    """The same one, or one that has saved, goes on in the run that it has begun there."""
    name = tmp_path / "wandb_id.txt"
    saved(name)
    unsaved(CONFIG, images={"content": "a"})
    assert name.exists()
    unsaved(CONFIG | {"seed": 1}, images={"content": "a"})
    assert not name.exists()
    for path in (name, tmp_path / "teacher/model/model.json"):
        saved(path)
    unsaved(CONFIG | {"seed": 1, "wandb": True}, images={"content": "a"})
    assert name.exists()


def test_a_start_leaves_what_other_commands_write(tmp_path, unsaved):
    """As `pdistill average --run=RUN/teacher --out=RUN/teacher_07` does beside a run."""
    saved(tmp_path / "teacher/model/model.json")
    token = "0123456789ab"
    others = [tmp_path / f"{name}.tmp-{token}" for name in ("teacher_07", "grid.png", "more/a")]
    names = ("teacher/model", "results.jsonl", "latents/8/00000.npy", "events.out.events.1")
    ours = [tmp_path / f"{name}.tmp-{token}" for name in names]
    for path in (*others, *ours):
        saved(path / "file")
    unsaved(CONFIG, images={})
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in ours)


def test_a_run_knows_by_which_code_it_was_started(tmp_path, unsaved, monkeypatch):
    """All of it: a last start need not have trained anything."""
    saved(tmp_path / "teacher/model/model.json")
    about = {}
    for commit in ("first", "second", "second", "first", "third"):
        monkeypatch.setattr("pdistill.experiment.directory.git_commit", lambda c=commit: c)
        unsaved(CONFIG, images={})
        about = json.loads((tmp_path / "config.json").read_text())
    before = [each["commit"] for each in about["earlier"]]
    assert about["commit"] == "third"
    assert before[-2:] == ["first", "second"]
    assert set(about["earlier"][-1]) == {"commit", "versions"}


def claim_of_length(workdir, stages, num_updates):
    """`claim` with stages of which the last has so many updates."""
    *others, last = stages
    config = CONFIG | {"stages": [*others, last | {"loop": LOOP | {"num_updates": num_updates}}]}
    experiment = parse(config)
    claim(workdir, config, experiment.stages, plan(experiment, SHAPE), {})


def done(directory, updates, saves):
    """A model of so many updates, and checkpoints."""
    card = {"format": FORMAT} | dict.fromkeys(CARD) | {"train_steps": updates}
    saved(directory / "model/model.json")
    (directory / "model/model.json").write_text(json.dumps(card))
    for step in saves:
        (directory / f"checkpoints/{step}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("saves", "new", "allowed"),
    [
        ((), 40, True),
        ((20, 40), 40, True),
        ((40,), 50, True),
        ((), 30, False),
        ((40, 50), 60, False),
    ],
)
def test_too_many_updates_are_taken_back(tmp_path, saves, new, allowed):
    """A last stage of 40 was given 400, and none of them was made; else it is as with any fewer."""
    teacher, _ = CONFIG["stages"]
    claimed = functools.partial(claim_of_length, tmp_path, [teacher])
    claimed(40)
    done(tmp_path / "teacher", 40, saves)
    claimed(400)
    with contextlib.nullcontext() if allowed else pytest.raises(ConfigError, match="400 -> "):
        claimed(new)


@pytest.mark.parametrize(("long_rounds", "done_updates"), [(0, 40), (4, 80)])
@pytest.mark.parametrize(("new", "allowed"), [(40, True), (30, False)])
def test_too_many_updates_of_one_round_are_taken_back(
    tmp_path, long_rounds, done_updates, new, allowed
):
    """Its run has another name than the stage, and may have twice the config's updates."""
    teacher, students = CONFIG["stages"]
    stages = [teacher, students | {"end_steps": 4, "long_rounds": long_rounds}]
    claimed = functools.partial(claim_of_length, tmp_path, stages)
    claimed(40)
    done(tmp_path / "pd/4", done_updates, [done_updates])
    claimed(400)
    with contextlib.nullcontext() if allowed else pytest.raises(ConfigError, match="400 -> 30"):
        claimed(new)


MORE = CONFIG["stages"][0] | {"name": "pd/more", "measured_at": [2]}
TUNED = MORE | {"name": "tuned", "start": "pd"}


@pytest.mark.parametrize("place", range(4))
def test_stages_are_added_behind_all_others(tmp_path, place):
    """Before one they may be its teacher, as the last run of "pd", or its codec, or its model."""
    stages = [*CONFIG["stages"], TUNED]
    more = [*stages[:place], MORE, *stages[place:]]
    claim_of_length(tmp_path, stages, 40)
    saved(tmp_path / "teacher/model/model.json")
    allowed = place == len(stages)
    with contextlib.nullcontext() if allowed else pytest.raises(ConfigError, match="in: stages: "):
        claim_of_length(tmp_path, more, 40)


@pytest.mark.parametrize(
    ("made", "allowed"),
    [
        ("checkpoints/8.orbax-checkpoint-tmp/state", True),
        ("checkpoints/8/state", False),
        ("model/model.json", False),
    ],
)
def test_a_stage_is_taken_back_until_it_has_saved(tmp_path, made, allowed):
    """Also one that was killed in its first save, and where another is added for it."""
    claim_of_length(tmp_path, [*CONFIG["stages"], TUNED], 40)
    for path in ("teacher/model/model.json", f"tuned/{made}"):
        saved(tmp_path / path)
    with contextlib.nullcontext() if allowed else pytest.raises(ConfigError, match="tuned"):
        claim_of_length(tmp_path, [*CONFIG["stages"], MORE], 40)


@pytest.mark.parametrize(
    "there", ["{", "[]", '{"architectures": []}', json.dumps({"config": CONFIG})]
)
def test_a_config_that_no_run_wrote_is_kept(tmp_path, unsaved, there):
    """A model's, say, or one that is cut short."""
    (tmp_path / "config.json").write_text(there)
    with pytest.raises(ConfigError, match=r"is damaged: .*; --new|seed: 0 -> 1"):
        unsaved(CONFIG | {"seed": 1}, images={})
    assert (tmp_path / "config.json").read_text() == there
    assert (tmp_path / "text/scale.npz").exists()


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_alone_looks_whether_a_run_has_saved(unsaved, monkeypatch, first):
    """The others may look when it has begun to write, and must do as it does."""
    asked = []
    monkeypatch.setattr("jax.process_index", lambda: 0 if first else 1)
    monkeypatch.setattr("pdistill.experiment.directory.in_all", lambda h: asked.append(h) or h)
    monkeypatch.setattr(
        "pdistill.experiment.directory._is_unsaved", lambda workdir: first or pytest.fail("looked")
    )
    unsaved(CONFIG | {"seed": 1}, images={})
    assert asked == [True]


@pytest.mark.parametrize("seed", [-1, 2**32, 10**23])
def test_seeds_that_are_others(tmp_path, seed):
    """A run that has begun with one goes on, but --new begins another."""
    for place in (tmp_path, None):
        with pytest.raises(ConfigError, match=f"seed must be from 0 to 4294967295; got {seed}"):
            check_seed(seed, place)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": seed}}))
    check_seed(seed, tmp_path)
    with pytest.raises(ConfigError, match="seed must be"):
        run(ConfigDict(CONFIG | {"seed": seed}), tmp_path, new=True)
    assert (tmp_path / "config.json").exists()  # nothing was moved


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../b", "a/.", "/tmp/a", "a//b", "a\nb", "a/", "a\\b", "a\x7f"]
)
def test_names_of_stages_that_are_no_folders(name):
    with pytest.raises(ConfigError, match=r"stages\[0\].name must name a folder below"):
        plan(parse(changed("stages[0].name", name)), SHAPE)


@pytest.mark.parametrize("name", ["ctm+gan", "8->4", "a:b/c", "..a", ".a", "a b", "ü"])
def test_names_of_stages_that_are_folders(name):
    teacher = CONFIG["stages"][0] | {"name": name}
    assert list(plan(parse(CONFIG | {"stages": [teacher]}), SHAPE)) == [name]


@pytest.mark.parametrize(
    ("key", "harmless"),
    [
        ("model.network.arguments.remat", True),
        ("model.network.arguments.heads", False),
        ("stages[0].remat", True),  # of an imported teacher
        ("stages[0].dtype", False),
        ("evaluation.batch_size", True),
        ("evaluation.num_samples", False),
        ("stages[1].loop.offload", True),
        ("stages[1].student.loop.log_every", True),
        ("stages[1].student.loop.save_every", True),
        ("stages[1].student.loop.num_updates", False),
        ("stages[1].student.optimizer.learning_rate", False),
        ("stages[1].student.optimizer.microbatches", True),
        ("stages[1].loop.num_updates", False),  # it has several runs
        ("stages[2].loop.num_updates", True),
        ("stages[2].loop.save_every", False),  # among which it selects
    ],
)
def test_changes_that_go_on(key, harmless):
    """Those that change no result, and more updates of a last stage of one run."""
    loop = LoopConfig(**LOOP)
    students, last = SimpleNamespace(name="msd"), SimpleNamespace(name="gan")
    stages = SimpleNamespace(name="teacher"), students, last
    runs = {
        name: SimpleNamespace(name=name, run=SimpleNamespace(select=select, loop=loop))
        for name, select in {"msd/0": "", "msd/1": "", "gan": "fid"}.items()
    }
    assert is_harmless(key, 40, 60, stages, runs) == harmless


@pytest.mark.parametrize(
    ("old", "new", "harmless"),
    [
        (["ddim"], [], True),
        ((), ["ddim"], False),
        (["heun"], [], False),
        (["ddim"], ["edm"], False),
    ],
)
def test_runs_of_before_each_model_had_its_own_solver_go_on(old, new, harmless):
    """Their config.json has the default of then; pictures are of the first solver."""
    assert is_harmless("evaluation.solvers", old, new, (), {}) == harmless


@pytest.mark.parametrize(("preset", "moves"), [("ect", True), ("shortcut", False), ("tcm", False)])
def test_a_run_that_goes_on_says_what_goes_back(tmp_path, capsys, preset, moves):
    teacher, _ = CONFIG["stages"]
    given = {
        "method": "flow_map",
        "name": "last",
        "loop": LOOP,
        "optimizer": {"learning_rate": 1e-3},
    }
    config = CONFIG | {"stages": [teacher, given | PRESETS[preset]]}
    longer = CONFIG | {
        "stages": [teacher, given | PRESETS[preset] | {"loop": LOOP | {"num_updates": 60}}]
    }
    saved(tmp_path / "last/model/config.json")
    for each in (config, longer):
        stages = parse(each).stages
        claim(tmp_path, each, stages, {"last": SimpleNamespace(name="last", run=stages[1])}, {})
    said = " ".join(capsys.readouterr().err.split())
    assert "last goes on to 60 updates instead of 40; an annealed learning rate rises again" in said
    assert ("the levels that cut its jumps go back" in said) == moves


def test_a_run_goes_on_with_its_own_images_alone(tmp_path):
    """What is known of them on both sides is compared; earlier versions had noted nothing."""
    saved(tmp_path / "teacher/model/config.json")
    experiment = parse(CONFIG)
    runs = plan(experiment, SHAPE)
    claimed = functools.partial(claim, tmp_path, CONFIG, experiment.stages, runs)
    claimed({})
    claimed({"files": "f"})  # on disk
    claimed({"files": "f", "content": "c"})  # in memory
    claimed({"files": "f"})
    claimed({"files": "prepared anew", "content": "c"})
    for images, what in (
        ({"files": "prepared anew", "content": "d"}, "other training images than"),
        ({"files": "others"}, "training images of another number, or in"),
    ):
        with pytest.raises(ConfigError, match=f"holds a run on {what}.* are there now"):
            claimed(images)
    claimed({"files": "prepared anew"})
    claimed({"files": "packed anew"}, digest=lambda: "c")  # which is made where it may tell
    with pytest.raises(ConfigError, match="holds a run on other training images than"):
        claimed({"files": "packed anew"}, digest=lambda: "d")


def test_a_reader_that_has_enough_ends_a_command_quietly():
    command = f"{sys.executable} -m pdistill show imagenet64_pd | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("seed")
    assert done.stderr == ""


def test_show_prints_values_and_marks_defaults(capsys, tmp_path):
    main(["show", "digits_pd"])
    shown = capsys.readouterr().out
    assert "progressive: progressive, given teacher = teacher" in shown
    assert re.search(r"^  start_steps +64$", shown, re.MULTILINE)
    assert re.search(r"^  end_steps +1\*$", shown, re.MULTILINE)
    assert "num_updates 400, batch_size 64, save_every 200, substeps 10*" in shown
    assert re.search(r"^mesh +data -1\*, fsdp 1\*$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 100
    main(["show", "configs/cifar10_pd.py:x"])
    assert "weighting    snr_trunc" in capsys.readouterr().out


def test_show_of_a_config_that_needs_a_package(monkeypatch, capsys):
    """It is printed all the same."""
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package")
    main(["show", "cifar10_ctm"])
    shown = capsys.readouterr()
    assert "* default" in shown.out
    assert "needs the package no_such_package" in shown.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_pd:nonesuch", "got 'nonesuch'"),
        ("cifr10_pd", "there is no config 'cifr10_pd'; there are cifar10_pd"),
        ("{tmp}/empty.py", "has no function get_config"),
        ("{tmp}/config.json", "config.json is no config, a .py file with a function get_config"),
        ("{tmp}/plain.py", "get_config must return a ConfigDict; got dict"),
        ("{tmp}/plain.py:cpu", "plain.py has no variants; got 'cpu'"),
        ("{tmp}/missing.py", "there is no config"),
    ],
)
@pytest.mark.parametrize("command", ["show", "train"])
def test_a_config_that_cannot_be_read(command, name, message, tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "plain.py").write_text("def get_config():\n    return {}\n")
    name = name.format(tmp=tmp_path)
    load = from_command_line if command == "train" else lambda name: main(["show", name])
    with pytest.raises(SystemExit, match=re.escape(message)):
        load(name)


@pytest.mark.parametrize("file", ["twice_there.py", "twice_there/__init__.py"])
def test_a_module_beside_a_config_that_is_not_the_one_found(tmp_path, monkeypatch, file):
    monkeypatch.syspath_prepend(tmp_path / "first")
    for folder in ("first", "beside"):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_text("")
    path = tmp_path / "beside/config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'stages': ({'method': 'twice_there:Mine'},)})\n"
    )
    monkeypatch.delitem(sys.modules, "twice_there", raising=False)
    message = rf"module twice_there is of .*/first/{file}, not of .*/beside/{file}: rename this"
    with pytest.raises(SystemExit, match=message):
        config_file.load_config(str(path))
    # Also one that the config's own file imports.
    text = path.read_text()
    path.write_text("import twice_there\n" + text.replace("twice_there:Mine", "teacher"))
    with pytest.raises(SystemExit, match=message):
        config_file.load_config(str(path))
    path.write_text(text)
    (tmp_path / "beside" / file).unlink()  # then there is but one
    assert config_file.load_config(str(path)).stages[0]["method"] == "twice_there:Mine"
    (tmp_path / "beside" / file).symlink_to(tmp_path / "first" / file)  # or the same one
    (tmp_path / "beside/json.py").write_text("")  # not looked for
    (tmp_path / "beside/optax.py").write_text("")  # nor imported by the config
    config_file.load_config(str(path))


# --- Configs that cannot ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Misspelt keys.
        ("modle", {}, "unknown key 'modle'; did you mean 'model'?"),
        ("data.flipp", True, "unknown key 'data.flipp'; did you mean 'flip'?"),
        ("data.zzz", 1, "unknown key 'data.zzz'; known keys: name, train, flip, resident"),
        (
            "stages[1].optimizer.learning_rat",
            1e-3,
            "unknown key 'stages[1].optimizer.learning_rat'; did you mean 'learning_rate'?",
        ),
        ("stages[0].start_steps", 4, "unknown key 'stages[0].start_steps'"),
        # Missing keys.
        ("data", REMOVED, "missing key 'data'"),
        ("model.network.name", REMOVED, "missing key 'model.network.name'"),
        ("stages[0].loop.num_updates", REMOVED, "missing key 'stages[0].loop.num_updates'"),
        ("stages[1].method", REMOVED, "stages[1] must be a dictionary with name and method"),
        # Wrong types.
        ("data", "digits", "data must be a dictionary; got 'digits'"),
        ("data.flip", 1, "data.flip must be bool; got 1"),
        ("data.name", None, "data.name must be str; got None"),
        ("seed", True, "seed must be int; got True"),
        ("seed", 0.5, "seed must be int; got 0.5"),
        ("stages", "teacher", "stages must be a tuple; got 'teacher'"),
        ("stages[1]", 3, "stages[1] must be a dictionary"),
        ("stages[0].measured_at", 8, "stages[0].measured_at must be a tuple; got 8"),
        ("stages[0].measured_at[1]", "4", "stages[0].measured_at[1] must be int; got '4'"),
        (
            "stages[0].optimizer.learning_rate",
            "1e-3",
            "stages[0].optimizer.learning_rate must be float; got '1e-3'",
        ),
        ("model.network.arguments", 5, "model.network.arguments must be a dictionary; got 5"),
        # Values.
        (
            "stages[1].method",
            "progresive",
            "stages[1].method must be one of teacher, progressive, guided, gan, direct, dmd, "
            "score_matching, multi_student, ctm, flow_map, pagoda, upsampled, lowdiff, codec, "
            "imported, or a class of your own as module:Class; got 'progresive'",
        ),
        ("stages[0].optimizer.learning_rate", -1.0, "stages[0].optimizer: learning_rate must be"),
        ("stages[0].optimizer.learning_rate", math.inf, "learning_rate must be a finite number"),
        ("stages[0].optimizer.clip_norm", math.nan, "clip_norm must be a finite number; got nan"),
        ("model.network.arguments.dropout", math.nan, "arguments.dropout must be a finite number"),
        ("stages[0].optimizer.anneal", "cos", "stages[0].optimizer: anneal must be one of"),
        ("stages[1].loop.batch_size", 0, "stages[1].loop: batch_size must be at least 1; got 0"),
        (
            "stages[1].loop.log_every",
            15,
            "stages[1].loop: log_every must be a multiple of substeps=10; got 15",
        ),
    ],
)
def test_config_that_does_not_parse(path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages[1].start_steps", 12, r"stages\[1\]: .*power of two.*start_steps=12"),
        ("stages[1].end_steps", 8, r"stages\[1\]: .*start_steps=8 and end_steps=8"),
        ("stages[1].end_steps", 0, r"stages\[1\]: .*start_steps=8 and end_steps=0"),
        ("stages[1].optimizer.warmup", 40, r"stages\[1\] \(pd\): .*num_updates above warmup"),
        ("stages[1].teacher", "techer", r"starts from 'techer', .*there are: teacher"),
        ("stages[1].teacher", "pd/2", r"\(pd/4\): it starts from 'pd/2', which no earlier"),
        ("stages[1].teacher", REMOVED, r"stages\[1\] \(pd/4\): it needs 'teacher'"),
        ("stages[0]", CONFIG["stages"][1], "starts from 'teacher', .*there are: none"),
        ("stages[1]", CONFIG["stages"][0], r"stages\[1\]\.name: 'teacher' is used twice"),
        ("model.network.name", "dti", "model.*network must be one of dit.*; got 'dti'"),
        ("model.network.arguments.depht", 2, "model.*'dit' has no 'depht'"),
        ("model.network.arguments.depth", 10**9, "depth must be at most 1,000,000; got 1,000,000"),
        ("model.network.arguments.depth", 10**6, "has 1,000,000 blocks; it can have 1,000"),
        ("model.network.arguments.dtype", "float31", "model.*float31"),
        ("model.network.arguments.patch", 3, "model.*patch 3 must divide the image size 8x8"),
        ("model.network.arguments.heads", 3, "model.*heads 3 must divide features 8"),
        ("model.schedule.name", "cosin", "model.*schedule must be one of .*; got 'cosin'"),
        ("model.schedule.arguments.slope", 2.0, "model.*'cosine' has no 'slope'"),
        (
            "model.head",
            "eps_variance",
            "head 'eps_variance' has a learnt variance, which nothing here trains",
        ),
        (
            "model.head",
            "w",
            "model.*head must be one of v, x, eps, both, velocity, eps_variance; got 'w'",
        ),
        ("stages[0].weighting", "snrr", r"stages\[0\].*weighting must be one of .*; got 'snrr'"),
        ("stages[0].measured_at", [], r"stages\[0\].*measured_at"),
        ("stages[0].measured_at", [8, 0], r"stages\[0\].*measured_at.*at least 1"),
        ("evaluation", {"batch_size": 0}, "evaluation.*batch_size must be at least 1; got 0"),
        ("evaluation", {"num_samples": -1}, "evaluation.*num_samples"),
    ],
)
def test_config_without_a_run(path, value, message):
    """Found before anything is compiled, by `parse` or by the plan."""

    with pytest.raises(ConfigError, match=message):
        plan(parse(changed(path, value)), SHAPE)


@pytest.mark.parametrize("key", ["loop.max_grad_norm", "optimizer.clip_norm"])
def test_infinity_is_no_limit(key):
    parse(changed(f"stages[0].{key}", math.inf))
    for value in (-math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"{key} must be a finite number; got {value}"):
            parse(changed(f"stages[0].{key}", value))


def test_methods_that_only_the_directory_names_are_not_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs_alone.py").write_text("raise RuntimeError")
    experiment = parse(CONFIG)
    teacher, *others = CONFIG["stages"]
    before = CONFIG | {"stages": [teacher | {"method": "theirs_alone:Mine"}, *others]}
    (tmp_path / "config.json").write_text(json.dumps({"config": before}))
    saved(tmp_path / "teacher/model/config.json")
    message = r"another config; .*stages\[0\].method: 'theirs_alone:Mine' -> 'teacher'"
    with pytest.raises(ConfigError, match=message):
        claim(tmp_path, CONFIG, experiment.stages, plan(experiment, SHAPE), {})


def test_a_run_of_an_earlier_version_is_one_message(tmp_path):
    """Its config has keys that this version does not know: in 0.1.0 a teacher had num_steps."""
    experiment = parse(CONFIG)
    runs = plan(experiment, SHAPE)
    teacher, *others = CONFIG["stages"]
    earlier = {key: value for key, value in teacher.items() if key != "measured_at"}
    before = CONFIG | {"stages": [earlier | {"num_steps": [4]}, *others]}
    (tmp_path / "config.json").write_text(json.dumps({"config": before}))
    saved(tmp_path / "teacher/model/config.json")
    with pytest.raises(ConfigError, match=r"another version of pdistill.*num_steps.*--new"):
        claim(tmp_path, CONFIG, experiment.stages, runs, {})

import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pdistill import model as models
from pdistill import sample
from pdistill.cli import (
    average,
    compare,
    convert,
    evaluate,
    export,
    pairs,
    partition,
    prepare,
    report,
)
from pdistill.cli.options import Parser, read_prompts
from pdistill.data import to_uint8
from pdistill.diffusion import CosineSchedule
from pdistill.evaluation import load_images, load_reference
from pdistill.networks import DiT, Network
from pdistill.runtime import compilations
from pdistill.runtime.lock import writing

SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    rng = np.random.default_rng(0)
    module = DiT(1, features=8, depth=1, heads=2, num_labels=3)
    blank = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=SHAPE)
    network = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(scale=0.3, size=a.shape), a.dtype), blank.shapes
    )
    directory = tmp_path_factory.mktemp("models") / "model"
    models.save(
        directory, network, kind="denoiser", solver="ddim", num_steps=2,
        clip=(-1.0, 1.0), data={"shape": SHAPE}, guidance=None, stage="teacher",
        method="teacher", train_steps=1, images_seen=1,
    )  # fmt: skip
    return directory


@pytest.mark.parametrize(
    ("flags", "key", "options", "scale"),
    [
        ([], 0, {}, 43),  # three images a row of about 512 pixels
        (
            ["--seed=3", "--label=1", "--num_steps=1", "--scale=2"],
            3,
            {"label": 1, "num_steps": 1},
            2,
        ),
        (
            ["--solver=edm:4", "--num_steps=3", "--scale=1"],
            0,
            {"solver": "edm:4", "num_steps": 3},
            1,
        ),
    ],
    ids=["defaults", "options", "solver"],
)
def test_picture_holds_the_models_samples(directory, tmp_path, capsys, flags, key, options, scale):
    out = tmp_path / "new/grid.png"
    sample.main([f"--model={directory}", "--num=5", f"--out={out}", *flags])
    assert str(out) in capsys.readouterr().out
    picture = Image.open(out)
    # Two rows of three images, 4 pixels each, with lines of one pixel between and around them.
    assert picture.size == (scale * 16, scale * 11)
    pixels = np.asarray(picture)[scale // 2 :: scale, scale // 2 :: scale]
    options = {"label": np.arange(5) % 3} | options  # they take turns
    desired = to_uint8(models.load(directory).sample(jax.random.key(key), 5, **options))
    for i in range(5):
        top, left = 1 + 5 * (i // 3), 1 + 5 * (i % 3)
        np.testing.assert_array_equal(
            pixels[top : top + 4, left : left + 4], np.repeat(desired[i], 3, axis=-1)
        )


def draw(directory, *flags):
    sample.main([f"--model={directory}", *flags])


def test_labels_by_their_names(directory, tmp_path):
    named = tmp_path / "named"
    shutil.copytree(directory, named)
    models.change_card(named, label_names=["cat", "red dog", "3"])
    model = models.load(named)
    key = jax.random.key(0)
    for label, number in (("red dog", 1), (["3", "cat"], [2, 0])):
        images = model.sample(key, 2, label=label)
        np.testing.assert_array_equal(images, model.sample(key, 2, label=number))
    draw(named, "--num=3", "--label=red dog,cat", f"--out={tmp_path / 'images.npz'}")
    assert np.load(tmp_path / "images.npz")["label"].tolist() == [1, 0, 1]
    for label, numbers in (("3,cat", [2, 0, 2]), ("0-1", [0, 1, 0])):  # a name is one if it can be
        draw(named, "--num=3", f"--label={label}", f"--out={tmp_path / 'images.npz'}")
        assert np.load(tmp_path / "images.npz")["label"].tolist() == numbers
    with pytest.raises(SystemExit, match="no label is called 'bird'; names of labels: cat, red d"):
        draw(named, "--label=bird")
    with pytest.raises(ValueError, match="no label is called 'cat'; names of labels: none"):
        models.load(directory).sample(key, 1, label="cat")


def test_an_array_has_many_labels(directory, tmp_path, capsys):
    """Labels take turns; batches are drawn one after the other, of the same stream."""
    out = tmp_path / "samples.npz"
    draw(directory, "--num=19", "--label=0-2", "--batch_size=8", f"--out={out}")
    assert capsys.readouterr().out == f"19 images, 2 steps -> {out}\n"
    found = np.load(out)
    label = np.arange(19) % 3
    np.testing.assert_array_equal(found["label"], label)
    desired = to_uint8(models.load(directory).sample(jax.random.key(0), 19, label=label))
    np.testing.assert_allclose(found["images"].astype(float), desired, atol=1)
    assert load_images(out).shape == (19, *SHAPE)


def test_a_folder_has_a_picture_for_each_seed(directory, tmp_path):
    """Each is the first image of its seed, whatever the others are."""
    out = tmp_path / "pictures"
    draw(directory, "--seeds=3,70-71", f"--out={out}")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000003.png", "000070.png", "000071.png"]
    model = models.load(directory)
    for label, name in enumerate(names):
        [desired] = to_uint8(model.sample(jax.random.key(int(name[:6])), 1, label=label))
        picture = np.asarray(Image.open(out / name)).astype(float)
        np.testing.assert_allclose(picture, desired[..., 0], atol=1)
    with pytest.raises(SystemExit, match="pictures is not empty; give a new folder"):
        draw(directory, "--num=2", f"--out={out}")


def test_a_runs_own_samples_are_not_replaced(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "stage/model")
    own = tmp_path / "stage/samples.npz"
    own.write_bytes(b"own")
    with pytest.raises(SystemExit, match="what the run keeps of its own samples"):
        draw(tmp_path / "stage", "--num=2", f"--out={own}")
    assert own.read_bytes() == b"own"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nowhere", "error: no model in nowhere"),
        ("--num=0", "error: num must be at least 1; got 0"),
        ("--num_steps=0", "error: num_steps must be at least 1; got 0"),
        ("--label=3", r"error: labels must be in 0 \.\. 2"),
        ("--out=images.NPZ", r"error: --out must be a folder, \.npz or .*; got images\.NPZ"),
        ("--seeds=0-4", "error: --seeds gives each image its seed"),
        ("--label=a", "error: --label: give numbers such as 3, 1,5,7 or 0-9; got 'a'"),
        ("--label=-1", "error: --label: give numbers"),
        ("--solver=hoyn", "error: solver must be one of ddim"),
    ],
)
def test_errors_are_one_message(directory, tmp_path, monkeypatch, flag, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        sample.main([f"--model={directory}", "--num=5", flag])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--prompt=a", "takes no prompts; leave --prompt out"),
        ("--prompts=prompts.txt", "takes no prompts; leave --prompts out"),
        ("--scale=-1", "error: --scale must be at least 1; got -1"),
        ("--out=grid.w0", r"error: .*; got grid.w0: if that is to be a folder, write grid.w0/"),
        ("--out=/proc/x.png", r"error: cannot write into /proc: "),
        ("--out=/proc/x/", r"error: cannot write into /proc: "),
        ("--out=/proc", r"error: /proc is not empty; give a new folder"),
        (f"--out={__file__}/x.npz", r"error: cannot write into .*test_sample.py: it is no folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_images_are_drawn(
    directory, monkeypatch, flag, message
):
    monkeypatch.setattr("pdistill.cli.sample.generate_batches", None)
    with pytest.raises(SystemExit, match=message):
        draw(directory, "--num=5", flag)


def test_latents_of_as_many_channels_as_pictures_have(directory, tmp_path):
    """As of a VQ autoencoder, which no codec here decodes; each command made pictures of them."""
    latents, out = shutil.copytree(directory, tmp_path / "latents"), tmp_path / "out.npz"
    card = json.loads((latents / "model.json").read_text())
    card["data"] |= {"scale": "latents"}
    (latents / "model.json").write_text(json.dumps(card))
    np.savez(tmp_path / "images.npz", np.full((4, *SHAPE), 99, np.uint8))
    few = [f"--reference={tmp_path / 'images.npz'}", "--num_samples=2"]
    what = f"{latents} makes latents of 1 channels, which are no pictures; give --codec"
    for command, arguments in (
        (sample, [f"--model={latents}", f"--out={out}", "--num=2"]),
        (evaluate, [f"--model={latents}", "--metrics=fd_pixels", *few]),
        (compare, [f"--teacher={latents}", f"--students={directory}@2", *few]),
        (compare, [f"--teacher={directory}", f"--students={latents}@2", *few]),
    ):
        with pytest.raises(SystemExit, match=re.escape(what)):
            command.main(arguments)
    assert not out.exists()
    sample.main([f"--model={latents}", f"--out={out}", "--num=2", "--latents"])
    assert np.load(out)["latents"].shape == (2, *SHAPE)


def test_folders_are_whole_or_not_there(directory, tmp_path, monkeypatch):
    """Also with a name that looks like a file's, if it ends with / or is there, and then stays."""
    (tmp_path / "b.png").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "b.png")  # which a mount and a folder below another's are like
    for name in ("a_0.5/", "."):
        draw(directory, "--num=2", f"--out={tmp_path / name if name != '.' else name}/")
    monkeypatch.chdir(tmp_path)
    for name in ("a_0.5", "b.png"):
        found = sorted(path.name for path in (tmp_path / name).iterdir())
        assert found == ["000000.png", "000001.png"]
    assert (tmp_path / "b.png").stat().st_mode & 0o777 == 0o700
    (tmp_path / "empty").mkdir()
    left = tmp_path / "killed" / "images.tmp-0123456789ab"
    left.mkdir(parents=True)
    (left / "000000.png").touch()
    draw(directory, "--num=1", f"--out={tmp_path}/killed")  # the same command after a SIGKILL
    assert [path.name for path in left.parent.iterdir()] == ["000000.png"]
    shutil.rmtree(left.parent)
    left.mkdir(parents=True)
    with writing(left):  # by a twin that still runs
        with pytest.raises(SystemExit, match=r"another command is writing into .*killed; give a n"):
            draw(directory, "--num=1", f"--out={tmp_path}/killed")
        assert left.exists()
    shutil.rmtree(left.parent)

    def interrupted(*_, **__):
        yield np.zeros((3, 8, 8, 1), np.uint8)
        raise OSError("no more")

    monkeypatch.setattr("pdistill.cli.sample.generate_batches", interrupted)
    with pytest.raises(SystemExit, match="no more"):
        draw(directory, "--num=9", f"--out={tmp_path}/c")
    with pytest.raises(SystemExit, match="no more"):
        draw(directory, "--num=9", f"--out={tmp_path}/empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_0.5", "b.png", "empty"]
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=5-", "give numbers such as 3, 1,5,7 or 0-9; got '5-'"),
        ("--seeds=3-1", "give numbers such as 3, 1,5,7 or 0-9; got '3-1'"),
        ("--seeds=0-999999999", "give at most 5,000,000 numbers; got '0-999999999'"),
        ("--seed=-1", "give a seed from 0 to 4294967295; got '-1'"),
        ("--seed=4294967296", "give a seed from 0 to 4294967295; got '4294967296'"),
        ("--seed=a", "give a seed from 0 to 4294967295; got 'a'"),
    ],
)
def test_what_are_no_numbers(capsys, flag, message):
    with pytest.raises(SystemExit):
        sample.main(["--model=m", flag])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("main", [evaluate.main, pairs.main, compare.main, partition.main])
def test_seeds_of_other_commands(capsys, main):
    with pytest.raises(SystemExit):
        main(["--seed=-1"])
    assert "give a seed from 0 to 4294967295; got '-1'" in capsys.readouterr().err


def test_prompts_in_another_encoding(tmp_path):
    (tmp_path / "prompts.txt").write_text("käse", encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"prompts.txt is not in UTF-8; save it so \('utf-8' codec"
    ):
        read_prompts(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a crab\n", encoding="utf-8-sig")
    assert read_prompts(tmp_path / "prompts.txt") == ["a crab"]


@pytest.mark.parametrize(
    ("main", "names"),
    [
        (average.main, ("run", "out")),
        (compare.main, ("out",)),
        (convert.main, ("source", "out", "statistics")),
        (evaluate.main, ("out", "save_statistics", "prompts")),
        (export.main, ("out", "prompts")),
        (pairs.main, ("out",)),
        (report.main, ("workdirs",)),
    ],
)
def test_paths_in_the_home(main, names, tmp_path, monkeypatch):
    """Whose ~ a shell leaves as it is in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Parser, "parse_args", lambda parser, _: sys.exit(parser))
    with pytest.raises(SystemExit) as found:
        main([])
    types = {action.dest: action.type for action in found.value.code._actions}
    assert [types[name]("~/x") for name in names] == [tmp_path / "x"] * len(names)


def test_samples_in_the_home(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.v2").mkdir()
    for out in ("grid.png", "new/", "some.v2", "images.npz"):
        sample.main([f"--model={directory}", "--num=5", f"--out=~/{out}"])
    written = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.glob("*"))]
    assert written == ["grid.png", "images.npz", "new", "some.v2"]
    assert len(list(tmp_path.glob("new/*.png"))) == len(list(tmp_path.glob("some.v2/*.png"))) == 5
    assert len(load_images("~/images.npz")) == len(load_reference("~/images.npz")) == 5
    assert len(load_reference("~/new")) == 5


@pytest.mark.parametrize(
    ("main", "wrong", "near"),
    [
        (sample.main, ("--promt=a", "--nmu=1", "--other"), "--prompt, --num"),
        (prepare.main, ("--naame=a", "--other"), "--name"),
    ],
)
def test_misspelt_options(main, wrong, near, capsys):
    with pytest.raises(SystemExit):
        main([*wrong, *(("--model=m",) if main is sample.main else ())])
    told = capsys.readouterr().err
    assert told.endswith(f"unrecognized arguments: {' '.join(wrong)}; did you mean {near}?\n")


def test_a_compilation_is_not_silent(directory, tmp_path, monkeypatch, capsys):
    """With a batch of its own, whose program no other test has."""
    monkeypatch.setattr(compilations, "PATIENCE", 0.0)
    sample.main([f"--model={directory}", "--num=17", f"--out={tmp_path / 'grid.png'}"])
    told = capsys.readouterr().err.splitlines()
    assert "sampler still compiles, 0:00" in told
    assert any(re.fullmatch(r"sampler (compiled|taken from .*) in \d+\.\d s", t) for t in told)

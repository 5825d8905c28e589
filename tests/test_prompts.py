"""Prompts from captions beside pictures to samples, by the command line and the public API."""

import contextlib
import dataclasses
import json
import shutil
import sys
import warnings
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_experiment import LOOP, tiny
from tiny_text import PROMPTS_WIDTH, save_encoder
from tiny_vision import save_clip, shrink

import pdistill
from benchmarks.common import config_named
from pdistill import experiment
from pdistill import model as models
from pdistill.cli import compare, config_file, convert, evaluate, export, pairs, prepare, sample
from pdistill.data import load_dataset
from pdistill.data.text import first_captions
from pdistill.experiment import ahead, estimate, rows
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.dry_run import dry_run
from pdistill.experiment.plan import plan
from pdistill.experiment.run import Experiment
from pdistill.experiment.text import TextPlan, embedded, plan_text, with_text
from pdistill.experiment.trace import trace_update
from pdistill.interop.stablehlo import export_sampler, sampler_arguments
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.discriminator import Judge
from pdistill.model import ModelError
from pdistill.model.text import (
    PromptEncoder,
    encoder_identity,
    load_prompt_encoder,
    load_text_encoder,
)
from pdistill.networks import Conditioning
from pdistill.networks.routed import nearest
from pdistill.runtime.mesh import make_mesh
from pdistill.training import Optimizer, StopSignals

COLOURS = {
    "red": (250, 20, 20),
    "blue": (20, 20, 250),
    "green": (20, 250, 20),
    "pink": (250, 150, 190),
}
KEY = jax.random.key(0)
STUDENTS = ("teacher", "progressive/1", "several")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory, encoder):
    """Folder of the data sets, with 32 pictures of four colours, prepared with their captions."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for i in range(32):
        name, colour = list(COLOURS.items())[i % 4]
        pixels = np.clip(colour + rng.normal(0, 5, (8, 8, 3)), 0, 255).astype(np.uint8)
        path = root / f"pictures/{i:02}.png"
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"a {name} tile\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root))
        prepare.main(
            [
                f"--images={root / 'pictures'}",
                "--name=tiles",
                "--resolution=8",
                "--held_out=0",
                f"--text_encoder={encoder}",
                "--text_tokens",
                f"--data_dir={root}",
            ]
        )
        yield root


def config(encoder):
    """A teacher with text, its guided student, and two students of a part of the prompts each."""
    config = tiny()
    teacher, progressive = config.stages
    config.data = ConfigDict({"name": "tiles"})
    config.text_encoder = str(encoder)
    config.model.network.arguments.update(
        text_pooled=PROMPTS_WIDTH, text_tokens=PROMPTS_WIDTH, num_labels=0
    )
    teacher.update(measured_at=(2,), label_dropout=0.2)
    progressive.update(start_steps=2, guidance=2.0)
    adam = {"learning_rate": 1e-3}
    student = {
        "name": "dmd", "method": "dmd", "teacher": "teacher", "loop": LOOP,
        "optimizer": adam, "fake_optimizer": adam,
    }  # fmt: skip
    several = {"name": "several", "method": "multi_student", "parts": 2, "student": student}
    config.stages = (teacher, progressive, ConfigDict(several))
    config.evaluation = ConfigDict(
        {
            "num_samples": 32,
            "batch_size": 16,
            "metrics": ("fd_pixels",),
            "references": ("train",),
            "guidance": (2.0,),
        }
    )
    return config


@pytest.fixture(scope="module")
def run(data, encoder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    experiment.run(config(encoder), workdir)
    return workdir


def test_all_stages_are_measured(run):
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    found = {row["stage"]: (row["num_steps"], row["nfe"], row.get("guidance")) for row in rows}
    # The teacher's pair for each of two steps; its student has the weight in it.
    assert found == {
        "teacher": (2, 4, 2.0), "progressive/1": (1, 1, None), "several": (1, 1, None),
    }  # fmt: skip


@pytest.mark.parametrize("stage", STUDENTS)
def test_prompts_by_the_api_and_the_command_line(run, stage, tmp_path):
    """One for all, one for each, or embeddings, also under jit; the same images."""
    model = pdistill.load(run / stage)
    prompts = ["a red tile", "a blue tile", ""]
    if stage != "teacher":  # which have always had a prompt
        prompts[2] = "a green tile"
    images = model.sample(KEY, 3, prompt=prompts)
    text = model.prompts(prompts)
    assert text.mask.shape[1] % 8 == 0
    assert text.mask.any(1).tolist() == [True, True, stage != "teacher"]
    np.testing.assert_array_equal(model.sample(KEY, 3, prompt=text), images)
    alike = jax.jit(lambda text: model.sample(KEY, 3, prompt=text))(text)
    np.testing.assert_allclose(alike, images, atol=1e-5)
    one = model.sample(KEY, 3, prompt="a red tile")
    np.testing.assert_allclose(one[0], images[0], atol=1e-5)
    (tmp_path / "prompts.txt").write_text("a red tile\n\na blue tile\n")
    out = tmp_path / "images.npz"
    common = [f"--model={run / stage}", "--num=3", f"--out={out}"]
    sample.main([*common, f"--prompts={tmp_path / 'prompts.txt'}"])
    found = np.load(out)
    assert found["prompt"].tolist() == ["a red tile", "a blue tile", "a red tile"]
    pixels = np.asarray((images[:2] + 1) * 127.5)
    np.testing.assert_allclose(found["images"][:2], pixels, atol=0.51)
    if stage == "teacher":  # a row for each round of the prompts
        sample.main([*common, "--num=6", f"--prompts={tmp_path / 'prompts.txt'}", "--scale=1",
                     f"--out={tmp_path / 'rows.png'}"])  # fmt: skip
        assert Image.open(tmp_path / "rows.png").size == (2 * 9 + 1, 3 * 9 + 1)
        names = [f"a {colour} tile" for colour in ("red", "blue", "green", "white")]
        sample.main([common[0], f"--out={tmp_path / 'named.png'}", "--prompt", *names])
        named = np.asarray(Image.open(tmp_path / "named.png"))
        assert named.shape[1] == 4 * 24 * 10 + 3 * 12  # a row of images of 192 pixels
    sample.main([*common, "--prompt=a red tile"])
    np.testing.assert_allclose(np.load(out)["images"], np.asarray((one + 1) * 127.5), atol=0.51)


def test_prompts_tell(run):
    """With parameters that are not near those of a new network."""
    model = pdistill.load(run / "teacher")
    params = jax.tree.map(lambda a: a + 0.05, model.network.params)
    model = dataclasses.replace(model, network=model.network.replace(params=params))
    images = model.sample(KEY, 3, prompt=["a red tile", "a blue tile", ""])
    one = model.sample(KEY, 3, prompt="a red tile")
    assert np.abs(one - images)[1].max() > 1e-3
    np.testing.assert_allclose(model.sample(KEY, 3)[2], images[2], atol=1e-5)


def test_an_exported_sampler_takes_embeddings(run):
    model = pdistill.load(run / "progressive/1")
    arguments = sampler_arguments(model, start="key", inside=True)
    assert list(arguments) == ["key", "index", "mask", "tokens", "pooled"]
    text = model.prompts(["a red tile", "a green tile"])
    exported = export_sampler(model)
    images = exported.call(KEY, jnp.arange(2), text.mask, text.tokens, text.pooled)
    np.testing.assert_allclose(images, model.sample(KEY, 2, prompt=text), atol=1e-5)


def test_a_prompt_goes_to_the_student_with_the_nearest_centre(run):
    """Each is one of the two runs' own networks, whatever stands beside it in the batch."""
    model = pdistill.load(run / "several")
    prompts = [f"a {name} tile" for name in COLOURS] * 2
    images = model.sample(KEY, 8, prompt=prompts)
    text = model.prompts(prompts)
    centres = model.network.params["centres"]
    np.testing.assert_array_equal(centres, np.load(run / "text/centres_2.npy"))
    route = np.asarray(nearest(text.pooled, centres))
    assert np.bincount(route).tolist() == [4, 4]  # so that the second run needs no other program
    for k in (0, 1):
        alone = pdistill.load(run / f"several/dmd_{k}").sample(KEY, 8, prompt=text)
        np.testing.assert_allclose(images[route == k], alone[route == k], atol=1e-5)
        assert np.abs(images - alone)[route != k].max() > 1e-4


def test_evaluate_draws_the_reference_s_captions(run, tmp_path, monkeypatch):
    common = [f"--model={run / 'progressive/1'}", "--metrics=fd_pixels", "--reference=tiles:train"]
    evaluate.main([*common, f"--out={tmp_path / 'rows.jsonl'}"])
    (tmp_path / "prompts.txt").write_text("a red tile\n")
    evaluate.main(
        [*common, f"--out={tmp_path / 'rows.jsonl'}", f"--prompts={tmp_path / 'prompts.txt'}"]
    )
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    all_, red = (json.loads(line)["value"] for line in lines)
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    own = next(row["value"] for row in rows if row["stage"] == "progressive/1")
    assert all_ == pytest.approx(own, rel=1e-4)
    assert red != all_
    encode, encoded = PromptEncoder.__call__, []  # no others than are drawn
    monkeypatch.setattr(
        PromptEncoder,
        "__call__",
        lambda self, prompts: encoded.extend(prompts) or encode(self, prompts),
    )
    evaluate.main([*common, "--num_samples=5"])
    assert len(encoded) == 5


def test_clip_score_of_a_run_and_by_the_command(run, encoder, tmp_path, monkeypatch):
    """A metric more is measured, of the captions that the samples were drawn for."""
    shrink(monkeypatch)
    monkeypatch.setenv("PDISTILL_CLIP_L336", str(save_clip(tmp_path / "clip")))
    settings = config(encoder)
    settings.evaluation.metrics = ("fd_pixels", "clip_score")
    workdir = shutil.copytree(run, tmp_path / "run")
    experiment.run(settings, workdir)
    found = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert [row["metric"] for row in found] == ["fd_pixels"] * 3 + ["clip_score"] * 3
    out = tmp_path / "rows.jsonl"
    model, what = f"--model={workdir / 'progressive/1'}", "--metrics=clip_score"
    evaluate.main([model, what, "--reference=tiles:train", f"--out={out}"])
    again, own = json.loads(out.read_text()), found[4]
    assert own["stage"] == "progressive/1"
    assert again["value"] == pytest.approx(own["value"], rel=1e-4)
    assert (own["reference"], own["features"], own["num_samples"]) == (None, "clip_l336", 32)


def test_each_prompt_is_drawn_once_before_any_is_drawn_again():
    drawn = rows.draw_rows(5, 12, 0, in_turns=True)
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(drawn[10:])) == 2
    assert list(drawn[:5]) != [0, 1, 2, 3, 4]
    assert list(drawn[:5]) != list(drawn[5:10])
    # One after another of labels, of which the least is drawn less often than the most.
    assert np.ptp(np.bincount(rows.draw_rows(5, 1000, 0, in_turns=False))) > 1


def test_metrics_are_given_the_prompts_of_the_samples(run):
    model, mesh = pdistill.load(run / "progressive/1"), make_mesh(1, 1, jax.devices()[:1])
    prompts = [f"a {name} tile" for name in list(COLOURS)[:3]]
    data = Conditioning(text=model.prompts(prompts))
    settings = {"num": 9, "seed": 3, "batch_size": 9, "mesh": mesh, "guidance": None, "keep": 0}
    seen = SimpleNamespace(
        measure=lambda batches, labels, prompts, paired: [
            {"prompts": prompts, "num": len(list(batches)), "paired": paired}
        ]
    )
    told = rows.draw_told(model.network, data, 9, 3)
    prompts = [prompts[i] for i in rows.draw_rows(3, 9, 3, in_turns=True)]
    [row], _ = rows.measure(
        model, seen, stage="", sampling=model.sampling, told=told, prompts=prompts, **settings
    )
    drawn = told.text.pooled[np.arange(9)]
    np.testing.assert_allclose(model.prompts(row["prompts"]).pooled, drawn, atol=1e-5)
    assert len(set(row["prompts"])) == 3
    assert row["paired"]


def test_prompts_of_samples_are_read_with_their_batch():
    """Tokens of 50,000 samples are gigabytes."""
    asked = []

    class OnDisk:
        def __len__(self):
            return 50_000

        def __getitem__(self, wanted):
            asked.append(wanted[0])
            return np.stack([wanted[0]] * 3, axis=1).astype(np.float16)

    column = {"mask": OnDisk(), "tokens": OnDisk(), "count": OnDisk()}
    network = SimpleNamespace(takes_text=True, num_labels=0)
    told = rows.draw_told(network, Conditioning(text=first_captions(column)), 50_000, 3)
    assert not asked
    batch = jax.tree.map(lambda a: a[np.array([4, 2])], told)
    order = rows.draw_rows(50_000, 50_000, 3, in_turns=True)
    np.testing.assert_array_equal(asked, [order[[4, 2]]] * 2)
    assert batch.text.tokens.dtype == np.float32
    np.testing.assert_array_equal(batch.text.tokens[:, 0], order[[4, 2]].astype(np.float16))


def test_a_second_run_does_nothing(run, encoder, monkeypatch):
    """But of other captions it is refused; one of an earlier version does not say which it had."""
    monkeypatch.setattr("pdistill.networks.text.encoder.TextEncoder.encode", None)
    before, kept = (run / "results.jsonl").read_text(), run / "captions.json"
    known = kept.read_text()
    kept.unlink()
    experiment.run(config(encoder), run)
    assert (run / "results.jsonl").read_text() == before
    assert kept.read_text() == known
    others = dataclasses.replace(load_dataset("tiles"), captions=[("a tile",)] * 32)
    with pytest.raises(ConfigError, match="holds a run on other captions than are there now"):
        told_by(encoder, others, run)


def told_by(encoder, data, workdir):
    """The data set with the column "text" by an encoder, as a run begins."""
    settings = config(encoder)
    plan = TextPlan((PROMPTS_WIDTH, PROMPTS_WIDTH), load_text_encoder(encoder), None)
    return with_text(data, workdir, parse(as_plain(settings)), plan)


def test_embeddings_are_beside_the_data(data):
    folders = list((data / "text/tiles:train").iterdir())
    assert [folder.name.split("-", 2)[2] for folder in folders] == ["pooled-tokens"]


def test_a_folder_for_a_hub_and_back(run, tmp_path):
    """With the scale of its prompts."""
    export.main([f"--model={run / 'teacher'}", "--to=safetensors", f"--out={tmp_path / 'hub'}"])
    convert.main(["--from=safetensors", f"--source={tmp_path / 'hub'}", f"--out={tmp_path / 'm'}"])
    images = pdistill.load(tmp_path / "m").sample(KEY, 1, prompt="a red tile")
    wanted = pdistill.load(run / "teacher").sample(KEY, 1, prompt="a red tile")
    np.testing.assert_array_equal(images, wanted)


def test_a_hub_folder_with_embeddings_needs_no_encoder_for_them(run, encoder, tmp_path):
    """In half precision, loaded as it is; other prompts need the encoder, tokens cannot be kept."""
    (tmp_path / "prompts.txt").write_text("a red tile\n\na blue tile\na red tile\n")
    to = ["--to=safetensors", "--dtype=bfloat16", f"--out={tmp_path / 'hub'}"]
    model, named = pdistill.load(run / "teacher"), f"--prompts={tmp_path / 'prompts.txt'}"
    export.main([f"--model={run / 'teacher'}", *to, *([] if model.prompts.tokens else [named])])
    found = pdistill.load(tmp_path / "hub")
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(a.dtype), model.network.params)
    chex.assert_trees_all_equal(found.network.params, rounded)
    if model.prompts.tokens:
        with pytest.raises(ModelError, match="takes tokens of prompts"):
            model.prompts.knowing(["a red tile"])
        return
    assert list(found.prompts.known) == ["a red tile", "a blue tile"]
    alone = dataclasses.replace(found.prompts, source="nowhere")
    asked = ["a blue tile", "", "a red tile"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=0.02),
        alone(asked), model.prompts(asked),
    )  # fmt: skip
    with pytest.raises(ModelError, match="text encoder"):
        alone(["a green tile"])
    (tmp_path / "more.txt").write_text("a green tile\na red tile\n")
    again = [f"--model={tmp_path / 'hub'}", "--to=safetensors", f"--out={tmp_path / 'again'}"]
    again += [f"--prompts={tmp_path / 'more.txt'}"]
    with pytest.raises(SystemExit, match=r"--text_encoder=DIR"):
        export.main([*again, f"--text_encoder={tmp_path}"])
    export.main([*again, f"--text_encoder={encoder}"])
    known = pdistill.load(tmp_path / "again").prompts.known
    assert list(known) == ["a red tile", "a blue tile", "a green tile"]
    assert dict(alone.knowing(["a blue tile"]).known).keys() == alone.known.keys()  # at no cost


def test_one_prompt_is_no_list_of_letters(run):
    prompts = pdistill.load(run / "teacher").prompts
    jax.tree.map(np.testing.assert_array_equal, prompts("a red tile"), prompts(["a red tile"]))


def test_other_captions_are_other_embeddings(data, encoder, capsys):
    """Also as many of the same lengths, in another order; and by a way of pooling of its own."""
    tiles, loaded = load_dataset("tiles"), load_text_encoder(encoder)
    turned = dataclasses.replace(tiles, captions=list(tiles.captions)[::-1])
    earlier = data / f"text/tiles:train/{encoder_identity(loaded)['checksum']:08x}-1-pooled"
    earlier.mkdir()  # whose name does not say how its encoder pools
    one, other = (embedded(each, loaded, (PROMPTS_WIDTH, 0)) for each in (tiles, turned))
    earlier.rmdir()
    assert f"of earlier versions is in {earlier}" in " ".join(capsys.readouterr().err.split())
    np.testing.assert_array_equal(other["pooled"][:], one["pooled"][:][::-1])
    assert np.abs(other["pooled"][:] - one["pooled"][:]).max() > 0.1
    first = loaded.replace(module=loaded.module.clone(pooling="cls"))
    other = embedded(tiles, first, (PROMPTS_WIDTH, 0))
    wanted = first.encode([each[0] for each in tiles.captions], tokens=False).pooled
    np.testing.assert_allclose(other["pooled"][:][:, 0], wanted, atol=1e-3)


def test_a_run_that_was_moved(run, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere")
    images = pdistill.load(tmp_path / "elsewhere/progressive/1").sample(KEY, 1, prompt="a tile")
    wanted = pdistill.load(run / "progressive/1").sample(KEY, 1, prompt="a tile")
    np.testing.assert_array_equal(images, wanted)
    shutil.rmtree(tmp_path / "elsewhere/text")
    with pytest.raises(ModelError, match=r"prompts' scale cannot be read in .*text"):
        pdistill.load(tmp_path / "elsewhere/progressive/1")


def test_a_student_of_a_model_from_elsewhere_has_its_prompts(run, encoder, tmp_path):
    """Its scale, and its encoder, which no config names."""
    first = copied(run, tmp_path / "first")
    kept = load_prompt_encoder(first / "text")
    dataclasses.replace(kept, known={"a red tile": np.zeros(3, np.float16)}).save(first / "text")
    again = of_imported(encoder, first)
    again.stages = (*again.stages, config(encoder).stages[1])
    experiment.run(again, tmp_path / "run")
    shutil.rmtree(first)  # the run has a copy
    one, other = pdistill.load(run / "teacher"), pdistill.load(tmp_path / "run/teacher")
    assert one.prompts.fingerprint == other.prompts.fingerprint
    assert (other.prompts.source, list(other.prompts.known)) == (str(encoder), ["a red tile"])
    np.testing.assert_array_equal(
        one.sample(KEY, 1, prompt="a red tile"), other.sample(KEY, 1, prompt="a red tile")
    )
    (tmp_path / "far/away").mkdir(parents=True)
    moved = shutil.move(tmp_path / "run", tmp_path / "far/away/run")
    assert pdistill.load(moved / "progressive/1").prompts.fingerprint == one.prompts.fingerprint
    plan = TextPlan((PROMPTS_WIDTH, PROMPTS_WIDTH), load_text_encoder(encoder), one.prompts)
    settings, tiles = parse(as_plain(config(encoder))), load_dataset("tiles")
    with_text(tiles, moved, settings, plan)  # as it goes on
    plan = plan._replace(imported=dataclasses.replace(one.prompts, mean=one.prompts.mean + 1))
    with pytest.raises(ModelError, match="begun with imported models of other prompts than"):
        with_text(tiles, moved, settings, plan)


def copied(run, folder):
    """A run's teacher with its prompts in another folder."""
    for name in ("teacher/model", "text"):
        shutil.copytree(run / name, folder / name)
    return folder


def of_imported(encoder, *runs):
    """A config of the teachers of some runs."""
    settings = config(encoder)
    del settings.model, settings.text_encoder
    settings.stages = tuple(
        ConfigDict({"name": name, "method": "imported", "path": str(run / "teacher")})
        for name, run in zip(("teacher", "other"), runs, strict=False)
    )
    return settings


def test_models_of_an_earlier_version_beside_later_ones(run, encoder, tmp_path):
    """Which do not say how their encoder pools; of another scale they are refused."""
    earlier = copied(run, tmp_path / "earlier")
    known = load_prompt_encoder(run / "text")
    card = earlier / "teacher/model/model.json"

    def has(**changes):
        prompts = dataclasses.replace(known, **changes)
        prompts.save(earlier / "text")
        card.write_text(json.dumps(before | {"text": prompts.entry(earlier / "text", card.parent)}))

    before = json.loads(card.read_text())
    has(identity=None)
    for runs in ((run, earlier), (earlier, run)):
        settings = parse(as_plain(of_imported(encoder, *runs)))
        planned = plan(settings, (8, 8, 3))
        assert plan_text(settings, planned, load_dataset("tiles")).imported.identity is not None
    for changes in ({"mean": known.mean + 1}, {"matrix": -known.matrix}, {"identity": 1}):
        has(**changes)
        with pytest.raises(ConfigError, match="different text encoders, or scales of these"):
            plan_text(settings, planned, None)


def test_updates_are_traced_with_the_embeddings_of_the_captions(
    data, encoder, tmp_path, monkeypatch
):
    """By the estimate, and of a run that is compiled beside another."""
    settings, traced = config(encoder), []
    settings.estimate = True
    made = Experiment(parse(as_plain(settings)), tmp_path, StopSignals())
    made.embed()

    def trace(*_, rows, **__):
        traced.append({name: (a.shape, a.dtype) for name, a in rows.items()})
        raise ZeroDivisionError

    for module in (ahead, estimate):
        monkeypatch.setattr(module, "trace_update", trace)
    for begin in (made.estimate, lambda: made._ahead._compile(made.runs["teacher"])):
        with pytest.raises(ZeroDivisionError):
            begin()
    arrays = made.train_data.column_arrays()
    assert traced == [{name: (a.shape, a.dtype) for name, a in arrays.items()}] * 2
    assert traced[0]["text/pooled"] == ((32, 1, PROMPTS_WIDTH), np.float16)


def test_the_first_process_alone_looks_at_the_captions_that_are_there(tmp_path, monkeypatch):
    """Which it may be about to delete; what it finds the others believe."""
    module, told = sys.modules["pdistill.experiment.text"], []
    monkeypatch.setattr(module, "in_all", lambda same: told.append(same) or word)
    for process, captions, word in ((0, "a", True), (1, "b", True), (0, "b", False)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        refused = pytest.raises(ConfigError, match="holds a run on other captions")
        with contextlib.nullcontext() if word else refused:
            module._keep_captions(tmp_path, [(captions,)])
    with refused:
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        module._keep_captions(tmp_path, [("a",)])
    assert told == [True, True, False, True]


# --- What is wrong --------------------------------------------------------------------------------


def test_an_encoder_that_is_not_there_or_another(run, encoder, tmp_path):
    model = pdistill.load(run / "teacher", text_encoder=tmp_path / "nothing")
    model.sample(KEY, 1)  # which needs none
    with pytest.raises(ModelError, match=r"text encoder: there is no folder .*nothing"):
        model.sample(KEY, 1, prompt="a tile")
    other = save_encoder(tmp_path / "other", "bert", seed=1)
    message = "trained with another text encoder than the one in"
    with pytest.raises(ModelError, match=message):
        pdistill.load(run / "teacher", text_encoder=other).sample(KEY, 1, prompt="a tile")
    pooling = json.dumps({"pooling_mode_cls_token": True})  # of the same parameters
    first = shutil.copytree(encoder, tmp_path / "first")
    (first / "1_Pooling/config.json").write_text(pooling)
    model = pdistill.load(run / "teacher", text_encoder=first)
    with pytest.raises(ModelError, match=message):
        model.prompts("a tile")
    earlier = dataclasses.replace(model.prompts, identity=None)  # does not say which it was
    earlier("a tile")
    with pytest.raises(ModelError, match=r"was begun with another text encoder than .*first"):
        told_by(first, load_dataset("tiles"), run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ["a", "b", "c"]}, "prompt must be one, or 2 of them; got 3"),
        ({"guidance": 2.0}, "guidance is towards a prompt; give prompt too"),
        ({"guidance": 2.0, "prompt": ""}, "guidance is towards a prompt; give prompt too"),
        ({"prompt": ["a", 3]}, "prompts must be strings, or None for no prompt; got 3"),
        ({"prompt": 3}, "prompts must be strings, or None for no prompt; got 3"),
        ({"label": 1, "prompt": "a"}, "this model has no labels"),
    ],
)
def test_prompts_that_cannot_be(run, options, message):
    with pytest.raises(ValueError, match=message):
        pdistill.load(run / "teacher").sample(KEY, 2, **options)


def test_what_knows_labels_only_refuses_prompts(run, tmp_path):
    """Instead of telling "no prompt" without a word."""
    common = [f"--model={run / 'teacher'}", "--num=4", f"--out={tmp_path / 'pairs.npz'}"]
    with pytest.raises(SystemExit, match="pairs are made with labels, and this model takes prompt"):
        pairs.main(common)
    arguments = [f"--teacher={run / 'teacher'}", "--reference=tiles:train"]
    with pytest.raises(SystemExit, match="takes prompts, which compare does not"):
        compare.main([*arguments, f"--students={run / 'progressive/1'}@2"])
    judge = Judge(features="teacher", halvings=(0,))
    adversary = Adversary(judges=(judge,), optimizer=Optimizer(learning_rate=1e-3))
    with pytest.raises(ValueError, match="looks through the teacher tells it no prompts"):
        adversary.init(KEY, (8, 8, 3), pdistill.load(run / "teacher").network)


def test_a_model_that_always_had_a_prompt_says_so(run):
    model = pdistill.load(run / "progressive/1")
    text = model.prompts([None, "a red tile"])
    assert text.mask.any(1).tolist() == [False, True]
    for prompt in (None, "", [" ", "a red tile"], text):
        with pytest.warns(UserWarning, match="told a prompt for every image"):
            model.told(2, prompt=prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.told(2, prompt="a red tile")
        pdistill.load(run / "teacher").told(2, prompt=["", "a red tile"], guidance=2.0)


@pytest.mark.parametrize("stage", ["teacher", "progressive/1"])
def test_prompts_are_looked_at_before_they_are_on_the_device(run, stage, monkeypatch):
    """Which would wait for all that the device does; of a device's own if need be, and once."""
    model = pdistill.load(run / stage)
    text, read, look = model.prompts(["a red tile"]), [], np.asarray

    def looked(a, *args, **kwargs):
        read.extend([np.shape(a)] * (isinstance(a, jax.Array) and a.dtype == bool))
        return look(a, *args, **kwargs)

    monkeypatch.setattr(np, "asarray", looked)
    for prompt in ("a red tile", text):
        model.told(2, prompt=prompt)
        model.told(2, prompt=prompt, guidance=model.guidance_range and 2.0)
    assert not read
    mask, always = jnp.asarray(text.mask), stage != "teacher"
    model.told(2, prompt=text.replace(mask=mask))
    assert read == [mask.shape] * always
    if not always:
        model.told(2, prompt=text.replace(mask=mask), guidance=2.0)
        assert read == [mask.shape]


def test_a_model_without_text(tmp_path):
    experiment.run(tiny(), tmp_path / "run")
    model = pdistill.load(tmp_path / "run/teacher")
    with pytest.raises(ValueError, match="this model takes no prompts; leave prompt out"):
        model.sample(KEY, 1, prompt="a tile")
    with pytest.raises(ModelError, match="takes no prompts; leave text_encoder out"):
        pdistill.load(tmp_path / "run/teacher", text_encoder="somewhere")
    (tmp_path / "prompts.txt").write_text("a tile\n")
    common = [f"--model={tmp_path / 'run/teacher'}", f"--prompts={tmp_path / 'prompts.txt'}"]
    with pytest.raises(SystemExit, match="takes no prompts; leave --prompts out"):
        evaluate.main([*common, "--metrics=fd_pixels", "--reference=digits:train"])


def changed(config, **arguments):
    config.model.network.arguments.update(arguments)


def no_captions(config):
    config.data = ConfigDict({"name": "digits"})


WRONG = {
    "no encoder": (
        lambda c: c.update(text_encoder=""), "takes prompts, but text_encoder is missing",
    ),
    "no network": (
        lambda c: changed(c, text_pooled=0, text_tokens=0),
        "no network takes prompts|needs a network with labels or text",
    ),
    "no such encoder": (
        lambda c: c.update(text_encoder="nothing"), "text encoder: there is no folder nothing",
    ),
    "other width": (
        lambda c: changed(c, text_pooled=7), "text_pooled is 7, but those of the text encoder",
    ),
    "no captions": (no_captions, "but digits:train has no captions; prepare it with some"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_configs_that_cannot_run(data, encoder, tmp_path, change, message):
    wrong = config(encoder)
    change(wrong)
    with pytest.raises(ConfigError, match=message):
        experiment.run(wrong, tmp_path)
    with pytest.raises(ConfigError, match=message):
        dry_run(wrong, (1,))


@pytest.mark.parametrize("without", ["text_pooled", "text_tokens"])
def test_one_kind_of_embeddings_is_enough(data, encoder, without):
    one = config(encoder)
    one.stages = one.stages[:2]  # several students need pooled ones
    changed(one, **{without: 0})
    settings = parse(as_plain(one))
    text = plan_text(settings, plan(settings, (8, 8, 3)), load_dataset("tiles"))
    assert sorted(text.widths) == [0, PROMPTS_WIDTH]


def test_an_encoder_that_is_elsewhere_as_the_data_are(encoder):
    """Is not looked for, but the config must name one."""
    for named in ("nothing", ""):
        planned = config(encoder)
        planned.text_encoder = named
        settings = parse(as_plain(planned))
        runs = plan(settings, (8, 8, 3))
        if named:
            assert plan_text(settings, runs, None) is None
        else:
            with pytest.raises(ConfigError, match="text_encoder is missing"):
                plan_text(settings, runs, None)


def test_the_recipe_for_images_of_one_s_own(data, encoder, capsys):
    """Its network is told the captions, and its student guided by them."""
    arguments = ["--config.data.name=tiles", f"--config.text_encoder={encoder}"]
    text = config_file.for_data(config_file.find_config("own_images:cpu"), arguments)
    recipe = config_file.get_config(text)
    arguments = recipe.model.network.arguments
    assert (arguments.text_pooled, arguments.num_labels) == (PROMPTS_WIDTH, 0)
    assert recipe.text_encoder == str(encoder)
    teacher, progressive = recipe.stages
    assert (teacher["label_dropout"], progressive["guidance"]) == (0.1, 1.0)


@pytest.mark.parametrize(("variant", "widths"), [("cpu", (384, 0)), ("gpu", (384, 384))])
def test_emoji(variant, widths):
    """All networks take MiniLM's embeddings, on latents of 8 x 8; an update can be traced."""
    settings = parse(as_plain(config_named(f"emoji:{variant}")))
    with jax.numpy_dtype_promotion("standard"):
        runs = plan(settings, (64, 64, 3))
    codec, *others = runs.values()
    assert codec.makes_codec
    assert {r.network.text_widths for r in others} == {widths}
    assert {r.network.shape for r in others} == {(8, 8, 4)}
    assert runs["student/4"].measured_at == (4,)
    if variant == "cpu":
        mesh = make_mesh(1, 1, jax.devices()[:1])
        known = {"text/pooled": jax.ShapeDtypeStruct((789, 3, 384), "float16")}
        traced = trace_update(codec, runs, settings, mesh, (789, 64, 64, 3), rows=known)
        found = {name: a.shape for name, a in traced.data[0].items()}  # codecs' data have text too
        assert (found["text/pooled"], found["text/count"]) == ((789, 3, 384), (789, 1))


def test_captions_of_a_data_set(data):
    captions = load_dataset("tiles").captions
    assert sorted(set(captions)) == [(f"a {name} tile",) for name in sorted(COLOURS)]
    assert models.load is pdistill.load

"""A model that another model guides: samples, files, exports, and its students."""

import contextlib
import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from test_model import KEY, LABELLED, PLAIN, SHAPE, STUDENT, blank, save_random
from tiny_experiment import tiny

import pdistill
from pdistill import export
from pdistill.cli import pairs, sample
from pdistill.diffusion import DdpmSchedule, RectifiedFlow
from pdistill.experiment.config import ConfigError, as_plain, parse
from pdistill.experiment.imported import Imported
from pdistill.interop import read_folder, write_folder, write_model
from pdistill.methods import Direct, Dmd, Guided, Progressive
from pdistill.model import ModelError
from pdistill.model.store import load_network
from pdistill.networks import Conditioning, DiT, Network
from pdistill.networks.conditioning import guiding_weight
from pdistill.training import Optimizer

LABEL, W = jnp.array([0, 2, 1]), jnp.array([0.5, 2.0, 0.0])
SMALL = blank(DiT(1, features=4, depth=1, heads=2, num_labels=3), "eps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models in it: "large" and "plain"; "small" and "free", without labels, to guide them."""
    folder = tmp_path_factory.mktemp("guides")
    for seed, (name, network) in enumerate(
        {"large": LABELLED, "small": SMALL, "free": PLAIN, "plain": PLAIN}.items()
    ):
        save_random(folder / name, network, seed)
    return folder


def alone(folder, name):
    return pdistill.load(folder / name)


@jax.jit
def denoise(network, told):
    z = jax.random.normal(KEY, (3, *SHAPE))
    return network.denoise(z, jnp.array([-3.0, 0.0, 2.0]), told)


@pytest.mark.parametrize(
    ("name", "guide", "label", "its_label"),
    [
        ("large", "small", LABEL, LABEL),
        ("large", "free", LABEL, None),
        ("plain", "free", None, None),
    ],
)
def test_it_is_the_second_of_the_pair(folder, name, guide, label, its_label):
    """D + w (D - D_guide), whatever each of them predicts; without label where there are none."""
    model = pdistill.load(folder / name, guide=folder / guide)
    x, weaker = (
        denoise(found.network, found.told(3, told))
        for found, told in ((alone(folder, name), label), (alone(folder, guide), its_label))
    )
    w = W[:, None, None, None]
    actual = denoise(model.network, model.told(3, label, W))
    np.testing.assert_allclose(actual, x + w * (x - weaker), rtol=0, atol=2e-5)
    assert jnp.abs(actual - x)[:2].max() > 0.01
    np.testing.assert_array_equal(denoise(model.network, model.told(3, label)), x)


def test_it_guides_at_levels_that_it_has_learnt(folder):
    """At others x_hat of its noise has 1e13 times the error; DDPM's go from -10.1 to 9.2."""
    flow = alone(folder, "plain").network.replace(schedule=RectifiedFlow())
    guide = alone(folder, "free").network.replace(schedule=DdpmSchedule(), head="eps")

    @jax.jit
    def guided(network, w):
        z, levels = jax.random.normal(KEY, (3, *SHAPE)), jnp.array([-60.0, 0.0, 9.5])
        return network.denoise(z, levels, Conditioning(guidance=w))

    found, plain = guided(flow.guided_by(guide), jnp.ones(3)), guided(flow, None)
    np.testing.assert_allclose(found[::2], plain[::2], atol=1e-6)
    assert jnp.abs(found - plain)[1].max() > 0.01
    ddpm = flow.replace(schedule=guide.schedule)  # which goes on to 9.9; both know what they do
    found, plain = guided(ddpm.guided_by(guide), jnp.ones(3)), guided(ddpm, None)
    assert jnp.abs(found - plain)[2].max() > 1e-4


def test_the_levels_that_a_guide_has_learnt_are_asked_for_once():
    """They wait for the device, which a network called without jit does at each evaluation."""
    asked = []

    class Counted(RectifiedFlow):
        def __call__(self, t):
            asked.append(t)
            return super().__call__(t)

    guide = PLAIN.replace(schedule=Counted())
    network, told = PLAIN.guided_by(guide), Conditioning(guidance=jnp.ones(1))
    found = [guiding_weight(told, network, jnp.array([level])) for level in (0.0, 61.0)]
    assert found == [1, 0]
    assert len(asked) == 2  # both ends
    assert guiding_weight(told, PLAIN, jnp.array([61.0])) == 1


def test_samples_and_exports_have_it(folder, tmp_path):
    model = pdistill.load(folder / "large", guide=folder / "small")
    images = model.sample(KEY, 3, label=LABEL, guidance=W)
    unguided = alone(folder, "large").sample(KEY, 3, label=LABEL)
    assert jnp.abs(images - unguided)[:2].max() > 0.01
    sample.main([
        f"--model={folder / 'large'}", f"--guide={folder / 'small'}", "--num=3", "--seed=7",
        "--label=0,2,1", "--guidance=2", f"--out={tmp_path / 'images.npz'}",
    ])  # fmt: skip
    drawn = np.load(tmp_path / "images.npz")["images"]
    np.testing.assert_array_equal(drawn[1], pdistill.data.to_uint8(images)[1])

    save_random(tmp_path / "guided", seed=0, **pdistill.model.guided_card(folder / "small"))
    out = tmp_path / "sampler.stablehlo"
    export.main([f"--model={tmp_path / 'guided'}", f"--out={out}", "--weights=beside"])
    sampler = jax_export.deserialize(out.read_bytes())
    with np.load(out.with_suffix(".npz")) as weights:
        called = sampler.call(dict(weights), KEY, jnp.arange(3), LABEL, W)
    np.testing.assert_array_equal(called, images)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_for_hubs_takes_it_along(folder, tmp_path, dtype):
    """There and back, also where its own directory is gone."""
    shutil.copytree(folder / "small", tmp_path / "small")
    model = pdistill.load(folder / "large", guide=tmp_path / "small")
    write_folder(tmp_path / "hub", model, dtype)
    write_model(tmp_path / "back", read_folder(tmp_path / "hub"))
    shutil.rmtree(tmp_path / "small")
    hub, back = (pdistill.load(tmp_path / name) for name in ("hub", "back"))
    chex.assert_trees_all_equal(back.network, hub.network)
    assert back.card == hub.card
    assert hub.network.guide.blank == model.network.guide.blank
    if dtype == "float32":
        chex.assert_trees_all_equal(hub.network, model.network)
    assert pdistill.load(tmp_path / "hub/guide").network.head == "eps"  # a model of its own


def test_a_run_that_imports_a_folder_for_hubs_finds_its_guide(folder, tmp_path, monkeypatch):
    """The card of its copy is of another directory, which has no guide/ in it."""
    write_folder(tmp_path / "hub", pdistill.load(folder / "large", guide=folder / "small"))
    monkeypatch.chdir(tmp_path)
    method, network = Imported(path="hub"), load_network("hub")
    copy = tmp_path / "run/teacher/model"
    pdistill.model.save(copy, network, **method.card(network), stage="teacher")
    chex.assert_trees_all_equal(pdistill.load("run/teacher").network, network)
    assert network.guide


def test_a_guide_does_not_teach_it_images_without_label(folder, tmp_path):
    """Labels that were left out in its own training do, which its card goes on to say."""
    save_random(tmp_path / "dropout", guidance=[0.0, None])
    for name, needs in ((folder / "large", True), (tmp_path / "dropout", False)):
        model = pdistill.load(name, guide=folder / "small")
        assert model.needs_label is needs
        write_folder(tmp_path / "hub", model)
        assert pdistill.load(tmp_path / "hub").needs_label is needs
        assert pdistill.load(tmp_path / "hub", guide=folder / "free").needs_label is needs
        with pytest.warns(match="told the label of every") if needs else contextlib.nullcontext():
            model.told(2)
    assert not pdistill.load(tmp_path / "dropout").needs_label
    earlier = pdistill.load(folder / "large", guide=folder / "small")
    del earlier.card["knows_without"]  # as a card of an earlier version, which does not say
    assert not earlier.needs_label


def test_students_that_take_weights_have_always_had_their_label(tmp_path):
    """A map that takes weights need not have, unless its card says so."""
    mapping = STUDENT.replace(module=STUDENT.module.clone(target=True), sampler="gamma")
    for network, solver, says, needs in (
        (STUDENT, "ddim", {}, True),  # as cards of earlier versions, which do not say
        (STUDENT, "ddim", {"knows_without": True}, False),
        (mapping, "gamma", {}, False),
        (mapping, "gamma", {"knows_without": False}, True),
    ):
        save_random(tmp_path / "model", network, solver=solver, guidance=[0.0, 4.0], **says)
        assert pdistill.load(tmp_path / "model").needs_label is needs


def test_guides_of_other_latents(tmp_path):
    """They are told by what the cards name: no codec is read."""
    latents = {"data": {"shape": SHAPE, "scale": "latents"}}
    save_random(tmp_path / "unnamed", **latents)
    save_random(tmp_path / "images")
    for name, number in (("one", 1), ("other", 2)):
        save_random(tmp_path / name, **latents, codec={"path": "../codec", "checksum": number})
    for name, guide in (("one", "other"), ("images", "unnamed"), ("one", "images")):
        with pytest.raises(ModelError, match="are not both of images, or of latents of one codec"):
            pdistill.load(tmp_path / name, guide=tmp_path / guide)
    pdistill.load(tmp_path / "unnamed", guide=tmp_path / "one")


def test_pairs_are_by_steps_that_the_model_is_made_for(tmp_path):
    save_random(tmp_path / "student", made_for=[1], num_steps=1)
    arguments = [f"--model={tmp_path / 'student'}", "--num=2", f"--out={tmp_path / 'pairs.npz'}"]
    with pytest.raises(SystemExit, match="made for 1 steps; got num_steps=18"):
        pairs.main(arguments)
    for out, why in (("pairs.txt", "must end with .npz"), (tmp_path, "must end with .npz")):
        with pytest.raises(SystemExit, match=why):
            pairs.main([*arguments[:2], f"--out={out}"])
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(SystemExit, match=r"folder.npz: it is a folder; give a file"):
        pairs.main([*arguments[:2], f"--out={tmp_path / 'folder.npz'}"])


def test_students_learn_from_it_and_have_none(folder):
    teacher = pdistill.load(folder / "large", guide=folder / "small").network
    method = {"optimizer": Optimizer(1e-3)}
    for found, more in (
        (Progressive(**method, start_steps=2), {"num_steps": 2}),
        (Direct(**method, teacher_steps=1), {}),
        (Dmd(**method, fake_optimizer=Optimizer(1e-3), guidance=1.0, discriminating=0.0), {}),
        (Guided(**method), {}),
    ):
        state = jax.eval_shape(functools.partial(found.init, KEY, teacher=teacher, **more))
        assert found.product(state).guide is None
    learners = jax.tree.leaves(
        state, is_leaf=lambda a: isinstance(a, Network) and a.guide is not None
    )
    assert sum(isinstance(a, Network) for a in learners) == 1  # the teacher


def test_a_config_that_imports_no_teacher_takes_none():
    with pytest.raises(ConfigError, match="guide: no stage takes it"):
        parse(as_plain(tiny()) | {"guide": "models/small"})


def test_guides_that_do_not_fit(folder, tmp_path):
    save_random(tmp_path / "wide", LABELLED.replace(shape=(8, 8, 1)), data={"shape": (8, 8, 1)})
    save_random(tmp_path / "student", STUDENT, guidance=[0.0, 4.0])
    for guide, message in (
        (tmp_path / "wide", r"its guide makes images of \(8, 8, 1\), it of \(4, 4, 1\)"),
        (tmp_path / "student", "a network that takes guidance weights as an input"),
        (tmp_path / "none", "no model in"),
    ):
        with pytest.raises(ModelError, match=message):
            pdistill.load(folder / "large", guide=guide)
    with pytest.raises(ModelError, match="its guide takes 3 labels, it 0"):
        pdistill.load(folder / "plain", guide=folder / "small")


def test_a_guide_that_is_gone_or_another(folder, tmp_path):
    shutil.copytree(folder / "small", tmp_path / "small")
    save_random(tmp_path / "model", **pdistill.model.guided_card(tmp_path / "small"))
    assert pdistill.load(tmp_path / "model").guidance_range == (0, np.inf)
    path = tmp_path / "small/model.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"checksum": 1}))
    with pytest.raises(ModelError, match="is guided by another model than the one in"):
        pdistill.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(ModelError, match=r"that is not in .*small: put.*, --guide=DIR or guide in"):
        pdistill.load(tmp_path / "model")
    pdistill.load(tmp_path / "model", guide=folder / "small")

    def made(*options):
        out = tmp_path / f"pairs{len(options)}.npz"
        few = ["--num=2", "--num_steps=2", "--solver=ddim", f"--out={out}"]
        pairs.main([f"--model={tmp_path / 'model'}", f"--guide={folder / 'small'}", *few, *options])
        return np.load(out)["image"]

    assert np.abs(made("--guidance=2") - made()).max() > 1e-3

import dataclasses
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdistill
from pdistill import diffusion, samplers
from pdistill.diffusion import CosineSchedule, LinearLogsnrSchedule
from pdistill.interop.hub import write_folder
from pdistill.model import Model, ModelError, load, sampling, save, store
from pdistill.model.sampling import Timed
from pdistill.networks import DiT, Network
from pdistill.runtime.mesh import batch_sharding, make_mesh
from pdistill.samplers import noise

# What Orbax's threads have to say after an error that was raised and caught.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SHAPE = (4, 4, 1)
KEY = jax.random.key(7)
MODULE = DiT(1, features=8, depth=1, heads=2)


def blank(module, head="v", schedule=CosineSchedule(), **more):  # noqa: B008
    return Network(None, module=module, head=head, schedule=schedule, shape=SHAPE, **more)


LABELLED = blank(MODULE.clone(num_labels=3))
STUDENT = blank(MODULE.clone(num_labels=3, guidance=True), guidance=(0.0, 4.0))
PLAIN = blank(MODULE, "x", LinearLogsnrSchedule(-5.0, 5.0))
JUMPING = blank(MODULE.clone(target=True), "velocity", sampler="gamma")


@functools.cache
def random(network, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(scale=0.3, size=a.shape), a.dtype), network.shapes
    )


def save_random(directory, network=LABELLED, seed=0, **card):
    defaults = {
        "kind": "denoiser",
        "solver": "ddim",
        "num_steps": 2,
        "clip": (-1.0, 1.0),
        "num_labels": network.num_labels,
        "data": {"shape": SHAPE, "scale": "image / 127.5 - 1"},
        "guidance": None,
        "parent": None,
        "stage": "teacher",
        "method": "teacher",
        "train_steps": 1,
        "images_seen": 1,
    }
    save(directory, random(network, seed), **(defaults | card))
    return directory


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return load(save_random(tmp_path_factory.mktemp("models") / "labelled"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load(save_random(tmp_path_factory.mktemp("models") / "plain", PLAIN))


# --- Saving and loading -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network", [LABELLED, PLAIN, JUMPING], ids=["labelled", "plain", "jumping"]
)
def test_round_trip(tmp_path, network):
    solver = network.sampler or "ddim"
    model = load(save_random(tmp_path / "model", network, method="teacher", solver=solver))
    chex.assert_trees_all_equal(model.network, random(network))
    assert model.image_shape == SHAPE
    assert model.card["method"] == "teacher"
    assert model.card["versions"]["jax"] == jax.__version__
    before = Model(random(network), model.card)
    np.testing.assert_array_equal(model.sample(KEY, 5), before.sample(KEY, 5))


def test_folder_of_a_stage_holds_its_model(tmp_path, monkeypatch):
    """Also in the home, whose ~ a shell leaves as it is in --model=~/teacher."""
    monkeypatch.setenv("HOME", str(tmp_path))
    save_random(tmp_path / "teacher/model")
    for path in (tmp_path / "teacher", str(tmp_path / "teacher/model"), "~/teacher"):
        chex.assert_trees_all_equal(load(path).network, random(LABELLED))


def test_saving_replaces(tmp_path):
    directory = save_random(tmp_path / "model", seed=0)
    save_random(directory, PLAIN, seed=1)
    chex.assert_trees_all_equal(load(directory).network, random(PLAIN, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_parameters_are_spread_over_a_mesh(tmp_path):
    wide = blank(MODULE.clone(features=32))
    mesh = make_mesh(2, 4, jax.devices())
    network = load(save_random(tmp_path / "model", wide), mesh).network
    chex.assert_trees_all_equal(network, random(wide))
    params = network.params
    assert params["block_0"]["mlp_in"]["kernel"].addressable_shards[0].data.shape == (32, 128 // 4)
    assert params["position"].sharding.is_fully_replicated
    assert params["position"].sharding.mesh == mesh


def test_what_is_loaded_without_a_mesh_goes_where_its_input_is(tmp_path, labelled):
    """Of both forms of folders, also onto several devices."""
    write_folder(tmp_path / "hub", labelled)
    sharding = batch_sharding(make_mesh(2, 2, jax.devices()[:4]))
    z = jax.device_put(np.ones((4, *SHAPE), np.float32), sharding)
    denoise = jax.jit(lambda network, z: network.denoise(z, jnp.zeros(4)))
    for model in (labelled, load(tmp_path / "hub")):
        assert denoise(model.network, z).sharding == sharding
        assert jax.tree.leaves(model.network.params)[0].devices() == {jax.devices()[0]}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_on_a_mesh_makes_a_part_of_the_images_on_each_device(
    tmp_path, labelled, monkeypatch, compiled
):
    """The same images, of which there may be fewer than devices divide."""
    mesh = make_mesh(2, 2, jax.devices()[:4])
    model = load(save_random(tmp_path / "model"), mesh)
    parts = []

    def shown(sharding):
        parts.append(sharding.shard_shape((8,)))

    def generate(network, key, indices, told, **how):
        for a in (indices, told.label):
            jax.debug.inspect_array_sharding(a, callback=shown)
        return before(network, key, indices, told, **how)

    before = sampling.generate
    monkeypatch.setattr(sampling, "generate", generate)
    label = np.array([0, 1, 2, 0, 1])
    draw = functools.partial(model.sample, num=5, label=label)
    images = (jax.jit(draw) if compiled else draw)(KEY)
    assert parts == 2 * [(2,)]
    assert images.sharding.is_fully_replicated
    np.testing.assert_allclose(images, labelled.sample(KEY, 5, label=label), rtol=0, atol=1e-5)


@pytest.fixture
def crash(monkeypatch):
    """crash(owner, name): saves over a folder, interrupted where `owner.name` is called."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    def crash(directory, owner, name):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                save_random(directory, seed=1)

    return crash


@pytest.mark.parametrize(
    ("owner", "name"), [(store, "save_params"), (Path, "write_text"), (Path, "rename")]
)
def test_a_crash_while_saving_leaves_no_model(tmp_path, crash, owner, name):
    directory = tmp_path / "model"
    crash(directory, owner, name)
    with pytest.raises(ModelError, match="no model in"):
        load(directory)
    chex.assert_trees_all_equal(load(save_random(directory, seed=2)).network, random(LABELLED, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("owner", "name", "seeds"),
    [
        (store, "save_params", {0}),
        (Path, "write_text", {0}),
        (Path, "rename", {0}),
        (shutil, "rmtree", {0, 1}),  # all that is left to do may be to remove the old one
    ],
)
def test_a_crash_while_replacing_leaves_a_whole_model(tmp_path, crash, owner, name, seeds):
    directory = save_random(tmp_path / "model", seed=0)
    crash(directory, owner, name)
    position = load(directory).network.params["position"]
    assert any(np.all(position == random(LABELLED, seed).params["position"]) for seed in seeds)
    chex.assert_trees_all_equal(load(save_random(directory, seed=2)).network, random(LABELLED, 2))


def test_public_names():
    assert pdistill.load is load
    assert pdistill.Model is Model
    assert pdistill.__version__ == importlib.metadata.version("pdistill")
    assert {"Model", "__version__", "diffusion", "load", "samplers"} <= set(dir(pdistill))
    assert "importlib" not in dir(pdistill)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = pdistill.laod


def test_samplers_come_without_flax():
    code = (
        "import sys, pdistill; "
        "heavy = {'flax', 'optax', 'orbax', 'grain', 'tensorflow_datasets'}; "
        "assert pdistill.samplers.sample and pdistill.diffusion.Gaussian; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_comes_without_what_trains_and_measures():
    """A program that samples loads none of it, nor of the data pipeline."""
    code = (
        "import sys, pdistill.model; rooms = 'evaluation', 'features', 'training', 'methods'; "
        "heavy = {'grain', *(f'pdistill.{room}' for room in rooms)}; "
        "found = {name for name in sys.modules if heavy & {name, '.'.join(name.split('.')[:2])}}; "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Folders that cannot be loaded --------------------------------------------------------------


def test_no_model_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(ModelError, match=r"give a folder with model\.json") as error:
            load(directory)
        assert str(directory) in str(error.value)
        assert "or with config.json and model.safetensors, such as zoo/" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"format": 1, "netw', b"\x93NUMPY\x01\x00v\x00", b"[]", b"null", b"[" * 10**5],
    ids=lambda content: content[:9],
)
def test_damaged_json(tmp_path, content):
    directory = save_random(tmp_path / "model")
    (directory / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json") as error:
        load(directory)
    assert str(directory) in str(error.value)


def test_a_pipe_is_not_opened(tmp_path):
    directory = save_random(tmp_path / "model")
    (directory / "model.json").unlink()
    os.mkfifo(directory / "model.json")
    with pytest.raises(ModelError, match=r"model\.json is not a regular file"):
        load(directory)


def test_the_models_below_are_listed(tmp_path):
    for name in ("teacher", "progressive/16", "progressive/4"):
        save_random(tmp_path / name / "model")
    for directory, names in [
        (tmp_path, ("progressive/4", "progressive/16", "teacher")),
        (tmp_path / "progressive", ("progressive/4", "progressive/16")),
    ]:
        with pytest.raises(ModelError) as error:
            load(directory)
        listed = ", ".join(str(tmp_path / name) for name in names)
        assert str(error.value) == f"no model in {directory}: there are {listed}; give one of them"
    with pytest.raises(ModelError, match=r"progressive/1: there are .*/4, .*/16; give one of them"):
        load(tmp_path / "progressive/1")  # which is not there yet
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no model in .*empty: give a folder with model\.json"):
        load(tmp_path / "empty")


@pytest.mark.parametrize("file", [None, "model_index.json"])
def test_models_of_others_are_to_be_converted(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    if file:
        Path("google/ddpm-cifar10-32").mkdir(parents=True)
        Path("google/ddpm-cifar10-32", file).write_text("{}")
    with pytest.raises(ModelError, match=r"python -m pdistill\.convert --from=diffusers"):
        load("google/ddpm-cifar10-32")


REMOVED = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "has format 2; this reads 1"),
        ("format", REMOVED, "format"),
        ("network", REMOVED, "network"),
        ("network.name", "dti", "network must be one of dit.*; got 'dti'"),
        ("network.arguments.width", 3, "no 'width'; it has out_channels, patch"),
        ("network.arguments.dtype", "float31", "float31"),
        ("network.arguments.features", 16, "shape"),
        ("network.arguments.depth", 2, "block_1"),
        ("network.arguments.heads", 3, "heads 3 must divide features 8"),
        ("schedule.name", "cosin", "schedule must be one of cosine, .*; got 'cosin'"),
        ("schedule.arguments.slope", 1.0, "no 'slope'; it has logsnr_min, logsnr_max"),
        ("schedule.arguments.logsnr_min", 30.0, "logsnr_min must be below logsnr_max"),
        ("head", "w", "head must be one of v, x, eps, both, velocity, eps_variance; got 'w'"),
        ("solver", "dimm", "solver must be one of ddim, .*; got 'dimm'"),
        ("solver", REMOVED, "solver"),
        ("num_steps", REMOVED, "num_steps"),
        ("data.shape", REMOVED, "shape"),
        ("data.shape", [5, 5, 1], "patch 2 must divide the image size 5x5"),
        ("data.shape", [10**9, 8, 1], "a shape must be .*, each in 1 .. 16,384"),
        ("network.arguments.depth", 10**6, "has 1,000,000 blocks; it can have 1,000"),
        ("network.arguments.target", 1, "target must be true or false; got 1"),
        ("network.arguments.dropout", float("nan"), "dropout must be a finite number; got nan"),
        ("schedule.arguments.shift", float("nan"), "logsnr_min must be below logsnr_max, both fin"),
    ],
)
def test_a_card_that_does_not_fit(tmp_path, path, value, message):
    directory = save_random(tmp_path / "model")
    card = json.loads((directory / "model.json").read_text())
    *parents, last = path.split(".")
    place = functools.reduce(dict.__getitem__, parents, card)
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    (directory / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=message) as error:
        load(directory)
    assert str(directory) in str(error.value)


def test_damaged_parameters(tmp_path):
    directory = save_random(tmp_path / "model")
    for file in (directory / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ModelError, match="cannot load") as error:
        load(directory)
    assert str(directory) in str(error.value)
    shutil.rmtree(directory / "params")
    with pytest.raises(ModelError, match=r"params.*not found"):
        load(directory)


# --- Sampling -----------------------------------------------------------------------------------


def test_parameters_of_another_save(tmp_path):
    """They can be read, but are not those of the card: one model's file beside another's card."""
    for name, seed in (("one", 0), ("two", 1)):
        save_random(tmp_path / name, seed=seed)
    shutil.rmtree(tmp_path / "one/params")
    shutil.copytree(tmp_path / "two/params", tmp_path / "one/params")
    with pytest.raises(ModelError, match="its parameters are not those that were saved"):
        load(tmp_path / "one")


def test_images_are_float32_in_minus_one_to_one(labelled):
    images = labelled.sample(KEY, 5)
    assert isinstance(images, jax.Array)
    assert images.shape == (5, *SHAPE)
    assert images.dtype == jnp.float32
    assert np.min(images) >= -1
    assert np.max(images) <= 1
    assert np.std(images) > 0.2


def test_one_step_is_the_denoiser_at_the_end(labelled, plain):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(5))
    z = noise.normal(noise.split(keys)[1], (5, *SHAPE), jnp.float32)
    for model, logsnr in ((labelled, -20.0), (plain, -5.0)):
        desired = jnp.clip(jax.jit(model.denoiser())(z, jnp.full(5, logsnr)), -1, 1)
        # logsnr(1) has an error of 1e-6 of its 20, its waves of 1e-4 in float32.
        np.testing.assert_allclose(model.sample(KEY, 5, num_steps=1), desired, rtol=0, atol=1e-3)


def test_card_and_arguments_say_how_to_sample(labelled, plain):
    for model in (labelled, plain):
        explicit = model.sample(KEY, 5, num_steps=2, solver=samplers.Ddim())
        np.testing.assert_array_equal(model.sample(KEY, 5), explicit)
    images = labelled.sample(KEY, 5)
    for key, options in (
        (jax.random.key(8), {}),
        (KEY, {"num_steps": 4}),
        (KEY, {"solver": samplers.Ancestral()}),
    ):
        assert np.std(images - labelled.sample(key, 5, **options)) > 0.01


def test_without_clip_images_leave_the_range(tmp_path):
    model = load(save_random(tmp_path / "model", clip=None))
    assert model.sampling.clip is None
    assert np.max(np.abs(model.sample(KEY, 5))) > 1.1


@pytest.mark.parametrize("solver", [samplers.Ddim(), samplers.Ancestral()], ids=["ddim", "noisy"])
def test_an_image_does_not_depend_on_how_many_are_drawn(labelled, solver):
    few, many = (labelled.sample(KEY, num, solver=solver) for num in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_an_image_does_not_depend_on_how_many_are_drawn_by_other_generators(plain, generator):
    """rbg draws rows that depend on the batch; of one seed its samples are threefry's."""
    with jax.default_prng_impl(generator):
        key = jax.random.key(7)
        few, many = (plain.sample(key, num, solver=samplers.Ancestral()) for num in (2, 5))
    assert str(jax.random.key_impl(key)) == generator
    np.testing.assert_allclose(few, many[:2], rtol=0, atol=1e-5)
    if generator == "rbg":
        np.testing.assert_array_equal(many, plain.sample(KEY, 5, solver=samplers.Ancestral()))


def test_double_precision_changes_no_sample(tmp_path, labelled, x64):
    """Also of a model that was saved in it."""
    found = load(save_random(tmp_path / "model")).sample(KEY, 5)
    jax.config.update("jax_enable_x64", False)
    desired = labelled.sample(KEY, 5)
    assert found.dtype == desired.dtype == jnp.float32
    np.testing.assert_allclose(found, desired, rtol=0, atol=1e-5)


def test_labels(labelled):
    images = [labelled.sample(KEY, 5, label=label) for label in range(3)]
    images.append(labelled.sample(KEY, 5))
    for i, drawn in enumerate(images):
        assert all(np.std(drawn - other) > 1e-3 for other in images[:i])
    np.testing.assert_array_equal(labelled.sample(KEY, 5, label=np.full(5, 1)), images[1])
    mixed = np.array([2, 0, 1, 1, 0])
    desired = [images[label][i] for i, label in enumerate(mixed)]
    for label in (mixed, mixed.tolist(), jnp.asarray(mixed)):
        np.testing.assert_array_equal(labelled.sample(KEY, 5, label=label), desired)


def test_a_solver_by_name_is_the_one_by_value(plain):
    named, given = (plain.sample(KEY, 2, solver=s) for s in ("heun", samplers.Heun()))
    np.testing.assert_array_equal(named, given)


@dataclasses.dataclass(frozen=True)
class Thrice(samplers.Ddim):
    """A solver of one's own, of three steps at least."""

    min_steps = 3


def test_a_solver_may_need_more_steps(plain):
    """The one program for all counts of steps is of a count that it can take."""
    by_name, given = (plain.sample(KEY, 2, num_steps=4, solver=s) for s in ("ddim", Thrice()))
    np.testing.assert_array_equal(by_name, given)


def test_models_are_said_in_a_few_lines(labelled):
    said = repr(labelled)
    assert said == (
        "Model('teacher' by teacher: images of 4x4x1, 2 steps of ddim, Network(DiT(out_channels=1, "
        "features=8, depth=1, heads=2, num_labels=3), head='v', "
        "schedule=CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0, shift=0.0), shape=(4, 4, 1), "
        f"{sum(a.size for a in jax.tree.leaves(labelled.network.params)):,} parameters))"
    )
    assert repr(LABELLED).endswith("0 parameters)")


@pytest.mark.parametrize(
    ("card", "arguments", "message"),
    [
        ({"made_for": [4]}, {"num_steps": 64}, "made for 4 steps; got num_steps=64"),
        ({"made_for": [2, 4]}, {"num_steps": 1}, "made for 2 or 4 steps; got num_steps=1"),
        ({"solver": "one_step"}, {"num_steps": 4}, "one_step takes 1 step; got num_steps=4"),
        (
            {"solver": "one_step"},
            {"num_steps": 4, "solver": "ddim"},
            "made for the solver one_step; got ddim",
        ),
        ({"solver": "multistep:-20,0"}, {"num_steps": 3}, "multistep takes 2 step"),
        (
            {"solver": "multistep:-20,0"},
            {"solver": "multistep:-3"},
            r"knows the log-SNRs \(-20.0, 0.0\) only; got \(-3.0,\): give some of its own",
        ),
        ({"solver": "stochastic"}, {"solver": "heun"}, "made for the solver stochastic; got heun"),
        ({"made_for": [2]}, {"solver": "iddpm"}, "such as DiT converted with --variance; this one"),
    ],
)
def test_steps_that_a_student_is_not_made_for(labelled, card, arguments, message):
    own = {"num_steps": 1} if "solver" in card else {"num_steps": card["made_for"][0]}
    student = Model(labelled.network, labelled.card | own | card)
    with pytest.raises(ValueError, match=message):
        student.sample(KEY, 2, **arguments)
    assert student.sampling_with() == student.sampling
    if student.sampling.solver.name == "multistep":
        student.sampling_with(solver="multistep:0")
    labelled.sampling_with(2, "multistep:-3,5")  # a denoiser knows those of its schedule
    with pytest.raises(ValueError, match="knows log-SNRs from -20 to 20; got -30: give others"):
        labelled.sampling_with(1, "multistep:-30")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 2.0}, "num must be an integer; got 2.0"),
        ({"num": "3"}, "num must be an integer; got '3'"),
        ({"key": 0}, r"key must be a PRNG key, such as jax\.random\.key\(0\); got 0"),
        ({"key": jax.random.split(KEY, 3)}, "key must be one key"),
        ({"solver": "hoyn"}, "solver must be one of ddim, .*; got 'hoyn'"),
        ({"num": 0}, "num must be at least 1; got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ({"label": 3}, r"labels must be in 0 \.\. 2"),
        ({"label": -1}, r"labels must be in 0 \.\. 2"),
        ({"label": [0, 1, 3]}, r"labels must be in 0 \.\. 2"),
    ],
)
def test_bad_arguments(labelled, arguments, message):
    with pytest.raises(ValueError, match=message):
        labelled.sample(**({"key": KEY, "num": 3} | arguments))


def test_label_for_a_model_without(plain):
    with pytest.raises(ValueError, match="this model has no labels"):
        plain.sample(KEY, 3, label=0)


# --- Guidance -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A model that can be guided, by a pair of evaluations, with any weight."""
    directory = tmp_path_factory.mktemp("models") / "guided"
    return load(save_random(directory, guidance=[0.0, None]))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """One that takes weights from 0 to 4 as an input."""
    directory = tmp_path_factory.mktemp("models") / "student"
    return load(save_random(directory, STUDENT, guidance=[0.0, 4.0]))


def test_guided_samples_are_those_of_the_two_denoisers(guided):
    """As the sampler makes them from the network with and without the label, in two calls."""
    label = jnp.array([0, 2, 1])
    apart = diffusion.guide(diffusion.pair_of(guided.denoiser(label), guided.denoiser()), 1.5)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3))
    desired = samplers.sample(
        apart, keys, (3, *SHAPE), schedule=guided.network.schedule, num_steps=2, clip=(-1.0, 1.0)
    )
    found = guided.sample(KEY, 3, label=label, guidance=1.5)
    np.testing.assert_allclose(found, desired, atol=1e-5)
    assert np.abs(found - guided.sample(KEY, 3, label=label)).max() > 0.01
    np.testing.assert_allclose(
        guided.sample(KEY, 3, label=label, guidance=0.0),
        guided.sample(KEY, 3, label=label),
        atol=1e-5,
    )


def test_guidance_acts_between_levels_only(guided):
    """The first of two steps is not guided where these end below the noise's level."""
    schedule = guided.network.schedule
    first, second = (float(schedule(jnp.array(u))) for u in (1.0, 0.5))
    sample = functools.partial(guided.sample, KEY, 3, label=1, num_steps=2)
    everywhere = sample(guidance=1.5)
    np.testing.assert_allclose(
        sample(guidance=1.5, guidance_levels=(first - 1, second + 1)), everywhere, atol=1e-6
    )
    np.testing.assert_allclose(
        sample(guidance=1.5, guidance_levels=(second + 1, second + 2)), sample(), atol=1e-5
    )
    late = sample(guidance=1.5, guidance_levels=(first + 1, second + 1))
    assert np.abs(late - everywhere).max() > 1e-3
    assert np.abs(late - sample()).max() > 1e-3


def counted(method, calls):
    """A method that also puts itself into `calls`: once for each trace, inside jit."""

    def counting(*args, **kwargs):
        calls.append(method)
        return method(*args, **kwargs)

    return counting


@pytest.mark.parametrize("name", ["guided", "student"])
def test_weights_and_labels_of_each_sample_use_one_compiled_function(name, request, monkeypatch):
    model, traced = request.getfixturevalue(name), []
    monkeypatch.setattr(Network, "denoise", counted(Network.denoise, traced))
    batch = model.sample(KEY, 4, label=jnp.array([0, 1, 2, 0]), guidance=jnp.arange(4.0))
    before = len(traced)
    assert before
    one = model.sample(KEY, 4, label=1, guidance=1.0)
    again = model.sample(KEY, 4, label=jnp.array([2, 1, 1, 1]), guidance=jnp.array([1, 1, 0, 3.0]))
    assert len(traced) == before
    np.testing.assert_allclose(batch[1], one[1], atol=1e-5)
    np.testing.assert_allclose(again[1], one[1], atol=1e-5)
    assert np.abs(again[3] - one[3]).max() > 1e-3


def test_labels_and_weights_of_ones_own_compiled_code(student):
    """Which are traced there; what cannot be checked then is not."""
    draw = jax.jit(lambda key, label, w: student.sample(key, 2, label=label, guidance=w))
    found = draw(KEY, jnp.array([2, 1]), jnp.array(1.5))
    desired = student.sample(KEY, 2, label=jnp.array([2, 1]), guidance=1.5)
    np.testing.assert_allclose(found, desired, atol=1e-5)
    with pytest.raises(ValueError, match="one integer, or 2 of them"):
        draw(KEY, jnp.array([2, 1, 0]), jnp.array(1.5))


def test_lists_of_traced_numbers(guided):
    """As one gives them that are known."""

    def told(label, w, low):
        return guided.told(2, [label, 0], [w, 1.0], (low, 4.0))

    traced, known = jax.jit(told)(2, 1.5, -3.0), told(2, 1.5, -3.0)
    chex.assert_trees_all_equal(traced, known)


def test_images_without_a_label(labelled, guided, recwarn):
    """There is a warning unless the model has learnt some."""
    guided.sample(KEY, 2)
    assert not [w for w in recwarn if "give label" in str(w.message)]
    with pytest.warns(UserWarning, match=r"give label, in 0 \.\. 2"):
        labelled.sample(KEY, 2)


def test_the_students_weight_is_an_input(student):
    assert student.network.blank == STUDENT
    assert STUDENT.evaluations(2.0) == 1
    assert LABELLED.evaluations(2.0) == 2
    assert LABELLED.evaluations(None) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("student", {"guidance": 4.5}, r"guidance must be in \[0, 4\]; got 4.5"),
        ("student", {"guidance": -0.1}, r"guidance must be in \[0, 4\]"),
        ("student", {"guidance": np.array([1.0, np.nan])}, r"guidance must be in \[0, 4\]"),
        ("guided", {"guidance": -1.0}, r"guidance must be in \[0, inf\]"),
        ("guided", {"guidance": np.ones(3)}, "one weight, or 2 of them"),
        ("guided", {"guidance": 1.0, "label": None}, "towards a label; give label too"),
        ("labelled", {"guidance": 1.0}, "not trained for guidance"),
        ("guided", {"guidance": 1.0, "guidance_levels": (1.0, 1.0)}, r"\(low, high\); got"),
        ("guided", {"guidance_levels": (-1.0, 1.0)}, "give guidance too"),
        ("student", {"guidance": 1.0, "guidance_levels": (-1.0, 1.0)}, "leave guidance_levels out"),
        ("guided", {"label": 3}, r"labels must be in 0 \.\. 2"),
    ],
)
def test_bad_guidance(name, arguments, message, request):
    with pytest.raises(ValueError, match=message):
        request.getfixturevalue(name).sample(KEY, 2, **({"label": 1} | arguments))


@pytest.mark.parametrize(
    ("batches", "seconds"),
    [
        (((4, 9.0),), None),  # compilation
        (((4, 9.0), (4, 2.0)), None),  # perhaps a busy moment
        (((4, 9.0), (4, 8.0), (1, 2.0)), 0.5),  # four are drawn, and one is left of them
    ],
)
def test_speed_is_that_of_the_fastest_batch(monkeypatch, batches, seconds):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def draw():
        for num, duration in batches:
            now[0] += duration
            yield np.zeros((num, 2, 2, 1), np.uint8)

    timed = Timed(draw(), keep=3)
    for _ in timed:
        now[0] += 100  # of measuring is in no speed
    assert timed.seconds_per_image == seconds
    assert len(timed.first) == min(3, sum(num for num, _ in batches))

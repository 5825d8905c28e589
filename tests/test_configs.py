"""Every config parses and unfolds; the papers' build their state and trace a step, abstractly."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path
from tiny_experiment import tiny_gan

from benchmarks.common import config_named
from pdistill.cli.config_file import CONFIGS, SHARED
from pdistill.configs.digits_ctm import ctm, ctm_gan
from pdistill.configs.digits_dmd import dmd
from pdistill.configs.digits_gan import gan
from pdistill.experiment import config as configuration
from pdistill.experiment.defaults import fill_defaults
from pdistill.experiment.plan import plan
from pdistill.experiment.trace import trace_update
from pdistill.interop.conversion import Conversion, teacher_card, write_model
from pdistill.runtime.mesh import make_mesh

SHAPES = {
    "digits": (8, 8, 1),
    "cifar10": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
    "fashion_mnist@32": (32, 32, 1),
    "ffhq64": (64, 64, 3),
    "imagenet512": (512, 512, 3),
    "imagenet64": (64, 64, 3),
    "lsun_bedroom128": (128, 128, 3),
    "lsun_church128": (128, 128, 3),
}
VARIANTS = [
    *("digits_pd", "digits_methods", "digits_ablation", "fashion_pd:cpu", "cifar10_pd:cpu"),
    *("cifar10_ablation", "cifar10_pd:gpu", "cifar10_methods", "cifar10_methods:cpu"),
    *("cifar10_pd", "cifar10_pd:x", "imagenet64_pd", "imagenet64_pd:both"),
    *("lsun_bedroom128_pd", "lsun_bedroom128_pd:both", "lsun_church128_pd"),
    *("digits_guided", "cifar10_guided", "imagenet64_guided"),
    *("digits_gan", "digits_gan:polish", "digits_minima", "fashion_gan", "cifar10_gan"),
    *("cifar10_gan:cpu", "cifar10_gan_frozen", "cifar10_gan_frozen:cpu", "imagenet64_gan"),
    *("digits_ctm", "cifar10_ctm", "cifar10_ctm:cpu", "imagenet64_ctm"),
    *("digits_flow_map", "digits_flow_map:sct", "fashion_mean_flow:cpu", "cifar10_mean_flow"),
    *("cifar10_mean_flow:gpu", "cifar10_scm", "cifar10_ect", "cifar10_ect:gpu", "imagenet64_scm"),
    *("digits_dmd", "digits_msd", "cifar10_dmd2", "cifar10_dmd2:cpu", "imagenet64_dmd2"),
    *("cifar10_gan:gpu", "cifar10_dmd2:gpu", "cifar10_zoo", "cifar10_zoo:cpu", "fashion_zoo"),
    "cifar10_latents_zoo",
    *("imagenet64_msd", "digits_pagoda", "fashion_pagoda", "cifar10_pagoda"),
    *("imagenet64_to_512_pagoda", "fashion_lowdiff", "cifar10_lowdiff", "ffhq64_lowdiff"),
]


# Configs like others, of digits or CIFAR-10, but for their data and numbers.
ALIKE = (
    *("cifar10_guided", "cifar10_mean_flow", "cifar10_scm", "fashion_gan"),
    *("cifar10_ablation", "cifar10_methods", "imagenet64_guided", "lsun_church128_pd"),
    *("imagenet64_ctm", "imagenet64_scm", "imagenet64_dmd2", "imagenet64_msd", "imagenet64_gan"),
    *("imagenet64_pd", "lsun_bedroom128_pd", "imagenet64_to_512_pagoda", "ffhq64_lowdiff"),
)


@functools.cache
def read(name):
    """The experiment a config describes, and its planned runs."""
    experiment = configuration.parse(configuration.as_plain(config_named(name)))
    return experiment, plan(experiment, SHAPES[experiment.data.name])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "name",
    # Variants differ from their configs in numbers only.
    [pytest.param(n, marks=pytest.mark.slow) if ":" in n or n in ALIKE else n for n in VARIANTS],
)
def test_a_config_unfolds(name):
    _, runs = read(name)
    others = [r for r in runs.values() if r.run.method.name != "flow_map"]  # with a teacher or not
    assert [r.name for r in others if not r.given] == [
        r.name
        for r in others
        if r.run.method.name in ("codec", "imported", "teacher", "lowdiff")
        and "start" not in r.given
    ]
    if name.endswith("ablation"):
        assert len(runs) == 12
    elif not name.endswith("pagoda"):
        few = (1, 1, 1) if name.endswith("lowdiff") else 4 if name == "digits_dmd" else 1
        *_, last = runs.values()
        assert last.measured_at[0] == few  # digits_dmd's last is its multistep one


@pytest.mark.parametrize("name", VARIANTS)
def test_defaults_change_no_experiment(name):
    config = config_named(name)
    plain, whole = (configuration.as_plain(c) for c in (config, fill_defaults(config)))
    assert configuration.parse(whole) == configuration.parse(plain)
    assert configuration.as_plain(fill_defaults(fill_defaults(config))) == whole


@pytest.mark.parametrize("name", ["imagenet64_dmd2", "imagenet64_msd", "cifar10_dmd2"])
def test_the_warm_up_of_dmd2(name):
    """500 steps of a scheduler that steps for each of 7 devices in every update of the fake score,
    with every fifth of which the generator has one; and EDM's weight of its loss."""
    *_, stage = config_named(name).stages
    stage = stage.get("student", stage)
    warmup = 500 // 7
    assert (stage["fake_optimizer"]["warmup"], stage["optimizer"]["warmup"]) == (71, warmup // 5)
    assert stage["data_std"] == 0.5


@pytest.mark.parametrize(
    "name", ["cifar10_ctm", "imagenet64_ctm", "cifar10_pagoda", "imagenet64_to_512_pagoda"]
)
def test_ctm_and_pagoda_have_radam(name):
    """For generator and critic, without another warm-up; judges are averaged."""
    for stage in config_named(name).stages:
        if stage["method"] in ("ctm", "pagoda"):
            critic = stage.get("adversary")
            for optimizer in (stage["optimizer"], *([critic["optimizer"]] if critic else [])):
                assert optimizer["rule"] == "radam"
                assert "warmup" not in optimizer
            assert not critic or critic["mean_of_judges"]
        if stage.get("grown"):
            last = f"grown_{len(stage['grown']) - 1}.block_1/conv2/kernel"
            assert stage["layer"] in ("", last)  # of the last level's last block


@pytest.mark.parametrize(
    ("name", "parameters", "num_rounds", "updates"),
    [
        # The paper's figures; v has x's channels, so it has the x network's parameters.
        ("cifar10_pd", 60_004_099, 13, 800_000 + 750_000),
        ("imagenet64_pd:both", 295_905_222, 10, 550_000 + 600_000),
        pytest.param("cifar10_pd:x", 60_004_099, 13, 800_000 + 750_000, marks=pytest.mark.slow),
        *(
            pytest.param(name, 139_578_502, 10, 400_000 + 600_000, marks=pytest.mark.slow)
            for name in ("lsun_bedroom128_pd:both", "lsun_church128_pd:both")
        ),
    ],
)
def test_the_papers_sizes(name, parameters, num_rounds, updates):
    _, runs = read(name)
    planned = list(runs.values())
    assert count(planned[0].network.params) == parameters
    assert len(planned) == 1 + num_rounds
    assert sum(r.run.loop.num_updates for r in planned) == updates
    trained = [r.state.model.network for r in planned[:1]]
    trained += [r.state.student.network for r in planned[1:]]
    assert [getattr(network.module, "dropout", 0) > 0 for network in trained] == [
        True,
        *[False] * num_rounds,
    ]


@pytest.mark.parametrize(
    "name",
    [
        # Every network and every method once: what is left out differs in numbers only.
        "cifar10_pd",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *(
                    "cifar10_gan_frozen",
                    "cifar10_guided",
                    "imagenet64_pd:both",
                    "lsun_bedroom128_pd",
                    "imagenet64_msd",
                ),
                *("cifar10_ctm", "cifar10_pagoda", "cifar10_lowdiff"),
            )
        ),
    ],
)
def test_a_step_of_paper_size_traces_on_its_mesh(name):
    """The first model of each method: shapes, shardings over 8 devices, and a whole update."""
    experiment, runs = read(name)
    shape = SHAPES[experiment.data.name]
    mesh = make_mesh(experiment.mesh.data, experiment.mesh.fsdp, jax.devices())
    firsts = {r.run.method.name: r for r in reversed(runs.values()) if r.trains}
    if firsts.keys() & {"gan", "ctm", "dmd", "pagoda"}:
        del firsts["teacher"]  # that of cifar10_pd or imagenet64_pd
    for method in firsts.keys() & {"pagoda", "ctm"}:  # the last is grown, has a discriminator
        firsts[method] = [r for r in runs.values() if r.run.method.name == method][-1]
    for planned in firsts.values():
        update = trace_update(planned, runs, experiment, mesh, (50_000, *shape))
        state = (update.state, update.frozen)
        shards = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.sharding.shard_shape(a.shape), a.dtype), state
        )
        # Large leaves are cut over the fsdp axis; what is too small to cut is a few percent.
        assert count(shards) * mesh.shape["fsdp"] < 1.05 * count(state)
        after, metrics = update.traced.out_info
        assert metrics["values"]["loss"].shape == (1,)
        assert jax.tree.structure(after) == jax.tree.structure(update.state)


@pytest.mark.parametrize(
    "name", ["digits_methods", "digits_pagoda", "digits_msd", "fashion_lowdiff"]
)
def test_states_have_the_same_formats_in_double_precision(name, x64):
    """So that a checkpoint or a model of one is read in the other."""
    with jax.numpy_dtype_promotion("standard"):  # as in programs
        _, runs = read.__wrapped__(name)
    for planned in runs.values():
        wide = [a.dtype for a in jax.tree.leaves(planned.state) if a.dtype.itemsize > 4]
        assert not [dtype for dtype in wide if not jnp.issubdtype(dtype, jax.dtypes.prng_key)]


def test_an_update_keeps_its_states_formats_in_double_precision(x64):
    experiment = configuration.parse(configuration.as_plain(tiny_gan()))
    with jax.numpy_dtype_promotion("standard"):
        runs = plan(experiment, SHAPES["digits"])
        update = trace_update(
            runs["gan"], runs, experiment, make_mesh(devices=jax.devices()), (64, 8, 8, 1)
        )
    formats = [
        [a.dtype for a in jax.tree.leaves(s)] for s in (update.state, update.traced.out_info[0])
    ]
    assert formats[0] == formats[1]


@pytest.mark.parametrize(
    "name",
    [
        *("fashion_lowdiff", "cifar10_lowdiff"),
        pytest.param("ffhq64_lowdiff", marks=pytest.mark.slow),
    ],
)
def test_a_cascade_is_like_its_teacher(name):
    """Parameters within 3 percent, and the FLOPs of an update within as many: layers of three sizes
    instead of one, and splits of round numbers."""
    _, runs = read(name)
    teacher, lowdiff, *_ = runs.values()
    sizes = [count(planned.network.params) for planned in (teacher, lowdiff)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    costs = map(lowdiff.network.flops, lowdiff.network.sizes)
    update = sum(n * cost for n, cost in zip(lowdiff.run.method.split, costs, strict=True))
    batch = teacher.run.loop.batch_size * teacher.network.flops()
    assert update == pytest.approx(batch, rel=0.03)
    assert lowdiff.run.loop.num_updates == teacher.run.loop.num_updates


OVERRIDES = (
    *("seed", "mesh.data", "mesh.fsdp", "data.resident", "evaluation.num_samples", "model.head"),
    *("stages[0].loop.num_updates", "stages[0].loop.log_every", "stages[0].optimizer.clip_norm"),
)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_readmes_overrides_are_keys_of_every_config(name):
    config = fill_defaults(config_named(name))
    for path in OVERRIDES:
        config_path.get_value(path, config)  # KeyError if it cannot be overridden


@pytest.mark.parametrize("name", ["digits_pd", "cifar10_pd", "cifar10_pd:cpu", "fashion_pd:cpu"])
def test_the_readmes_overrides_of_rounds_are_keys(name):
    config = fill_defaults(config_named(name))
    config_path.get_value("stages[1].loop.substeps", config)


def test_the_docstrings_override_is_a_key():
    config = fill_defaults(config_named("imagenet64_gan"))
    assert config_path.get_value("stages[1].fixed", config) == "none"


def test_the_zoos_teacher_of_latents_goes_on(monkeypatch, tmp_path):
    """In the latents of its own codec, at half of the rate; elsewhere there is none."""
    monkeypatch.chdir(Path(__file__).parents[1])
    if not Path("zoo").is_dir():
        pytest.skip("the zoo is in the repository only")
    fresh, more = (config_named(f"cifar10_latents_zoo{v}") for v in ("", ":more"))
    runs = plan(configuration.parse(configuration.as_plain(more)), SHAPES["cifar10"])
    assert runs["teacher"].given == {"start": "zoo"}
    assert {r.codec.path for r in runs.values()} == {"zoo/cifar10_latents/codec"}
    rates = [config.stages[1]["optimizer"]["learning_rate"] for config in (fresh, more)]
    assert rates[0] == 2 * rates[1]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no zoo/cifar10_latents here"):
        config_named("cifar10_latents_zoo:more")


def test_the_zoos_teacher_goes_on(monkeypatch, tmp_path):
    """At a quarter of the rate, where there is one; students take it as it is."""
    _, runs = read("cifar10_zoo")
    assert count(runs["gan"].network.params) <= 4_500_000
    monkeypatch.chdir(tmp_path)
    fresh, *students = config_named("cifar10_zoo").stages
    with pytest.raises(ValueError, match="there is no zoo/cifar10/teacher here"):
        config_named("cifar10_zoo:students")
    small = {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention_sizes": ()}
    blank = runs["teacher"].network.blank.with_module({"embedding_channels": 8, **small})
    network = jax.jit(blank.init)(jax.random.key(0))
    card = teacher_card(network, method="teacher", source="teacher", num_steps=18)
    write_model("zoo/cifar10/teacher", Conversion(network, card))
    config = config_named("cifar10_zoo")
    rates = [stage["optimizer"]["learning_rate"] for stage in (fresh, config.stages[1])]
    assert rates[0] == pytest.approx(4 * rates[1])
    config.stages[-1]["adversary"]["judges"] = ({"features": "pixels", "halvings": (1,)},)
    runs = plan(configuration.parse(configuration.as_plain(config)), SHAPES["cifar10"])
    names = [stage["name"] for stage in students]
    assert list(runs) == ["zoo", "teacher", *names]
    assert runs["teacher"].given == {"start": "zoo"}
    assert runs["gan"].network.blank.module == blank.module
    first, *others = config_named("cifar10_zoo:students").stages
    assert (first["method"], [stage["name"] for stage in others]) == ("imported", names)
    assert [stage["name"] for stage in config_named("cifar10_zoo:teacher").stages] == [
        "zoo", "teacher"
    ]  # fmt: skip


def test_consistency_training_has_its_own_dropout():
    """Whatever an imported network has, such as EDM's 0.13; sCD has none, as any with a teacher."""
    rates = {
        stage["name"]: stage.get("network", {}).get("dropout")
        for name in ("cifar10_ect", "cifar10_scm")
        for stage in config_named(name).stages
        if stage["method"] == "flow_map"
    }
    assert rates == {"ect": 0.2, "sct": 0.2, "scd": None}


def test_which_models_take_any_count_of_steps():
    """Rounds and generators take their own, flow maps and teachers any."""
    _, runs = read("digits_methods")
    taken = {name: runs[name].made_for for name in ("teacher", "progressive/4", "gan", "ctm")}
    assert taken == {"teacher": (), "progressive/4": (4,), "gan": (1,), "ctm": ()}
    _, runs = read("fashion_lowdiff")
    assert runs["distilled/1"].made_for == ((1, 1, 1),)


def test_a_generator_is_measured_at_its_steps():
    config = tiny_gan()
    config.stages[1].update(num_steps=2, measured_at=(2, 4))
    experiment = configuration.parse(configuration.as_plain(config))
    with pytest.raises(configuration.ConfigError, match=r"made for \(2,\) steps; got \(2, 4\)"):
        plan(experiment, SHAPES["digits"])


def test_stages_share_nothing():
    """An override of one is none of another."""
    config = fill_defaults(config_named("cifar10_methods:cpu"))
    config_path.set_value("stages[2].adversary.r1", config, 7.0)
    config_path.set_value("stages[2].loop.num_updates", config, 7)
    for stage in config.stages[3:5]:
        assert (stage["adversary"]["r1"], stage["loop"]["num_updates"]) == (1e-3, 800)


@pytest.mark.parametrize("stage", [gan, dmd, ctm, lambda _, loop, **kw: ctm_gan(loop, **kw)])
def test_a_stage_has_what_its_caller_says(stage):
    given = {"select": "fd_classifier", "adversary": {"r1": 7.0}}
    assert stage("name", loop={}, **given).items() >= {**given, "loop": {}}.items()


def parts(value):
    """All dicts in a config, itself included."""
    if isinstance(value, ConfigDict | dict):
        yield value
        value = [value[key] for key in value]
    for item in value if isinstance(value, list | tuple) else ():
        yield from parts(item)


FILES = {path.stem for path in CONFIGS.glob("[a-z]*.py")} - {*SHARED, "own_images"}


@pytest.mark.parametrize("name", sorted({*VARIANTS, *FILES, "own_images:digits:cpu"}))
def test_a_change_in_place_is_none_of_another_stage_or_config(name):
    configs = [config_named(name) for _ in range(2)]
    ids = [id(part) for config in configs for part in parts(config)]
    assert len(ids) == len(set(ids))

"""Every config parses and unfolds; the papers' build their state and trace a step, abstractly."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections.config_flags import config_path

from benchmarks.common import config_named
from pdistill.experiment import config as configuration
from pdistill.runtime.mesh import make_mesh, param_sharding
from pdistill.training import compile_update

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
    *("digits_dmd", "digits_msd", "cifar10_dmd2", "cifar10_dmd2:cpu", "imagenet64_dmd2"),
    *("cifar10_gan:gpu", "cifar10_dmd2:gpu"),
    *("imagenet64_msd", "digits_pagoda", "fashion_pagoda", "cifar10_pagoda"),
    *("imagenet64_to_512_pagoda", "fashion_lowdiff", "cifar10_lowdiff", "ffhq64_lowdiff"),
]


def read(name):
    """The experiment a config describes, and its rounds."""
    experiment = configuration.parse(configuration.as_plain(config_named(name)))
    return experiment, experiment.rounds(SHAPES[experiment.data.name])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_unfolds(name):
    _, rounds = read(name)
    assert [r.name for r in rounds if r.parent is None] == [
        r.name for r in rounds if r.method_name in ("teacher", "lowdiff")
    ]
    if name.endswith("ablation"):
        assert len(rounds) == 12
    elif not name.endswith("pagoda"):
        few = (1, 1, 1) if name.endswith("lowdiff") else 4 if name == "digits_dmd" else 1
        assert rounds[-1].num_steps[0] == few  # digits_dmd's last is its multistep one


@pytest.mark.parametrize(
    ("name", "parameters", "num_rounds", "updates"),
    [
        # The paper's figures; v has x's channels, so it has the x network's parameters.
        ("cifar10_pd", 60_004_099, 13, 800_000 + 750_000),
        ("cifar10_pd:x", 60_004_099, 13, 800_000 + 750_000),
        ("imagenet64_pd:both", 295_905_222, 10, 550_000 + 600_000),
        ("lsun_bedroom128_pd:both", 139_578_502, 10, 400_000 + 600_000),
        ("lsun_church128_pd:both", 139_578_502, 10, 400_000 + 600_000),
    ],
)
def test_the_papers_sizes(name, parameters, num_rounds, updates):
    experiment, rounds = read(name)
    shape = SHAPES[experiment.data.name]
    assert count(rounds[0].method.diffuser.param_shapes(shape)) == parameters
    assert len(rounds) == 1 + num_rounds
    assert sum(r.loop.num_updates for r in rounds) == updates
    assert [getattr(r.method.diffuser.network, "dropout", 0) > 0 for r in rounds] == [
        True,
        *[False] * num_rounds,
    ]


@pytest.mark.parametrize(
    "name",
    [
        # Every network and every method once: what is left out differs in numbers only.
        *("cifar10_pd", "cifar10_guided", "imagenet64_pd:both", "lsun_bedroom128_pd"),
        *("cifar10_gan_frozen", "cifar10_ctm", "imagenet64_msd"),
        *("cifar10_pagoda", "cifar10_lowdiff"),
    ],
)
def test_a_step_of_paper_size_traces_on_its_mesh(name):
    """The first model of each method: shapes, shardings over 8 devices, and a whole update."""
    experiment, rounds = read(name)
    shape = SHAPES[experiment.data.name]
    mesh = make_mesh(experiment.mesh.data, experiment.mesh.fsdp)
    key = jax.eval_shape(lambda: jax.random.key(0))
    by_name = {r.name: r for r in rounds}
    firsts = {r.method_name: r for r in reversed(rounds) if r.loop}
    if firsts.keys() & {"gan", "ctm", "dmd", "pagoda"}:
        del firsts["teacher"]  # that of cifar10_pd or imagenet64_pd
    for method in firsts.keys() & {"pagoda", "ctm"}:  # the last is grown, has a discriminator
        firsts[method] = [r for r in rounds if r.method_name == method][-1]
    for r in firsts.values():
        parents = [by_name.get(name, r) for name in r.parents]
        params = [parent.method.diffuser.param_shapes(parent.noise_shape) for parent in parents]
        state = jax.eval_shape(r.init, key, *params)
        shards = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                sharding.shard_shape(leaf.shape), leaf.dtype
            ),
            state, param_sharding(state, mesh),
        )  # fmt: skip
        # Large leaves are cut over the fsdp axis; what is too small to cut is a few percent.
        assert count(shards) * mesh.shape["fsdp"] < 1.05 * count(state)

        batch = (r.loop.substeps, r.loop.batch_size)
        spec = jax.ShapeDtypeStruct
        if experiment.data.resident:
            resident = {"image": spec((50_000, *shape), jnp.uint8), "label": spec((50_000,), int)}
            raw = {"index": spec(batch, jnp.int32)}
            if r.latents:
                resident["latent"] = spec((50_000, 2, *r.noise_shape), jnp.float16)
        else:
            resident = {}
            raw = {"image": spec((*batch, *shape), jnp.uint8), "label": spec(batch, jnp.int32)}
        factor = shape[0] // r.image_shape[0]
        update = compile_update(r.method, mesh, experiment.data.flip, factor)
        after, metrics = jax.eval_shape(
            update, state.replace(frozen={}), state.frozen, resident, raw, key
        )
        assert metrics["loss"].shape == (r.loop.substeps,)
        assert jax.tree.structure(after.learners) == jax.tree.structure(state.learners)


@pytest.mark.parametrize("name", ["fashion_lowdiff", "cifar10_lowdiff", "ffhq64_lowdiff"])
def test_a_cascade_is_like_its_teacher(name):
    """Parameters within 3 percent, and the FLOPs of an update within as many: layers of three sizes
    instead of one, and splits of round numbers."""
    experiment, (teacher, lowdiff, *_) = read(name)
    shape = SHAPES[experiment.data.name]
    of_teacher, of_cascade = (r.method.diffuser for r in (teacher, lowdiff))
    sizes = [count(diffuser.param_shapes(shape)) for diffuser in (of_teacher, of_cascade)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    costs = map(of_cascade.flops, of_cascade.sizes(shape))
    update = sum(n * cost for n, cost in zip(lowdiff.method.split, costs, strict=True))
    assert update == pytest.approx(teacher.loop.batch_size * of_teacher.flops(shape), rel=0.03)
    assert lowdiff.loop.num_updates == teacher.loop.num_updates


@pytest.mark.parametrize("name", ["digits_pd", "cifar10_pd", "cifar10_pd:cpu", "fashion_pd:cpu"])
def test_the_readmes_overrides_are_keys_of_every_config(name):
    config = config_named(name)
    for path in (
        "seed", "mesh.data", "mesh.fsdp", "data.resident", "evaluation.num_samples",
        "stages[0].loop.num_updates", "stages[0].loop.log_every", "stages[1].loop.substeps",
    ):  # fmt: skip
        config_path.get_value(path, config)  # KeyError if it cannot be overridden


def test_the_docstrings_override_is_a_key():
    config = config_named("imagenet64_gan")
    assert config_path.get_value("stages[1].frozen", config) == "none"

"""Transformers whose blocks are one loop, against the same with a block after the other."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import tiny_dmd
from tiny_training import in_double

from pdistill import diffusion
from pdistill.experiment.config import as_plain, parse
from pdistill.experiment.plan import plan
from pdistill.methods import Progressive, Teacher
from pdistill.methods.parts.balance import balanced_update
from pdistill.networks import Conditioning, DiT, Network, SiT, UNet
from pdistill.networks.blocks import STACKED
from pdistill.training import Learner, Optimizer
from pdistill.training.freezing import merge, partition
from pdistill.training.stacking import stacked, unstacked

DEPTH, SHAPE, BATCH = 3, (4, 4, 2), 2
OURS = DiT(2, features=8, depth=DEPTH, heads=2, num_labels=3)
THEIRS = SiT(2, features=8, depth=DEPTH, heads=2, num_labels=3)
LATE = {"target": True, "target_blocks": 1}
MODULES = {
    "ours": OURS,
    "ours, modern": OURS.clone(rope=True, swiglu=True, registers=2),
    "ours, late": OURS.clone(remat=True, **LATE),
    "theirs": THEIRS,
    "theirs, late": THEIRS.clone(rope=True, swiglu=True, **LATE),
}


def network_of(module):
    """A network in double precision, nothing of it zero."""
    with jax.enable_x64(False):  # as networks are made
        made = Network(None, module, "v", diffusion.CosineSchedule(), SHAPE).shapes
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(scale=0.3, size=a.shape)), made)


def inputs():
    rng = np.random.default_rng(1)
    told = Conditioning(jnp.array([0, 2]), target=jnp.array([3.0, 4.0]))
    return jnp.asarray(rng.normal(size=(BATCH, *SHAPE))), jnp.array([-2.0, 1.0]), told


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_loop_is_the_same_function(module, x64):
    """With its gradient, its derivative forwards and its blocks' maps."""
    network, (z, logsnr, told) = network_of(module), inputs()

    def along(network, z):
        return jax.jvp(lambda z: network.v(z, logsnr, told), (z,), (z**2,))

    def everything(network):
        grad = jax.grad(lambda network: (network.v(z, logsnr, told) ** 2).mean())(network)
        return along(network, z), unstacked(grad), network.features(z, logsnr, told)

    loop = stacked(network)
    assert loop.blank == network.blank
    assert set(loop.params) - set(network.params) == {STACKED}
    near = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)
    near(jax.jit(everything)(network), jax.jit(everything)(loop))
    chex.assert_trees_all_equal(unstacked(loop), network)


def test_a_loop_is_traced_for_one_block():
    sizes = {}
    for depth in (2, 8):
        network = network_of(OURS.clone(depth=depth))
        v = lambda network: network.v(jnp.zeros((1, *SHAPE)), jnp.zeros(1))  # noqa: E731
        traced = [str(jax.make_jaxpr(v)(each)) for each in (network, stacked(network))]
        sizes[depth] = [text.count("dot_general") for text in traced]
    assert sizes[2][0] < sizes[8][0]
    assert sizes[2][1] == sizes[8][1] < sizes[2][0]


@pytest.mark.parametrize("rule", ["adam", "muon"])
def test_updates_are_the_same(rule, x64):
    """Of a student with its teacher, its averages and the optimizer's moments."""
    optimizer = Optimizer(1e-2, rule=rule, ema_decay=0.9, weight_decay=0.1)
    method = Progressive(optimizer=optimizer, start_steps=4, end_steps=2)
    with jax.enable_x64(False):
        state = method.init(jax.random.key(0), teacher=network_of(OURS), num_steps=2)
    state = in_double(state)
    image, _, told = inputs()
    batch = {"image": image, "label": told.label}
    looped = stacked(state)
    step = jax.jit(method.step)
    for i in range(3):
        key = jax.random.key(i)
        (state, metrics), (looped, same) = step(state, batch, key), step(looped, batch, key)
    chex.assert_trees_all_close(metrics, same, rtol=1e-6)
    chex.assert_trees_all_close(state, unstacked(looped), rtol=1e-6, atol=1e-8)
    moments = jax.tree.leaves(looped.student.opt_state, is_leaf=lambda a: isinstance(a, Network))
    assert any(isinstance(a, Network) and STACKED in a.params for a in moments)


def test_losses_are_balanced_on_the_layer_of_one_block(x64):
    with jax.enable_x64(False):
        learner = Learner.of(network_of(OURS), Optimizer(1e-2))
    learner, (z, logsnr, told) = in_double(learner), inputs()

    def losses(network):
        v = network.v(z, logsnr, told)
        return {"square": (v**2).mean(), "sine": jnp.sin(v).mean()}, None

    def update(learner):
        return balanced_update(
            losses, learner, layer="block_1/mlp_out/kernel", first="square",
            limits={"sine": (0.0, 1e4)}, factors={"sine": 2.0},
        )[:2]  # fmt: skip

    (new, metrics), (looped, same) = jax.jit(update)(learner), jax.jit(update)(stacked(learner))
    chex.assert_trees_all_close(metrics, same, rtol=1e-9)
    chex.assert_trees_all_close(new, unstacked(looped), rtol=1e-6, atol=1e-9)


def test_dropout_of_each_block_is_its_own():
    """With one pattern for all blocks, those that are zero would drop one set of tokens."""
    network = stacked(network_of(OURS.clone(dropout=0.5)))
    blocks = jax.tree.map(jnp.zeros_like, network.params[STACKED])
    network = network.replace(params=network.params | {STACKED: blocks})
    z, logsnr, told = inputs()
    _, sown = network.module.apply(
        {"params": network.params}, z, logsnr, told, train=True, mutable=["maps"],
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    kept = [np.asarray(tokens != 0) for tokens in sown["maps"]["maps"]]
    assert len(kept) == DEPTH
    for before, after in itertools.pairwise(kept):
        assert not (after & ~before).any()
        assert 0.2 < after.sum() / before.sum() < 0.8


def test_parts_that_are_fixed_stay_with_their_names():
    """Rules for single blocks would not find them in a stack."""
    network = network_of(OURS)
    learner = Learner.of(network, Optimizer(1e-3), fixed=("block_1/",))
    state = {"student": learner, "teacher": network}
    loop = stacked(state)
    assert STACKED in loop["teacher"].params
    chex.assert_trees_all_equal(loop["student"], learner)
    learning, held = partition(learner.network.params, learner.fixed)
    chex.assert_trees_all_equal(merge(learning, held), network.params)


def test_guides_are_stacked_too():
    network = network_of(OURS)
    guided = stacked(network.guided_by(network))
    assert STACKED in guided.params
    assert STACKED in guided.guide.params
    chex.assert_trees_all_equal(unstacked(guided).guide.params, network.params)


def test_nothing_to_stack():
    unet = network_of(UNet(2, channels=8, embedding_channels=8, multipliers=(1,), blocks=1))
    with pytest.raises(ValueError, match="no network of this stage has equal blocks"):
        stacked(Teacher(optimizer=Optimizer(1e-3)).init(jax.random.key(0), model=unet))
    chex.assert_trees_all_equal(unstacked(unet), unet)


def test_a_stage_that_goes_on_with_what_another_learnt(finished):
    """A fake score, whose state is stacked, and a discriminator on the maps of its blocks."""
    config = tiny_dmd()
    config.model.network.arguments.depth = 2
    config.evaluation.references = ("train",)
    for stage in config.stages:
        stage["loop"]["scan_blocks"] = True
    runs = plan(parse(as_plain(config)), (8, 8, 1))
    for run in runs.values():
        assert STACKED in str(jax.tree.structure(run.state))
        assert STACKED not in run.network.params
    directory = finished(config)
    for name in runs:
        assert (directory / name / "model" / "model.json").exists()

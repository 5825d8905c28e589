"""Methods take imported networks: as teacher, as student, with a guidance input, as a judge."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.data.images import repeat
from pdistill.diffusion import CosineSchedule, DdpmSchedule, KarrasSchedule
from pdistill.methods import Guided, Progressive
from pdistill.methods.parts.balance import OUTPUT, find_layer
from pdistill.networks import (
    Conditioning,
    DhariwalUNet,
    DiffusersDiT,
    DiffusersUNet,
    Edm2UNet,
    Network,
    SongUNet,
)
from pdistill.training import Optimizer
from pdistill.training.freezing import PRESETS, partition, preset

SHAPE = (8, 8, 3)
KEY = jax.random.key(0)
OPTIMIZER = Optimizer(1e-3)
EDM = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_sizes": (4,), "num_labels": 3}
NETWORKS = {
    "song": (SongUNet(3, dropout=0.1, **EDM), "v", KarrasSchedule()),
    "dhariwal": (DhariwalUNet(3, ("vp",), dropout=0.1, **EDM), "eps", CosineSchedule()),
    "edm2": (Edm2UNet(3, dropout=0.1, head_channels=8, **EDM), "v", KarrasSchedule()),
    "unet": (
        DiffusersUNet(
            3, channels=(8, 16), blocks=1, groups=4, middle_groups=4, resample_down=("resnet",),
            resample_up=("conv",), wave_channels=8, embedding_channels=16, num_labels=3, dropout=0.1
        ),
        "eps",
        DdpmSchedule(),
    ),
    "dit": (
        DiffusersDiT(3, ("ddpm", "v"), depth=2, heads=2, head_channels=4, num_labels=3),
        "v",
        DdpmSchedule(),
    ),
}  # fmt: skip
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32),
    "label": jnp.arange(4) % 3,
}


def blank(name, **changes):
    module, head, schedule = NETWORKS[name]
    return Network(
        None, module=module.clone(**changes), head=head, schedule=schedule, shape=SHAPE,
        guidance=(0.0, 4.0),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["song", "edm2", "unet", "dit"])
def test_guided_student(name):
    """Traced, not compiled: it has a teacher's pair, labels, and a guidance input of its own."""
    teacher, guided = blank(name).shapes, Guided(optimizer=OPTIMIZER)
    state, metrics = jax.eval_shape(
        lambda key, teacher: guided.step(guided.init(key, teacher=teacher), BATCH, key),
        KEY,
        teacher,
    )
    chex.assert_shape(metrics["loss"], ())
    assert len(jax.tree.leaves(state.student.network)) > len(jax.tree.leaves(teacher))


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_and_maps(name):
    x, told = BATCH["image"], Conditioning(label=BATCH["label"])

    def run(network):
        v = network.v(x, jnp.zeros(4), told, dropout_key=KEY)
        return v, network.features(x, jnp.zeros(4), told)

    v, maps = jax.eval_shape(run, blank(name).shapes)
    chex.assert_equal_shape([v, x])
    assert len(maps) == 2
    chex.assert_equal_shape_prefix([*maps, x], 1)


def test_frozen_groups_of_edm():
    """The preset of D2O-F knows EDM's names: convolutions of the blocks, attention's output."""
    _, frozen = partition(blank("song").shapes.params, PRESETS["d2o_f"])
    assert sorted(frozen["dec.4x4_in0"]) == ["conv0", "conv1", "proj"]
    assert "map_layer0" not in frozen
    _, frozen = partition(blank("edm2").shapes.params, PRESETS["d2o_f"])
    assert sorted(frozen["dec.4x4_in0"]) == ["attn_proj", "conv_res0", "conv_res1"]


def test_the_last_layer_of_edm2():
    """It has no bias, by which those of others are known."""
    assert find_layer(OUTPUT, blank("edm2").shapes) == "out_conv/kernel"


@pytest.mark.parametrize(
    ("name", "finest"),
    [
        ("song", "dec.8x8_"), ("dhariwal", "dec.8x8_"), ("edm2", "dec.8x8_"),
        ("unet", "up_blocks.1."),
    ],
)  # fmt: skip
def test_growth(name, finest):
    """All that is there is taken; PaGoDA trains what is new and the finest level before it."""
    large, report = blank(name, grown=(8,), grown_blocks=1).shapes.taking(blank(name).shapes)
    assert large.image_shape == (16, 16, 3)
    assert not report.unused
    learning, _ = partition(large.params, preset("pagoda", large.params))
    ends = (finest, "grown_0", "out_", "conv_out", "conv_norm_out")
    assert {layer for layer in large.params if layer.startswith(ends)} == set(learning)


@pytest.mark.slow  # tests/methods/test_pagoda.py has a U-Net's
@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("song", "dec.8x8_aux_conv"), ("dhariwal", "out_conv"), ("edm2", "out_conv"),
        ("unet", "conv_out"),
    ],
)  # fmt: skip
def test_what_has_grown_repeats_pixels_at_first(name, output):
    """With a head that looks at single pixels."""
    rng = np.random.default_rng(0)
    small = jax.tree.map(
        lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), blank(name).shapes
    )
    middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    small.params[output]["kernel"] *= middle
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    fresh = jit(blank(name, grown=(8,), grown_blocks=1).init)(KEY)
    large, _ = fresh.taking(small)
    told = Conditioning(label=BATCH["label"])
    draw = jit(lambda network: network.denoise(BATCH["image"], jnp.full(4, -4.0), told))
    np.testing.assert_allclose(draw(large), repeat(draw(small), 2), rtol=1e-3, atol=1e-3)


def test_a_round_of_progressive_distillation():
    rng = np.random.default_rng(0)
    teacher = jax.tree.map(
        lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32),
        blank("dit", depth=1).shapes,
    )
    method = Progressive(optimizer=OPTIMIZER, start_steps=8)
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    step, state = jit(method.step), jit(method.init)(KEY, teacher=teacher, num_steps=4)
    losses = []
    for _ in range(4):
        state, metrics = step(state, BATCH, KEY)
        losses.append(float(metrics["loss"]))
    assert 0 < losses[-1] < losses[0]

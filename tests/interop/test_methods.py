"""Methods take imported networks: as teacher, as student, with a guidance input, as a judge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.diffusion import CosineSchedule, DdpmSchedule, KarrasSchedule
from pdistill.methods import Guided, Progressive
from pdistill.networks import DhariwalUNet, Diffuser, DiffusersDiT, DiffusersUNet, SongUNet
from pdistill.training import Optimizer
from pdistill.training.freezing import PRESETS, partition

SHAPE = (8, 8, 3)
KEY = jax.random.key(0)
OPTIMIZER = Optimizer(1e-3)
EDM = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_sizes": (4,), "num_labels": 3}
NETWORKS = {
    "song": (SongUNet(3, dropout=0.1, **EDM), "v", KarrasSchedule()),
    "dhariwal": (DhariwalUNet(3, ("vp",), dropout=0.1, **EDM), "eps", CosineSchedule()),
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


@pytest.mark.parametrize("name", ["song", "unet", "dit"])
def test_guided_student(name):
    """Traced, not compiled: it has a teacher's pair, labels, and a guidance input of its own."""
    diffuser = Diffuser(*NETWORKS[name])
    params = diffuser.param_shapes(SHAPE)
    teacher = diffuser.without_dropout()
    guided = Guided(teacher.with_guidance(), OPTIMIZER, teacher=teacher)
    state, metrics = jax.eval_shape(
        lambda key, p: guided.step(guided.init(key, p, SHAPE), BATCH, key), KEY, params
    )
    assert metrics["loss"].shape == ()
    assert len(jax.tree.leaves(state.learners["student"].params)) > len(jax.tree.leaves(params))


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_and_maps(name):
    diffuser = Diffuser(*NETWORKS[name])
    params, (x, label) = diffuser.param_shapes(SHAPE), BATCH.values()
    v = functools.partial(diffuser.v, label=label, dropout_key=KEY)
    assert jax.eval_shape(v, params, x, jnp.zeros(4)).shape == x.shape
    maps = jax.eval_shape(diffuser.maps, params, x, jnp.zeros(4), label)
    assert len(maps) == 2
    assert all(m.shape[0] == 4 for m in maps)


def test_frozen_groups_of_edm():
    """The preset of D2O-F knows EDM's names: convolutions of the blocks, attention's output."""
    _, frozen = partition(Diffuser(*NETWORKS["song"]).param_shapes(SHAPE), PRESETS["d2o_f"])
    assert sorted(frozen["dec.4x4_in0"]) == ["conv0", "conv1", "proj"]
    assert "map_layer0" not in frozen


def test_a_round_of_progressive_distillation():
    network, *rest = NETWORKS["dit"]
    diffuser = Diffuser(network.clone(depth=1), *rest)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32),
        diffuser.param_shapes(SHAPE),
    )
    method = Progressive(diffuser, OPTIMIZER)
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    step, state = jit(method.step), jit(method.init)(params, 4)
    losses = []
    for _ in range(4):
        state, metrics = step(state, BATCH, KEY)
        losses.append(float(metrics["loss"]))
    assert 0 < losses[-1] < losses[0]

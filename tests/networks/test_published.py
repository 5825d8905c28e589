"""Networks of others at the published sizes: counts of the original code's parameters.

What they compute is compared in tests/interop.
"""

import json

import jax
import jax.numpy as jnp
import pytest

from pdistill.networks import (
    DhariwalUNet,
    DiffusersDiT,
    DiffusersUNet,
    Network,
    SongUNet,
    build_network,
    describe_network,
)
from pdistill.training.freezing import count

NCSNPP = {"waves": "fourier", "wave_multiplier": 2, "residual": True, "taps": (1, 3, 3, 1)}
AUGMENT = 9 * 128  # weights of EDM's augmentation labels, which are left out
SIZES = {
    "ddpmpp": (SongUNet(3, multipliers=(2, 2, 2)), 32, 55_733_891 - AUGMENT),
    # 128 frequencies are a parameter here and a buffer there.
    "ncsnpp": (SongUNet(3, multipliers=(2, 2, 2), **NCSNPP), 32, 56_397_827 - 2 * AUGMENT + 128),
    "adm": (DhariwalUNet(3, num_labels=1000), 64, 295_899_267),
    "ddpm": (DiffusersUNet(3, wave_shift=1.0), 32, 35_746_307),
}


@pytest.mark.parametrize(("network", "size", "parameters"), SIZES.values(), ids=SIZES)
def test_published_sizes(network, size, parameters):
    shape = (size, size, 3)
    blank = Network(None, module=network, head="v", schedule=None, shape=shape)
    assert count(blank.shapes) == parameters


SMALL = {
    "fourier": SongUNet(1, channels=32, multipliers=(1,), blocks=1, num_labels=3, **NCSNPP),
    "labels": DiffusersUNet(1, channels=(32,), blocks=1, attention=(), num_labels=3),
}


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
def test_parameters_have_the_same_formats_in_double_precision(x64, network):
    blank = Network(None, module=network, head="v", schedule=None, shape=(8, 8, 1))
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(blank.init, jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("cls", [SongUNet, DhariwalUNet, DiffusersUNet, DiffusersDiT])
def test_descriptions_rebuild_networks(cls):
    network = cls(3, num_labels=7, dropout=0.1, convention=("vp", 0.2, 10.0, 999.0))
    description = json.loads(json.dumps(describe_network(network)))
    assert build_network(**description) == network
    hash(build_network(**description))  # networks are static arguments of jit

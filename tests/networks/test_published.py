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
    Edm2UNet,
    Network,
    SiT,
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
# EDM2's for 512 pixels, with 128 parameters of the loss's weights, which are left out.
EDM2 = {
    "xxs": (64, 31_309_029),
    "xs": (128, 124_713_253),
    "s": (192, 280_212_837),
    "m": (256, 497_807_781),
    "l": (320, 777_498_085),
    "xl": (384, 1_119_283_749),
    "xxl": (448, 1_523_164_773),
}
ALIKE = ("edm2_s", "edm2_m", "edm2_l", "edm2_xl")  # the others, but for one number
for name, (channels, parameters) in EDM2.items():
    # Frequencies and phases of waves are parameters here and buffers there.
    own = parameters - 128 + 2 * channels
    SIZES[f"edm2_{name}"] = Edm2UNet(4, channels=channels, num_labels=1000), 64, own


@pytest.mark.parametrize(
    ("network", "size", "parameters"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if name in ALIKE else ())
        for name, case in SIZES.items()
    ],
)
def test_published_sizes(network, size, parameters):
    shape = (size, size, network.out_channels)
    blank = Network(None, module=network, head="v", schedule=None, shape=shape)
    assert count(blank.shapes) == parameters


LIGHTNING = {"patch": 1, "rms_norm": True, "rope": True, "swiglu": True}
TRANSFORMERS = {  # without the fixed positions, which their authors' code counts
    "sit_xl2": (SiT(8), 4, 674_834_720),
    "sit_xl2_velocity": (SiT(4), 4, 674_816_272),
    "sit_l2": (SiT(8, features=1024, depth=24, heads=16), 4, 457_840_672),
    "sit_b2": (SiT(8, features=768, depth=12, heads=12), 4, 130_315_808),
    "sit_s2": (SiT(8, features=384, depth=12, heads=6), 4, 32_865_056),
    "lightningdit_b1": (SiT(32, features=768, depth=12, heads=12, **LIGHTNING), 32, 130_359_584),
    "lightningdit_xl1": (SiT(32, **LIGHTNING), 32, 674_961_824),
    "lightningdit_1b": (
        SiT(32, features=1536, depth=24, heads=24, **LIGHTNING), 32, 1_029_007_904,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "channels", "parameters"), TRANSFORMERS.values(), ids=TRANSFORMERS
)
def test_published_transformers(network, channels, parameters):
    shape = (16 * network.patch, 16 * network.patch, channels)
    blank = Network(None, module=network, head="velocity", schedule=None, shape=shape)
    assert count(blank.shapes) == parameters


SMALL = {
    "fourier": SongUNet(1, channels=32, multipliers=(1,), blocks=1, num_labels=3, **NCSNPP),
    "edm2": Edm2UNet(1, channels=8, multipliers=(1,), blocks=1, num_labels=3),
    "labels": DiffusersUNet(1, channels=(32,), blocks=1, attention=(), num_labels=3),
}


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
def test_parameters_have_the_same_formats_in_double_precision(x64, network):
    blank = Network(None, module=network, head="v", schedule=None, shape=(8, 8, 1))
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(blank.init, jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


PUBLISHED = [SongUNet, DhariwalUNet, DiffusersUNet, DiffusersDiT, Edm2UNet, SiT]


@pytest.mark.parametrize("cls", PUBLISHED)
def test_descriptions_rebuild_networks(cls):
    network = cls(3, num_labels=7, dropout=0.1, convention=("vp", 0.2, 10.0, 999.0))
    description = json.loads(json.dumps(describe_network(network)))
    assert build_network(**description) == network
    hash(build_network(**description))  # networks are static arguments of jit

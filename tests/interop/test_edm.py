"""Against networks of EDM, pickled by its own code; and pickles that are not as they should be."""

import lzma
import random
import re
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from comparison import check_parity, checkpoint
from test_torch_files import attack, call, named, program, value

from pdistill.diffusion import KarrasSchedule, LinearBetaSchedule, LinearLogsnrSchedule
from pdistill.interop import ConversionError, convert_edm, edm

FOLDER = Path(__file__).parents[1] / "fixtures/interop/edm"
NETWORKS = {
    "ddpmpp_edm": ("song_unet", "v", KarrasSchedule()),
    "ddpmpp_vp": ("song_unet", "eps", LinearBetaSchedule()),
    "ncsnpp_ve": ("song_unet", "eps", LinearLogsnrSchedule(-2 * np.log(100), -2 * np.log(0.02))),
    "adm_edm": ("dhariwal_unet", "v", KarrasSchedule()),
}


def unpacked(name):
    return lzma.decompress((FOLDER / f"{name}.pkl.xz").read_bytes())


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """Converts the pickle `data`."""

    def convert(data, **options):
        path = tmp_path_factory.mktemp("edm") / "network.pkl"
        path.write_bytes(data)
        return convert_edm(path, **options)

    return convert


@pytest.mark.parametrize("name", NETWORKS)
def test_parity(convert, name):
    conversion = convert(unpacked(name))
    _, head, schedule = NETWORKS[name]
    assert conversion.network.head == head
    assert conversion.network.schedule == schedule
    with np.load(FOLDER / f"{name}.npz") as arrays:
        arrays = dict(arrays)
    check_parity(conversion, arrays, -2 * jnp.log(arrays["s"]), "denoised")


def test_card(convert):
    conversion = convert(unpacked("ddpmpp_edm"), num_steps=18)
    assert conversion.card["num_steps"] == 18
    assert conversion.card["num_labels"] == 4
    assert conversion.card["data"]["shape"] == (8, 8, 3)
    assert conversion.card["guidance"] is None  # it has labels, but none were left out


# --- Pickles that are not what they should be -----------------------------------------------------


def test_source_code_in_a_pickle_is_not_executed(convert):
    data = unpacked("ddpmpp_vp")
    assert b"raise SystemExit('source code in a pickle was executed')" in data
    convert(data)


@pytest.mark.parametrize("name", list(attack("")))
def test_nothing_executes(convert, tmp_path, name):
    marker = tmp_path / "marker"
    malice = attack(marker)[name]
    module = call(
        named("torch_utils.persistence", "_reconstruct_persistent_obj"),
        b"}" + value("class_name") + value("EDMPrecond") + b"s" + value("state") + malice + b"s",
    )
    for inside in (malice, b"}" + value("ema") + malice + b"s", module):
        with pytest.raises(ConversionError, match="has no place in a network"):
            convert(b"\x80\x04" + program(inside)[2:])
        assert not marker.exists()


def test_a_tensor_needs_a_storage_that_was_read(convert):
    """A tuple in its place could describe memory that is not there."""
    storage = b"((" + value("0") + value("float32") + value(10**9) + b"t}t"
    view = (value(0), value((10**9,)), value((1,)), value(False), b"}")
    tensor = call(named("torch._utils", "_rebuild_tensor_v2"), storage, *view)
    with pytest.raises(ConversionError, match="a tensor has no storage"):
        convert(program(tensor))


def test_truncated(convert):
    data = unpacked("ddpmpp_edm")
    rng = random.Random(0)
    for length in (0, 1, *(rng.randrange(len(data)) for _ in range(40)), len(data) - 1):
        with pytest.raises(ConversionError, match=r"cannot read .*network\.pkl: "):
            convert(data[:length])


def test_a_file_of_torch_save_is_another(tmp_path):
    """As EDM's training-state-*.pt; the error was of the 'ascii' codec."""
    state = checkpoint(tmp_path / "training-state-000001.pt", {"w": np.ones(2, np.float32)})
    with pytest.raises(ConversionError, match=r"it is of torch.save; give the pickle, such as net"):
        convert_edm(state)


RENAMED = {
    b"map_layer1": "has no tensor 'map_layer1.bias'",
    b"4x4_block0": "has no tensor 'dec.4x4_block0.affine.bias'",
    b"EDMPrecond": "it has {other}, not EDMPrecond, VPPrecond or VEPrecond",
    b"SongUNet": "it has {other}, not SongUNet or DhariwalUNet",
    b"channel_mult": "SongUNet with {other}=[1, 2] is not supported",
    b"sigma_data": "it lacks 'sigma_data'",
    b"_modules": "it lacks '_modules'",
    b"ema": "holds no network, nor a dictionary with one as 'ema'",
    b"ModuleDict": "torch.nn.modules.container.{other} has no place in a network",
}


@pytest.mark.parametrize(("name", "message"), RENAMED.items(), ids=lambda x: str(x)[:20])
def test_renamed(convert, name, message):
    other = b"z" * len(name)  # of the same length, as pickles need it
    with pytest.raises(ConversionError, match=re.escape(message.format(other=other.decode()))):
        convert(unpacked("ddpmpp_edm").replace(name, other))


@pytest.mark.parametrize("value", [b"fourier", b"residual"])
def test_choices_that_are_unknown(convert, value):
    data = unpacked("ncsnpp_ve").replace(value, b"z" * len(value))
    with pytest.raises(ConversionError, match=r"_type='z+' is not supported"):
        convert(data)


def test_wrong_shape(convert):
    data = unpacked("ddpmpp_edm")
    wider = re.sub(rb"(model_channels\x94K)\x08", lambda match: match[1] + b"\x10", data)
    assert wider != data
    message = r"'dec.4x4_block0.affine.bias' has shape \[16\], not \[32\]"
    with pytest.raises(ConversionError, match=message):
        convert(wider)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"PK\x03\x04" + bytes(99), program(value({"a": 1}))], ids=repr
)
def test_wrong_kind(convert, data):
    with pytest.raises(ConversionError, match=r"network\.pkl"):
        convert(data)


def test_damaged_numbers(convert, tmp_path):
    data = unpacked("ddpmpp_edm")
    (tmp_path / "network.pkl").write_bytes(data)
    weights = edm.read_module(tmp_path / "network.pkl").parts["model"].tensors()
    name, number = "map_layer1.weight", weights["map_layer1.weight"].tobytes()[:64]
    assert data.count(number) == 1
    wrong = data.replace(number, np.full(16, np.nan, np.float32).tobytes())
    with pytest.raises(ConversionError, match=f"a number of '{name}' is not finite"):
        convert(wrong)


def test_damaged_preconditioning(convert):
    """A float in a pickle is its eight bytes, first the highest."""
    half, wrong = (b"G" + struct.pack(">d", x) for x in (0.5, np.nan))
    data = unpacked("ddpmpp_edm")
    key = b"sigma_data\x94"
    assert data.count(key + half) == 1
    with pytest.raises(ConversionError, match="'edm' must have positive, finite numbers; got"):
        convert(data.replace(key + half, key + wrong))


def test_modules_within_modules_without_bounds(convert):
    """Each one is twice in the next: 2^40 places in a file of 5 kB."""
    build = named("torch_utils.persistence", "_reconstruct_persistent_obj")

    def module(kind, state):
        meta = b"}(" + value("class_name") + value(kind) + value("state") + b"}(" + state + b"uu"
        return call(build, meta)

    empty = value("_parameters") + b"}" + value("_buffers") + b"}"
    inner = module("Linear", empty + value("_modules") + b"}")
    for _ in range(40):
        inner += b"q\x010"  # remembered, and taken off the stack
        parts = b"}(" + value("a") + b"h\x01" + value("b") + b"h\x01u"
        inner += module("Linear", empty + value("_modules") + parts)
    inner += b"q\x010" + module(
        "SongUNet",
        empty + value("_init_kwargs") + b"}" + value("_modules") + b"}" + value("a") + b"h\x01s",
    ) + b"q\x010"  # fmt: skip
    numbers = value("sigma_data") + value(0.5) + value("img_resolution") + value(8)
    outer = module(
        "EDMPrecond",
        numbers + value("img_channels") + value(3) + value("_modules")
        + b"}" + value("model") + b"h\x01s",
    )  # fmt: skip
    with pytest.raises(ConversionError, match="is in it twice"):
        convert(program(inner + outer))

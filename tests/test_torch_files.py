"""Against files of PyTorch, and files built here opcode by opcode to be wrong in every way."""

import argparse
import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pdistill.runtime import pickles
from pdistill.runtime.torch_files import StateDictUnpickler, WeightsError, read_torch, sha256

FIXTURES = Path(__file__).parent / "fixtures/torch_files"
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


# --- Files of PyTorch -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["legacy", "zip"])
def test_files_of_pytorch(name):
    desired = {
        "matrix": MATRIX,
        "transposed": MATRIX.T,
        "part": MATRIX[1:, ::2],
        "expanded": np.full(3, 7, np.float32),
        "scalar": np.array(-3, np.int64),
        "empty": np.zeros((0, 5), np.float32),
        "parameter": np.array([0.5, -0.5], np.float32),
        "float64": np.array([1 / 3]),
        "float16": np.array([1.5, -2.25], np.float16),
        "bfloat16": np.array([1.5, -2.25], ml_dtypes.bfloat16),
        "int32": np.array([-(2**31), 2**31 - 1], np.int32),
        "uint8": np.array([0, 255], np.uint8),
        "bool": np.array([True, False, True]),
    }
    actual = read_torch(FIXTURES / f"{name}.pth")
    assert list(actual) == list(desired)
    for key, array in desired.items():
        assert actual[key].dtype == array.dtype
        np.testing.assert_array_equal(actual[key], array, strict=True)


# --- Files written here ---------------------------------------------------------------------------


def value(x):
    """Opcodes that push a plain value."""
    return pickle.dumps(x, protocol=2)[2:-1]


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key="0", count=12, dtype="FloatStorage", kind="storage"):
    kind, key, device, count = map(value, (kind, key, "cpu", count))
    return b"(" + kind + named("torch", dtype) + key + device + count + b"tQ"


REBUILD, ORDERED_DICT = (
    named("torch._utils", "_rebuild_tensor_v2"),
    named("collections", "OrderedDict"),
)


def tensor(offset=0, shape=(3, 4), strides=(4, 1), of=None):
    view = map(value, (offset, shape, strides, False))
    return call(REBUILD, of or storage(), *view, call(ORDERED_DICT))


def program(state):
    return b"\x80\x02" + state + b"."


def state_dict(**tensors):
    items = b"".join(value(name) + tensor for name, tensor in tensors.items())
    return program(call(ORDERED_DICT) + b"(" + items + b"u")


ELEMENTS = MATRIX.tobytes()


def legacy(state, storages=(("0", 12, ELEMENTS),), version=1001, little_endian=True):
    machine = {"protocol_version": version, "little_endian": little_endian, "type_sizes": {}}
    header = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, version, machine)]
    keys = pickle.dumps([key for key, *_ in storages], 2)
    elements = [count.to_bytes(8, "little") + data for _, count, data in storages]
    return b"".join([*header, state, keys, *elements])


def zipped(state, storages=(("0", 12, ELEMENTS),), byteorder=b"little"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("weights/data.pkl", state)
        archive.writestr("weights/byteorder", byteorder)
        for key, _, data in storages:
            archive.writestr(f"weights/data/{key}", data)
    return stream.getvalue()


FORMATS = pytest.mark.parametrize("file", [legacy, zipped])


def read(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_torch(path)


def test_the_average_of_a_checkpoint(tmp_path):
    """As training programs save them, with their options and an optimiser's state."""
    part = {"exp_avg": tensor(), "step": value(3)}
    adam = b"}(" + value("state") + b"}(" + b"".join(value(k) + v for k, v in part.items()) + b"uu"
    entries = {
        "model": b"}(" + value("full") + tensor() + b"u",
        "ema": b"}(" + value("row") + tensor(4, (4,), (1,)) + b"u",
        "opt": adam,
        "args": value(argparse.Namespace(lr=1e-4, image_size=256)),
    }
    whole = b"}(" + b"".join(value(key) + state for key, state in entries.items()) + b"u"
    found = read(tmp_path, zipped(program(whole)))
    np.testing.assert_array_equal(found.pop("row"), MATRIX[1])
    assert not found


MANY = call(named("collections", "defaultdict")) + b"(" + value(0) + value(1) + b"u"
BESIDE = {
    "callback": b"}(" + named("lightning.callbacks", "ModelCheckpoint") + b"}u",
    "best_loss": value(np.float64(0.5)),
    "dtype": named("torch", "float32"),
    "options": call(named("omegaconf", "DictConfig")) + b"}" + value("lr") + value(1e-4) + b"sb",
    "steps": MANY,
    "ema_loss": call(named("numpy.core.multiarray", "scalar"), value("f8"), value(b"12345678")),
    "list": call(named("torch", "Size")) + b"(" + value(1) + value(2) + b"e" + value(1) + b"a",
}


@FORMATS
@pytest.mark.parametrize("name", BESIDE)
def test_what_others_keep_beside_a_state_dict(tmp_path, file, name):
    """Nothing is made of it; as a tensor it is refused, by its name and not as damage."""
    good = b"}(" + value("full") + tensor() + b"u"
    whole = b"}(" + value(name) + BESIDE[name] + value("state_dict") + good + b"u"
    np.testing.assert_array_equal(read(tmp_path, file(program(whole)))["full"], MATRIX)
    refused = r"\w+\.\w+ has no place in a state dict; save one of tensors alone, by torch.save$"
    if name == "callback":  # a dict, by a class
        refused = "'more' is not a tensor by name; get the file again$"
    with pytest.raises(WeightsError, match=refused):
        read(tmp_path, file(state_dict(full=tensor(), more=BESIDE[name])))


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        (("model", "model_ema"), 1),
        (("state_dict", "state_dict_ema"), 1),
        (("model", "EMA_model", "ema"), 2),
        (("model", "schema", "ema_"), 2),
        (("schema", "model"), 1),
        (("model", "model-ema"), 1),
        (("model", "netEMA"), 1),
        (("model", "ema0.9999"), 1),
        (("Schema", "SCHEMA", "model"), 2),
        (("model", "ema_0.999", "ema_0.9999"), "it has averages ema_0.999, ema_0.9999; save one"),
    ],
)
def test_averages_by_other_names(tmp_path, keys, taken):
    """The average is taken, not the network beside it; of two that nobody calls the one, none."""
    rows = [b"}(" + value("row") + tensor(4 * i, (4,), (1,)) + b"u" for i in range(len(keys))]
    items = b"".join(value(key) + row for key, row in zip(keys, rows, strict=True))
    data = zipped(program(b"}(" + items + b"u"))
    if isinstance(taken, int):
        np.testing.assert_array_equal(read(tmp_path, data)["row"], MATRIX[taken])
    else:
        with pytest.raises(WeightsError, match=taken):
            read(tmp_path, data)


OWN = b"}(" + value("row") + tensor(4, (4,), (1,)) + b"u"
EASY = call(named("easydict", "EasyDict"))
DECAY = b"}(" + value("decay") + value(0.999)


@pytest.mark.parametrize(
    ("key", "average", "read_here"),
    [
        ("model_ema", DECAY + value("module") + OWN + b"u", True),
        ("ema", DECAY + value("shadow") + OWN + b"u", True),
        ("ema", call(named("timm.utils", "ModelEma")) + OWN + b"b", False),
        ("net_ema", EASY + b"(" + value("row") + tensor() + b"u", False),
        ("ema", b"](" + OWN + b"e", False),
        ("emaState", DECAY + value("shadow_params") + b"](" + tensor() + b"eu", False),
        ("ema", DECAY + value("row") + tensor() + b"u", False),
    ],
)
def test_averages_in_other_forms(tmp_path, key, average, read_here):
    """The average or an error that names it, never the network beside it."""
    model = b"}(" + value("row") + tensor(0, (4,), (1,)) + b"u"
    state = b"}(" + value("model") + model + value(key) + average + b"u"
    data = zipped(program(state))
    if read_here:
        np.testing.assert_array_equal(read(tmp_path, data)["row"], MATRIX[1])
        return
    with pytest.raises(WeightsError, match=f"an average, {key}, in a form that is not read here"):
        read(tmp_path, data)


@pytest.mark.parametrize("of", ["CharStorage", "ShortStorage", "QInt8Storage"])
def test_elements_of_other_types_beside_a_state_dict(tmp_path, of):
    """Nobody asks for them; of a type that NumPy lacks they are not looked at."""
    more = tensor(of=storage("1", dtype=of))
    good = b"}(" + value("full") + tensor() + b"u"
    state = b"}(" + value("opt") + b"}(" + value("step") + more + b"u" + value("model") + good
    size = 2 if of == "ShortStorage" else 1
    storages = [("0", 12, ELEMENTS), ("1", 12, bytes(12 * size))]
    data = zipped(program(state + b"u"), storages)
    np.testing.assert_array_equal(read(tmp_path, data)["full"], MATRIX)


def test_an_optimiser_of_an_average_is_none(tmp_path):
    """Which has numbers as well."""
    adam = b"}(" + value("exp_avg") + tensor() + value("step") + value(3) + b"u"
    model = b"}(" + value("full") + tensor() + b"u"
    state = b"}(" + value("ema_optimizer") + adam + value("model") + model + b"u"
    np.testing.assert_array_equal(read(tmp_path, zipped(program(state)))["full"], MATRIX)


@FORMATS
def test_views_are_taken_element_by_element(tmp_path, file):
    rng = np.random.default_rng(0)
    views = [
        (2, (3, 2), (3, 1)),
        (0, (2, 2, 2), (1, 4, 2)),
        (11, (1, 1), (50, 60)),
        (5, (), ()),
        (1, (4,), (0,)),
    ]
    elements = rng.normal(size=12)
    data = elements.tobytes()
    of = storage(dtype="DoubleStorage")
    tensors = {f"t{i}": tensor(*view, of=of) for i, view in enumerate(views)}
    arrays = read(tmp_path, file(state_dict(**tensors), [("0", 12, data)]))
    for array, (offset, shape, strides) in zip(arrays.values(), views, strict=True):
        assert array.shape == shape
        for index in np.ndindex(shape):
            assert array[index] == elements[offset + np.dot(index, strides).astype(int)]


@FORMATS
def test_a_file_cut_anywhere_is_an_error(tmp_path, file):
    """The second storage has no elements: all that can be missing of it is its count."""
    empty = tensor(0, (0,), (1,), storage("1", 0))
    storages = [("0", 12, ELEMENTS), ("1", 0, b"")]
    data = file(state_dict(full=tensor(), empty=empty), storages)
    assert read(tmp_path, data)["full"].tolist() == MATRIX.tolist()
    for length in range(len(data)):
        with pytest.raises(WeightsError, match=r"cannot read .*weights\.pth: .+; get the file"):
            read(tmp_path, data[:length])


# --- Programs -------------------------------------------------------------------------------------


def attack(marker):
    """Programs that would create `marker` if nothing kept them from it."""
    command = value(f"touch '{marker}'")
    expression = value(f"open({str(marker)!r}, 'w')")
    attribute = named("builtins", "getattr")
    module = call(named("importlib", "import_module"), value("os"))
    subclass = call(
        named("builtins", "type"), value("Sub"), b"(" + ORDERED_DICT + b"t", b"}" + value("run")
        + named("os", "system") + b"s",
    )  # fmt: skip
    return {
        "system": call(named("os", "system"), command),
        "posix": call(named("posix", "system"), command),
        "eval": call(named("builtins", "eval"), expression),
        "getattr": call(call(attribute, module, value("system")), command),
        "dotted": b"\x8c\x08builtins\x8c\x0dopen.__call__\x93"
        + b"(" + value(str(marker)) + value("w") + b"tR",
        "instance": b"(" + command + b"ios\nsystem\n",
        "object": b"(" + named("os", "system") + command + b"o",
        "subclass": call(call(attribute, call(subclass), value("run")), command),
        "nested": call(ORDERED_DICT, b"](" + value("k") + call(named("os", "system"), command)
        + b"ta"),
    }  # fmt: skip


@FORMATS
@pytest.mark.parametrize("name", list(attack("")))
def test_nothing_in_a_file_executes(tmp_path, file, name):
    marker = tmp_path / "marker"
    malice = attack(marker)[name]
    pickle.loads(b"\x80\x04" + malice + b".")  # an ordinary unpickler falls for it
    assert marker.exists()
    marker.unlink()
    message = "has no place in a state dict"
    inner = "'more' is not a tensor by name" if name == "nested" else message
    whole = {"storages": []}, program(malice), message
    for more, state, refused in (whole, ({}, state_dict(full=tensor(), more=malice), inner)):
        with pytest.raises(WeightsError, match=refused):
            read(tmp_path, file(b"\x80\x04" + state[2:], **more))
        assert not marker.exists()


def test_a_file_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes, but only those of a function made for this file."""
    attributes = b"(}" + b"}" + value("__defaults__") + b"(K\x00ts" + b"t"  # (state, slots)
    with pytest.raises(WeightsError, match="'full' is not a tensor"):
        read(tmp_path, zipped(state_dict(full=REBUILD + attributes + b"b")))
    function = StateDictUnpickler(io.BytesIO()).find_class("torch._utils", "_rebuild_tensor_v2")
    assert function.__defaults__ is None


# --- Damage ---------------------------------------------------------------------------------------


GOOD = state_dict(full=tensor())
BEYOND = "tensor 'full' reaches beyond its storage"


WRONG = {
    "offset": (state_dict(full=tensor(offset=1)), BEYOND),
    "negative offset": (state_dict(full=tensor(offset=-1, shape=(1,), strides=(1,))), BEYOND),
    "negative stride": (state_dict(full=tensor(offset=9, shape=(3,), strides=(-1,))), BEYOND),
    "stride": (state_dict(full=tensor(strides=(5, 1))), BEYOND),
    # The last element is 2**64 bytes in, which is 0 in int64.
    "huge stride": (state_dict(full=tensor(shape=(2**32 + 1,), strides=(2**30,))), BEYOND),
    "expanded": (
        state_dict(full=tensor(shape=(2**20 + 1,), strides=(0,))),
        "repeats a storage of 12 elements too often",
    ),
    "axes": (state_dict(full=tensor(shape=(3,))), "argument 2 is longer"),
    "number": (state_dict(good=tensor(), full=value(3)), "'full' is not a tensor by name"),
    "name": (program(call(ORDERED_DICT) + value(3) + tensor() + b"s"), "3 is not a tensor by name"),
    "no dict": (program(tensor()), "it is not a state dict"),
    "type": (state_dict(full=tensor(of=storage(dtype="QInt8Storage"))), "torch.QInt8Storage has"),
    "kind": (state_dict(full=tensor(of=storage(kind="module"))), "is not a storage"),
    "two storages": (
        state_dict(full=tensor(), more=tensor(of=storage(count=13))),
        "storage '0' is described in two ways",
    ),
}


@FORMATS
@pytest.mark.parametrize(("state", "message"), WRONG.values(), ids=WRONG)
def test_wrong_state_dicts(tmp_path, file, state, message):
    with pytest.raises(WeightsError) as error:
        read(tmp_path, file(state))
    assert str(error.value).startswith(f"cannot read {tmp_path / 'weights.pth'}: ")
    assert message in str(error.value)


DAMAGED = {
    "empty": (b"", "it is empty"),
    "html": (b"<html>404</html>", "it is in neither format of torch.save"),
    "version": (legacy(GOOD, version=1002), "it is not little-endian, of version 1001"),
    "endian": (legacy(GOOD, little_endian=False), "it is not little-endian, of version 1001"),
    "no storage": (legacy(GOOD, []), "its storages are not those of its tensors"),
    "other storage": (legacy(GOOD, [("1", 12, ELEMENTS)]), "its storages are not those"),
    "storage twice": (legacy(GOOD, [("0", 12, ELEMENTS)] * 2), "its storages are not those"),
    "count": (legacy(GOOD, [("0", 11, ELEMENTS)]), "storage '0' does not have 12 elements"),
    "endian zip": (zipped(GOOD, byteorder=b"big"), "it is not little-endian"),
    "no storage zip": (zipped(GOOD, []), "There is no item named 'weights/data/0'"),
    "short zip": (zipped(GOOD, [("0", 12, ELEMENTS[4:])]), "does not have 12 elements"),
    "long zip": (zipped(GOOD, [("0", 12, ELEMENTS * 2)]), "does not have 12 elements"),
    "flipped zip": (zipped(GOOD).replace(ELEMENTS, ELEMENTS[::-1]), "Bad CRC-32 for file"),
    "storage twice zip": (
        zipped(GOOD, [("0", 12, ELEMENTS), ("1", 12, ELEMENTS)]).replace(b"data/1", b"data/0"),
        "it has two entries of one name",
    ),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(tmp_path, data, message):
    with pytest.raises(WeightsError, match=message):
        read(tmp_path, data)


# --- Sizes ----------------------------------------------------------------------------------------

NESTED = {
    "wide": value(0) + b"q\x00h\x00\x86" * 64,  # a pair of the one before, 64 times: 2^64 numbers
    "deep": value(0) + b"\x85" * 10**6,  # whoever hashes it runs out of stack
    "long": b"(" + value(0) * 1000 + b"tq\x000(" + b"h\x00" * 1000 + b"t",
}


@FORMATS
@pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED)
def test_values_that_nest_without_bounds(tmp_path, file, nested):
    """As a key, which is hashed, and as a storage's, which is compared and printed."""
    for state in (
        b"}" + nested + tensor() + b"s",
        b"}" + value("full") + b"(" + value("storage") + named("torch", "FloatStorage") + nested,
    ):
        with pytest.raises(WeightsError, match="nested in it without bounds"):
            read(tmp_path, file(program(state)))


def test_values_at_the_bounds(monkeypatch):
    """Four numbers and their tuple are five values; the end of a pickle counts one more."""
    monkeypatch.setattr(pickles, "LARGEST", 6)
    monkeypatch.setattr(pickles, "DEEPEST", 5)
    for whole in ((1, 2, 3, 4), (((1,),),)):
        pickles.check_pickle(io.BytesIO(pickle.dumps(whole)))
    for beyond in ((1, 2, 3, 4, 5), ((((1,),),),)):
        with pytest.raises(ValueError, match="nested in it without bounds"):
            pickles.check_pickle(io.BytesIO(pickle.dumps(beyond)))


def test_a_mark_is_no_value(tmp_path):
    """The stack of the look beforehand stays in step with the pickle's."""
    for state in (b"(q\x00h\x00", b"N(\x86", b"(2"):
        with pytest.raises(WeightsError, match="takes a mark for a value"):
            read(tmp_path, zipped(program(state)))


def test_packed_storages(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", state_dict(full=tensor(of=storage(count=2**22))))
        archive.writestr("weights/data/0", bytes(2**24))
    with pytest.raises(WeightsError, match=r"weights/data.pkl is packed, which torch.save does"):
        read(tmp_path, stream.getvalue())


@FORMATS
def test_a_tensor_that_repeats_its_storage_beyond_bounds(tmp_path, file):
    states = [state_dict(full=tensor(0, (n,), (0,))) for n in (2**20, 2**20 + 1)]
    assert read(tmp_path, file(states[0]))["full"].shape == (2**20,)
    with pytest.raises(WeightsError, match="repeats a storage of 12 elements too often"):
        read(tmp_path, file(states[1]))


@FORMATS
def test_a_file_is_not_held_in_memory(tmp_path, file):
    count = 2**22
    of = storage(count=count)
    data = file(state_dict(full=tensor(0, (count,), (1,), of)), [("0", count, bytes(4 * count))])
    (tmp_path / "weights.pth").write_bytes(data)
    tracemalloc.start()
    arrays = read_torch(tmp_path / "weights.pth")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert arrays["full"].nbytes == 2**24
    assert peak < 2**20


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(WeightsError, match="is not a regular file"):
            read_torch(path)


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="No such file or directory"):
        read_torch(tmp_path / "weights.pth")


def test_sha256_of_fips_180(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    desired = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == desired

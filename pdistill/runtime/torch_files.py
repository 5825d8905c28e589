"""Weight files of PyTorch, read without PyTorch and without executing anything in them.

`torch.save` has two formats. Legacy: pickles of a magic number, a version, the machine, the state
dict and the keys of its storages; then, for each key, an int64 count of elements and the elements.
Zip: NAME/data.pkl is the state dict, NAME/data/KEY the elements of a storage. In both, tensors are
views of storages, and name them by persistent ids.
"""

import collections
import hashlib
import io
import math
import mmap
import pickle
import re
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from pdistill.runtime.files import map_file
from pdistill.runtime.pickles import CheckedUnpickler

Buffer = bytes | mmap.mmap | memoryview
NESTED = ("ema", "state_dict", "model")  # keys of a checkpoint for a state dict
AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])|Ema(?![a-z])|(?<![A-Z])EMA")  # model_ema, netEMA, ...
HELD_BY = ("module", "shadow", "state_dict", "model")  # keys of an average for its state dict
EXPANDED = 2**20  # elements that a tensor may make of fewer, as torch's expand does
ZIP = b"PK\x03\x04"
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}


class WeightsError(ValueError):
    """An error of weights that cannot be had or read; its message names file, cause and remedy."""


class Storage(NamedTuple):
    """A storage, `count` elements in a row, found in the file by `key`; of a stand-in, not read."""

    key: str
    dtype: "np.dtype | type[Foreign]"
    count: int


class Tensor(NamedTuple):
    """A view of a storage; the offset and the strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Foreign:
    """A stand-in for an object of a class or function that is not known here; it does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> "Foreign":
        return self

    def __setstate__(self, state: Any):
        pass

    def __setitem__(self, key: Any, value: Any):
        pass

    def append(self, item: Any):
        pass


class LoadedStorage(NamedTuple):
    """A storage with its elements, by its key."""

    storage: Storage
    buffers: Mapping[str, Buffer]


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a flat state dict by name, as read-only arrays, strided as saved.

    A checkpoint may have the state dict under one of `NESTED`, of which the first one is taken, or
    an average under another name that says so, and anything else beside it, of which nothing is
    made. The file is mapped, not read: the arrays are views of it, which must not change meanwhile.

    Raises:
      WeightsError: the file is missing, damaged, its state dict has anything but tensors, or its
        average is in a form that is not read.
    """
    try:
        data = map_file(path)
        if data[: len(ZIP)] == ZIP:
            whole, buffers = _read_zip(data)
        elif data[: len(LEGACY)] == LEGACY:
            whole, buffers = _read_legacy(data, data)
        else:
            raise ValueError("it is in neither format of torch.save")
        tensors = _state_dict(whole)
        return {name: array(name, tensor, buffers) for name, tensor in tensors.items()}
    except WeightsError as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        cause = str(error) or type(error).__name__
        raise WeightsError(f"cannot read {path}: {cause}; get the file again") from error


def _state_dict(whole: Any) -> dict[Any, Any]:
    """Finds the state dict that a file's value has in it, an average's first, or is."""
    _check_known(whole)
    if not isinstance(whole, dict):
        raise ValueError("it is not a state dict")
    parts = {key: part for key, part in whole.items() if isinstance(key, str)}
    averages = _averages(parts)
    keys = (NESTED[0], *averages, *NESTED[1:])
    nested = {key: parts[key] for key in NESTED[1:] if isinstance(parts.get(key), dict)} | averages
    return next((nested[key] for key in keys if key in nested), whole)


def _averages(parts: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Finds the average among a checkpoint's parts; of several, one is "ema".

    Raises:
      WeightsError: there are others, or what says that it is one is no state dict.
    """
    averages, unread = {}, []
    for key, part in parts.items():
        if not AVERAGE.search(key) or "opt" in key.lower():  # an optimiser's
            continue
        held = [part.get(name) for name in HELD_BY] if isinstance(part, dict) else []
        if found := next(filter(_has_tensors_alone, (part, *held)), None):
            averages[key] = found
        elif not isinstance(part, Tensor) and _may_have_tensors(part):
            unread.append(key)
    if NESTED[0] in unread or (unread and not averages):
        raise WeightsError(
            f"it has an average, {', '.join(unread)}, in a form that is not read here; save its "
            "tensors alone, by torch.save"
        )
    if len(averages) > 1 and NESTED[0] not in averages:
        raise WeightsError(f"it has averages {', '.join(averages)}; save one alone, by torch.save")
    return averages


def _has_tensors_alone(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(each, Tensor) for each in value.values())
    )


def _may_have_tensors(value: Any) -> bool:
    """Whether a tensor is anywhere in a value, or something that cannot be looked into."""
    left, seen = [value], set()
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            return True
        if isinstance(part, Foreign) and type(part).__name__ != "scalar":  # NumPy's numbers
            return True
        if isinstance(part, dict | list | tuple) and id(part) not in seen:
            seen.add(id(part))
            left += part.values() if isinstance(part, dict) else part
    return False


def _check_known(value: Any) -> None:
    """Raises WeightsError for what a stand-in was made of."""
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, Foreign):
        raise WeightsError(
            f"{kind.__module__}.{kind.__name__} has no place in a state dict; save one of tensors "
            "alone, by torch.save"
        )


def read_storage(data: bytes) -> LoadedStorage:
    """Reads one storage in the legacy format, as ordinary pickles have it in them.

    Raises:
      Exception: any error, if the data are damaged or something else.
    """
    storage, buffers = _read_legacy(io.BytesIO(data), data)
    if not isinstance(storage, Storage):
        raise ValueError("it is not a storage")
    return LoadedStorage(storage, buffers)


def sha256(path: str | Path) -> str:
    """Computes the SHA-256 of a file, in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_legacy(stream: IO[bytes], data: Buffer) -> tuple[dict[str, Tensor], dict[str, Buffer]]:
    """Reads the legacy format from a `stream` of `data`."""
    unpickler = StateDictUnpickler(stream)
    _, version, machine, tensors, keys = (unpickler.load() for _ in range(5))
    if version != 1001 or not machine["little_endian"]:
        raise ValueError("it is not little-endian, of version 1001")
    if sorted(keys) != sorted(unpickler.storages):
        raise ValueError("its storages are not those of its tensors")
    buffers = {}
    for key in keys:
        storage = unpickler.storages[key]
        _check_known(storage.dtype)  # whose size is needed to find the next one
        if stream.read(8) != storage.count.to_bytes(8, "little"):
            raise ValueError(f"storage {key!r} does not have {storage.count} elements")
        start, size = stream.tell(), storage.count * storage.dtype.itemsize
        buffers[key] = _whole(storage, memoryview(data)[start : start + size])
        stream.seek(start + size)
    return tensors, buffers


def _read_zip(data: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, Buffer]]:
    with zipfile.ZipFile(data) as archive:
        names = archive.namelist()
        root = names[0].split("/")[0]
        if len(names) != len(set(names)):
            raise ValueError("it has two entries of one name")
        entry = lambda name: _entry(data, archive.getinfo(f"{root}/{name}"))  # noqa: E731
        if f"{root}/byteorder" in names and entry("byteorder") != b"little":
            raise ValueError("it is not little-endian")
        unpickler = StateDictUnpickler(io.BytesIO(entry("data.pkl")))
        tensors = unpickler.load()
        return tensors, {
            key: _whole(storage, entry(f"data/{key}"))
            for key, storage in unpickler.storages.items()
            if isinstance(storage.dtype, np.dtype)
        }


def _entry(data: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
    """Finds the bytes of an entry of a zip file where they lie, as torch.save packs nothing."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is packed, which torch.save does not do")
    lengths = data[info.header_offset + 26 : info.header_offset + 30]  # of the name and the rest
    start = info.header_offset + 30 + sum(struct.unpack("<HH", lengths))
    content = memoryview(data)[start : start + info.file_size]
    if zlib.crc32(content) != info.CRC:
        raise ValueError(f"Bad CRC-32 for file {info.filename!r}")
    return content


def _whole(storage: Storage, buffer: memoryview) -> memoryview:
    if len(buffer) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key!r} does not have {storage.count} elements")
    return buffer


def array(name: str, tensor: Tensor, buffers: Mapping[str, Buffer]) -> np.ndarray:
    """Makes the read-only array that `tensor` describes; `name` is for messages.

    Raises:
      ValueError: `tensor` is no tensor, or reaches beyond its storage.
    """
    _check_known(tensor)
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ValueError(f"{reprlib.repr(name)} is not a tensor by name")
    storage, offset, shape, strides = tensor
    _check_known(storage.dtype)
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    # In Python's integers: numpy checks too, but in int64, which large strides overflow.
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or last >= storage.count:
        raise ValueError(f"tensor {name!r} reaches beyond its storage")
    if math.prod(shape) > max(storage.count, EXPANDED):
        raise ValueError(f"tensor {name!r} repeats a storage of {storage.count} elements too often")
    size = storage.dtype.itemsize
    return np.ndarray(
        shape, storage.dtype, buffers[storage.key], offset * size, [size * s for s in strides]
    )


class StateDictUnpickler(CheckedUnpickler):
    """An unpickler of state dicts of `Tensor`, and of stand-ins for whatever is no tensor.

    Whatever it hands to a pickle is made for this pickle alone, so that not even its attributes can
    be used to change the reader.

    Attributes:
      storages: the storages that it met, by key.
    """

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, *_: Tensor(
                    storage, offset, shape, strides
                )
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", _ if name in DTYPES:
                return name
        return type(name, (Foreign,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Storage:
        what, dtype, key, _, count, *view = pid  # the legacy format adds a view, always None now
        if what != "storage" or view not in ([], [None]) or type(key) is not str or count < 0:
            raise pickle.UnpicklingError(f"{reprlib.repr(pid)} is not a storage")
        stand_in = isinstance(dtype, type) and issubclass(dtype, Foreign)
        storage = Storage(key, dtype if stand_in else np.dtype(DTYPES[dtype]), count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key!r} is described in two ways")
        return storage

"""Weight files of PyTorch, read without PyTorch and without executing anything in them.

`torch.save` has two formats. Legacy: pickles of a magic number, a version, the machine, the state
dict and the keys of its storages; then, for each key, an int64 count of elements and the elements.
Zip: NAME/data.pkl is the state dict, NAME/data/KEY the elements of a storage. In both, tensors are
views of storages, and name them by persistent ids.
"""

import collections
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

ZIP = b"PK\x03\x04"
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class WeightsError(ValueError):
    """An error of weights that cannot be had or read; its message names file, cause and remedy."""


class Storage(NamedTuple):
    """A storage, `count` elements in a row, found in the file by `key`."""

    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A view of a storage; the offset and the strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class LoadedStorage(NamedTuple):
    """A storage with its elements, by its key."""

    storage: Storage
    buffers: dict[str, bytes]


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a flat state dict by name, as read-only arrays, strided as saved.

    Raises:
      WeightsError: the file is missing, damaged, or holds anything but tensors by name.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(ZIP):
            tensors, buffers = _read_zip(data)
        elif data.startswith(LEGACY):
            tensors, buffers = _read_legacy(data)
        else:
            raise ValueError("it is in neither format of torch.save")
        if not isinstance(tensors, dict):
            raise ValueError("it is not a state dict")
        return {name: array(name, tensor, buffers) for name, tensor in tensors.items()}
    except Exception as error:  # a damaged pickle can raise anything
        cause = str(error) or type(error).__name__
        raise WeightsError(f"cannot read {path}: {cause}; get the file again") from error


def read_storage(data: bytes) -> LoadedStorage:
    """Reads one storage in the legacy format, as ordinary pickles have it in them.

    Raises:
      Exception: any error, if the data are damaged or something else.
    """
    storage, buffers = _read_legacy(data)
    if not isinstance(storage, Storage):
        raise ValueError("it is not a storage")
    return LoadedStorage(storage, buffers)


def sha256(path: str | Path) -> str:
    """Computes the SHA-256 of a file, in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_legacy(data: bytes) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    stream = io.BytesIO(data)
    unpickler = StateDictUnpickler(stream)
    _, version, machine, tensors, keys = (unpickler.load() for _ in range(5))
    if version != 1001 or not machine["little_endian"]:
        raise ValueError("it is not little-endian, of version 1001")
    if sorted(keys) != sorted(unpickler.storages):
        raise ValueError("its storages are not those of its tensors")
    buffers = {}
    for key in keys:
        storage = unpickler.storages[key]
        if stream.read(8) != storage.count.to_bytes(8, "little"):
            raise ValueError(f"storage {key!r} does not have {storage.count} elements")
        buffers[key] = _whole(storage, stream.read(storage.count * storage.dtype.itemsize))
    return tensors, buffers


def _read_zip(data: bytes) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        root = names[0].split("/")[0]
        if len(names) != len(set(names)):
            raise ValueError("it has two entries of one name")
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError("it is not little-endian")
        unpickler = StateDictUnpickler(io.BytesIO(archive.read(f"{root}/data.pkl")))
        tensors = unpickler.load()
        return tensors, {
            key: _whole(storage, archive.read(f"{root}/data/{key}"))
            for key, storage in unpickler.storages.items()
        }


def _whole(storage: Storage, buffer: bytes) -> bytes:
    if len(buffer) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key!r} does not have {storage.count} elements")
    return buffer


def array(name: str, tensor: Tensor, buffers: dict[str, bytes]) -> np.ndarray:
    """Makes the read-only array that `tensor` describes; `name` is for messages.

    Raises:
      ValueError: `tensor` is no tensor, or reaches beyond its storage.
    """
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ValueError(f"{name!r} is not a tensor by name")
    storage, offset, shape, strides = tensor
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    # In Python's integers: numpy checks too, but in int64, which large strides overflow.
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or last >= storage.count:
        raise ValueError(f"tensor {name!r} reaches beyond its storage")
    size = storage.dtype.itemsize
    return np.ndarray(
        shape, storage.dtype, buffers[storage.key], offset * size, [size * s for s in strides]
    )


class StateDictUnpickler(pickle.Unpickler):
    """An unpickler of state dicts of `Tensor` and nothing else.

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
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a state dict")

    def persistent_load(self, pid: Any) -> Storage:
        what, dtype, key, _, count, *view = pid  # the legacy format adds a view, always None now
        storage = Storage(key, np.dtype(DTYPES[dtype]), count)
        if what != "storage" or view not in ([], [None]):
            raise pickle.UnpicklingError(f"{pid} is not a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key!r} is described in two ways")
        return storage

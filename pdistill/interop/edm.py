"""Pickles of Karras et al. 2022 (EDM), with SongUNet or DhariwalUNet and their preconditioning.

A file is an ordinary pickle of modules that carry their own source code. None of it is executed
here: a module becomes a `Module`, a record of its class's name, its attributes, tensors and parts,
and the source code stays a string that nobody looks at.
"""

import collections
import pickle
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pdistill.diffusion import KarrasSchedule, LinearBetaSchedule, LinearLogsnrSchedule
from pdistill.interop.conversion import Conversion, build, converter, teacher_card
from pdistill.interop.weights import ConversionError, from_torch
from pdistill.networks.published.conventions import Edm, Ve, Vp, describe_convention
from pdistill.runtime import torch_files
from pdistill.runtime.files import map_file, one_line
from pdistill.runtime.pickles import CheckedUnpickler

# Names of arguments: the published networks' and ours.
SHARED = {
    "model_channels": "channels",
    "channel_mult": "multipliers",
    "channel_mult_emb": "embedding_multiplier",
    "num_blocks": "blocks",
    "attn_resolutions": "attention_sizes",
    "dropout": "dropout",
    "label_dim": "num_labels",
}
SONG = SHARED | {
    "embedding_type": "waves",
    "channel_mult_noise": "wave_multiplier",
    "encoder_type": "residual",
    "resample_filter": "taps",
}
NETWORKS = {"SongUNet": ("song_unet", SONG), "DhariwalUNet": ("dhariwal_unet", SHARED)}
CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}
IGNORED = ("img_resolution", "in_channels", "out_channels", "augment_dim", "label_dropout")


@converter
def convert_edm(source: str | Path, *, num_steps: int | None = None) -> Conversion:
    """Reads a network's pickle, or a training snapshot with one as `ema`.

    Raises:
      ConversionError: the file is damaged, has something in it that is not inert data, or another
        network than `NETWORKS` or preconditioning than EDM's, VP's and VE's.
    """
    precond = read_module(source)
    convention, schedule = _conventions(precond)
    network = precond.parts["model"]
    if network.name not in NETWORKS:
        raise ValueError(f"it has {network.name}, not {' or '.join(NETWORKS)}")
    size, channels = (int(precond.state[key]) for key in ("img_resolution", "img_channels"))
    name, arguments = NETWORKS[network.name][0], _arguments(network)
    arguments |= {"out_channels": channels, "convention": describe_convention(convention)}
    blank = build(name, arguments, convention.head, schedule, (size, size, channels))
    guided = bool(blank.num_labels and network.arguments.get("label_dropout"))
    tensors = {
        key: array
        for key, array in network.tensors().items()
        if not key.endswith(".resample_filter") and not key.startswith("map_augment.")
    }
    card = teacher_card(blank, method="edm", source=source, num_steps=num_steps, guided=guided)
    del precond, network  # so that each array goes once it is converted
    return Conversion(from_torch(blank, tensors, source), card)


def _conventions(precond: "Module") -> tuple[Any, Any]:
    """Finds the network's convention, and the schedule that it was made for."""
    a = precond.state
    match precond.name:
        case "EDMPrecond":
            return Edm(float(a["sigma_data"])), KarrasSchedule()
        case "VPPrecond":
            beta_min, beta_d = float(a["beta_min"]), float(a["beta_d"])
            schedule = LinearBetaSchedule(beta_min, beta_min + beta_d, float(a["epsilon_t"]))
            return Vp(beta_min, beta_d, float(a["M"]) - 1), schedule
        case "VEPrecond":
            low, high = (-2 * float(np.log(a[key])) for key in ("sigma_max", "sigma_min"))
            return Ve(), LinearLogsnrSchedule(low, high)
        case "Precond":
            raise ValueError("it has EDM2's Precond; give --from=edm2")
    raise ValueError(f"it has {precond.name}, not EDMPrecond, VPPrecond or VEPrecond")


def _arguments(network: "Module") -> dict[str, Any]:
    """Translates the network's arguments into ours."""
    _, known = NETWORKS[network.name]
    arguments: dict[str, Any] = {"dropout": 0.1}  # EDM's default
    for key, value in network.arguments.items():
        if value not in CHOICES.get(key, (value,)) or key not in (*known, *CHOICES, *IGNORED):
            value = reprlib.repr(value)
            raise ValueError(f"{network.name} with {key}={value} is not supported")
        if key in known:
            arguments[known[key]] = value
    if "residual" in arguments:
        arguments["residual"] = arguments["residual"] == "residual"
    return arguments


# --- The pickle -----------------------------------------------------------------------------------


class Module:
    """A module of PyTorch as data: the name of its class, and its pickled state."""

    def __init__(self, name: str, state: Mapping[str, Any]):
        self.name, self.state = name, state

    def __setstate__(self, state: Mapping[str, Any]):  # containers come without a name
        Module.__init__(self, type(self).__name__, state)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments that it was built with, by name."""
        return self.state["_init_kwargs"]

    @property
    def parts(self) -> Mapping[str, Any]:
        """Modules in it, by name."""
        return self.state["_modules"]

    def tensors(self) -> dict[str, np.ndarray]:
        """Collects its parameters and buffers and its parts', by name.

        Raises:
          ValueError: a part is in it twice.
        """
        found, met, rest = {}, set(), [("", self)]
        while rest:
            place, module = rest.pop()
            if id(module) in met:  # each place would count, and there can be 2^64 of them
                raise ValueError(f"{place[:-1]!r} is in it twice")
            met.add(id(module))
            own = {**module.state["_parameters"], **module.state["_buffers"]}
            found |= {place + k: a for k, a in own.items() if isinstance(a, np.ndarray)}
            rest += [(f"{place}{k}.", m) for k, m in module.parts.items() if isinstance(m, Module)]
        return found


def read_module(source: str | Path) -> Module:
    """Reads the module in a pickle, or the one that a dictionary in it has as `ema`.

    Raises: as `read_snapshot`.
    """
    return read_snapshot(source)["ema"]


def read_snapshot(source: str | Path) -> dict[str, Any]:
    """Reads the dictionary in a pickle, with a module as `ema`; a module alone becomes one.

    Raises:
      ConversionError: the file is missing or damaged, or has anything else in it.
    """
    try:
        file = map_file(source)
        if file[:4] == torch_files.ZIP:
            raise ValueError("it is of torch.save; give the pickle, such as network-snapshot-*.pkl")
        data = ModuleUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ConversionError(f"cannot read {source}: {one_line(error)}") from error
    snapshot = data if isinstance(data, dict) else {"ema": data}
    if not isinstance(snapshot.get("ema"), Module):
        raise ConversionError(f"{source} holds no network, nor a dictionary with one as 'ema'")
    return snapshot


class ModuleUnpickler(CheckedUnpickler):
    """An unpickler of modules as `Module`, tensors as arrays, plain values, and nothing else.

    Whatever it hands to a pickle is made for this pickle alone, and builds data only.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch_utils.persistence", "_reconstruct_persistent_obj":
                return lambda meta: Module(str(meta["class_name"]), meta["state"])
            case "torch.nn.modules.container", "ModuleDict":
                return type(name, (Module,), {})
            case "dnnlib.util", "EasyDict":
                return type(name, (dict,), {})
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case (("builtins" | "__builtin__"), "set"):
                return lambda items=(): set(items)
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda *arguments: _tensor(*arguments)
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch.storage", "_load_from_bytes":
                return lambda data: torch_files.read_storage(data)
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "scalar"):
                return lambda dtype, data: np.frombuffer(data, SCALARS[dtype.code])[0].item()
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return lambda *_: Ndarray()
            case "numpy", "ndarray":
                return name
            case "numpy", "dtype":
                return type(name, (Dtype,), {})
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a network")


class Dtype:
    """A NumPy dtype as data, its type code."""

    def __init__(self, code: str, *_):
        self.code = code

    def __setstate__(self, state: Any):
        """Ignores byte order and the like, as all are little-endian."""


class Ndarray:
    """A NumPy array of numbers as data."""

    def __setstate__(self, state: Any):
        _, self._shape, self._dtype, self._columns_first, self._data = state

    def array(self) -> np.ndarray:
        """The array; raises an error of any kind if it is damaged."""
        flat = np.frombuffer(self._data, SCALARS[self._dtype.code])
        return flat.reshape(self._shape, order="F" if self._columns_first else "C")


SCALARS = {"f8": "<f8", "f4": "<f4", "i8": "<i8", "i4": "<i4", "b1": "?"}


def _tensor(loaded: Any, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    if not isinstance(loaded, torch_files.LoadedStorage):
        raise pickle.UnpicklingError("a tensor has no storage")
    tensor = torch_files.Tensor(loaded.storage, offset, shape, strides)
    return torch_files.array("in it", tensor, loaded.buffers)

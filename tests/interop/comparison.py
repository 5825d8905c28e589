"""A small model, and how a converted one is compared with its original."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_torch_files import ORDERED_DICT, call, program, storage, tensor, value, zipped

from pdistill import diffusion
from pdistill import model as models
from pdistill.diffusion import CosineSchedule
from pdistill.networks import Conditioning, DiT, Network
from pdistill.samplers import ddim_step

SHAPE = (4, 4, 1)


def save_random(directory, *, num_labels=0, target=False, **card):
    """A model directory with a small network of random parameters."""
    module = DiT(1, features=8, depth=1, heads=2, num_labels=num_labels, target=target)
    blank = Network(None, module=module, head="v", schedule=CosineSchedule(), shape=SHAPE)
    rng = np.random.default_rng(0)
    network = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(scale=0.3, size=a.shape), a.dtype), blank.shapes
    )
    card = {
        "kind": "denoiser", "solver": "ddim", "num_steps": 4, "clip": (-1.0, 1.0),
        "num_labels": num_labels, "data": {"shape": SHAPE, "scale": "image / 127.5 - 1"},
        "guidance": None, "parent": None, "stage": "digits/4", "method": "progressive",
        "train_steps": 1, "images_seen": 1,
    } | card  # fmt: skip
    models.save(directory, network, **card)
    return directory


def nhwc(images):
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(images, -3, -1)


STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


def checkpoint(path, tensors, keys=("state_dict",)):
    """A file as torch.save writes it, with a state dict under each of `keys` among other things.

    Without keys it is the state dict itself.
    """
    items, storages = b"", []
    for key, (name, a) in enumerate(tensors.items()):
        strides = tuple(stride // a.itemsize for stride in a.strides)
        elements = storage(str(key), a.size, STORAGES[str(a.dtype)])
        items += value(name) + tensor(0, a.shape, strides, elements)
        storages.append((str(key), a.size, a.tobytes()))
    state = call(ORDERED_DICT) + b"(" + items + b"u"
    entries = b"".join(value(key) + state for key in keys)
    whole = b"}(" + value("epoch") + value(3) + entries + b"u" if keys else state
    path.write_bytes(zipped(program(whole), storages))
    return path


def check_parity(conversion, arrays, levels, output):
    """Compares a converted network with what its original computed, in `arrays`.

    Ten noise levels: z, label, and `output`, which is x_hat if it is called "denoised", else the
    network's own. A trajectory of ten DDIM steps from noise, the labels of its samples 0, 1, ...;
    those of eps networks with random weights grow, so that errors are relative. float32 leaves
    1e-7 to 1e-5; a layer that differs would leave 1e-2.
    """
    network = conversion.network

    # It runs a few times: most of its time is compilation.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(z, logsnr_t, logsnr_s, label):
        told = Conditioning(label=label if network.num_labels else None)
        own = network.module.apply({"params": network.params}, z, logsnr_t, told)
        x_hat = diffusion.x_from_output(network.head, z, own, logsnr_t)
        to = (diffusion.expand(logsnr, z) for logsnr in (logsnr_t, logsnr_s))
        return x_hat, own, ddim_step(z, x_hat, *to)

    z, desired = nhwc(arrays["z"]), nhwc(arrays[output])
    x_hat, own, _ = step(z, levels, levels, jnp.asarray(arrays["label"], jnp.int32))
    actual = x_hat if output == "denoised" else own
    axes = (1, 2, 3)
    errors = np.sqrt(np.sum((actual - desired) ** 2, axes) / np.sum(desired**2, axes))
    assert errors.shape == (10,)
    assert errors.max() < 1e-4, errors
    assert desired.std() > 0.1

    # One shape for both, so that there is one compilation: the other eight rows are not looked at.
    grid = network.schedule(jnp.arange(10, -1, -1) / 10)
    trajectory = nhwc(arrays["trajectory"])
    state = jnp.zeros_like(z).at[:2].set(nhwc(arrays["noise"]))
    label = jnp.arange(10) % max(network.num_labels, 1)
    for i in range(10):
        t, s = (jnp.full(10, level) for level in grid[i : i + 2])
        x_hat, _, state = step(state, t, s, label)
        state = x_hat if i == 9 else state
        error = np.abs(state[:2] - trajectory[i + 1]).max()
        assert error < 1e-3 * max(1, np.abs(trajectory[i + 1]).max()), (i, error)


# Weights that no training leaves behind, made of right ones, and what is said of them.
DAMAGE = {
    "nan": (lambda a: np.where(a == a.max(), np.nan, a).astype(a.dtype), "is not finite"),
    "overflow": (lambda a: a.astype(np.float64) * 1e300, "overflows float32"),
    "int": (lambda a: a.astype(np.int64), "is int64, not floating point"),
    "bool": (lambda a: a > 0, "is bool, not floating point"),
}
each_damage = pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)

"""EDM2's network, preconditioning and sampler in NumPy, [B, C, H, W] and float64, and its pickles.

Written from Karras et al. 2024, appendix B, and Karras et al. 2022, algorithm 2.
"""

import dataclasses
import itertools
import struct

import numpy as np
from test_torch_files import ORDERED_DICT, REBUILD, call, legacy, named, program, storage, value


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A network of two levels with one block each, and attention at the coarser one."""

    side: int = 4
    channels: int = 4
    head: int = 4
    labels: int = 3
    images: int = 4

    @property
    def arguments(self):
        """The published network's."""
        return {
            "model_channels": self.channels, "channel_mult": [1, 2], "num_blocks": 1,
            "attn_resolutions": [self.side // 2], "channels_per_head": self.head, "dropout": 0.0,
        }  # fmt: skip

    @property
    def shapes(self):
        """Shapes of the published tensors by name."""
        c, d, fine, coarse = self.channels, 2 * self.channels, self.side, self.side // 2
        found = {"emb_fourier.freqs": (c,), "emb_fourier.phases": (c,), "emb_noise.weight": (d, c)}
        if self.labels:
            found["emb_label.weight"] = (d, self.labels)

        def block(name, entering, leaving, decoder, attention=False):
            wide = entering if decoder else leaving
            found[f"{name}.emb_gain"] = ()
            found[f"{name}.conv_res0.weight"] = (leaving, wide, 3, 3)
            found[f"{name}.emb_linear.weight"] = (leaving, d)
            found[f"{name}.conv_res1.weight"] = (leaving, leaving, 3, 3)
            if entering != leaving:
                found[f"{name}.conv_skip.weight"] = (leaving, entering, 1, 1)
            if attention:
                found[f"{name}.attn_qkv.weight"] = (3 * leaving, leaving, 1, 1)
                found[f"{name}.attn_proj.weight"] = (leaving, leaving, 1, 1)

        found[f"enc.{fine}x{fine}_conv.weight"] = (c, self.images + 1, 3, 3)
        block(f"enc.{fine}x{fine}_block0", c, c, False)
        block(f"enc.{coarse}x{coarse}_down", c, c, False)
        block(f"enc.{coarse}x{coarse}_block0", c, d, False, True)
        block(f"dec.{coarse}x{coarse}_in0", d, d, True, True)
        block(f"dec.{coarse}x{coarse}_in1", d, d, True)
        block(f"dec.{coarse}x{coarse}_block0", 2 * d, d, True, True)
        block(f"dec.{coarse}x{coarse}_block1", d + c, d, True, True)
        block(f"dec.{fine}x{fine}_up", d, d, True)
        block(f"dec.{fine}x{fine}_block0", d + c, c, True)
        block(f"dec.{fine}x{fine}_block1", 2 * c, c, True)
        return found | {"out_gain": (), "out_conv.weight": (self.images, c, 3, 3)}


def denoised(sizes, tensors, x, sigma, labels):
    """D(x; sigma) for x [B, C, H, W], sigma [B] and labels [B], sizes.labels for none."""
    t = {name: np.asarray(a, np.float64) for name, a in tensors.items()}
    sigma = sigma[:, None, None, None]
    variance = sigma**2 + 0.25
    f = forward(sizes, t, x / np.sqrt(variance), np.log(sigma.ravel()) / 4, labels)
    return 0.25 / variance * x + sigma * 0.5 / np.sqrt(variance) * f


def forward(sizes, t, x, time, labels):
    angles = np.outer(time, t["emb_fourier.freqs"]) + t["emb_fourier.phases"]
    e = layer(np.sqrt(2) * np.cos(angles), t["emb_noise.weight"])
    if sizes.labels:
        one_hot = np.eye(sizes.labels + 1)[labels][:, :-1] * np.sqrt(sizes.labels)
        e = mixed(e, layer(one_hot, t["emb_label.weight"]), 0.5)
    e = silu(e)
    x = np.concatenate([x, np.ones_like(x[:, :1])], 1)
    skips = []
    names = dict.fromkeys(".".join(n.split(".")[:2]) for n in t if n[:4] in ("enc.", "dec."))
    for name in names:
        p = {n.removeprefix(f"{name}."): a for n, a in t.items() if n.startswith(f"{name}.")}
        if name.endswith("_conv"):
            x = layer(x, p["weight"])
        elif name.startswith("enc."):
            if name.endswith("_down"):
                b, c, h, w = x.shape
                x = x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
            if "conv_skip.weight" in p:
                x = layer(x, p["conv_skip.weight"])
            x = over_rms(x, 1)
            x = attended(sizes, p, mixed(x, branch(p, x, e), 0.3))
        else:
            if name.endswith("_up"):
                x = x.repeat(2, 2).repeat(2, 3)
            elif "_block" in name:
                skip = skips.pop()
                n, m = x.shape[1], skip.shape[1]
                joined = [x / np.sqrt(n) / 2, skip / np.sqrt(m) / 2]
                x = np.sqrt(2 * (n + m)) * np.concatenate(joined, 1)
            y = branch(p, x, e)
            if "conv_skip.weight" in p:
                x = layer(x, p["conv_skip.weight"])
            x = attended(sizes, p, mixed(x, y, 0.3))
        if name.startswith("enc."):
            skips.append(x)
    return layer(x, t["out_conv.weight"], t["out_gain"])


def branch(p, x, e):
    y = layer(silu(x), p["conv_res0.weight"])
    scale = 1 + layer(e, p["emb_linear.weight"], p["emb_gain"])
    return layer(silu(y * scale[:, :, None, None]), p["conv_res1.weight"])


def attended(sizes, p, x):
    if "attn_qkv.weight" in p:
        b, c, h, w = x.shape
        y = layer(x, p["attn_qkv.weight"]).reshape(b, c // sizes.head, sizes.head, 3, h * w)
        q, k, v = np.moveaxis(over_rms(y, 2), 3, 0)
        logits = np.einsum("bncq,bnck->bnqk", q, k) / np.sqrt(sizes.head)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        y = np.einsum("bnqk,bnck->bncq", weights, v).reshape(x.shape)
        x = mixed(x, layer(y, p["attn_proj.weight"]), 0.3)
    return np.clip(x, -256, 256)


def layer(x, weight, gain=1.0):
    fan_in = weight[0].size
    length = np.sqrt(np.sum(weight**2, tuple(range(1, weight.ndim)), keepdims=True))
    weight = weight / (1e-4 + length / np.sqrt(fan_in)) * gain / np.sqrt(fan_in)
    if weight.ndim == 2:
        return x @ weight.T
    reach = weight.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    return np.einsum("bihwyx,oiyx->bohw", windows, weight, optimize=True)


def over_rms(x, axis):
    return x / (1e-4 + np.sqrt(np.mean(x**2, axis, keepdims=True)))


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def mixed(a, b, t):
    return ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2)


def heun(denoise, noise, num_steps=32):
    """The published sampler: EDM's, of denoise(x, sigma [B])."""
    i = np.arange(num_steps)
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = np.append((ends[0] + i / (num_steps - 1) * (ends[1] - ends[0])) ** 7, 0)
    x, many = noise * sigmas[0], np.ones(len(noise))
    for i, (now, then) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - denoise(x, now * many)) / now
        there = x + (then - now) * slope
        if i < num_steps - 1:
            slope = (slope + (there - denoise(there, then * many)) / then) / 2
            there = x + (then - now) * slope
        x = there
    return x


# --- Pickles --------------------------------------------------------------------------------------


def pickled(sizes, tensors, *, name="Precond", network="UNet", encoder=None, **arguments):
    """A file as their code writes one: {"ema", "encoder"}, modules with their source code."""
    unet = module("UNet" if network == "UNet" else network, tensors, arguments)
    logvar = module("MPConv", {"weight": np.ones((1, 4), np.float32)}, {})
    parts = {"unet": unet, "logvar_linear": logvar}
    numbers = {
        "img_resolution": sizes.side, "img_channels": sizes.images, "label_dim": sizes.labels,
        "use_fp16": True, "sigma_data": 0.5,
    }  # fmt: skip
    state = {key: value(number) for key, number in numbers.items()}
    ema = persistent(name, state | {"_modules": dictionary(parts)})
    return program(dictionary({"ema": ema, "encoder": encoder or value(None)}))


def vae_encoder(name="StabilityVAEEncoder", times=1.0):
    """Their encoder, whose arrays of NumPy scale latents."""
    mean, std = np.float32([5.81, 3.25, 0.12, -2.15]), np.float32([4.17, 4.62, 3.71, 3.28])
    scale = np.float32(0.5 * times) / std
    parts = {"vae_name": value("stabilityai/sd-vae-ft-mse"), "_vae": value(None)}
    return persistent(name, parts | {"scale": ndarray(scale), "bias": ndarray(-mean * scale)})


def module(name, tensors, arguments):
    """A module with tensors named by their paths; containers are ModuleDicts, as theirs."""
    own = {path: parameter(a) for path, a in tensors.items() if "." not in path}
    buffers = {path: own.pop(path) for path in ("freqs", "phases") if path in own}
    first = dict.fromkeys(path.partition(".")[0] for path in tensors if "." in path)
    parts = {}
    for part in first:
        below = {
            path.removeprefix(f"{part}."): a
            for path, a in tensors.items()
            if path.startswith(f"{part}.")
        }
        parts[part] = module("" if part in ("enc", "dec") else "Block", below, {})
    state = {
        "_parameters": dictionary(own), "_buffers": dictionary(buffers),
        "_modules": dictionary(parts),
    }  # fmt: skip
    if not name:
        container = named("torch.nn.modules.container", "ModuleDict")
        return container + b")\x81" + dictionary(state) + b"b"
    return persistent(name, state | {"_init_kwargs": value(arguments)})


def persistent(name, state):
    meta = {
        "type": value("class"),
        "module_src": value("raise SystemExit('source code in a pickle was executed')"),
        "class_name": value(name),
        "state": dictionary(state),
    }
    return call(named("torch_utils.persistence", "_reconstruct_persistent_obj"), dictionary(meta))


def dictionary(items):
    return b"}(" + b"".join(value(key) + item for key, item in items.items()) + b"u"


def parameter(a):
    kind = {"float32": "FloatStorage", "float16": "HalfStorage"}[a.dtype.name]
    data = legacy(program(storage("0", a.size, kind)), [("0", a.size, a.tobytes())])
    strides = tuple(stride // a.itemsize for stride in a.strides)
    view = map(value, (0, a.shape, strides, False))
    loaded = call(named("torch.storage", "_load_from_bytes"), raw(data))
    tensor = call(REBUILD, loaded, *view, call(ORDERED_DICT))
    return call(
        named("torch._utils", "_rebuild_parameter"), tensor, value(True), call(ORDERED_DICT)
    )


def ndarray(a):
    rest = value((3, "<", None, None, None, -1, -1, 0)) + b"b"
    dtype = call(named("numpy", "dtype"), value("f4"), value(False), value(True)) + rest
    empty = call(
        named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), value((0,)),
        raw(b"b"),
    )  # fmt: skip
    return (
        empty + b"(" + value(1) + value(a.shape) + dtype + value(False) + raw(a.tobytes()) + b"tb"
    )


def raw(data):
    return b"B" + struct.pack("<I", len(data)) + data

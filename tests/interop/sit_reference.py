"""SiT, DiT and LightningDiT again, in NumPy and float64, NCHW; and weights made of names."""

import zlib

import numpy as np


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fill(shapes):
    """Tensors of these shapes, each drawn by its name: norms are about one, biases small."""
    tensors = {}
    for name, shape in shapes.items():
        a = normal(zlib.crc32(name.encode()), *shape)
        if len(shape) > 1:
            a = a / np.float32(np.prod(shape[1:]) ** 0.5)
        else:
            a = np.float32(0.1) * a + np.float32(name.endswith("weight"))
        tensors[name] = a
    return tensors


def state_dict(
    *, outputs, inputs=4, width=48, depth=2, heads=4, patch=2, side=4, labels=10, rms=False,
    qk_norm=False, rope=False, swiglu=False, shifts=True,
):  # fmt: skip
    """A state dict as the published code saves it, for `side` patches a side."""
    layers = {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    layers["x_embedder.proj"] = (width, inputs, patch, patch)
    norms = ["final_layer.norm_final"] if rms else []
    hidden = int(2 / 3 * 4 * width)
    for i in range(depth):
        block = f"blocks.{i}."
        layers[block + "attn.qkv"] = (3 * width, width)
        layers[block + "attn.proj"] = (width, width)
        if swiglu:
            layers[block + "mlp.w12"] = (2 * hidden, width)
            layers[block + "mlp.w3"] = (width, hidden)
        else:
            layers[block + "mlp.fc1"] = (4 * width, width)
            layers[block + "mlp.fc2"] = (width, 4 * width)
        layers[block + "adaLN_modulation.1"] = ((6 if shifts else 4) * width, width)
        norms += [block + "norm1", block + "norm2"] if rms else []
        norms += [block + "attn.q_norm", block + "attn.k_norm"] if qk_norm else []
    layers["final_layer.linear"] = (patch**2 * outputs, width)
    layers["final_layer.adaLN_modulation.1"] = (2 * width, width)
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes["y_embedder.embedding_table.weight"] = (labels + 1, width)
    for name in norms:
        shapes[f"{name}.weight"] = (width // heads if "attn" in name else width,)
        if not rms:
            shapes[f"{name}.bias"] = shapes[f"{name}.weight"]
    tensors = fill(shapes)
    tensors["pos_embed"] = np.float32(position_table(side, width))[None]
    if rope:
        angles = np.repeat(rope_angles(side, width // heads), 2, axis=1)
        tensors["feat_rope.freqs_cos"] = np.float32(np.cos(angles))
        tensors["feat_rope.freqs_sin"] = np.float32(np.sin(angles))
    return tensors


def position_table(side, width):
    """[side^2, width], the column's sines and cosines, then the row's."""
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(side**2), side)
    waves = [f(np.outer(place, omega)) for place in (column, row) for f in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1)


def rope_angles(side, head):
    """[side^2, head / 2], the row's, then the column's."""
    omega = 10000.0 ** -(np.arange(0, head // 2, 2) / (head // 2))
    row, column = np.divmod(np.arange(side**2), side)
    return np.concatenate([np.outer(row, omega), np.outer(column, omega)], axis=1)


def network(tensors, x, t, y, heads=4):
    """The network's output [B, outputs, H, W] of x [B, C, H, W] at its own time t [B]."""
    w = {name: np.asarray(a, np.float64) for name, a in tensors.items()}
    rope = "feat_rope.freqs_cos" in w
    linear = lambda name, a: a @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    silu = lambda a: a / (1 + np.exp(-a))  # noqa: E731
    batch, channels, height, _ = x.shape
    patch = w["x_embedder.proj.weight"].shape[2]
    side = height // patch
    patches = x.reshape(batch, channels, side, patch, side, patch)
    patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch, side**2, -1)
    kernel = w["x_embedder.proj.weight"]
    width = len(kernel)
    h = patches @ kernel.reshape(width, -1).T + w["x_embedder.proj.bias"] + w["pos_embed"]

    frequencies = np.exp(-np.log(10000) * np.arange(128) / 128)
    angles = t[:, None] * frequencies
    c = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", c)))
    c = silu(c + w["y_embedder.embedding_table.weight"][y])[:, None]

    def norm(name, a, epsilon=1e-6):
        if f"{name}.weight" in w and f"{name}.bias" not in w:
            return a / np.sqrt((a**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}.weight"]
        a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + epsilon)
        return a * w[f"{name}.weight"] + w[f"{name}.bias"] if f"{name}.weight" in w else a

    def turn(a):
        pairs = a.reshape(*a.shape[:-1], -1, 2)
        z = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * rope_angles(side, a.shape[-1]))
        return np.stack([z.real, z.imag], axis=-1).reshape(a.shape)

    for i in range(len([name for name in w if name.endswith("attn.qkv.bias")])):
        block = f"blocks.{i}."
        parts = len(w[block + "adaLN_modulation.1.bias"]) // width
        changes = np.split(linear(block + "adaLN_modulation.1", c), parts, axis=-1)
        if parts == 4:
            changes = [0, *changes[:2], 0, *changes[2:]]
        shift1, scale1, gate1, shift2, scale2, gate2 = changes
        a = norm(block + "norm1", h) * (1 + scale1) + shift1
        qkv = linear(block + "attn.qkv", a).reshape(batch, side**2, 3, heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if block + "attn.q_norm.weight" in w:
            q, k = (norm(f"{block}attn.{n}_norm", b, 1e-5 if f"{block}attn.{n}_norm.bias" in w
                         else 1e-6) for n, b in (("q", q), ("k", k)))  # fmt: skip
        if rope:
            q, k = turn(q), turn(k)
        logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = weights @ v / weights.sum(-1, keepdims=True)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, side**2, width)
        h = h + gate1 * linear(block + "attn.proj", mixed)
        a = norm(block + "norm2", h) * (1 + scale2) + shift2
        if block + "mlp.w12.weight" in w:
            first, second = np.split(linear(block + "mlp.w12", a), 2, axis=-1)
            a = linear(block + "mlp.w3", silu(first) * second)
        else:
            a = linear(block + "mlp.fc1", a)
            a = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
            a = linear(block + "mlp.fc2", a)
        h = h + gate2 * a
    shift, scale = np.split(linear("final_layer.adaLN_modulation.1", c), 2, axis=-1)
    h = linear("final_layer.linear", norm("final_layer.norm_final", h) * (1 + scale) + shift)
    h = h.reshape(batch, side, side, patch, patch, -1).transpose(0, 5, 1, 3, 2, 4)
    return h.reshape(batch, -1, height, height)

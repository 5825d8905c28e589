import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.networks import Conditioning, UNet, build_network, describe_network
from pdistill.networks.unet import Attention, ResBlock, double

SHAPE = (8, 4, 2)  # not square, so that rows and columns cannot be swapped unseen
# 12 channels are 4 groups of 3; the second level has two heads.
SMALL = UNet(
    out_channels=3, channels=12, embedding_channels=10, multipliers=(1, 2), blocks=1,
    attention_sizes=(4,), head_channels=12, num_labels=5,
)  # fmt: skip
FLAT = SMALL.clone(multipliers=(1,), blocks=0)  # compiles quickly
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
LOGSNR = np.array([-8.0, 0.5, 6.0], np.float32)
LABEL = np.array([0, 5, 2], np.int32)  # 5 is "no label"


def shapes(network, shape=SHAPE):
    inputs = jnp.zeros((1, *shape)), jnp.zeros(1)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs))["params"]


def random_like(tree):
    """Nothing zero, so that every path through the network counts."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(scale=0.3, size=a.shape).astype(a.dtype), tree)


PARAMS, FLAT_PARAMS = (random_like(shapes(network)) for network in (SMALL, FLAT))


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, label=LABEL, dropout_key=None):
    train = dropout_key is not None
    rngs = {"dropout": dropout_key} if train else None
    told = Conditioning(label=label)
    return network.apply({"params": params}, Z, LOGSNR, told, train=train, rngs=rngs)


# --- Against what is published -------------------------------------------------------------------


ADM = UNet(6, embedding_channels=768, attention_sizes=(8, 16, 32), head_channels=64)


@pytest.mark.parametrize(
    ("network", "size", "count"),
    [
        (UNet(out_channels=3), 32, 60_004_099),
        (ADM.clone(channels=192, multipliers=(1, 2, 3, 4), num_labels=1000), 64, 295_905_222),
        (ADM.clone(channels=64, multipliers=(1, 2, 4, 6, 8)), 128, 139_578_502),
    ],
    ids=["cifar10", "imagenet64", "lsun128"],
)
def test_number_of_parameters(network, size, count):
    assert sum(a.size for a in jax.tree.leaves(shapes(network, (size, size, 3)))) == count


def test_names_and_shapes_are_those_of_the_public_checkpoints():
    blocks = {
        "down_0.block_0": (12, 12), "down_0.downsample": (12, 12), "down_1.block_0": (12, 24),
        "mid.block_1": (24, 24), "mid.block_2": (24, 24),
        "up_1.block_0": (24 + 24, 24), "up_1.block_1": (24 + 12, 24), "up_1.upsample": (24, 24),
        "up_0.block_0": (24 + 12, 12), "up_0.block_1": (12 + 12, 12),
    }  # fmt: skip
    desired = {
        "dense0": ((12, 10), (10,)), "dense1": ((10, 10), (10,)), "class_emb": ((5, 10), (10,)),
        "conv_in": ((3, 3, 2, 12), (12,)),
        "norm_out": ((12,), (12,)), "conv_out": ((3, 3, 12, 3), (3,)),
    }  # fmt: skip
    for name, (c, f) in blocks.items():
        layers = {
            "norm1": ((c,), (c,)), "conv1": ((3, 3, c, f), (f,)),
            "temb_proj": ((10, 2 * f), (2 * f,)),
            "norm2": ((f,), (f,)), "conv2": ((3, 3, f, f), (f,)),
        }  # fmt: skip
        if c != f:
            layers["nin_shortcut"] = ((c, f), (f,))
        desired |= {f"{name}/{layer}": shape for layer, shape in layers.items()}
    for name in ("down_1.attn_0", "mid.attn_1", "up_1.attn_0", "up_1.attn_1"):
        desired |= {f"{name}/{layer}": ((24, 2, 12), (2, 12)) for layer in "qkv"}
        desired |= {f"{name}/norm": ((24,), (24,)), f"{name}/proj_out": ((2, 12, 24), (24,))}

    actual = {}
    for path, leaf in jax.tree.leaves_with_path(shapes(SMALL)):
        *names, last = (key.key for key in path)
        actual["/".join(names), last] = leaf.shape
    expected = {}
    for name, (first, bias) in desired.items():
        expected[name, "scale" if "norm" in name else "kernel"] = first
        expected[name, "bias"] = bias
    assert actual == expected


# --- Against an independent implementation --------------------------------------------------------


def swish(x):
    return x / (1 + np.exp(-x))


def np_dense(p, x, axes=1):
    return np.tensordot(x, p["kernel"], axes) + p["bias"]


def np_conv(p, x):
    out = np.zeros((*x.shape[:3], p["kernel"].shape[-1])) + p["bias"]
    for b, h, w in np.ndindex(x.shape[:3]):
        for i, j in np.ndindex(3, 3):
            if 0 <= h + i - 1 < x.shape[1] and 0 <= w + j - 1 < x.shape[2]:
                out[b, h, w] += x[b, h + i - 1, w + j - 1] @ p["kernel"][i, j]
    return out


def np_norm(p, x):
    groups = next(n for n in (32, 16, 8, 4, 2, 1) if x.shape[-1] % n == 0)
    out = []
    for part in np.split(x, groups, axis=-1):
        centred = part - part.mean((1, 2, 3), keepdims=True)
        out.append(centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + 1e-6))
    return np.concatenate(out, -1) * p["scale"] + p["bias"]


def np_halve(x):
    return sum(x[:, i::2, j::2] for i, j in np.ndindex(2, 2)) / 4


def np_double(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def np_block(p, h, embedding, resample=lambda x: x):
    skip, h = resample(h), resample(swish(np_norm(p["norm1"], h)))
    h = np_conv(p["conv1"], h)
    scale, shift = np.split(np_dense(p["temb_proj"], swish(embedding))[:, None, None], 2, axis=-1)
    h = np_conv(p["conv2"], swish(np_norm(p["norm2"], h) * (1 + scale) + shift))
    return h + (np_dense(p["nin_shortcut"], skip) if "nin_shortcut" in p else skip)


def np_attention(p, h):
    tokens = np_norm(p["norm"], h).reshape(h.shape[0], -1, h.shape[-1])
    q, k, v = (np_dense(p[name], tokens) for name in "qkv")
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]))
    weights /= weights.sum(-1, keepdims=True)
    tokens = np.einsum("bhqk,bkhd->bqhd", weights, v)
    return h + np_dense(p["proj_out"], tokens, axes=2).reshape(h.shape)


def np_unet(p, z, logsnr, label):
    """SMALL, block by block."""
    u = np.arctan(np.exp(-logsnr / 2)) * 2 / math.pi
    angles = 1000 * u[:, None] * 10_000 ** -(np.arange(6) / 5)
    embedding = np_dense(p["dense0"], np.concatenate([np.sin(angles), np.cos(angles)], -1))
    embedding = np_dense(p["dense1"], swish(embedding))
    embedding += np_dense(p["class_emb"], np.eye(6)[label, :5])  # label 5: zeros

    def block(name, h, *more):
        return np_block(p[name], h, embedding, *more)

    def attended(i, j, h):
        return np_attention(p[f"{i}.attn_{j}"], block(f"{i}.block_{j}", h))

    def cat(h, skip):
        return np.concatenate([h, skip], -1)

    skip0 = np_conv(p["conv_in"], z)
    skip1 = block("down_0.block_0", skip0)
    skip2 = block("down_0.downsample", skip1, np_halve)
    skip3 = attended("down_1", 0, skip2)
    h = block("mid.block_2", attended("mid", 1, skip3))
    h = attended("up_1", 0, cat(h, skip3))
    h = attended("up_1", 1, cat(h, skip2))
    h = block("up_1.upsample", h, np_double)
    h = block("up_0.block_0", cat(h, skip1))
    h = block("up_0.block_1", cat(h, skip0))
    return np_conv(p["conv_out"], swish(np_norm(p["norm_out"], h)))


def test_network_against_numpy():
    p, z, logsnr = jax.tree.map(lambda a: a.astype(np.float64), (PARAMS, Z, LOGSNR))
    desired = np_unet(p, z, logsnr, LABEL)
    assert np.std(desired) > 0.4
    # Sines are wrong by up to 1e-4 in float32, everything else by much less.
    np.testing.assert_allclose(apply(SMALL, PARAMS), desired, rtol=0, atol=1e-4)


H, EMBEDDING = RNG.normal(size=(2, 4, 2, 64)), RNG.normal(size=(2, 10))


@pytest.mark.parametrize(
    ("module", "inputs", "numpy", "skip"),
    [
        (ResBlock(64, double), (H, EMBEDDING), lambda *a: np_block(*a, np_double), np_double(H)),
        (Attention(), (H,), np_attention, H),
    ],
    ids=["block", "attention"],
)
def test_modules_against_numpy(module, inputs, numpy, skip):
    """With what SMALL does not have: 32 groups, and a single head."""
    fresh = jax.jit(module.init)(jax.random.key(0), *map(jnp.float32, inputs))
    params = random_like(fresh)["params"]
    run = jax.jit(lambda params: module.apply({"params": params}, *map(jnp.float32, inputs)))
    np.testing.assert_allclose(run(fresh["params"]), skip, rtol=0, atol=1e-6)
    desired = numpy(jax.tree.map(np.float64, params), *inputs)
    assert np.std(desired - skip) > 1
    # Sums of 576 products of order 1 to 10.
    np.testing.assert_allclose(run(params), desired, rtol=0, atol=2e-4)


def test_output_is_zero_at_init():
    params = jax.jit(FLAT.init)(jax.random.key(0), Z, LOGSNR)["params"]
    output = apply(FLAT, params)
    assert output.shape == (3, 8, 4, 3)
    assert output.dtype == jnp.float32
    assert np.all(output == 0)
    assert {name for name, leaf in params.items() if not np.any(leaf.get("kernel", 1))} == {
        "conv_out"
    }


# --- Options --------------------------------------------------------------------------------------


def test_no_label_is_the_label_after_the_last():
    outputs = [apply(FLAT, FLAT_PARAMS, np.full(3, label, np.int32)) for label in range(6)]
    np.testing.assert_allclose(apply(FLAT, FLAT_PARAMS, None), outputs[5], rtol=0, atol=1e-5)
    assert all(np.std(outputs[5] - output) > 0.01 for output in outputs[:5])


def test_dropout_only_when_training():
    network = FLAT.clone(dropout=0.5)
    np.testing.assert_array_equal(apply(network, FLAT_PARAMS), apply(FLAT, FLAT_PARAMS))
    one, again, other = (
        apply(network, FLAT_PARAMS, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.std(one - other) > 0.1
    with pytest.raises(Exception, match="needs PRNG for"):
        network.apply({"params": FLAT_PARAMS}, Z, LOGSNR, train=True)


def test_bfloat16_is_only_inside():
    network = FLAT.clone(dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(shapes(network))} == {jnp.dtype(jnp.float32)}
    exact, rounded = (apply(net, FLAT_PARAMS) for net in (FLAT, network))
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03  # bfloat16 rounds by 4e-3; so it is used, and used with care


def test_joined_activations_stay_in_their_number_format():
    network = SMALL.clone(dtype=jnp.bfloat16)

    program = jax.jit(lambda params: apply(network, params)).lower(PARAMS).as_text()
    kept = re.findall(r"optimization_barrier .* : tensor<[\dx]*x(\w+)>", program)
    assert kept == ["bf16"] * len(network.multipliers) * (network.blocks + 1)


@pytest.mark.parametrize("remat", [True, "products"])
def test_remat_changes_nothing(remat):
    def loss(params, network):
        return jnp.mean(apply(network, params, dropout_key=jax.random.key(0)) ** 2)

    plain, remat = (FLAT.clone(dropout=0.1, remat=remat) for remat in (False, remat))
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    stored, again = (value_and_grad(FLAT_PARAMS, network) for network in (plain, remat))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, stored, again)
    jaxpr = str(jax.make_jaxpr(loss, static_argnums=1)(FLAT_PARAMS, remat))
    assert jaxpr.count("remat2[") == 4  # three blocks, one attention


def test_remat_stores_what_it_says():
    """Residuals of a gradient: the fewest with True, more with the products, most without."""

    def stored(remat):
        network = FLAT.clone(remat=remat)
        _, pullback = jax.eval_shape(lambda p: jax.vjp(lambda q: apply(network, q), p), FLAT_PARAMS)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert stored(True) < stored("products") < stored(False)
    with pytest.raises(ValueError, match="remat must be False, True or 'products'; got 'all'"):
        apply(FLAT.clone(remat="all"), FLAT_PARAMS)


def test_all_options_keep_dtypes_apart():
    """Strict promotion, forwards and backwards; traced only."""
    network = SMALL.clone(dtype=jnp.bfloat16, dropout=0.1, remat=True)
    gradient = jax.eval_shape(
        jax.grad(lambda p: jnp.sum(apply(network, p, dropout_key=jax.random.key(0)))), PARAMS
    )
    assert {a.dtype for a in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def test_description_rebuilds_the_network():
    for network in (SMALL.clone(dtype=jnp.bfloat16), UNet(1)):
        assert build_network(**json.loads(json.dumps(describe_network(network)))) == network


@pytest.mark.parametrize(
    ("network", "label", "message"),
    [
        (UNet(1), LABEL, r"label was given to a network without labels \(num_labels=0\)"),
        (UNet(1, multipliers=(1,) * 4), None, "4 levels .* must be a multiple of 8; got 8x4"),
        (SMALL.clone(head_channels=16), None, "head_channels 16 must divide the 24 channels"),
    ],
)
def test_impossible_settings(network, label, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: network.init(jax.random.key(0), Z, LOGSNR, Conditioning(label)))

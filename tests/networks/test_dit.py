import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.networks import Conditioning, DiT
from pdistill.networks.dit import Block
from pdistill.networks.transformer import attend

SHAPE = (4, 6, 2)  # not square, so that rows and columns cannot be swapped unseen
SMALL = DiT(out_channels=3, patch=2, features=8, depth=2, heads=2, num_labels=5)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
LOGSNR = np.array([-8.0, 0.5, 6.0], np.float32)
LABEL = np.array([0, 4, 2], np.int32)


def shapes(network, shape=SHAPE):
    inputs = jnp.zeros((1, *shape)), jnp.zeros(1)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs))["params"]


@functools.cache
def random_params(network):
    """Nothing zero, so that every path through the network counts."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: rng.normal(scale=0.3, size=a.shape).astype(a.dtype), shapes(network)
    )


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, z=Z, logsnr=LOGSNR, label=LABEL):
    return network.apply({"params": params}, z, logsnr, Conditioning(label))


# --- An independent implementation --------------------------------------------------------------


def dense(params, x):
    return np.tensordot(x, params["kernel"], 1) + params["bias"]


def modulated(tokens, shift, scale):
    centred = tokens - tokens.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-6)
    return normed * (1 + scale[:, None]) + shift[:, None]


def swish(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def numpy_block(params, tokens, embedding):
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(
        dense(params["modulation"], swish(embedding)), 6, axis=-1
    )
    qkv = dense(params["qkv"], modulated(tokens, shift1, scale1))  # [B, N, 3, heads, F / heads]
    heads = []
    for head in range(qkv.shape[3]):
        q, k, v = (qkv[:, :, i, head] for i in range(3))
        weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    out = params["attention_out"]
    flat = {"kernel": out["kernel"].reshape(-1, out["kernel"].shape[-1]), "bias": out["bias"]}
    tokens = tokens + gate1[:, None] * dense(flat, np.concatenate(heads, -1))
    h = gelu(dense(params["mlp_in"], modulated(tokens, shift2, scale2)))
    return tokens + gate2[:, None] * dense(params["mlp_out"], h)


def numpy_dit(network, params, z, logsnr, label):
    params, z = jax.tree.map(lambda a: a.astype(np.float64), (params, z))
    half, p = network.features // 2, network.patch
    u = np.arctan(np.exp(-logsnr.astype(np.float64) / 2)) * 2 / math.pi
    angles = 1000 * u[:, None] * 10_000 ** -(np.arange(half) / (half - 1))
    embedding = dense(params["logsnr_in"], np.concatenate([np.sin(angles), np.cos(angles)], -1))
    embedding = dense(params["logsnr_out"], swish(embedding))
    embedding = embedding + params["label"]["Embed_0"]["embedding"][label]

    corners = [(h, w) for h in range(0, z.shape[1], p) for w in range(0, z.shape[2], p)]
    kernel, bias = params["patches"]["kernel"], params["patches"]["bias"]
    patches = [np.tensordot(z[:, h : h + p, w : w + p], kernel, 3) + bias for h, w in corners]
    tokens = np.stack(patches, axis=1) + params["position"]
    for i in range(network.depth):
        tokens = numpy_block(params[f"block_{i}"], tokens, embedding)
    shift, scale = np.split(dense(params["modulation"], swish(embedding)), 2, axis=-1)
    pixels = dense(params["pixels"], modulated(tokens, shift, scale))
    output = np.zeros((*z.shape[:3], network.out_channels))
    for i, (h, w) in enumerate(corners):
        output[:, h : h + p, w : w + p] = pixels[:, i].reshape(-1, p, p, network.out_channels)
    return output


def test_block_against_numpy():
    tokens, embedding = RNG.normal(size=(3, 6, 8)), RNG.normal(size=(3, 8))
    params = random_params(SMALL)["block_0"]
    actual = jax.jit(Block(heads=2).apply)(
        {"params": params}, tokens.astype(np.float32), embedding.astype(np.float32)
    )
    np.testing.assert_allclose(actual, numpy_block(params, tokens, embedding), rtol=0, atol=1e-5)


def test_attention_with_large_logits():
    """Of 400 and 800, whose exponentials float32 has not: all weight on the larger one."""
    keys, values = (jnp.array(pair).reshape(1, 2, 1, 1) for pair in ([400.0, 800.0], [1.0, 2.0]))
    np.testing.assert_array_equal(attend(jnp.ones((1, 1, 1, 1)), keys, values).ravel(), [2.0])


def test_network_against_numpy():
    params = random_params(SMALL)
    desired = numpy_dit(SMALL, params, Z, LOGSNR, LABEL)
    assert np.std(desired) > 0.5
    # The sines have errors up to 1e-4 in float32.
    np.testing.assert_allclose(apply(SMALL, params), desired, rtol=0, atol=1e-3)


def test_bias_of_the_last_layer_is_laid_out_as_pixels():
    params = jax.tree.map(jnp.zeros_like, random_params(SMALL))
    bias = np.arange(2 * 2 * 3, dtype=np.float32)
    output = apply(SMALL, params | {"pixels": params["pixels"] | {"bias": bias}})
    for h, w, c in np.ndindex(4, 6, 3):
        assert np.all(output[:, h, w, c] == bias[(h % 2) * 6 + (w % 2) * 3 + c])


# --- At initialisation --------------------------------------------------------------------------


def test_output_is_zero_at_init():
    params = jax.jit(SMALL.init)(jax.random.key(0), Z, LOGSNR)["params"]
    output = apply(SMALL, params)
    assert output.shape == (3, 4, 6, 3)
    assert output.dtype == jnp.float32
    assert np.all(output == 0)


def test_blocks_are_the_identity_at_init():
    tokens, embedding = jnp.asarray(RNG.normal(size=(3, 6, 8)), jnp.float32), jnp.ones((3, 8))
    block = Block(heads=2)
    fresh = jax.jit(block.init)(jax.random.key(0), tokens, embedding)["params"]
    trained = random_params(SMALL)["block_0"]
    for params in (fresh, trained | {"modulation": fresh["modulation"]}):
        output = jax.jit(block.apply)({"params": params}, tokens, embedding)
        np.testing.assert_array_equal(output, tokens)


def test_number_of_parameters():
    def count(network, shape):
        return sum(a.size for a in jax.tree.leaves(shapes(network, shape)))

    c, o, p, f, d, labels, tokens = 2, 3, 2, 8, 2, 5, 6
    block = (6 + 3 + 1 + 4 + 4) * f * f + (6 + 3 + 1 + 4 + 1) * f
    embedding = 2 * (f * f + f) + (labels + 1) * f + p * p * c * f + f + tokens * f
    last = 2 * f * f + 2 * f + p * p * o * (f + 1)
    assert count(SMALL, SHAPE) == embedding + d * block + last
    # Peebles & Xie 2022, table 4, on 32x32x4 latents with a learned variance.
    # Only the table's rounding and the size of the time embedding differ.
    for features, heads, millions in ((384, 6, 33), (768, 12, 130)):
        network = DiT(8, features=features, depth=12, heads=heads, num_labels=1000)
        assert count(network, (32, 32, 4)) == pytest.approx(millions * 1e6, rel=0.01)


# --- Options ------------------------------------------------------------------------------------


@jax.numpy_dtype_promotion("standard")  # flax's LayerNorm needs it
def test_bfloat16_is_only_inside():
    network = SMALL.clone(dtype=jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(shapes(network))} == {jnp.dtype(jnp.float32)}
    exact, rounded = (apply(net, random_params(SMALL)) for net in (SMALL, network))
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03  # bfloat16 rounds by 4e-3; so it is used, and used with care


@pytest.mark.parametrize("remat", [True, "products"])
def test_remat_changes_nothing(remat):
    def loss(params, network):
        return jnp.mean(apply(network, params) ** 2)

    plain = SMALL.clone(depth=1)
    params, rematted = random_params(plain), plain.clone(remat=remat)
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    stored, again = (value_and_grad(params, network) for network in (plain, rematted))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, stored, again)
    assert "remat" in str(jax.make_jaxpr(loss, static_argnums=1)(params, rematted))


def test_dropout_only_when_training():
    network = SMALL.clone(dropout=0.5)
    params = random_params(SMALL)

    @functools.partial(jax.jit, static_argnums=1)
    def run(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        told = Conditioning(LABEL)
        return network.apply({"params": params}, Z, LOGSNR, told, train=train, rngs=rngs)

    np.testing.assert_allclose(run(0, False), apply(SMALL, params), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(run(0, True), run(0, True))
    assert np.std(run(0, True) - run(1, True)) > 0.1


def test_no_label_is_a_label_of_its_own():
    params = random_params(SMALL)
    none = apply(SMALL, params, label=None)
    np.testing.assert_array_equal(none, apply(SMALL, params, label=np.full(3, 5)))
    for label in range(5):
        assert np.std(none - apply(SMALL, params, label=np.full(3, label))) > 0.1


@pytest.mark.parametrize(
    ("network", "label", "message"),
    [
        (DiT(1), LABEL, r"label was given to a network without labels \(num_labels=0\)"),
        (DiT(1, patch=3), None, "patch 3 must divide the image size 4x6"),
        (DiT(1, features=10, heads=4), None, "heads 4 must divide features 10"),
    ],
)
def test_impossible_settings(network, label, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: network.init(jax.random.key(0), Z, LOGSNR, Conditioning(label)))

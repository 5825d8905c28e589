import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from pdistill.networks import Conditioning, DiT, SiT
from pdistill.networks.attention import attend
from pdistill.networks.dit import Block
from pdistill.networks.transformer import normalize, rotary_angles, rotate

SHAPE = (4, 6, 2)  # not square, so that rows and columns cannot be swapped unseen
SMALL = DiT(out_channels=3, patch=2, features=8, depth=2, heads=2, num_labels=5)
# Options, alone and together; 8 channels in a head have two frequencies each way.
MODERN = {
    **{name: {name: True} for name in ("rms_norm", "qk_norm", "rope", "swiglu", "velocity")},
    "registers": {"registers": 3},
}
MODERN["all"] = {name: value for option in MODERN.values() for name, value in option.items()}
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


def rms(params, x):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * params["scale"]


def modulated(params, name, tokens, shift, scale):
    """With an RMS norm where there are parameters of one."""
    centred = tokens - tokens.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-6)
    if name in params:
        normed = rms(params[name], tokens)
    return normed * (1 + scale[:, None]) + shift[:, None]


def turned(a, places):
    """Pairs [B, T, C] as complex numbers, times exp(i angle), by row and by column."""
    pairs = (a[..., 0::2] + 1j * a[..., 1::2]).reshape(*a.shape[:2], 2, -1)  # row or column
    quarter = pairs.shape[-1]
    for token, place in enumerate(places):
        for axis, j in np.ndindex(2, quarter):
            pairs[:, token, axis, j] *= np.exp(1j * place[axis] * 10_000.0 ** (-j / quarter))
    pairs = pairs.reshape(*a.shape[:2], -1)
    return np.stack([pairs.real, pairs.imag], -1).reshape(a.shape)


def swish(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def numpy_block(params, tokens, embedding, places=None):
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(
        dense(params["modulation"], swish(embedding)), 6, axis=-1
    )
    h = modulated(params, "norm1", tokens, shift1, scale1)
    qkv = dense(params["qkv"], h)  # [B, N, 3, heads, F / heads]
    heads = []
    for head in range(qkv.shape[3]):
        q, k, v = (qkv[:, :, i, head] for i in range(3))
        if "q_norm" in params:
            q, k = rms(params["q_norm"], q), rms(params["k_norm"], k)
        if places is not None:
            q, k = turned(q, places), turned(k, places)
        weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    out = params["attention_out"]
    flat = {"kernel": out["kernel"].reshape(-1, out["kernel"].shape[-1]), "bias": out["bias"]}
    tokens = tokens + gate1[:, None] * dense(flat, np.concatenate(heads, -1))
    h = dense(params["mlp_in"], modulated(params, "norm2", tokens, shift2, scale2))
    if h.shape[-1] == 4 * tokens.shape[-1]:
        h = gelu(h)
    else:
        hidden = int(2 / 3 * 4 * tokens.shape[-1])
        h = swish(h[..., :hidden]) * h[..., hidden:]
    return tokens + gate2[:, None] * dense(params["mlp_out"], h)


def numpy_dit(network, params, z, logsnr, label):
    """The output of the network's first head, and of its second if it has one."""
    params, z = jax.tree.map(lambda a: a.astype(np.float64), (params, z))
    half, p = network.features // 2, network.patch
    u = np.arctan(np.exp(-logsnr.astype(np.float64) / 2)) * 2 / math.pi
    angles = network.time_scale * u[:, None] * 10_000 ** -(np.arange(half) / (half - 1))
    embedding = dense(params["logsnr_in"], np.concatenate([np.sin(angles), np.cos(angles)], -1))
    embedding = dense(params["logsnr_out"], swish(embedding))
    embedding = embedding + params["label"]["Embed_0"]["embedding"][label]

    corners = [(h, w) for h in range(0, z.shape[1], p) for w in range(0, z.shape[2], p)]
    kernel, bias = params["patches"]["kernel"], params["patches"]["bias"]
    patches = [np.tensordot(z[:, h : h + p, w : w + p], kernel, 3) + bias for h, w in corners]
    tokens = np.stack(patches, axis=1) + params["position"]
    places = [(h // p, w // p) for h, w in corners]
    if network.registers:
        first = np.broadcast_to(params["registers"], (len(z), *params["registers"].shape))
        tokens = np.concatenate([first, tokens], axis=1)
        places = [(0, 0)] * network.registers + places
    for i in range(network.depth):
        block = params[f"block_{i}"]
        tokens = numpy_block(block, tokens, embedding, places if network.rope else None)
    shift, scale = np.split(dense(params["modulation"], swish(embedding)), 2, axis=-1)
    maps = modulated(params, "norm", tokens[:, network.registers :], shift, scale)
    outputs = []
    for name in ("pixels", "velocity_pixels")[: 1 + network.velocity]:
        pixels, output = dense(params[name], maps), np.zeros((*z.shape[:3], network.out_channels))
        for i, (h, w) in enumerate(corners):
            output[:, h : h + p, w : w + p] = pixels[:, i].reshape(-1, p, p, network.out_channels)
        outputs.append(output)
    return outputs


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
    [desired] = numpy_dit(SMALL, params, Z, LOGSNR, LABEL)
    assert np.std(desired) > 0.5
    # The sines have errors up to 1e-4 in float32.
    np.testing.assert_allclose(apply(SMALL, params), desired, rtol=0, atol=1e-3)


def test_bias_of_the_last_layer_is_laid_out_as_pixels():
    params = jax.tree.map(jnp.zeros_like, random_params(SMALL))
    bias = np.arange(2 * 2 * 3, dtype=np.float32)
    output = apply(SMALL, params | {"pixels": params["pixels"] | {"bias": bias}})
    for h, w, c in np.ndindex(4, 6, 3):
        assert np.all(output[:, h, w, c] == bias[(h % 2) * 6 + (w % 2) * 3 + c])


@pytest.mark.parametrize("name", MODERN)
def test_options_against_numpy(name):
    network = SMALL.clone(features=16, depth=1, time_scale=16.0, **MODERN[name])
    params = random_params(network)
    actual, sown = jax.jit(functools.partial(network.apply, mutable=["velocity"]))(
        {"params": params}, Z, LOGSNR, Conditioning(LABEL)
    )
    seconds = sown["velocity"]["velocity"] if network.velocity else ()
    desired = numpy_dit(network, params, Z, LOGSNR, LABEL)
    assert min(map(np.std, desired)) > 0.5
    np.testing.assert_allclose([actual, *seconds], desired, rtol=0, atol=2e-5)
    [plain] = numpy_dit(network.clone(rope=False, velocity=False), params, Z, LOGSNR, LABEL)
    assert name != "rope" or np.std(plain - actual) > 0.01


@pytest.mark.parametrize("network", [DiT, SiT])
def test_remat_stores_the_products_with_parameters(network):
    """And nothing of attention's, whose heads are an axis: logits are B T T heads, in float32."""
    module = network(2, patch=2, features=16, depth=1, heads=2, num_labels=5)
    module = module.clone(dtype=jnp.bfloat16)
    z, told = jnp.zeros((3, 8, 8, 2)), Conditioning(jnp.zeros(3, int))

    @jax.numpy_dtype_promotion("standard")  # flax's norms rely on it
    def stored(remat):
        again = module.clone(remat=remat, parent=None)
        made = jax.eval_shape(
            lambda key: module.init(key, z, z[:, 0, 0, 0], told), jax.random.key(0)
        )
        loss = lambda params: again.apply(params, z, z[:, 0, 0, 0], told)  # noqa: E731
        _, pull_back = jax.eval_shape(lambda params: jax.vjp(loss, params), made)
        return [leaf.shape for leaf in jax.tree.leaves(pull_back)]

    assert (3, 2, 16, 16) in stored(False)
    kept = stored("products")
    assert not [shape for shape in kept if len(shape) == 4 and shape[:2] == (3, 2)]
    assert (3 * 16, 3 * 16) in kept  # queries, keys and values of all tokens


def test_rotary_positions_are_relative():
    """What a query is to a key depends on how far it is, in rows and in columns."""
    q, k = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    angles = rotary_angles((5, 4), 8)

    def logits(a):
        return np.asarray(rotate(jnp.tile(a, (1, 20, 1, 1)), angles)).reshape(5, 4, 8)

    products = np.einsum("abc,dec->abde", logits(q), logits(k))
    for down, right in ((0, 0), (2, 0), (0, 1), (3, 2)):
        same = [products[a, b, a + down, b + right] for a, b in np.ndindex(5 - down, 4 - right)]
        np.testing.assert_allclose(same, same[0], rtol=0, atol=1e-5)
    assert abs(products[0, 0, 1, 0] - products[0, 0, 0, 1]) > 0.1
    assert not rotary_angles((5, 4), 8, registers=2)[:2].any()


def test_registers_are_dropped_and_heard():
    network = SMALL.clone(depth=1, registers=2)
    params = random_params(network)
    output = apply(network, params)
    assert output.shape == (3, 4, 6, 3)
    moved = params | {"registers": -params["registers"]}
    assert np.std(apply(network, moved) - output) > 0.01
    swapped = params | {"registers": params["registers"][::-1]}  # they have no order
    np.testing.assert_allclose(apply(network, swapped), output, rtol=0, atol=1e-5)


def test_parameters_of_old_models_are_all_that_there_are_by_default():
    found = {"/".join(path) for path in traverse_util.flatten_dict(shapes(SMALL.clone(depth=1)))}
    layers = ["patches", "logsnr_in", "logsnr_out", "modulation", "pixels"]
    layers += [f"block_0/{name}" for name in ("modulation", "qkv", "attention_out")]
    layers += [f"block_0/{name}" for name in ("mlp_in", "mlp_out")]
    desired = {f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    assert found == desired | {"position", "label/Embed_0/embedding"}


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
        (DiT(1, features=12, heads=2, rope=True), None, "multiple of 4 channels in each head; got"),
    ],
)
def test_impossible_settings(network, label, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: network.init(jax.random.key(0), Z, LOGSNR, Conditioning(label)))


@pytest.mark.parametrize("cls", [DiT, SiT])
def test_targets_of_the_last_blocks(cls):
    """Decoupled MeanFlow: no parameter more, the teacher where a jump has no length, and blocks
    before the last that do not hear of it."""
    plain = cls(1, features=16, depth=3, heads=2, num_labels=2)
    late = plain.clone(target=True, target_blocks=1)
    z, logsnr = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.array([-2.0, 0.0, 3.0])
    told = Conditioning(label=jnp.array([0, 1, 2]))
    params = plain.init(jax.random.key(1), z, logsnr, told)["params"]
    drawn = optax.tree.random_like(jax.random.key(2), params)
    params = {"params": optax.tree.scale(0.3, drawn)}
    assert jax.tree.structure(params["params"]) == jax.tree.structure(
        late.init(jax.random.key(1), z, logsnr, told)["params"]
    )
    with pytest.raises(ValueError, match="target_blocks must be fewer than the 3 blocks"):
        late.clone(target_blocks=3).init(jax.random.key(1), z, logsnr, told)
    expected, seen = plain.apply(params, z, logsnr, told, mutable=["maps"])
    for target in (None, logsnr):
        found = late.apply(params, z, logsnr, told.replace(target=target))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    jump, maps = late.apply(params, z, logsnr, told.replace(target=logsnr + 3), mutable=["maps"])
    same = [
        np.allclose(a, b, atol=1e-6)
        for a, b in zip(seen["maps"]["maps"], maps["maps"]["maps"], strict=True)
    ]
    assert same == [True, True, False]
    assert np.abs(jump - expected).max() > 1e-2


def test_images_of_another_size_are_refused():
    module = DiT(1, features=16, depth=1, heads=2)
    logsnr = jnp.zeros(1)
    params = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), logsnr)
    with pytest.raises(ValueError, match="knows 4 patches of 2 pixels a side, but the images have"):
        module.apply(params, jnp.zeros((1, 8, 8, 1)), logsnr)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_derivatives_of_norms(x64, offset):
    """Backward, forward, and backward through forward."""
    rng = np.random.default_rng(0)
    tokens, change, weights = rng.normal(size=(3, 2, 3, 8))

    def plain(a):
        return (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + 1e-3)

    def slopes(normalize):
        loss = lambda tokens: (weights * jnp.sin(normalize(tokens))).sum()  # noqa: E731
        along = lambda tokens: jax.jvp(loss, (tokens,), (change,))  # noqa: E731
        backward = jax.grad(lambda tokens: along(tokens)[1])
        return jax.jit(lambda tokens: (along(tokens), jax.grad(loss)(tokens), backward(tokens)))

    desired = slopes(plain)(tokens + offset)
    actual = slopes(lambda tokens: normalize(tokens, 1e-3))(tokens + offset)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), actual, desired)

"""Prompts as conditioning: pooled embeddings, attention to tokens, and "no prompt"."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pdistill.diffusion import CosineSchedule
from pdistill.networks import Conditioning, DiT, Network, Text, UNet
from pdistill.networks.transformer import TextAttention

POOLED, TOKENS, LENGTH, BATCH = 5, 6, 4, 3
MODULES = {
    "dit": DiT(3, features=16, depth=2, heads=2, text_pooled=POOLED, text_tokens=TOKENS),
    "dit, pooled alone": DiT(3, features=16, depth=1, heads=2, text_pooled=POOLED),
    "unet": UNet(
        3, channels=8, embedding_channels=16, multipliers=(1, 2), blocks=1, attention_sizes=(4,),
        head_channels=8, text_pooled=POOLED, text_tokens=TOKENS,
    ),
}  # fmt: skip
TOKENS_TOO = ["dit", "unet"]


def drawn(shapes, seed=0):
    """Parameters of any numbers, without the zeros that new networks begin with."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)


def blank(module, **changes):
    return Network(
        None, module=module, head="v", schedule=CosineSchedule(), shape=(8, 8, 3), **changes
    )


@pytest.fixture(scope="module", params=MODULES)
def network(request):
    return drawn(blank(MODULES[request.param], guidance=(0.0, 4.0)).shapes)


def text_of(network, seed=2):
    keys = jax.random.split(jax.random.key(seed))
    pooled, tokens = network.text_widths
    return Text(
        mask=jnp.arange(LENGTH)[None] < jnp.array([[4], [2], [1]]),
        tokens=jax.random.normal(keys[0], (BATCH, LENGTH, tokens)) if tokens else None,
        pooled=jax.random.normal(keys[1], (BATCH, pooled)) if pooled else None,
    )


INPUTS = (jax.random.normal(jax.random.key(3), (BATCH, 8, 8, 3)), jnp.array([-2.0, 0.0, 3.0]))


@jax.jit
def v(network, text):
    return network.v(*INPUTS, Conditioning(text=text))


def test_prompts_tell(network):
    one, other = v(network, text_of(network)), v(network, text_of(network, seed=4))
    assert np.all(np.abs(one - other).max((1, 2, 3)) > 1e-3)


def test_pads_change_nothing(network):
    """Neither what stands in them, nor their number."""
    text = text_of(network)
    found = v(network, text)
    if text.tokens is not None:
        else_ = jnp.where(text.mask[..., None], text.tokens, 100.0)
        np.testing.assert_array_equal(v(network, text.replace(tokens=else_)), found)
        longer = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 3), (0, 0))), text.tokens)
        mask = jnp.pad(text.mask, ((0, 0), (0, 3)))
        longer = text.replace(tokens=longer, mask=mask)
        np.testing.assert_allclose(v(network, longer), found, atol=1e-5)
        cut = text.replace(mask=text.mask.at[0, 3].set(False))
        assert np.abs(v(network, cut) - found)[0].max() > 1e-4  # but a token does


def test_no_prompt_is_a_prompt_without_tokens(network):
    """Whatever its embeddings are, and as a prompt of None."""
    none = v(network, None)
    for seed in (2, 4):
        np.testing.assert_allclose(v(network, text_of(network, seed).without()), none, atol=1e-5)
    half = text_of(network).without(jnp.array([True, False, False]))
    np.testing.assert_allclose(v(network, half)[0], none[0], atol=1e-5)
    np.testing.assert_allclose(v(network, half)[1:], v(network, text_of(network))[1:], atol=1e-5)


def test_guidance_is_towards_the_prompt(network):
    text, w = text_of(network), jnp.array([0.0, 1.0, 3.0])
    found = jax.jit(Network.v)(network, *INPUTS, Conditioning(text=text, guidance=w))
    w = w[:, None, None, None]
    wanted = (1 + w) * v(network, text) - w * v(network, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TOKENS_TOO)
def test_attention_to_tokens_begins_at_zero(name):
    """A network that is given text goes on as what it was."""
    network = blank(MODULES[name].clone(text_pooled=0))

    def of_text(key):
        params = traverse_util.flatten_dict(network.init(key).params)
        return {path: array for path, array in params.items() if "text" in str(path)}

    begun = jax.jit(of_text)(jax.random.key(0))  # the others need not be compiled
    params = traverse_util.flatten_dict(drawn(network.shapes).params) | begun
    made = network.replace(params=traverse_util.unflatten_dict(params))
    np.testing.assert_allclose(v(made, text_of(made)), v(made, None), atol=1e-6)


def test_attention_is_that_of_the_formula():
    """In float64, against NumPy, one image and one head at a time."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        heads, width = 2, 8
        keys = jax.random.split(jax.random.key(0), 3)
        h = jax.random.normal(keys[0], (2, 5, width), jnp.float64)
        tokens = jax.random.normal(keys[1], (2, 3, TOKENS), jnp.float64)
        text = Text(jnp.array([[True, True, False], [False] * 3]), tokens)
        module = TextAttention(TOKENS, heads)
        params = drawn(jax.eval_shape(module.init, keys[2], h, text)["params"])
        params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        found = module.apply({"params": params}, h, text)
    p = jax.tree.map(np.asarray, params)

    def normed(a):
        centred = a - a.mean(-1, keepdims=True)
        return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)

    for b in range(2):
        rows = np.concatenate([p["none"][None], np.asarray(tokens[b])[np.asarray(text.mask[b])]])
        total = p["out"]["bias"].copy()[None].repeat(5, 0)
        for head in range(heads):
            q, k, value = (
                normed(a) @ p[name]["kernel"][:, head] + p[name]["bias"][head]
                for name, a in (("q", np.asarray(h[b])), ("k", rows), ("v", rows))
            )
            weights = np.exp(q @ k.T / np.sqrt(width // heads))
            mixed = weights / weights.sum(1, keepdims=True) @ value
            total += mixed @ p["out"]["kernel"][head]
        np.testing.assert_allclose(found[b], total, rtol=1e-9, atol=1e-12)


def test_half_precision_and_derivatives_in_time():
    with jax.numpy_dtype_promotion("standard"):
        check_half_precision()


def check_half_precision():
    for module in (
        MODULES["dit"].clone(depth=1, dtype=jnp.bfloat16),
        MODULES["unet"].clone(multipliers=(1,), attention_sizes=(8,), dtype=jnp.bfloat16),
    ):
        network = drawn(blank(module).shapes)
        told = Conditioning(text=text_of(network))
        z, logsnr = INPUTS
        _, slope = jax.jit(
            lambda network, told, z=z, logsnr=logsnr: jax.jvp(
                lambda level: network.v(z, level, told), (logsnr,), (jnp.ones_like(logsnr),)
            )
        )(network, told)
        assert slope.dtype == jnp.float32
        assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text.zeros(3, 7, TOKENS), "takes pooled embeddings of 5 numbers; got 7"),
        (Text.zeros(3, 0, TOKENS), "takes pooled embeddings of 5 numbers; got None"),
        (Text.zeros(3, POOLED, 9), "takes tokens of 6 numbers; got 9"),
        (Text.zeros(3, POOLED, 0), "takes tokens of 6 numbers; got 0"),
    ],
)
@pytest.mark.parametrize("name", TOKENS_TOO)
def test_embeddings_of_another_encoder(name, text, message):
    network = blank(MODULES[name])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: network.init(jax.random.key(0)).v(*INPUTS, Conditioning(text=text)))


def test_a_network_without_text():
    module = DiT(3, features=16, depth=1, heads=2)
    text = Text.zeros(3, POOLED, 0)
    with pytest.raises(ValueError, match="a prompt was given to a network without text"):
        jax.eval_shape(module.init, jax.random.key(0), *INPUTS, Conditioning(text=text))
    network = drawn(blank(module).shapes)  # it does not listen
    np.testing.assert_array_equal(v(network, text), v(network, None))

import functools
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdistill.methods.parts.identities import eulerian
from pdistill.networks import attention
from pdistill.networks.attention import (
    BLOCK,
    CHUNK,
    MANY,
    attend,
    by_pallas,
    device_kind,
    in_chunks,
    plain,
    way,
)
from pdistill.networks.transformer import attend_by_layers
from pdistill.runtime.kernels import without_kernels


def three(tokens, others=None, dtype=jnp.float32, channels=8, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    lengths = tokens, others or tokens, others or tokens
    return [
        jax.random.normal(key, (batch, n, 3, channels), dtype)
        for key, n in zip(keys, lengths, strict=True)
    ]


def by_definition(q, k, v, mask=None):
    """softmax(q k^T / sqrt(C)) v, whose derivatives are JAX's."""
    logits = jnp.einsum("bthc,bshc->bhts", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(logits), v)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_are_those_of_the_definition(x64, masked):
    """Backward, forward and one of the other; the first query of an image sees no key."""
    q, k, v = three(6, 5, jnp.float64, channels=4)
    mask = jax.random.bernoulli(jax.random.key(1), 0.6, (2, 1, 6, 5)).at[0, 0, 0].set(False)
    mask = mask if masked else None

    def all_of(function):
        loss = lambda *a: jnp.sin(function(*a, mask)).sum()  # noqa: E731
        slopes = jax.grad(loss, (0, 1, 2))
        along = jnp.cos(q), jnp.sin(k), jnp.cos(v)
        return function(q, k, v, mask), jax.jvp(slopes, (q, k, v), along)

    found = [jax.jit(all_of, static_argnums=0)(f) for f in (plain, by_definition)]
    chex.assert_trees_all_close(*found, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("tokens", "channels", "transposed"), [(64, 8, True), (8, 64, False)])
def test_the_keys_gradient_has_the_shorter_side_as_its_rows(
    optimized, tokens, channels, transposed
):
    """In the compiled product, on CPUs."""
    shapes = [jax.ShapeDtypeStruct((2, tokens, 3, channels), jnp.float32)] * 3
    loss = jax.grad(lambda *a: jnp.sin(plain(*a)).sum(), 1)
    program = jax.jit(loss).lower(*shapes).compile().as_text()
    products = re.findall(r"= f32\[2,3,(\d+,\d+)\]\S* dot\(", program)
    assert (f"{channels},{tokens}" in products) == transposed


def test_what_is_large_is_in_half_precision(x64):
    """Of what waits for the backward pass; its results are off by a rounding or two."""
    half = three(64, dtype=jnp.bfloat16, channels=16)
    exact = [a.astype(jnp.float64) for a in half]
    waiting = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(plain, *a)[1], *half))
    assert [a.dtype for a in waiting if a.size >= 2 * 3 * 64 * 64] == [jnp.bfloat16]

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, *a):
        values, pull_back = jax.vjp(function, *a)
        return values, *pull_back(jnp.cos(values))

    for a, b in zip(both(plain, *half), both(by_definition, *exact), strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        assert error < 1.5 * 2**-8


@pytest.mark.parametrize(
    ("tokens", "masked"), [(2 * CHUNK + 30, None), (2 * CHUNK + 30, "keys"), (CHUNK, "pairs")]
)
def test_chunks_are_all_at_once(x64, tokens, masked):
    """Values, gradients and forward derivatives; the last chunk may be short."""
    q, k, v = three(tokens, 20, jnp.float64)
    rows = {None: 0, "keys": 1, "pairs": tokens}[masked]
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 1, rows, 20)) if rows else None

    def both(function):
        def loss(q, k, v):
            return jnp.sin(function(q, k, v, mask)).sum()

        along = jnp.cos(q), jnp.sin(k), jnp.cos(v)
        values = function(q, k, v, mask), *jax.grad(loss, (0, 1, 2))(q, k, v)
        return *values, jax.jvp(lambda *a: function(*a, mask), (q, k, v), along)[1]

    for actual, desired in zip(
        jax.jit(both, static_argnums=0)(in_chunks), both(plain), strict=True
    ):
        np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-12)


def test_memory_is_linear_in_many_tokens():
    """That of a gradient; weights of 4,096 tokens among each other would be 403 MB here."""

    def bytes_of(tokens):
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in three(tokens)]
        gradient = jax.jit(jax.grad(lambda *a: attend(*a).sum(), (0, 1, 2)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_of(2048), bytes_of(4096)
    assert large < 2.2 * small
    assert large < 4096**2 * 6 * 4 / 5


WHOLE = 2 * BLOCK


@pytest.mark.parametrize(
    ("platform", "tokens", "dtype", "channels", "desired"),
    [
        ("cuda", WHOLE, jnp.bfloat16, 64, "cudnn"),
        ("cuda", WHOLE, jnp.float32, 64, "plain"),
        ("cuda", WHOLE + 1, jnp.bfloat16, 64, "plain"),
        ("cuda", WHOLE, jnp.bfloat16, 136, "plain"),
        ("cuda", WHOLE, jnp.bfloat16, 60, "plain"),
        ("cuda", MANY, jnp.float32, 64, "chunks"),
        ("tpu", WHOLE, jnp.float32, 64, "pallas"),
        ("tpu", WHOLE, jnp.float32, 136, "plain"),
        ("tpu", WHOLE, jnp.float32, 256, "pallas"),
        ("tpu", WHOLE, jnp.float32, 512, "plain"),
        ("other", WHOLE, jnp.bfloat16, 64, "plain"),
        ("other", MANY, jnp.bfloat16, 64, "chunks"),
    ],
)
def test_the_way_by_platform_and_size(monkeypatch, platform, tokens, dtype, channels, desired):
    """And never a kernel with a mask, or where forward mode differentiates."""
    q = jax.ShapeDtypeStruct((1, tokens, 2, channels), dtype)
    assert way(platform, q, q, None) == desired
    without = "chunks" if tokens >= MANY else "plain"
    assert way(platform, q, q, jnp.ones((1, 1, 1, tokens), bool)) == without
    with without_kernels():
        assert way(platform, q, q, None) == without
    assert way(platform, q, q, None) == desired


def test_few_others_need_no_chunks():
    q, k = (jax.ShapeDtypeStruct((1, n, 2, 8), jnp.float32) for n in (4096, 77))
    assert way("other", q, k, None) == "plain"


@pytest.mark.parametrize(
    ("platform", "capability", "devices", "kind"),
    [
        ("gpu", "9.0", 8, "cuda"),
        ("gpu", "7.5", 1, "other"),
        ("gpu", "gfx90a", 1, "other"),
        ("tpu", "", 1, "tpu"),
        ("tpu", "", 4, "other"),
        ("cpu", "", 1, "other"),
    ],
)
def test_kinds_of_devices(monkeypatch, platform, capability, devices, kind):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert device_kind() == kind


def test_a_program_with_kernels_is_not_taken_without(monkeypatch):
    """jit traces again: a program that sampled is not what forward mode differentiates."""
    ways = []
    monkeypatch.setattr(attention, "device_kind", lambda: "cuda")
    monkeypatch.setattr(attention, "by_cudnn", lambda *a: ways.append("cudnn") or plain(*a))
    q, k, v = three(WHOLE, dtype=jnp.bfloat16)
    function = jax.jit(lambda q: attend(q, k, v))
    function.trace(q)
    with without_kernels():
        function.trace(q)
    assert ways == ["cudnn"]


def test_attend_takes_the_way_of_its_device(monkeypatch):
    """A faked GPU, in a network's gradient, and in a flow map's, whose identity has a jvp."""
    taken = []
    monkeypatch.setattr(attention, "device_kind", lambda: "cuda")
    monkeypatch.setattr(attention, "by_cudnn", lambda *a: taken.append("cudnn") or plain(*a))
    q, k, v = three(WHOLE, dtype=jnp.bfloat16)
    jax.make_jaxpr(jax.grad(lambda q: attend(q, k, v).sum()))(q)
    assert taken == ["cudnn"]
    F = lambda z, t, s: attend(z, k, v)  # noqa: E731
    jax.make_jaxpr(lambda z, t: eulerian(F, z, t, t, z, z)[0])(q, jnp.ones(2, q.dtype))
    assert taken == ["cudnn"]


def test_pallas_is_all_at_once(monkeypatch):
    """As interpreted on a CPU, with its own backward pass."""
    from jax.experimental.pallas import tpu

    q, k, v = three(BLOCK, batch=1)

    def both(function):
        return jax.value_and_grad(lambda *a: jnp.sin(function(*a)).sum(), (0, 1, 2))(q, k, v)

    with tpu.force_tpu_interpret_mode():
        actual = both(by_pallas)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), actual, both(plain)
    )
    monkeypatch.setattr(attention, "device_kind", lambda: "tpu")
    monkeypatch.setattr(attention, "by_pallas", lambda *_: "taken")
    assert attend(q, k, v) == "taken"


class ByLayers(nn.Module):
    """Attention by three layers in one product, or in three."""

    joined: bool

    @nn.compact
    def __call__(self, tokens):
        if self.joined:
            return attend_by_layers(tokens, 2, ("q", "k", "v"), "out")
        q, k, v = (nn.Dense(8, name=name)(tokens).reshape(2, 3, 2, 4) for name in "qkv")
        return nn.Dense(8, name="out")(attend(q, k, v).reshape(2, 3, 8))


def test_three_layers_are_one_product(x64):
    """With the parameters, fresh ones too, of three; in both directions of derivatives."""
    tokens = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.float64)
    networks = ByLayers(True), ByLayers(False)
    inputs = jax.random.key(1), tokens.astype(jnp.float32)
    fresh = [jax.jit(network.init)(*inputs) for network in networks]
    chex.assert_trees_all_equal(*fresh)
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda a: numbers.normal(size=a.shape), fresh[0])

    @functools.partial(jax.jit, static_argnums=0)
    def slopes(network, params, tokens):
        function = lambda params, tokens: jnp.sin(network.apply(params, tokens)).sum()  # noqa: E731
        backward = jax.value_and_grad(function, (0, 1))(params, tokens)
        return backward, jax.jvp(function, (params, tokens), (params, tokens))

    found = [slopes(network, params, tokens) for network in networks]
    chex.assert_trees_all_close(*found, rtol=1e-12, atol=1e-12)

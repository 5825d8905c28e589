"""Softmax attention, by the fastest of the ways that a device, a size and a derivative allow."""

import functools
import re

import jax
import jax.numpy as jnp
from jax import Array, export

from pdistill.runtime.kernels import kernels_allowed

MANY = 1024  # tokens; weights among as many at once are too many for memory
CHUNK = 256  # queries that have their weights at once then
BLOCK = 128  # what the kernels' numbers of tokens must be a multiple of; fewer are not worth them
AMPERE = 8.0  # compute capability of the first GPUs that cuDNN's attention is for


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Softmax attention among tokens: three [B, T, heads, channels] -> one; softmax in float32.

    mask: bool, [B or 1, 1, T or 1, S], False for keys that a query does not see, of S other keys
    and values; a query that sees none mixes all alike.

    By cuDNN on NVIDIA GPUs and Pallas on TPUs, see `way`, as JAX has them where it is traced.
    Training takes memory linear in T from `MANY` tokens.
    """
    return {"plain": plain, "chunks": in_chunks, "cudnn": by_cudnn, "pallas": by_pallas}[
        way(device_kind(), q, k, mask)
    ](q, k, v, mask)


def device_kind() -> str:
    """Returns "cuda" for NVIDIA GPUs from Ampere on, "tpu" for a single one, or "other"."""
    device = jax.config.jax_default_device or jax.devices()[0]
    platform = getattr(device, "platform", device)
    capability = str(getattr(device, "compute_capability", ""))  # of an AMD GPU such as gfx90a
    if platform == "gpu" and re.fullmatch(r"\d+\.\d+", capability):
        return "cuda" if float(capability) >= AMPERE else "other"
    # A Pallas kernel cannot be partitioned by XLA, and meshes are XLA's here.
    return "tpu" if platform == "tpu" and jax.device_count() == 1 else "other"


def way(kind: str, q: Array, k: Array, mask: Array | None) -> str:
    """Names how `attend` computes: "plain", "chunks", "cudnn" or "pallas".

    cuDNN has half precision and up to 128 channels a head, Pallas also 256; both take whole blocks
    of tokens, no masks here, and are left out in `without_kernels`.

    Args:
      kind: as `device_kind` has it.
    """
    tokens, others, channels = q.shape[1], k.shape[1], q.shape[-1]
    blocks = tokens % BLOCK == others % BLOCK == 0
    if mask is None and blocks and kernels_allowed():
        half = q.dtype in (jnp.bfloat16, jnp.float16)
        if kind == "cuda" and half and channels % 8 == 0 and channels <= 128:
            return "cudnn"
        if kind == "tpu" and q.dtype != jnp.float64 and (channels <= 128 or channels == 256):
            return "pallas"
    few = export.is_symbolic_dim(others)  # a prompt's tokens, of any number in exported programs
    return "plain" if few or tokens * others < MANY**2 else "chunks"


def plain(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """`attend` with the weights of all tokens at once.

    Scaled and normalised where there are B T heads channels numbers, not where there are B T T
    heads, and with the heads before the tokens: fewer passes over memory, which on a CPU take half
    of the time of `jax.nn.dot_product_attention`.
    """
    q, k, v = (a.swapaxes(1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
    return _mixed(q, k, v, mask).swapaxes(1, 2)


@jax.custom_jvp
def _mixed(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Values, mixed by queries, of [B, heads, tokens, channels] each."""
    return _mix(q, k, v, mask)[0]


def _mix(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Returns mixed values, the weights, in the values' format, and the weights' sums, wide.

    The last two are for derivatives. In single precision on CPUs they are apart from the weights
    that are mixed here, which XLA then mixes and sums in one pass on all cores.
    """
    wide = _wide(q)
    matmul = functools.partial(jnp.matmul, preferred_element_type=wide)
    logits = matmul(q, k.swapaxes(2, 3))
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(wide).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = matmul(weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)
    weights = _apart(weights) if weights.dtype == v.dtype else weights
    return mixed.astype(v.dtype), weights.astype(v.dtype), weights.sum(-1, keepdims=True)


@_mixed.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """In half precision what is B T T heads large is so too, in the backward pass as well.

    Sums are float32, and what is computed between two products, which is rounded but once.
    """
    (q, k, v, mask), (q_dot, k_dot, v_dot, _) = primals, tangents
    wide = _wide(q)
    mixed, weights, total = _mix(q, k, v, mask)
    logits_dot = q_dot @ k.swapaxes(2, 3) + q @ _by_columns(k_dot.swapaxes(2, 3))
    times = jax.checkpoint(lambda a, b: a.astype(wide) * b.astype(wide), prevent_cse=False)
    change = times(weights, logits_dot)  # whose weights wait for the backward pass as they are
    if mask is not None:  # of a query that sees none the weights are not zero
        change = jnp.where(mask, change, 0.0)
    mixed_dot = (change.astype(v.dtype) @ v + weights @ v_dot).astype(wide)
    mixed_dot -= mixed.astype(wide) * change.sum(-1, keepdims=True)
    return mixed, (mixed_dot / total).astype(v.dtype)


def _by_columns(tangents: Array) -> Array:
    """Tangents of keys [..., channels, tokens]: on CPUs their gradient has channels as its rows.

    XLA would take the logits' against their order, which takes up to six times as long where tokens
    are more.
    """
    channels, tokens = tangents.shape[-2:]
    return _apart(tangents) if tokens > channels else tangents


def _apart(a: Array) -> Array:
    """The same array, on CPUs no part of another computation before or after it."""
    return jax.lax.optimization_barrier(a) if jax.default_backend() == "cpu" else a


def _wide(a: Array) -> jnp.dtype:
    return a.dtype if a.dtype == jnp.float64 else jnp.float32


def in_chunks(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """`attend` for `CHUNK` queries at a time, whose weights the backward pass computes again."""
    batch, tokens = q.shape[:2]
    short = -tokens % CHUNK

    def split(a: Array) -> Array:  # [B, T, ...] -> [T / CHUNK, B, CHUNK, ...]
        padded = jnp.pad(a, [(0, short if axis == 1 else 0) for axis in range(a.ndim)])
        return padded.reshape(batch, -1, CHUNK, *a.shape[2:]).swapaxes(0, 1)

    if mask is None or mask.shape[2] == 1:
        of = lambda q: plain(q, k, v, mask)  # noqa: E731
        parts = split(q)
    else:
        of = lambda part: plain(part[0], k, v, part[1].swapaxes(1, 2))  # noqa: E731
        parts = split(q), split(mask.swapaxes(1, 2))
    out = jax.lax.map(jax.checkpoint(of), parts)
    return out.swapaxes(0, 1).reshape(batch, tokens + short, *out.shape[3:])[:, :tokens]


def by_cudnn(q: Array, k: Array, v: Array, mask: None = None) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def by_pallas(q: Array, k: Array, v: Array, mask: None = None) -> Array:
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    return flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5).swapaxes(1, 2)

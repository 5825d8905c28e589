"""The projected discriminator against PyTorch's, and the shapes and counts of the paper's."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from pdistill.networks.discriminators import (
    FROZEN,
    SPECTRAL,
    PatchConv,
    ProjectedDiscriminator,
    SpectralConv,
    corner_weights,
    upsample,
)
from pdistill.training import count, partition

FIXTURE = Path(__file__).parents[1] / "fixtures/discriminator/projected.npz"
KINDS = {"weight": "kernel", "weight_orig": "kernel", "bias": "bias"}


def from_torch(arrays):
    """Our variables, from the fixture's weights."""
    params, carried = {}, {}
    for name, array in arrays.items():
        match name.split(".") if not name.endswith(("_v", "running_mean", "running_var")) else ():
            case ["channels" | "scales" as kind, i, leaf]:
                path = "mixing", f"{kind}_{i}", KINDS[leaf]
            case ["head", i, "halve", j, "weight_u"]:
                carried[f"head_{i}", f"halve_{j}", "norm", "conv/kernel/u"] = array[None]
                continue
            case ["head", i, "logits", "weight_u"]:
                carried[f"head_{i}", "logits", "norm", "conv/kernel/u"] = array[None]
                continue
            case ["head", i, "halve", j, leaf]:
                path = f"head_{i}", f"halve_{j}", "conv", KINDS[leaf]
            case ["head", i, "logits", leaf]:
                path = f"head_{i}", "logits", "conv", KINDS[leaf]
            case ["head", i, "norm", j, "weight" | "bias" as leaf]:
                path = f"head_{i}", f"norm_{j}", {"weight": "scale"}.get(leaf, leaf)
            case ["head", i, "embedding", "weight"]:
                path = f"head_{i}", "label", "Embed_0", "embedding"
            case ["head", i, "linear", leaf]:
                path = f"head_{i}", "label", "Dense_0", KINDS[leaf]
            case _:
                continue
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
            array = array[0, 0] if path[0] == "mixing" else array
        elif path[-1] == "kernel":
            array = array.T
        params[path] = array
    for path in list(carried):
        carried[*path[:-1], "conv/kernel/sigma"] = np.ones((), np.float32)
    return {
        "params": traverse_util.unflatten_dict(params),
        SPECTRAL: traverse_util.unflatten_dict(carried),
    }


def test_equals_pytorch():
    with np.load(FIXTURE) as archive:
        arrays = dict(archive)
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    variables = from_torch(weights)
    maps = [arrays[f"map_{i}"] for i in range(3)]
    network = ProjectedDiscriminator((3, 2, 1), width=24, mixing=6, num_labels=4)

    def apply(first):
        return network.apply(variables, (first, *maps[1:]), arrays["label"], mutable=[SPECTRAL])

    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), maps, arrays["label"]))
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes["params"])
    logits, _ = jax.jit(apply)(maps[0])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda first: apply(first)[0].sum()))(maps[0])
    scale = np.abs(arrays["gradient"]).max()
    np.testing.assert_allclose(gradient, arrays["gradient"], atol=1e-4 * scale)


def paper_maps(size, batch=2):
    """Shapes of EfficientNet-Lite0's maps of images of `size`."""
    channels = {4: 24, 8: 40, 16: 112, 32: 320}
    return [
        jax.ShapeDtypeStruct((batch, size // s, size // s, c), float) for s, c in channels.items()
    ]


@pytest.mark.parametrize(("size", "logits"), [(224, 64), (256, 100)])
def test_counts_of_the_paper(size, logits):
    """docs/methods/gan.md, A9: the heads' parameters and logits of one backbone."""
    network = ProjectedDiscriminator((4, 3, 2, 1))
    maps = paper_maps(size)
    (out, _), variables = jax.eval_shape(
        lambda maps: (lambda v: (network.apply(v, maps, mutable=[SPECTRAL]), v))(
            network.init(jax.random.key(0), maps)
        ),
        maps,
    )
    assert out.shape == (2, logits)
    heads, mixing = partition(variables["params"], FROZEN)
    assert count(heads) == 10_331_328
    assert [mixing["mixing"][f"channels_{i}"]["bias"].shape for i in range(4)] == [
        (64,), (128,), (256,), (512,)
    ]  # fmt: skip
    assert [mixing["mixing"][f"scales_{i}"]["bias"].shape for i in range(4)] == [
        (64,), (64,), (128,), (256,)
    ]  # fmt: skip


def test_conditional_heads_of_the_paper():
    network = ProjectedDiscriminator((4, 3, 2, 1), num_labels=10)
    label = jax.ShapeDtypeStruct((2,), int)
    variables = jax.eval_shape(network.init, jax.random.key(0), paper_maps(224), label)
    heads, _ = partition(variables["params"], (*FROZEN, "/label/"))
    assert count(heads) == 12_395_712


def test_number_of_maps():
    with pytest.raises(ValueError, match="there are 1"):
        ProjectedDiscriminator((1, 1)).init(jax.random.key(0), [jnp.ones((2, 4, 4, 1))])


@pytest.mark.parametrize("size", [4, 16])  # one matrix product, and a convolution
def test_spectral_norm_against_svd(size):
    """After many calls the kernel that is used has the largest singular value 1."""
    layer = SpectralConv(features=6, kernel=4, stride=2, padding=1, use_bias=False)
    x = jax.random.normal(jax.random.key(0), (3, size, size, 5))
    variables = layer.init(jax.random.key(1), x)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])
    largest = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    carried = variables[SPECTRAL]
    apply = jax.jit(lambda c: layer.apply({**variables, SPECTRAL: c}, x, mutable=[SPECTRAL]))
    for _ in range(100):
        out, updates = apply(carried)
        carried = updates[SPECTRAL]
    plain = nn.Conv(6, (4, 4), 2, 1, use_bias=False)
    desired = plain.apply({"params": {"kernel": kernel / largest}}, x)
    np.testing.assert_allclose(out, desired, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (4, 1, 0), (3, 1, 1)])
@pytest.mark.parametrize("size", [4, 7, 8])
def test_patch_convolution_is_convolution(kernel, stride, padding, size):
    x = jax.random.normal(jax.random.key(0), (3, size, size, 5))
    plain, patches = (layer(6, (kernel, kernel), stride, padding) for layer in (nn.Conv, PatchConv))
    variables = plain.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, patches.init(jax.random.key(1), x)) == jax.tree.map(
        jnp.shape, variables
    )
    np.testing.assert_allclose(patches.apply(variables, x), plain.apply(variables, x), atol=1e-5)


def test_maps_that_are_not_square():
    """All of them is judged: as a convolution does."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
    layer = SpectralConv(features=6, kernel=4, stride=2, padding=1)
    out, _ = layer.init_with_output(jax.random.key(1), x)
    assert out.shape == (2, 2, 4, 6)


def test_upsampling_puts_corners_on_corners(x64):
    """Place o of n reads place o (m - 1) / (n - 1) of m."""
    h = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, 2)))
    up = upsample(h, 6, 8)
    np.testing.assert_allclose(up[:, 0, 0], h[:, 0, 0])
    np.testing.assert_allclose(up[:, -1, -1], h[:, -1, -1])
    rows = np.arange(6) * 2 / 5
    desired = np.stack([np.interp(rows, np.arange(3), h[0, :, 0, c]) for c in range(2)], -1)
    np.testing.assert_allclose(up[0, :, 0], desired)
    np.testing.assert_allclose(corner_weights(1, 2), [[1], [1]])

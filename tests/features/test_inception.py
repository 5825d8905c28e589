import functools
import hashlib
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from pdistill.features import inception
from pdistill.features.inception import from_state_dict, load, max_pool, mean_pool, resize
from pdistill.runtime.torch_files import WeightsError

FIXTURES = Path(__file__).parents[1] / "fixtures"
make = SimpleNamespace(**runpy.run_path(str(FIXTURES / "inception/make.py")))


@functools.cache  # one object, so that the network is compiled once
def fixture():
    """(state dict, what torch-fidelity makes of it)."""
    with np.load(make.PATH) as archive:
        arrays = dict(archive)
    return make.random_weights(json.loads(str(arrays.pop("shapes")))), arrays


@functools.cache
def extractor():
    return from_state_dict(fixture()[0], "random")


# --- The network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_against_torch_fidelity(channels):
    outputs = extractor()(make.random_images(channels))
    assert outputs.keys() == {"features", "logits"}
    for name, actual in outputs.items():
        desired = fixture()[1][f"{name}_{channels}"]
        # Relative to what differs between images, a tenth to a thirtieth of the whole; rounding in
        # float32 is 2e-5 of it.
        differing = np.linalg.norm(desired - desired.mean(0))
        assert differing > 0.02 * np.linalg.norm(desired)
        assert np.linalg.norm(actual - desired) < 1e-4 * differing, name


def np_resize(image, size):
    """The formula of TensorFlow 1, align_corners=False, pixel by pixel."""
    height, width, channels = image.shape
    out = np.zeros((size, size, channels))
    for i, j in np.ndindex(size, size):
        y, x = i * height / size, j * width / size
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        above = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
        below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
        out[i, j] = above + (below - above) * (y - top)
    return out


@pytest.mark.parametrize("shape", [(2, 3, 1), (32, 28, 3), (90, 61, 2)])
def test_resize_against_numpy(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.float64)
    desired = [np_resize(image, 61) for image in images]
    # Positions are float32: 4e-6 of up to 90, times differences of up to 255.
    np.testing.assert_allclose(resize(jnp.float32(images), 61), desired, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("pool", "reduce"), [(mean_pool, np.mean), (max_pool, np.max)])
def test_pools_leave_out_what_is_outside(pool, reduce):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)) - 10  # zeros outside would be seen
    desired = np.zeros_like(x)
    for i, j in np.ndindex(5, 4):
        window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        desired[:, i, j] = reduce(window, axis=(1, 2))
    np.testing.assert_allclose(pool(jnp.float32(x)), desired, rtol=1e-6)  # float32


# --- Its weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("fc.weight", None, "has no fc.weight"),
        ("Mixed_6c.branch7x7_2.bn.running_var", None, r"has no Mixed_6c.*running_var"),
        ("Conv2d_1a_3x3.conv.weight", np.zeros((32, 3, 5, 5)), r"\(32, 3, 5, 5\), not \(32, 3, 3"),
        ("AuxLogits.fc.bias", np.zeros(1008), "has AuxLogits.fc.bias, which is unknown"),
    ],
)
def test_a_state_dict_of_another_network(name, tensor, message):
    state = dict(fixture()[0])
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    with pytest.raises(
        WeightsError, match=f"^other.pth is not of the Inception network.*{message}"
    ):
        from_state_dict(state, "other", "other.pth")


def test_counters_of_training_are_ignored():
    state = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0), **fixture()[0]}
    params = from_state_dict(state, "counted").params
    np.testing.assert_array_equal(params["fc"]["kernel"], extractor().params["fc"]["kernel"])


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A small file of another network, published at a file: address; the cache is empty."""
    path = tmp_path / "published.pth"
    shutil.copy(FIXTURES / "torch_files/zip.pth", path)
    monkeypatch.setattr(inception, "ADDRESS", path.as_uri())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "SHA256_START", digest[:8])
    monkeypatch.setenv("PDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    return path


def test_the_published_file_is_fetched_once(published, tmp_path):
    cached = tmp_path / "cache/inception/published.pth"
    for _ in range(2):
        # That it is of another network shows that it was accepted and read.
        with pytest.raises(WeightsError, match=f"^{cached} is not of the Inception network"):
            load()
        published.unlink(missing_ok=True)
    record = cached.with_name("published.pth.sha256")
    assert record.read_text() == hashlib.sha256(cached.read_bytes()).hexdigest()
    assert set(cached.parent.iterdir()) == {cached, record}


def test_a_cache_that_cannot_be_written(published, tmp_path, monkeypatch, capsys):
    """The file is kept elsewhere."""
    (tmp_path / "cache").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        with pytest.raises(WeightsError, match=r"pdistill-\d+/published.pth is not of"):
            load()
        published.unlink(missing_ok=True)
    assert "cache/inception cannot be written" in capsys.readouterr().err


def test_a_file_given_or_put_into_the_cache(published, tmp_path):
    cached = tmp_path / "cache/inception/published.pth"
    cached.parent.mkdir(parents=True)
    published.rename(cached)
    for weights in (None, cached):
        with pytest.raises(WeightsError, match="is not of the Inception network"):
            load(weights)


def test_a_cached_file_that_changed(published, tmp_path):
    with pytest.raises(WeightsError, match="is not of"):
        load()
    cached = tmp_path / "cache/inception/published.pth"
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"wrong hash: {cached} is truncated or not a copy"):
        load()


def test_a_fetched_file_that_is_not_the_published_one(published, tmp_path):
    published.write_bytes(published.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="wrong hash"):
        load()
    assert list((tmp_path / "cache/inception").iterdir()) == []


def test_out_of_reach(published, tmp_path):
    """Both ways out are named."""
    published.unlink()
    with pytest.raises(WeightsError) as error:
        load()
    assert f"cannot download {published.as_uri()}" in str(error.value)
    assert "--inception_weights=PATH" in str(error.value)
    assert f"put it at {tmp_path / 'cache/inception/published.pth'}" in str(error.value)
    assert list((tmp_path / "cache/inception").iterdir()) == []


def test_a_local_file_that_is_not_the_published_one(tmp_path):
    missing = tmp_path / "missing.pth"
    with pytest.raises(WeightsError, match=f"no file {missing}; .* copy of https://github.com/"):
        load(missing)
    random = FIXTURES / "torch_files/zip.pth"
    with pytest.raises(WeightsError, match=f"wrong hash: {random} .* begin with 6726825d"):
        load(random)

"""Shards and variants of diffusers' folders, of a network and of a codec."""

import json
import shutil
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from comparison import checkpoint

from pdistill import convert
from pdistill.interop import ConversionError, convert_diffusers
from pdistill.interop.diffusers_weights import WEIGHTS, read_weights
from pdistill.runtime.torch_files import read_torch

FIXTURES = Path(__file__).parents[1] / "fixtures/interop"
NAME = WEIGHTS.removesuffix(".safetensors")
FOLDERS = {"network": ("diffusers/dit.zip", "transformer"), "codec": ("codecs/tiny.zip", "")}


@pytest.fixture(params=FOLDERS)
def folder(tmp_path, request):
    """The folder that the weights are in."""
    file, part = FOLDERS[request.param]
    with zipfile.ZipFile(FIXTURES / file) as archive:
        archive.extractall(tmp_path / "source")
    return tmp_path / "source" / part


@pytest.fixture
def network(tmp_path):
    with zipfile.ZipFile(FIXTURES / FOLDERS["network"][0]) as archive:
        archive.extractall(tmp_path / "source")
    return tmp_path / "source/transformer"


def split(folder, index, shards, dtype=np.float32):
    """Puts the weights in two shards, in the place of one file."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: shards[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in shards:
        part = {name: a.astype(dtype) for name, a in tensors.items() if places[name] == shard}
        safetensors.numpy.save_file(part, folder / shard)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def rewrite(folder, name, dtype):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    safetensors.numpy.save_file({n: a.astype(dtype) for n, a in tensors.items()}, folder / name)


INDEX = f"{WEIGHTS}.index.json"
SHARDS = [f"{NAME}-0000{i}-of-00002.safetensors" for i in (1, 2)]
FORMS = {
    "shards": lambda f: split(f, INDEX, SHARDS),
    "fp16": lambda f: rewrite(f, f"{NAME}.fp16.safetensors", np.float16),
    "bf16": lambda f: rewrite(f, WEIGHTS, ml_dtypes.bfloat16),
    "fp16 shards": lambda f: split(
        f,
        f"{WEIGHTS}.index.fp16.json",
        [f"{NAME}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)],
        np.float16,
    ),
    "older fp16 shards": lambda f: split(
        f,
        f"{WEIGHTS}.index.fp16.json",
        [f"{NAME}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)],
        np.float16,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(folder, form):
    whole = convert_diffusers(folder).network
    FORMS[form](folder)
    found = convert_diffusers(folder).network
    assert found.blank == whole.blank
    rtol = {"s": 0.0, "f": 2**-11, "b": 2**-8}[form.removeprefix("older ")[0]]
    for a, b in zip(*map(jax.tree.leaves, (found.params, whole.params)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7 if rtol else 0)


def test_a_variant_is_for_want_of_better(network):
    whole = convert_diffusers(network).network
    rewritten = {
        name: np.float16(a) + 1
        for name, a in safetensors.numpy.load_file(network / WEIGHTS).items()
    }
    safetensors.numpy.save_file(rewritten, network / f"{NAME}.fp16.safetensors")
    found = convert_diffusers(network).network
    for a, b in zip(*map(jax.tree.leaves, (found.params, whole.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    (network / WEIGHTS).rename(network / f"{NAME}.bf16.safetensors")
    with pytest.raises(ConversionError, match=r"has several variants, .*bf16.*, .*fp16.*: take"):
        convert_diffusers(network)


def edit_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    path.write_text(json.dumps(change(index)))


def damaged(name):
    def damage(folder):
        split(folder, INDEX, SHARDS)
        tensors = sorted(json.loads((folder / INDEX).read_text())["weight_map"])
        match name:
            case "truncated":
                path = folder / SHARDS[1]
                path.write_bytes(path.read_bytes()[:-1])
            case "missing":
                (folder / SHARDS[1]).unlink()
            case "elsewhere":
                edit_index(folder, lambda i: {"weight_map": {tensors[0]: "../a.safetensors"}})
            case "no map":
                edit_index(folder, lambda i: {})
            case "unlisted":
                del_first = lambda m: {k: v for k, v in m.items() if k != tensors[0]}  # noqa: E731
                edit_index(folder, lambda i: {"weight_map": del_first(i["weight_map"])})
            case "misplaced":
                edit_index(
                    folder, lambda i: {"weight_map": i["weight_map"] | {tensors[0]: SHARDS[1]}}
                )
            case "not json":
                (folder / INDEX).write_text("{")

    return damage


WRONG = {
    "truncated": r"cannot read .*-00002-of-00002.safetensors",
    "missing": r"cannot read .*-00002-of-00002.safetensors",
    "elsewhere": r"index.json must have a weight_map, from tensors to files beside it",
    "no map": r"index.json must have a weight_map, from tensors to files beside it",
    "unlisted": r"-00001-of-00002.safetensors has '.*', unlike .*index.json says",
    "misplaced": r"-00001-of-00002.safetensors has '.*', unlike .*index.json says",
    "not json": r"cannot read .*index.json",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shards(network, name):
    damaged(name)(network)
    with pytest.raises(ConversionError, match=WRONG[name]):
        convert_diffusers(network)


def test_no_weights_by_the_command(network, tmp_path):
    (network / WEIGHTS).rename(network / f"{NAME}.fp16.bin")
    with pytest.raises(SystemExit, match=r"there is no .*, nor shards .*safe_serialization=True"):
        convert.main(["--from=diffusers", f"--source={network}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_the_old_file_of_diffusers(network):
    """All that folders of the time of facebook/DiT-XL-2-256 may have."""
    before = convert_diffusers(network).network
    tensors = safetensors.numpy.load_file(network / WEIGHTS)
    (network / WEIGHTS).unlink()
    checkpoint(network / f"{NAME}.bin", tensors, keys=())
    after = convert_diffusers(network).network
    for a, b in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_old_file_of_transformers(tmp_path):
    """It is read where there is no other, and is none of diffusers'."""
    old = tmp_path / "pytorch_model.bin"
    shutil.copy(FIXTURES.parent / "torch_files/zip.pth", old)
    tensors, path = read_weights(tmp_path, "model.safetensors")
    assert path == old
    np.testing.assert_array_equal(tensors["matrix"], read_torch(old)["matrix"])
    with pytest.raises(ConversionError, match=r"there is no diffusion_pytorch_model"):
        read_weights(tmp_path, WEIGHTS)
    new = {"matrix": np.ones(1, np.float32)}
    safetensors.numpy.save_file(new, tmp_path / "model.safetensors")
    assert read_weights(tmp_path, "model.safetensors")[0] == new

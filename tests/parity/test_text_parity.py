"""The fixtures of text encoders are what transformers computes today, tokens included."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from stored import assert_stored

pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
FOLDER = Path(__file__).parents[1] / "fixtures/interop/text"
make = runpy.run_path(str(FOLDER / "make.py"))


@pytest.mark.parametrize("name", make["CONFIGS"])
def test_networks(name):
    assert_stored(FOLDER / f"{name}.npz", make["compute"])


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_tokenizers(kind, tmp_path):
    """Of the reduced vocabularies; the stored ids are of the whole ones."""
    folder = shutil.copytree(FOLDER / kind, tmp_path / kind)
    cls = transformers.BertTokenizer if kind == "bert" else transformers.CLIPTokenizer
    found = make["ids_of"](kind, cls.from_pretrained(folder))
    assert found == json.loads((FOLDER / "ids.json").read_text())[kind]


def test_pads_that_are_exclamation_marks(tmp_path):
    folder = shutil.copytree(FOLDER / "clip", tmp_path / "clip")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    found = tokenizer(make["PROMPTS"][1], padding="max_length", max_length=12)["input_ids"]
    whole = json.loads((FOLDER / "ids.json").read_text())["clip"][1]
    assert found == [*whole[:-2], 0, 49407, 0, 0]

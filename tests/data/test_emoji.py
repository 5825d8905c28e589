"""Emoji of npm packages: small ones of the same layout, by the command a user types."""

import json
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pdistill.cli.prepare import main
from pdistill.data import load_dataset
from pdistill.data.emoji import TONES
from pdistill.data.sources import describe

PIZZA = ("SLICE OF PIZZA", "1F355", ["pizza"], "Food & Drink", "food-prepared")
HEART = ("HEAVY BLACK HEART", "2764-FE0F", ["heart"], "Smileys & Emotion", "heart")
CAT = ("CAT", "1F408", ["cat2", "+1", "o"], "Animals & Nature", "animal-mammal")
FLAG = ("Andorra Flag", "1F1E6-1F1E9", ["flag-ad"], "Flags", "country-flag")
PIRATE = ("PIRATE FLAG", "1F3F4-200D-2620-FE0F", ["pirate_flag"], "Flags", "flag")
HANDS = [(f"HAND  {i}", f"1F44{i:02X}", [f"hand-{i}"], "People & Body", "hands") for i in range(80)]
COUPLE = ("1F3FB-1F3FC", "1F3FE-1F3FE")  # of two tones, and of one
SPLITS = ("train", "test", "style", "tone")


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (4, 4), colour).save(path, lossless=True)


def write_packages(folder):
    """Packages whose pictures have a colour each: the emoji's place, the style, the tone."""
    google, fluent = folder / "a" / "google", folder / "b" / "fluent"
    entries = []
    for place, (name, code, short, category, kind) in enumerate(
        (PIZZA, HEART, CAT, FLAG, PIRATE, *HANDS)
    ):
        keys = [*TONES, *COUPLE] if kind == "hands" else []
        codes = {key: f"{code}-{key}" for key in keys}
        entries.append(
            {
                "name": name, "unified": code, "image": f"{code.lower()}.png",
                "short_names": short, "category": category, "subcategory": kind,
                "skin_variations": {
                    key: {"unified": c, "image": f"{c.lower()}.png"} for key, c in codes.items()
                },
            }
        )  # fmt: skip
        for tone, each in enumerate((code, *codes.values())):
            picture(google / "img/google/64" / f"{each.lower()}.png", (place, 0, tone, 255))
            if code != CAT[1]:
                stem = each.lower().replace("-fe0f", "")  # as some files of Fluent's are
                picture(fluent / "assets" / f"{stem}.webp", (place, 100, tone, 255))
    (google / "emoji.json").write_text(json.dumps(entries))
    (google / "package.json").write_text('{"name": "emoji-datasource-google"}')
    (fluent / "package.json").write_text('{"name": "@lobehub/fluent-emoji-3d"}')


def write_names(folder):
    (folder / "names").mkdir()
    (folder / "names/package.json").write_text('{"name": "unicode-emoji-json"}')
    about = {"\N{HEAVY BLACK HEART}": {"name": "red heart"}, "\N{CAT}": {"name": "Cat"}}
    (folder / "names/data-by-emoji.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The packages, and two data sets of them in data/."""
    folder = tmp_path_factory.mktemp("emoji")
    write_packages(folder)
    write_names(folder)
    for groups in ((), ("--emoji_groups=smileys,food,people",)):
        main([f"--emoji={folder}", "--resolution=2", f"--data_dir={folder / 'data'}", *groups])
    return folder


@pytest.fixture
def splits(folder, monkeypatch):
    """{split: {first caption: a pixel}} of a data set."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "data"))

    def splits(name="emoji"):
        sets = {split: load_dataset(name, split) for split in SPLITS}
        return {
            split: {
                texts[0]: tuple(image[0, 0].tolist())
                for texts, image in zip(data.captions, data.images, strict=True)
            }
            for split, data in sets.items()
        }

    return splits


def parts(caption):
    """Style, name and tone of a first caption."""
    style, _, rest = caption.partition(" ")
    tone = next((tone for tone in TONES.values() if rest.endswith(f" {tone}")), "")
    return style, rest.removesuffix(tone).strip(), tone


def test_names_that_people_type_are_captions_too(splits):
    splits()
    found = {c[0]: c for split in SPLITS for c in load_dataset("emoji", split).captions}
    for first, desired in {
        "noto slice of pizza": (
            *("noto slice of pizza", "noto pizza") * 2, "noto slice of pizza",
            "pizza", "noto food prepared", "noto food and drink",
        ),
        "fluent heavy black heart": (
            "fluent heavy black heart", "fluent red heart", "fluent heart",
            "fluent heavy black heart", "fluent red heart",
            "red heart", "fluent heart", "fluent smileys and emotion",
        ),
        "noto cat": (*["noto cat"] * 5, "cat", "noto animal mammal", "noto animals and nature"),
        "fluent hand 7 dark skin tone": (
            *["fluent hand 7 dark skin tone"] * 5, "hand 7 dark skin tone",
            "fluent hands", "fluent people and body",
        ),
    }.items():  # fmt: skip
        assert found[first] == desired


def test_every_picture_has_the_captions_of_its_own(splits):
    names = [name for name, *_ in (PIZZA, HEART, CAT, FLAG, PIRATE, *HANDS)]
    for split in splits().values():
        for caption, (place, style, tone) in split.items():
            name = " ".join(names[place].lower().split())
            last = ["", *TONES.values(), *[TONES["1F3FE"]] * 2][tone]
            assert parts(caption) == (("noto", "fluent")[style > 0], name, last)


def test_mixed_couples_and_fluents_flags_of_countries_are_left_out(splits):
    found = Counter(colour[0] for split in splits().values() for colour in split.values())
    assert [found[place] for place in range(5)] == [2, 2, 1, 1, 2]
    captions = [caption for split in splits().values() for caption in split]
    assert "noto andorra flag" in captions
    assert "fluent andorra flag" not in captions
    assert {"noto pirate flag", "fluent pirate flag"} <= set(captions)
    assert len(describe("emoji").splits) == 4
    assert sum(describe("emoji").splits.values()) == 8 + 80 * 2 * 7


def test_held_out_names_styles_and_tones(splits):
    found = {split: {parts(c) for c in captions} for split, captions in splits().items()}
    names = {split: {name for _, name, _ in rows} for split, rows in found.items()}
    assert not names["test"] & (names["train"] | names["style"] | names["tone"])
    assert 3 < len(names["test"]) < 15  # of 84, a tenth
    assert 3 < len(names["style"]) < 15
    assert 8 < len(names["tone"]) < 25
    assert not names["style"] & names["tone"]
    seen = {(style, name) for style, name, _ in found["train"]}
    held_out = {(style, name) for style, name, _ in found["style"]}
    assert not held_out & seen
    other = {"noto": "fluent", "fluent": "noto"}
    assert {(other[style], name) for style, name in held_out} <= seen
    assert {style for style, _ in held_out} == set(other)
    for name in names["tone"]:
        held_out = {(style, tone) for style, n, tone in found["tone"] if n == name}
        assert len(held_out) == 2  # one tone, in both styles
        assert len({tone for _, tone in held_out}) == 1
        assert held_out.isdisjoint((s, t) for s, n, t in found["train"] if n == name)
    assert len({tone for *_, tone in found["tone"]}) > 2  # as chance has it


def test_groups_have_the_splits_of_all(splits):
    few, every = splits("emoji_small"), splits()
    for split in SPLITS:
        kept = {c: colour for c, colour in every[split].items() if colour[0] not in (2, 3, 4)}
        assert few[split] == kept


def test_stock_tfds_reads_it_and_the_licences(folder):
    builder = tfds.builder_from_directory(folder / "data/emoji/1.0.0")
    assert "Noto Emoji by Google, Apache License 2.0" in builder.info.description
    assert "Fluent Emoji by Microsoft, MIT License" in builder.info.description
    example = next(iter(builder.as_data_source("test")))
    assert example["captions"][0].decode().startswith(("noto ", "fluent "))
    assert example["image"].shape == (2, 2, 3)


def test_transparent_parts_are_white_and_names_of_the_cldr_may_lack(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    write_packages(tmp_path)
    heart = f"{HEART[1].lower()}.png"
    picture(tmp_path / "a/google/img/google/64" / heart, (0, 0, 0, 0))
    main([f"--emoji={tmp_path}", "--emoji_groups=smileys", "--name=hearts", "--resolution=3"])
    assert "MIT License" in capsys.readouterr().err
    found = {}
    for split in describe("hearts").splits:
        data = load_dataset("hearts", split)
        found |= {texts[0]: texts for texts in data.captions}
        for texts, image in zip(data.captions, data.images, strict=True):
            desired = [255, 255, 255] if texts[0].startswith("noto") else [1, 100, 0]
            np.testing.assert_array_equal(image, np.tile(desired, (3, 3, 1)))
    assert found["noto heavy black heart"][:2] == ("noto heavy black heart", "noto heart")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--emoji_groups=smileys,cars"], "there is no group 'cars' of emoji; there are "),
        (["--name=Emoji"], "the name 'Emoji' is taken or not made of"),
    ],
)
def test_what_is_refused(folder, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main([f"--emoji={folder}", f"--data_dir={folder / 'other'}", *arguments])


def test_without_the_packages_a_sentence_says_how_to_get_them(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "@lobehub/fluent-emoji-3d"}')
    with pytest.raises(SystemExit) as error:
        main([f"--emoji={tmp_path}", f"--data_dir={tmp_path / 'data'}"])
    message = str(error.value.code)
    assert "there is no package emoji-datasource-google in " in message
    assert "npm install emoji-datasource-google @lobehub/fluent-emoji-3d" in message


def test_groups_are_of_emoji(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([f"--images={tmp_path}", "--name=mine", "--emoji_groups=food"])
    assert "--emoji_groups is for --emoji, not for --images" in capsys.readouterr().err

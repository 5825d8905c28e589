"""Emoji of two npm packages, in the styles of Noto and of Fluent, as pictures with captions."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdistill.data.tfds_writer import PrepareError, hash_of

PACKAGES = {"noto": "emoji-datasource-google", "fluent": "@lobehub/fluent-emoji-3d"}
NAMES = "unicode-emoji-json"  # names of the Unicode CLDR, which may be left away
SIDE = 64  # pixels of Noto's pictures; Fluent's are larger
LICENCES = (
    "pictures: Noto Emoji by Google, Apache License 2.0; Fluent Emoji by Microsoft, MIT License",
    "names: emoji-datasource by Cal Henderson, MIT License; Unicode CLDR, Unicode License",
)
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
TEST, STYLE, TONE = 0.1, 0.2, 0.4  # where splits end, in the order that hashes of names give


@dataclasses.dataclass(frozen=True)
class Emoji:
    """A picture of an emoji in one style.

    Attributes:
      path: its file. style: one of PACKAGES. tone: one of TONES, or "".
      entry: its row in emoji-datasource: name, short_names, category, subcategory, unified.
      cldr: its name in the Unicode CLDR; "" if that is not known.
    """

    path: Path
    style: str
    tone: str
    entry: Mapping[str, Any]
    cldr: str

    @property
    def name(self) -> str:
        return _words(self.entry["name"])

    def captions(self) -> list[str]:
        """Eight captions, as often as each is to be drawn: "noto slice of pizza" is the first.

        Five are style and name, in turns with the names that people type ("noto pizza"); then come
        a name alone, style and subcategory ("noto food prepared"), and style and category.
        """
        short = (name.replace("_", " ").replace("-", " ") for name in self.entry["short_names"])
        names = [self.name, _words(self.cldr), *filter(_is_typed, short)]
        names = list(dict.fromkeys(f"{name} {self.tone}".strip() for name in names if name))
        kinds = [self.entry[key].replace("-", " ") for key in ("subcategory", "category")]
        kinds = [_words(kind.replace("&", "and")) for kind in kinds]
        named = [f"{self.style} {names[i % len(names)]}" for i in range(5)]
        return [*named, names[min(1, len(names) - 1)], *(f"{self.style} {k}" for k in kinds)]

    def split(self, both: bool) -> str:
        """The split, by a hash of the name: "train", "test", "style" or "tone".

        Args:
          both: there is a picture of this name, without tone, in both styles.
        """
        place, choice = _draws(self.name)
        if place < TEST:
            return "test"
        if place < STYLE and both:
            return "style" if self.style == list(PACKAGES)[choice % 2] else "train"
        if STYLE <= place < TONE and self.tone == list(TONES.values())[choice % 5]:
            return "tone"
        return "train"


def find_emoji(folder: Path, groups: Sequence[str] = ()) -> dict[str, dict[str, Emoji]]:
    """Finds the emoji of PACKAGES, unpacked anywhere in a folder, by split and by style and file.

    Emoji of the split "test" have names that are in no other split; those of "style" are there in
    "train" in the other style alone, and those of "tone" with other tones. A hash of the name
    decides, so the splits of a part of the groups are parts of the splits of all. Left out are
    couples of two tones, and Fluent's flags of countries, which have another maker's look.

    Args:
      groups: first words of categories, such as "smileys"; none for all.

    Raises:
      PrepareError: a package is not there, or there are no such groups.
    """
    packages = _packages(folder)
    entries = json.loads((packages["noto"] / "emoji.json").read_text("utf-8"))
    known = list(dict.fromkeys(_group(entry) for entry in entries))
    if unknown := [group for group in groups if group not in known]:
        raise PrepareError(f"there is no group {unknown[0]!r} of emoji; there are {known}")
    cldr = _cldr(packages[NAMES]) if NAMES in packages else {}
    files = {_code(path.stem): path for path in (packages["fluent"] / "assets").glob("*.webp")}
    splits: dict[str, dict[str, Emoji]] = {"train": {}}
    for entry in entries:
        if groups and _group(entry) not in groups:
            continue
        emoji = list(_of_entry(entry, packages["noto"], files, cldr))
        both = {e.style for e in emoji if not e.tone} == set(PACKAGES)
        for each in emoji:
            key = f"{each.style}/{each.path.stem}"
            splits.setdefault(each.split(both), {})[key] = each
    return splits


def _packages(folder: Path) -> dict[str, Path]:
    """Folders of the packages, by style, and that of NAMES if it is there."""
    styles = {package: style for style, package in PACKAGES.items()} | {NAMES: NAMES}
    found = {}
    for path in sorted(folder.rglob("package.json")):
        name = json.loads(path.read_text("utf-8")).get("name")
        found.setdefault(styles.get(name), path.parent)
    if lacking := [package for style, package in PACKAGES.items() if style not in found]:
        raise PrepareError(
            f"there is no package {' and no '.join(lacking)} in {folder}: in that folder, run "
            f"`npm install {' '.join([*PACKAGES.values(), NAMES])}`, or `npm pack` and unpack each "
            "into a folder of its own"
        )
    return found


def _of_entry(
    entry: Mapping[str, Any], noto: Path, fluent: Mapping[str, Path], cldr: Mapping[str, str]
) -> Iterator[Emoji]:
    """The pictures of an emoji, without and with tones, in the styles that have it."""
    name = cldr.get(_code(entry["unified"]), "")
    found = [("", entry)]
    for tone, variation in entry.get("skin_variations", {}).items():
        if len(tones := set(tone.split("-"))) == 1:
            found.append((TONES[tones.pop()], variation))
    for tone, picture in found:
        paths = {
            "noto": noto / "img" / "google" / str(SIDE) / picture["image"],
            "fluent": fluent.get(_code(picture["unified"])),
        }
        if entry["subcategory"] == "country-flag":
            del paths["fluent"]
        for style, path in paths.items():
            if path and path.exists():
                yield Emoji(path, style, tone, entry, name)


def _cldr(package: Path) -> dict[str, str]:
    """Names by the codes of emoji."""
    about = json.loads((package / "data-by-emoji.json").read_text("utf-8"))
    return {_code("-".join(f"{ord(c):x}" for c in key)): v["name"] for key, v in about.items()}


def _code(unified: str) -> str:
    """Code points such as "2764-FE0F" without the one that asks for a picture."""
    return "-".join(f"{int(c, 16):x}" for c in unified.split("-") if int(c, 16) != 0xFE0F)


def _group(entry: Mapping[str, Any]) -> str:
    return entry["category"].split()[0].lower()


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower()).strip()


def _is_typed(name: str) -> bool:
    """Whether a short name is made of words: not "+1", "cat2" or "o"."""
    return re.fullmatch("[a-z ]{3,}", name) is not None


def _draws(name: str) -> tuple[float, int]:
    """A number in [0, 1) and one of 0 .. 255, by the name's hash."""
    digest = hash_of(name)
    return int.from_bytes(digest[:4]) / 2**32, digest[4]

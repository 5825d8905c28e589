"""Tokenizers as plain data, run by the `tokenizers` library."""

import dataclasses
import functools
import json
import warnings
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHOWN = 60  # characters of a prompt in a warning
# Texts whose ids tell tokenizers of one vocabulary apart: by case, accents, blanks, rare words and
# languages, and by where they cut.
TOLD_BY = (
    "A naïve  Café's\tUNBELIEVABLY small,\n2-legged hippopotamus!",
    "東京 <|endoftext|>",
    "a " * 999,
)


class Tokens(NamedTuple):
    """Prompts as numbers.

    Attributes:
      ids: [B, L] int32. mask: [B, L] bool, False for pads.
    """

    ids: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Prompts to ids, cut or padded to one length.

    Attributes:
      definition: content of a tokenizer.json; how it cuts and pads is not used.
      length: tokens of each prompt, with those of beginning and end.
      pad: id of pads.
    """

    definition: str = dataclasses.field(repr=False)
    length: int
    pad: int

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Ids of prompts and their mask, [B, L] each.

        Longer prompts are cut before the end token, as by the published code, with a warning.

        Raises:
          ValueError: something that is not a sequence of strings.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts must be a list of strings, one for each; got {prompts!r}")
        found = self._tokenizer.encode_batch(list(prompts))
        cut = [prompt for prompt, e in zip(prompts, found, strict=True) if e.overflowing]
        if cut:
            first = cut[0] if len(cut[0]) <= SHOWN else f"{cut[0][:SHOWN]}..."
            warnings.warn(
                f"{len(cut)} of {len(found)} prompts have more than {self.length} tokens, and what "
                f"comes after is left out; the first is {first!r}",
                stacklevel=3,
            )
        shape = (len(found), self.length)
        return Tokens(
            np.array([e.ids for e in found], np.int32).reshape(shape),
            np.array([e.attention_mask for e in found], bool).reshape(shape),
        )

    @property
    def largest_id(self) -> int:
        """The largest id that a prompt can have."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def fingerprint(self) -> int:
        """A checksum of the vocabulary, and of the ids of some texts.

        The definition's own would change with the library, which writes one thing in many ways.
        """
        vocabulary = json.dumps(self._tokenizer.get_vocab(with_added_tokens=True), sort_keys=True)
        ids = [found.ids for found in self._tokenizer.encode_batch(list(TOLD_BY))]
        return zlib.crc32(json.dumps(ids).encode(), zlib.crc32(vocabulary.encode()))

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer as Library

        tokenizer = Library.from_str(self.definition)
        tokenizer.enable_truncation(self.length)
        tokenizer.enable_padding(length=self.length, pad_id=self.pad)
        return tokenizer

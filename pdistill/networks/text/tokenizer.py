"""Tokenizers as plain data, run by the `tokenizers` library."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHOWN = 60  # characters of a prompt in a warning


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

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer as Library

        tokenizer = Library.from_str(self.definition)
        tokenizer.enable_truncation(self.length)
        tokenizer.enable_padding(length=self.length, pad_id=self.pad)
        return tokenizer

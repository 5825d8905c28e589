"""Prompts of a model: a text encoder, and the scale of what the network is told of them."""

import dataclasses
import difflib
import functools
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from pdistill.data.text import Text, whitened
from pdistill.model.card import ModelError
from pdistill.networks.registry import brief
from pdistill.runtime.arrays import checksum
from pdistill.runtime.files import in_home, one_line, read_arrays, read_json, write_arrays
from pdistill.runtime.temporary import replacing

if TYPE_CHECKING:
    from pdistill.networks.text import TextEncoder

ABOUT = "prompts.json"
KNOWN = "known.npz"
ELSEWHERE = (
    "say where it is, as pdistill.load(DIR, text_encoder=DIR), --text_encoder=DIR or text_encoder "
    "in a config"
)
LENGTHS = 8  # whose multiples are the tokens that a network is told: few are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class PromptEncoder:
    """Prompts to what a network is told of them.

    Attributes:
      source: folder of the text encoder, or name of the package that has it.
      checksum: checksum of the encoder's parameters; see `encoder_identity`.
      pooled, tokens: widths of what the network takes; 0 for nothing.
      mean, matrix: pooled embeddings are (pooled - mean) @ matrix, see `data.text.whitening`;
        [P] and [P, P], empty for a network that takes none.
      elsewhere: another place of the encoder; "" for `source`.
      known: prompts whose pooled embeddings are at hand, float16 [P] each: a network that takes no
        tokens needs no encoder for these.
      identity: the encoder's fingerprint; None in files of earlier versions, which lack it.
    """

    source: str
    checksum: int
    pooled: int
    tokens: int
    mean: np.ndarray
    matrix: np.ndarray
    elsewhere: str = ""
    known: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    identity: int | None = None

    @functools.cached_property
    def encoder(self) -> "TextEncoder":
        """The text encoder, loaded when it is first needed.

        Raises:
          ModelError: it is not there, or is another one.
        """
        source = self.elsewhere or self.source
        encoder = load_text_encoder(source)
        if not self.is_of(encoder_identity(encoder)):
            raise ModelError(
                f"the model was trained with another text encoder than the one in {source}, by its "
                f"parameters, its tokenizer or how it pools: {ELSEWHERE}"
            )
        return encoder

    def is_of(self, encoder: Mapping[str, int]) -> bool:
        """Whether the prompts are by the encoder of this `encoder_identity`, as far as is known."""
        return self.checksum == encoder["checksum"] and self.identity in (
            None,
            encoder["fingerprint"],
        )

    def same_as(self, other: "PromptEncoder") -> bool:
        """Whether networks are told the same by the other, as far as is known."""
        unknown = None in (self.identity, other.identity)
        return (
            self.checksum == other.checksum
            and (unknown or self.identity == other.identity)
            and np.array_equal(self.mean, other.mean)
            and np.array_equal(self.matrix, other.matrix)
        )

    def __call__(self, prompts: str | Sequence[str | None]) -> Text:
        """Encodes B prompts, or one, as a network is told them; "" and None are "no prompt".

        Returns:
          `Text` of NumPy arrays, float32: mask [B, L], tokens [B, L, D] and pooled [B, P].

        Raises:
          ValueError: there is none, or something else. ModelError: as of `encoder`.
        """
        prompts = _strings(prompts)
        if not prompts:
            raise ValueError("give at least one prompt")
        return self._with_tokens(prompts) if self.tokens else self._without_tokens(prompts)

    def _with_tokens(self, prompts: Sequence[str]) -> Text:
        unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        rows = [unique[prompt] for prompt in prompts]
        text = self.encoder.encode(list(unique))
        longest = max(int(text.mask.sum(1).max()), 1)
        length = min(-(-longest // LENGTHS) * LENGTHS, text.mask.shape[1])
        cut = text.replace(mask=text.mask[:, :length], tokens=text.tokens[:, :length])
        text = jax.tree.map(lambda a: a[rows], cut)
        pooled = whitened(text.pooled, self.mean, self.matrix) if self.pooled else None
        return Text(text.mask & _given(prompts), text.tokens.astype(np.float32), pooled)

    def _without_tokens(self, prompts: Sequence[str]) -> Text:
        """Encodes those that are not known."""
        known = dict(self.known)
        others = list(dict.fromkeys(p for p in prompts if p.strip() and p not in known))
        if others:
            try:
                pooled = self.encoder.encode(others, tokens=False).pooled
            except ModelError as error:
                raise ModelError(f"{error}{self._at_hand(others[0])}") from error
            known |= zip(others, pooled, strict=True)
        nothing = np.zeros_like(self.mean)
        rows = np.stack([known.get(prompt, nothing) for prompt in prompts]).astype(np.float32)
        return Text(_given(prompts), None, whitened(rows, self.mean, self.matrix))

    def _at_hand(self, prompt: str) -> str:
        """Says which prompts like this one need no encoder."""
        near = difflib.get_close_matches(prompt, self.known, n=3, cutoff=0.3)
        near = near or list(self.known)[:3]
        return f"; without it there are {', '.join(map(repr, near))} and others" if near else ""

    def knowing(self, prompts: Sequence[str]) -> "PromptEncoder":
        """The same with the embeddings of these prompts at hand, beside those that are.

        The encoder is needed for new ones only.

        Raises:
          ModelError: the network takes tokens, which are not kept; or the encoder is not there.
        """
        if self.tokens:
            raise ModelError("the model takes tokens of prompts, which are too many to keep")
        known = dict(self.known)
        if new := [prompt for prompt in _strings(prompts) if prompt not in known]:
            pooled = self.encoder.encode(new, tokens=False).pooled.astype(np.float16)
            known |= zip(new, pooled, strict=True)
        return dataclasses.replace(self, known=known)

    @property
    def fingerprint(self) -> int:
        """A checksum of the encoder's and of the scale, by which a card names both."""
        scale = self.mean.tobytes() + self.matrix.tobytes()
        return zlib.crc32(scale, self.checksum if self.identity is None else self.identity)

    def save(self, directory: Path) -> None:
        """Writes all but the encoder as a directory, whole or not at all."""
        about = {n: getattr(self, n) for n in ("source", "checksum", "pooled", "tokens")}
        about |= {} if self.identity is None else {"identity": self.identity}
        if jax.process_index() == 0:
            with replacing(directory) as temporary:
                temporary.mkdir()
                (temporary / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
                write_arrays(temporary / "scale.npz", {"mean": self.mean, "matrix": self.matrix})
                if self.known:
                    prompts, pooled = zip(*self.known.items(), strict=True)
                    known = {"prompts": np.array(prompts), "pooled": np.stack(pooled)}
                    write_arrays(temporary / KNOWN, known)
        sync_global_devices(f"saved {directory}")

    def entry(self, directory: Path, model: Path) -> dict[str, Any]:
        """The entry of the card of a model in the directory `model`, for this one in another.

        Its path is relative: the directory that holds both may be moved.
        """
        return {"path": os.path.relpath(directory, model), "checksum": self.fingerprint}


def _strings(prompts: Any) -> list[str]:
    """One prompt, or a list of them, as a list of strings; raises ValueError for others."""
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    each = ["" if prompt is None else prompt for prompt in (prompts if several else [prompts])]
    for prompt in each:
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be strings, or None for no prompt; got {prompt!r}")
    return each


def _given(prompts: Sequence[str]) -> np.ndarray:
    """Whether each is a prompt, [B, 1]."""
    return np.array([[bool(prompt.strip())] for prompt in prompts])


def absolute(source: str) -> str:
    """A text encoder's folder as an absolute path; the name of a package as it is."""
    return str(folder.resolve()) if (folder := in_home(source)).is_dir() else source


def load_prompt_encoder(directory: str | Path, elsewhere: str | Path = "") -> PromptEncoder:
    """Loads what `PromptEncoder.save` wrote; the encoder itself later, from `elsewhere` if given.

    Raises:
      ModelError: there is none, or it cannot be read.
    """
    directory = Path(directory)
    try:
        about, arrays = read_json(directory / ABOUT), read_arrays(directory / "scale.npz")
        known = read_arrays(directory / KNOWN) if (directory / KNOWN).is_file() else None
        pairs = zip(known["prompts"].tolist(), known["pooled"], strict=True) if known else ()
        return PromptEncoder(**about, **arrays, elsewhere=str(elsewhere or ""), known=dict(pairs))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the prompts' scale cannot be read in {directory}: {one_line(error)}; put the folder "
            "that was beside the model's there"
        ) from error


def encoder_identity(encoder: "TextEncoder") -> dict[str, int]:
    """The numbers that tell a text encoder from others.

    "checksum" is of its parameters, "fingerprint" also of its arguments, of its tokenizer and of
    the layer that its tokens are of: the same parameters may pool tokens in different ways, or
    read prompts up to other lengths.
    """
    parameters = checksum(encoder.params)
    # Arguments that are left as they are by default may be new in this version.
    about = json.dumps([brief(encoder.module), encoder.layer, encoder.tokenizer.fingerprint])
    return {"checksum": parameters, "fingerprint": zlib.crc32(about.encode(), parameters)}


def load_text_encoder(source: str | Path) -> "TextEncoder":
    """Loads a text encoder, see `interop.text.text_encoder`; raises ModelError if there is none."""
    from pdistill.interop.text import text_encoder

    try:
        return text_encoder(source)
    except (ValueError, OSError) as error:
        raise ModelError(f"text encoder: {error}; {ELSEWHERE}") from error


def read_prompt_encoder(
    directory: Path, card: dict[str, Any], elsewhere: str | Path | None = None
) -> PromptEncoder | None:
    """The prompts of a model in a directory, as its card says; None for a model without text.

    Raises:
      ModelError: they are not there, or are those of another model.
    """
    named = card.get("text")
    if not named:
        if elsewhere:
            raise ModelError(f"{directory} takes no prompts; leave text_encoder out")
        return None
    found = load_prompt_encoder(directory / named["path"], elsewhere or "")
    if found.fingerprint != named["checksum"]:
        raise ModelError(
            f"{directory} was trained with prompts of another scale than that in "
            f"{directory / named['path']}; put the folder that was beside the model's there"
        )
    return found

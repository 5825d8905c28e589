"""Tokenizers of transformers' folders, as `Tokenizer`."""

from pathlib import Path
from typing import Any

from flax import linen as nn
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from tokenizers.implementations import BertWordPieceTokenizer

from pdistill.interop.conversion import read_json
from pdistill.interop.weights import ConversionError
from pdistill.networks import ClipText, Tokenizer
from pdistill.networks.text.clip import LARGEST_ID
from pdistill.runtime.files import one_line, regular

FAST = "tokenizer.json"
# Special tokens that a folder may leave out, and the files that are read without a tokenizer.json.
BERT = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
CLIP = {
    "unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}  # fmt: skip
BERT_FILES, CLIP_FILES = ("vocab.txt",), ("vocab.json", "merges.txt")
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def read_tokenizer(folder: Path, module: nn.Module, length: int | None) -> Tokenizer:
    """Reads the tokenizer in an encoder's folder, or in the one beside it of a pipeline.

    Args:
      module: the encoder's network, which says what kind the tokenizer is of.
      length: tokens of each prompt; None for the published number.

    Raises:
      ConversionError: there is none, or it is damaged or another encoder's, or `length` cannot be.
    """
    clip = isinstance(module, ClipText)
    place = _place(folder, CLIP_FILES if clip else BERT_FILES)
    config = _optional(place / "tokenizer_config.json")
    special = (CLIP if clip else BERT) | config
    if "added_tokens_decoder" not in config:  # the newer place of the same
        special |= _optional(place / "special_tokens_map.json")
    special = {key: special[key] for key in CLIP | BERT if special.get(key)}
    try:
        library = _library(place, special, config, clip)
    except Exception as error:  # whatever the library raises for damage
        raise ConversionError(f"cannot read the tokenizer in {place}: {one_line(error)}") from error
    tokens = [
        _added(t) for t in (*special.values(), *config.get("added_tokens_decoder", {}).values())
    ]
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    added = {token.content: token for token in tokens if token.content not in known}
    library.add_special_tokens(list(added.values()))
    library.no_truncation()
    library.no_padding()
    most = _length(folder, config, module)
    if length is not None and not 3 <= length <= module.positions:
        raise ConversionError(
            f"length must be in 3 .. {module.positions}, the encoder's positions; got {length}"
        )
    pad = library.token_to_id(_added(special["pad_token"]).content)
    return _checked(Tokenizer(library.to_str(), length or most, pad), module, place)


def _place(folder: Path, files: tuple[str, ...]) -> Path:
    """The folder of the tokenizer, `folder` or tokenizer[_2] for a pipeline's text_encoder[_2]."""
    beside = folder.parent / folder.absolute().name.replace("text_encoder", "tokenizer")
    for place in (folder, beside):
        if (place / FAST).exists() or all((place / name).exists() for name in files):
            return place
    raise ConversionError(
        f"there is no tokenizer in {folder}, which is {FAST} or {' and '.join(files)}"
        f"{f', nor in {beside}' if beside != folder else ''}: get the files of the same model"
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _added(token: str | dict[str, Any]) -> AddedToken:
    """A special token of a config, which is matched before words are."""
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    flags = {k: token[k] for k in ("single_word", "lstrip", "rstrip", "normalized") if k in token}
    return AddedToken(token["content"], special=True, **flags)


def _library(place: Path, special: dict[str, Any], config: dict[str, Any], clip: bool) -> Library:
    """Reads tokenizer.json, or makes what it would hold as transformers does."""
    if (place / FAST).exists():
        return Library.from_str(regular(place / FAST).read_text(encoding="utf-8"))
    names = {key: _added(token).content for key, token in special.items()}
    if not clip:
        made = BertWordPieceTokenizer(
            models.WordPiece.read_file(str(place / BERT_FILES[0])),
            **{key: names[key] for key in BERT},
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
        return Library.from_str(made.to_str())
    vocabulary, merges = models.BPE.read_file(*(str(place / name) for name in CLIP_FILES))
    made = Library(
        models.BPE(
            vocabulary, merges, end_of_word_suffix="</w>", unk_token=names["unk_token"],
            continuing_subword_prefix="",
        )
    )  # fmt: skip
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    eos, bos = ((names[k], vocabulary[names[k]]) for k in ("eos_token", "bos_token"))
    made.post_processor = processors.RobertaProcessing(
        eos, bos, trim_offsets=False, add_prefix_space=False
    )
    return made


def _length(folder: Path, config: dict[str, Any], module: nn.Module) -> int:
    """Most tokens of a prompt, as published.

    sentence-transformers takes max_seq_length of its own config for it, and not the cut in
    tokenizer.json, which may be another one.
    """
    most = _optional(folder / "sentence_bert_config.json").get("max_seq_length")
    most = most or config.get("model_max_length") or module.positions
    return int(min(most, module.positions))


def _checked(tokenizer: Tokenizer, module: nn.Module, place: Path) -> Tokenizer:
    """Returns the tokenizer if the encoder knows its ids; else raises ConversionError."""
    largest = tokenizer.largest_id
    if largest >= module.vocabulary:
        raise ConversionError(
            f"the tokenizer in {place} has ids up to {largest}, and the encoder's are 0 .. "
            f"{module.vocabulary - 1}; give the tokenizer of the same model"
        )
    eos = getattr(module, "eos", LARGEST_ID)
    ids, mask = tokenizer([""])
    if eos != LARGEST_ID and eos not in ids[mask]:
        raise ConversionError(
            f"the tokenizer in {place} does not end a prompt with {eos}, as the encoder expects; "
            "give the tokenizer of the same model"
        )
    return tokenizer

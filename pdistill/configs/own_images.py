"""A teacher and its students for images of your own, by a recipe that follows from them.

    pdistill prepare --images=DIR --name=mine
    pdistill train own_images --config.data.name=mine --workdir=runs/mine

With `--config.codec=DIR` the networks work on that codec's latents, and pixels below are latents;
with `--config.text_encoder=DIR` they are told the captions instead of the classes, a tenth of which
are hidden from the teacher, and the students are guided by w = 1.
`own_images:mine` is the same for every command, such as `pdistill show own_images:mine`. The device
is the one that JAX finds, unless `own_images:mine:cpu` or `own_images:mine:gpu` says it; `gpu` is
any accelerator. The recipe:

| of the data | | on a CPU | on an accelerator |
|---|---|---|---|
| pixels a side | at most | 64 | 128 |
| | squares that become channels | as large that 16 a side remain | of 2 above 64 |
| | levels, of 32 channels or 64 | 1, 2 | until 8 pixels: 1, 2 or 1, 2, 4 or 1, 2, 2, 4 |
| | batch of teacher and students | 16 | 512 and 256; 128 above 32 pixels |
| | start of the students | 8 steps | 32 steps |
| images | seen by the teacher | 80,000 | 15 million; 4 million above 32 pixels |
| | each of them at most | 400 times, but in 1,000 updates | the same |
| | dropout 0.1 if each is seen | 50 times or more | 50 times or more |
| | updates of a round | a tenth of the teacher's | a tenth |
| | kept on the device | up to 2 GB | up to 2 GB |
| classes | the network is told them | if each has 20 images | if each has 20 images |
| held-out | nearest-neighbour ratio | if there is such a split | if there is |
| values an image | judged by | Frechet distance up to 4,096, else KID, of pixels | the same |

No image is mirrored, since writing must not be: --config.data.flip=True for photographs. On a CPU
the network is that of `fashion_pd:cpu`, with twice its images; on an accelerator up to 32 pixels
that of `cifar10_pd:gpu`. Nothing was run above 32 pixels, nor on an accelerator. All numbers are
ours.
"""

import dataclasses
import warnings

from ml_collections import ConfigDict

from pdistill.configs import scale
from pdistill.data.sources import Description, describe
from pdistill.model.codecs import blank_codec
from pdistill.model.text import load_text_encoder
from pdistill.runtime.platform import platform

LARGEST = {"cpu": 64, "gpu": 128}  # pixels a side
TIMES_SEEN = 400  # an image by the teacher, at most
DROPOUT_FROM = 50  # times that an image is seen
IMAGES_A_CLASS = 20  # on average, to train on, for classes to be told
HELD_OUT = ("test", "validation")
LARGEST_COVARIANCE = 4096  # values an image
RESIDENT = 2 * 10**9  # bytes


def get_config(data: str = "") -> ConfigDict:
    """The recipe for a data set NAME, of NAME, NAME:cpu or NAME:gpu; then perhaps :CODEC:ENCODER.

    Raises:
      ValueError: there is no such data set, device, codec or text encoder, or the recipe is not for
        its images.
    """
    name, device, codec, encoder = [*data.split(":", 3), "", "", ""][:4]
    if name in ("", *LARGEST) or device not in ("", *LARGEST):
        raise ValueError(
            "own_images is for a data set of yours: own_images:NAME, or 'NAME:cpu' or 'NAME:gpu', "
            f"or --config.data.name=NAME on the command line; got {data!r}"
        )
    try:
        about = describe(name)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"own_images:NAME is for a data set; got {name!r}: {error}") from error
    device = device or ("cpu" if platform() == "cpu" else "gpu")
    config = scale.laptop(name, flip=False)
    if device == "gpu":
        config = scale.accelerator(config)
    config.estimate = True
    learnt = about
    if codec:
        config.codec = codec
        learnt = dataclasses.replace(about, shape=blank_codec(codec).latent_shape(about.shape))
    _set_network(config, learnt, device)
    _set_lengths(config, learnt, device)
    if encoder:
        _set_text(config, encoder)
    _set_evaluation(config, about)
    config.data.resident = about.num_bytes <= RESIDENT
    return config


def _set_network(config: ConfigDict, about: Description, device: str) -> None:
    """Patches, levels and labels, from the size of the images and their classes."""
    side = max(about.shape[:2])
    if side > LARGEST[device]:
        raise ValueError(
            f"{about.name} has {side} pixels a side, and own_images makes at most "
            f"{LARGEST[device]} on a {device}: prepare it with --resolution={LARGEST[device]}, or "
            f"say {about.name}@{LARGEST[device]}, which averages squares of pixels"
        )
    if device == "cpu":
        patch, multipliers, attended = 1 << max(side - 1, 15).bit_length() - 4, (1, 2), 8
    else:
        patch, attended = (2 if side > 64 else 1), 16
        multipliers = (1, 2) if side <= 16 else (1, 2, 4) if side <= 32 else (1, 2, 2, 4)
    multiple = patch << len(multipliers) - 1
    if any(pixels % multiple for pixels in about.shape[:2]):
        raise ValueError(
            f"{about.name} has images of {about.shape[0]}x{about.shape[1]} pixels, and own_images "
            f"needs a multiple of {multiple} for them: prepare them with another --resolution, "
            f"such as {-(-side // multiple) * multiple}"
        )
    sizes = [about.shape[0] // patch >> level for level in range(len(multipliers))]
    told = 1 < about.num_labels <= about.num_images / IMAGES_A_CLASS
    if about.num_labels > 1 and not told:
        warnings.warn(
            f"the network is not told the {about.num_labels} classes: {about.num_images} images to "
            f"train on are fewer than {IMAGES_A_CLASS} for each",
            stacklevel=2,
        )
    config.model.network.arguments.update(
        patch=patch,
        multipliers=multipliers,
        attention_sizes=tuple(size for size in sizes if size <= attended),
        num_labels=about.num_labels if told else 0,
    )


def _set_text(config: ConfigDict, encoder: str) -> None:
    """Prompts in the place of classes, and guidance by them."""
    teacher, progressive = config.stages
    config.text_encoder = encoder
    width, _ = load_text_encoder(encoder).widths
    config.model.network.arguments.update(num_labels=0, text_pooled=width)
    teacher["label_dropout"] = 0.1
    progressive["guidance"] = 1.0
    config.evaluation.guidance = (1.0,)


def _set_lengths(config: ConfigDict, about: Description, device: str) -> None:
    """Batches and updates, from the number of images and their size; dropout for few."""
    teacher, progressive = config.stages
    seen = 80_000
    if device == "gpu":
        progressive["start_steps"] = 32
        teacher["measured_at"] = (32, 16, 8, 4, 2, 1)
        seen = 15_000_000
        if max(about.shape[:2]) > 32:
            teacher["loop"]["batch_size"] = progressive["loop"]["batch_size"] = 128
            teacher["optimizer"]["learning_rate"] = 5e-4
            seen = 4_000_000
    seen = min(seen, TIMES_SEEN * about.num_images)
    updates = max(seen // teacher["loop"]["batch_size"] // 1000, 1) * 1000
    teacher["loop"]["num_updates"], progressive["loop"]["num_updates"] = updates, updates // 10
    if seen >= DROPOUT_FROM * about.num_images:
        config.model.network.arguments.dropout = 0.1


def _set_evaluation(config: ConfigDict, about: Description) -> None:
    """Metrics that the images and their splits allow."""
    height, width, channels = about.shape
    small = height * width * channels <= LARGEST_COVARIANCE
    metrics = ("fd_pixels" if small else "kid_pixels",)
    for split in HELD_OUT:
        if about.splits.get(split):
            config.evaluation.held_out = split
            metrics += ("nearest_neighbour_ratio",)
            break
    config.evaluation.metrics = metrics

"""Measures a model, or anyone's images.

    python -m pdistill.evaluate --model=runs/digits/progressive/4 --reference=digits:train \
        --metrics=fd_pixels,fd_classifier,precision_recall
    python -m pdistill.evaluate --images=samples.npz --reference=cifar10-32x32.npz --metrics=fid
    python -m pdistill.evaluate --model=DIR --reference=cifar10:train --classes=3,5 --metrics=fid

Images are an .npz with one uint8 array [N, H, W, C], and their labels [N] if they have some as
"label" or "arr_1", or a folder of pictures. A reference is a data set with its split, such images,
or an .npz with mu and sigma. With --classes only images of these labels are compared. --prompts has
the prompts that a model's samples are drawn for, or one of each image for clip_score.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pdistill.cli.options import (
    check_pictures,
    codec_option,
    command_parser,
    guide_option,
    labels_after,
    load_model,
    numbers,
    own_code_option,
    picture_options,
    prompts_option,
    read_prompts,
    seed_option,
    steps_option,
    text_encoder_option,
)
from pdistill.evaluation import (
    NEIGHBOURS,
    EvaluationError,
    Evaluator,
    Reference,
    StatisticsReference,
    load_labelled,
    load_reference,
    save_statistics,
)
from pdistill.experiment.rows import draw_rows, draw_told, measure, stable_hash
from pdistill.model import Model
from pdistill.networks import Conditioning
from pdistill.report import table
from pdistill.runtime.bars import Bar
from pdistill.runtime.files import check_writable, in_home, write_jsonl
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.terminal import plain_errors, say
from pdistill.samplers import parse_solver

BATCH = 500
OF_MODELS = ("codec", "guide", "text_encoder", "num_steps", "solver", "label", "guidance")
TOLD = (  # in rows, where given
    *("codec", "guide", "text_encoder", "prompts", "label", "classes"),
    *("channels", "background", "inception_weights"),
)

AnyReference = Reference | StatisticsReference


@dataclasses.dataclass(frozen=True)
class Given:
    """Images to measure, uint8 [N, H, W, C], with their labels and prompts, [N] each or None."""

    images: np.ndarray
    labels: np.ndarray | None
    prompts: list[str] | None

    def __len__(self) -> int:
        return len(self.images)

    def of(self, rows: np.ndarray) -> "Given":
        """Takes some rows, numbers [n], alone."""
        labels = self.labels if self.labels is None else self.labels[rows]
        prompts = self.prompts and [self.prompts[row] for row in rows]
        return Given(self.images[rows], labels, prompts)


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with plain_errors(ValueError, OSError):
        if options.out:
            check_writable(options.out, in_place=True)
        if options.save_statistics:
            check_writable(options.save_statistics, ".npz")
        rows = evaluate(options)
        if rows:
            print(table(rows))
        if options.out:
            write_jsonl(options.out, rows, append=True)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", help="a stage's or a model's directory")
    what.add_argument("--images", help=".npz or folder of images")
    codec_option(parser)
    own_code_option(parser)
    guide_option(parser)
    text_encoder_option(parser)
    prompts_option(parser)
    parser.add_argument(
        "--metrics",
        required=True,
        help="fid, is, kid, precision_recall, fd_pixels, ..., with commas between them",
    )
    parser.add_argument("--reference", required=True, help="data set, .npz or folder")
    parser.add_argument("--held_out", help=f"like --reference, for {NEIGHBOURS}")
    parser.add_argument(
        "--flip", action="store_true", help=f"for {NEIGHBOURS} of a model trained with data.flip"
    )
    parser.add_argument(
        "--num_samples",
        type=int,
        default=0,
        help="default: all --images, or as many as the reference has; of more, a random subset",
    )
    parser.add_argument("--features", default="", help="feature space of precision_recall")
    parser.add_argument("--inception_weights", help="file of the FID network, if not downloaded")
    steps_option(parser)
    parser.add_argument("--solver", help="solver instead of the model's own, such as heun")
    parser.add_argument("--label", type=int, help="one label for all (default: the reference's)")
    parser.add_argument(
        "--classes",
        help="labels, such as 0-9,20: samples of these are compared with images of these",
    )
    parser.add_argument(
        "--guidance", type=float, help="guidance weight, for a model that takes one"
    )
    picture_options(parser)
    seed_option(parser, "samples, or of the choice of images")
    parser.add_argument("--batch_size", type=int, default=BATCH)
    parser.add_argument(
        "--out", type=in_home, help="file to add the rows to, one JSON object a line"
    )
    parser.add_argument(
        "--save_statistics", type=in_home, help=".npz for the reference's mu and sigma"
    )
    return parser


def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the rows of one call.

    Raises:
      ValueError, OSError: options, files or models are bad; the message is for the user.
    """
    metrics = [name.strip() for name in options.metrics.split(",")]
    unused = [name for name in OF_MODELS if getattr(options, name) is not None]
    if unused and not options.model:
        raise EvaluationError(f"--{unused[0]} is for the samples of a --model; leave it out")
    for name in ("held_out", "flip"):
        if getattr(options, name) and NEIGHBOURS not in metrics:
            raise EvaluationError(
                f"--{name} is for {NEIGHBOURS}; add it to --metrics, or leave it out"
            )
    pictures = {"channels": options.channels, "background": options.background}
    reference = load_reference(options.reference, **pictures)
    held_out = load_reference(options.held_out, **pictures) if options.held_out else None
    given = _given(options) if options.images else None
    if options.classes:
        reference, held_out, given = _of_classes(options, reference, held_out, given)
    if not (options.model or options.images or options.save_statistics):
        raise EvaluationError("give --model or --images to measure, or --save_statistics")
    num = options.num_samples or len(reference if given is None else given)
    if num < 2:
        raise EvaluationError(
            f"--num_samples must be at least 2; it is {num}" if options.num_samples else
            f"{reference.name} does not say how many images it has; give --num_samples"
        )  # fmt: skip
    if options.batch_size < 1:
        raise EvaluationError(f"--batch_size must be at least 1; got {options.batch_size}")
    if given is not None and num > len(given):
        raise EvaluationError(
            f"{options.images} has {len(given)} images, fewer than {num}; lower --num_samples"
        )
    evaluator = Evaluator(
        [reference],
        metrics,
        num_samples=num,
        features=options.features,
        held_out=held_out,
        mirrored=options.flip,
        options={"inception": {"weights": options.inception_weights}},
    )
    if options.save_statistics:
        space = evaluator.metrics[0].features
        statistics = evaluator.statistics(reference, space)
        save_statistics(
            options.save_statistics, statistics, reference=reference.name, features=space
        )
        say(f"mean and covariance of {space} of {reference.name} -> {options.save_statistics}")
    if given is not None:
        return _measure_images(options, evaluator, given, num)
    return _measure_model(options, evaluator, num) if options.model else []


def _given(options: argparse.Namespace) -> Given:
    """Reads --images, and their --prompts."""
    images, labels = load_labelled(
        options.images, channels=options.channels, background=options.background
    )
    prompts = read_prompts(options.prompts) if options.prompts else None
    if prompts is not None and len(prompts) != len(images):
        raise EvaluationError(
            f"{options.prompts} has {len(prompts)} prompts for {len(images)} images; write one for "
            "each, in the order of the images"
        )
    return Given(images, labels, prompts)


def _of_classes(
    options: argparse.Namespace,
    reference: AnyReference,
    held_out: AnyReference | None,
    given: Given | None,
) -> tuple[AnyReference, AnyReference | None, Given | None]:
    """The references and images that are of --classes."""
    if options.label is not None:
        raise EvaluationError("--classes says the labels of the samples too; leave out --label")
    try:
        classes = numbers(options.classes)
    except argparse.ArgumentTypeError as error:
        raise EvaluationError(f"--classes: {error}") from error
    reference = reference.of_classes(classes, options.classes)
    held_out = held_out and held_out.of_classes(classes, options.classes)
    if given is None:
        return reference, held_out, None
    if given.labels is None:
        raise EvaluationError(
            f"--classes: {options.images} has no labels; give an .npz of images with their label "
            "[N], as python -m pdistill.sample writes it"
        )
    rows = np.flatnonzero(np.isin(given.labels, classes))
    if not rows.size:
        raise EvaluationError(f"{options.images} has no images of classes {options.classes}")
    return reference, held_out, given.of(rows)


def _measure_images(
    options: argparse.Namespace, evaluator: Evaluator, given: Given, num: int
) -> list[dict[str, Any]]:
    """Measures `num` images from a file or folder, which may be sorted by class."""
    seed = None
    if num < len(given):
        seed = options.seed
        order = np.random.RandomState(stable_hash(f"{seed}/images")).permutation(len(given))
        say(f"{num} of the {len(given)} images, drawn at random with seed {seed}")
        given = given.of(order[:num])
    nothing = dict.fromkeys(("nfe", "solver")) | {"seed": seed}
    about = {"rounding": None, "generator": None, "device": jax.devices()[0].device_kind}
    return [
        {"stage": options.images, "method": "images"} | nothing | row | about | _told(options)
        for row in evaluator.measure(
            _shown(given.images, options.batch_size),
            given.labels,
            prompts=given.prompts,
            paired=given.prompts is not None,  # whose captions they are is not known
        )
    ]


def _shown(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches of images, with a progress bar of those that were measured."""
    with Bar("images", len(images)) as bar:
        for start in range(0, len(images), size):
            yield images[start : start + size]
            bar.update(len(images[start : start + size]))


def _measure_model(
    options: argparse.Namespace, evaluator: Evaluator, num: int
) -> list[dict[str, Any]]:
    """Measures samples of a model."""
    mesh = make_mesh()
    model = load_model(options, mesh)
    check_pictures(model, options.model)
    sampling = model.sampling_with(
        options.num_steps, options.solver and parse_solver(options.solver)
    )
    if options.guidance is not None:
        model.check_guidance(options.guidance)
    labels = _labels(options, evaluator.references[0], model.network.num_labels)
    prompts = _prompts(options, evaluator, model)
    if prompts is None:
        told = draw_told(model.network, Conditioning(label=labels), num, options.seed)
    else:  # those that are drawn alone are encoded
        drawn = draw_rows(len(prompts), num, options.seed, in_turns=True)
        labels = np.resize(labels, len(prompts))[drawn] if model.network.num_labels else None
        prompts = [prompts[row] for row in drawn]
        told = Conditioning(label=labels, text=model.prompts(prompts))
    rows, _ = measure(
        model,
        evaluator,
        stage=model.card["stage"],
        sampling=sampling,
        guidance=options.guidance,
        num=num,
        seed=options.seed,
        batch_size=options.batch_size,
        mesh=mesh,
        told=told,
        prompts=prompts,
        keep=0,
        description="samples",
    )
    whose = {"model": options.model, "checksum": model.card.get("checksum")}
    return [row | whose | _told(options) for row in rows]


def _told(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given and that a row does not say otherwise."""
    given = {name: getattr(options, name) for name in TOLD}
    given["prompts"] = given["prompts"] and str(given["prompts"])
    given["background"] = None if options.background == "white" else options.background
    return {name: value for name, value in given.items() if value is not None}


def _labels(options: argparse.Namespace, reference: AnyReference, num_labels: int) -> np.ndarray:
    """The labels after which samples are drawn."""
    for name in ("classes", "label"):
        if getattr(options, name) is not None and not num_labels:
            raise EvaluationError(f"{options.model} takes no labels; leave --{name} out")
    if options.label is None:
        return labels_after(reference, num_labels, options.model)
    if not 0 <= options.label < num_labels:
        raise EvaluationError(f"--label must be from 0 to {num_labels - 1}; got {options.label}")
    return np.array([options.label])


def _prompts(options: argparse.Namespace, evaluator: Evaluator, model: Model) -> list[str] | None:
    """Prompts of --prompts, or the captions of the reference, for a model with text; else None."""
    if options.prompts:
        if not model.prompts:
            raise EvaluationError(f"{options.model} takes no prompts; leave --prompts out")
        return read_prompts(options.prompts)
    captions = getattr(evaluator.references[0], "captions", None)
    if not model.prompts or captions is None:
        return None
    return [each[0] for each in captions]

"""Compares students with the teachers whose steps they do, on the same noise.

    python -m pdistill.compare --teacher=runs/minima/teacher --reference=digits:train \
        --students=runs/minima/direct_2@2,runs/minima/direct_8@8

MODEL@K is a student and the number of DDIM steps of the teacher that it is compared with; a teacher
that is bound to a solver of its own is sampled by that, in K steps. Labels are drawn as the
reference's. With --guidance the teacher is guided by that weight, for students that have it in
them, and so are students that take weights. It prints a line for each student: Frechet distances
from the data to that teacher, from the data to the student, from the teacher to the student, and
the root mean square difference of their pixels, image by image. This is the local-minima experiment
of Zheng & Yang (2025, section 3): students may be as near to the data as their teachers, and still
far from them.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from pdistill import model as models
from pdistill.cli.options import (
    check_pictures,
    codec_option,
    command_parser,
    guide_option,
    labels_after,
    own_code_option,
    seed_option,
)
from pdistill.evaluation import (
    EvaluationError,
    Evaluator,
    Reference,
    check_distance,
    load_reference,
)
from pdistill.evaluation.metrics import parse_metrics
from pdistill.experiment.rows import draw_samples, draw_told
from pdistill.features import Extractor
from pdistill.model import Model
from pdistill.model.sampling import Sampling
from pdistill.networks import Conditioning
from pdistill.runtime.files import check_writable, in_home, write_jsonl
from pdistill.runtime.mesh import make_mesh
from pdistill.runtime.terminal import plain_errors
from pdistill.samplers import Cascade
from pdistill.samplers.noise import GENERATOR

COLUMNS = ("data_teacher", "data_student", "teacher_student", "rms_difference")


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with plain_errors(ValueError, OSError):
        if options.out:
            check_writable(options.out, in_place=True)
        rows = compare(options)
        _tell(rows)
        if options.out:
            write_jsonl(options.out, rows, append=True)


def _tell(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["student"]) for row in rows)
    print(f"{'student':{width}}  steps  " + "  ".join(f"{name:>15}" for name in COLUMNS))
    for row in rows:
        values = "  ".join(f"{row[name]:15.4g}" for name in COLUMNS)
        print(f"{row['student']:{width}}  {row['teacher_steps']:5}  {values}")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    parser.add_argument("--teacher", required=True, help="a stage's or a model's directory")
    parser.add_argument("--students", required=True, help="MODEL@K, with commas between them")
    codec_option(parser)
    own_code_option(parser)
    guide_option(parser)
    help = "guidance weight of the teacher, and of students that take one (default: none)"
    parser.add_argument("--guidance", type=float, help=help)
    parser.add_argument("--reference", required=True, help="data set, .npz or folder")
    parser.add_argument("--metric", default="fd_pixels", help="a Frechet or kernel distance")
    parser.add_argument(
        "--num_samples", type=int, default=0, help="default: as many as the reference has"
    )
    seed_option(parser, "the noise")
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument(
        "--out", type=in_home, help="file to add the rows to, one JSON object a line"
    )
    return parser


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures a row for each student: "student", "teacher", COLUMNS, and the settings.

    Raises:
      ValueError, OSError: options, files or models are bad; the message is for the user.
    """
    check_distance(options.metric, "--metric")
    reference = load_reference(options.reference)
    num = options.num_samples or len(reference)
    if num < 2 or options.batch_size < 1:
        raise EvaluationError(
            f"--num_samples must be at least 2 and --batch_size at least 1; they are {num} and "
            f"{options.batch_size}"
        )
    mesh = make_mesh()
    parts = {"codec": options.codec, "own_code": options.own_code}
    teacher = models.load(options.teacher, mesh, guide=options.guide, **parts)
    if options.guidance is not None:
        teacher.check_guidance(options.guidance)
    labels = labels_after(reference, teacher.network.num_labels, options.teacher)
    extractors: dict[str, Extractor] = {}  # whose weights are read once

    draw = functools.partial(_draw, options, labels=labels, num=num, mesh=mesh)

    [metric] = parse_metrics((options.metric,))[0].names(num)  # such as fid_10k

    def distance(samples: np.ndarray, to: Reference) -> float:
        evaluator = Evaluator([to], (options.metric,), num_samples=num, extractors=extractors)
        return evaluator.measure([samples], paired=to is not reference)[0]["value"]

    rows = []
    for text in options.students.split(","):
        path, steps = _parse_student(text)
        student = models.load(path, mesh, **parts)
        _check_comparable(student, teacher, path, options.teacher)
        images = draw(path, student, student.sampling)
        theirs = draw(options.teacher, teacher, _distilled(teacher, steps))
        difference = (images.astype(np.float32) - theirs) / 127.5
        rows.append(
            {
                "student": path,
                "checksum": student.card.get("checksum"),
                "teacher_steps": steps,
                "data_teacher": distance(theirs, reference),
                "data_student": distance(images, reference),
                "teacher_student": distance(
                    images, Reference("the teacher's samples", theirs, cached=False)
                ),
                "rms_difference": float(np.sqrt(np.mean(difference**2))),
                "metric": metric,
                "reference": reference.name,
                "guidance": options.guidance,
                "num_samples": num,
            }
            | _about(options, teacher)
        )
    return rows


def _about(options: argparse.Namespace, teacher: Model) -> dict[str, Any]:
    """The part of a row that all of one call share."""
    about = {
        "teacher": options.teacher,
        "teacher_checksum": teacher.card.get("checksum"),
        "seed": options.seed,
        "generator": GENERATOR,
        "device": jax.devices()[0].device_kind,
    }
    given = {"codec": options.codec, "guide": options.guide}
    return about | {name: path for name, path in given.items() if path}


def _draw(
    options: argparse.Namespace,
    path: str,
    model: Model,
    sampling: Sampling,
    *,
    labels: np.ndarray,
    num: int,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Draws a model's images, uint8 [num, H, W, C], guided if it takes weights."""
    weight = None if model.guidance_range is None else options.guidance
    if weight is not None:
        model.check_guidance(weight)
    told = draw_told(model.network, Conditioning(label=labels), num, options.seed)
    batches = draw_samples(
        model.network, sampling=sampling, num=num, told=told, seed=options.seed,
        batch_size=options.batch_size, mesh=mesh, guidance=weight,
        description=f"samples of {path}",
    )  # fmt: skip
    return np.concatenate(list(batches))


def _distilled(teacher: Model, steps: int) -> Sampling:
    """The teacher's sampling as students are distilled from it: by DDIM, without clipping."""
    sampling = teacher.sampling_with(steps, None if teacher.network.sampler else "ddim")
    return dataclasses.replace(sampling, clip=None)


def _parse_student(text: str) -> tuple[str, int]:
    """Splits MODEL@K into the model's directory and the teacher's steps."""
    path, _, steps = text.strip().rpartition("@")
    if not path or not steps.isdigit() or int(steps) < 1:
        raise EvaluationError(f"a student is MODEL@K, K the teacher's steps; got {text!r}")
    return path, int(steps)


def _check_comparable(student: Model, teacher: Model, path: str, teacher_path: str) -> None:
    """Raises EvaluationError unless both make images of one form from the same noise."""
    models = student, teacher
    check_pictures(student, path)
    check_pictures(teacher, teacher_path)
    if any(isinstance(model.sampling.solver, Cascade) for model in models):
        raise EvaluationError(
            "a cascade draws noise at each resolution, so it cannot start from another model's "
            "noise; give models of one resolution"
        )
    if any(model.network.takes_text for model in models):
        raise EvaluationError(
            f"{path} or {teacher_path} takes prompts, which compare does not give; measure each by "
            "pdistill evaluate --prompts=FILE"
        )
    forms = {(m.image_shape, m.noise_shape, m.network.num_labels) for m in models}
    if len(forms) > 1:
        raise EvaluationError(
            f"{path} has other images, noise or labels than {teacher_path}; give a student of that "
            "teacher"
        )

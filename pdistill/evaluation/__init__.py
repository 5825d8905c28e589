"""Measures samples: distances, scores, precision and recall, spectra, nearest neighbours."""

from pdistill.evaluation.evaluator import Evaluator
from pdistill.evaluation.frechet import Moments, Statistics, frechet_bias, frechet_distance
from pdistill.evaluation.images import (
    EvaluationError,
    EvaluationWarning,
    check_images,
    labels_follow,
    load_images,
    load_labelled,
)
from pdistill.evaluation.inception_score import inception_score
from pdistill.evaluation.kid import kernel_distance
from pdistill.evaluation.metrics import DISTANCES, NEIGHBOURS, check_distance
from pdistill.evaluation.neighbours import NeighbourRatio, nearest_distances
from pdistill.evaluation.precision_recall import Manifold, precision_recall
from pdistill.evaluation.references import (
    Reference,
    StatisticsReference,
    load_reference,
    load_statistics,
    save_statistics,
)
from pdistill.evaluation.spectra import Spectrum, radial_spectrum

__all__ = [
    "DISTANCES",
    "NEIGHBOURS",
    "EvaluationError",
    "EvaluationWarning",
    "Evaluator",
    "Manifold",
    "Moments",
    "NeighbourRatio",
    "Reference",
    "Spectrum",
    "Statistics",
    "StatisticsReference",
    "check_distance",
    "check_images",
    "frechet_bias",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "labels_follow",
    "load_images",
    "load_labelled",
    "load_reference",
    "load_statistics",
    "nearest_distances",
    "precision_recall",
    "radial_spectrum",
    "save_statistics",
]

"""Drawing samples and measuring them."""

from pdistill.evaluation.frechet import Moments, frechet_distance
from pdistill.evaluation.generate import Sampling, generate, generate_batches
from pdistill.evaluation.measure import NEIGHBOURS, Evaluator, Measurement, draw
from pdistill.evaluation.neighbours import NeighbourRatio, nearest_distances

__all__ = [
    "NEIGHBOURS",
    "Evaluator",
    "Measurement",
    "Moments",
    "NeighbourRatio",
    "Sampling",
    "draw",
    "frechet_distance",
    "generate",
    "generate_batches",
    "nearest_distances",
]

"""Drawing samples and measuring them."""

from pdistill.evaluation.frechet import Moments, frechet_distance
from pdistill.evaluation.generate import Sampling, generate, generate_batches
from pdistill.evaluation.measure import Evaluator, Measurement, draw
from pdistill.evaluation.neighbours import nearest_distances, nearest_neighbour_ratio

__all__ = [
    "Evaluator",
    "Measurement",
    "Moments",
    "Sampling",
    "draw",
    "frechet_distance",
    "generate",
    "generate_batches",
    "nearest_distances",
    "nearest_neighbour_ratio",
]

"""CMMD and the CLIP score, of embeddings by CLIP that have unit length."""

from collections.abc import Sequence

import numpy as np

from pdistill.networks import TextEncoder

WIDTH = 10  # standard deviation of CMMD's kernel
SCALE = 1000  # of CMMD
BLOCK = 1024  # rows; the kernel between two blocks is in memory at a time


def cmmd(samples: np.ndarray, reference: np.ndarray) -> float:
    """CMMD (Jayasumana et al. 2024) of embeddings [N, D] and [M, D]: 1000 times their MMD^2.

    The kernel is exp(-|x - y|^2 / (2 10^2)), and each row is compared with itself too, as in the
    original code: it is at least 0, and of few rows a little too large. In float64, as the kernel's
    values are all near one.
    """
    within = _mean_kernel(samples, samples) + _mean_kernel(reference, reference)
    return SCALE * (within - 2 * _mean_kernel(samples, reference))


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for rows in _blocks(x):
        for others in _blocks(y):
            squared = (rows**2).sum(1)[:, None] - 2 * rows @ others.T + (others**2).sum(1)[None]
            total += np.exp(-squared / (2 * WIDTH**2)).sum()
    return total / (len(x) * len(y))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [np.float64(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]


def clip_score(images: np.ndarray, prompts: np.ndarray) -> tuple[float, float]:
    """CLIP score of images for their prompts: (mean, standard error).

    100 max(cos, 0) of the embeddings of an image and of its prompt, rows of [N, D] each (Hessel et
    al. 2021, whose factor is 2.5 in place of 100).
    """
    cosines = np.einsum("nd,nd->n", images, prompts, dtype=np.float64)
    scores = 100 * np.maximum(cosines, 0)
    return float(scores.mean()), float(scores.std() / len(scores) ** 0.5)


class PromptEmbedder:
    """Embeddings of prompts by CLIP's text tower, each computed once."""

    def __init__(self, encoder: TextEncoder):
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Embeds prompts: [N, D], of unit length."""
        new = sorted(set(prompts) - self._known.keys())
        if new:
            pooled = np.float64(self._encoder.encode(new, tokens=False).pooled)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            self._known |= zip(new, pooled, strict=True)
        return np.stack([self._known[prompt] for prompt in prompts])

"""CMMD and the CLIP score, of embeddings by CLIP that have unit length."""

from collections.abc import Sequence

import numpy as np

from pdistill.networks import TextEncoder

WIDTH = 10  # standard deviation of CMMD's kernel
SCALE = 1000  # of CMMD
BLOCK = 1024  # rows; the kernel between two blocks is in memory at a time


def cmmd(
    samples: np.ndarray, reference: np.ndarray, own: float | None = None
) -> tuple[float, float]:
    """CMMD (Jayasumana et al. 2024) of embeddings [N, D] and [M, D]: (value, standard error).

    1000 times their MMD^2 with the kernel exp(-|x - y|^2 / (2 10^2)). Each row is compared with
    itself too, as in the original code: it is at least 0, and of few rows a little too large. In
    float64, as the kernel's values are all near one. The standard error is that of other samples
    against the same reference, by the jackknife that leaves out each of them.

    Args:
      own: `kernel_sum(reference)`, if it is known.
    """
    within, across = _sums(samples, samples), _sums(samples, reference)
    n, m = len(samples), len(reference)
    of_reference = (kernel_sum(reference) if own is None else own) / m**2
    value = within.sum() / n**2 + of_reference - 2 * across.sum() / (n * m)
    if n < 2:
        return SCALE * value, 0.0
    without = (within.sum() - 2 * within + 1) / (n - 1) ** 2  # k(x, x) = 1
    without -= 2 * (across.sum() - across) / ((n - 1) * m)
    return SCALE * value, SCALE * float(np.sqrt((n - 1) * np.var(without)))


def kernel_sum(rows: np.ndarray) -> float:
    """Sums the kernel over all pairs of rows [N, D], those of a row with itself too."""
    return float(_sums(rows, rows).sum())


def _sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums [N] of the kernel of each row of x [N, D] with all of y."""
    found, blocks = [], _blocks(y)
    for rows in _blocks(x):
        total = np.zeros(len(rows))
        for others in blocks:
            squared = (rows**2).sum(1)[:, None] - 2 * rows @ others.T + (others**2).sum(1)[None]
            total += np.exp(-squared / (2 * WIDTH**2)).sum(axis=1)
        found.append(total)
    return np.concatenate(found)


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

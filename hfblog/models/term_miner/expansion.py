"""Growing a list of terms by meaning, from seeds.

Breadth first over neighbours by cosine, with a threshold that tightens with the depth (https://kexue.fm/archives/6540):
without that, one chain of neighbours leads from anywhere to anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def threshold(
    depth: int | np.ndarray, min_similarity: float = 0.6, max_similarity: float = 1.0, decay: float = 0.35
) -> float | np.ndarray:
    """The cosine that a neighbour of a term at some depth must exceed (https://kexue.fm/archives/6540).

    ``min_similarity + (max_similarity - min_similarity) (1 - exp(-decay depth))``.

    Args:
        depth: steps from the seeds, which are at 0; a number or an array.
        min_similarity: what neighbours of the seeds must exceed.
        max_similarity: what the threshold tends to.
        decay: how fast, per step; 0 keeps it at ``min_similarity``.

    Returns:
        float64, in the shape of ``depth``.

    Example:

    ```python
    >>> from hfblog.models.term_miner.expansion import threshold
    >>> [round(float(threshold(depth)), 3) for depth in range(4)]
    [0.6, 0.718, 0.801, 0.86]

    ```
    """
    return min_similarity - (max_similarity - min_similarity) * np.expm1(-decay * depth)


@dataclass
class Expansion:
    """The terms of a grown list in the order of admission: seeds first, then by depth, parent, falling cosine, and row.

    Attributes:
        indices: ``(m,)`` int64, rows of the vectors.
        depths: ``(m,)`` int64, steps from the seeds.
        parents: ``(m,)`` int64, the row that each was found from; -1 for seeds.
        similarities: ``(m,)`` float64, cosine to the parent's query vector; 1 for seeds.
        thresholds: ``(m,)`` float64, what that cosine exceeded; NaN for seeds.
        seed_similarities: ``(m,)`` float64, cosine to the mean of the seeds. It falls with the depth where meaning drifts.
    """

    indices: np.ndarray
    depths: np.ndarray
    parents: np.ndarray
    similarities: np.ndarray
    thresholds: np.ndarray
    seed_similarities: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def by_depth(self) -> list[dict[str, float]]:
        """One row for each depth that was reached: depth, count, threshold passed, mean cosine to the mean of the seeds."""
        return [
            {
                "depth": int(depth),
                "count": int(here.sum()),
                "threshold": float(self.thresholds[here][0]),
                "seed_similarity": float(self.seed_similarities[here].mean()),
            }
            for depth in np.unique(self.depths)
            for here in [self.depths == depth]
        ]


class _Space:
    """Vectors whose cosines to a few queries are searched in float32 and then taken in float64.

    The second step makes the result the same whatever the batches, and rows that are alike tie.
    """

    def __init__(self, vectors: np.ndarray):
        self.vectors = vectors
        self.lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        self.empty = self.lengths == 0
        self.units = np.divide(vectors, self.lengths[:, None], out=np.zeros(vectors.shape, np.float32), casting="same_kind")
        # bound on the error of a product of two unit vectors in float32: rounding of both, then of d sums
        self.slack = (vectors.shape[1] + 4) * 2.0**-24

    def cosines(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """float64 cosines of ``rows`` to one query ``(d,)``; 0 for zero vectors."""
        products = (self.vectors[rows] * query).sum(1)
        lengths = self.lengths[rows] * np.linalg.norm(query)
        return np.divide(products, lengths, out=np.zeros(len(rows)), where=lengths > 0)

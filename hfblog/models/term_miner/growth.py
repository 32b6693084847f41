"""Growing a list of terms from seeds, by meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def similarity_threshold(
    depth: int | np.ndarray, min_similarity: float = 0.6, max_similarity: float = 1.0, decay: float = 0.35
) -> Any:
    """The cosine that a neighbour of a term at some depth must exceed (kexue.fm 6540).

    ``s_min + (s_max - s_min) (1 - exp(-decay depth))``: seeds, at depth 0, take neighbours from ``min_similarity`` on.

    Example:

    ```python
    >>> from hfblog import similarity_threshold
    >>> [round(float(similarity_threshold(depth)), 3) for depth in range(4)]
    [0.6, 0.718, 0.801, 0.86]

    ```
    """
    return min_similarity + (max_similarity - min_similarity) * -np.expm1(-decay * depth)


@dataclass
class Growth:
    """What a list grew to, in the order of admission, seeds first.

    Attributes:
        indices: ``(m,)`` int64, rows of the vectors.
        depths: ``(m,)`` int64, steps from the seeds.
        parents: ``(m,)`` int64, the row through which each came; -1 for seeds.
        similarities: ``(m,)`` float64, cosine to the parent; 1 for seeds.
        thresholds: ``(m,)`` float64, what that had to exceed; NaN for seeds.
        seed_similarities: ``(m,)`` float64, cosine to the mean of the seeds: the drift is seen in it.
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
        """For each depth how many terms, the threshold they passed, and their mean cosine to the seeds."""
        rows = []
        for depth in np.unique(self.depths):
            here = self.depths == depth
            rows.append(
                {
                    "depth": int(depth),
                    "count": int(here.sum()),
                    "threshold": float(self.thresholds[here][0]),
                    "seed_similarity": float(self.seed_similarities[here].mean()),
                }
            )
        return rows


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _check_rows(name: str, rows: Sequence[int], size: int) -> np.ndarray:
    found = np.asarray(list(rows), np.int64)
    if len(found) and (found.min() < 0 or found.max() >= size):
        raise ValueError(f"{name} must lie between 0 and {size - 1}, got {found.tolist()}")
    return found


def grow(
    vectors: np.ndarray,
    seeds: Sequence[int],
    *,
    centers: Sequence[int] = (),
    negatives: Sequence[int] = (),
    min_similarity: float = 0.6,
    max_similarity: float = 1.0,
    decay: float = 0.35,
    top_n: int = 200,
    max_depth: int | None = None,
    max_terms: int | None = None,
    batch_size: int = 256,
) -> Growth:
    """Breadth first over neighbours by cosine, with a threshold that tightens with the depth (kexue.fm 6540).

    A term w looks for neighbours from ``v_w + mean(centers) - mean(negatives)``. Without decay one chain of neighbours leads
    from anywhere to anywhere.

    Args:
        vectors: ``(n, d)``; rows of zeros are never reached.
        seeds: rows to start from.
        centers, negatives: rows towards and away from which every search leans.
        min_similarity, max_similarity, decay: see `similarity_threshold`.
        top_n: most neighbours of one term.
        max_depth, max_terms: where to stop; no limit if None.
        batch_size: terms whose neighbours are looked for together.

    Raises:
        ValueError: no seeds, a row that there is not, a seed that is a negative, NaN, or similarities in the wrong order.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog import grow
    >>> grow(np.array([[1.0, 0.0], [0.9, 0.3], [0.6, 0.8], [0.0, 1.0]]), [0], min_similarity=0.8).indices.tolist()
    [0, 1]

    ```
    """
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(f"vectors must be finite and (n, d), got {vectors.shape}")
    if not -1 <= min_similarity <= max_similarity <= 1:
        raise ValueError(f"min_similarity={min_similarity} must not exceed max_similarity={max_similarity}, both in [-1, 1]")
    start = _check_rows("seeds", list(dict.fromkeys(seeds)), len(vectors))
    if not len(start):
        raise ValueError("a list grows from at least one seed")
    toward, away = _check_rows("centers", centers, len(vectors)), _check_rows("negatives", negatives, len(vectors))
    if len(both := np.intersect1d(start, away)):
        raise ValueError(f"rows {both.tolist()} are seeds and negatives at once")
    units = _unit(vectors)
    lean = np.zeros(vectors.shape[1], np.float32)
    lean += vectors[toward].mean(0) if len(toward) else 0
    lean -= vectors[away].mean(0) if len(away) else 0
    reachable = vectors.any(1)
    reachable[start] = False
    levels = [(start, np.full(len(start), -1), np.ones(len(start)), np.full(len(start), np.nan))]
    size, depth = len(start), 0
    limit = math.inf if max_terms is None else max_terms
    while len(levels[-1][0]) and size < limit and (max_depth is None or depth < max_depth):
        threshold = similarity_threshold(depth, min_similarity, max_similarity, decay)
        level = _neighbours(
            units, _unit(vectors[levels[-1][0]] + lean), levels[-1][0], reachable, threshold, top_n, batch_size
        )
        level = tuple(column[: int(min(limit - size, len(column)))] for column in level)
        reachable[level[0]] = False
        levels.append((*level, np.full(len(level[0]), threshold)))
        size, depth = size + len(level[0]), depth + 1
    indices, parents, similarities, thresholds = (np.concatenate(column) for column in zip(*levels, strict=True))
    depths = np.repeat(np.arange(len(levels)), [len(level[0]) for level in levels])
    middle = _unit(units[start].mean(0))
    return Growth(indices, depths, parents, similarities, thresholds, (units[indices] @ middle).astype(np.float64))


def _neighbours(
    units: np.ndarray,
    queries: np.ndarray,
    rows: np.ndarray,
    reachable: np.ndarray,
    threshold: float,
    top_n: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New neighbours of a level, each with its nearest parent; by the parents' order, falling cosine, and row."""
    best = np.full(len(units), -np.inf)
    parent = np.zeros(len(units), np.int64)
    for begin in range(0, len(queries), batch_size):
        cosines = (queries[begin : begin + batch_size] @ units.T).astype(np.float64)
        cosines[:, ~reachable] = -np.inf
        if top_n < cosines.shape[1]:
            least = np.partition(cosines, -top_n, axis=1)[:, -top_n, None]
            cosines[cosines < least] = -np.inf
        for place, row in enumerate(cosines):
            nearer = (row > threshold) & (row > best)
            best[nearer], parent[nearer] = row[nearer], begin + place
    found = np.flatnonzero(best > threshold)
    order = np.lexsort((found, -best[found], parent[found]))
    found = found[order]
    return found, rows[parent[found]], best[found]


__all__ = ["Growth", "grow", "similarity_threshold"]

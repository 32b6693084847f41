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


def _check_rows(name: str, rows: Sequence[int], size: int) -> np.ndarray:
    found = np.asarray(list(dict.fromkeys(rows)))
    if len(found) and found.dtype.kind not in "iu":
        raise ValueError(f"{name} must be rows of the vectors, as integers, got {found.dtype}")
    outside = found[(found < 0) | (found >= size)]
    if len(outside):
        raise ValueError(f"{name} must lie between 0 and {size - 1}, got {outside.tolist()}")
    return found.astype(np.int64)


def _cosines(vectors: np.ndarray, lengths: np.ndarray, query: np.ndarray) -> np.ndarray:
    """``(k, d)``, ``(k,)`` and ``(d,)`` float64 to ``(k,)`` float64; 0 for zero vectors."""
    # row by row, not as a matrix product, whose last digits depend on where a row stands: vectors that are alike tie
    products, scale = (vectors * query).sum(1), lengths * np.sqrt(query @ query)
    return np.clip(np.divide(products, scale, out=np.zeros(len(vectors)), where=scale > 0), -1, 1)


def expand(
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
) -> Expansion:
    """Grows a list of terms from seeds, breadth first (https://kexue.fm/archives/6540).

    A term w at depth k looks for neighbours from the query vector ``v_w + mean(v_centers) - mean(v_negatives)``. Of the
    ``top_n`` terms nearest to that, w left out, those whose cosine exceeds ``threshold(k)`` come in at depth k + 1. A term that
    several terms of one depth find has the one with the largest cosine as its parent, the first of them if they tie. The
    result does not depend on ``batch_size``.

    Args:
        vectors: ``(n, d)`` float, finite, of any length; zero vectors are nobody's neighbours.
        seeds: rows to start from; repeated ones count once.
        centers: rows towards which every query leans.
        negatives: rows away from which every query leans. They are not shut out of the list.
        min_similarity, max_similarity, decay: see `threshold`.
        top_n: most neighbours of one term, those that are in the list already among them.
        max_depth: last depth; None for no limit.
        max_terms: length at which the list ends, seeds included; None for no limit.
        batch_size: how many terms are looked up at a time, in ``batch_size * n`` float32 numbers.

    Raises:
        ValueError: NaN or infinite vectors, no seeds, a row that there is not, a seed that is a negative too, similarities that
            are not in order within [-1, 1], a negative decay or depth, or a number below 1, of terms below that of the seeds.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.expansion import expand
    >>> angles = np.deg2rad([0, 30, 60, 90, 120, 150, 180])
    >>> circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    >>> expand(circle, [0], decay=0.0).depths.tolist()
    [0, 1, 2, 3, 4, 5, 6]
    >>> grown = expand(circle, [0])
    >>> grown.indices.tolist(), grown.parents.tolist()
    ([0, 1, 2, 3, 4], [-1, 0, 1, 2, 3])
    >>> [round(row["seed_similarity"], 2) + 0 for row in grown.by_depth()]
    [1.0, 0.87, 0.5, 0.0, -0.5]

    ```
    """
    vectors = np.asarray(vectors, order="C")
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(f"vectors must be (n, d) without NaN or infinite numbers, got shape {vectors.shape}")
    if not -1 <= min_similarity <= max_similarity <= 1:
        raise ValueError(f"-1 <= min_similarity={min_similarity} <= max_similarity={max_similarity} <= 1 must hold")
    if not 0 <= decay < math.inf:
        raise ValueError(f"decay={decay} must be finite and not negative")
    level = _check_rows("seeds", seeds, len(vectors))
    if not len(level):
        raise ValueError("seeds must hold at least one row, got none")
    least = {
        "top_n": (top_n, 1),
        "batch_size": (batch_size, 1),
        "max_depth": (max_depth, 0),
        "max_terms": (max_terms, len(level)),
    }
    for name, (value, bound) in least.items():
        if value is not None and value < bound:
            raise ValueError(f"{name}={value} must be {bound} or more")
    lean = np.zeros(vectors.shape[1])
    for name, rows, sign in (("centers", centers, 1), ("negatives", negatives, -1)):
        rows = _check_rows(name, rows, len(vectors))
        if sign < 0 and len(both := np.intersect1d(level, rows)):
            raise ValueError(f"rows {both.tolist()} are seeds and negatives at once")
        if len(rows):
            lean += sign * vectors[rows].mean(0, dtype=np.float64)

    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    units = np.zeros(vectors.shape, np.float32)
    np.divide(vectors, lengths[:, None], out=units, where=lengths[:, None] > 0, casting="same_kind")
    middle = vectors[level].mean(0, dtype=np.float64)
    admitted = np.zeros(len(vectors), bool)
    size, depth, levels = 0, 0, []
    similarities, parents, passed = np.ones(len(level)), np.full(len(level), -1), math.nan
    while len(level):
        admitted[level] = True
        size += len(level)
        drift = _cosines(vectors[level], lengths[level], middle)
        levels.append((level, np.full(len(level), depth), parents, similarities, np.full(len(level), passed), drift))
        if depth == max_depth or size == max_terms:
            break
        passed = float(threshold(depth, min_similarity, max_similarity, decay))
        found, origins, similarities = _next_level(vectors, lengths, units, lean, level, admitted, passed, top_n, batch_size)
        room = None if max_terms is None else max_terms - size
        level, parents, similarities = found[:room], level[origins[:room]], similarities[:room]
        depth += 1
    return Expansion(*(np.concatenate(column) for column in zip(*levels, strict=True)))


def _next_level(
    vectors: np.ndarray,
    lengths: np.ndarray,
    units: np.ndarray,
    lean: np.ndarray,
    level: np.ndarray,
    admitted: np.ndarray,
    least: float,
    top_n: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New rows in their order, the places of their parents in ``level``, and their cosines, all ``(m,)``."""
    # A search in float32 leaves few rows, which float64 decides on. This bounds the error of the search: both vectors are
    # rounded, and so are d products and sums.
    slack = (vectors.shape[1] + 4) * 2.0**-24
    best, origin = np.full(len(vectors), -np.inf), np.zeros(len(vectors), np.int64)
    for begin in range(0, len(level), batch_size):
        rows = level[begin : begin + batch_size]
        queries = vectors[rows] + lean
        scale = np.linalg.norm(queries, axis=1, keepdims=True)
        rough = np.divide(queries, scale, out=np.zeros_like(queries), where=scale > 0).astype(np.float32) @ units.T
        rough[:, lengths == 0] = -np.inf
        rough[np.arange(len(rows)), rows] = -np.inf
        # a query of 0 points nowhere
        rough[scale[:, 0] == 0] = -np.inf
        for place, (query, row) in enumerate(zip(queries, rough, strict=True), begin):
            near = np.flatnonzero(row > least - slack)
            if len(near) > top_n:
                near = near[row[near] >= np.partition(row[near], -top_n)[-top_n] - 2 * slack]
            cosines = _cosines(vectors[near], lengths[near], query)
            nearest = np.argsort(-cosines, kind="stable")[:top_n]
            near, cosines = near[nearest], cosines[nearest]
            new = ~admitted[near] & (cosines > np.maximum(best[near], least))
            best[near[new]], origin[near[new]] = cosines[new], place
    found = np.flatnonzero(best > least)
    found = found[np.lexsort((found, -best[found], origin[found]))]
    return found, origin[found], best[found]


__all__ = ["Expansion", "expand", "threshold"]

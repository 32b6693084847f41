"""From feature vectors and from sequences to a law over pairs of items, p(i, j)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Distances computed at a time: a bound on memory, not on what is computed.
DISTANCES_AT_A_TIME = 2**24


def feature_affinities(features: Tensor, perplexity: float = 30.0, symmetric: bool = True) -> Tensor:
    r"""Neighbours of feature vectors as a law over pairs, ``p(j | i) ~ exp(-|x_i - x_j|^2 / 2 s_i^2)``, j other than i.

    Every s_i is such that the entropy of ``p(. | i)`` is log perplexity. Only the ``3 * perplexity`` nearest neighbours
    count; beyond them the law has next to nothing (van der Maaten 2014, JMLR 15).

    Args:
        features: ``(n, ...)``, one vector an item.
        perplexity: how many neighbours an item has, in effect.
        symmetric: ``(p(j | i) + p(i | j)) / 2n``, t-SNE's (van der Maaten and Hinton 2008, JMLR 9); otherwise
            ``p(j | i) / n``, SNE's (Hinton and Roweis 2002).

    Returns:
        ``(n, n)`` sparse float64, sums to 1.

    Raises:
        ValueError: NaN or infinite features, fewer than 3 items, or a perplexity that is not between 1 and n - 1.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import feature_affinities
    >>> law = feature_affinities(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), perplexity=1.5).to_dense()
    >>> bool(law[0, 1] > 10 * law[0, 2]), round(law.sum().item(), 6)
    (True, 1.0)

    ```
    """
    x = torch.as_tensor(features).flatten(1).double()
    count = len(x)
    bad = int((~torch.isfinite(x)).any(1).sum())
    if bad:
        where = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise ValueError(f"{bad} of {count} items have NaN or infinite features, item {where} the first: remove them")
    if count < 3:
        raise ValueError(f"a map needs at least 3 items, got {count}")
    if not 1 < perplexity <= count - 1:
        raise ValueError(f"perplexity={perplexity} must lie between 1 and {count - 1}, one less than the items")
    near = min(count - 1, math.ceil(3 * perplexity))
    x = x - x.mean(0)
    squares = x.square().sum(1)
    distances, columns = [], []
    for rows in torch.arange(count).split(max(1, DISTANCES_AT_A_TIME // count)):
        block = squares[rows, None] - 2 * x[rows] @ x.T + squares
        block[torch.arange(len(rows)), rows] = math.inf
        found = block.topk(near, largest=False)
        distances.append(found.values.clamp_min(0))
        columns.append(found.indices)
    distance, column = torch.cat(distances), torch.cat(columns)
    conditional = _conditional(distance - distance[:, :1], math.log(perplexity))
    indices = torch.stack([torch.arange(count).repeat_interleave(near), column.flatten()])
    law = torch.sparse_coo_tensor(indices, conditional.flatten() / count, (count, count), check_invariants=False)
    return ((law + law.T) / 2 if symmetric else law).coalesce()


def _conditional(distance: Tensor, target: float) -> Tensor:
    """``softmax(-beta * distance)`` with the entropy ``target``, by bisection on log beta; ``(n, k) -> (n, k)``."""
    # a unit: the scale of features is nobody's business
    unit = distance.mean(1, keepdim=True).clamp_min(1e-300)
    distance = distance / unit
    low, high = (torch.full((len(distance), 1), edge, dtype=distance.dtype) for edge in (-60.0, 60.0))
    for _ in range(64):
        middle = (low + high) / 2
        log_p = (-distance * middle.exp()).log_softmax(1)
        too_wide = -(log_p.exp() * log_p).sum(1, keepdim=True) > target
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    return (-distance * low.exp()).softmax(1)


def count_pairs(items: np.ndarray, starts: np.ndarray, vocab_size: int, window_size: int | None = 5) -> Tensor:
    """How often i and j stand within a window, weighted as in `MinEntropyEmbeddingForPreTraining.window_pairs`.

    Args:
        items: ``(tokens,)`` int32, all sequences one after the other.
        starts: ``(sequences + 1,)`` int64, where each begins, and the end.
        vocab_size: V.
        window_size: most places between the two; None for all pairs of a record.

    Returns:
        ``(V, V)`` symmetric sparse float64; as large as there are different pairs.

    Raises:
        ValueError: no pairs.
    """
    ends = np.repeat(starts[1:], np.diff(starts))
    longest = int(np.diff(starts).max(initial=0))
    reach = longest - 1 if window_size is None else min(window_size, longest - 1)
    keys, values = np.empty(0, np.int64), np.empty(0)
    for offset in range(1, reach + 1):
        first = np.flatnonzero(np.arange(len(items) - offset) + offset < ends[:-offset])
        left, right = items[first].astype(np.int64), items[first + offset].astype(np.int64)
        found, counts = np.unique(np.minimum(left, right) * vocab_size + np.maximum(left, right), return_counts=True)
        weight = 1.0 if window_size is None else 1 - (offset - 1) / window_size
        merged, place = np.unique(np.concatenate([keys, found]), return_inverse=True)
        values = np.bincount(place, np.concatenate([values, counts * weight]), len(merged))
        keys = merged
    if not len(keys):
        raise ValueError("the sequences hold no pairs: all of them are shorter than two items")
    upper = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([keys // vocab_size, keys % vocab_size])),
        torch.from_numpy(values),
        (vocab_size, vocab_size),
        check_invariants=False,
    )
    return (upper + upper.T).coalesce()


__all__ = ["count_pairs", "feature_affinities"]

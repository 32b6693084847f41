"""Parts of words, from whose vectors those of unknown words are composed.

The parts are fastText's (Bojanowski et al. 2017, arXiv:1607.04606); their vectors are fitted to trained ones (Zhao, Mudgal
and Liang 2018, arXiv:1809.04259), so known words keep the vectors that they have.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def subword_ids(word: str, num_buckets: int, lengths: Sequence[int] = (3, 6)) -> list[int]:
    """Buckets of the parts of ``<word>`` that have so many characters, by the 32-bit FNV-1a hash of their UTF-8.

    Args:
        word: any text.
        num_buckets: how many there are.
        lengths: fewest and most characters, with the marks ``<`` and ``>`` of beginning and end.

    Example:

    ```python
    >>> from hfblog import subword_ids
    >>> len(subword_ids("where", 2_000_000, (3, 3))), subword_ids("where", 2_000_000, (3, 3))[0]
    (5, 167652)

    ```
    """
    marked = f"<{word}>"
    least, most = lengths
    parts = [
        marked[begin : begin + length]
        for length in range(least, min(most, len(marked)) + 1)
        for begin in range(len(marked) - length + 1)
    ]
    buckets = []
    for part in parts or [marked]:
        number = 2166136261
        for byte in part.encode():
            number = (number ^ byte) * 16777619 & 0xFFFFFFFF
        buckets.append(number % num_buckets)
    return buckets


def subword_matrix(words: Sequence[str], num_buckets: int, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Buckets of all words one after the other, int64, and where each word begins, as `torch.nn.functional.embedding_bag`
    takes them."""
    rows = [subword_ids(word, num_buckets, lengths) for word in words]
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    return torch.tensor([bucket for row in rows for bucket in row]), torch.from_numpy(starts)


def fit_subword_vectors(
    buckets: Tensor, starts: Tensor, vectors: Tensor, num_buckets: int, ridge: float, steps: int
) -> Tensor:
    """Vectors z of the parts such that their mean over a word comes near the word's: least squares with ``ridge * |z|^2``.

    Conjugate gradients on the normal equations, all dimensions at once.

    Returns:
        ``(num_buckets, d)`` float32.
    """
    count = len(starts)
    lengths = torch.diff(starts, append=torch.tensor([len(buckets)]))
    pointers = torch.cat([starts, torch.tensor([len(buckets)])])
    shares = (1 / lengths.double()).repeat_interleave(lengths).float()
    rows = torch.arange(count).repeat_interleave(lengths)
    spread = torch.sparse_coo_tensor(torch.stack([buckets, rows]), shares, (num_buckets, count), check_invariants=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        means = torch.sparse_csr_tensor(pointers, buckets, shares, (count, num_buckets), check_invariants=False)
        spread = spread.coalesce().to_sparse_csr()

    def normal(z: Tensor) -> Tensor:
        return spread @ (means @ z) + ridge * z

    z = torch.zeros(num_buckets, vectors.shape[1])
    residual = spread @ vectors.float()
    direction, square = residual.clone(), residual.square().sum(0)
    for _ in range(steps):
        image = normal(direction)
        step = square / (direction * image).sum(0).clamp_min(1e-30)
        z += step * direction
        residual -= step * image
        before, square = square, residual.square().sum(0)
        direction = residual + square / before.clamp_min(1e-30) * direction
    return z


__all__ = ["fit_subword_vectors", "subword_ids", "subword_matrix"]

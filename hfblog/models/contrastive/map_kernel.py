"""Gradient descent for maps of SNE and t-SNE in compiled loops, for the CPU: exact, without a tree.

Van der Maaten and Hinton 2008, JMLR 9. All pairs are visited in every step; what makes it fast is that coordinates lie one
axis after the other, so that a processor takes eight items at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

try:  # in a try block: transformers demands every other import of a repository's code, and this may be missing
    import numba
except ImportError as error:
    raise ImportError("the compiled loops need numba: pip install numba") from error

STUDENT_T, SQUARED = 0, 1


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _normalizers(z, first, last, cost, nu, sums):
    """``sums[i]``, sum over j other than i of exp(score)."""
    size, count = z.shape
    squares = np.empty(count, np.float32)
    for i in range(first, last):
        squares[:] = 0
        for axis in range(size):
            own = z[axis, i]
            for j in range(count):
                difference = own - z[axis, j]
                squares[j] += difference * difference
        total = np.float32(0)
        if cost == SQUARED:
            for j in range(count):
                total += np.exp(-squares[j])
        elif nu == 1:
            for j in range(count):
                total += np.float32(1) / (np.float32(1) + squares[j])
        else:
            for j in range(count):
                total += (np.float32(1) + squares[j] / nu) ** (np.float32(-0.5) * (nu + np.float32(1)))
        sums[i] = total - np.float32(1)  # itself, at distance 0


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _repulsion(z, first, last, cost, nu, share, forces, sums):
    """``forces[:, i]``, sum over j of (share[i] + share[j]) exp(score) slope (z_i - z_j), and the normalizers on the way."""
    size, count = z.shape
    squares, weights = np.empty(count, np.float32), np.empty(count, np.float32)
    one = np.float32(1)
    for i in range(first, last):
        squares[:] = 0
        for axis in range(size):
            own = z[axis, i]
            for j in range(count):
                difference = own - z[axis, j]
                squares[j] += difference * difference
        total, mine = np.float32(0), share[i]
        if cost == SQUARED:
            for j in range(count):
                weight = np.exp(-squares[j])
                total += weight
                weights[j] = np.float32(2) * weight * (mine + share[j])
        elif nu == 1:
            for j in range(count):
                weight = one / (one + squares[j])
                total += weight
                weights[j] = np.float32(2) * weight * weight * (mine + share[j])
        else:
            for j in range(count):
                inner = one / (one + squares[j] / nu)
                weight = inner ** (np.float32(0.5) * (nu + one))
                total += weight
                weights[j] = (nu + one) / nu * weight * inner * (mine + share[j])
        sums[i] = total - one
        for axis in range(size):
            own, force = z[axis, i], np.float32(0)
            for j in range(count):
                force += weights[j] * (own - z[axis, j])
            forces[axis, i] = force


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _attraction(z, cost, nu, pointers, columns, values, forces):
    """Forces of the law's pairs, p(i, j) + p(j, i)."""
    size, count = z.shape
    forces[:] = 0
    for i in range(count):
        for place in range(pointers[i], pointers[i + 1]):
            j = columns[place]
            square = np.float32(0)
            for axis in range(size):
                difference = z[axis, i] - z[axis, j]
                square += difference * difference
            if cost == SQUARED:
                slope = np.float32(2)
            else:
                slope = (nu + np.float32(1)) / (nu + square)
            pull = values[place] * slope
            for axis in range(size):
                forces[axis, i] += pull * (z[axis, i] - z[axis, j])


@numba.njit(nogil=True, cache=True)
def _mean_score(z, cost, nu, pointers, columns, values):
    """Sum over pairs of p(i, j) times their score."""
    total = 0.0
    for i in range(z.shape[1]):
        for place in range(pointers[i], pointers[i + 1]):
            square = 0.0
            for axis in range(z.shape[0]):
                square += (z[axis, i] - z[axis, columns[place]]) ** 2
            total -= 0.5 * values[place] * (square if cost == SQUARED else 0.5 * (nu + 1) * np.log1p(square / nu))
    return total


@dataclass
class MapProblem:
    """A law over pairs whose cost the places of a map are to make small, with its gradient.

    Args:
        pointers, columns, values: rows of the symmetric ``p(i, j) + p(j, i)``, compressed (CSR); float32 values.
        mass: ``(n,)`` float32, p(i).
        cost: ``"student_t"`` or ``"l2"``.
        degrees_of_freedom: of the first.
        over_pairs: whether probabilities sum to 1 over all pairs, and not over the next item.
        threads: how many; the result does not depend on it.
    """

    pointers: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    mass: np.ndarray
    cost: str = "student_t"
    degrees_of_freedom: float = 1.0
    over_pairs: bool = True
    threads: int = 1

    def __post_init__(self):
        self._kind = SQUARED if self.cost == "l2" else STUDENT_T
        self._nu = np.float32(self.degrees_of_freedom)
        self._bounds = np.linspace(0, len(self.mass), self.threads + 1).astype(np.int64)
        self._pool = ThreadPoolExecutor(self.threads)

    def _over_rows(self, function: Callable, z: np.ndarray, *arguments: Any) -> None:
        parts = [(z, *edges, self._kind, self._nu, *arguments) for edges in itertools.pairwise(self._bounds)]
        list(self._pool.map(lambda part: function(*part), parts))

    def normalizers(self, z: np.ndarray) -> np.ndarray:
        """Sums over j other than i of exp(score), ``(n,)`` float32."""
        sums = np.empty(len(self.mass), np.float32)
        self._over_rows(_normalizers, z, sums)
        return sums

    def gradient(self, z: np.ndarray, exaggeration: float = 1.0) -> np.ndarray:
        """Of the cost in nats with respect to places ``(d, n)`` float32; attraction counts ``exaggeration`` times."""
        pull, push = np.empty_like(z), np.empty_like(z)
        _attraction(z, self._kind, self._nu, self.pointers, self.columns, self.values, pull)
        if self.over_pairs:
            # every pair has the same share, the inverse of a sum that this pass gives
            sums = np.empty(len(self.mass), np.float32)
            self._over_rows(_repulsion, z, np.full(len(self.mass), 0.5, np.float32), push, sums)
            push *= np.float32(2 / sums.sum(dtype=np.float64))
        else:
            sums = self.normalizers(z)
            self._over_rows(_repulsion, z, self.mass / sums, push, sums)
        return np.float32(exaggeration) * pull - push

    def value(self, z: np.ndarray) -> float:
        """The cost in nats: of a pair where probabilities sum to 1 over all of them, otherwise of the next item."""
        sums = self.normalizers(z)
        scores = _mean_score(z, self._kind, float(self._nu), self.pointers, self.columns, self.values)
        if self.over_pairs:
            return math.log(sums.sum(dtype=np.float64)) - scores
        return float((self.mass * np.log(sums.astype(np.float64))).sum()) - scores


def descend_map(
    problem: MapProblem,
    positions: np.ndarray,
    *,
    steps: int = 750,
    exaggeration: float = 12.0,
    exaggeration_steps: int = 250,
    learning_rate: float | None = None,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Gradient descent with momentum and a gain for each coordinate, as the authors of t-SNE have it.

    Args:
        problem: what is descended.
        positions: ``(d, n)`` float32, where it begins.
        steps: all of them.
        exaggeration, exaggeration_steps: factor of the attraction in the first steps, which lets groups form.
        learning_rate: a quarter of ``n / exaggeration``, at least 50, by default (Belkina et al. 2019, Nat. Commun. 10).
        callback: is told step and places every 50 steps.

    Returns:
        ``(d, n)`` float32, centred.
    """
    z = np.ascontiguousarray(positions, np.float32)
    if learning_rate is None:
        learning_rate = max(z.shape[1] / exaggeration / 4, 50.0)
    speed, gains = np.zeros_like(z), np.ones_like(z)
    for step in range(steps):
        early = step < exaggeration_steps
        slope = problem.gradient(z, exaggeration if early else 1.0)
        gains = np.where(speed * slope < 0, gains + np.float32(0.2), gains * np.float32(0.8)).clip(np.float32(0.01), None)
        speed = np.float32(0.5 if early else 0.8) * speed - np.float32(learning_rate) * gains * slope
        z = z + speed
        if callback is not None and (step + 1) % 50 == 0:
            callback(step + 1, z)
    return z - z.mean(1, keepdims=True)


__all__ = ["MapProblem", "descend_map"]

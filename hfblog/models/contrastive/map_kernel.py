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


# The squared distance of an item to itself, which is no neighbour; infinity is not for loops that may assume there is none.
FAR = np.float32(1e30)


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _squares(z, i, squares):
    """Squared distances of an item to all others."""
    size, count = z.shape
    squares[:] = 0
    for axis in range(size):
        own = z[axis, i]
        for j in range(count):
            difference = own - z[axis, j]
            squares[j] += difference * difference
    squares[i] = FAR


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _nearest(z, first, last, cost, nu, shifts):
    """``shifts[i]``, squared distance to the nearest: what keeps exponentials from vanishing."""
    squares = np.empty(z.shape[1], np.float32)
    for i in range(first, last):
        _squares(z, i, squares)
        shifts[i] = squares.min()


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _normalizers(z, first, last, cost, nu, shifts, sums):
    """``sums[i]``, sum over j other than i of exp(score + shifts[i])."""
    count = z.shape[1]
    squares = np.empty(count, np.float32)
    one = np.float32(1)
    for i in range(first, last):
        _squares(z, i, squares)
        total = np.float32(0)
        if cost == SQUARED:
            for j in range(count):
                total += np.exp(shifts[i] - squares[j])
        elif nu == 1:
            for j in range(count):
                total += one / (one + squares[j])
        else:
            for j in range(count):
                total += (one + squares[j] / nu) ** (np.float32(-0.5) * (nu + one))
        sums[i] = total


@numba.njit(fastmath=True, nogil=True, cache=True, boundscheck=False)
def _repulsion(z, first, last, cost, nu, shifts, share, forces, sums):
    """``forces[:, i]``, sum over j of (share[i] exp(shifts[i]) + share[j] exp(shifts[j])) exp(score) slope (z_i - z_j), and
    the normalizers on the way."""
    size, count = z.shape
    squares, weights = np.empty(count, np.float32), np.empty(count, np.float32)
    one = np.float32(1)
    for i in range(first, last):
        _squares(z, i, squares)
        total, mine = np.float32(0), share[i]
        if cost == SQUARED:
            for j in range(count):
                weight = np.exp(shifts[i] - squares[j])
                total += weight
                weights[j] = np.float32(2) * (weight * mine + np.exp(shifts[j] - squares[j]) * share[j])
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
        sums[i] = total
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

    def _shifts(self, z: np.ndarray) -> np.ndarray:
        shifts = np.zeros(len(self.mass), np.float32)
        if self._kind == SQUARED:
            self._over_rows(_nearest, z, shifts)
            if self.over_pairs:
                shifts[:] = shifts.min()
        return shifts

    def gradient(self, z: np.ndarray, exaggeration: float = 1.0) -> np.ndarray:
        """Of the cost in nats with respect to places ``(d, n)`` float32; attraction counts ``exaggeration`` times."""
        pull, push, sums = np.empty_like(z), np.empty_like(z), np.empty(len(self.mass), np.float32)
        shifts = self._shifts(z)
        _attraction(z, self._kind, self._nu, self.pointers, self.columns, self.values, pull)
        if self.over_pairs:
            # every pair has the same share, the inverse of a sum that this pass gives
            self._over_rows(_repulsion, z, shifts, np.full(len(self.mass), 0.5, np.float32), push, sums)
            push *= np.float32(2 / sums.sum(dtype=np.float64))
        else:
            self._over_rows(_normalizers, z, shifts, sums)
            self._over_rows(_repulsion, z, shifts, self.mass / sums, push, sums)
        return np.float32(exaggeration) * pull - push

    def value(self, z: np.ndarray) -> float:
        """The cost in nats: of a pair where probabilities sum to 1 over all of them, otherwise of the next item."""
        shifts, sums = self._shifts(z), np.empty(len(self.mass), np.float32)
        self._over_rows(_normalizers, z, shifts, sums)
        scores = _mean_score(z, self._kind, float(self._nu), self.pointers, self.columns, self.values)
        if self.over_pairs:
            return math.log(sums.sum(dtype=np.float64)) - float(shifts[0]) - scores
        return float((self.mass * (np.log(sums.astype(np.float64)) - shifts)).sum()) - scores


def descend_map(
    problem: MapProblem,
    positions: np.ndarray,
    *,
    steps: int = 750,
    learning_rate: float | None = None,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Gradient descent from given places, by the rule that suits the cost.

    Args:
        problem: what is descended.
        positions: ``(d, n)`` float32, where it begins.
        steps: all of them.
        learning_rate: of ``"student_t"`` n / 48, at least 50, by default (Belkina et al. 2019, Nat. Commun. 10, with their
            exaggeration of 12 and a gradient four times theirs); of ``"l2"`` 0.1.
        callback: is told step and places every 50 steps.

    Returns:
        ``(d, n)`` float32, centred.
    """
    z = np.ascontiguousarray(positions, np.float32)
    rule = (_Momentum if problem.cost == "student_t" else _Adam)(z, steps, learning_rate)
    for step in range(steps):
        z = z + rule.move(step, problem.gradient(z, rule.exaggeration(step)))
        if callback is not None and (step + 1) % 50 == 0:
            callback(step + 1, z)
    return z - z.mean(1, keepdims=True)


class _Momentum:
    """Momentum and a gain for each coordinate, as the authors of t-SNE have it; in the first third attraction counts more,
    which lets groups form."""

    def __init__(self, z: np.ndarray, steps: int, learning_rate: float | None):
        self.early = min(250, steps // 3)
        self.rate = np.float32(max(z.shape[1] / 48, 50.0) if learning_rate is None else learning_rate)
        self.speed, self.gains = np.zeros_like(z), np.ones_like(z)

    def exaggeration(self, step: int) -> float:
        return 12.0 if step < self.early else 1.0

    def move(self, step: int, slope: np.ndarray) -> np.ndarray:
        turned = self.speed * slope >= 0
        self.gains = np.where(turned, self.gains * np.float32(0.8), self.gains + np.float32(0.2)).clip(np.float32(0.01), None)
        self.speed = np.float32(0.5 if step < self.early else 0.8) * self.speed - self.rate * self.gains * slope
        return self.speed


class _Adam:
    """Adam (Kingma and Ba 2015) whose rate falls to 0: of forces that grow with the distance a fixed step is too long."""

    def __init__(self, z: np.ndarray, steps: int, learning_rate: float | None):
        self.rates = np.linspace(0.1 if learning_rate is None else learning_rate, 0, steps + 1, dtype=np.float32)
        self.mean, self.square = np.zeros_like(z), np.zeros_like(z)

    def exaggeration(self, step: int) -> float:
        return 1.0

    def move(self, step: int, slope: np.ndarray) -> np.ndarray:
        self.mean = np.float32(0.9) * self.mean + np.float32(0.1) * slope
        self.square = np.float32(0.999) * self.square + np.float32(0.001) * slope**2
        scale = np.sqrt(self.square / np.float32(1 - 0.999 ** (step + 1))) + np.float32(1e-12)
        return -self.rates[step] / np.float32(1 - 0.9 ** (step + 1)) * self.mean / scale


__all__ = ["MapProblem", "descend_map"]

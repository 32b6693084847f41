"""Counting of n-grams in compiled loops: windows of five symbols, sorted; every order's counts and neighbours in one pass.

The windows that begin with one symbol are one bucket; the other four symbols of a window are one 64-bit number. In a sorted
bucket the occurrences of an n-gram lie together, and within them those with the same right neighbour.
"""

from __future__ import annotations

import math

import numpy as np

try:  # in a try block: transformers demands every other import of a repository's code, and this may be missing
    import numba
except ImportError as error:
    raise ImportError("counting of n-grams needs numba: pip install numba") from error

BITS = 16
# Symbols of a window beside its first: those of the longest n-gram, and a neighbour.
TAIL = 4


@numba.njit(cache=True, nogil=True, boundscheck=False)
def count_symbols(symbols, counts, totals):
    """Adds to ``counts`` how often each symbol occurs, and to ``totals`` how many n-grams of each order there are."""
    run = 0
    for place in range(len(symbols)):
        symbol = symbols[place]
        if symbol == 0:
            run = 0
            continue
        counts[symbol] += 1
        run += 1
        for order in range(min(run, len(totals))):
            totals[order] += 1


@numba.njit(cache=True, nogil=True, boundscheck=False)
def scatter_windows(symbols, first, last, ends, keys, backwards):
    """Write the tails of windows that begin with the symbols ``first <= s < last`` into these symbols' buckets.

    A tail is what follows (what stands before, if ``backwards``), the next symbol highest, 0 from the first break on.
    ``ends[s]`` is where the bucket's next one goes.
    """
    length = len(symbols)
    tail = np.uint64(0)
    for step in range(length):
        symbol = symbols[step if backwards else length - 1 - step]
        if symbol == 0:
            tail = np.uint64(0)
            continue
        if first <= symbol < last:
            keys[ends[symbol]] = tail
            ends[symbol] += 1
        tail = (np.uint64(symbol) << np.uint64(48)) | (tail >> np.uint64(BITS))


@numba.njit(cache=True, nogil=True, boundscheck=False)
def scan_buckets(keys, symbols, ends, max_order, min_count, sizes, grams, counts, logs, kinds):
    """The n-grams of sorted buckets that occur ``min_count`` times, for every order n up to ``max_order``.

    Bucket b, of the windows that begin with ``symbols[b]``, lies between ``ends[b]`` and ``ends[b + 1]``. Appended at
    ``sizes[n - 1]`` of row n - 1: the n-gram, 16 bits a symbol; how often; the sum of c ln c over the right neighbours; how
    many kinds of them. Every break is a neighbour of its own kind.
    """
    for bucket in range(len(symbols)):
        if ends[bucket + 1] - ends[bucket] >= min_count:
            part = keys[ends[bucket] : ends[bucket + 1]]
            _scan_bucket(part, np.uint64(symbols[bucket]), max_order, min_count, sizes, grams, counts, logs, kinds)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _scan_bucket(keys, first, max_order, min_count, sizes, grams, counts, logs, kinds):
    size = len(keys)
    begins = np.zeros(TAIL + 1, np.int64)  # of the present run of each order's n-gram
    sums = np.zeros(TAIL + 1, np.float64)
    different = np.zeros(TAIL + 1, np.int64)
    for place in range(1, size + 1):
        same = 0  # how many further symbols the window shares with the one before
        last = keys[place - 1]
        if place < size:
            differing = keys[place] ^ last
            if differing == 0:
                continue
            if differing >> np.uint64(48) == 0:
                same = 1
                if differing >> np.uint64(32) == 0:
                    same = 2 if differing >> np.uint64(16) else 3
        else:
            same = -1
        for order in range(max_order + 1, same + 1, -1):
            count = place - begins[order - 1]
            shift = np.uint64(BITS * (TAIL + 1 - order))
            newest = (last >> shift) & np.uint64(2**BITS - 1) if order > 1 else np.uint64(1)
            if order <= max_order and newest != 0 and count >= min_count:
                row = sizes[order - 1]
                tail = last >> shift if order > 1 else np.uint64(0)
                grams[order - 1, row] = (first << np.uint64(BITS * (order - 1))) | tail
                counts[order - 1, row] = count
                logs[order - 1, row] = sums[order]
                kinds[order - 1, row] = different[order]
                sizes[order - 1] = row + 1
            if order <= max_order:
                sums[order] = 0.0
                different[order] = 0
            if order > 1:
                if newest == 0:
                    different[order - 1] += count
                else:
                    sums[order - 1] += count * math.log(count)
                    different[order - 1] += 1
            begins[order - 1] = place

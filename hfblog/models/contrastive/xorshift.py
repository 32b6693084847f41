"""Random bits for compiled loops: Marsaglia's xorshift of 2003, 64 bits of state."""

from __future__ import annotations

import numpy as np

try:  # in a try block: transformers demands every other import of a repository's code, and this may be missing
    from numba import njit

    COMPILED = True
except ImportError:
    COMPILED = False

    def njit(**settings):
        return lambda function: function


@njit(nogil=True, cache=True, boundscheck=False)
def random_bits(state):
    """53 random bits, from the 64 in ``state[0]``, which move on."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return x >> np.uint64(11)


@njit(nogil=True, cache=True, boundscheck=False)
def random_state(seed):
    """A state from a seed, both unsigned 64 bits; the first numbers of a small one are small."""
    return np.array([np.uint64(seed) * np.uint64(2654435769) + np.uint64(88172645463325252)], dtype=np.uint64)


__all__ = ["COMPILED", "njit", "random_bits", "random_state"]

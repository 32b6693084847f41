"""Random numbers that an example's own values determine: the same in every call, batch and process.

One draw shared by all examples would leave its chance in their mean; here it averages out. A text's numbers do not depend on
how far its batch was padded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# the odd constants of splitmix64 (Steele, Lea, Flood 2014), as signed integers
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _mix(words: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap around; a masked shift is an unsigned one."""
    words = (words ^ (words >> 30 & 2**34 - 1)) * _FIRST
    words = (words ^ (words >> 27 & 2**37 - 1)) * _SECOND
    return words ^ (words >> 31 & 2**33 - 1)


def _places(count: int, seed: int, device: torch.device) -> Tensor:
    return _mix((torch.arange(1, count + 1, device=device) + (seed << 32)) * _STEP)


def keys_of_examples(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """One int64 for each example, ``(batch,)``.

    Args:
        values: ``(batch, ...)``; numbers are told apart down to 2^-24.
        mask: ``(batch, ...)``, 0 at values that do not count.
    """
    flat = values.flatten(1)
    words = (flat.double() * 2**24).round().long() if flat.is_floating_point() else flat.long()
    places = _places(words.shape[1], 0, words.device)
    if mask is None:
        return _mix(words * _FIRST + places).sum(1)
    counts = mask.flatten(1) != 0
    # places among the values that count: what stands before them matters as little as what follows
    places = places[(counts.cumsum(1) - 1).clamp_min(0)]
    return _mix(words * _FIRST + places).masked_fill(~counts, 0).sum(1)


def uniform_of_examples(keys: Tensor, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """``(batch, *shape)`` float32 uniform numbers inside (0, 1) for ``keys_of_examples``; others for every positive seed."""
    size = math.prod(shape)
    # 23 bits and a half: what float32 holds without rounding up to 1, where a normal number would be infinite
    bits = _mix(keys[:, None] + _places(size, seed, keys.device)) >> 41 & 0x7FFFFF
    return ((bits.double() + 0.5) / 2**23).float().unflatten(1, shape)


def normal_of_examples(keys: Tensor, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """``(batch, *shape)`` float32 standard normal numbers for ``keys_of_examples``."""
    return torch.special.ndtri(uniform_of_examples(keys, shape, seed).double()).float()

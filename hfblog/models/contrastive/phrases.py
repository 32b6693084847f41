"""Pairs of neighbouring items that are worth an item of their own, since sequences cost less with it.

Su Jianlin 2018, https://kexue.fm/archives/5476. Gains are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Phrases:
    """Pairs of items, that of the largest gain first.

    Args:
        firsts, seconds: ``(P,)`` int64, the two items.
        counts: ``(P,)`` int64, how often they would be joined if they were the only phrase.
        gains: ``(P,)`` float64, `phrase_gain` of each by itself.
    """

    firsts: np.ndarray
    seconds: np.ndarray
    counts: np.ndarray
    gains: np.ndarray

    def __len__(self) -> int:
        return len(self.firsts)


def phrase_gain(
    count_ab: np.ndarray,
    count_a: np.ndarray,
    count_b: np.ndarray,
    total: int,
    same: np.ndarray | bool = False,
) -> np.ndarray:
    r"""What joining neighbours a and b saves, in nats an item of the sequence before it.

    An item costs ``-log p`` by its frequency, so a sequence costs H an item and H / l a symbol, where l is the mean length
    of an item in symbols. Joining makes the items fewer and longer, and H / l smaller by F / l, exactly:

    ``F = p_ab ln(p_ab / (p_a p_b)) - (1 - p_ab) ln(1 - p_ab) + sum over i = a, b of (p_i - p_ab) ln(1 - p_ab / p_i)``

    It is at least ``p_ab (ln(p_ab / (p_a p_b)) - 1)``, so a PMI above 1 nat is enough. An item joined with itself is used
    up twice each time, and the sum has one term, ``(p_a - 2 p_ab) ln(1 - 2 p_ab / p_a)``.

    Args:
        count_ab: ``(...)``, how often a and b would be joined.
        count_a, count_b: ``(...)``, how often each occurs.
        total: number of items in all sequences.
        same: ``(...)`` bool, where a and b are one item.

    Returns:
        ``(...)`` float64; negative where joining costs more than it saves, 0 for pairs that never occur.

    Raises:
        ValueError: a pair is more frequent than its items allow, or an item than all.

    Example:

    ```python
    >>> from hfblog import phrase_gain
    >>> [round(float(gain), 4) for gain in phrase_gain([50, 2], [50, 50], [50, 50], 1000)]
    [0.1985, -0.0024]

    ```
    """
    count_ab, count_a, count_b = (np.asarray(count, dtype=np.float64) for count in (count_ab, count_a, count_b))
    same = np.asarray(same, dtype=bool)
    room = np.where(same, np.floor(np.minimum(count_a, count_b) / 2), np.minimum(count_a, count_b))
    if np.any(count_ab < 0) or np.any(count_ab > room):
        raise ValueError(
            "a pair occurs at least 0 times and at most as often as its items, half as often where they are the same; "
            "count_ab breaks this"
        )
    if total < 1 or np.any(np.maximum(count_a, count_b) > total):
        raise ValueError(f"total={total} must be at least 1 and no less than the count of any item")

    def left_over(p: np.ndarray, used: np.ndarray) -> np.ndarray:
        """``(p - used) ln(1 - used / p)``, 0 where nothing is left."""
        some = used < p
        return np.where(some, (p - used) * np.log1p(-np.divide(used, p, out=np.zeros_like(p), where=some)), 0.0)

    p_ab, p_a, p_b = np.broadcast_arrays(count_ab / total, count_a / total, count_b / total)
    ratio = np.divide(p_ab, p_a * p_b, out=np.ones_like(p_ab), where=p_ab > 0)
    gain = p_ab * np.log(ratio) - left_over(np.ones_like(p_ab), p_ab)
    return gain + np.where(same, left_over(p_a, 2 * p_ab), left_over(p_a, p_ab) + left_over(p_b, p_ab))


def find_phrases(
    items: np.ndarray,
    starts: np.ndarray,
    vocab_size: int,
    min_count: int = 20,
    min_pmi: float = 5.0,
    max_phrases: int | None = None,
) -> Phrases:
    """Neighbours within sequences that are frequent, belong together, and lower the cost when they are joined.

    The gains are of one phrase at a time; with ``max_phrases=1`` every pass is a step of the cost that they promise.

    Args:
        items: ``(tokens,)`` of integers below ``vocab_size``, all sequences one after the other. Items that were left out
            before make neighbours of those around them.
        starts: ``(sequences + 1,)``, where each sequence begins, and the end.
        vocab_size: number of items.
        min_count: rarer pairs are left out, and an item with itself counts as often as it can be joined.
        min_pmi: least ``ln p_ab / (p_a p_b)``, in nats.
        max_phrases: most phrases, by gain; all by default.

    Raises:
        ValueError: items or starts that do not belong together, or a bound that makes no sense.

    Example, two passes for phrases of up to four items:

    ```python
    >>> import numpy as np
    >>> from hfblog import find_phrases, join_phrases
    >>> words = ["a", "new", "york", "city", "in"]
    >>> items, starts = np.array([0, 1, 2, 3, 4, 1, 2, 3, 0, 1, 2, 3, 4, 0], np.int32), np.array([0, 4, 8, 14])
    >>> for _ in range(2):
    ...     phrases = find_phrases(items, starts, len(words), min_count=3, min_pmi=0.5)
    ...     items, starts = join_phrases(items, starts, phrases, len(words))
    ...     words += [f"{words[a]} {words[b]}" for a, b in zip(phrases.firsts, phrases.seconds)]
    >>> [[words[item] for item in items[begin:end]] for begin, end in zip(starts, starts[1:])]
    [['a', 'new york city'], ['in', 'new york city'], ['a', 'new york city', 'in', 'a']]

    ```
    """
    items, starts = _checked_sequences(items, starts, vocab_size)
    if min_count < 1:
        raise ValueError(f"min_count={min_count} must be at least 1")
    if max_phrases is not None and max_phrases < 0:
        raise ValueError(f"max_phrases={max_phrases} must not be negative; None is all of them")
    total = len(items)
    occurrences = np.bincount(items, minlength=vocab_size)
    frequent = (occurrences >= min_count)[items]
    places = np.flatnonzero(_is_pair(starts, total) & frequent[:-1] & frequent[1:])
    alike = items[places] == items[places + 1]
    if alike.any():  # "a a a" holds one "aa"
        places = np.concatenate([places[~alike], _every_other(places[alike])])
    keys, counts = np.unique(_pair_keys(items, places, vocab_size), return_counts=True)
    keys, counts = keys[counts >= min_count], counts[counts >= min_count]
    firsts, seconds = np.divmod(keys, vocab_size)
    count_a, count_b = occurrences[firsts], occurrences[seconds]
    gains = phrase_gain(counts, count_a, count_b, max(1, total), firsts == seconds)
    pmi = np.log(counts) + np.log(max(1, total)) - np.log(count_a) - np.log(count_b)
    kept = np.flatnonzero((gains > 0) & (pmi >= min_pmi))
    kept = kept[np.argsort(-gains[kept], kind="stable")][:max_phrases]
    return Phrases(firsts[kept], seconds[kept], counts[kept].astype(np.int64), gains[kept])


def join_phrases(items: np.ndarray, starts: np.ndarray, phrases: Phrases, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Put phrases in place of their pairs, from left to right: where two overlap, the left one is joined.

    Args:
        items, starts, vocab_size: as in `find_phrases`.
        phrases: pairs of items; the one of rank r becomes item ``vocab_size + r``.

    Returns:
        Items ``(fewer tokens,)`` int32 and starts ``(sequences + 1,)`` int64; what was given stays as it is.

    Raises:
        ValueError: items, starts or phrases that do not belong together, or more items than int32 can number.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog import Phrases, join_phrases
    >>> phrases = Phrases(np.array([0]), np.array([0]), np.array([2]), np.array([0.1]))
    >>> items, starts = join_phrases(np.array([0, 0, 0, 1, 0, 0]), np.array([0, 5, 6]), phrases, vocab_size=2)
    >>> items.tolist(), starts.tolist()
    ([2, 0, 1, 0, 0], [0, 4, 5])

    ```
    """
    items, starts = _checked_sequences(items, starts, vocab_size)
    firsts, seconds = np.asarray(phrases.firsts, np.int64), np.asarray(phrases.seconds, np.int64)
    if firsts.shape != seconds.shape or firsts.ndim != 1:
        raise ValueError(f"phrases need as many firsts as seconds, got {firsts.shape} and {seconds.shape}")
    if len(firsts) and (min(firsts.min(), seconds.min()) < 0 or max(firsts.max(), seconds.max()) >= vocab_size):
        raise ValueError(f"phrases are of items below vocab_size={vocab_size}")
    if vocab_size + len(firsts) > np.iinfo(np.int32).max:
        raise ValueError(f"vocab_size={vocab_size} and {len(firsts)} phrases are more items than int32 can number")
    phrase_keys = firsts * vocab_size + seconds
    order = np.argsort(phrase_keys)
    phrase_keys = phrase_keys[order]
    if np.any(phrase_keys[1:] == phrase_keys[:-1]):
        raise ValueError("the same pair is among the phrases twice")
    joined = items.astype(np.int32)
    if not len(phrase_keys):
        return joined, starts.copy()
    # most places are ruled out by one of their items, before any search among the phrases
    is_first, is_second = np.zeros(vocab_size, bool), np.zeros(vocab_size, bool)
    is_first[firsts], is_second[seconds] = True, True
    places = np.flatnonzero(_is_pair(starts, len(items)) & is_first[items[:-1]] & is_second[items[1:]])
    keys = _pair_keys(items, places, vocab_size)
    ranks = np.minimum(np.searchsorted(phrase_keys, keys), len(phrase_keys) - 1)
    found = phrase_keys[ranks] == keys
    # a chain of pairs, each of which shares an item with the next: the first is joined, the second is lost to it, and so on
    places = _every_other(places[found])
    ranks = order[np.searchsorted(phrase_keys, _pair_keys(items, places, vocab_size))]
    joined[places] = vocab_size + ranks
    gone = places + 1
    remains = np.ones(len(items), bool)
    remains[gone] = False
    return joined[remains], starts - np.searchsorted(gone, starts)


def _checked_sequences(items: np.ndarray, starts: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Items as they are, and starts int64."""
    items, starts = np.asarray(items), np.asarray(starts)
    if items.ndim != 1 or items.dtype.kind not in "iu":
        raise ValueError(f"items are (tokens,) of integers, got {items.shape} {items.dtype}")
    if len(items) and (items.min() < 0 or items.max() >= vocab_size):
        raise ValueError(f"items are 0 to vocab_size - 1 = {vocab_size - 1}, got {items.min()} to {items.max()}")
    if starts.ndim != 1 or not len(starts) or starts.dtype.kind not in "iu":
        raise ValueError(f"starts are (sequences + 1,) of integers, got {starts.shape} {starts.dtype}")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or starts[-1] != len(items) or np.any(np.diff(starts) < 0):
        raise ValueError(f"starts begin with 0, never fall and end with {len(items)}, the number of items")
    return items, starts


def _is_pair(starts: np.ndarray, total: int) -> np.ndarray:
    """Whether an item and the next are of one sequence, ``(tokens - 1,)`` bool."""
    pair = np.ones(max(0, total - 1), bool)
    pair[starts[(starts > 0) & (starts < total)] - 1] = False
    return pair


def _pair_keys(items: np.ndarray, places: np.ndarray, vocab_size: int) -> np.ndarray:
    """Pairs that begin at places, each as one int64."""
    return items[places].astype(np.int64) * vocab_size + items[places + 1]


def _every_other(places: np.ndarray) -> np.ndarray:
    """The first, third, ... of each run of consecutive numbers in an increasing array."""
    if not len(places):
        return places
    begins = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1)
    lengths = np.diff(begins, append=len(places))
    steps = np.arange(len(places)) - np.repeat(begins, lengths)
    return places[steps % 2 == 0]


__all__ = ["Phrases", "find_phrases", "join_phrases", "phrase_gain"]

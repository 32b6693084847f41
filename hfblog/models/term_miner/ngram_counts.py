"""Exact counts of n-grams, and of what stands to their left and right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from transformers.utils.logging import tqdm

from .symbol_corpus import Chunk, SymbolCorpus

MOST_ORDER = 4

# Windows at a time, eight bytes each; more need further passes over the symbols.
WINDOWS_IN_MEMORY = 2**26

# Windows that are scanned together.
WINDOWS_AT_A_TIME = 2**22


@dataclass
class NgramTable:
    """The n-grams of one order that are frequent enough, in the order of their symbols' ids.

    Attributes:
        order: n.
        keys: ``(m,)`` uint64, 16 bits a symbol, the first symbol highest; sorted.
        counts: ``(m,)`` int64.
        left_entropies, right_entropies: ``(m,)`` float64, nats, of the neighbours' law; each break is a neighbour of its own.
        left_kinds, right_kinds: ``(m,)`` int64, how many different neighbours (accessor variety, Feng et al. 2004).
    """

    order: int
    keys: np.ndarray
    counts: np.ndarray
    left_entropies: np.ndarray
    right_entropies: np.ndarray
    left_kinds: np.ndarray
    right_kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def grams(self) -> np.ndarray:
        """The symbols, ``(m, n)`` uint16."""
        shifts = np.arange(16 * (self.order - 1), -1, -16, dtype=np.uint64)
        return (self.keys[:, None] >> shifts).astype(np.uint16)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The rows of n-grams, -1 for those that are not there."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[rows] == keys, rows, -1)


@dataclass
class NgramCounts:
    """All frequent n-grams of a corpus.

    Attributes:
        tables: of the orders 1, 2, ...
        totals: ``(orders,)`` int64, occurrences of n-grams of each order, rare ones, too.
        min_count: how often one occurs at least.
    """

    tables: list[NgramTable]
    totals: np.ndarray
    min_count: int

    def __getitem__(self, order: int) -> NgramTable:
        return self.tables[order - 1]


def pack(grams: np.ndarray) -> np.ndarray:
    """The keys ``(m,)`` uint64 of n-grams ``(m, n)``."""
    keys = np.zeros(len(grams), np.uint64)
    for column in range(grams.shape[1]):
        keys = (keys << np.uint64(16)) | grams[:, column].astype(np.uint64)
    return keys


def _reversed(keys: np.ndarray, order: int) -> np.ndarray:
    turned = np.zeros_like(keys)
    for place in range(order):
        turned = (turned << np.uint64(16)) | ((keys >> np.uint64(16 * place)) & np.uint64(2**16 - 1))
    return turned


@dataclass
class Runs:
    """What one direction gives: for every order keys, counts, sums of c ln c of the next symbols, and kinds of them."""

    keys: list[np.ndarray]
    counts: list[np.ndarray]
    logs: list[np.ndarray]
    kinds: list[np.ndarray]

    @classmethod
    def joined(cls, parts: list[Runs], max_order: int) -> Runs:
        def join(name: str, dtype: type) -> list[np.ndarray]:
            columns = [[getattr(part, name)[order] for part in parts] for order in range(max_order)]
            return [np.concatenate(column) if column else np.empty(0, dtype) for column in columns]

        return cls(join("keys", np.uint64), join("counts", np.int64), join("logs", np.float64), join("kinds", np.int64))


def scan_windows(keys: np.ndarray, first_symbols: Iterable[int], ends: np.ndarray, max_order: int, min_count: int) -> Runs:
    """Sort and scan the buckets of several first symbols.

    Args:
        keys: the tails, bucket after bucket; they are sorted in place.
        first_symbols: of each bucket.
        ends: where each bucket begins, and the end.
    """
    from .count_kernel import scan_buckets

    symbols = np.asarray(first_symbols)
    for begin, end in zip(ends, ends[1:], strict=False):
        keys[begin:end].sort()
    found: list[Runs] = []
    first = 0
    while first < len(symbols):  # some buckets at a time: how much they hold is only known when they are read
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + WINDOWS_AT_A_TIME, side="right")) - 1)
        room = int(ends[last] - ends[first]) // min_count + 1
        grams = np.empty((max_order, room), np.uint64)
        counts, kinds = np.empty((2, max_order, room), np.int64)
        logs = np.empty((max_order, room))
        sizes = np.zeros(max_order, np.int64)
        scan_buckets(
            keys, symbols[first:last], ends[first : last + 1], max_order, min_count, sizes, grams, counts, logs, kinds
        )
        columns = [[rows[order, :size].copy() for order, size in enumerate(sizes)] for rows in (grams, counts, logs, kinds)]
        found.append(Runs(*columns))
        first = last
    return Runs.joined(found, max_order)


def _groups(counts: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of symbols whose windows fit together into memory."""
    begin, size = 1, 0
    for symbol in range(1, len(counts)):
        if size and size + counts[symbol] > most:
            yield begin, symbol
            begin, size = symbol, 0
        size += counts[symbol]
    yield begin, len(counts)


def read_windows(
    corpus: SymbolCorpus,
    symbol_counts: np.ndarray,
    max_order: int,
    min_count: int,
    backwards: bool,
    windows_in_memory: int = WINDOWS_IN_MEMORY,
) -> Runs:
    """The n-grams of a corpus on this machine, in as many passes as the memory asks for."""
    from .count_kernel import scatter_windows

    groups = list(_groups(symbol_counts, windows_in_memory))
    found = []
    for first, last in tqdm(groups, desc="Counting backwards" if backwards else "Counting", disable=len(groups) == 1):
        ends = np.zeros(len(symbol_counts), np.int64)
        ends[first + 1 : last] = np.cumsum(symbol_counts[first : last - 1])
        bounds = np.append(ends[first:last], symbol_counts[first:last].sum())
        keys = np.empty(bounds[-1], np.uint64)
        for chunk in corpus.chunks():
            scatter_windows(chunk.symbols, first, last, ends, keys, backwards)
        found.append(scan_windows(keys, range(first, last), bounds, max_order, min_count))
    return Runs.joined(found, max_order)


def symbol_counts(chunk: Chunk, num_symbols: int) -> np.ndarray:
    """How often each symbol occurs in a chunk, ``(num_symbols,)``, and behind that how many n-grams of each order."""
    from .count_kernel import count_symbols

    counts = np.zeros(num_symbols + MOST_ORDER, np.int64)
    count_symbols(chunk.symbols, counts[:num_symbols], counts[num_symbols:])
    return counts


def make_tables(forwards: Runs, backwards: Runs, totals: np.ndarray, min_count: int) -> NgramCounts:
    """Both directions together. They hold the same n-grams, read from either end."""
    tables = []
    for order, keys in enumerate(forwards.keys, 1):
        turned = _reversed(backwards.keys[order - 1], order)
        rows = np.argsort(turned, kind="stable")
        if not np.array_equal(turned[rows], keys):
            raise AssertionError(f"n-grams of order {order} differ between the directions")
        counts = forwards.counts[order - 1]
        tables.append(
            NgramTable(
                order,
                keys,
                counts,
                # rounding may leave a hair below zero
                left_entropies=np.maximum(np.log(counts) - backwards.logs[order - 1][rows] / counts, 0),
                right_entropies=np.maximum(np.log(counts) - forwards.logs[order - 1] / counts, 0),
                left_kinds=backwards.kinds[order - 1][rows],
                right_kinds=forwards.kinds[order - 1],
            )
        )
    return NgramCounts(tables, totals, min_count)


def count_ngrams(
    corpus: SymbolCorpus, max_order: int = MOST_ORDER, min_count: int = 2, windows_in_memory: int = WINDOWS_IN_MEMORY
) -> NgramCounts:
    """Count every n-gram of up to four symbols exactly, with the entropies of its neighbours.

    Args:
        corpus: no n-gram spans a break.
        max_order: longest, at most 4.
        min_count: rarer ones are left out; what is counted is exact all the same.
        windows_in_memory: how many positions are sorted together, eight bytes each; a larger corpus is read several times.

    Raises:
        ValueError: an order or a count that cannot be.
        ImportError: numba is not installed.

    Example:

    ```python
    >>> from hfblog.models.term_miner.ngram_counts import count_ngrams
    >>> from hfblog.models.term_miner.symbol_corpus import CorpusReader, joint_alphabet
    >>> reader = CorpusReader(["合同法", "合同", "新合同法"])
    >>> corpus = reader.finish(joint_alphabet([reader.symbols()]))
    >>> pairs = count_ngrams(corpus)[2]
    >>> [(corpus.alphabet.decode(gram), int(count)) for gram, count in zip(pairs.grams, pairs.counts)]
    [('合同', 3), ('同法', 2)]

    ```
    """
    if not 1 <= max_order <= MOST_ORDER:
        raise ValueError(f"max_order={max_order} must lie between 1 and {MOST_ORDER}")
    if min_count < 1:
        raise ValueError(f"min_count={min_count} must be positive")
    size = len(corpus.alphabet)
    counts = corpus.sum_over_chunks(lambda chunk: symbol_counts(chunk, size))
    runs = [corpus.window_runs(counts[:size], max_order, min_count, way, windows_in_memory) for way in (False, True)]
    return make_tables(*runs, counts[size : size + max_order], min_count)


__all__ = ["NgramCounts", "NgramTable", "count_ngrams", "pack"]

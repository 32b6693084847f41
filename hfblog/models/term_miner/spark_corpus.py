"""Corpora that outgrow one machine: the same counts on Apache Spark, where each part of a corpus stays where it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from operator import add
from typing import Any

import numpy as np

from .alphabet import Alphabet
from .ngram_counts import Runs, scan_windows
from .symbol_corpus import Chunk, CorpusReader, SymbolCorpus, joint_alphabet


class SparkCorpus(SymbolCorpus):
    """A corpus in the partitions of a Spark RDD; everything that can be counted of a `SymbolCorpus` can be of it, the same.

    Args:
        alphabet: of how many symbols, the break being one.
        rdd: of `Chunk`.
        num_characters: of the texts.
    """

    def __init__(self, alphabet: Sized, rdd: Any, num_characters: int = 0):
        from pyspark import StorageLevel

        self.alphabet, self.num_characters = alphabet, num_characters
        self.rdd = rdd.persist(StorageLevel.MEMORY_AND_DISK)
        sizes = self.rdd.map(lambda chunk: (int(np.count_nonzero(chunk.symbols)), len(chunk.starts) - 1))
        self.num_symbols, self.num_documents = sizes.fold((0, 0), lambda a, b: (a[0] + b[0], a[1] + b[1]))

    def chunks(self) -> Iterator[Chunk]:
        return self.rdd.toLocalIterator()

    def sum_over_chunks(self, function: Callable[[Chunk], Any]) -> Any:
        return self.rdd.map(function).treeReduce(add)

    def mapped(self, function: Callable[[Chunk], Chunk], alphabet: Sized) -> SparkCorpus:
        return SparkCorpus(alphabet, self.rdd.map(function))

    def extended(self, other: SymbolCorpus) -> SparkCorpus:
        rdd = other.rdd if isinstance(other, SparkCorpus) else self.rdd.context.parallelize(list(other.chunks()))
        return SparkCorpus(self.alphabet, self.rdd.union(rdd), self.num_characters + other.num_characters)

    def window_runs(
        self, symbol_counts: np.ndarray, max_order: int, min_count: int, backwards: bool, windows_in_memory: int
    ) -> Runs:
        parts = max(self.rdd.getNumPartitions(), -(-int(symbol_counts.sum()) // windows_in_memory))
        # ranges of first symbols with as many windows each
        shares = np.cumsum(symbol_counts) / max(1, symbol_counts.sum())
        bounds = np.unique(
            np.concatenate([[1], np.searchsorted(shares, np.arange(1, parts) / parts) + 1, [len(symbol_counts)]])
        )
        ranges = list(zip(bounds.tolist(), bounds[1:].tolist(), strict=False))
        windows = self.rdd.flatMap(partial(_windows, ranges, len(symbol_counts), backwards))
        grouped = windows.groupByKey(len(ranges)).map(partial(_scan, ranges, max_order, min_count))
        found = [runs for _, runs in sorted(grouped.collect(), key=lambda pair: pair[0])]
        return Runs.joined(found, max_order)


def _windows(
    ranges: list[tuple[int, int]], num_symbols: int, backwards: bool, chunk: Chunk
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """For every range of first symbols the windows of a chunk: how many begin with each symbol, and their tails."""
    from .count_kernel import scatter_windows

    counts = np.bincount(chunk.symbols, minlength=num_symbols)
    for number, (first, last) in enumerate(ranges):
        sizes = counts[first:last]
        ends = np.zeros(num_symbols, np.int64)
        ends[first + 1 : last] = np.cumsum(sizes[:-1])
        keys = np.empty(sizes.sum(), np.uint64)
        scatter_windows(chunk.symbols, first, last, ends, keys, backwards)
        yield number, (sizes, keys)


def _scan(
    ranges: list[tuple[int, int]],
    max_order: int,
    min_count: int,
    group: tuple[int, Iterable[tuple[np.ndarray, np.ndarray]]],
) -> tuple[int, Runs]:
    """The n-grams of one range of first symbols, from the windows of all chunks."""
    number, parts = group
    first, last = ranges[number]
    sizes, keys = zip(*parts, strict=True)
    symbols = np.concatenate([np.repeat(np.arange(first, last, dtype=np.uint16), part) for part in sizes])
    windows = np.concatenate(keys)[np.argsort(symbols, kind="stable")]
    ends = np.concatenate([[0], np.cumsum(np.sum(sizes, axis=0))])
    return number, scan_windows(windows, range(first, last), ends, max_order, min_count)


def _symbols(settings: dict[str, Any], documents: Iterable[str]) -> Iterator[tuple[Counter[str], int]]:
    reader = CorpusReader(documents, **settings)
    yield Counter(reader.symbols()), reader.num_characters


def _chunks(settings: dict[str, Any], alphabet: Alphabet, documents: Iterable[str]) -> Iterator[Chunk]:
    return CorpusReader(documents, **settings).finish(alphabet).chunks()


def _merge(first: tuple[Counter[str], int], second: tuple[Counter[str], int]) -> tuple[Counter[str], int]:
    return first[0] + second[0], first[1] + second[1]


def spark_corpora(
    texts: Mapping[str, Any], level: str = "character", normalize: bool = True, lowercase: bool = True
) -> dict[str, SparkCorpus]:
    """Corpora on Spark, by one alphabet, for [`TermMinerModel.fit_corpora`].

    Args:
        texts: for every corpus, the domain's first, an RDD of strings, or a DataFrame with one column of strings.
        level, normalize, lowercase: see `Alphabet`.

    Raises:
        ImportError: pyspark is not installed.
        ValueError: a DataFrame with several columns.

    Example (``session`` is a ``SparkSession``):

    ```python
    >>> from hfblog import TermMinerConfig, TermMinerModel, spark_corpora
    >>> texts = {"domain": session.read.text("domain/*.txt"), "news": session.read.text("news/*.txt")}  # doctest: +SKIP
    >>> miner = TermMinerModel(TermMinerConfig()).fit_corpora(spark_corpora(texts))  # doctest: +SKIP

    ```
    """
    try:
        import pyspark  # noqa: F401
    except ImportError as error:
        raise ImportError("corpora on Spark need pyspark: pip install 'hfblog[spark]'") from error
    settings = {"level": level, "normalize": normalize, "lowercase": lowercase}
    rdds = {name: _strings(name, documents) for name, documents in texts.items()}
    found = {name: rdd.mapPartitions(partial(_symbols, settings)).reduce(_merge) for name, rdd in rdds.items()}
    alphabet = joint_alphabet([counts for counts, _ in found.values()], level, normalize, lowercase)
    return {
        name: SparkCorpus(alphabet, rdd.mapPartitions(partial(_chunks, settings, alphabet)), found[name][1])
        for name, rdd in rdds.items()
    }


def _strings(name: str, documents: Any) -> Any:
    if not hasattr(documents, "columns"):
        return documents
    if len(documents.columns) != 1:
        raise ValueError(f"{name} has the columns {', '.join(documents.columns)}; select the one of texts")
    return documents.rdd.map(lambda row: row[0])


__all__ = ["SparkCorpus", "spark_corpora"]

"""A corpus as numbered symbols, in memory or in a file on the disk: all that the miner ever reads of it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .alphabet import BREAK, LAST_HAN, MOST_SYMBOLS, Alphabet, character_symbols, word_tokens

CHARACTERS_AT_A_TIME = 2**22
SYMBOLS_IN_A_CHUNK = 2**24


class Chunk(NamedTuple):
    """A stretch of a corpus: whole documents, each with a break at its end."""

    symbols: np.ndarray  # (n,) uint16
    starts: np.ndarray  # (documents + 1,) int64, where each begins, and the end


class SymbolCorpus:
    """Documents as symbols of an alphabet.

    Args:
        alphabet: of how many symbols, the break being one.
        starts: for every chunk, where its documents begin, and its end.
        symbols: of every chunk, in memory.
        file: of all symbols, uint16, in place of that; it is removed with the corpus.
        num_characters: of the texts.

    Attributes:
        num_documents, num_symbols, num_characters: how many; breaks are no symbols.
    """

    def __init__(
        self,
        alphabet: Sized,
        starts: list[np.ndarray],
        symbols: list[np.ndarray] | None = None,
        file: str | Path | None = None,
        num_characters: int = 0,
    ):
        self.alphabet = alphabet
        self._starts, self._symbols, self._file = starts, symbols, file
        self.num_characters = num_characters
        self.num_documents = sum(len(part) - 1 for part in starts)
        self.num_symbols = sum(int(np.count_nonzero(chunk.symbols)) for chunk in self.chunks())
        if file is not None:
            weakref.finalize(self, Path(file).unlink, missing_ok=True)

    def chunks(self) -> Iterator[Chunk]:
        """Its parts, one after the other."""
        if self._symbols is not None:
            yield from map(Chunk, self._symbols, self._starts)
            return
        with open(self._file, "rb") as source:
            for starts in self._starts:
                yield Chunk(np.fromfile(source, np.uint16, int(starts[-1])), starts)

    def sum_over_chunks(self, function: Callable[[Chunk], Any]) -> Any:
        """The sum of what a function gives for every chunk: arrays, counters, or anything that can be added."""
        total = None
        for chunk in self.chunks():
            part = function(chunk)
            total = part if total is None else total + part
        return total

    def mapped(self, function: Callable[[Chunk], Chunk], alphabet: Sized) -> SymbolCorpus:
        """The corpus that a function makes of this one's chunks; in a file where this one is."""
        if self._symbols is not None:
            chunks = [function(chunk) for chunk in self.chunks()]
            return SymbolCorpus(alphabet, [c.starts for c in chunks], [c.symbols for c in chunks])
        file = temporary_file(Path(self._file).parent)
        starts = []
        try:
            with open(file, "wb") as target:
                for chunk in map(function, self.chunks()):
                    chunk.symbols.tofile(target)
                    starts.append(chunk.starts)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return SymbolCorpus(alphabet, starts, file=file)

    def window_runs(
        self, symbol_counts: np.ndarray, max_order: int, min_count: int, backwards: bool, windows_in_memory: int
    ) -> Any:
        """All frequent n-grams, read in one direction; see `count_ngrams`."""
        from .ngram_counts import read_windows

        return read_windows(self, symbol_counts, max_order, min_count, backwards, windows_in_memory)

    def renumbered(self, alphabet: Alphabet) -> SymbolCorpus:
        """The corpus by another alphabet; symbols that it lacks become breaks."""
        table = np.zeros(MOST_SYMBOLS + 1, np.uint16)
        table[1 : len(self.alphabet)] = [alphabet.ids.get(symbol, BREAK) for symbol in self.alphabet.symbols]
        corpus = self.mapped(lambda chunk: Chunk(table[chunk.symbols], chunk.starts), alphabet)
        corpus.num_characters = self.num_characters
        return corpus

    def extended(self, other: SymbolCorpus) -> SymbolCorpus:
        """This corpus and then another by the same alphabet, in memory."""
        chunks = [*self.chunks(), *other.chunks()]
        starts, symbols = [chunk.starts for chunk in chunks], [chunk.symbols for chunk in chunks]
        num_characters = self.num_characters + other.num_characters
        return SymbolCorpus(self.alphabet, starts, symbols, num_characters=num_characters)

    def symbol_counts(self) -> dict[str, int]:
        """How often each symbol occurs."""
        size = len(self.alphabet)
        counts = self.sum_over_chunks(lambda chunk: np.bincount(chunk.symbols, minlength=size))
        return {symbol: int(count) for symbol, count in zip(self.alphabet.symbols, counts[1:], strict=True) if count}

    def same_as(self, other: SymbolCorpus) -> bool:
        """Whether the other holds the same documents in the same order."""
        mine, others = (self.num_symbols, self.num_documents), (other.num_symbols, other.num_documents)
        return mine == others and self._digest() == other._digest()

    def _digest(self) -> bytes:
        digest = hashlib.blake2b()
        for chunk in self.chunks():
            digest.update(chunk.symbols.tobytes())
        return digest.digest()

    def in_one(self) -> Chunk:
        """All of it as one chunk, in memory."""
        chunks = list(self.chunks())
        offsets = np.cumsum([0] + [len(chunk.symbols) for chunk in chunks])
        starts = [chunk.starts[:-1] + offset for chunk, offset in zip(chunks, offsets, strict=False)]
        return Chunk(np.concatenate([chunk.symbols for chunk in chunks]), np.concatenate([*starts, offsets[-1:]]))


class CorpusReader:
    """Turns documents into a `SymbolCorpus`; several readers can then share one alphabet.

    Args:
        documents: texts; a line break in one is a break.
        level, normalize, lowercase: see `Alphabet`.
        directory: where symbols are kept in a file; in memory if None.

    Raises:
        TypeError: a document that is no string.
        OSError: the disk is full; nothing is left on it.
    """

    def __init__(
        self,
        documents: Iterable[str],
        level: str = "character",
        normalize: bool = True,
        lowercase: bool = True,
        directory: str | Path | None = None,
    ):
        self.level, self.normalize, self.lowercase = level, normalize, lowercase
        self.num_characters = 0
        self._seen = np.zeros(LAST_HAN + 1, bool)
        self._numbers: dict[str, int] = {}
        self._word_counts = np.zeros(0, np.int64)
        self._starts: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._file: Path | None = None
        if directory is not None:
            self._file = temporary_file(directory)
            self._remove = weakref.finalize(self, self._file.unlink, missing_ok=True)
        self._read(documents)

    def _read(self, documents: Iterable[str]) -> None:
        parts: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        size = 0
        for batch in batched(documents):
            codes, begins = self._codes(batch)
            self.num_characters += sum(map(len, batch))
            parts.append(codes)
            starts.append(begins[:-1] + size)
            size += len(codes)
            if size >= SYMBOLS_IN_A_CHUNK:
                self._keep(parts, starts, size)
                parts, starts, size = [], [], 0
        if parts:
            self._keep(parts, starts, size)

    def _keep(self, parts: list[np.ndarray], starts: list[np.ndarray], size: int) -> None:
        self._starts.append(np.concatenate([*starts, [size]]))
        codes = np.concatenate(parts)
        if self._file is None:
            self._parts.append(codes)
        else:
            with open(self._file, "ab") as target:
                codes.tofile(target)

    def _codes(self, batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Provisional numbers: code points, or words in the order in which they appear."""
        if self.level == "character":
            lengths = np.array([len(text) + 1 for text in batch])
            codes, places = character_symbols("\n".join(batch) + "\n", self.normalize)
            self._seen[codes] = True
            begins = np.searchsorted(places, np.concatenate([[0], np.cumsum(lengths)]))
            return codes, begins
        numbers, rows, begins = self._numbers, [], [0]
        for text in batch:
            for word, _, _ in word_tokens(text, self.normalize, self.lowercase):
                rows.append(0 if word is None else numbers.setdefault(word, len(numbers) + 1))
            rows.append(0)
            begins.append(len(rows))
        codes = np.array(rows, np.int32)
        counts = np.bincount(codes, minlength=len(numbers) + 1)
        counts[: len(self._word_counts)] += self._word_counts
        self._word_counts = counts
        return codes, np.array(begins)

    def symbols(self) -> dict[str, int]:
        """The symbols that occur: characters (with 1 each), or words and how often."""
        if self.level == "character":
            return {chr(code): 1 for code in np.flatnonzero(self._seen) if code != BREAK}
        return {word: int(self._word_counts[index]) for word, index in self._numbers.items()}

    def finish(self, alphabet: Alphabet) -> SymbolCorpus:
        """The corpus; symbols that the alphabet lacks become breaks. The reader is spent."""
        if self.level == "character":
            number = alphabet.number
        else:
            table = np.zeros(len(self._numbers) + 1, np.uint16)
            for word, index in self._numbers.items():
                table[index] = alphabet.ids.get(word, BREAK)
            number = table.__getitem__
        if self._file is None:
            parts = [number(self._parts.pop(0)) for _ in range(len(self._parts))]
            return SymbolCorpus(alphabet, self._starts, parts, num_characters=self.num_characters)
        with open(self._file, "r+b") as file:
            read = written = 0
            for starts in self._starts:  # two bytes in place of four: what is written never reaches what is still to be read
                file.seek(read)
                codes = np.fromfile(file, np.int32, int(starts[-1]))
                read += codes.nbytes
                ids = number(codes)
                file.seek(written)
                ids.tofile(file)
                written += ids.nbytes
                file.flush()
            file.truncate(written)
        self._remove.detach()
        return SymbolCorpus(alphabet, self._starts, file=self._file, num_characters=self.num_characters)


def temporary_file(directory: str | Path) -> Path:
    """An empty file for symbols; the directory is made where it is missing."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="symbols-", suffix=".bin", dir=directory)
    os.close(handle)
    return Path(name)


def batched(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents, some four million characters at a time.

    Raises:
        TypeError: a document that is no string.
    """
    batch: list[str] = []
    size = 0
    for document in documents:
        if not isinstance(document, str):
            raise TypeError(f"a document is a string, got {type(document).__name__} {document!r:.80}")
        batch.append(document)
        size += len(document) + 1
        if size >= CHARACTERS_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def joint_alphabet(
    counts: Iterable[dict[str, int]], level: str = "character", normalize: bool = True, lowercase: bool = True
) -> Alphabet:
    """One alphabet of all corpora; where they have more symbols than it can number, the frequent ones.

    Args:
        counts: for every corpus, `CorpusReader.symbols`.
    """
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    kept = sorted(total, key=lambda symbol: (-total[symbol], symbol))[:MOST_SYMBOLS]
    return Alphabet(sorted(kept), level, normalize, lowercase)


__all__ = ["Chunk", "CorpusReader", "SymbolCorpus", "batched", "joint_alphabet"]

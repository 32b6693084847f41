"""Cutting texts into the words of a lexicon."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .alphabet import BREAK, Alphabet
from .discovery import UNKNOWN_SCORE, best_ends, build_trie_of
from .symbol_corpus import batched

SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], np.uint32)

# Behind each word and each text while texts are cut into strings: they are spaces, which no word holds.
WORD_END, TEXT_END = "\x1f", "\x1e"


class Cut(NamedTuple):
    """Texts, one after the other, and their words."""

    codes: np.ndarray  # (n,) uint32, code points
    begins: np.ndarray  # (words,) int64, where in them each word begins
    ends: np.ndarray  # (words,) int64, and ends
    bounds: np.ndarray  # (texts + 1,) int64, how many words lie before each text, and in all
    offsets: np.ndarray  # (texts,) int64, where each text begins


class Segmenter:
    """The segmentation of the highest sum of scores.

    Args:
        words: tuples of symbol ids.
        scores: ``(n,)``, nats.
        alphabet: numbers the symbols.
    """

    def __init__(self, words: Sequence[tuple[int, ...]], scores: np.ndarray, alphabet: Alphabet):
        self.alphabet = alphabet
        self.scores = np.asarray(scores, np.float64)
        try:
            self.trie: Any = build_trie_of(list(words))
        except ImportError:  # without numba: the same, slowly
            self.trie = None
            self.values = dict(zip(words, self.scores.tolist(), strict=True))
            self.longest = max(map(len, words))

    def ends(self, symbols: np.ndarray) -> np.ndarray:
        """``(n + 1,)`` bool, whether a word, or a symbol that no word holds, ends before symbol i."""
        if self.trie is not None:
            return best_ends(self.trie, self.scores, symbols) > 0
        found = np.zeros(len(symbols) + 1, bool)
        whole = symbols.tolist()
        begin = 0
        for place in range(len(whole) + 1):
            if place == len(whole) or whole[place] == BREAK:
                for end in self._best_ends(tuple(whole[begin:place])):
                    found[begin + end] = True
                begin = place + 1
        return found

    def _best_ends(self, run: tuple[int, ...]) -> Iterator[int]:
        best, back = [0.0] + [-math.inf] * len(run), [0] * (len(run) + 1)
        for begin in range(len(run)):
            for end in range(begin + 1, min(begin + self.longest, len(run)) + 1):
                score = self.values.get(run[begin:end], UNKNOWN_SCORE if end == begin + 1 else None)
                if score is not None and best[begin] + score > best[end]:
                    best[end], back[end] = best[begin] + score, begin
        end = len(run)
        while end > 0:
            yield end
            end = back[end]

    def spans(self, texts: Iterable[str]) -> Iterator[list[tuple[int, int]]]:
        """Where the words of each text begin and end.

        Marks are words of their own, equal ones in a row one; spaces are left out.
        """
        for batch in batched(texts):
            _, begins, ends, bounds, offsets = self._cut(batch)
            for offset, low, high in zip(offsets.tolist(), bounds.tolist(), bounds[1:].tolist(), strict=False):
                yield list(zip((begins[low:high] - offset).tolist(), (ends[low:high] - offset).tolist(), strict=True))

    def words(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The words of each text, those between `spans`; as strings of one long string they take a fraction of the time."""
        for batch in batched(texts):
            codes, begins, ends, bounds, _ = self._cut(batch)
            lengths = ends - begins
            before = np.concatenate([[0], np.cumsum(lengths)])
            num_words, num_texts = len(lengths), len(batch)
            word_ends = before[1:] + np.arange(num_words) + np.repeat(np.arange(num_texts), np.diff(bounds))
            text_ends = before[bounds[1:]] + bounds[1:] + np.arange(num_texts)
            spread = np.empty(before[-1] + num_words + num_texts, np.uint32)
            of_words = np.ones(len(spread), bool)
            for places, mark in ((word_ends, WORD_END), (text_ends, TEXT_END)):
                spread[places], of_words[places] = ord(mark), False
            spread[of_words] = codes[np.repeat(begins - before[:-1], lengths) + np.arange(before[-1])]
            for words in spread.tobytes().decode("utf-32-le", "surrogatepass").split(TEXT_END)[:-1]:
                yield words[:-1].split(WORD_END) if words else []

    def _cut(self, texts: list[str]) -> Cut:
        joined = "\n".join(texts) + "\n"
        lengths = np.array([len(text) + 1 for text in texts])
        offsets = np.cumsum(lengths) - lengths
        if self.alphabet.level == "character":
            symbols, begins, ends = self.alphabet.encode(joined)
        else:
            symbols, begins, ends = self._encode_words(texts, offsets)
        every_code = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        codes = every_code[begins]
        breaks = symbols == BREAK
        starts = np.ones(len(symbols), bool)
        starts[1:] = breaks[1:] | breaks[:-1] | self.ends(symbols)[1:-1]
        starts[1:] &= ~(breaks[1:] & breaks[:-1] & (codes[1:] == codes[:-1]) & (begins[1:] == ends[:-1]))
        firsts = np.flatnonzero(starts)
        word_begins = begins[firsts]
        word_ends = ends[np.append(firsts[1:], len(symbols)) - 1]
        words = ~np.isin(codes[firsts], SPACES)
        word_begins, word_ends = word_begins[words], word_ends[words]
        bounds = np.searchsorted(word_begins, np.append(offsets, len(joined)))
        return Cut(every_code, word_begins, word_ends, bounds, offsets)

    def _encode_words(self, texts: list[str], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words of all texts, and a break behind each."""
        parts = []
        for text, offset in zip(texts, offsets.tolist(), strict=True):
            symbols, begins, ends = self.alphabet.encode(text)
            end = offset + len(text)
            parts.append((np.append(symbols, BREAK), np.append(begins + offset, end), np.append(ends + offset, end + 1)))
        symbols, begins, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
        return symbols.astype(np.uint16), begins, ends


__all__ = ["Segmenter"]

"""Words of a corpus that come from nothing but the corpus: candidates, their statistics, their scores.

Sources: minimum entropy (kexue.fm 5476), contrast and chains of n-grams (kexue.fm 4256, 6540, 6920), variation of branching
entropy (Magistry and Sagot 2012), TopWORDS (Deng et al. 2016, doi:10.1073/pnas.1510510113).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from .ngram_counts import MOST_ORDER, NgramCounts, count_ngrams, pack
from .symbol_corpus import Chunk, SymbolCorpus

# Of a symbol that no word holds.
UNKNOWN_SCORE = -30.0

METHODS = ("combined", "ngram_cohesion", "branching_entropy", "pmi_cut", "topwords")

# Words up to so many symbols are scored by their autonomy, too: beyond, estimates are too rough to help.
LONGEST_SCORED = 3

# Below so many symbols candidates are taken from all n-grams, and their probabilities settle by rounds of segmentation.
SMALL_CORPUS = 150_000
SMALL_CORPUS_ROUNDS = 3

# Nats of cohesion above its threshold beyond which a word is as good as any other.
ENOUGH_COHESION = 4.0


@dataclass
class Tally:
    """Counts over a part of a corpus that add up."""

    counts: np.ndarray
    pieces: Counter[bytes] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        pieces = self.pieces.copy()
        pieces.update(other.pieces)
        return Tally(self.counts + other.counts, pieces)


@dataclass
class Lexicon:
    """Words, or compounds of words, and what the corpus says of them.

    Attributes:
        words: each a tuple of symbol ids.
        counts: ``(n,)`` int64, how often each is a word, or several, of the segmented corpus.
        occurrences: ``(n,)`` int64, how often its symbols stand there, within other words, too.
        documents: ``(n,)`` int64, in how many documents it is one.
        log_shares: ``(n,)`` float64, log-probability of a word, nats.
        bonuses: ``(n,)`` float64, what the segmentation adds to that, nats.
        cohesions: ``(n,)`` float64, nats: least over all splits of ln N #w / #left #right; 0 for single symbols.
        left_entropies, right_entropies: ``(n,)`` float64, nats.
        autonomies: ``(n,)`` float64, standard deviations: how much more open its ends are than those of other n-grams.
        cost_reductions: ``(n,)`` float64, nats a character: how much cheaper a corpus of characters is with the word as one.
        wordhoods: ``(n,)`` float64, by which the lexicon is ranked.
    """

    words: list[tuple[int, ...]]
    counts: np.ndarray
    occurrences: np.ndarray
    documents: np.ndarray
    log_shares: np.ndarray
    bonuses: np.ndarray
    cohesions: np.ndarray
    left_entropies: np.ndarray
    right_entropies: np.ndarray
    autonomies: np.ndarray
    cost_reductions: np.ndarray
    wordhoods: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    @property
    def scores(self) -> np.ndarray:
        """Of the segmentation, which maximises their sum, ``(n,)`` float64, nats."""
        return self.log_shares + self.bonuses


# --- quantities of n-grams ---


def cohesions(counts: NgramCounts) -> list[np.ndarray]:
    """For every order the cohesion of its n-grams, nats: the least over two-way splits of ln N #w / (#left #right)."""
    total = math.log(max(1, counts.totals[0]))
    found = [np.zeros(len(counts[1]))]
    for table in counts.tables[1:]:
        least = np.full(len(table), np.inf)
        whole = np.log(table.counts)
        for left in range(1, table.order):
            right = table.order - left
            heads = counts[left].find(table.keys >> np.uint64(16 * right))
            tails = counts[right].find(table.keys & np.uint64(2 ** (16 * right) - 1))
            parts = np.log(counts[left].counts[heads]) + np.log(counts[right].counts[tails])
            np.minimum(least, total + whole - parts, out=least)
        found.append(least)
    return found


def autonomies(counts: NgramCounts) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Variation of branching entropy to the left and to the right of every n-gram, standardised within each order.

    How much the entropy grows with the n-gram's own last (first) symbol, against the other n-grams of its length (Magistry
    and Sagot 2012, nVBE).
    """
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for table in counts.tables:
        left, right = table.left_entropies, table.right_entropies
        if table.order > 1:
            shorter = counts[table.order - 1]
            left = left - shorter.left_entropies[shorter.find(table.keys & np.uint64(2 ** (16 * (table.order - 1)) - 1))]
            right = right - shorter.right_entropies[shorter.find(table.keys >> np.uint64(16))]
        for side, values in zip(sides, (left, right), strict=True):
            deviation = values.std() if len(values) else 0.0
            side.append((values - values.mean()) / deviation if deviation > 0 else np.zeros(len(values)))
    return sides


def cost_reduction(p_whole: np.ndarray, p_parts: np.ndarray, repeats: np.ndarray | None = None) -> np.ndarray:
    """By how much the cost of a text per unit falls when several units become one, nats (kexue.fm 5476).

    With H the entropy of the units and l their mean length, H / l falls by exactly this over l.

    Args:
        p_whole: ``(n,)``, share of the units that the whole would replace, each time in place of all its parts.
        p_parts: ``(n, k)``, shares of its different parts; 0 fills up.
        repeats: ``(n, k)``, how often each part stands in the whole; once by default.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog.models.term_miner.discovery import cost_reduction
    >>> cost_reduction(np.array([0.1]), np.array([[0.1, 0.1]])).round(4).tolist()
    [0.3251]

    ```
    """

    def x_ln_x(x: np.ndarray) -> np.ndarray:
        x = np.maximum(x, 0)
        return x * np.log(np.where(x > 0, x, 1))

    repeats = (p_parts > 0).astype(float) if repeats is None else repeats
    left = p_parts - repeats * p_whole[:, None]
    units = 1 - (repeats.sum(1) - 1) * p_whole
    return x_ln_x(p_whole) + (x_ln_x(left) - x_ln_x(p_parts)).sum(1) - x_ln_x(units)


# --- passes over a corpus ---


def build_trie_of(words: list[tuple[int, ...]]) -> Any:
    """A trie of words, each a tuple of symbol ids."""
    from .trie_kernel import build_trie

    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    return build_trie(np.fromiter(chain.from_iterable(words), np.uint16), ends)


def _trie_of_grams(grams: list[np.ndarray]) -> Any:
    """Of n-grams of several orders, ``(m, n)`` each."""
    from .trie_kernel import build_trie

    ends = np.cumsum(np.concatenate([np.full(len(part), part.shape[1]) for part in grams]), dtype=np.int64)
    return build_trie(np.concatenate([part.ravel() for part in grams]), ends)


def best_ends(trie: Any, scores: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """The segmentation of the highest sum of scores, ``(n + 1,)`` int32: 2 + w where word w ends before symbol i.

    It is 1 where a symbol that no word holds ends, and 0 elsewhere.
    """
    from .trie_kernel import segment

    ends = np.zeros(len(symbols) + 1, np.int32)
    segment(symbols, *trie, scores, UNKNOWN_SCORE, ends)
    return ends


def count_pieces(trie: Any, num_members: int, order: int, longest: int, chunk: Chunk) -> Tally:
    """Pieces of a chunk that is cut wherever no member of the trie spans the gap; see the kernel for what counts."""
    from . import trie_kernel

    counts = np.zeros(num_members, np.int64)
    begins, ends = np.empty((2, len(chunk.symbols) // (order + 1) + 1), np.int64)
    found = trie_kernel.count_pieces(chunk.symbols, *trie, order, counts, begins, ends)
    pieces = Counter(
        chunk.symbols[begin:end].tobytes()
        for begin, end in zip(begins[:found].tolist(), ends[:found].tolist(), strict=True)
        if end - begin <= longest
    )
    return Tally(counts, pieces)


def count_all_pieces(trie: Any, longest: int, chunk: Chunk) -> Tally:
    """All pieces of a chunk that is cut wherever no member of the trie spans the gap."""
    from .trie_kernel import mark_chains

    joined = np.zeros(len(chunk.symbols), np.uint8)
    mark_chains(chunk.symbols, *trie, joined)
    begins = np.flatnonzero((chunk.symbols > 0) & (joined == 0))
    # the next piece, or the break before it
    stops = np.flatnonzero((chunk.symbols == 0) | (joined == 0))
    ends = stops[np.searchsorted(stops, begins, side="right")]
    short = ends - begins <= longest
    bounds = zip(begins[short].tolist(), ends[short].tolist(), strict=True)
    return Tally(np.array([len(begins)]), Counter(chunk.symbols[begin:end].tobytes() for begin, end in bounds))


def segment_counts(trie: Any, scores: np.ndarray, chunk: Chunk) -> np.ndarray:
    """Counts of words in the best segmentation of a chunk, and in how many documents each is, ``(2, n)``."""
    from . import trie_kernel

    counts = np.zeros((2, len(scores)), np.int64)
    last = np.full(len(scores), -1, np.int64)
    trie_kernel.count_words(best_ends(trie, scores, chunk.symbols), chunk.starts, counts[0], counts[1], last)
    return counts


def occurrence_counts(trie: Any, num_words: int, chunk: Chunk) -> np.ndarray:
    """Occurrences of words in a chunk, those within other words, too, and in how many documents, ``(2, n)``."""
    from . import trie_kernel

    counts = np.zeros((2, num_words), np.int64)
    last = np.full(num_words, -1, np.int64)
    trie_kernel.count_occurrences(chunk.symbols, chunk.starts, *trie, counts[0], counts[1], last)
    return counts


def expected_counts(trie: Any, scores: np.ndarray, chunk: Chunk) -> np.ndarray:
    """How often each word is expected in a random segmentation by the words' probabilities, ``(n,)`` float64."""
    from . import trie_kernel

    counts = np.zeros(len(scores))
    trie_kernel.expected_words(chunk.symbols, *trie, scores, UNKNOWN_SCORE, counts)
    return counts


def neighbours(trie: Any, num_words: int, most: int, chunk: Chunk) -> Tally:
    """Left and right neighbours of the occurrences of the first words of a trie: counts of (word, side, symbol).

    Args:
        most: that the whole corpus has at most so many of these occurrences.
    """
    from . import trie_kernel

    found = np.empty((most, 3), np.int64)
    found = found[: trie_kernel.occurrences_of_first(chunk.symbols, *trie, num_words, found)]
    sides = [(found[:, 0] * 2 + side) << 16 | found[:, 1 + side] for side in (0, 1)]
    keys, counts = np.unique(np.concatenate(sides), return_counts=True)
    return Tally(np.zeros(0, np.int64), Counter(dict(zip(keys.tolist(), counts.tolist(), strict=True))))


# --- candidates ---


def _words_of(grams: np.ndarray) -> list[tuple[int, ...]]:
    return list(map(tuple, grams.tolist()))


def _as_word(piece: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(piece, np.uint16).tolist())


def _chained(corpus: SymbolCorpus, config: Any, counts: NgramCounts, cohesion: list[np.ndarray]) -> dict[tuple[int, ...], int]:
    """Pieces of the corpus that is cut where no n-gram of enough cohesion spans the gap (kexue.fm 6920).

    A piece of three or four symbols must be such an n-gram itself, and every four symbols of a longer one.
    """
    thresholds = config.thresholds
    members = [counts[1].grams]
    for order in range(2, config.max_ngram + 1):
        members.append(counts[order].grams[cohesion[order - 1] >= thresholds[order - 2]])
    trie, size = _trie_of_grams(members), sum(map(len, members))
    tally = corpus.sum_over_chunks(partial(count_pieces, trie, size, config.max_ngram, config.max_term_length))
    words, end = {}, 0
    for grams in members:
        begin, end = end, end + len(grams)
        numbers = tally.counts[begin:end]
        kept = (numbers >= counts.min_count) | (grams.shape[1] == 1)
        words |= dict(zip(_words_of(grams[kept]), numbers[kept].tolist(), strict=True))
    return words | {_as_word(piece): count for piece, count in tally.pieces.items() if count >= counts.min_count}


def _pmi_cut(corpus: SymbolCorpus, config: Any, counts: NgramCounts) -> dict[tuple[int, ...], int]:
    """Pieces of the corpus that is cut between symbols that attract each other too little (kexue.fm 5476, nlp-zero)."""
    single, pairs = counts[1], counts[2]
    shares = single.counts / counts.totals[0]
    first, second = pairs.grams.T.astype(np.uint64)
    p_pairs = pairs.counts / counts.totals[1]
    pmi = np.log(p_pairs) - np.log(shares[single.find(first)]) - np.log(shares[single.find(second)])
    strong = (p_pairs > config.min_proba) & (pmi > config.min_pmi)
    tally = corpus.sum_over_chunks(partial(count_all_pieces, _trie_of_grams([pairs.grams[strong]]), config.max_term_length))
    least = config.min_proba * tally.counts[0]
    words = {_as_word(piece): count for piece, count in tally.pieces.items() if count > least}
    return _without_redundant(words) if config.dedup else words


def _without_redundant(words: dict[tuple[int, ...], int]) -> dict[tuple[int, ...], int]:
    """Drop words that their parts explain, the longest first; their parts get what they counted (kexue.fm 5476).

    A word w of l symbols stays if ln p(w) exceeds the sum over its best parts by l - 1 nats.
    """
    total = math.log(sum(words.values()))
    kept = dict(words)
    longest = max(map(len, words), default=0)
    for word in sorted(words, key=lambda word: (-len(word), word)):
        if len(word) == 1:
            continue
        count = kept.pop(word)
        # the best parts, by the words that are left
        best = [0.0] + [-math.inf] * len(word)
        back = [0] * (len(word) + 1)
        for begin in range(len(word)):
            for end in range(begin + 1, min(len(word), begin + longest) + 1):
                part = kept.get(word[begin:end])
                if part:
                    score = math.log(part) - total
                elif end == begin + 1:
                    score = -100.0
                else:
                    continue
                if best[begin] + score > best[end]:
                    best[end], back[end] = best[begin] + score, begin
        if math.log(count) - total - best[-1] >= len(word) - 1:
            kept[word] = count
            continue
        end = len(word)
        while end > 0:
            part = word[back[end] : end]
            kept[part] = kept.get(part, 0) + count
            end = back[end]
    return kept


def _frequent(config: Any, counts: NgramCounts, cohesion: list[np.ndarray] | None = None) -> dict[tuple[int, ...], int]:
    """Every n-gram that is frequent enough, and coheres, where that is asked for."""
    words: dict[tuple[int, ...], int] = {}
    for table, least in zip(counts.tables, [-np.inf, *config.thresholds], strict=False):
        kept = slice(None) if cohesion is None else cohesion[table.order - 1] >= least
        words |= dict(zip(_words_of(table.grams[kept]), table.counts[kept].tolist(), strict=True))
    return words


# --- the whole way ---


class _Statistics:
    """Quantities of any words, by the tables where they are short and by further passes where they are long."""

    def __init__(self, corpus: SymbolCorpus, counts: NgramCounts):
        self.corpus, self.counts = corpus, counts
        self.cohesion, self.sides = cohesions(counts), autonomies(counts)
        self.order = len(counts.tables)

    def rows(self, words: list[tuple[int, ...]], places: np.ndarray, part: slice) -> np.ndarray:
        grams = np.array([words[place][part] for place in places], np.uint16)
        return self.counts[grams.shape[1]].find(pack(grams))

    def autonomy(self, words: list[tuple[int, ...]]) -> np.ndarray:
        """Of the first symbols of a word to the left and its last ones to the right, as many as there are tables for."""
        values = np.full(len(words), -4.0)  # of what is rarer than all that was counted
        lengths = np.array([min(len(word), self.order) for word in words])
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            heads = self.rows(words, places, slice(None, int(length)))
            tails = self.rows(words, places, slice(-int(length), None))
            known = (heads >= 0) & (tails >= 0)
            sums = self.sides[0][length - 1][heads] + self.sides[1][length - 1][tails]
            values[places] = np.where(known, sums, -4.0)
        return values

    def quantities(self, words: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Occurrences, cohesion and entropies, ``(n,)`` each, all exact."""
        names = ("occurrences", "cohesions", "left_entropies", "right_entropies")
        found = {name: np.zeros(len(words), np.int64 if name == "occurrences" else np.float64) for name in names}
        lengths = np.array([len(word) for word in words])
        for order in range(1, self.order + 1):
            places = np.flatnonzero(lengths == order)
            if not len(places):
                continue
            rows = self.rows(words, places, slice(None))
            known, table = rows >= 0, self.counts[order]
            places, rows = places[known], rows[known]
            found["occurrences"][places] = table.counts[rows]
            found["cohesions"][places] = self.cohesion[order - 1][rows]
            found["left_entropies"][places] = table.left_entropies[rows]
            found["right_entropies"][places] = table.right_entropies[rows]
        rare = [word for word, count in zip(words, found["occurrences"], strict=True) if not count]
        if rare:
            self._of_rare(words, rare, found)
        return found

    def _of_rare(self, words: list[tuple[int, ...]], rare: list[tuple[int, ...]], found: dict[str, np.ndarray]) -> None:
        """Words that the tables lack, being too long or too rare: they and all their parts are counted in two passes."""
        parts = {word[begin:end] for word in rare for begin in range(len(word)) for end in range(begin + 1, len(word) + 1)}
        known = list(rare) + sorted(parts - set(rare))
        trie = build_trie_of(known)
        counts = self.corpus.sum_over_chunks(partial(occurrence_counts, trie, len(known)))[0]
        number = {word: index for index, word in enumerate(known)}
        most = int(counts[: len(rare)].sum())
        tally = self.corpus.sum_over_chunks(partial(neighbours, trie, len(rare), most))
        logs, total = np.zeros((len(rare), 2)), math.log(self.counts.totals[0])
        for key, count in sorted(tally.pieces.items()):
            if key & 0xFFFF:  # a break is a neighbour of its own, each time
                logs[divmod(key >> 16, 2)] += count * math.log(count)
        places = {word: place for place, word in enumerate(words)}
        for index, word in enumerate(rare):
            place, count = places[word], int(counts[index])
            found["occurrences"][place] = count
            if not count:
                continue
            found["left_entropies"][place], found["right_entropies"][place] = np.maximum(
                math.log(count) - logs[index] / count, 0
            )
            if len(word) > 1:
                halves = [(counts[number[word[:cut]]], counts[number[word[cut:]]]) for cut in range(1, len(word))]
                found["cohesions"][place] = total + math.log(count) - max(math.log(a) + math.log(b) for a, b in halves)

    def cost_reductions(self, words: list[tuple[int, ...]], occurrences: np.ndarray) -> np.ndarray:
        """Of the word in place of its symbols, nats a character."""
        shares = np.zeros(2**16)
        shares[self.counts[1].keys.astype(np.int64)] = self.counts[1].counts / self.counts.totals[0]
        lengths = np.array([len(word) for word in words])
        parts, repeats = np.zeros((2, len(words), int(lengths.max())))
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            symbols = np.array([words[place] for place in places])
            equal = symbols[:, :, None] == symbols[:, None]
            first = equal.argmax(2) == np.arange(length)  # a symbol that stands twice is one part
            parts[places, :length] = np.where(first, shares[symbols], 0.0)
            repeats[places, :length] = np.where(first, equal.sum(2), 0)
        reductions = cost_reduction(occurrences / self.counts.totals[0], parts, repeats)
        return np.where(lengths == 1, 0.0, reductions)


def default_min_count(num_symbols: int) -> int:
    """A count below which nothing is looked at: 3 up to two million symbols, growing with the root of the size."""
    return max(3, math.ceil(math.sqrt(num_symbols / 200_000)))


def _min_count(corpus: SymbolCorpus, config: Any) -> int:
    return config.min_count or default_min_count(corpus.num_symbols)


def _is_small(corpus: SymbolCorpus, config: Any) -> bool:
    """Whether too few words of a corpus stand alone between gaps for the default method to find them so."""
    return config.method == "combined" and corpus.num_symbols < SMALL_CORPUS


def discover(corpus: SymbolCorpus, config: Any) -> Lexicon:
    """The lexicon of a corpus.

    Args:
        corpus: with at least one symbol.
        config: a [`TermMinerConfig`].

    Raises:
        ValueError: nothing in the corpus is frequent enough.
        ImportError: numba is not installed.
    """
    min_count = _min_count(corpus, config)
    counts = count_ngrams(corpus, MOST_ORDER, min_count)
    if not len(counts[1]):
        raise ValueError(
            f"no symbol of the corpus occurs min_count={min_count} times; it has {corpus.num_symbols:,} symbols in "
            f"{corpus.num_documents:,} documents"
        )
    statistics = _Statistics(corpus, counts)
    if config.method == "pmi_cut":
        found = _pmi_cut(corpus, config, counts)
    elif config.method in ("branching_entropy", "topwords"):
        found = _frequent(config, counts)
    elif _is_small(corpus, config):
        found = _frequent(config, counts, statistics.cohesion)
    else:
        found = _chained(corpus, config, counts, statistics.cohesion)
    words = sorted(found, key=lambda word: (-found[word], word))
    trie = build_trie_of(words)
    log_shares, bonuses = _scores(config, statistics, words, trie, np.array([found[word] for word in words], float))
    segmented = corpus.sum_over_chunks(partial(segment_counts, trie, log_shares + bonuses))
    # what the segmentation never uses is no word; single symbols stay, for other texts
    used = [place for place, word in enumerate(words) if segmented[0][place] or len(word) == 1]
    return _lexicon(config, statistics, [words[place] for place in used], segmented[:, used], log_shares[used], bonuses[used])


def _scores(
    config: Any, statistics: _Statistics, words: list[tuple[int, ...]], trie: Any, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of words, and what more they are worth to the segmentation, nats."""
    corpus = statistics.corpus
    lengths = np.array([len(word) for word in words])
    log_shares = _log_shares(counts)
    if config.method == "topwords":
        return _expectation_maximization(corpus, config, trie, log_shares), np.zeros(len(words))
    bonuses = np.zeros(len(words))
    if config.method == "branching_entropy":
        return log_shares, statistics.autonomy(words) * lengths - log_shares
    if config.method == "combined":
        short = lengths <= LONGEST_SCORED
        bonuses[short] = config.autonomy_weight * statistics.autonomy(words)[short]
        bonuses[lengths == 1] -= config.single_symbol_penalty
    for _ in range(max(config.em_rounds, SMALL_CORPUS_ROUNDS if _is_small(corpus, config) else 0)):
        segmented = corpus.sum_over_chunks(partial(segment_counts, trie, log_shares + bonuses))
        log_shares = _log_shares(segmented[0].astype(float))
    return log_shares, bonuses


def _log_shares(counts: np.ndarray) -> np.ndarray:
    """Log-probabilities; a word that was not seen counts a tenth."""
    return np.log(np.maximum(counts, 0.1) / max(1.0, counts.sum()))


def _expectation_maximization(corpus: SymbolCorpus, config: Any, trie: Any, scores: np.ndarray) -> np.ndarray:
    """Maximum likelihood of the corpus as independent words, whose segmentation is not known (Deng et al. 2016)."""
    for _ in range(config.em_rounds or 10):
        expected = corpus.sum_over_chunks(partial(expected_counts, trie, scores))
        scores = np.log(np.maximum(expected, 1e-6) / expected.sum())
    return scores


def _lexicon(
    config: Any,
    statistics: _Statistics,
    words: list[tuple[int, ...]],
    segmented: np.ndarray,
    log_shares: np.ndarray,
    bonuses: np.ndarray,
) -> Lexicon:
    quantities = statistics.quantities(words)
    autonomy = statistics.autonomy(words)
    lengths = np.array([len(word) for word in words])
    wordhoods = _wordhoods(config, segmented[0], autonomy, quantities["cohesions"], lengths)
    order = np.argsort(-wordhoods, kind="stable")
    columns = {
        "counts": segmented[0],
        "documents": segmented[1],
        "log_shares": log_shares,
        "bonuses": bonuses,
        "autonomies": autonomy,
        "cost_reductions": statistics.cost_reductions(words, quantities["occurrences"]),
        "wordhoods": wordhoods,
    }
    ordered = {name: values[order] for name, values in (columns | quantities).items()}
    return Lexicon([words[place] for place in order], **ordered)


def _wordhoods(config: Any, counts: np.ndarray, autonomy: np.ndarray, cohesion: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What a lexicon is ranked by, nats: frequent, open at its ends, and held together within."""
    thresholds = np.array([0.0, 0.0, *config.thresholds])[np.minimum(lengths, config.max_ngram)]
    excess = np.clip(cohesion - thresholds, -ENOUGH_COHESION, ENOUGH_COHESION)
    return np.log(counts + 0.5) + 0.5 * autonomy + 0.8 * excess


# --- words of words ---


def number_words(trie: Any, scores: np.ndarray, numbers: np.ndarray, chunk: Chunk) -> Chunk:
    """A chunk whose symbols are the words of the best segmentation, by their numbers."""
    from . import trie_kernel

    ends = best_ends(trie, scores, chunk.symbols)
    out, starts = np.empty(len(chunk.symbols), np.uint16), np.empty(len(chunk.starts), np.int64)
    size = trie_kernel.number_words(chunk.symbols, ends, chunk.starts, numbers, out, starts)
    return Chunk(out[:size].copy(), starts)


def discover_compounds(corpus: SymbolCorpus, lexicon: Lexicon, config: Any) -> Lexicon:
    """Terms of several words, found as words are found in symbols: by n-grams of the segmented corpus.

    A compound of two to four words coheres (``compound_cohesion``), and its ends are open: both entropies reach
    ``compound_entropy``, and neither its variation of entropy is below the average of n-grams of its length.
    """
    # 16 bits number the words; rarer ones than these are in no frequent compound
    frequent = np.argsort(-lexicon.counts, kind="stable")[: 2**16 - 1]
    frequent = frequent[lexicon.counts[frequent] > 0]
    numbers = np.zeros(len(lexicon), np.uint16)
    numbers[frequent] = np.arange(1, len(frequent) + 1)
    words = corpus.mapped(
        partial(number_words, build_trie_of(lexicon.words), lexicon.scores, numbers), range(len(frequent) + 1)
    )
    counts = count_ngrams(words, MOST_ORDER, _min_count(corpus, config))
    statistics = _Statistics(words, counts)
    known = set(lexicon.words)
    grams, compounds, rows = [], [], []
    for table in counts.tables[1:]:
        place = table.order - 1
        open_ends = np.minimum(table.left_entropies, table.right_entropies) >= config.compound_entropy
        free = np.minimum(statistics.sides[0][place], statistics.sides[1][place]) >= 0
        kept = np.flatnonzero((statistics.cohesion[place] >= config.compound_cohesion) & open_ends & free)
        for row, gram in zip(kept.tolist(), table.grams[kept].tolist(), strict=True):
            compound = tuple(chain.from_iterable(lexicon.words[frequent[number - 1]] for number in gram))
            # of two segmentations of one string the first, which has fewer words, and is the more frequent one as a rule
            if len(compound) <= config.max_term_length and compound not in known:
                known.add(compound)
                grams.append(tuple(gram))
                compounds.append(compound)
                rows.append((place, row))
    return _compound_lexicon(corpus, config, statistics, grams, compounds, rows)


def _compound_lexicon(
    corpus: SymbolCorpus,
    config: Any,
    statistics: _Statistics,
    grams: list[tuple[int, ...]],
    compounds: list[tuple[int, ...]],
    rows: list[tuple[int, int]],
) -> Lexicon:
    """Compounds with their statistics.

    Args:
        statistics: of the corpus of words.
        grams: every compound as word numbers.
        compounds: every compound as symbols.
        rows: the table, and the row of it, where every compound is.
    """
    tables, (left, right) = statistics.counts.tables, statistics.sides

    def column(of: Any) -> np.ndarray:
        return np.array([of(place)[row] for place, row in rows])

    if not compounds:
        nothing = [np.empty(0, np.int64)] * 3 + [np.empty(0)] * 8
        return Lexicon([], *nothing)
    found = statistics.corpus.sum_over_chunks(partial(occurrence_counts, build_trie_of(grams), len(grams)))
    occurrences = corpus.sum_over_chunks(partial(occurrence_counts, build_trie_of(compounds), len(compounds)))[0]
    autonomy = column(lambda place: left[place] + right[place])
    cohering = column(lambda place: statistics.cohesion[place])
    lengths = np.array([len(gram) for gram in grams])
    columns = {
        "counts": found[0],
        "documents": found[1],
        "occurrences": occurrences,
        "log_shares": _log_shares(found[0].astype(float)),
        "bonuses": np.zeros(len(grams)),
        "cohesions": cohering,
        "left_entropies": column(lambda place: tables[place].left_entropies),
        "right_entropies": column(lambda place: tables[place].right_entropies),
        "autonomies": autonomy,
        "cost_reductions": statistics.cost_reductions(grams, found[0]),
        "wordhoods": _wordhoods(config, found[0], autonomy, cohering, lengths),
    }
    order = np.argsort(-columns["wordhoods"], kind="stable")
    return Lexicon([compounds[place] for place in order], **{name: values[order] for name, values in columns.items()})

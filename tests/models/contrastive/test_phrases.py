"""Gains against the cost of a sequence before and after joining; counting and joining against loops."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hfblog.models.contrastive.phrases import Phrases, find_phrases, join_phrases, phrase_gain


def split(items: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    return [items[begin:end].tolist() for begin, end in zip(starts[:-1], starts[1:], strict=True)]


def joined_by_loops(sequences: list[list[int]], pairs: list[tuple[int, int]], vocab_size: int) -> list[list[int]]:
    rank = {pair: vocab_size + place for place, pair in enumerate(pairs)}
    result = []
    for sequence in sequences:
        row, place = [], 0
        while place < len(sequence):
            pair = tuple(sequence[place : place + 2])
            row.append(rank.get(pair, sequence[place]))
            place += 2 if pair in rank else 1
        result.append(row)
    return result


def cost_a_symbol(sequences: list[list[int]], lengths: dict[int, int]) -> float:
    """Nats a symbol by the code of item frequencies: entropy of an item over its mean length."""
    counts = Counter(item for sequence in sequences for item in sequence)
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return entropy / (sum(count * lengths[item] for item, count in counts.items()) / total)


def random_corpus(seed: int, vocab_size: int = 4, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Skewed items in sequences of all lengths, some of them empty."""
    generator = np.random.default_rng(seed)
    items = (vocab_size * generator.random(tokens) ** 2).astype(np.int32)
    cuts = np.sort(generator.integers(0, tokens + 1, tokens // 6))
    return items, np.concatenate([[0, 0], cuts, [tokens, tokens]])


def as_phrases(pairs: list[tuple[int, int]]) -> Phrases:
    firsts, seconds = np.array(pairs, np.int64).reshape(-1, 2).T
    return Phrases(firsts, seconds, np.ones(len(pairs), np.int64), np.ones(len(pairs)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocab_size", [2, 4])
def test_gain_is_what_joining_saves_exactly(seed, vocab_size):
    items, starts = random_corpus(seed, vocab_size)
    sequences = split(items, starts)
    # items of several symbols, as after an earlier pass
    lengths = {item: 1 + item % 3 for item in range(vocab_size)}
    counts = np.bincount(items, minlength=vocab_size)
    mean_length = sum(counts[item] * lengths[item] for item in lengths) / len(items)
    for a in range(vocab_size):
        for b in range(vocab_size):
            joined = joined_by_loops(sequences, [(a, b)], vocab_size)
            count = sum(row.count(vocab_size) for row in joined)
            saved = cost_a_symbol(sequences, lengths) - cost_a_symbol(joined, lengths | {vocab_size: lengths[a] + lengths[b]})
            gain = phrase_gain(count, counts[a], counts[b], len(items), a == b)
            assert gain / mean_length == pytest.approx(saved, abs=1e-12)


def test_gain_where_nothing_is_left():
    # "ab" and nothing else; a only before b; both only together; an item only twice in a row
    assert phrase_gain(50, 50, 50, 100) == pytest.approx(math.log(2))
    for count_ab, count_a, count_b, same in ((10, 10, 40, False), (10, 10, 10, False), (10, 20, 20, True)):
        rows = [[0, 0] if same else [0, 1]] * count_ab + [[2]] * 50 + ([] if same else [[1]] * (count_b - count_ab))
        total = sum(map(len, rows))
        ones = dict.fromkeys(range(3), 1)
        joined = joined_by_loops(rows, [(0, 0 if same else 1)], 3)
        saved = cost_a_symbol(rows, ones) - cost_a_symbol(joined, ones | {3: 2})
        assert phrase_gain(count_ab, count_a, count_b, total, same) == pytest.approx(saved, abs=1e-12)
    assert phrase_gain(0, 5, 0, 10) == 0


def test_gain_is_above_its_bound():
    generator = np.random.default_rng(0)
    count_a, count_b = generator.integers(1, 1000, (2, 500))
    count_ab = (generator.random(500) * np.minimum(count_a, count_b)).astype(int)
    gain = phrase_gain(count_ab, count_a, count_b, 3000)
    some = count_ab > 0
    p_ab, p_a, p_b = count_ab[some] / 3000, count_a[some] / 3000, count_b[some] / 3000
    bound = p_ab * (np.log(p_ab / (p_a * p_b)) - 1)
    assert (gain[some] >= bound - 1e-12).all() and (bound > 0).any() and (gain < 0).any()
    # close to it where the pair is rare beside its items
    assert phrase_gain(10, 10_000, 20_000, 10**8) == pytest.approx(1e-7 * (math.log(5) - 1), rel=1e-2)


@pytest.mark.parametrize("counts", [(6, 5, 9, 100), (-1, 5, 5, 100), (3, 5, 5, 100, True), (1, 200, 5, 100), (0, 0, 0, 0)])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match="count_ab breaks this|total="):
        phrase_gain(*counts)


@pytest.mark.parametrize("seed", range(6))
def test_found_phrases_against_loops(seed):
    items, starts = random_corpus(seed)
    sequences = split(items, starts)
    occurrences = Counter(items.tolist())
    expected = []
    for a in range(4):
        for b in range(4):
            count = sum(row.count(4) for row in joined_by_loops(sequences, [(a, b)], 4))
            if count >= 5:
                gain = float(phrase_gain(count, occurrences[a], occurrences[b], len(items), a == b))
                pmi = math.log(count * len(items) / (occurrences[a] * occurrences[b]))
                if gain > 0 and pmi >= -0.4:
                    expected.append((-gain, a, b, count))
    phrases = find_phrases(items, starts, 4, min_count=5, min_pmi=-0.4)
    assert len(phrases) == len(expected)
    assert phrases.firsts.dtype == phrases.seconds.dtype == phrases.counts.dtype == np.int64
    found = zip(-phrases.gains, phrases.firsts, phrases.seconds, phrases.counts, strict=True)
    assert [row[1:] for row in found] == [row[1:] for row in sorted(expected)]
    assert (phrases.gains > 0).all() and (np.diff(phrases.gains) <= 0).all()
    assert len(find_phrases(items, starts, 4, min_count=5, min_pmi=-0.4, max_phrases=1)) == min(1, len(expected))


def test_planted_phrases_are_found_and_the_bounds_hold():
    generator = np.random.default_rng(0)
    items = generator.integers(2, 500, 20_000).astype(np.int32)
    for a, b, count in ((0, 1, 200), (10, 11, 60)):
        places = generator.choice(9_000, count, replace=False) * 2
        items[places], items[places + 1] = a, b
    starts = np.array([0, len(items)])
    phrases = find_phrases(items, starts, 500, min_pmi=2.0)
    assert list(zip(phrases.firsts, phrases.seconds, strict=True)) == [(0, 1), (10, 11)]
    assert len(find_phrases(items, starts, 500, min_count=int(phrases.counts[1]) + 1, min_pmi=2.0)) == 1
    pmi = math.log(phrases.counts[0] * len(items) / (items == 0).sum() / (items == 1).sum())
    assert 0 in find_phrases(items, starts, 500, min_pmi=pmi - 1e-9).firsts
    assert 0 not in find_phrases(items, starts, 500, min_pmi=pmi + 1e-9).firsts


def test_pairs_do_not_cross_the_borders_of_sequences():
    items = np.tile(np.array([0, 1], np.int32), 50)
    assert len(find_phrases(items, np.arange(101), 2, min_count=1, min_pmi=-9)) == 0
    apart = np.arange(1, 100, 2)  # every sequence is "1 0"
    phrases = find_phrases(items, np.concatenate([[0], apart, [100]]), 2, min_count=1, min_pmi=-9)
    assert (phrases.firsts.tolist(), phrases.seconds.tolist(), phrases.counts.tolist()) == ([1], [0], [49])
    joined, starts = join_phrases(items, np.concatenate([[0], apart, [100]]), as_phrases([(0, 1)]), 2)
    assert joined.tolist() == items.tolist() and starts.tolist() == [0, *apart, 100]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_joined_as_by_a_loop(seed, dtype):
    items, starts = random_corpus(seed)
    generator = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(4) for b in range(4)]
    pairs = [pairs[place] for place in generator.permutation(16)[: 3 * seed]]
    before = items.copy()
    joined, new_starts = join_phrases(items.astype(dtype), starts, as_phrases(pairs), 4)
    assert joined.dtype == np.int32 and new_starts.dtype == np.int64
    assert split(joined, new_starts) == joined_by_loops(split(items, starts), pairs, 4)
    assert (items == before).all()


def test_the_left_pair_is_joined_where_two_overlap():
    def joined(row: list[int], pairs: list[tuple[int, int]]) -> list[int]:
        return join_phrases(np.array(row), np.array([0, len(row)]), as_phrases(pairs), 3)[0].tolist()

    assert joined([0, 0, 0], [(0, 0)]) == [3, 0]
    assert joined([0, 0, 0, 0], [(0, 0)]) == [3, 3]
    assert joined([0, 1, 2], [(1, 2), (0, 1)]) == [4, 2]
    assert joined([0, 1, 2, 1, 2], [(1, 2), (0, 1)]) == [4, 2, 3]


def test_several_passes_lower_the_cost_and_lose_no_symbol():
    generator = np.random.default_rng(0)
    words = [[0, 1, 2, 3], [4, 5, 6], [7], [8], [9]]
    sequences = [sum((words[word] for word in generator.integers(0, 5, 12)), []) for _ in range(80)]
    items = np.array(sum(sequences, []), np.int32)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in sequences])])
    spelled = {item: [item] for item in range(10)}
    cost = cost_a_symbol(sequences, dict.fromkeys(range(10), 1))
    for _ in range(6):
        phrases = find_phrases(items, starts, len(spelled), min_count=5, min_pmi=1.5, max_phrases=1)
        if not len(phrases):
            break
        mean_length = len(sum(sequences, [])) / len(items)
        items, starts = join_phrases(items, starts, phrases, len(spelled))
        spelled[len(spelled)] = spelled[int(phrases.firsts[0])] + spelled[int(phrases.seconds[0])]
        rows = split(items, starts)
        assert [[symbol for item in row for symbol in spelled[item]] for row in rows] == sequences
        after = cost_a_symbol(rows, {item: len(symbols) for item, symbols in spelled.items()})
        assert cost - after == pytest.approx(phrases.gains[0] / mean_length, abs=1e-12)
        cost = after
    assert [0, 1, 2, 3] in spelled.values() and [4, 5, 6] in spelled.values()


def test_empty_and_short_corpora():
    for items, starts in (([], [0]), ([], [0, 0, 0]), ([0], [0, 1])):
        items = np.array(items, np.int32)
        phrases = find_phrases(items, np.array(starts), 2, min_count=1)
        assert len(phrases) == 0 and phrases.gains.dtype == np.float64
        for chosen in (phrases, as_phrases([(0, 0)])):
            joined, new_starts = join_phrases(items, np.array(starts), chosen, 2)
            assert joined.tolist() == items.tolist() and new_starts.tolist() == starts


@pytest.mark.parametrize(
    ("items", "starts", "message"),
    [
        ([[0, 1]], [0, 2], r"\(tokens,\) of integers, got \(1, 2\)"),
        ([0.0, 1.0], [0, 2], "got .* float64"),
        ([0, 3], [0, 2], "vocab_size - 1 = 2, got 0 to 3"),
        ([0, -1], [0, 2], "got -1 to 0"),
        ([0, 1], [0, 1], "end with 2"),
        ([0, 1], [1, 2], "begin with 0"),
        ([0, 1], [0, 2, 1, 2], "never fall"),
        ([0, 1], [], r"\(sequences \+ 1,\)"),
    ],
)
def test_bad_sequences(items, starts, message):
    with pytest.raises(ValueError, match=message):
        find_phrases(np.array(items), np.array(starts), 3)
    with pytest.raises(ValueError, match=message):
        join_phrases(np.array(items), np.array(starts), as_phrases([(0, 1)]), 3)


def test_bad_bounds_and_phrases():
    items, starts = np.array([0, 1], np.int32), np.array([0, 2])
    with pytest.raises(ValueError, match="min_count=0"):
        find_phrases(items, starts, 2, min_count=0)
    with pytest.raises(ValueError, match="max_phrases=-1"):
        find_phrases(items, starts, 2, max_phrases=-1)
    with pytest.raises(ValueError, match="below vocab_size=2"):
        join_phrases(items, starts, as_phrases([(0, 2)]), 2)
    with pytest.raises(ValueError, match="twice"):
        join_phrases(items, starts, as_phrases([(0, 1), (0, 1)]), 2)
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        join_phrases(items, starts, Phrases(np.zeros(2, int), np.zeros(1, int), np.ones(2), np.ones(2)), 2)
    with pytest.raises(ValueError, match="int32"):
        join_phrases(items, starts, as_phrases([(0, 1)]), 2**31 - 1)

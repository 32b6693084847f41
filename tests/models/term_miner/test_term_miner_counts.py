"""What is counted, against counting by hand: n-grams, their neighbours, cohesion, pieces, segmentation, the law of costs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from hfblog import CorpusReader, TermMinerConfig, count_ngrams, joint_alphabet
from hfblog.models.term_miner import trie_kernel
from hfblog.models.term_miner.alphabet import Alphabet, character_symbols
from hfblog.models.term_miner.discovery import (
    UNKNOWN_SCORE,
    _pmi_cut,
    _without_redundant,
    build_trie_of,
    cohesions,
    cost_reduction,
    discover,
    expected_counts,
)
from hfblog.models.term_miner.segmentation import Segmenter
from hfblog.models.term_miner.symbol_corpus import Chunk


def corpus_of(texts, directory=None, **settings):
    reader = CorpusReader(texts, directory=directory, **settings)
    return reader.finish(joint_alphabet([reader.symbols()], settings.get("level", "character")))


def random_texts(count: int = 60, seed: int = 0, letters: str = "天地人和大小上下，") -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(letters), size=generator.integers(1, 40))) for _ in range(count)]


def test_symbols_of_texts():
    symbols, places = character_symbols("１９９８年ＩＢＭ、Ａ股 é\u0301𠀀한")
    assert "".join(map(chr, symbols)) == "0年a\0a股\0a𠀀한"
    assert places.tolist() == [0, 4, 5, 8, 9, 10, 11, 12, 14, 15, 16]
    assert "".join(map(chr, character_symbols("１９ab")[0])) == "0a"
    assert not character_symbols("")[0].size


def brute_counts(texts: list[str], order: int):
    """Counts, and the neighbours of each n-gram; a break is a neighbour of its own."""
    counts, left, right = Counter(), defaultdict(Counter), defaultdict(Counter)
    for number, text in enumerate(texts):
        for piece_number, piece in enumerate(text.split("，")):
            for place in range(len(piece) - order + 1):
                gram = piece[place : place + order]
                counts[gram] += 1
                left[gram][piece[place - 1] if place else (number, piece_number, "begins")] += 1
                end = place + order
                right[gram][piece[end] if end < len(piece) else (number, piece_number, "ends")] += 1
    return counts, left, right


def entropy(counts: Counter) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("windows_in_memory", [2**26, 100])
def test_ngrams_are_counted_exactly(min_count, windows_in_memory, tmp_path):
    texts = random_texts()
    for directory in (None, tmp_path):
        corpus = corpus_of(texts, directory)
        found = count_ngrams(corpus, min_count=min_count, windows_in_memory=windows_in_memory)
        for order in range(1, 5):
            counts, left, right = brute_counts(texts, order)
            table = found[order]
            assert found.totals[order - 1] == sum(counts.values())
            grams = [corpus.alphabet.decode(gram) for gram in table.grams]
            assert dict(zip(grams, table.counts.tolist(), strict=True)) == {g: c for g, c in counts.items() if c >= min_count}
            for row, gram in enumerate(grams):
                assert table.left_entropies[row] == pytest.approx(entropy(left[gram]), abs=1e-12)
                assert table.right_entropies[row] == pytest.approx(entropy(right[gram]), abs=1e-12)
                assert table.left_kinds[row] == len(left[gram]) and table.right_kinds[row] == len(right[gram])
        del corpus
    assert not list(tmp_path.glob("*"))  # what was on the disk goes with the corpus


def test_cohesion_is_the_least_over_all_splits():
    texts = random_texts()
    corpus = corpus_of(texts)
    found = count_ngrams(corpus, min_count=2)
    counts = {gram: count for order in range(1, 5) for gram, count in brute_counts(texts, order)[0].items()}
    total = sum(brute_counts(texts, 1)[0].values())
    for order, values in enumerate(cohesions(found), 1):
        for gram, value in zip(found[order].grams, values, strict=True):
            word = corpus.alphabet.decode(gram)
            splits = [total * counts[word] / counts[word[:k]] / counts[word[k:]] for k in range(1, order)]
            assert value == pytest.approx(math.log(min(splits)) if splits else 0, abs=1e-12)


def test_words_of_any_length_have_exact_quantities():
    texts = ["北京大学生活动中心"] * 5 + ["北京大学", "大学生", "活动中心，北京大学生活动中心开放"] * 2 + random_texts(20)
    corpus = corpus_of(texts)
    lexicon = discover(corpus, TermMinerConfig(method="ngram_cohesion", min_count=3, cohesion_thresholds=[1, 1, 1]))
    assert max(map(len, lexicon.words)) > 4
    whole = Counter()
    for order in range(1, 13):
        whole += brute_counts(texts, order)[0]
    total = sum(brute_counts(texts, 1)[0].values())
    for place, ids in enumerate(lexicon.words):
        word = corpus.alphabet.decode(ids)
        assert lexicon.occurrences[place] == whole[word]
        if len(word) > 1:
            product = max(whole[word[:k]] * whole[word[k:]] for k in range(1, len(word)))
            assert lexicon.cohesions[place] == pytest.approx(math.log(total * whole[word] / product), abs=1e-12)
        _, left, right = brute_counts(texts, len(word))
        assert lexicon.left_entropies[place] == pytest.approx(entropy(left[word]), abs=1e-12)
        assert lexicon.right_entropies[place] == pytest.approx(entropy(right[word]), abs=1e-12)


def test_merging_a_pair_lowers_the_cost_by_the_reduction():
    generator = np.random.default_rng(0)
    for repeated in (False, True):
        shares = generator.dirichlet(np.ones(6))
        together = 0.4 * min(shares[0], shares[1])
        if repeated:
            together = 0.4 * shares[0]

        def cost(p: np.ndarray, lengths: np.ndarray) -> float:
            p = p / p.sum()
            return -(p * np.log(p)).sum() / (p * lengths).sum()

        lengths = np.ones(6)
        taken = np.array([2.0, 0, 0, 0, 0, 0] if repeated else [1.0, 1, 0, 0, 0, 0])
        after = cost(np.append(shares - taken * together, together), np.append(lengths, 2))
        parts, repeats = (shares[:1], taken[:1]) if repeated else (shares[:2], taken[:2])
        reduction = cost_reduction(np.array([together]), parts[None], repeats[None])[0]
        assert cost(shares, lengths) - after == pytest.approx(reduction, abs=1e-12)
        if not repeated:  # the article's approximation never exceeds it
            assert together * (math.log(together / shares[0] / shares[1]) - 1) <= reduction


def test_chains_and_backtracking():
    # 各项 and 项目 chain to 各项目, which is no n-gram that coheres: it falls
    alphabet = Alphabet(sorted("各项目的主要国"))
    members = [alphabet.encode_term(word) for word in ("各项", "项目", "主要", "国")]
    trie = build_trie_of(members)
    symbols = np.append(alphabet.encode("国各项目的主要")[0], 0).astype(np.uint16)
    joined = np.zeros(len(symbols), np.uint8)
    trie_kernel.mark_chains(symbols, *trie, joined)
    assert joined.tolist() == [0, 0, 1, 1, 0, 0, 1, 0]
    counts, bounds = np.zeros(len(members), np.int64), np.empty((2, 3), np.int64)
    found = trie_kernel.count_pieces(symbols, *trie, 2, counts, *bounds)
    assert counts.tolist() == [0, 0, 1, 1]
    # with order 2 every pair of 各项目 is a member; with order 4 the whole would have to be one
    assert found == 1 and bounds[:, 0].tolist() == [1, 4]
    counts[:] = 0
    assert trie_kernel.count_pieces(symbols, *trie, 4, counts, *bounds) == 0
    assert counts.tolist() == [0, 0, 1, 1]


def test_redundant_words_go_to_their_parts():
    words = {(1,): 400, (2, 3): 100, (1, 2, 3): 30, (4, 5): 50, (4,): 1, (5,): 1}
    total = sum(words.values())
    gain = math.log(30 / total) - math.log(400 / total) - math.log(100 / total)
    assert gain < 2  # 的主要: no more than 的 and 主要 by chance
    kept = _without_redundant(words)
    assert kept == {(1,): 430, (2, 3): 130, (4, 5): 50, (4,): 1, (5,): 1}


def test_pairs_of_high_pmi_by_hand():
    texts = ["天地", "天地人", "人和", "和人", "地天"] * 4
    corpus = corpus_of(texts)
    config = TermMinerConfig(method="pmi_cut", min_count=1, min_proba=0.01, min_pmi=0.5, dedup=False)
    words = _pmi_cut(corpus, config, count_ngrams(corpus, min_count=1))
    single = Counter("".join(texts))
    pairs = Counter(text[k : k + 2] for text in texts for k in range(len(text) - 1))
    strong = {
        pair
        for pair, count in pairs.items()
        if math.log(count / sum(pairs.values()) / (single[pair[0]] * single[pair[1]] / sum(single.values()) ** 2)) > 0.5
    }
    expected = Counter()
    for text in texts:
        piece = text[0]
        for before, after in zip(text, text[1:], strict=False):
            if before + after in strong:
                piece += after
            else:
                expected[piece] += 1
                piece = after
        expected[piece] += 1
    assert {corpus.alphabet.decode(word): count for word, count in words.items()} == dict(expected)


def segmentations(text: str) -> list[list[str]]:
    if not text:
        return [[]]
    return [[text[:end], *rest] for end in range(1, len(text) + 1) for rest in segmentations(text[end:])]


def test_segmentation_is_the_best_of_all(monkeypatch):
    alphabet = Alphabet(sorted("天地人和大小"))
    generator = np.random.default_rng(1)
    words = sorted({"".join(generator.choice(list("天地人和大"), size=generator.integers(1, 4))) for _ in range(25)})
    scores = dict(zip(words, generator.normal(-5, 2, len(words)), strict=True))

    def worth(pieces: list[str]) -> float:
        return sum(scores.get(piece, UNKNOWN_SCORE if len(piece) == 1 else -math.inf) for piece in pieces)

    ids = [alphabet.encode_term(word) for word in words]
    fast = Segmenter(ids, np.array(list(scores.values())), alphabet)
    monkeypatch.setattr(
        "hfblog.models.term_miner.segmentation.build_trie_of", lambda words: (_ for _ in ()).throw(ImportError())
    )
    slow = Segmenter(ids, np.array(list(scores.values())), alphabet)
    for text in random_texts(40, letters="天地人和大小")[:40]:
        text = text[:9]
        best = max(segmentations(text), key=worth)
        for segmenter in (fast, slow):
            found = [text[begin:end] for begin, end in next(iter(segmenter.spans([text])))]
            assert worth(found) == pytest.approx(worth(best))


def test_expected_counts_are_those_of_all_segmentations():
    alphabet = Alphabet(sorted("天地人"))
    words = ["天", "地", "人", "天地", "地人", "天地人"]
    scores = np.log([0.2, 0.1, 0.1, 0.3, 0.2, 0.1])
    value = dict(zip(words, scores, strict=True))
    text = "天地人天地"
    weights = {}
    for pieces in segmentations(text):
        if all(piece in value for piece in pieces):
            weights[tuple(pieces)] = math.exp(sum(value[piece] for piece in pieces))
    total = sum(weights.values())
    expected = [sum(weight * pieces.count(word) for pieces, weight in weights.items()) / total for word in words]
    symbols = np.append(alphabet.encode(text)[0], 0).astype(np.uint16)
    trie = build_trie_of([alphabet.encode_term(word) for word in words])
    found = expected_counts(trie, scores, Chunk(symbols, np.array([0, len(symbols)])))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_marks_and_spaces_of_a_segmentation():
    alphabet = Alphabet(sorted("天地0a"))
    segmenter = Segmenter([alphabet.encode_term(word) for word in ("天", "天地", "0", "a")], np.full(4, -1.0), alphabet)
    texts = ["天地……天，，。 １９ab  地", "", "  ", "天"]
    found = [[text[begin:end] for begin, end in spans] for text, spans in zip(texts, segmenter.spans(texts), strict=True)]
    assert found == [["天地", "……", "天", "，，", "。", "１９", "ab", "地"], [], [], ["天"]]
    assert list(segmenter.words(texts)) == found


@pytest.mark.parametrize("wrong", [{"max_order": 0}, {"max_order": 5}, {"min_count": 0}])
def test_wrong_counting(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        count_ngrams(corpus_of(["天地"]), **wrong)


def test_a_full_disk_leaves_nothing(tmp_path):
    def documents():
        yield "天地"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        CorpusReader(documents(), directory=tmp_path)
    assert not list(tmp_path.glob("*"))
    with pytest.raises(TypeError, match="a document is a string, got int"):
        CorpusReader(["天", 3])

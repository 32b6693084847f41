"""Words in place of numbers: neighbours, keywords, sentences, clusters, unknown words, and the way to gensim and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from hfblog import (
    MinEntropyEmbeddingConfig,
    MinEntropyEmbeddingForPreTraining,
    MinEntropyEmbeddingModel,
    UnknownWordError,
    WordVectors,
    subword_ids,
    train_word_tokenizer,
)

NAMES = ["king", "queen", "man", "woman", "apple", "New York", "new_york", "pear"]


def random_words(names: list[str] = NAMES, size: int = 6, **settings) -> WordVectors:
    return WordVectors.from_words(names, np.random.default_rng(0).normal(size=(len(names), size)), **settings)


def trained_words() -> WordVectors:
    """All that pretraining leaves, on a vocabulary in small letters."""
    torch.manual_seed(0)
    texts = ["The king and the queen", "a man and a woman", "the apple and the pear and the king"] * 3
    tokenizer = train_word_tokenizer(texts, lowercase=True)
    model = MinEntropyEmbeddingForPreTraining(
        MinEntropyEmbeddingConfig(vocab_size=len(tokenizer), embedding_dim=5, num_noise_samples=2)
    )
    for parameter in model.parameters():
        parameter.data.normal_()
    ids = [index for text in texts for index in tokenizer(text)["input_ids"]]
    model.fit_noise(torch.bincount(torch.tensor(ids), minlength=len(tokenizer)), smoothing=1)
    return WordVectors(model.eval(), tokenizer)


# --- words ---


def test_words_keep_their_vectors_and_their_order():
    words = random_words()
    expected = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    assert words.words == NAMES == words.frequent() and words.frequent(2) == NAMES[:2] and len(words) == 8
    assert np.array_equal(words.vectors(NAMES).numpy(), expected)
    assert "king" in words and "King" not in words and "new york" in words
    assert words.id_of("new york") == words.id_of("new_york")
    lowered = trained_words()
    assert "KING" in lowered and lowered.id_of("King") == lowered.id_of("king")
    assert lowered.words[:2] == ["the", "and"]


def test_an_unknown_word_is_named_with_the_nearest_by_spelling():
    words = random_words()
    for ask in (
        lambda: words.id_of("kinng"),
        lambda: words.vectors(["king", "kinng"]),
        lambda: words.most_similar("kinng"),
        lambda: words.analogy("king", "kinng", "man"),
        lambda: words.similarity("kinng", "man"),
    ):
        with pytest.raises(KeyError) as error:
            ask()
        assert isinstance(error.value, UnknownWordError)
        assert str(error.value) == "unknown word 'kinng'; did you mean 'king'?"
    with pytest.raises(KeyError, match="no known word is spelled like it"):
        words.id_of("zzzzzz")


def test_neighbours_and_analogies_are_words():
    words = random_words()
    table = torch.nn.functional.normalize(words.vectors(NAMES), dim=1)
    cosines = table @ table.T
    order = [NAMES[index] for index in cosines[0].argsort(descending=True).tolist() if index != 0]
    found = words.most_similar("king", top_k=7)
    assert [word for word, _ in found] == order
    assert found[0][1] == pytest.approx(cosines[0].sort().values[-2].item(), abs=1e-6)
    both = words.most_similar(["king", "apple"], top_k=6)
    mean = (table @ (table[0] + table[4])).tolist()
    assert [word for word, _ in both] == sorted(set(NAMES) - {"king", "apple"}, key=lambda word: -mean[NAMES.index(word)])
    assert words.most_similar(words.vectors(["pear"])[0], top_k=1)[0][0] == "pear"
    scores = cosines[1] - cosines[0] + cosines[2]
    expected = [NAMES[index] for index in scores.argsort(descending=True).tolist() if index > 2]
    assert [word for word, _ in words.analogy("king", "queen", "man", top_k=5)] == expected
    assert words.similarity("king", "pear") == pytest.approx(cosines[0, 7].item(), abs=1e-6)
    for top_k in (0, 8):
        with pytest.raises(ValueError, match=f"top_k={top_k} must lie between 1 and 7"):
            words.most_similar("king", top_k=top_k)


def test_vectors_that_make_no_vocabulary_are_named():
    for names, vectors, message in (
        (["a", "a"], np.zeros((2, 3)), "the word 'a' occurs twice"),
        (["a"], np.zeros((2, 3)), r"1 words need vectors \(1, d\), got \(2, 3\)"),
        (["a", "b"], np.array([[0.0], [math.nan]]), "the vector of 'b' holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            WordVectors.from_words(names, vectors)
    model = MinEntropyEmbeddingModel(MinEntropyEmbeddingConfig(vocab_size=50, embedding_dim=2))
    with pytest.raises(ValueError, match="the tokenizer has 4 words, but the model vocab_size=50"):
        WordVectors(model, train_word_tokenizer(["a"]))


# --- texts ---


def test_keywords_are_the_words_that_the_text_is_cheapest_from():
    words = trained_words()
    text = "the king and the apple"
    ids = [words.id_of(word) for word in text.split()]
    costs = {}
    for word in set(text.split()):
        own = words.id_of(word)
        others = [index for index in ids if index != own]
        with torch.no_grad():
            log_q = words.whole.log_prob(torch.tensor([own] * len(others)), torch.tensor(others))
        costs[word] = log_q.mean().item()
    found = words.keywords(text, top_k=10)
    assert [word for word, _ in found] == sorted(costs, key=lambda word: -costs[word])
    for word, value in found:
        assert value == pytest.approx(costs[word], rel=1e-5)
    assert words.keywords(text.split() + ["unknown"], top_k=1)[0] == found[0]
    with pytest.raises(ValueError, match="the text has no known word"):
        words.keywords("completely unknown")
    with pytest.raises(ValueError, match="keywords needs the words' frequencies"):
        random_words().keywords("king")


def test_sentences_are_weighted_means():
    words = trained_words()
    counts = words.whole.noise.counts.double()
    share = (counts / counts.sum()).float()
    texts = ["the king", ["king", "and", "pear", "unknown"], "nothing known"]
    expected = []
    for names in (["the", "king"], ["king", "and", "pear"]):
        ids = [words.id_of(name) for name in names]
        weights = 0.01 / (0.01 + share[ids])
        expected.append((weights[:, None] * words.vectors(names)).sum(0) / len(names))
    found = words.sentence_embedding(texts, smoothing=0.01)
    torch.testing.assert_close(found, torch.stack([*expected, torch.zeros(5)]))
    removed = words.sentence_embedding(texts, smoothing=0.01, remove_common=True)
    common = torch.linalg.svd(found, full_matrices=False).Vh[0]
    torch.testing.assert_close(removed @ common, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found - removed, torch.outer(found @ common, common), atol=1e-5, rtol=1e-4)


def test_clusters_are_the_groups_that_were_planted():
    pytest.importorskip("infomap")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(8, 30))
    labels = np.repeat(np.arange(8), 25)
    vectors = centres[labels] + 0.5 * generator.normal(size=(200, 30))
    words = WordVectors.from_words([f"w{index}" for index in range(201)], np.vstack([vectors, np.eye(30)[:1] * 0.1]))
    groups, found = words.cluster(max_neighbours=15, min_similarity=0.5)
    group_of = {word: place for place, group in enumerate(groups) for word in group}
    known = [index for index in range(200) if f"w{index}" in group_of]
    assert len(known) > 190
    score = normalized_mutual_info_score(labels[known], [group_of[f"w{index}"] for index in known])
    assert score >= 0.95 and found.code_length <= found.one_module_code_length
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)


# --- unknown words ---


def test_subwords_are_the_parts_of_the_marked_word():
    def fnv(text: str) -> int:
        number = 0x811C9DC5
        for byte in text.encode("utf-8"):
            number = ((number ^ byte) * 0x01000193) % 2**32
        return number

    assert fnv("a") == 0xE40C292C  # of the algorithm's authors
    parts = ["<ca", "cat", "at>", "<cat", "cat>"]
    assert subword_ids("cat", 1000, (3, 4)) == [fnv(part) % 1000 for part in parts]
    assert subword_ids("猫", 1000, (2, 4)) == [fnv(part) % 1000 for part in ("<猫", "猫>", "<猫>")]
    assert subword_ids("a", 1000, (5, 6)) == [fnv("<a>") % 1000]  # too short for any part


def test_unknown_words_are_composed_of_their_parts():
    stems, ends = ["walk", "talk", "jump", "cook", "paint"], ["", "s", "ed", "ing"]
    generator = np.random.default_rng(0)
    of_stem, of_end = generator.normal(size=(5, 8)), generator.normal(size=(4, 8))
    names = [stem + end for stem in stems for end in ends]
    vectors = np.array([a + b for a in of_stem for b in of_end])
    kept = [index for index, name in enumerate(names) if name != "jumping"]
    words = WordVectors.from_words([names[index] for index in kept], vectors[kept], num_subwords=2000)
    words.fit_subwords(ridge=1e-3, steps=200)
    assert "jumping" not in words
    composed = words.vectors(["jumping", "walk"])
    assert torch.equal(composed[1].double(), torch.tensor(vectors[0]).float().double())  # known words keep their own
    cosine = torch.nn.functional.cosine_similarity(composed[0].double(), torch.tensor(vectors[names.index("jumping")]), dim=0)
    assert cosine > 0.9
    assert {word for word, _ in words.most_similar("jumping", top_k=6)} & {"jump", "jumps", "jumped"}
    again = words.model.compose_words(["jumping", "zebra"])
    assert torch.equal(again[0], composed[0]) and torch.isfinite(again).all()


def test_subword_vectors_are_the_ridge_regression():
    words = random_words(["ab", "abc", "bc", "cab"], size=3, num_subwords=12, subword_lengths=[1, 2])
    words.fit_subwords(ridge=0.1, steps=100)
    means = torch.zeros(4, 12)
    for row, word in enumerate(words.words):
        buckets = subword_ids(word, 12, (1, 2))
        for bucket in buckets:
            means[row, bucket] += 1 / len(buckets)
    expected = torch.linalg.solve(means.T @ means + 0.1 * torch.eye(12), means.T @ words.vectors(words.words))
    torch.testing.assert_close(words.model.subword_embeddings.weight, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(words.model.compose_words(["abc"]), means[1:2] @ expected, atol=1e-5, rtol=1e-4)
    plain = random_words()
    with pytest.raises(ValueError, match="num_subwords=0 in the configuration: there is no room"):
        plain.fit_subwords()
    with pytest.raises(ValueError, match="unknown words have no vectors"):
        plain.model.compose_words(["x"])
    with pytest.raises(ValueError, match="2 words, but vocab_size=7"):
        words.model.fit_subwords(["a", "b"])


# --- from and to others ---


def test_files_and_folders_come_back(tmp_path):
    names = [name for name in NAMES if " " not in name]
    words = random_words(names)
    for binary in (False, True):
        words.save_word2vec(tmp_path / "v", binary)
        again = WordVectors.from_word2vec(tmp_path / "v", binary)
        assert again.words == names and torch.equal(again.vectors(names), words.vectors(names))
    trained = trained_words()
    trained.whole.save_pretrained(tmp_path / "folder")
    trained.tokenizer.save_pretrained(tmp_path / "folder")
    loaded = WordVectors.from_pretrained(tmp_path / "folder")
    assert loaded.words == trained.words and torch.equal(loaded.vectors(["king"]), trained.vectors(["king"]))
    assert loaded.keywords("the king and the pear") == trained.keywords("the king and the pear")
    assert "KING" in loaded


def test_gensims_vectors_come_and_go():
    gensim = pytest.importorskip("gensim.models")
    trained = trained_words()
    keyed = trained.to_keyed_vectors()
    assert keyed.index_to_key == trained.words
    assert np.array_equal(keyed["king"], trained.vectors(["king"])[0].numpy())
    assert keyed.get_vecattr("the", "count") == trained.whole.noise.counts[trained.id_of("the")].item()
    theirs, ours = keyed.most_similar("king", topn=3), trained.most_similar("king", top_k=3)
    assert [word for word, _ in theirs] == [word for word, _ in ours]
    np.testing.assert_allclose([score for _, score in theirs], [score for _, score in ours], rtol=1e-5)
    expected = keyed.most_similar(positive=["queen", "man"], negative=["king"], topn=2)
    assert [word for word, _ in trained.analogy("king", "queen", "man", top_k=2)] == [word for word, _ in expected]
    own = gensim.Word2Vec([["a", "b", "c"]] * 20, vector_size=4, min_count=1, epochs=1).wv
    again = WordVectors.from_keyed_vectors(own)
    assert again.words == own.index_to_key and np.array_equal(again.vectors(again.words).numpy(), own.vectors)


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("numba")
    words = random_words([f"word{index}" for index in range(40)], size=10)
    words.picture(tmp_path / "words.png")
    words.picture(tmp_path / "groups.png", words.frequent(30), [f"kind {index % 12}" for index in range(30)])
    for name in ("words.png", "groups.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

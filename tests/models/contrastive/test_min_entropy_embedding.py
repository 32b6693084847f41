"""Item vectors: costs against loops, entropies against their definitions, the compiled loops against plain ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from hfblog import (
    MinEntropyEmbeddingConfig,
    MinEntropyEmbeddingForPreTraining,
    MinEntropyEmbeddingModel,
    read_word2vec,
    reference_points,
    write_word2vec,
)
from hfblog.data import load_data
from hfblog.models.contrastive.modeling_min_entropy_embedding import keep_chances

ITEMS = 9


def build(**settings) -> MinEntropyEmbeddingForPreTraining:
    """A model with vectors, bias and counts that are all of them different."""
    torch.manual_seed(0)
    config = MinEntropyEmbeddingConfig(
        **({"vocab_size": ITEMS, "embedding_dim": 4, "num_noise_samples": 3, "subsample": 0} | settings)
    )
    model = MinEntropyEmbeddingForPreTraining(config)
    for parameter in model.parameters():
        parameter.data.normal_()
    model.noise.fit(torch.arange(1, ITEMS + 1))
    return model.eval()


def random_law(seed: int = 0, size: int = ITEMS) -> torch.Tensor:
    law = torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    law[0, 3] = 0.0
    return law / law.sum()


COSTS = {
    "dot": lambda v, u: v @ u,
    "l2": lambda v, u: -((v - u) ** 2).sum(),
    "library": lambda v, u: -((v - u) ** 2).sum().sqrt(),
    "student_t": lambda v, u: -2.0 * (1 + ((v - u) ** 2).sum() / 3).log(),  # nu = 3
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cost", COSTS)
def test_scores_against_their_formula(cost, bias, tied):
    model = build(cost=cost, item_bias=bias, tie_context=tied, exclude_self=tied, degrees_of_freedom=3, objective="full")
    v, u = model.model.embeddings.weight, model.model.context_vectors
    assert (u is v) == tied
    expected = torch.empty(ITEMS, ITEMS)
    for i in range(ITEMS):
        for j in range(ITEMS):
            expected[i, j] = COSTS[cost](v[i], u[j]) + (model.item_bias[j] if bias else 0)
            if tied and i == j:
                expected[i, j] = -math.inf
    torch.testing.assert_close(model.scores(torch.arange(ITEMS)), expected, rtol=1e-4, atol=1e-4)
    first, second = torch.meshgrid(torch.arange(ITEMS), torch.arange(ITEMS), indexing="ij")
    torch.testing.assert_close(model.pair_scores(first, second), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.log_prob(first.flatten(), second.flatten()).view(ITEMS, ITEMS), expected.log_softmax(1), rtol=1e-4, atol=1e-4
    )
    if cost == "library":
        model.model.embeddings.weight.grad = None
        model.pair_scores(torch.tensor([1]), torch.tensor([1 if not tied else 2])).sum().backward()
        assert torch.isfinite(model.model.embeddings.weight.grad).all()


@pytest.mark.parametrize("objective", ["full", "neg", "nce", "ranking", "pmi_regression"])
def test_expected_cost_is_a_cross_entropy(objective):
    """What is learned as a ratio to the noise is a law again once the noise is put back."""
    model, law = build(objective=objective), random_law()
    prior = {"neg": model.noise.log_probs, "pmi_regression": (torch.arange(1, ITEMS + 1) / 45).log()}.get(objective, 0.0)
    log_q = (model.scores(torch.arange(ITEMS)) + prior).log_softmax(1)
    expected = -(law * log_q).sum()
    assert model.expected_cost(law).item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.expected_cost(1000 * law).item() == pytest.approx(expected.item(), rel=1e-5)
    pairs = torch.multinomial(law.flatten(), 50, replacement=True, generator=torch.Generator().manual_seed(0))
    first, second = pairs // ITEMS, pairs % ITEMS
    output = model(center_ids=first, context_ids=second)
    assert output.loss.item() == pytest.approx(-log_q[first, second].mean().item(), rel=1e-5)
    weights = torch.rand(50)
    weighted = -(weights * log_q[first, second]).sum() / weights.sum()
    assert model(center_ids=first, context_ids=second, weights=weights).loss.item() == pytest.approx(weighted.item(), rel=1e-5)


def test_reference_points_against_their_definitions():
    law = random_law(1)
    first, second = law.sum(1), law.sum(0)
    unigram = -sum(p * math.log(p) for p in second.tolist())
    conditional = -sum(
        law[i, j].item() * math.log(law[i, j].item() / first[i].item())
        for i in range(ITEMS)
        for j in range(ITEMS)
        if law[i, j] > 0
    )
    for given in (law, 77 * law, law.to_sparse()):
        points = reference_points(given, cost=0.5 * (unigram + conditional))
        assert points.uniform == pytest.approx(math.log(ITEMS)) and points.unigram == pytest.approx(unigram)
        assert points.conditional == pytest.approx(conditional) and points.explained == pytest.approx(0.5)
    assert reference_points(law).explained is None
    for wrong, message in (
        (torch.ones(2, 3), r"a law over pairs is \(V, V\), got \(2, 3\)"),
        (torch.zeros(2, 2), "some that are positive"),
        (-torch.ones(2, 2), "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            reference_points(wrong)


@pytest.fixture(scope="module")
def news_law() -> torch.Tensor:
    """Pairs up to five places apart of the 300 most frequent words of chinese-news."""
    rows = load_data("chinese-news")["train"][:]["tokens"]
    counts: dict[str, int] = {}
    for row in rows:
        for word in row:
            counts[word] = counts.get(word, 0) + 1
    ids = {word: rank for rank, word in enumerate(sorted(counts, key=lambda word: -counts[word])[:300])}
    law = torch.zeros(300, 300)
    for row in rows:
        known = torch.tensor([ids.get(word, -1) for word in row])
        for offset in range(1, 6):
            left, right = known[:-offset], known[offset:]
            both = (left >= 0) & (right >= 0)
            law.index_put_((left[both], right[both]), torch.ones(int(both.sum())), accumulate=True)
            law.index_put_((right[both], left[both]), torch.ones(int(both.sum())), accumulate=True)
    return law / law.sum()


def learn(law: torch.Tensor, steps: int = 150, **settings) -> float:
    """The share of mutual information that is explained."""
    torch.manual_seed(0)
    config = MinEntropyEmbeddingConfig(
        vocab_size=len(law), embedding_dim=20, objective="full", initializer_range=6.0, **settings
    )
    model = MinEntropyEmbeddingForPreTraining(config)
    if model.item_bias is not None:
        with torch.no_grad():
            model.item_bias.copy_(law.sum(0).clamp_min(1e-9).log())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model.expected_cost(law).backward()
        optimizer.step()
    points = model.reference_points(law)
    assert points.conditional <= points.cost <= points.uniform + 1e-3  # whatever the model
    return points.explained


def test_which_cost_explains_how_much(news_law):
    untied, tied = learn(news_law), learn(news_law, tie_context=True)
    assert 0.4 < tied < untied < 1
    for cost in ("l2", "student_t"):
        # a distance knows nothing of frequency: without a bias it is above the entropy of single words
        plain, biased = (learn(news_law, cost=cost, tie_context=True, item_bias=bias) for bias in (False, True))
        assert plain < 0.2 < biased < 1


# --- pairs of sequences ---


def test_pairs_of_a_window_by_hand():
    model = build(window_size=2)
    ids = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    first, second, weights = model.window_pairs(ids, mask)
    found: dict[tuple[int, int, int], float] = {}
    for row in range(2):
        for i, j, weight in zip(first[row].tolist(), second[row].tolist(), weights[row].tolist(), strict=True):
            found[row, i, j] = found.get((row, i, j), 0.0) + weight
    expected = {}
    for row in range(2):
        for here in range(4):
            for there in range(4):
                if 1 <= abs(here - there) <= 2:
                    weight = (1.0 if abs(here - there) == 1 else 0.5) * mask[row, here].item() * mask[row, there].item()
                    expected[row, ids[row, here].item(), ids[row, there].item()] = weight
    assert found == expected
    output = model(input_ids=ids, attention_mask=mask)
    log_q = model.log_prob(first.flatten(), second.flatten()).view(weights.shape)
    torch.testing.assert_close(output.loss, -(weights * log_q).sum() / weights.sum())
    with pytest.raises(ValueError, match="sequences of length 1 hold no pairs"):
        model.window_pairs(ids[:, :1])
    with pytest.raises(ValueError, match="give input_ids, or center_ids and context_ids"):
        model(center_ids=ids[0])


@pytest.mark.parametrize("objective", ["neg", "nce", "ranking"])
def test_sampled_objectives_by_hand(objective):
    model = build(objective=objective, window_size=1).train()
    ids, noise = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 2, 2, 8]])
    scores, log_q = model.scores(torch.arange(ITEMS)), model.noise.log_probs
    losses = []
    for i, j in ((5, 6), (6, 5), (6, 7), (7, 6)):
        of_noise, s = scores[i, noise[0]], scores[i, j]
        if objective == "neg":
            loss = -torch.nn.functional.logsigmoid(s) - torch.nn.functional.logsigmoid(-of_noise).sum()
        elif objective == "nce":
            shift = log_q + math.log(4)
            loss = -torch.nn.functional.logsigmoid(s - shift[j])
            loss = loss - torch.nn.functional.logsigmoid(shift[noise[0]] - of_noise).sum()
        else:
            corrected = torch.cat([(s - log_q[j])[None], of_noise - log_q[noise[0]]])
            loss = -corrected.log_softmax(0)[0]
        losses.append(loss)
    output = model(input_ids=ids, noise_ids=noise)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_pmi_regression():
    model = build(objective="pmi_regression").train()
    first, second, pmi = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([0.5, -1.0])
    expected = (model.pair_scores(first, second) - pmi).square().mean()
    torch.testing.assert_close(model(center_ids=first, context_ids=second, pmi=pmi).loss, expected)
    with pytest.raises(ValueError, match="objective='pmi_regression' needs pmi"):
        model(center_ids=first, context_ids=second)


# --- vectors ---


def test_the_bare_model_comes_out_of_the_one_that_learned(tmp_path):
    model = build(item_bias=True, objective="nce")
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    v, u = model.model.embeddings.weight, model.model.context_vectors
    for kind, expected in (("input", v), ("context", u), ("sum", v + u), ("concat", torch.cat([v, u], 1))):
        bare = AutoModel.from_pretrained(tmp_path, output_vectors=kind)
        assert isinstance(bare, MinEntropyEmbeddingModel) and bare.config.hidden_size == expected.shape[1]
        assert torch.equal(bare(ids).last_hidden_state, expected[ids])
        masked = bare(ids, attention_mask=torch.tensor([[1, 1, 0], [1, 0, 0]])).last_hidden_state
        assert masked[0, 2].abs().sum() == 0 and torch.equal(masked[0, :2], expected[ids[0, :2]])
        assert bare.context_embeddings.weight.requires_grad == (kind != "input")
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again.item_bias, model.item_bias) and torch.equal(again.noise.alias, model.noise.alias)


def test_neighbours_and_analogies_by_hand():
    model = build().model
    table = torch.nn.functional.normalize(model.embeddings.weight, dim=1)
    cosines = table @ table.T
    found = model.most_similar(torch.tensor([2, 7]), top_k=3)
    for row, item in enumerate((2, 7)):
        order = sorted((j for j in range(ITEMS) if j != item), key=lambda j: -cosines[item, j].item())
        assert found.indices[row].tolist() == order[:3]
        torch.testing.assert_close(found.values[row], cosines[item, order[:3]])
    by_vector = model.most_similar(model.embeddings.weight[2], top_k=1)
    assert by_vector.indices.item() == 2
    inner = model.embeddings.weight @ model.embeddings.weight[2]
    assert model.most_similar(model.embeddings.weight[2], top_k=1, metric="dot").indices.item() == inner.argmax().item()
    a, b, c = torch.tensor(0), torch.tensor(1), torch.tensor(2)
    added = cosines[1] - cosines[0] + cosines[2]
    multiplied = (cosines[1] + 1) / 2 * (cosines[2] + 1) / 2 / ((cosines[0] + 1) / 2 + 1e-3)
    for method, scores in (("3cosadd", added), ("3cosmul", multiplied)):
        order = sorted(range(3, ITEMS), key=lambda j: -scores[j].item())
        assert model.analogy(a, b, c, top_k=6, method=method).indices.tolist() == order
    with pytest.raises(ValueError, match="metric='euclid' must be 'cosine', 'dot' or 'distance'"):
        model.most_similar(a, metric="euclid")
    with pytest.raises(ValueError, match="method='pairs' must be '3cosadd' or '3cosmul'"):
        model.analogy(a, b, c, method="pairs")


# --- the compiled loops ---

kernel = pytest.importorskip("hfblog.models.contrastive.skipgram_kernel")


def test_compiled_loops_against_plain_ones():
    """Window 1 and noise that is always the same word leave nothing to chance."""
    generator = np.random.default_rng(0)
    v, u = (generator.normal(scale=0.5, size=(6, 5)).astype(np.float32) for _ in range(2))
    sentences = [[0, 1, 2, 1], [3], [2, 4, 0]]
    items, starts = kernel.flatten_sequences(sentences, 6)
    assert items.tolist() == [0, 1, 2, 1, 3, 2, 4, 0] and starts.tolist() == [0, 4, 5, 8]
    keep, alias = np.zeros(6, np.float32), np.full(6, 5, np.int64)  # always word 5
    expected_v, expected_u = v.astype(np.float64), u.astype(np.float64)
    seen = 0
    for _ in range(2):
        for sentence in sentences:
            seen += len(sentence)
            rate = 0.1 + (0.02 - 0.1) * min(1.0, seen / 16)
            for centre, word in enumerate(sentence):
                near = [sentence[place] for place in (centre - 1, centre + 1) if 0 <= place < len(sentence)]
                of_outs = {word: np.zeros(5), 5: np.zeros(5)}
                of_inputs = []
                for context in near:
                    of_input = np.zeros(5)
                    # three draws of the same noise word: each adds the gradient that the first had
                    for out, target in ((word, 1.0), (5, 0.0), (5, 0.0), (5, 0.0)):
                        chance = 1 / (1 + math.exp(-expected_v[context] @ expected_u[out]))
                        step = rate * (target - chance)
                        of_input += step * expected_u[out]
                        of_outs[out] += step * expected_v[context]
                    of_inputs.append(of_input)
                # all pairs of a window see the vectors as they were before it
                for context, of_input in zip(near, of_inputs, strict=True):
                    expected_v[context] += of_input
                for out, gradient in of_outs.items():
                    expected_u[out] += gradient
    kernel.train_skipgram(
        items,
        starts,
        v,
        u,
        np.ones(6, np.float32),
        keep,
        alias,
        window=1,
        num_noise=3,
        epochs=2,
        learning_rate=0.1,
        min_learning_rate=0.02,
    )
    # the sigmoid comes from a table
    np.testing.assert_allclose(v, expected_v, atol=2e-3)
    np.testing.assert_allclose(u, expected_u, atol=2e-3)


def grammar(count: int = 3000) -> list[list[int]]:
    """Two topics of four words each; a sentence keeps to one."""
    generator = np.random.default_rng(0)
    return [(4 * generator.integers(2) + generator.integers(4, size=8)).tolist() for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_corpus_is_learned(threads):
    model = MinEntropyEmbeddingForPreTraining(MinEntropyEmbeddingConfig(vocab_size=8, embedding_dim=6, num_noise_samples=3))
    model.fit_corpus(grammar(), epochs=5, threads=threads)
    assert model.noise.counts.sum() == 3000 * 8 + 8
    for word in range(8):
        near = model.model.most_similar(torch.tensor(word), top_k=3).indices
        assert (near // 4 == word // 4).all()
    law = torch.zeros(8, 8)
    law[:4, :4] = law[4:, 4:] = 1
    points = model.reference_points(law)
    assert points.explained > 0.9
    if threads == 1:
        fresh = [MinEntropyEmbeddingForPreTraining(model.config) for _ in range(2)]
        fresh[1].load_state_dict(fresh[0].state_dict())
        for one in fresh:
            one.fit_corpus(grammar(200), epochs=1, seed=3)
        assert torch.equal(fresh[0].model.embeddings.weight, fresh[1].model.embeddings.weight)


def test_a_corpus_that_cannot_be_learned_is_named():
    model = build()
    for corpus, message in (
        ([], "the corpus is empty"),
        ([[1, 99]], r"item ids must lie in \[0, 9\), but range from 1 to 99"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit_corpus(corpus)
    with pytest.raises(ValueError, match="the compiled loops learn cost='dot' by objective='neg'"):
        build(cost="l2").fit_corpus([[1, 2]])
    with pytest.raises(ValueError, match=r"item ids must lie in \[0, 9\), but range from -1 to 3"):
        model.initialize(torch.tensor([-1, 3]))


def test_subsampling_is_word2vecs():
    counts = np.array([900, 90, 10])
    share = counts / 1000
    expected = np.minimum(1, np.sqrt(0.01 / share) + 0.01 / share)
    np.testing.assert_allclose(keep_chances(torch.from_numpy(counts), 0.01), expected, rtol=1e-6)
    assert (keep_chances(torch.from_numpy(counts), 0) == 1).all()


# --- files ---


@pytest.mark.parametrize("binary", [False, True])
def test_word2vec_files_come_back_bit_by_bit(binary, tmp_path):
    words, vectors = ["the", "迈向", "a-b"], np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    write_word2vec(tmp_path / "v", words, vectors, binary)
    again, numbers = read_word2vec(tmp_path / "v", binary)
    assert again == words and np.array_equal(numbers, vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    gensim = pytest.importorskip("gensim.models")
    theirs = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / "v"), binary=binary)
    assert theirs.index_to_key == words and np.array_equal(theirs.vectors, vectors)
    theirs.save_word2vec_format(str(tmp_path / "theirs"), binary=binary)
    again, numbers = read_word2vec(tmp_path / "theirs", binary)
    assert again == words
    np.testing.assert_allclose(numbers, vectors, rtol=1e-5)


def test_broken_word2vec_files_are_named(tmp_path):
    path = tmp_path / "v"
    for content, message in (
        (b"word 1 2\n", "begins with no 'words dimensions'"),
        (b"2 2\na 1 2\nb 1\n", "has 1 numbers, not 2, in line 3"),
        (b"2 2\na 1 2\n", "ends in line 3"),
        (b"1 2\n\xd6\xd0 1 2\n", "line 2, byte 1: .* is not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_word2vec(path)
    path.write_bytes(b"2 2\na " + b"\0" * 8 + b"\nb \0")
    with pytest.raises(ValueError, match="ends at word 2 of 2"):
        read_word2vec(path, binary=True)
    with pytest.raises(ValueError, match="'new york' cannot be a word"):
        write_word2vec(tmp_path / "w", ["new york"], np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"2 words need vectors \(2, d\), got \(1, 2\)"):
        write_word2vec(tmp_path / "w", ["a", "b"], np.zeros((1, 2)))
    assert not (tmp_path / "w").exists()

"""Laws over pairs of items and maps of them: against loops, automatic gradients and scikit-learn's measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness

from hfblog import (
    MinEntropyEmbeddingConfig,
    MinEntropyEmbeddingForPreTraining,
    count_pairs,
    feature_affinities,
    reference_points,
)

kernel = pytest.importorskip("hfblog.models.contrastive.map_kernel")


def build(items: int, **settings) -> MinEntropyEmbeddingForPreTraining:
    torch.manual_seed(0)
    fixed = {"objective": "full", "tie_context": True, "exclude_self": True, "embedding_dim": 2, "num_noise_samples": 1}
    return MinEntropyEmbeddingForPreTraining(MinEntropyEmbeddingConfig(vocab_size=items, **(fixed | settings)))


# --- laws ---


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_neighbours_have_the_perplexity_that_was_asked_for(scale):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    law = feature_affinities(x, 8.0, symmetric=False).to_dense()
    assert law.sum().item() == pytest.approx(1) and (law.diagonal() == 0).all()
    rows = law * 60
    torch.testing.assert_close(rows.sum(1), torch.ones(60, dtype=torch.float64))
    entropies = -torch.xlogy(rows, rows).sum(1)
    torch.testing.assert_close(entropies, torch.full((60,), math.log(8), dtype=torch.float64), rtol=1e-9, atol=1e-9)
    # a Gaussian: logarithms are linear in the squared distance, among the 24 nearest
    for i in range(5):
        squares = (x[i] - x).square().sum(1)
        near = squares.argsort()[1:25]
        assert set(rows[i].nonzero()[:, 0].tolist()) == set(near.tolist())
        slopes = torch.diff(rows[i, near].log()) / torch.diff(squares[near])
        torch.testing.assert_close(slopes, slopes[:1].expand_as(slopes), rtol=1e-4, atol=0)
    both = feature_affinities(x, 8.0).to_dense()
    torch.testing.assert_close(both, (law + law.T) / 2)


def test_affinities_do_not_depend_on_how_many_are_computed_at_a_time(monkeypatch):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    whole = feature_affinities(x, 5.0).to_dense()
    monkeypatch.setattr("hfblog.models.contrastive.affinities.DISTANCES_AT_A_TIME", 120)
    torch.testing.assert_close(feature_affinities(x, 5.0).to_dense(), whole)


def test_items_that_coincide_have_neighbours():
    x = torch.cat([torch.zeros(10, 2), torch.ones(10, 2)])
    law = feature_affinities(x, 3.0)
    assert torch.isfinite(law.values()).all() and law.values().sum().item() == pytest.approx(1)


def test_features_that_make_no_map_are_named():
    x = torch.randn(10, 2)
    x[3, 1] = math.nan
    x[7] = math.inf
    for features, perplexity, message in (
        (x, 3.0, "2 of 10 items have NaN or infinite features, item 3 the first"),
        (torch.randn(10, 2), 10.0, "perplexity=10.0 must lie between 1 and 9"),
        (torch.randn(10, 2), 1.0, "perplexity=1.0 must lie between 1 and 9"),
        (torch.randn(2, 2), 1.5, "a map needs at least 3 items, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            feature_affinities(features, perplexity)
    with pytest.raises(ValueError, match=r"vocab_size=9 items is square, got \(10, 10\)"):
        build(9, cost="l2").fit_features(torch.randn(10, 2), 3.0)


@pytest.mark.parametrize("window", [1, 3, None])
def test_pairs_are_counted_as_the_model_weighs_them(window):
    generator = np.random.default_rng(0)
    rows = [generator.integers(7, size=length).tolist() for length in (5, 1, 9, 2, 0, 4)]
    items = np.array([item for row in rows for item in row], np.int32)
    starts = np.cumsum([0, *map(len, rows)])
    counts = count_pairs(items, starts, 7, window).to_dense()
    model = build(7, window_size=window, exclude_self=False)
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for row in rows:
        if len(row) > 1:
            first, second, weights = model.window_pairs(torch.tensor([row]))
            expected.index_put_((first[0], second[0]), weights[0].double(), accumulate=True)
    torch.testing.assert_close(counts, expected)
    with pytest.raises(ValueError, match="the sequences hold no pairs"):
        count_pairs(np.array([1, 2], np.int32), np.array([0, 1, 2]), 7, window)


# --- costs and gradients ---

SETTINGS = [
    {"cost": "student_t", "normalize_over": "pairs"},
    {"cost": "student_t", "normalize_over": "next"},
    {"cost": "student_t", "normalize_over": "next", "degrees_of_freedom": 3.0},
    {"cost": "student_t", "normalize_over": "pairs", "degrees_of_freedom": 3.0},
    {"cost": "l2", "normalize_over": "next"},
    {"cost": "l2", "normalize_over": "pairs"},
]
NAMES = ["t-pairs", "t-next", "t3-next", "t3-pairs", "l2-next", "l2-pairs"]


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_compiled_gradients_against_automatic_ones(settings):
    law = feature_affinities(torch.randn(30, 4, generator=torch.Generator().manual_seed(1)), 4.0, symmetric=False)
    model = build(30, embedding_dim=3, **settings).double()
    model.model.embeddings.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    cost = model.law_objective(law)
    cost.backward()
    both = (law + law.T).coalesce()
    rows, columns = both.indices().numpy()
    for threads in (1, 3):
        problem = kernel.MapProblem(
            np.searchsorted(rows, np.arange(31)),
            columns.copy(),
            both.values().float().numpy(),
            torch.sparse.sum(law, 1).to_dense().float().numpy(),
            settings["cost"],
            settings.get("degrees_of_freedom", 1.0),
            settings["normalize_over"] == "pairs",
            threads,
        )
        places = np.ascontiguousarray(model.model.embeddings.weight.detach().numpy().T.astype(np.float32))
        gradient = problem.gradient(places)
        np.testing.assert_allclose(gradient.T, model.model.embeddings.weight.grad.numpy(), atol=2e-6)
        assert problem.value(places) == pytest.approx(cost.item(), rel=1e-6)
        if threads == 1:
            alone = gradient
    assert np.array_equal(alone, gradient)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("settings", [*SETTINGS, {"cost": "dot"}, {"cost": "library"}], ids=[*NAMES, "dot", "library"])
def test_costs_against_finite_differences_and_loops(settings, sparse):
    law = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).fill_diagonal_(0)
    law[1, 2] = 0
    model = build(6, **settings).double()
    weight = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)

    def objective(places):
        given = law.to_sparse() if sparse else law
        return torch.func.functional_call(_Objective(model), {"model.model.embeddings.weight": places}, (given,))

    assert torch.autograd.gradcheck(objective, (weight,), eps=1e-6, atol=1e-6)
    model.model.embeddings.weight.data.copy_(weight.detach())
    scores = model.scores(torch.arange(6)).detach()
    share = law / law.sum()
    if settings.get("normalize_over") == "pairs":
        expected = -sum(share[i, j] * (scores[i, j] - scores.flatten().logsumexp(0)) for i, j in share.nonzero().tolist())
    else:
        expected = -sum(share[i, j] * scores[i].log_softmax(0)[j] for i, j in share.nonzero().tolist())
    assert objective(weight).item() == pytest.approx(expected.item(), rel=1e-9)


class _Objective(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, law):
        return self.model.law_objective(law)


def test_the_walk_of_the_library_by_hand():
    model = build(3, cost="library", objective="layout", min_distance=1.0)
    model.model.embeddings.weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0], [3.0, 0.0]])
    law = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    # from the door to the first and on to the second, once; from the door to the second and on to the third, three times
    walks = [5 + math.sqrt(18), 1 + math.sqrt(10)]
    assert model.expected_walk(law).item() == pytest.approx(0.25 * walks[0] + 0.75 * walks[1])
    model.eval()
    output = model(center_ids=torch.tensor([0, 1]), context_ids=torch.tensor([1, 2]), weights=torch.tensor([1.0, 3.0]))
    assert output.loss.item() == pytest.approx(model.expected_walk(law).item())
    with pytest.raises(ValueError, match="which fit_law solves"):
        model.train()(center_ids=torch.tensor([0]), context_ids=torch.tensor([1]))


# --- maps ---


def test_digits_find_their_like():
    x, y = load_digits(return_X_y=True)
    model = build(len(x), cost="student_t", normalize_over="pairs")
    curve: list[tuple[int, float]] = []
    points = model.fit_features(torch.from_numpy(x), 30.0, threads=2, callback=lambda *at: curve.append(at))
    places = model.model.vectors().detach().numpy()
    near = (torch.cdist(torch.from_numpy(places), torch.from_numpy(places)) + torch.eye(len(x)) * 1e9).argmin(1).numpy()
    assert (y[near] == y).mean() >= 0.965
    assert trustworthiness(x, places, n_neighbors=12) >= 0.99
    assert [step for step, _ in curve] == list(range(50, 751, 50))
    free = [value for step, value in curve if step >= 300]
    assert free == sorted(free, reverse=True)
    assert points.conditional < points.cost < points.unigram <= points.uniform + 1e-9
    assert math.exp(points.conditional) > 30  # symmetric: more neighbours than were asked for


def test_a_map_of_sne_keeps_groups_apart_and_takes_any_dimension():
    centres = torch.eye(4) * 20
    x = centres.repeat_interleave(15, 0) + torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    for settings in ({"cost": "l2"}, {"cost": "student_t", "embedding_dim": 3}, {"cost": "l2", "embedding_dim": 1}):
        model = build(60, **settings)
        before = model.reference_points(feature_affinities(x, 5.0, symmetric=False))
        points = model.fit_features(x, 5.0, steps=400)
        assert points.cost < before.cost and points.explained > 0.5
        places = model.model.vectors().detach()
        near = (torch.cdist(places, places) + torch.eye(60) * 1e9).argmin(1)
        assert (near // 15 == torch.arange(60) // 15).float().mean() > 0.9


def test_laws_are_learned_to_their_end():
    """With as many dimensions as items a dot product explains everything; loops reach what Adam reaches."""
    law = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).pow(3).fill_diagonal_(0)
    model = build(12, cost="dot", tie_context=False, exclude_self=False, embedding_dim=12, initializer_range=6.0)
    curve = []
    assert model.fit_law(law, 600, callback=lambda *at: curve.append(at)).explained > 0.97
    assert len(curve) == 12 and curve[-1][1] < curve[0][1]
    symmetric = law + law.T
    costs = []
    for bias in (False, True):
        model = build(12, cost="l2", item_bias=bias, initializer_range=1.0)
        if bias:
            model.item_bias.requires_grad_(False)
        # with a bias of zeros Adam descends what the loops descend
        model.fit_noise = lambda counts, smoothing=0: None
        costs.append(model.fit_law(symmetric.to_sparse(), 1500, learning_rate=None if bias else 2.0).cost)
    assert costs[0] == pytest.approx(costs[1], abs=0.01)


def test_counts_in_any_form_are_the_same_law():
    law = torch.randint(1, 9, (8, 8), generator=torch.Generator().manual_seed(0)).fill_diagonal_(0)
    found = [build(8, cost="l2", initializer_range=1.0) for _ in range(3)]
    for model, given in zip(found, (law.float(), law.double().to_sparse(), 0.01 * law.double()), strict=True):
        points = model.fit_law(given, 100)
        assert points.conditional == pytest.approx(reference_points(law.float()).conditional)
        torch.testing.assert_close(model.model.vectors(), found[0].model.vectors(), rtol=1e-4, atol=1e-4)
    frequencies = law.sum(0).double() / law.sum()
    counts = found[0].noise.counts.double()
    torch.testing.assert_close(counts / counts.sum(), frequencies, rtol=1e-4, atol=1e-4)
    for wrong, message in (
        (torch.ones(7, 7), r"vocab_size=8 items is square, got \(7, 7\)"),
        (torch.zeros(8, 8), "some that are positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build(8, cost="l2").fit_law(wrong)


def test_what_nobody_borrows_stays_at_the_door():
    pytest.importorskip("hfblog.models.contrastive.library_layout")
    law = torch.zeros(6, 6)
    law[1, 2] = law[2, 4] = law[4, 1] = 1.0
    model = build(6, cost="library", objective="layout", min_distance=0.5)
    model.fit_law(law)
    places = model.model.vectors().detach()
    assert (places[[0, 3, 5]] == 0).all()
    assert torch.pdist(places[[1, 2, 4]]).min() >= 0.5 * (1 - 1e-6)


# --- skip-gram is factorised PMI ---


@pytest.mark.parametrize("k", [1, 5])
def test_negative_sampling_finds_shifted_pmi(k):
    """Levy and Goldberg 2014, at the level of vectors: as many dimensions as items leave nothing to approximate."""
    items = 60
    generator = torch.Generator().manual_seed(0)
    topics = torch.rand(items, 6, generator=generator, dtype=torch.float64) ** 4
    law = topics @ topics.T
    law /= law.sum()
    torch.manual_seed(0)
    config = {"embedding_dim": items, "num_noise_samples": k, "noise_power": 1.0, "initializer_range": 12.0}
    model = MinEntropyEmbeddingForPreTraining(MinEntropyEmbeddingConfig(vocab_size=items, **config)).double()
    model.noise.fit((law.sum(0) * 1e9).round().long())
    noise, ids = model.noise.log_probs.double().exp(), torch.arange(items)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1000, tolerance_change=0, line_search_fn="strong_wolfe")

    def expected_loss():
        """What the sampled loss is on average, by its own terms: one noise item k times is k noise items."""
        optimizer.zero_grad()
        scores = model.scores(ids)
        loss = (law * torch.nn.functional.softplus(-scores)).sum()
        loss = loss + k * (law.sum(1, keepdim=True) * noise * torch.nn.functional.softplus(scores)).sum()
        loss.backward()
        return loss

    optimizer.step(expected_loss)
    with torch.no_grad():
        scores = model.scores(ids)
    pmi = (law / law.sum(1, keepdim=True) / noise).log() - math.log(k)
    assert (law * (scores - pmi).abs()).sum() < 0.005
    assert torch.corrcoef(torch.stack([scores.flatten(), pmi.flatten()]))[0, 1] > 0.9999
    points = model.reference_points(law)
    assert points.cost == pytest.approx(points.conditional, abs=1e-4) and points.explained > 0.999

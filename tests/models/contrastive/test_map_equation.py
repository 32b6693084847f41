"""The map equation against its textbook sum and against infomap; clusters against planted ones."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from hfblog.models.contrastive import map_equation
from hfblog.models.contrastive.map_equation import cluster_by_infomap, code_length, neighbour_graph


def random_graph(seed: int, num_nodes: int = 30, density: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    links = torch.triu_indices(num_nodes, num_nodes, 1).T
    links = links[torch.rand(len(links), generator=generator) < density]
    return links, 0.1 + torch.rand(len(links), generator=generator, dtype=torch.float64)


def planted_graph(seed: int, groups: int = 6, size: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Links, weights and groups: half of the pairs within a group are linked, 2 % of those between groups."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(groups * size)[torch.randperm(groups * size, generator=generator)] % groups
    links = torch.triu_indices(groups * size, groups * size, 1).T
    chance = torch.where(truth[links[:, 0]] == truth[links[:, 1]], 0.5, 0.02)
    links = links[torch.rand(len(links), generator=generator) < chance]
    return links, torch.ones(len(links), dtype=torch.float64), truth


def textbook_code_length(links: list, weights: list, modules: list, num_nodes: int) -> float:
    """q H(Q) + sum_i p_i H(P_i) of the walk's matrix, by loops."""
    matrix = [[0.0] * num_nodes for _ in range(num_nodes)]
    for (a, b), weight in zip(links, weights, strict=True):
        matrix[a][b] += weight
        matrix[b][a] += weight
    total = sum(map(sum, matrix))
    visits = [sum(row) / total for row in matrix]

    def entropy(rates: list[float]) -> float:
        return -sum(rate / sum(rates) * math.log2(rate / sum(rates)) for rate in rates if rate > 0)

    exits, within = {}, 0.0
    for module in {modules[a] for a in range(num_nodes) if visits[a] > 0}:
        members = [a for a in range(num_nodes) if modules[a] == module]
        others = [b for b in range(num_nodes) if modules[b] != module]
        # a step from a member: first the chance to be there, then that of the link
        exits[module] = sum(visits[a] * matrix[a][b] / sum(matrix[a]) for a in members for b in others if sum(matrix[a]) > 0)
        codes = [exits[module], *(visits[a] for a in members)]
        within += sum(codes) * entropy(codes)
    return sum(exits.values()) * entropy(list(exits.values())) + within


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_modules", [1, 2, 7, 30])
def test_code_length_is_the_sum_of_entropies(seed, num_modules):
    links, weights = random_graph(seed)
    modules = torch.randint(num_modules, (30,), generator=torch.Generator().manual_seed(seed))
    expected = textbook_code_length(links.tolist(), weights.tolist(), modules.tolist(), 30)
    assert code_length(links, weights, modules, 30) == pytest.approx(expected, abs=1e-12)


def test_code_length_knows_no_names_and_no_scale():
    links, weights = random_graph(0)
    modules = torch.arange(30) % 4
    length = code_length(links, weights, modules, 30)
    assert code_length(links.flip(1), 7 * weights, 100 - modules, 30) == pytest.approx(length, abs=1e-12)
    halves = torch.cat([links, links]), torch.cat([weights, weights]) / 2
    assert code_length(*halves, modules, 30) == pytest.approx(length, abs=1e-12)


@pytest.mark.parametrize("density", [0.05, 0.15, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_code_length_is_that_of_infomap(seed, density):
    infomap = pytest.importorskip("infomap")
    links, weights = random_graph(seed, density=density)
    network = infomap.Network()
    network.add_links([(a, b, weight) for (a, b), weight in zip(links.tolist(), weights.tolist(), strict=True)])
    result = infomap.run(network, two_level=True, seed=seed + 1, num_trials=2)
    modules = torch.full((30,), -1)
    for node, module in result.modules().items():
        modules[node] = module
    assert code_length(links, weights, modules, 30) == pytest.approx(result.codelength, abs=1e-6)
    assert code_length(links, weights, torch.zeros(30, dtype=torch.int64), 30) == pytest.approx(
        result.one_level_codelength, abs=1e-6
    )
    clusters = cluster_by_infomap(links, weights, 30, seed=seed + 1, num_trials=2)
    assert clusters.code_length == pytest.approx(result.codelength, abs=1e-6)
    assert clusters.code_length <= clusters.one_module_code_length + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_of_nodes_are_found(seed):
    pytest.importorskip("infomap")
    links, weights, truth = planted_graph(seed)
    clusters = cluster_by_infomap(links, weights, 120)
    assert normalized_mutual_info_score(truth, clusters.modules) >= 0.95
    assert clusters.code_length < clusters.one_module_code_length
    assert clusters.code_length <= code_length(links, weights, truth, 120) + 1e-9


def test_planted_groups_of_vectors_are_found():
    pytest.importorskip("infomap")
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(150) % 6
    vectors = torch.randn(6, 20, generator=generator)[truth] + 0.3 * torch.randn(150, 20, generator=generator)
    clusters = cluster_by_infomap(*neighbour_graph(vectors, max_neighbours=10), 150)
    assert normalized_mutual_info_score(truth, clusters.modules) >= 0.95
    assert clusters.code_length < clusters.one_module_code_length


def test_modules_are_numbered_by_flow_and_a_seed_gives_the_same_again():
    pytest.importorskip("infomap")
    links, weights = random_graph(1, num_nodes=60, density=0.06)
    first, second = (cluster_by_infomap(links, weights, 60, num_trials=3, seed=5) for _ in range(2))
    assert torch.equal(first.modules, second.modules) and first.code_length == second.code_length
    strength = torch.zeros(60, dtype=torch.float64).index_add_(0, links.flatten(), weights.repeat_interleave(2))
    walked = first.modules >= 0
    flow = torch.zeros(int(first.modules.max()) + 1, dtype=torch.float64)
    flow.index_add_(0, first.modules[walked], strength[walked])
    assert len(flow) > 2 and (flow > 0).all() and (flow.diff() <= 1e-12).all()


def test_nodes_without_links_have_no_module():
    pytest.importorskip("infomap")
    links = torch.tensor([[1, 2], [1, 3], [2, 3], [5, 6], [3, 4]])
    weights = torch.tensor([1.0, 1, 1, 1, 0])  # a link without weight is none
    clusters = cluster_by_infomap(links, weights, 8)
    assert clusters.modules.tolist() == [-1, 0, 0, 0, -1, 1, 1, -1]
    assert clusters.modules.dtype == torch.int64
    # a module of which no step leads out: three nodes of equal flow in 3/4 of the time, two in 1/4
    assert clusters.code_length == pytest.approx(0.75 * math.log2(3) + 0.25)


def dense_links(vectors: torch.Tensor, max_neighbours: int, min_similarity: float) -> dict:
    """By loops over all pairs."""
    rows = [[x / (math.sqrt(sum(y * y for y in row)) or 1.0) for x in row] for row in vectors.double().tolist()]
    cosines = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    near = [
        sorted((j for j in range(len(rows)) if j != i), key=lambda j, row=row: -row[j])[:max_neighbours]
        for i, row in enumerate(cosines)
    ]
    return {
        (i, j): cosines[i][j]
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if (j in near[i] or i in near[j]) and cosines[i][j] >= min_similarity
    }


@pytest.mark.parametrize("at_a_time", [1, 41, 41 * 7, 41 * 41, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("max_neighbours", "min_similarity"), [(3, 0.1), (5, 0.6), (100, 0.5)])
def test_neighbour_graph_against_all_pairs(monkeypatch, at_a_time, dtype, max_neighbours, min_similarity):
    monkeypatch.setattr(map_equation, "COSINES_AT_A_TIME", at_a_time)
    vectors = torch.randn(41, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    vectors[17] = 0
    links, weights = neighbour_graph(vectors, max_neighbours, min_similarity)
    expected = dense_links(vectors, max_neighbours, min_similarity)
    assert list(map(tuple, links.tolist())) == sorted(expected)
    assert len(links) > 20 and links.dtype == torch.int64 and weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx([expected[pair] for pair in sorted(expected)], abs=1e-12)


def test_neighbour_graph_may_be_empty():
    for vectors in (torch.empty(0, 3), torch.ones(1, 3), torch.eye(3), torch.zeros(4, 3)):
        links, weights = neighbour_graph(vectors)
        assert links.shape == (0, 2) and weights.shape == (0,)


def test_equal_vectors_have_cosine_one():
    links, weights = neighbour_graph(torch.tensor([[0.1, 0.7, 0.3]]).half().expand(4, 3))
    assert len(links) == 6 and weights.max() <= 1 and weights.min() > 1 - 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3),), r"\(N, d\), got \(3,\)"),
        ((torch.tensor([[1.0], [math.nan]]),), "1 of 2 vectors are NaN or infinite, vector 1"),
        ((torch.tensor([[math.inf], [1.0]]),), "vector 0"),
        ((torch.ones(3, 2), 0), "max_neighbours=0 must be at least 1"),
        ((torch.ones(3, 2), 5, 1.5), "min_similarity=1.5 must lie between 0 and 1"),
    ],
)
def test_bad_vectors(arguments, message):
    with pytest.raises(ValueError, match=message):
        neighbour_graph(*arguments)


LINKS, WEIGHTS, MODULES = torch.tensor([[0, 1], [1, 2]]), torch.ones(2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("links", "weights", "message"),
    [
        (LINKS[:0], WEIGHTS[:0], "lower min_similarity"),
        (LINKS, 0 * WEIGHTS, "lower min_similarity"),
        (LINKS.T[:1].T, WEIGHTS, r"\(E, 2\) of integers, got \(2, 1\)"),
        (LINKS.float(), WEIGHTS, "integers, got .* torch.float32"),
        (LINKS, torch.ones(3), r"2 links need weights \(2,\), got \(3,\)"),
        (LINKS, torch.tensor([1.0, -2.0]), "that of link 1 is -2.0"),
        (LINKS, torch.tensor([math.nan, 1.0]), "that of link 0 is nan"),
        (LINKS + 1, WEIGHTS, "nodes 0 to 2, got 1 to 3"),
        (LINKS - 1, WEIGHTS, "nodes 0 to 2, got -1 to 1"),
        (torch.tensor([[0, 1], [2, 2]]), WEIGHTS, "link 1 joins node 2 with itself"),
    ],
)
def test_bad_links(links, weights, message):
    pytest.importorskip("infomap")
    with pytest.raises(ValueError, match=message):
        code_length(links, weights, MODULES, 3)
    with pytest.raises(ValueError, match=message):
        cluster_by_infomap(links, weights, 3)


def test_bad_modules():
    with pytest.raises(ValueError, match=r"modules are \(3,\) of integers, got \(2,\)"):
        code_length(LINKS, WEIGHTS, MODULES[:2], 3)
    with pytest.raises(ValueError, match="got .* torch.float32"):
        code_length(LINKS, WEIGHTS, MODULES.float(), 3)
    with pytest.raises(ValueError, match="node 2 has links and module -1"):
        code_length(LINKS, WEIGHTS, torch.tensor([0, 0, -1]), 3)


def test_bad_search(monkeypatch):
    pytest.importorskip("infomap")
    with pytest.raises(ValueError, match="num_trials=0"):
        cluster_by_infomap(LINKS, WEIGHTS, 3, num_trials=0)
    with pytest.raises(ValueError, match="seed=0"):
        cluster_by_infomap(LINKS, WEIGHTS, 3, seed=0)
    monkeypatch.setitem(sys.modules, "infomap", None)
    with pytest.raises(ImportError, match="pip install infomap"):
        cluster_by_infomap(LINKS, WEIGHTS, 3)


def test_infomap_says_nothing(capfd):
    pytest.importorskip("infomap")
    cluster_by_infomap(LINKS, WEIGHTS, 3)
    assert capfd.readouterr() == ("", "")

"""Places of items that make borrowing the least walking: against loops, all orders, and places that are known to be best."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

library_layout = pytest.importorskip("hfblog.models.contrastive.library_layout")
LibraryLayout = library_layout.LibraryLayout


def random_law(items: int, num_groups: int, seed: int) -> Tensor:
    """Popular and less popular items in groups that are borrowed together."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(num_groups, (items,), generator=generator)
    popularity = 1 / (1 + torch.randperm(items, generator=generator).double()) ** 0.7
    together = torch.where(group[:, None] == group, 1.0, 0.05) * torch.rand(items, items, generator=generator).double() ** 3
    return (popularity[:, None] * popularity * together).fill_diagonal_(0)


def patch(dim: int, items: int) -> Tensor:
    """The sites of a densest lattice around one of them, nearest first, distance 1."""
    if dim == 2:
        cells = itertools.product(range(-3, 4), repeat=2)
        sites = [(a + b / 2, b * math.sqrt(3) / 2) for a, b in cells]
    else:
        cells = itertools.product(range(-2, 3), repeat=3)
        sites = [tuple(x / math.sqrt(2) for x in cell) for cell in cells if sum(cell) % 2 == 0]
    sites = torch.tensor(sites, dtype=torch.float64)
    return sites[sites.norm(dim=1).sort(stable=True).indices][:items]


def neighbour_law(sites: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A law that the sites are best for, and the popularity, in a random order, and the sites in that order.

    Every pair that is borrowed together is as near as is allowed, and by symmetry no other place of the door is better.
    """
    order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed))
    sites = sites[order]
    joint = (torch.cdist(sites, sites) - 1).abs() < 1e-6
    return joint.double(), torch.exp(-2 * sites.norm(dim=1)), sites


def procrustes_error(found: Tensor, planted: Tensor) -> float:
    """Root mean square distance, item by item, after the best turn or reflection about the door."""
    left, _, right = torch.linalg.svd(found.T @ planted)
    return ((found @ left @ right - planted) ** 2).sum(1).mean().sqrt().item()


# --- the cost ---


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_cost_is_the_sum_over_all_pairs(dim, sparse):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 4, (6, 6), generator=generator)
    counts[2] = 0
    v = torch.randn(6, dim, generator=generator, dtype=torch.float64)
    layout = LibraryLayout(counts.to_sparse() if sparse else counts, dim=dim, door_weight=0.7)
    law = (counts / counts.sum()).tolist()
    expected = sum(0.7 * sum(law[i]) * math.hypot(*v[i].tolist()) for i in range(6))
    expected += sum(law[i][j] * math.dist(v[i].tolist(), v[j].tolist()) for i in range(6) for j in range(6))
    assert layout.expected_cost(v) == pytest.approx(expected, rel=1e-6)


def test_popularity_replaces_the_row_sums():
    layout = LibraryLayout(torch.tensor([[0, 1], [1, 0]]), popularity=torch.tensor([3, 1]))
    assert layout.popularity.tolist() == [0.75, 0.25]
    v = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert layout.expected_cost(v) == pytest.approx(0.75 * 2 + 2)
    assert LibraryLayout(torch.tensor([[2, 1], [1, 0]])).popularity.tolist() == [0.75, 0.25]  # the diagonal counts here alone


# --- what is found ---


@pytest.mark.parametrize(("dim", "items"), [(2, 7), (2, 19), (3, 13)])
@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_places_that_are_known_to_be_best(dim, items, seed):
    joint, popularity, planted = neighbour_law(patch(dim, items), seed)
    layout = LibraryLayout(joint, dim=dim, popularity=popularity).fit(restarts=4, moves=50_000)
    assert layout.positions.shape == (items, dim) and layout.positions.dtype == torch.float64
    # item by item: no other order has the same neighbours, up to turns and reflections of all of it
    assert procrustes_error(layout.positions, planted) < 0.1
    assert layout.smallest_distance() >= 1 - 1e-6
    assert layout.expected_cost() <= layout.expected_cost(planted) + 1e-6
    assert layout.positions[popularity.argmax()].norm() < layout.positions.norm(dim=1).median()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_lattice_search_is_as_good_as_all_orders(dim, seed):
    items, num_sites = 5, 8
    layout = LibraryLayout(random_law(items, 2, seed), dim=dim)
    # the first restart has the door on a site
    layout.fit(restarts=1, moves=20_000, polish_steps=0)
    sites = library_layout._lattice_sites(num_sites, dim, np.zeros(dim))
    orders = np.array(list(itertools.permutations(range(num_sites), items)))
    places = torch.from_numpy(sites[orders])
    law = layout.joint
    costs = places.norm(dim=-1) @ law.sum(1) + (torch.cdist(places, places) * law).sum((1, 2))
    assert layout.expected_cost() <= costs.min().item() + 1e-9


@pytest.mark.parametrize("dim", [2, 3])
def test_descent_leaves_the_lattice_where_that_is_cheaper(dim):
    # three items alike: the door is best amid them, which the first restart's lattice does not have
    layout = LibraryLayout(torch.ones(3, 3).fill_diagonal_(0), dim=dim)
    bound = 1 / math.sqrt(3) + 1
    assert layout.fit(restarts=1, moves=1000, polish_steps=0).expected_cost() > bound + 0.05
    assert layout.fit(restarts=1, moves=1000).expected_cost() == pytest.approx(bound, abs=1e-5)
    # eight items in space: the lattice is not the best that there is
    layout = LibraryLayout(random_law(8, 2, 3), dim=3)
    lattice = layout.fit(restarts=2, moves=5000, polish_steps=0).expected_cost()
    assert layout.fit(restarts=2, moves=5000).expected_cost() < lattice
    assert layout.smallest_distance() >= 1 - 1e-9


def test_two_items_touch_and_the_popular_one_has_the_door():
    layout = LibraryLayout(torch.tensor([[0, 1], [1, 0]]), popularity=torch.tensor([9, 1])).fit(restarts=2, moves=100)
    assert layout.positions.norm(dim=1).tolist() == pytest.approx([0, 1], abs=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_costs_less_than_the_baselines(dim):
    layout = LibraryLayout(random_law(60, 6, 0), dim=dim).fit(restarts=2, moves=50_000)
    baselines = [layout.by_popularity(), layout.random_order(), layout.random_order(1)]
    for positions in baselines:
        assert torch.pdist(positions).min() >= 1 - 1e-9
        assert layout.expected_cost() < 0.95 * layout.expected_cost(positions)
    assert layout.expected_cost(baselines[0]) < layout.expected_cost(baselines[1])
    radii = layout.by_popularity().norm(dim=1)[layout.popularity.argsort(descending=True)]
    assert (radii.diff() > -1e-9).all()
    assert torch.pdist(layout.positions).min() >= 1 - 1e-9


def test_same_seed_gives_the_same_places():
    law = random_law(20, 3, 0)
    first, second, third = (LibraryLayout(law).fit(restarts=2, moves=2000, seed=seed).positions for seed in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_least_distance_scales_everything():
    law = random_law(12, 3, 0)
    one, four = (LibraryLayout(law, min_distance=d).fit(restarts=2, moves=2000) for d in (1.0, 4.0))
    torch.testing.assert_close(four.positions, 4 * one.positions)
    assert four.expected_cost() == pytest.approx(4 * one.expected_cost())
    assert four.smallest_distance() == pytest.approx(4)
    torch.testing.assert_close(four.random_order(3), 4 * one.random_order(3))


def test_extreme_laws_are_kept_apart_too():
    law = torch.zeros(9, 9, dtype=torch.float64)
    law[0, 1], law[2, 3] = 1e300, 1e-300  # most are never borrowed
    layout = LibraryLayout(law).fit(restarts=2, moves=1000)
    assert layout.positions.isfinite().all() and layout.smallest_distance() >= 1 - 1e-9
    alone = LibraryLayout(torch.eye(5), door_weight=0.0).fit(restarts=1, moves=100)  # every place is as good
    assert alone.smallest_distance() >= 1 - 1e-9 and alone.expected_cost() == 0


# --- the picture ---


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_picture_is_a_small_png(tmp_path, dim, labelled):
    layout = LibraryLayout(random_law(40, 4, 0), dim=dim, min_distance=0.5).fit(restarts=1, moves=2000)
    labels = {"names": [f"name of {i}" for i in range(40)], "groups": [i % 4 for i in range(40)]} if labelled else {}
    layout.picture(tmp_path / "layout.png", **labels)
    content = (tmp_path / "layout.png").read_bytes()
    assert content.startswith(b"\x89PNG") and 2000 < len(content) < 200_000


# --- what is refused ---


@pytest.mark.parametrize(
    ("joint", "settings", "message"),
    [
        (torch.ones(2, 3), {}, r"square.*\(2, 3\)"),
        (torch.ones(4), {}, r"square.*\(4,\)"),
        (torch.ones(1, 1), {}, "2 items.*1"),
        (torch.tensor([[0.0, -1.0], [2.0, 0.0]]), {}, "negative.*-1.0"),
        (torch.tensor([[0.0, math.nan], [2.0, 0.0]]), {}, "finite.*nan"),
        (torch.tensor([[0.0, math.inf], [2.0, 0.0]]), {}, "finite.*inf"),
        (torch.zeros(3, 3), {}, "above 0"),
        (torch.ones(3, 3), {"dim": 4}, "2 or 3.*4"),
        (torch.ones(3, 3), {"min_distance": 0.0}, "min_distance.*0.0"),
        (torch.ones(3, 3), {"min_distance": math.nan}, "min_distance.*nan"),
        (torch.ones(3, 3), {"door_weight": -1.0}, "door_weight.*-1.0"),
        (torch.ones(3, 3), {"popularity": torch.ones(2)}, r"\(3,\).*\(2,\)"),
        (torch.ones(3, 3), {"popularity": -torch.ones(3)}, "popularity.*negative"),
    ],
)
def test_bad_laws_are_refused(joint, settings, message):
    with pytest.raises(ValueError, match=message):
        LibraryLayout(joint, **settings)


def test_bad_calls_are_refused(tmp_path):
    layout = LibraryLayout(torch.ones(3, 3))
    for call in (layout.expected_cost, layout.smallest_distance, lambda: layout.picture(tmp_path / "layout.png")):
        with pytest.raises(ValueError, match="fit"):
            call()
    with pytest.raises(ValueError, match="restarts.*0"):
        layout.fit(restarts=0)
    with pytest.raises(ValueError, match="moves.*-1"):
        layout.fit(moves=-1)
    layout.fit(restarts=1, moves=10)
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(3, 3\)"):
        layout.expected_cost(torch.ones(3, 3))
    with pytest.raises(ValueError, match="names.*3.*2"):
        layout.picture(tmp_path / "layout.png", names=["a", "b"])
    with pytest.raises(ValueError, match="groups.*3.*1"):
        layout.picture(tmp_path / "layout.png", groups=["a"])

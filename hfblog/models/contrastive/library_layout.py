"""Shelves of least walking: the constrained problem in the plane and in space that word vectors are explained by.

Su Jianlin 2018, https://kexue.fm/archives/6191. Simulated annealing: Kirkpatrick, Gelatt and Vecchi 1983.
"""

from __future__ import annotations

import io
import math
import os
import unicodedata
from collections.abc import Hashable, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Without compiled loops, positions that are there can be measured and drawn; only `fit` needs them.
from .xorshift import COMPILED, njit, random_bits, random_state

__all__ = ["LibraryLayout"]

# Lattices of the densest packing at distance 1, a vector a row, and where in their cell the door can stand.
BASES = {
    2: np.array([[1, 0], [1 / 2, math.sqrt(3) / 2]]),
    3: np.array([[1, 0, 0], [1 / 2, math.sqrt(3) / 2, 0], [1 / 2, math.sqrt(3) / 6, math.sqrt(2 / 3)]]),
}
DOORS = {
    2: np.array([[0, 0], [1 / 2, 0], [1 / 3, 1 / 3]]),  # on a site, between two, amid three
    3: np.array(
        [[0, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 4, 1 / 4, 1 / 4], [1 / 2, 0, 0], [1 / 3, 1 / 3, 0]]
    ),  # last, as in 2-D
}
NUM_NEAR_SITES = {2: 6, 3: 12}
# Temperatures at the start and the end, as shares of what a random move changes.
HOTTEST, COLDEST = 1.0, 1e-3
# Descents off the lattice: passes over all pairs a step at most; how many results are disturbed, how often, and how far, as a
# share of the least distance.
SWEEPS = 100
NUM_KICKED, KICKS, KICK = 3, 2, 0.1
# Of pictures: bytes at most, and lines an item at most.
LARGEST_PICTURE, LINES_AN_ITEM = 200_000, 2


@njit(cache=True)
def _uniform(state):
    return random_bits(state) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def _below(state, number):
    return np.int64(random_bits(state) % np.uint64(number))


@njit(cache=True)
def _difference(a, site, distances, radii, pairs, door, site_of, item_at):
    """What the cost gains when item ``a`` goes to ``site`` and the item there, if any, comes to where ``a`` was."""
    old, b = site_of[a], item_at[site]
    total = 0.0
    if b < 0:
        for k in range(len(site_of)):
            total += pairs[a, k] * (distances[site, site_of[k]] - distances[old, site_of[k]])
        # k = a has pairs[a, a] = 0
        return total + door[a] * (radii[site] - radii[old])
    for k in range(len(site_of)):
        total += (pairs[a, k] - pairs[b, k]) * (distances[site, site_of[k]] - distances[old, site_of[k]])
    # k = a and k = b were counted as if the other one stayed; the distance of the two does not change
    total += 2 * pairs[a, b] * distances[site, old]
    return total + (door[a] - door[b]) * (radii[site] - radii[old])


@njit(cache=True)
def _move(a, site, site_of, item_at):
    old, b = site_of[a], item_at[site]
    site_of[a], item_at[site], item_at[old] = site, a, b
    if b >= 0:
        site_of[b] = old


@njit(cache=True)
def _descend(distances, radii, pairs, door, site_of, item_at):
    """The best moves of each item in turn, until none of all items and sites gains anything."""
    moved, gained = True, False
    while moved:
        moved = False
        for a in range(len(site_of)):
            best, best_site = -1e-12, -1
            for site in range(len(item_at)):
                if site != site_of[a]:
                    change = _difference(a, site, distances, radii, pairs, door, site_of, item_at)
                    if change < best:
                        best, best_site = change, site
            if best_site >= 0:
                _move(a, best_site, site_of, item_at)
                moved = gained = True
    return gained


@njit(cache=True)
def _anneal(distances, radii, pairs, cumulative, near, door, site_of, item_at, moves, hottest, coldest, seed):
    """Simulated annealing of which item is on which site; ``site_of`` and ``item_at`` are shuffled first."""
    state = random_state(seed)
    for _ in range(16):
        random_bits(state)
    items, sites = len(site_of), len(item_at)
    item_at[:] = -1
    for a in range(items):
        site_of[a] = a
    for a in range(items - 1, 0, -1):
        b = _below(state, a + 1)
        site_of[a], site_of[b] = site_of[b], site_of[a]
    for a in range(items):
        item_at[site_of[a]] = a
    scale = 0.0
    for _ in range(1000):
        a, site = _below(state, items), _below(state, sites)
        if site != site_of[a]:
            scale += abs(_difference(a, site, distances, radii, pairs, door, site_of, item_at)) / 1000
    if scale > 0:
        temperature = hottest * scale
        cooling = (coldest / hottest) ** (1.0 / max(moves, 1))
        for _ in range(moves):
            temperature *= cooling
            a = _below(state, items)
            total = cumulative[a, items - 1]
            if total > 0 and random_bits(state) % np.uint64(2):
                # next to an item that it is borrowed with, which a random site seldom is
                b = min(np.searchsorted(cumulative[a], _uniform(state) * total, side="right"), items - 1)
                site = near[site_of[b], _below(state, near.shape[1])]
            else:
                site = _below(state, sites)
            if site == site_of[a]:
                continue
            change = _difference(a, site, distances, radii, pairs, door, site_of, item_at)
            if change <= 0 or _uniform(state) < math.exp(-change / temperature):
                _move(a, site, site_of, item_at)
    _descend(distances, radii, pairs, door, site_of, item_at)


@njit(cache=True)
def _cost(places, pairs, door):
    total = 0.0
    for i in range(len(places)):
        square = 0.0
        for t in range(places.shape[1]):
            square += places[i, t] ** 2
        total += door[i] * math.sqrt(square)
        for j in range(i):
            if pairs[i, j] > 0:
                square = 0.0
                for t in range(places.shape[1]):
                    square += (places[i, t] - places[j, t]) ** 2
                total += pairs[i, j] * math.sqrt(square)
    return total


@njit(cache=True)
def _smallest(places):
    smallest = np.inf
    for i in range(len(places)):
        for j in range(i):
            square = 0.0
            for t in range(places.shape[1]):
                square += (places[i, t] - places[j, t]) ** 2
            smallest = min(smallest, square)
    return math.sqrt(smallest)


@njit(cache=True)
def _step(places, pairs, door, weights, size, pushes, pulls):
    """A step down the cost that keeps the distances, to first order.

    It minimises the cost, the distances of pairs made linear, plus ``weights |x - places|^2 / (2 size)``, no pair coming
    nearer than 1 along the line that it is on now. Who keeps that keeps the distance too. Hildreth's method, 1957: ascent
    by one multiplier at a time. The multipliers, ``pushes`` ``(N, N)`` of pairs and ``pulls`` ``(N, dim)`` of the door, are
    kept from step to step, so that steps end where the multipliers are right.
    """
    items, dim = places.shape
    new = places.copy()
    count = 0
    near = np.empty((items * (items - 1) // 2, 2), np.int64)
    lines = np.empty((len(near), dim))
    for i in range(items):
        for j in range(i):
            square = 0.0
            for t in range(dim):
                square += (places[i, t] - places[j, t]) ** 2
            distance = math.sqrt(square)
            push = -pairs[i, j]
            if distance < 2:
                near[count, 0], near[count, 1] = i, j
                for t in range(dim):
                    lines[count, t] = (places[i, t] - places[j, t]) / distance
                count += 1
                push += pushes[i, j]
            else:
                pushes[i, j] = 0
            if push != 0:
                for t in range(dim):
                    away = size * push * (places[i, t] - places[j, t]) / distance
                    new[i, t] += away / weights[i]
                    new[j, t] -= away / weights[j]
    for i in range(items):
        for t in range(dim):
            new[i, t] -= size / weights[i] * pulls[i, t]
    for _ in range(SWEEPS):
        worst = 0.0
        for i in range(items):
            scale = size / weights[i]
            square = 0.0
            for t in range(dim):
                square += (new[i, t] / scale + pulls[i, t]) ** 2
            # no longer than p(i), and as long wherever the item is not on the door
            share = min(1.0, door[i] / math.sqrt(square)) if square > 0 else 1.0
            for t in range(dim):
                pull = (new[i, t] / scale + pulls[i, t]) * share
                worst = max(worst, abs(pull - pulls[i, t]) * scale)
                new[i, t] -= (pull - pulls[i, t]) * scale
                pulls[i, t] = pull
        for pair in range(count):
            i, j = near[pair, 0], near[pair, 1]
            gap = -1.0
            for t in range(dim):
                gap += (new[i, t] - new[j, t]) * lines[pair, t]
            change = max(-pushes[i, j], -gap / (size * (1 / weights[i] + 1 / weights[j])))
            if change != 0:
                pushes[i, j] += change
                for t in range(dim):
                    away = size * change * lines[pair, t]
                    new[i, t] += away / weights[i]
                    new[j, t] -= away / weights[j]
                worst = max(worst, abs(change) * size * (1 / weights[i] + 1 / weights[j]))
        if worst < 1e-12:
            break
    smallest = _smallest(new)
    if smallest > 0:
        new /= smallest  # the cost is homogeneous: as near as allowed is always best
    else:
        new[:] = np.inf
    return new


@njit(cache=True)
def _polish(places, pairs, door, weights, steps):
    best = _cost(places, pairs, door)
    size, failed = 0.1, 0
    pushes, pulls = np.zeros(pairs.shape), np.zeros(places.shape)
    for _ in range(steps):
        new = _step(places, pairs, door, weights, size, pushes, pulls)
        cost = _cost(new, pairs, door)
        if cost < best * (1 - 1e-9):
            places, best, failed = new, cost, 0
            size = min(size * 1.5, 1.0)
        else:
            size /= 2
            failed += 1
            if failed == 12:  # the size is then 4096 times smaller
                break
    return places


def _lattice_sites(number: int, dim: int, door: np.ndarray) -> np.ndarray:
    """The ``number`` sites nearest the door, nearest first, ``(number, dim)`` float64, at distance 1."""
    # a ball of this radius holds more than enough: the density of sites is above 1
    reach = math.ceil(2 * number ** (1 / dim)) + 2
    cells = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * dim, indexing="ij"), -1).reshape(-1, dim)
    places = (cells - door) @ BASES[dim]
    radii = np.linalg.norm(places, axis=1)
    # rounded, and then by place: the same order wherever the last bits of the radii differ
    order = np.lexsort((*places.round(6).T, radii.round(6)))[:number]
    return places[order]


class LibraryLayout:
    r"""Places for items, in the plane or in space, that make borrowing them the least walking.

    Whoever borrows item i and then item j walks from the door, the origin, to i and from there to j. The places v minimise

        S = door_weight * sum_i p(i) |v_i| + sum_ij p(i, j) |v_i - v_j|   subject to |v_i - v_j| >= min_distance, i != j

    so that the popular ends up near the door, and what is borrowed together side by side. The minimum is one of very many;
    what `fit` finds is a good one, from a search in two parts: simulated annealing of which item stands on which site of
    a densest lattice (triangular in the plane, face-centred cubic in space), then descent off the lattice. A turn or a mirror
    image about the door costs the same.

    Args:
        joint: `(N, N)`, dense or sparse COO, p(i, j) or counts, of any real dtype. It is divided by its sum. It need not be
            symmetric; its diagonal counts for p(i) only.
        dim: 2 for the plane, 3 for space.
        min_distance: the least distance of two items, in the unit that the places shall have. The door keeps none.
        popularity: `(N,)`, p(i) or counts, divided by its sum; the row sums of `joint` where it is not given.
        door_weight: how much the walk from the door counts; 0 leaves the door out.

    Attributes:
        positions: `(N, dim)` float64 on the CPU, None before `fit`.
        popularity: `(N,)` float64, p(i).

    Raises:
        ValueError: `joint` is not square, has fewer than 2 items, or holds a negative number, one that is not finite, or
            nothing; `dim` is neither 2 nor 3; `min_distance` is not above 0; `popularity` does not fit; `door_weight` is
            negative.

    Example: seven items, the first borrowed with all others and those around in a ring, take up a hexagon.

    ```python
    >>> import torch
    >>> from hfblog.models.contrastive.library_layout import LibraryLayout
    >>> joint = torch.zeros(7, 7)
    >>> joint[0, 1:] = 2.0
    >>> for i in range(1, 7):
    ...     joint[i, i % 6 + 1] = 1.0
    >>> layout = LibraryLayout(joint, popularity=joint.sum(0) + joint.sum(1)).fit(restarts=3, moves=10_000)
    >>> layout.positions.norm(dim=1).sort().values.round(decimals=3).tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> round(layout.smallest_distance(), 6)
    1.0
    >>> layout.expected_cost() < layout.expected_cost(layout.random_order())
    True

    ```
    """

    def __init__(
        self,
        joint: Tensor,
        dim: int = 2,
        min_distance: float = 1.0,
        popularity: Tensor | None = None,
        door_weight: float = 1.0,
    ):
        if joint.ndim != 2 or joint.shape[0] != joint.shape[1]:
            raise ValueError(f"joint must be square, (N, N), got {tuple(joint.shape)}")
        if len(joint) < 2:
            raise ValueError(f"a layout needs 2 items or more, got {len(joint)}")
        if dim not in BASES:
            raise ValueError(f"dim must be 2 or 3, got {dim}")
        if not 0 < min_distance < math.inf:
            raise ValueError(f"min_distance must be above 0 and finite, got {min_distance}")
        if not 0 <= door_weight < math.inf:
            raise ValueError(f"door_weight must be 0 or above and finite, got {door_weight}")
        joint = joint.detach().to_dense() if joint.layout != torch.strided else joint.detach()
        self.joint = self._law(joint, "joint")
        if popularity is None:
            self.popularity = self.joint.sum(1)
        elif popularity.shape != joint.shape[:1]:
            raise ValueError(f"popularity must be ({len(joint)},) as joint is, got {tuple(popularity.shape)}")
        else:
            self.popularity = self._law(popularity.detach(), "popularity")
        self.dim, self.min_distance, self.door_weight = dim, float(min_distance), float(door_weight)
        self.positions: Tensor | None = None
        # p(i, j) + p(j, i), which is what |v_i - v_j| counts with
        self._pairs = np.ascontiguousarray((self.joint + self.joint.T).fill_diagonal_(0).numpy())
        self._door = self.door_weight * self.popularity.numpy()

    @staticmethod
    def _law(numbers: Tensor, name: str) -> Tensor:
        numbers = numbers.cpu().double()
        if not numbers.isfinite().all():
            raise ValueError(f"{name} must hold finite numbers, got {numbers[~numbers.isfinite()][0].item()}")
        if numbers.min() < 0:
            raise ValueError(f"{name} must not hold negative numbers, got {numbers.min().item()}")
        if numbers.max() == 0:
            raise ValueError(f"{name} must hold a number above 0, got 0 alone")
        # by the largest first: the sum of very large ones would overflow
        numbers = numbers / numbers.max()
        return numbers / numbers.sum()

    def __len__(self) -> int:
        return len(self.joint)

    def fit(self, restarts: int = 8, moves: int = 1_000_000, polish_steps: int = 500, seed: int = 0) -> LibraryLayout:
        """Searches places and keeps the best of all restarts in `positions`.

        Args:
            restarts: searches, each from another random order; they take turns at where the lattice has the door.
            moves: what each annealing tries: an item to another site, changing places with the item there if there is one.
            polish_steps: steps at most of each descent off the lattice; 0 leaves the items on lattice sites.
            seed: of the random orders and moves. The same one gives the same places, bit by bit, on the same machine.

        Returns:
            The layout itself.

        Raises:
            ImportError: numba is missing, without which this takes hours.
            ValueError: `restarts` is below 1, or `moves`, `polish_steps` or `seed` is negative.
        """
        if not COMPILED:
            raise ImportError("the compiled loops need numba: pip install numba")
        if restarts < 1:
            raise ValueError(f"restarts must be 1 or above, got {restarts}")
        for name, number in (("moves", moves), ("polish_steps", polish_steps), ("seed", seed)):
            if number < 0:
                raise ValueError(f"{name} must be 0 or above, got {number}")
        items, dim = len(self), self.dim
        num_sites = items + 4 + math.ceil(4 * items ** ((dim - 1) / dim))  # about a shell more than items
        weights = self._door + self._pairs.sum(1)
        # an item that nobody borrows has no scale of its own
        weights = np.maximum(weights, 1e-9 * weights.max()) if weights.max() > 0 else np.ones(items)
        cumulative = self._pairs.cumsum(1)
        found = []
        for restart in range(restarts):
            random = np.random.default_rng([seed, restart])
            sites = _lattice_sites(num_sites, dim, DOORS[dim][restart % len(DOORS[dim])])
            distances, radii = self._distances(sites)
            near = np.argsort(distances, axis=1, kind="stable")[:, 1 : 1 + NUM_NEAR_SITES[dim]].copy()
            site_of, item_at = np.zeros(items, np.int64), np.zeros(num_sites, np.int64)
            _anneal(
                distances,
                radii,
                self._pairs,
                cumulative,
                near,
                self._door,
                site_of,
                item_at,
                moves,
                HOTTEST,
                COLDEST,
                random.integers(2**62),
            )
            found.append((_cost(sites[site_of], self._pairs, self._door), sites[site_of]))
            if polish_steps:
                found[-1] = min(found[-1], self._descended(sites[site_of], weights, polish_steps), key=itemgetter(0))
        found.sort(key=itemgetter(0))
        for place in range(min(NUM_KICKED, restarts) if polish_steps else 0):
            # a small disturbance leaves the lattice where descent alone cannot
            random = np.random.default_rng([seed, restarts, place])
            for _ in range(KICKS):
                new = found[place][1] + KICK * random.standard_normal((items, dim))
                found[place] = min(found[place], self._descended(new, weights, polish_steps), key=itemgetter(0))
        places = min(found, key=itemgetter(0))[1]
        self.positions = torch.from_numpy(places * (self.min_distance / _smallest(places)))
        return self

    def _descended(self, places: np.ndarray, weights: np.ndarray, steps: int) -> tuple[float, np.ndarray]:
        """Cost and places, at least distance 1, after descent from ``places``."""
        places = _polish(places / _smallest(places), self._pairs, self._door, weights, steps)
        # two items that change places break nothing, wherever they are
        distances, radii = self._distances(places)
        site_of, item_at = np.arange(len(self)), np.arange(len(self))
        if _descend(distances, radii, self._pairs, self._door, site_of, item_at):
            places = _polish(places[site_of], self._pairs, self._door, weights, steps)
        return _cost(places, self._pairs, self._door), places

    @staticmethod
    def _distances(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of all pairs of places, and of each from the door."""
        return np.linalg.norm(places[:, None] - places[None], axis=-1), np.linalg.norm(places, axis=1)

    def _places(self, positions: Tensor | None) -> Tensor:
        if positions is None:
            positions = self.positions
        if positions is None:
            raise ValueError("there are no positions yet: call fit first, or give some")
        if positions.shape != (len(self), self.dim):
            raise ValueError(f"positions must be ({len(self)}, {self.dim}), got {tuple(positions.shape)}")
        return positions.detach().cpu().double()

    def expected_cost(self, positions: Tensor | None = None) -> float:
        """S, the expected walk, in the unit of `min_distance`.

        Args:
            positions: `(N, dim)`, whether they keep the distance or not; those of `fit` where not given.

        Raises:
            ValueError: they have another shape, or there are none yet.
        """
        places = self._places(positions)
        return _cost(np.ascontiguousarray(places.numpy()), self._pairs, self._door)

    def smallest_distance(self) -> float:
        """The distance of the two nearest items, in the unit of `min_distance`.

        Raises:
            ValueError: there are no positions yet.
        """
        return _smallest(self._places(None).numpy())

    def _nearest_sites(self) -> Tensor:
        sites = _lattice_sites(len(self), self.dim, DOORS[self.dim][0])
        return torch.from_numpy(sites) * self.min_distance

    def by_popularity(self) -> Tensor:
        """A baseline that knows p(i) alone: the more popular, the nearer the door, `(N, dim)` float64, on lattice sites."""
        positions = torch.empty(len(self), self.dim, dtype=torch.float64)
        positions[self.popularity.argsort(descending=True, stable=True)] = self._nearest_sites()
        return positions

    def random_order(self, seed: int = 0) -> Tensor:
        """A baseline that knows nothing: a random order on the lattice sites nearest the door, `(N, dim)` float64."""
        return self._nearest_sites()[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))]

    def _floors(self) -> list[tuple[str, np.ndarray]]:
        """The items of each panel of a picture, with its title: all of them, or the layers of the lattice from the bottom."""
        places = self._places(None).numpy()
        if self.dim == 2:
            return [("", np.arange(len(self)))]
        height = BASES[3][2, 2] * self.min_distance
        # the door need not be on a floor: the heights' common remainder, as an angle's mean
        angles = 2 * np.pi * places[:, 2] / height
        lowest = math.atan2(np.sin(angles).mean(), np.cos(angles).mean()) / (2 * np.pi) * height
        floors = np.round((places[:, 2] - lowest) / height).astype(int)
        return [(f"height {lowest + floor * height:.2f}", np.flatnonzero(floors == floor)) for floor in np.unique(floors)]

    def picture(
        self, path: str | os.PathLike, names: Sequence[str] | None = None, groups: Sequence[Hashable] | None = None
    ) -> None:
        """Draws the items as circles with the least distance for a diameter: circles that touch are as near as is allowed.

        A cross marks the door. The disc inside a circle has an area in proportion to p(i). Lines join what is often borrowed
        together, wider for a larger p(i, j) + p(j, i). In space, every floor is a plan of its own, with the door below or
        above it as a pale cross, and lines between floors are left out.

        Args:
            path: where the PNG goes, below 200 KB.
            names: `(N,)`, written inside the circles; split at spaces. A script that matplotlib's font lacks needs
                `matplotlib.rcParams["font.family"]`.
            groups: `(N,)`, labels that the colours stand for.

        Raises:
            ImportError: matplotlib or pillow is missing.
            ValueError: there are no positions yet, or `names` or `groups` has not one for each item.
        """
        places = self._places(None).numpy()
        for name, labels in (("names", names), ("groups", groups)):
            if labels is not None and len(labels) != len(self):
                raise ValueError(f"{name} must have {len(self)} entries, one for each item, got {len(labels)}")
        try:
            from matplotlib import colormaps
            from matplotlib.collections import EllipseCollection, LineCollection
            from matplotlib.figure import Figure
            from matplotlib.lines import Line2D
            from PIL import Image
        except ImportError as error:
            raise ImportError("a picture needs matplotlib and pillow: pip install matplotlib pillow") from error
        kinds = sorted(set(groups), key=str) if groups is not None else [None]
        palette = colormaps["tab10" if len(kinds) <= 10 else "tab20"].colors
        colours = np.array([palette[kinds.index(kind) % len(palette)] for kind in groups or [None] * len(self)])
        pale = 1 - 0.25 * (1 - colours)
        medium = 1 - 0.55 * (1 - colours)

        rows, columns = np.triu_indices(len(self), 1)
        often = self._pairs[rows, columns]
        kept = np.argsort(-often, kind="stable")[: LINES_AN_ITEM * len(self)]
        kept = kept[often[kept] > 0]
        floors = self._floors()
        across = math.ceil(math.sqrt(len(floors)))
        down = math.ceil(len(floors) / across)
        # the same scale on all floors, the door in the middle of none but seen on all
        low = np.minimum(places[:, :2].min(0), 0) - 0.6 * self.min_distance
        high = np.maximum(places[:, :2].max(0), 0) + 0.6 * self.min_distance
        unit = 8 / (across * max(high - low))  # inches
        title = 0.25 if self.dim == 3 else 0.0
        legend = 0.4 + 0.09 * max(len(str(kind)) for kind in kinds) if groups is not None else 0.0
        width = across * (high - low)[0] * unit
        height = down * ((high - low)[1] * unit + title)
        figure = Figure((width + legend, height))
        nearest = min(range(len(floors)), key=lambda floor: np.abs(places[floors[floor][1], 2:]).sum(1).min())
        diameter = self.min_distance * unit * 72  # points
        for floor, (text, items) in enumerate(floors):
            row, column = divmod(floor, across)
            left, bottom = column * width / across, height - (row + 1) * height / down
            axes = figure.add_axes(
                (
                    left / (width + legend),
                    bottom / height,
                    width / across / (width + legend),
                    (height / down - title) / height,
                )
            )
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
            axes.set_axis_off()
            if text:
                axes.set_title(text, fontsize=9, pad=2)
            share = np.sqrt(self.popularity.numpy()[items] / self.popularity.max().item())
            for size, fill, edge in ((np.ones(len(items)), pale, 0.8), (share, medium, 0.0)):
                size = size * self.min_distance
                axes.add_collection(
                    EllipseCollection(
                        size,
                        size,
                        np.zeros(len(items)),
                        units="x",
                        offsets=places[items, :2],
                        offset_transform=axes.transData,
                        facecolors=fill[items],
                        edgecolors=colours[items],
                        linewidths=edge,
                    )
                )
            here = np.isin(rows[kept], items) & np.isin(columns[kept], items)
            if here.any():
                ends = np.stack([places[rows[kept][here], :2], places[columns[kept][here], :2]], 1)
                widths = 0.3 + 3 * often[kept][here] / often[kept[0]]
                axes.add_collection(LineCollection(ends, linewidths=widths, colors="0.25", alpha=0.3, zorder=2))
            on_floor = self.dim == 2 or floor == nearest
            # thin, and as wide as half an item: the name of an item on the door stays legible
            axes.plot(0, 0, "x", color="black" if on_floor else "0.7", markersize=diameter / 2, markeredgewidth=1.2, zorder=3)
            for item in items if names is not None else ():
                lines = str(names[item]).split()
                # in ems: a wide letter takes a whole one
                longest = max(
                    (sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in x) for x in lines), default=1
                )
                size = min(11.0, 0.9 * diameter / longest, 0.7 * diameter / max(len(lines), 1))
                axes.text(
                    *places[item, :2], "\n".join(lines), fontsize=size, ha="center", va="center", linespacing=0.9, zorder=4
                )
        if groups is not None:
            marks = [Line2D([], [], marker="o", linestyle="", color=palette[k % len(palette)]) for k in range(len(kinds))]
            figure.legend(
                marks, [str(kind) for kind in kinds], loc="center right", fontsize=8, frameon=False, handletextpad=0.2
            )
        for dpi in (100, 80, 60, 40):
            drawn, png = io.BytesIO(), io.BytesIO()
            figure.savefig(drawn, format="png", dpi=dpi)
            # a palette takes a third of the bytes and shows no difference
            Image.open(drawn).convert("RGB").quantize(128).save(png, format="png", optimize=True)
            if png.tell() < LARGEST_PICTURE:
                break
        Path(path).write_bytes(png.getvalue())

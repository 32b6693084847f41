"""Clusters of vectors by the map equation: modules in which a random walk over similar vectors stays for long.

Rosvall and Bergstrom 2008, arXiv:0707.0609; of word vectors, Su Jianlin 2019, https://kexue.fm/archives/7006. Code lengths
are in bits, as in those papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Cosines computed at a time: a bound on memory, not on what is computed.
COSINES_AT_A_TIME = 2**24


@dataclass
class Clusters:
    """A partition of nodes into modules.

    Args:
        modules: ``(N,)`` int64, the module of each node, 0 the one with most flow; -1 where a node has no links.
        code_length: bits a step of the walk, by these modules.
        one_module_code_length: bits a step with all nodes in one module, the entropy of where the walk is.
    """

    modules: Tensor
    code_length: float
    one_module_code_length: float


def neighbour_graph(vectors: Tensor, max_neighbours: int = 50, min_similarity: float = 0.6) -> tuple[Tensor, Tensor]:
    """Links between similar vectors: one is among the nearest of the other, and their cosine is large enough.

    Without both bounds the graph is dense, and a dense graph is one module.

    Args:
        vectors: ``(N, d)``, on any device; a vector of zeros has no links.
        max_neighbours: how many nearest vectors each one chooses.
        min_similarity: least cosine, between 0 and 1.

    Returns:
        Links ``(E, 2)`` int64, each once and with the smaller number first, in order; and their cosines ``(E,)`` float64.
        Both are on the CPU. There may be no links.

    Raises:
        ValueError: not a matrix, NaN or infinite vectors, or a bound that makes no sense.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import neighbour_graph
    >>> links, weights = neighbour_graph(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    >>> links.tolist(), [round(weight, 4) for weight in weights.tolist()]
    ([[0, 1], [1, 2]], [0.6, 0.8])

    ```
    """
    vectors = torch.as_tensor(vectors).detach()
    if vectors.ndim != 2:
        raise ValueError(f"vectors are (N, d), got {tuple(vectors.shape)}")
    if max_neighbours < 1:
        raise ValueError(f"max_neighbours={max_neighbours} must be at least 1")
    if not 0 < min_similarity < 1:
        raise ValueError(f"min_similarity={min_similarity} must lie between 0 and 1")
    bad = (~torch.isfinite(vectors)).any(1).nonzero()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(vectors)} vectors are NaN or infinite, vector {int(bad[0])} the first: remove them"
        )
    count = len(vectors)
    near = min(max_neighbours, count - 1)
    if near < 1:
        return torch.empty(0, 2, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    unit = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
    keys = []
    for rows in torch.arange(count, device=unit.device).split(max(1, COSINES_AT_A_TIME // count)):
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows), device=unit.device), rows] = -torch.inf
        best = cosines.topk(near, dim=1)
        # a little below the bound, which the exact cosines decide
        first, place = (best.values > min_similarity - 1e-4).nonzero(as_tuple=True)
        second, first = best.indices[first, place], rows[first]
        keys.append((torch.minimum(first, second) * count + torch.maximum(first, second)).cpu())
    keys = torch.cat(keys).unique()
    links = torch.stack([keys // count, keys % count], 1)
    # once more for every link in double precision: i to j and j to i may have differed in the last bits
    exact = F.normalize(vectors.cpu().double(), dim=1)
    parts = links.split(max(1, COSINES_AT_A_TIME // max(1, vectors.shape[1])))
    weights = torch.cat([(exact[part[:, 0]] * exact[part[:, 1]]).sum(1) for part in parts])
    kept = weights >= min_similarity - 1e-12  # 0.6 by rounding is 0.6
    return links[kept], weights[kept].clamp_max(1)


def code_length(links: Tensor, weights: Tensor, modules: Tensor, num_nodes: int) -> float:
    """The two-level map equation: bits that name one step of the undirected random walk, at best.

    A step within a module takes the module's own code, a step out of it its exit code and the index of modules:
    ``q H(Q) + sum_i p_i H(P_i)``, where q is how often the walk changes modules, Q their shares of it, and p_i how often
    the code of module i is in use, for a visit to a node or for the exit. A node's flow is its share of the links' weight.

    Args:
        links: ``(E, 2)`` of integers, numbers of nodes; each undirected link once, or in parts that add up.
        weights: ``(E,)``, not negative.
        modules: ``(N,)`` of integers; nodes without links have no flow and may be -1.
        num_nodes: N.

    Raises:
        ValueError: shapes or numbers that do not belong together, or no links.

    Example, two triangles and a link between them:

    ```python
    >>> import torch
    >>> from hfblog import code_length
    >>> links = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5], [2, 3]])
    >>> weights = torch.ones(7)
    >>> round(code_length(links, weights, torch.tensor([0, 0, 0, 1, 1, 1]), 6), 4)
    2.3207
    >>> round(code_length(links, weights, torch.zeros(6, dtype=torch.int64), 6), 4)
    2.5567

    ```
    """
    links, weights = _checked_links(links, weights, num_nodes)
    modules = torch.as_tensor(modules).cpu()
    if modules.shape != (num_nodes,) or modules.is_floating_point():
        raise ValueError(f"modules are ({num_nodes},) of integers, got {tuple(modules.shape)} {modules.dtype}")
    flow = _node_flow(links, weights, num_nodes)
    homeless = ((flow > 0) & (modules < 0)).nonzero()
    if len(homeless):
        node = int(homeless[0])
        raise ValueError(f"node {node} has links and module {int(modules[node])}; modules are numbered from 0")
    walked = flow > 0
    kinds, module = modules[walked].unique(return_inverse=True)
    number = torch.full((num_nodes,), -1, dtype=torch.int64)
    number[walked] = module
    inside = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, module, flow[walked])
    first, second = number[links].T
    between = first != second
    share = weights[between] / (2 * weights.sum())
    leaving = torch.zeros_like(inside)
    for end in (first, second):
        leaving.index_add_(0, end[between], share)

    def sum_of_logs(x: Tensor) -> float:
        return torch.xlogy(x, x).sum().item() / math.log(2)

    # the entropies of all codes, with what they have in common written once
    index = sum_of_logs(leaving.sum()) - sum_of_logs(leaving)
    within = sum_of_logs(inside + leaving) - sum_of_logs(leaving) - sum_of_logs(flow)
    return index + within


def cluster_by_infomap(links: Tensor, weights: Tensor, num_nodes: int, *, num_trials: int = 10, seed: int = 1) -> Clusters:
    """Modules of small code length, found by the package infomap: two levels, undirected.

    Args:
        links, weights, num_nodes: as in `code_length`, such as `neighbour_graph` gives them.
        num_trials: searches, of which the best counts.
        seed: of the searches, at least 1; the same one gives the same modules.

    Raises:
        ImportError: infomap is missing.
        ValueError: shapes or numbers that do not belong together, or no links.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import cluster_by_infomap
    >>> links = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5], [2, 3]])
    >>> cluster_by_infomap(links, torch.ones(7), num_nodes=7).modules.tolist()
    [0, 0, 0, 1, 1, 1, -1]

    ```
    """
    try:
        from infomap import Network
        from infomap import run as run_infomap
    except ImportError as error:
        raise ImportError("clusters by the map equation come from infomap, version 2: pip install infomap") from error
    links, weights = _checked_links(links, weights, num_nodes)
    if num_trials < 1 or seed < 1:
        raise ValueError(f"num_trials={num_trials} and seed={seed} must be at least 1")
    network = Network()
    network.add_links(torch.cat([links.double(), weights[:, None]], 1).numpy())
    found = run_infomap(network, two_level=True, num_trials=num_trials, seed=seed).modules()
    nodes = torch.tensor(sorted(found))
    names, module = torch.tensor([found[node] for node in nodes.tolist()]).unique(return_inverse=True)
    flow = _node_flow(links, weights, num_nodes)
    mass = torch.zeros(len(names), dtype=torch.float64).index_add_(0, module, flow[nodes])
    first_node = torch.full((len(names),), num_nodes).scatter_reduce_(0, module, nodes, "amin")
    # the most flow first; of the same flow, in the order of the nodes
    by_node = first_node.argsort()
    order = by_node[mass[by_node].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    modules = torch.full((num_nodes,), -1)
    modules[nodes] = rank[module]
    one_module = torch.zeros(num_nodes, dtype=torch.int64)
    return Clusters(
        modules,
        code_length(links, weights, modules, num_nodes),
        code_length(links, weights, one_module, num_nodes),
    )


def _checked_links(links: Tensor, weights: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Links int64 and weights float64, on the CPU, without those of weight 0, which the walk never takes."""
    links, weights = torch.as_tensor(links).detach().cpu(), torch.as_tensor(weights).detach().cpu().double()
    if links.ndim != 2 or links.shape[1] != 2 or links.is_floating_point():
        raise ValueError(f"links are (E, 2) of integers, got {tuple(links.shape)} {links.dtype}")
    if weights.shape != (len(links),):
        raise ValueError(f"{len(links)} links need weights ({len(links)},), got {tuple(weights.shape)}")
    if not len(links) or not weights.any():
        raise ValueError("there are no links, and without them no modules: lower min_similarity, such as to 0.4")
    wrong = (~torch.isfinite(weights) | (weights < 0)).nonzero()
    if len(wrong):
        link = int(wrong[0])
        raise ValueError(f"weights are finite and not negative, but that of link {link} is {weights[link].item()}")
    if links.min() < 0 or links.max() >= num_nodes:
        raise ValueError(f"links join nodes 0 to {num_nodes - 1}, got {int(links.min())} to {int(links.max())}")
    loops = (links[:, 0] == links[:, 1]).nonzero()
    if len(loops):
        raise ValueError(f"links join two nodes, but link {int(loops[0])} joins node {int(links[loops[0, 0], 0])} with itself")
    return links[weights > 0].long(), weights[weights > 0]


def _node_flow(links: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """How often the walk visits each node, ``(N,)`` float64, sums to 1."""
    strength = torch.zeros(num_nodes, dtype=torch.float64)
    for end in links.T:
        strength.index_add_(0, end, weights)
    return strength / (2 * weights.sum())


__all__ = ["Clusters", "cluster_by_infomap", "code_length", "neighbour_graph"]

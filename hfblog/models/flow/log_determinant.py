"""log |det(I + J)| of a residual block ``x + g(x)`` from vector-Jacobian products of g, where ||J||_2 <= c < 1.

    log det(I + J) = sum_{k >= 1} (-1)^(k+1) / k  tr(J^k),        tr(A) = E[v A v^T]  for E[v^T v] = I

(Behrmann et al. 2019, arXiv:1811.00995, section 3; Chen et al. 2019, arXiv:1906.02735, section 3.2). Here v is a row.

Every function takes ``vjp(v, rows)``: the products v J for ``v`` of shape ``(probes, batch, *shape)``, of the examples
``rows`` of the batch. It is differentiable in the weights and in the point of linearisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

VJP = Callable[[Tensor, slice], Tensor]
# Nats per example and block that a chain of products may leave out.
NEGLIGIBLE = 1e-6
ALL = slice(None)


def series_tails(lipschitz: float, num_terms: int) -> list[float]:
    """``R_k = sum_{i >= 1} c^i / (k + i)`` for k = 0 ... num_terms, from above.

    What follows term k of the series of log(1 - c) is ``c^k R_k``. Downward recursion is stable.
    """
    beyond = num_terms + 1 + math.ceil(-40 / math.log(lipschitz)) if lipschitz > 0 else num_terms + 1
    tail = lipschitz / ((beyond + 1) * (1 - lipschitz))
    tails = []
    for k in range(beyond - 1, -1, -1):
        tail = lipschitz * (1 / (k + 1) + tail)
        if k <= num_terms:
            tails.append(tail)
    return tails[::-1]


def truncation_bound(size: int, lipschitz: float, num_terms: int) -> float:
    """Largest error in nats of the series cut after ``num_terms``: ``-D (log(1 - c) + sum c^k / k)``, met by ``g = -c x``."""
    return size * lipschitz**num_terms * series_tails(lipschitz, num_terms)[-1]


def terms_for(size: int, lipschitz: float, tolerance: float) -> int:
    """Fewest terms whose `truncation_bound` is at most ``tolerance`` nats."""
    terms = 1
    while truncation_bound(size, lipschitz, terms) > tolerance:
        terms += max(1, terms // 8)
    return terms


def _wide(a: Tensor) -> Tensor:
    """In at least float32."""
    return a.to(torch.promote_types(a.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """``(probes, batch, *shape)`` twice to ``(probes, batch)``; sums in at least float32."""
    return (_wide(a) * b).sum(tuple(range(2, a.ndim)))


def exact_log_det(vjp: VJP, example: Tensor, width: int, max_bytes: int = 2**28) -> Tensor:
    """Log-determinant of the dense Jacobian, ``(batch,)``, differentiable.

    Args:
        example: ``(batch, *shape)``, for shape, dtype and device.
        width: most numbers that the network holds at once for one row of the Jacobian.
        max_bytes: without gradient, examples are taken in chunks whose largest tensor is of about this size.
    """
    batch, size = len(example), example[0].numel()
    basis = torch.eye(size, dtype=example.dtype, device=example.device).view(size, 1, *example.shape[1:])
    identity = torch.eye(size, dtype=example.dtype, device=example.device)
    chunk = batch if torch.is_grad_enabled() else max(1, max_bytes // (size * width * example.element_size()))
    values = []
    for start in range(0, batch, chunk):
        jacobian = vjp(basis, slice(start, start + chunk)).flatten(2).transpose(0, 1)
        value = torch.linalg.slogdet(identity + jacobian.to(example.dtype))[1]
        values.append(value.expand(min(chunk, batch - start)))  # one Jacobian for all where g is affine
    return torch.cat(values)


def truncated_log_det(
    vjp: VJP,
    probes: Tensor,
    num_terms: int,
    lipschitz: float,
    tolerance: float | None = None,
    exact_trace: bool = False,
    neumann: bool = True,
) -> tuple[Tensor, Tensor, int]:
    """The first terms of the series.

    Args:
        probes: ``(probes, batch, *shape)``; with ``exact_trace`` the ``(D, batch, *shape)`` unit vectors.
        num_terms: most terms.
        lipschitz: bound c on ||J||_2.
        tolerance: an example stops earlier where the bound on what is left is this small, nats.
        exact_trace: the probes are a basis: add their terms up instead of averaging.
        neumann: see `with_neumann_gradient`; else gradients go through every term.

    Returns:
        the sums ``(probes, batch)``, to be averaged, or added up for a basis; a bound ``(batch,)`` on what the terms that were
        left out would add *for these probes* (with an exact trace, on the error itself), from ||v J^k|| and c; the number
        of terms taken.
    """
    tails = series_tails(lipschitz, num_terms)
    differentiate = torch.is_grad_enabled()
    reduce = torch.sum if exact_trace else torch.mean
    length = _dot(probes, probes).sqrt()
    with torch.set_grad_enabled(differentiate and not neumann):
        chain, series = probes, 0 * _wide(probes)
        values = series.new_zeros(probes.shape[:2])
        running, bound = series.new_ones(probes.shape[1]), series.new_zeros(probes.shape[1])
        for k in range(1, num_terms + 1):
            sign = 1 if k % 2 else -1
            coefficient = sign * running
            if neumann and differentiate:
                series = series + coefficient.view(-1, *[1] * (chain.ndim - 2)) * chain
            chain = vjp(chain, ALL)
            values = values + coefficient / k * _dot(chain, probes)
            if tolerance is not None or k == num_terms:
                with torch.no_grad():
                    left = reduce(_dot(chain, chain).sqrt() * length, dim=0) * tails[k]
                    bound = torch.where(running > 0, left, bound)
                if tolerance is not None:
                    # each example by itself: its value must not depend on the others in its batch
                    running = running * (bound > tolerance)
                    if not running.any():
                        break
    if neumann and differentiate:
        values = with_neumann_gradient(values, series, vjp, probes)
    return values, bound, k


def with_neumann_gradient(values: Tensor, series: Tensor, vjp: VJP, probes: Tensor) -> Tensor:
    """``values`` ``(probes, batch)`` with the gradient ``v (sum_k (-1)^k w_k J^k) dJ v^T``.

    That is one differentiable product, so memory does not grow with the number of terms.

    Args:
        series: ``v sum_k (-1)^k w_k J^k``, without gradient.
    """
    surrogate = _dot(vjp(series.detach(), ALL), probes)
    return values.detach() + (surrogate - surrogate.detach())


def roulette_log_det(
    vjp: VJP,
    probes: Tensor,
    num_exact_terms: int,
    stop_probability: float,
    lipschitz: float,
    generator: torch.Generator | None = None,
    neumann: bool = True,
) -> Tensor:
    """Unbiased estimate ``(batch,)`` by Russian roulette (Chen et al. 2019, equations 6 and 8).

    Every example stops at a term of its own, so that the noise of the stops averages out over a batch. They are sorted,
    the longest first, and each term is computed for the examples that still run: the cost is that of the mean length.
    The caller shuffles the batch, so that an example's length does not depend on its place.

    Args:
        probes: ``(probes, batch, *shape)``.
        num_exact_terms: terms that are always taken, m.
        stop_probability: p of the geometric law of the further terms N >= 1; term m + j has weight ``(1 - p)^(1 - j)``.
        lipschitz: bound c on ||J||_2. On a CPU, where looking costs nothing, a chain ends once all that may follow is
            certain to stay below `NEGLIGIBLE`.
        generator: on the CPU; where N is drawn from.
    """
    batch = probes.shape[1]
    uniform = 1 - torch.rand(batch, generator=generator, dtype=torch.float64)
    further = 1 + (uniform.log() / math.log1p(-stop_probability)).floor().long()
    counts = torch.bincount(further).flip(0).cumsum(0).flip(0).tolist()  # counts[j]: examples with N >= j
    differentiate = torch.is_grad_enabled()
    # weighted terms after term k are below weight_k ||v J^k|| ||v|| r^i / (k + i), r = c / (1 - p)
    ratio = lipschitz / (1 - stop_probability)
    may_stop = ratio < 1 and probes.device.type == "cpu"
    reach = probes[0, 0].numel() ** 0.5 * ratio / (1 - ratio) if may_stop else math.inf
    with torch.set_grad_enabled(differentiate and not neumann):
        chain, series = probes, 0 * _wide(probes)
        values = series.new_zeros(probes.shape[:2])
        for k in range(1, num_exact_terms + len(counts)):
            beyond = max(k - num_exact_terms, 0)
            running = counts[beyond] if beyond else batch
            weight = (1 - stop_probability) ** (1 - beyond) if beyond else 1.0
            weight = weight if k % 2 else -weight
            rows = slice(running)
            chain = chain[:, :running]
            if neumann and differentiate:
                series[:, :running] += weight * chain
            chain = vjp(chain, rows)
            terms = weight / k * _dot(chain, probes[:, :running])
            values = values + F.pad(terms, (0, batch - running))
            if may_stop and beyond % 4 == 3:
                left = abs(weight) * _dot(chain, chain).detach().sqrt()
                if left.max().item() * reach / (k + 1) < NEGLIGIBLE:
                    break
    if neumann and differentiate:
        values = with_neumann_gradient(values, series, vjp, probes)
    return values.mean(0)

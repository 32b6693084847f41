"""The inverse of a residual block, ``x + g(x) = y`` solved for x with a bound on the error of each example."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rms(x: Tensor) -> Tensor:
    """Root mean square of each example, ``(batch, ...) -> (batch,)``; the norm in which errors are stated."""
    return x.flatten(1).square().mean(1).sqrt()


@torch.no_grad()
def solve_block(
    g: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    lipschitz: float,
    tolerance: float,
    max_iterations: int,
    depth: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``x + g(x) = y`` for every example.

    With the residual ``r = y - x - g(x)`` and ||g||_Lip <= c, the point ``x + r`` is at most ``c / (1 - c) ||r||`` away from
    the solution. An example is done when that is at most ``tolerance``, or when r has come down to the rounding of y.

    Anderson acceleration (Walker and Ni 2011, doi:10.1137/10078356X) combines the last ``depth`` residuals; a proposal that
    does not lower the residual is dropped for the plain step from the best point, which lowers it by c for certain. So it
    converges wherever the fixed-point iteration does.

    Args:
        g: ``g(x, rows)`` for the examples ``rows`` (int64 indices into the batch).
        y: ``(batch, *shape)``.
        lipschitz: c < 1.
        tolerance: root-mean-square error per dimension.
        max_iterations: most evaluations of g per example.
        depth: 0 is the plain iteration.

    Returns:
        x; for each example the number of evaluations of g, and whether it met the tolerance (or the rounding of its dtype).
    """
    shape = y.shape
    target = y.flatten(1)
    solution = target.clone()
    evaluations = torch.zeros(len(y), dtype=torch.long, device=y.device)
    met = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    factor = lipschitz / (1 - lipschitz)
    # y - x - g(x) is a difference of numbers as large as y: below this it holds rounding alone
    floor = 2 * torch.finfo(y.dtype).eps * (target.square().mean(1).sqrt() + torch.finfo(y.dtype).tiny)

    rows = torch.arange(len(y), device=y.device)
    proposal, best, best_residual = target, target, None
    best_norm = torch.full_like(floor, torch.inf)
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(max_iterations):
        residual = target[rows] - proposal - g(proposal.view(-1, *shape[1:]), rows).flatten(1).to(y.dtype)
        norm = residual.square().mean(1).sqrt()
        evaluations[rows] += 1
        better = (norm < best_norm) | ~torch.isfinite(best_norm)
        if best_residual is None:
            best, best_residual, best_norm = proposal, residual, norm
        else:
            best = torch.where(better[:, None], proposal, best)
            best_residual = torch.where(better[:, None], residual, best_residual)
            best_norm = torch.where(better, norm, best_norm)
        done = (factor * best_norm <= tolerance) | (best_norm <= floor[rows])
        if done.any():
            finished = rows[done]
            solution[finished] = (best + best_residual)[done]
            met[finished] = True
            keep = ~done
            rows, proposal, residual, better = rows[keep], proposal[keep], residual[keep], better[keep]
            best, best_residual, best_norm = best[keep], best_residual[keep], best_norm[keep]
            points, residuals = [p[keep] for p in points], [r[keep] for r in residuals]
            if not len(rows):
                break
        plain = best + best_residual
        if depth == 0:
            proposal = plain
            continue
        points, residuals = (points + [proposal])[-depth - 1 :], (residuals + [residual])[-depth - 1 :]
        proposal = torch.where(better[:, None], _mix(points, residuals), plain)
    if len(rows):
        solution[rows] = best + best_residual
    return solution.view(shape), evaluations, met


def _mix(points: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """The combination of past points whose residual is least, by regularised least squares in float64; then one step."""
    newest_point, newest = points[-1], residuals[-1]
    if len(points) == 1:
        return newest_point + newest
    steps = torch.stack([newest_point - point for point in points[:-1]], 1)
    changes = torch.stack([newest - residual for residual in residuals[:-1]], 1).double()
    gram = changes @ changes.mT
    scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-300)[:, None, None]
    ridge = 1e-10 * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram / scale + ridge, (changes @ newest.double()[:, :, None]) / scale)
    weights = weights.to(newest.dtype)
    move = ((steps + changes.to(newest.dtype)) * weights).sum(1)
    return newest_point + newest - move

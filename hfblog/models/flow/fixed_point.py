"""The inverse of a residual block, ``x + g(x) = y`` solved for x with a bound on the error of each example."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Where residuals shrink faster than this, plain steps are cheaper than combining past ones.
FAST_CONTRACTION = 0.5


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
    the solution. An example is done when that is at most ``tolerance``, or when r is down to rounding: as small as the
    last digits of x and y, or not lowered by a plain step, which in exact arithmetic lowers it by the factor c.

    Anderson acceleration (Walker and Ni 2011, doi:10.1137/10078356X) combines the last ``depth`` steps where the plain
    iteration is slow; a proposal that does not lower the residual is dropped for the plain step from the best point. So it
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
    solution = y.flatten(1).clone()
    evaluations = torch.zeros(len(y), dtype=torch.long, device=y.device)
    met = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    factor = lipschitz / (1 - lipschitz)
    rounding = 0.25 * torch.finfo(y.dtype).eps

    rows = torch.arange(len(y), device=y.device)
    target = proposal = best = solution
    best_residual = torch.zeros_like(target)
    best_norm = torch.full_like(target[:, 0], torch.inf)
    is_plain = torch.ones_like(met)
    past = _PastSteps(depth)
    for _ in range(max_iterations):
        residual = target - proposal - g(proposal.view(-1, *shape[1:]), rows).flatten(1).to(y.dtype)
        norm = rms(residual)
        evaluations[rows] += 1
        better = norm < best_norm
        contraction = (norm / best_norm).mean()
        # y - x - g(x) is a difference of numbers as large as these: below that it holds rounding alone
        floor = rounding * torch.maximum(rms(target), rms(proposal))
        best = torch.where(better[:, None], proposal, best)
        best_residual = torch.where(better[:, None], residual, best_residual)
        best_norm = torch.where(better, norm, best_norm)
        done = (factor * best_norm <= tolerance) | (best_norm <= floor) | (is_plain & ~better)
        if done.any():
            solution[rows[done]] = (best + best_residual)[done]
            met[rows[done]] = True
            keep = ~done
            rows, target, proposal, residual = rows[keep], target[keep], proposal[keep], residual[keep]
            best, best_residual, best_norm, better = best[keep], best_residual[keep], best_norm[keep], better[keep]
            past.keep(keep)
            if not len(rows):
                break
        plain = best + best_residual
        if depth:
            past.add(proposal, residual)
        if depth == 0 or contraction < FAST_CONTRACTION:
            proposal, is_plain = plain, torch.ones_like(better)
        else:
            mixed = past.mix(proposal, residual)
            is_plain = ~(better & torch.isfinite(mixed).all(1))
            proposal = torch.where(is_plain[:, None], plain, mixed)
    if len(rows):
        solution[rows] = best + best_residual
    return solution.view(shape), evaluations, met


class _PastSteps:
    """The last steps of x and what they did to the residual, with the Gram matrix of the latter in float64."""

    def __init__(self, depth: int):
        self.depth = depth
        self.count = 0
        self.last: tuple[Tensor, Tensor] | None = None

    def add(self, point: Tensor, residual: Tensor) -> None:
        if self.last is None:
            self.steps = point.new_zeros(len(point), self.depth, point.shape[1])
            self.changes = torch.zeros_like(self.steps, dtype=torch.float64)
            self.gram = self.changes.new_zeros(len(point), self.depth, self.depth)
        else:
            slot = self.count % self.depth
            change = residual.double() - self.last[1].double()
            self.steps[:, slot] = point - self.last[0]
            self.changes[:, slot] = change
            row = (self.changes @ change[:, :, None])[:, :, 0]
            self.gram[:, slot], self.gram[:, :, slot] = row, row
            self.count += 1
        self.last = (point, residual)

    def keep(self, rows: Tensor) -> None:
        if self.last is not None:
            self.last = (self.last[0][rows], self.last[1][rows])
            self.steps, self.changes, self.gram = self.steps[rows], self.changes[rows], self.gram[rows]

    def mix(self, point: Tensor, residual: Tensor) -> Tensor:
        """The combination of past points whose residual is least, by regularised least squares; then one step."""
        if not self.count:
            return point + residual
        scale = self.gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-300)[:, None, None]
        ridge = 1e-10 * torch.eye(self.depth, dtype=self.gram.dtype, device=point.device)
        weights = torch.linalg.solve(self.gram / scale + ridge, self.changes @ residual.double()[:, :, None] / scale)
        move = (weights.mT @ (self.steps.double() + self.changes))[:, 0]
        return point + residual - move.to(point.dtype)

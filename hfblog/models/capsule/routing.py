"""Dynamic routing: soft K-means of one example's vectors (https://kexue.fm/archives/5112).

Every input u_i has an image ``û_ij = W_ji u_i`` in the space of each capsule j. Routing asks two things of the images: sums
``s_j = sum_i c_ij û_ij`` and inner products ``<û_ij, q_j>`` with one query a capsule. Both follow from u and W, so the
images, by far the largest tensor of a direct computation, are never stored: with shared weights
``s_j = W_j (sum_i c_ij u_i)``; with a matrix for each input, one pass over blocks of inputs that keeps nothing for its
backward pass, which computes the block again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .configuration_capsule import ROUTING_TYPES, check_choice

# Numbers of the largest tensor of a block of inputs: about what a core keeps in its cache.
BLOCK_NUMBERS = 2**18


@cache
def compiled_loops() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """``assign_forward`` and ``assign_backward``, or None without numba, whose import takes a second: at first use."""
    try:
        from .routing_kernel import assign_backward, assign_forward
    except ImportError:
        return None
    return assign_forward, assign_backward


def squash(s: Tensor, squash_type: str = "squash", constant: float = 0.5, eps: float = 1e-7) -> Tensor:
    """Vectors ``(..., D)`` of the same directions with lengths below 1, a function of their norm n.

    Args:
        s: ``(..., D)``.
        squash_type: ``"squash"`` is ``n^2 / (constant + n^2)``; ``"tanh"``, ``"exp"`` (``1 - exp(-n)``) and ``"ratio"``
            (``n / (1 + n)``) are the alternatives of https://kexue.fm/archives/4819; ``"none"`` changes nothing.
        constant: 0.5 in the articles, 1 in the paper.
        eps: added to n^2, so that the gradient at 0 is finite.
    """
    if squash_type == "none":
        return s
    squared = s.square().sum(-1, keepdim=True) + eps
    norm = squared.sqrt()
    if squash_type == "squash":
        return s * (norm / (constant + squared))
    if squash_type == "tanh":
        return s * (norm.tanh() / norm)
    if squash_type == "exp":
        return s * (-torch.expm1(-norm) / norm)
    return s / (1 + norm)


def normalize(s: Tensor, eps: float = 1e-12) -> Tensor:
    """Unit vectors ``(..., D)``; 0 stays 0, with a finite gradient."""
    return s * (s.square().sum(-1, keepdim=True) + eps).rsqrt()


def exact(s: Tensor) -> Tensor:
    """At least float32: lengths and directions of half precision sums lose what distinguishes classes."""
    return s.to(torch.promote_types(s.dtype, torch.float32))


# --- the images of the inputs ---


class Predictions:
    """The images û ``(batch, n, k, D)``, by what they do.

    Args:
        mask: ``(batch, n)``, 0 at inputs that do not count; None where all do.
    """

    def __init__(self, mask: Tensor | None):
        self.mask = mask

    def logits(self, query: Tensor) -> Tensor:
        """Inner products ``(batch, n, k)`` with a query ``(batch, k, D)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define logits")

    def weighted_sum(self, coupling: Tensor) -> Tensor:
        """Sums ``(batch, k, D)`` under a coupling ``(batch, n, k)``, which is 0 at masked inputs."""
        raise NotImplementedError(f"{type(self).__name__} does not define weighted_sum")

    def pool(self) -> Tensor:
        """Sums ``(batch, k, D)`` under uniform coupling."""
        raise NotImplementedError(f"{type(self).__name__} does not define pool")

    def masked(self, coupling: Tensor) -> Tensor:
        return coupling if self.mask is None else coupling * self.mask[:, :, None].to(coupling.dtype)

    def coupling(self, query: Tensor) -> Tensor:
        """Shares ``(batch, n, k)`` of each input, which sum to 1 over the capsules and are 0 at masked inputs."""
        return self.masked(self.logits(query).softmax(2))

    def assign(self, query: Tensor, detach: bool = False) -> Tensor:
        """Sums under the coupling that a query leads to; ``detach`` keeps the gradient out of the coupling."""
        coupling = self.coupling(query)
        return self.weighted_sum(coupling.detach() if detach else coupling)


class DensePredictions(Predictions):
    """Images that are given as a tensor ``(batch, n, k, D)``."""

    def __init__(self, images: Tensor, mask: Tensor | None = None):
        super().__init__(mask)
        self.images = images

    def logits(self, query: Tensor) -> Tensor:
        return torch.einsum("bikd,bkd->bik", self.images, query)

    def weighted_sum(self, coupling: Tensor) -> Tensor:
        return torch.einsum("bik,bikd->bkd", coupling, self.images)

    def pool(self) -> Tensor:
        shape = self.images.shape[:3]
        return self.weighted_sum(self.masked(self.images.new_full(shape, 1 / shape[2])))


class EuclideanPredictions(DensePredictions):
    """Ordinary soft K-means, which the article turns down for capsules: squared distances, and means for sums.

    Queries are centres; ``temperature`` is the inverse temperature of the softmax.
    """

    def __init__(self, images: Tensor, mask: Tensor | None = None, temperature: float = 1.0):
        super().__init__(images, mask)
        self.temperature = temperature

    def logits(self, query: Tensor) -> Tensor:
        return -self.temperature * (self.images - query[:, None]).square().sum(3)

    def weighted_sum(self, coupling: Tensor) -> Tensor:
        return super().weighted_sum(coupling) / coupling.sum(1)[..., None]


class SharedPredictions(Predictions):
    """Images by one matrix a capsule: inputs ``(batch, n, f)``, weight ``(f, k, D)``."""

    def __init__(self, inputs: Tensor, weight: Tensor, mask: Tensor | None = None):
        super().__init__(mask)
        self.inputs, self.weight = inputs, weight

    def logits(self, query: Tensor) -> Tensor:
        return self.inputs @ torch.einsum("bkd,fkd->bfk", query.to(self.weight.dtype), self.weight).to(self.inputs.dtype)

    def weighted_sum(self, coupling: Tensor) -> Tensor:
        return torch.einsum("bkf,fkd->bkd", coupling.mT.to(self.inputs.dtype) @ self.inputs, self.weight)

    def pool(self) -> Tensor:
        return torch.einsum("bf,fkd->bkd", self.masked(self.inputs).sum(1) / self.weight.shape[1], self.weight)


class FullPredictions(Predictions):
    """Images by a matrix for each input and capsule: inputs ``(batch, n, f)``, weight ``(n, f, k, D)``."""

    def __init__(self, inputs: Tensor, weight: Tensor, mask: Tensor | None = None):
        super().__init__(mask)
        device = inputs.device.type
        self.fused = device == "cpu" and not torch.compiler.is_compiling() and compiled_loops() is not None
        if device == "cpu":
            # float32 at least: what is not a matrix product is slower in half precision
            inputs, weight = exact(inputs), exact(weight)
        elif torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            inputs, weight = inputs.to(dtype), weight.to(dtype)
        self.inputs, self.weight = inputs, weight

    def logits(self, query: Tensor) -> Tensor:
        return torch.einsum("bif,ifkd,bkd->bik", self.inputs, self.weight, query.to(self.weight.dtype))

    def weighted_sum(self, coupling: Tensor) -> Tensor:
        weighted = coupling.to(self.inputs.dtype).unsqueeze(-1) * self.inputs.unsqueeze(2)
        return torch.einsum("bikf,ifkd->bkd", weighted, self.weight)

    def pool(self) -> Tensor:
        n, f, k, d = self.weight.shape
        sums = self.masked(self.inputs).flatten(1) @ self.weight.reshape(n * f, k * d)
        return sums.view(-1, k, d) / k

    def assign(self, query: Tensor, detach: bool = False) -> Tensor:
        function = FusedAssignment if self.fused else BlockwiseAssignment
        with torch.autocast(self.inputs.device.type, enabled=False):
            return function.apply(self.inputs, self.weight, query.to(self.weight.dtype), self.mask, detach)


class FusedAssignment(torch.autograd.Function):
    """`FullPredictions.assign` by compiled loops: images live in registers and the nearest cache."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, query: Tensor, mask: Tensor | None, detach: bool) -> Tensor:
        ctx.save_for_backward(inputs, weight, query, mask)
        ctx.detach = detach
        forward, _ = compiled_loops()
        return forward(inputs, weight, query, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, query, mask = ctx.saved_tensors
        _, backward = compiled_loops()
        grads = backward(inputs, weight, query, mask, grad, ctx.detach)
        return *grads, None, None


class BlockwiseAssignment(torch.autograd.Function):
    """`FullPredictions.assign` by batched matrix products over blocks of inputs, ``(k, batch, ...)`` inside."""

    @staticmethod
    def blocks(weight: Tensor, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the inputs, and their weights as ``(k, block * f, D)``."""
        n, f, k, _ = weight.shape
        # one block where the compiler fuses, or where launching many small kernels costs more than memory
        whole = torch.compiler.is_compiling() or weight.device.type != "cpu"
        size = n if whole else max(1, BLOCK_NUMBERS // (batch_size * f * k))
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            yield part, weight[part].flatten(0, 1).transpose(0, 1)

    @staticmethod
    def coupling(block: Tensor, matrices: Tensor, query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Coupling with and without the mask, ``(k, batch, block, 1)``; the queries as the inputs see them, ``(..., f)``."""
        directions = torch.bmm(query, matrices.mT).unflatten(2, block.shape[1:])
        shares = (directions * block).sum(3, dtype=torch.promote_types(block.dtype, torch.float32)).softmax(0)
        shares = shares.to(block.dtype).unsqueeze(3)
        return shares if mask is None else shares * mask.to(shares.dtype).unsqueeze(2), shares, directions

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, query: Tensor, mask: Tensor | None, detach: bool) -> Tensor:
        ctx.save_for_backward(inputs, weight, query, mask)
        ctx.detach = detach
        transposed = query.transpose(0, 1)
        sums = torch.zeros_like(transposed, dtype=torch.promote_types(query.dtype, torch.float32))
        for part, matrices in BlockwiseAssignment.blocks(weight, len(inputs)):
            block = inputs[:, part]
            coupling, *_ = BlockwiseAssignment.coupling(block, matrices, transposed, None if mask is None else mask[:, part])
            sums += torch.bmm((coupling * block).flatten(2), matrices)
        return sums.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, query, mask = ctx.saved_tensors
        query, grad = query.transpose(0, 1), grad.to(inputs.dtype).transpose(0, 1)
        d_inputs, d_weight = torch.empty_like(inputs), torch.empty_like(weight)
        d_query = torch.zeros_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
        for part, matrices in BlockwiseAssignment.blocks(weight, len(inputs)):
            block = inputs[:, part]
            coupling, shares, directions = BlockwiseAssignment.coupling(
                block, matrices, query, None if mask is None else mask[:, part]
            )
            received = torch.bmm(grad, matrices.mT).unflatten(2, block.shape[1:])
            d_block = (coupling * received).sum(0)
            d_matrices = torch.bmm((coupling * block).flatten(2).mT, grad)
            if not ctx.detach:
                slope = (received * block).sum(3, keepdim=True)
                slope = coupling * slope - shares * (coupling * slope).sum(0)
                weighted = (slope * block).flatten(2)
                d_query += torch.bmm(weighted, matrices)
                d_matrices += torch.bmm(weighted.mT, query)
                d_block += (slope * directions).sum(0)
            d_inputs[:, part] = d_block
            d_weight[part] = d_matrices.transpose(0, 1).view_as(weight[part])
        return d_inputs, d_weight, None if ctx.detach else d_query.transpose(0, 1).to(query.dtype), None, None


# --- the iteration ---


@dataclass
class RoutingTrace:
    """What routing went through.

    Args:
        sums: ``(batch, k, D)``, those of the last iteration.
        query: ``(batch, k, D)``, what the last coupling was computed from; None where it was uniform.
        directions: ``(batch, k, D)`` unit vectors of each iteration's sums.
    """

    sums: Tensor
    query: Tensor | None
    directions: list[Tensor]


def route(
    predictions: Predictions,
    iterations: int = 3,
    routing_type: str = "kmeans",
    temperature: float = 1.0,
    detach: bool = False,
    squash_type: str = "squash",
    squash_constant: float = 0.5,
    centers: Tensor | None = None,
) -> RoutingTrace:
    """Alternate between centres and shares, ``iterations`` softmaxes long.

    Args:
        predictions: the images of the inputs.
        iterations: number of softmaxes; the first is uniform, unless ``centers`` are given.
        routing_type: see [`CapsuleConfig`]; with [`EuclideanPredictions`] ``"means"``, whose centres are the sums themselves.
        temperature: inverse temperature of the softmax.
        detach: keep the gradient out of the coupling.
        squash_type, squash_constant: see `squash`, for types that squash in the loop.
        centers: ``(batch, k, D)``, where to start.

    Raises:
        ValueError: an unknown type, or fewer than one softmax.
    """
    check_choice("routing_type", routing_type, (*ROUTING_TYPES, "means"))
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    center_of = {"kmeans": normalize, "means": lambda sums: sums}.get(
        routing_type, partial(squash, squash_type=squash_type, constant=squash_constant)
    )
    query = None if centers is None else temperature * centers
    sums = exact(predictions.pool() if query is None else predictions.assign(query, detach))
    directions = [normalize(sums)]
    for _ in range(1, iterations):
        center = temperature * center_of(sums.detach() if detach else sums)
        query = center + query if routing_type == "hinton" and query is not None else center
        sums = exact(predictions.assign(query, detach))
        directions.append(normalize(sums))
    return RoutingTrace(sums, query, directions)


def routing_objective(predictions: Predictions, directions: Tensor, temperature: float = 1.0) -> Tensor:
    """What ``"kmeans"`` routing never raises: ``-(1 / beta) sum_i log sum_j exp(beta <û_ij, v_j / |v_j|>)``, ``(batch,)``.

    It is an EM scheme: the coupling is the E step, the direction of the sums the M step (https://kexue.fm/archives/5112).

    Args:
        predictions: the images of the inputs.
        directions: ``(batch, k, D)`` unit vectors.
        temperature: the inverse temperature beta.
    """
    free_energy = predictions.logits(temperature * directions).logsumexp(2)
    if predictions.mask is not None:
        free_energy = free_energy * predictions.mask.to(free_energy.dtype)
    return -free_energy.sum(1) / temperature

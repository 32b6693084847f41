"""Layers with a bounded Lipschitz constant, and certificates for the bound.

A layer's weight is divided by ``max(1, sigma / c)`` (soft scaling), where sigma is its operator norm. Power iteration
estimates sigma from below in training; a certificate bounds it from above: by an eigenvalue of the Gram matrix, in float64,
for a matrix and for a convolution on small maps, by the Fourier transform of the kernel for a convolution on large ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

# Largest side of a convolution's Gram matrix whose eigenvalues are computed; beyond that the Fourier bound is used.
LARGEST_GRAM = 1024


# --- activations: value and, where it is wanted, slope ---


def _lipswish(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    gate = torch.sigmoid(x)
    # max |silu'| is 1.0998
    return x * gate / 1.1, gate * (1 + x * (1 - gate)) / 1.1 if wants_slope else None


def _elu(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    if not wants_slope:
        return F.elu(x), None
    falling = torch.exp(x.clamp_max(0))
    return torch.where(x > 0, x, falling - 1), torch.where(x > 0, torch.ones_like(x), falling)


def _relu(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    return F.relu(x), (x > 0).to(x.dtype) if wants_slope else None


def _tanh(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    value = torch.tanh(x)
    return value, 1 - value.square() if wants_slope else None


def _sigmoid(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    value = torch.sigmoid(x)
    return value, value * (1 - value) if wants_slope else None


def _softplus(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    return F.softplus(x), torch.sigmoid(x) if wants_slope else None


def _sin(x: Tensor, wants_slope: bool) -> tuple[Tensor, Tensor | None]:
    return torch.sin(x), torch.cos(x) if wants_slope else None


# name -> function (x, wants_slope) -> (value, slope or None); slopes have size at most 1 everywhere
LIPSCHITZ_ACTIVATIONS = {
    "lipswish": _lipswish,
    "elu": _elu,
    "relu": _relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "sin": _sin,
}


# --- certificates ---


def matrix_norm(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Largest singular value of a matrix ``(out, in)`` and its right singular vector ``(in,)``, in float64."""
    weight = weight.double()
    tall = weight.shape[0] >= weight.shape[1]
    values, vectors = torch.linalg.eigh(weight.T @ weight if tall else weight @ weight.T)
    top = vectors[:, -1]
    right = top if tall else weight.T @ top
    return values[-1].clamp_min(0).sqrt(), right / right.norm().clamp_min(1e-300)


def conv_norm_by_fourier(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Upper bound on the operator norm of a zero-padded stride-1 convolution, in float64.

    The operator is a compression of the circular convolution on a torus that holds the padded map, and that one's norm is
    the largest singular value over all frequencies (Sedghi et al. 2019, arXiv:1805.10408).

    Args:
        weight: ``(out, in, k, k)``.
        size: height and width of the map.
    """
    weight = weight.double()
    torus = [side + (kernel - 1) // 2 for side, kernel in zip(size, weight.shape[2:], strict=True)]
    # a kernel larger than the torus would be cut by fft2: let the torus hold it
    torus = [max(side, kernel) for side, kernel in zip(torus, weight.shape[2:], strict=True)]
    spectrum = torch.fft.rfft2(weight, s=torus).permute(2, 3, 0, 1)
    if spectrum.shape[-2] < spectrum.shape[-1]:
        spectrum = spectrum.mT
    gram = spectrum.mH @ spectrum
    return torch.linalg.eigvalsh(gram)[..., -1].amax().clamp_min(0).sqrt()


def conv_gram(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """``A^T A``, or ``A A^T`` if that is smaller, of the convolution's dense matrix A, ``(C H W, C H W)``."""
    out_channels, in_channels, *kernel = weight.shape
    padding = (kernel[0] // 2, kernel[1] // 2)
    channels = min(in_channels, out_channels)
    count = channels * size[0] * size[1]
    basis = torch.eye(count, dtype=weight.dtype, device=weight.device).view(count, channels, *size)
    if in_channels <= out_channels:
        image = F.conv_transpose2d(F.conv2d(basis, weight, padding=padding), weight, padding=padding)
    else:
        image = F.conv2d(F.conv_transpose2d(basis, weight, padding=padding), weight, padding=padding)
    return image.flatten(1)


# --- layers ---


def channels_last(x: Tensor) -> Tensor:
    """Images in the memory layout that convolutions are fastest with, under vmap too (``contiguous`` refuses there)."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class LipschitzLayer(nn.Module):
    """A linear map with bias whose weight is scaled down where its operator norm exceeds ``coeff``.

    Buffers (kept by save and load): ``norm``, the certified norm, which evaluation scales by; ``right``, the vector of the
    power iteration, which training finds the norm by; ``slack``, the certified norm over that of a converged power
    iteration: training multiplies its estimate by it, so that both aim at the same norm.
    """

    def __init__(self, weight_shape: tuple[int, ...], in_shape: tuple[int, ...], coeff: float | None):
        super().__init__()
        self.in_shape = in_shape
        self.coeff = coeff
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.bias = nn.Parameter(torch.empty(weight_shape[0]))
        if coeff is not None:
            self.register_buffer("right", torch.empty(in_shape))
            self.register_buffer("slack", torch.empty(()))
            self.register_buffer("norm", torch.empty(()))

    def reset(self) -> None:
        """Initial values, through transformers' initialisation, which leaves loaded ones alone."""
        init.orthogonal_(self.weight)
        init.zeros_(self.bias)
        if self.coeff is not None and self.weight.device.type != "meta":
            for buffer, value in zip((self.right, self.slack, self.norm), self._certified(), strict=True):
                init.copy_(buffer, value)

    def operator(self, x: Tensor, weight: Tensor) -> Tensor:
        """The linear map alone, ``(batch, *in_shape) -> (batch, *out_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define operator")

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        """Its transpose."""
        raise NotImplementedError(f"{type(self).__name__} does not define adjoint")

    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define affine")

    def largest_singular(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In float64: the operator's norm or a lower estimate, its right singular vector, and a certified upper bound."""
        raise NotImplementedError(f"{type(self).__name__} does not define largest_singular")

    def _power_iteration(self, right: Tensor, weight: Tensor, iterations: int) -> Tensor:
        for _ in range(iterations):
            right = self.adjoint(self.operator(right[None], weight), weight)[0]
            right = right / right.norm().clamp_min(1e-12)
        return right

    @torch.no_grad()
    def _certified(self) -> tuple[Tensor, Tensor, Tensor]:
        """``right``, ``slack`` and ``norm`` of the present weight."""
        norm, right, bound = self.largest_singular(self.weight.double())
        return right, bound / norm.clamp_min(1e-12), bound

    @torch.no_grad()
    def norm_bound(self, weight: Tensor) -> Tensor:
        """Certified upper bound on the operator norm of any weight of this layer's shape, float64."""
        return self.largest_singular(weight.double())[2]

    @torch.no_grad()
    def finalize(self) -> None:
        """Set the buffers from the weight, so that the scaled weight's norm is certified."""
        if self.coeff is not None:
            for buffer, value in zip((self.right, self.slack, self.norm), self._certified(), strict=True):
                buffer.copy_(value)

    def scaled_weight(self, iterations: int | None, detach_sigma: bool) -> tuple[Tensor, Tensor]:
        """The weight that the layer computes with, and a bound on its norm (scalar, without gradient).

        Args:
            iterations: power iterations that move ``right``, by which the norm is estimated; None takes the certified norm,
                which is that of the weight at the last `finalize`.
            detach_sigma: no gradient through the estimate.
        """
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.coeff is None:
            return self._laid_out(weight), weight.new_tensor(math.inf)
        if iterations is not None:
            with torch.no_grad():
                right = self.right.to(weight.dtype)
                if iterations:
                    right = self._power_iteration(right, weight, iterations)
                    self.right.copy_(right)
                image = self.operator(right[None], weight)
                left = image / image.norm().clamp_min(1e-12)
            # with the vectors held fixed this is the norm's gradient, too
            sigma = (left * self.operator(right[None], weight.detach() if detach_sigma else weight)).sum() * self.slack
        else:
            sigma = self.norm.to(weight.dtype)
        scale = self.coeff / sigma.clamp_min(self.coeff)
        return self._laid_out(weight * scale), (sigma * scale).detach()

    def _laid_out(self, weight: Tensor) -> Tensor:
        """The weight in the memory layout that its products are fastest with."""
        return weight


class LipschitzLinear(LipschitzLayer):
    """``(..., in_features) -> (..., out_features)``."""

    def __init__(self, in_features: int, out_features: int, coeff: float | None):
        super().__init__((out_features, in_features), (in_features,), coeff)

    def operator(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        return y @ weight

    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias.to(weight.dtype))

    def largest_singular(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm, right = matrix_norm(weight)
        return norm, right, norm


class LipschitzConv2d(LipschitzLayer):
    """Zero-padded convolution that keeps the map's size, ``(batch, in, H, W) -> (batch, out, H, W)``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, size: tuple[int, int], coeff: float | None):
        # A 1x1 convolution is one matrix at every place: its norm is that of a map of one place.
        super().__init__(
            (out_channels, in_channels, kernel_size, kernel_size),
            (in_channels, *((1, 1) if kernel_size == 1 else size)),
            coeff,
        )
        self.padding = kernel_size // 2

    def _laid_out(self, weight: Tensor) -> Tensor:
        return channels_last(weight)

    def operator(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=self.padding)

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(y, weight, padding=self.padding)

    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias.to(weight.dtype), padding=self.padding)

    def largest_singular(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if weight.shape[-1] == 1:
            norm, right = matrix_norm(weight.flatten(1))
            return norm, right.view(self.in_shape), norm
        size = self.in_shape[1:]
        if min(weight.shape[:2]) * math.prod(size) > LARGEST_GRAM:
            start = torch.randn(self.in_shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
            right = self._power_iteration(start.to(weight.device), weight, 100)
            return self.operator(right[None], weight).norm(), right, conv_norm_by_fourier(weight, size)
        values, vectors = torch.linalg.eigh(conv_gram(weight, size))
        top = vectors[:, -1]
        if weight.shape[1] <= weight.shape[0]:
            right = top.view(self.in_shape)
        else:
            right = self.adjoint(top.view(1, weight.shape[0], *size), weight)[0]
            right = right / right.norm().clamp_min(1e-300)
        norm = values[-1].clamp_min(0).sqrt()
        return norm, right, norm

"""The compiled routing step against autograd through stored images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from hfblog.models.capsule.routing import (  # noqa: E402
    BlockwiseAssignment,
    DensePredictions,
    FullPredictions,
    FusedAssignment,
    route,
)
from hfblog.models.capsule.routing_kernel import assign_backward, assign_forward  # noqa: E402

# batch, n, f, k, D: plain; nothing a whole register; all 1; a feature dimension of several blocks; more than one block of
# examples; one capsule; no example
SHAPES = [
    (16, 8, 8, 10, 16),
    (5, 7, 3, 4, 5),
    (1, 1, 1, 1, 1),
    (3, 19, 17, 3, 6),
    (131, 2, 4, 2, 3),
    (9, 5, 8, 1, 7),
    (0, 3, 2, 2, 4),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads as before after each test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(shape: tuple[int, ...], mask: str | None = None, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    """Inputs of `assign_backward`."""
    batch, n, f, k, d = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    masks = {
        None: None,
        "zeros": (torch.rand(batch, n, generator=generator) < 0.6).to(dtype),
        "fractions": torch.rand(batch, n, generator=generator).to(dtype),
    }
    return {
        "inputs": normal(batch, n, f),
        "weight": normal(n, f, k, d) / f**0.5,
        "query": normal(batch, k, d),
        "mask": masks[mask],
        "grad": normal(batch, k, d),
    }


def by_autograd(
    inputs: Tensor, weight: Tensor, query: Tensor, mask: Tensor | None, grad: Tensor, detach: bool
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Sums and gradients, with the images stored."""
    leaves = [tensor.clone().requires_grad_() for tensor in (inputs, weight, query)]
    images = torch.einsum("bif,ifkd->bikd", *leaves[:2])
    sums = DensePredictions(images, mask).assign(leaves[2], detach)
    return sums.detach(), torch.autograd.grad(sums, leaves, grad, allow_unused=True)


def assert_close(found: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found.shape == expected.shape and found.dtype == expected.dtype
        scale = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("mask", [None, "zeros", "fractions"])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_autograd(shape, mask, detach):
    tensors = problem(shape, mask)
    sums, grads = by_autograd(**tensors, detach=detach)
    found = assign_forward(*(tensors[name] for name in ("inputs", "weight", "query", "mask")))
    assert_close(found, sums, 1e-12)
    for one, other in zip(assign_backward(**tensors, detach=detach), grads, strict=True):
        assert_close(one, other, 1e-12)


def test_gradcheck():
    tensors = problem((3, 4, 3, 2, 3), "fractions")
    leaves = [tensors[name].requires_grad_() for name in ("inputs", "weight", "query")]
    assert torch.autograd.gradcheck(lambda *xs: FusedAssignment.apply(*xs, tensors["mask"], False), leaves)


@pytest.mark.parametrize("shape", [(20, 50, 8, 10, 16), (3, 1, 2, 2, 2)])
def test_threads_change_rounding_only(shape):
    tensors = problem(shape, "zeros", torch.float32)
    forward = [tensors[name] for name in ("inputs", "weight", "query", "mask")]
    results = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results[threads] = [assign_forward(*forward), *assign_backward(**tensors, detach=False)]
        again = [assign_forward(*forward), *assign_backward(**tensors, detach=False)]
        assert all(torch.equal(one, other) for one, other in zip(results[threads], again, strict=True))
    for threads in (2, 3):
        for one, other in zip(results[threads], results[1], strict=True):
            assert_close(one, other, 1e-6)


def test_strided_tensors():
    tensors = problem((6, 5, 8, 3, 4), "zeros")
    expected = assign_backward(**tensors, detach=False)
    strided = {
        name: torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1).transpose(0, 1)[..., 0].transpose(0, 1)
        for name, tensor in tensors.items()
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    for one, other in zip(assign_backward(**strided, detach=False), expected, strict=True):
        assert torch.equal(one, other)
    one_grad = tensors["grad"][:1, :1, :1].expand_as(tensors["grad"])
    leaf = tensors["inputs"].clone().requires_grad_()
    FusedAssignment.apply(leaf, tensors["weight"], tensors["query"], None, False).backward(one_grad)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(dtype):
    """One capsule takes all of an input, without overflow; inputs of zeros share equally."""
    tensors = problem((4, 6, 8, 10, 16), None, dtype) | {"mask": None}
    for scale in (1e4, 0.0):
        tensors["inputs"] = problem((4, 6, 8, 10, 16), None, dtype)["inputs"] * scale
        sums, grads = by_autograd(**tensors, detach=False)
        found = assign_forward(*(tensors[name] for name in ("inputs", "weight", "query", "mask")))
        assert_close(found, sums, 1e-5 if dtype == torch.float32 else 1e-12)
        for one in assign_backward(**tensors, detach=False):
            assert one.isfinite().all()
        if scale == 0:
            for one, other in zip(assign_backward(**tensors, detach=False), grads, strict=True):
                assert_close(one, other, 1e-5 if dtype == torch.float32 else 1e-12)


def test_not_a_number_is_not_hidden():
    tensors = problem((2, 3, 2, 4, 3))
    tensors["inputs"][1, 2, 0] = torch.nan
    found = assign_forward(*(tensors[name] for name in ("inputs", "weight", "query", "mask")))
    assert found[0].isfinite().all() and found[1].isnan().all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_coupling_is_accurate(dtype, tolerance):
    """With images that are one-hot, the sums are the shares of one input: logits from 0 to -80 against float64."""
    capsules = 2
    logits = torch.linspace(-80, 80, 4001, dtype=torch.float64).to(dtype)
    inputs, weight = torch.ones(len(logits), 1, 1, dtype=dtype), torch.ones(1, 1, capsules, 1, dtype=dtype)
    query = torch.stack([logits, torch.zeros_like(logits)], 1)[..., None]
    found = assign_forward(inputs, weight, query, None)[..., 0]
    expected = torch.stack([logits, torch.zeros_like(logits)], 1).double().softmax(1)
    assert ((found.double() - expected).abs() / expected).max().item() < tolerance


@pytest.mark.parametrize("routing_type", ["kmeans", "hinton"])
def test_routing_agrees_with_matrix_products(routing_type):
    tensors = problem((8, 30, 8, 10, 16), "zeros", torch.float32)
    results = []
    for fused in (True, False):
        leaves = [tensors[name].clone().requires_grad_() for name in ("inputs", "weight")]
        predictions = FullPredictions(*leaves, tensors["mask"])
        predictions.fused = fused
        sums = route(predictions, 3, routing_type).sums
        results.append([sums.detach(), *torch.autograd.grad(sums, leaves, tensors["grad"])])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-5)


def test_agrees_with_blockwise():
    tensors = problem((7, 11, 8, 10, 16), "zeros", torch.float32)
    results = []
    for function in (FusedAssignment, BlockwiseAssignment):
        leaves = [tensors[name].clone().requires_grad_() for name in ("inputs", "weight", "query")]
        sums = function.apply(*leaves, tensors["mask"], False)
        results.append([sums.detach(), *torch.autograd.grad(sums, leaves, tensors["grad"])])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-5)

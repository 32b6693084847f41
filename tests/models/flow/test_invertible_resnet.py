"""Invertible ResNet: bounds, log-determinants and inverses against closed forms, autograd and dense matrices.

A fresh network has small Jacobians, for which everything is easy: networks here are saturated (norms at their bound), or
linear with a known answer, or trained.
"""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F

from hfblog import InvertibleResNetConfig, InvertibleResNetForImageClassification, InvertibleResNetModel, NiceFlowConfig
from hfblog.models.flow import lipschitz, log_determinant
from hfblog.models.flow.configuration_invertible_resnet import ACTIVATIONS, STEEP_ACTIVATIONS
from hfblog.models.flow.fixed_point import solve_block

# slopes of the sine reach 1 where its argument is small, so that Jacobians come near their bound
VECTORS = {"hidden_act": "sin", "num_levels": None, "dequantization": "none", "num_blocks": [3], "hidden_size": 24}
IMAGES = {
    "num_levels": 17,
    "block_type": "conv",
    "num_blocks": [1, 2],
    "hidden_size": 8,
    "num_dense_blocks": 1,
    "dense_hidden_size": 16,
    "data_transform": "logit",
    "prior": "diagonal",
}


def saturate(model: InvertibleResNetModel, gain: float = 6.0, seed: int = 0) -> InvertibleResNetModel:
    """Large random weights and biases, so that every layer stands at its bound and slopes differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if parameter.ndim > 1:  # all singular values alike
                nn.init.orthogonal_(noise, generator=generator).mul_(gain)
            else:
                noise.mul_(0.5)
            parameter.copy_(noise)
    model.finalize()
    return model


def make(event_shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **fields) -> InvertibleResNetModel:
    base = {"event_shape": event_shape} | (IMAGES if len(event_shape) == 3 else VECTORS)
    return saturate(InvertibleResNetModel(InvertibleResNetConfig(**(base | fields))).to(dtype)).eval()


def data(event_shape: tuple[int, ...], count: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, *event_shape, generator=generator, dtype=dtype)
    return uniform if len(event_shape) == 3 else 4 * uniform - 2


def linear_model(matrix: torch.Tensor, coeff: float, **fields) -> InvertibleResNetModel:
    """One block ``g(x) = matrix x`` and nothing else; ``matrix`` must have a norm of at most ``coeff``."""
    size = len(matrix)
    config = InvertibleResNetConfig(
        event_shape=(size,),
        **(VECTORS | {"num_blocks": [1], "num_hidden_layers": 0, "use_actnorm": False}),
        lipschitz_coeff=coeff,
        **fields,
    )
    model = InvertibleResNetModel(config).double()
    with torch.no_grad():
        model.blocks[0].layers[0].weight.copy_(matrix)
    model.finalize()
    return model.eval()


def orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def autograd_jacobian(model: InvertibleResNetModel, x: torch.Tensor) -> torch.Tensor:
    """``(batch, D, D)`` of the whole network, one example at a time, by plain reverse mode."""
    rows = [torch.autograd.functional.jacobian(lambda one: model.transform(one[None])[0], example) for example in x]
    return torch.stack(rows).reshape(len(x), model.config.event_size, -1)


def block_jacobian(block: nn.Module, x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    rows = [torch.autograd.functional.jacobian(lambda one: block(one[None], weights)[0][0], example) for example in x]
    return torch.stack(rows).reshape(len(x), x[0].numel(), -1)


def dense(layer: lipschitz.LipschitzConv2d, weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The matrix of a convolution, column by column."""
    count = weight.shape[1] * math.prod(size)
    basis = torch.eye(count, dtype=weight.dtype).view(count, weight.shape[1], *size)
    return F.conv2d(basis, weight, padding=layer.padding).flatten(1).T


# --- R1: certificates ---


@pytest.mark.parametrize("scope", ["block", "layer"])
@pytest.mark.parametrize("coeff", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("event_shape", [(8,), (1, 8, 8)])
def test_certificates_hold_before_and_after_training(event_shape, coeff, scope):
    model = make(event_shape, torch.float32, lipschitz_coeff=coeff, coeff_scope=scope)
    per_block = [coeff if scope == "block" else coeff ** len(block.layers) for block in model.blocks]
    expected = torch.tensor(per_block, dtype=torch.float64)
    assert (model.lipschitz_certificate() <= expected + 1e-6).all()
    torch.testing.assert_close(model.lipschitz_certificate(), expected, rtol=1e-5, atol=0)  # saturated, so it is tight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    model.train()
    for step in range(15):
        loss = -model.log_prob(data(event_shape, 16, seed=step, dtype=torch.float32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval().lipschitz_certificate() <= expected + 1e-6).all()


@pytest.mark.parametrize("event_shape", [(8,), (1, 8, 8)])
def test_no_pair_of_points_beats_the_certificate(event_shape):
    model = make(event_shape, lipschitz_coeff=0.9)
    certificate = model.lipschitz_certificate()
    shape = model.feature_shape if len(event_shape) == 3 else event_shape
    generator = torch.Generator().manual_seed(3)
    for block, bound, (weights, _) in zip(model.blocks, certificate, model._scaled_weights(), strict=True):
        if len(shape) == 3:
            first = block.layers[0]
            shape = (
                (first.weight.shape[1], *first.in_shape[1:])
                if isinstance(first, lipschitz.LipschitzConv2d)
                else first.in_shape
            )
        x = 3 * torch.randn(10_000, *shape, generator=generator, dtype=torch.float64)
        near = x + torch.logspace(-4, 1, 10_000, dtype=torch.float64).view(-1, *[1] * len(shape)) * torch.randn(
            x.shape, generator=generator, dtype=torch.float64
        )
        with torch.no_grad():
            change = (block(x, weights)[0] - block(near, weights)[0]).flatten(1).norm(dim=1)
        assert (change <= bound * (x - near).flatten(1).norm(dim=1) * (1 + 1e-9)).all()


def test_soft_scaling_leaves_small_weights_alone():
    layer = lipschitz.LipschitzLinear(5, 7, 0.9)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(7, 5))
        layer.weight.mul_(0.5 / torch.linalg.matrix_norm(layer.weight, 2))
        layer.bias.zero_()
    layer.finalize()
    weight, bound = layer.scaled_weight(None, False)
    assert torch.equal(weight, layer.weight)
    assert bound.item() == pytest.approx(0.5, rel=1e-5)


# --- R9: norms of convolutions ---


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 4), (4, 9), (9, 4)])
def test_conv_norm_is_that_of_the_dense_operator(in_channels, out_channels, kernel):
    layer = lipschitz.LipschitzConv2d(in_channels, out_channels, kernel, (8, 8), 0.9).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, dtype=torch.float64))
    matrix = dense(layer, layer.weight.detach(), (8, 8))
    expected = torch.linalg.matrix_norm(matrix, 2)
    norm, right, bound = layer.largest_singular(layer.weight.detach())
    torch.testing.assert_close(norm, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(bound, expected, rtol=1e-9, atol=0)
    # the vector is the singular one, and power iteration from anywhere finds the same norm
    torch.testing.assert_close(layer.operator(right[None], layer.weight).norm(), expected, rtol=1e-9, atol=0)
    start = torch.randn(layer.in_shape, dtype=torch.float64)
    found = layer._power_iteration(start / start.norm(), layer.weight, 500)
    torch.testing.assert_close(layer.operator(found[None], layer.weight).norm(), expected, rtol=1e-4, atol=0)
    adjoint = layer.adjoint(matrix.new_ones(1, out_channels, 8, 8), layer.weight).flatten()
    torch.testing.assert_close(adjoint, matrix.T @ matrix.new_ones(len(matrix)))
    if kernel > 1:
        reshaped = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert norm > 1.05 * reshaped  # the norm of the reshaped kernel is too small


def test_fourier_bound_is_never_below_the_norm():
    generator = torch.Generator().manual_seed(0)
    for kernel, size in itertools.product((3, 5), ((4, 4), (7, 6), (2, 3))):
        for channels in ((2, 5), (5, 2), (3, 3)):
            weight = torch.randn(channels[1], channels[0], kernel, kernel, generator=generator, dtype=torch.float64)
            layer = lipschitz.LipschitzConv2d(*channels, kernel, size, 0.9)
            norm = torch.linalg.matrix_norm(dense(layer, weight, size), 2)
            bound = lipschitz.conv_norm_by_fourier(weight, size)
            assert norm * (1 - 1e-9) <= bound <= (1.5 if kernel == 3 and min(size) >= 4 else 4) * norm


def test_large_maps_are_scaled_by_their_fourier_bound(monkeypatch):
    monkeypatch.setattr(lipschitz, "LARGEST_GRAM", 10)
    model = make((1, 8, 8), lipschitz_coeff=0.9)
    assert (model.lipschitz_certificate() <= 0.9 + 1e-6).all()
    layer = model.blocks[0].layers[0]
    assert layer.slack > 1
    # training aims at the same norm as evaluation
    trained, _ = layer.scaled_weight(3, False)
    torch.testing.assert_close(trained, layer.scaled_weight(None, False)[0], rtol=1e-3, atol=1e-5)


def test_gradient_of_the_norm_and_its_detachment():
    layer = lipschitz.LipschitzLinear(4, 6, 0.9).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 4, dtype=torch.float64))
        layer.bias.zero_()
    layer.finalize()
    probe = torch.randn(6, 4, dtype=torch.float64)
    (layer.scaled_weight(50, False)[0] * probe).sum().backward()
    weight = layer.weight.detach().clone().requires_grad_()
    (weight * (0.9 / torch.linalg.matrix_norm(weight, 2)) * probe).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    assert (layer.weight.grad * layer.weight).sum().abs() < 1e-10  # no radial part: the known price of a live norm
    layer.weight.grad = None
    (layer.scaled_weight(50, True)[0] * probe).sum().backward()
    torch.testing.assert_close(layer.weight.grad, probe * 0.9 / torch.linalg.matrix_norm(weight.detach(), 2))


# --- R10: activations ---


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes(name):
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64, requires_grad=True)
    value, slope = lipschitz.LIPSCHITZ_ACTIVATIONS[name](x, True)
    alone, none = lipschitz.LIPSCHITZ_ACTIVATIONS[name](x, False)
    assert none is None
    torch.testing.assert_close(alone, value)
    (reference,) = torch.autograd.grad(value.sum(), x)
    assert reference.abs().max() <= 1 + 1e-6
    off_kink = x.abs() > 1e-9
    torch.testing.assert_close(slope[off_kink], reference[off_kink])


def test_steep_activations_are_refused_with_their_slope():
    for name, steepest in STEEP_ACTIVATIONS.items():
        with pytest.raises(StrictDataclassError, match=f"{steepest}.*lipswish"):
            InvertibleResNetConfig(**(VECTORS | {"hidden_act": name, "event_shape": (2,)}))
    x = torch.linspace(-5, 5, 100_001, dtype=torch.float64, requires_grad=True)
    for name, function in (("silu", F.silu), ("gelu", F.gelu), ("mish", F.mish), ("selu", F.selu)):
        (slope,) = torch.autograd.grad(function(x).sum(), x)
        assert slope.abs().max().item() == pytest.approx(STEEP_ACTIVATIONS[name], abs=1e-3)


# --- R3, R5, R8: exact log-determinants ---


@pytest.mark.parametrize("event_shape", [(2,), (8,), (64,), (1, 8, 8), (3, 4, 4)])
@pytest.mark.parametrize("coeff", [0.5, 0.98])
def test_exact_log_det_is_that_of_the_autograd_jacobian(event_shape, coeff):
    model = make(event_shape, lipschitz_coeff=coeff)
    x = data(event_shape, 3)
    with torch.no_grad():
        log_det = model.log_det(x, "exact")
    sign, reference = torch.linalg.slogdet(autograd_jacobian(model, x))
    assert (sign == 1).all() or len(event_shape) == 3  # squeezing reorders dimensions, which may turn the sign
    torch.testing.assert_close(log_det, reference, rtol=0, atol=1e-8)
    latents, default = model.encode(x)
    if math.prod(event_shape) <= model.config.exact_log_det_size:
        torch.testing.assert_close(default, reference, rtol=0, atol=1e-8)
    torch.testing.assert_close(latents, model.transform(x), rtol=0, atol=0)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("squeeze_first", [False, True])
def test_multi_scale_log_det_and_inverse(split, squeeze_first):
    model = make((2, 8, 8), num_blocks=[1, 1, 1], split=split, squeeze_first=squeeze_first, num_dense_blocks=0)
    x = data((2, 8, 8), 2)
    reference = torch.linalg.slogdet(autograd_jacobian(model, x))[1]
    torch.testing.assert_close(model.log_det(x, "exact").detach(), reference, rtol=0, atol=1e-8)
    with torch.no_grad():
        assert (model.decode(model.transform(x)) - x).abs().max() < 1e-10


def test_linear_blocks_have_the_closed_form():
    for seed, coeff in ((0, 0.5), (1, 0.9), (2, 0.98)):
        matrix = coeff * orthogonal(10, seed)
        model = linear_model(matrix, coeff)
        expected = torch.log(1 + torch.linalg.eigvals(matrix)).sum().real
        log_det = model.log_det(data((10,)), "exact").detach()
        torch.testing.assert_close(log_det, expected.expand(6), rtol=0, atol=1e-10)


def test_log_det_of_a_block_stays_within_its_bounds():
    model = make((8,), lipschitz_coeff=0.9, num_blocks=[1], use_actnorm=False)
    with torch.no_grad():
        log_det = model.log_det(data((8,), 500), "exact")
    assert (log_det >= 8 * math.log(0.1)).all() and (log_det <= 8 * math.log(1.9)).all()
    assert log_det.std() > 0.1  # a saturated network is far from both linear and constant


@pytest.mark.parametrize("transform", ["none", "center", "logit"])
def test_data_transforms(transform):
    model = make((1, 4, 4), data_transform=transform, num_blocks=[1], logit_alpha=1e-6)
    x = data((1, 4, 4))
    x[0, 0, 0], x[1, 0, 0] = 1e-9, 1 - 1e-9
    with torch.no_grad():
        assert (model.decode(model.transform(x)) - x).abs().max() < 1e-10
    x = x[2:]
    reference = torch.linalg.slogdet(autograd_jacobian(model, x))[1]
    torch.testing.assert_close(model.log_det(x, "exact").detach(), reference, rtol=0, atol=1e-8)


# --- R4: truncated series ---


@pytest.mark.parametrize("coeff", [0.5, 0.9, 0.98])
def test_truncated_series_obeys_its_bound_and_meets_it(coeff):
    model = make((8,), lipschitz_coeff=coeff)
    x = data((8,))
    with torch.no_grad():
        exact = model.log_det(x, "exact")
        for terms in (1, 2, 5, 20, 60):
            value, info = model.log_det(x, "truncated", num_terms=terms, exact_trace=True, return_info=True)
            assert info.num_terms == terms
            assert ((value - exact).abs() <= info.truncation_error + 1e-12).all()
            weak = sum(log_determinant.truncation_bound(8, bound.item(), terms) for bound in model.lipschitz_certificate())
            assert (info.truncation_error <= weak + 1e-9).all()
        worst = linear_model(-coeff * torch.eye(8, dtype=torch.float64), coeff)
        for terms in (1, 5, 20):
            value, info = worst.log_det(x, "truncated", num_terms=terms, exact_trace=True, return_info=True)
            bound = log_determinant.truncation_bound(8, coeff, terms)
            closed = -8 * (math.log1p(-coeff) + sum(coeff**k / k for k in range(1, terms + 1)))
            assert bound == pytest.approx(closed, abs=1e-12)
            torch.testing.assert_close(
                value - 8 * math.log1p(-coeff), torch.full((6,), bound, dtype=torch.float64), rtol=0, atol=1e-11
            )
            torch.testing.assert_close(
                info.truncation_error, torch.full((6,), bound, dtype=torch.float64), rtol=1e-6, atol=1e-12
            )


def test_bounds_of_the_specification():
    """Figures that were derived independently: D = 16."""
    for coeff, terms, expected in ((0.9, 5, 7.56), (0.9, 20, 0.63), (0.9, 50, 0.0126), (0.98, 100, 0.75)):
        assert log_determinant.truncation_bound(16, coeff, terms) == pytest.approx(expected, rel=0.01)
    assert log_determinant.truncation_bound(16, 0.9, log_determinant.terms_for(16, 0.9, 0.01)) <= 0.01


def test_tolerance_stops_the_series_early_and_honestly():
    model = make((8,), lipschitz_coeff=0.9)
    x = data((8,))
    with torch.no_grad():
        exact = model.log_det(x, "exact")
        taken = []
        for tolerance in (1e-1, 1e-4, 1e-8):
            value, info = model.log_det(x, "truncated", tolerance=tolerance, exact_trace=True, return_info=True)
            assert (info.truncation_error <= tolerance * len(model.blocks)).all()
            assert ((value - exact).abs() <= info.truncation_error + 1e-12).all()
            taken.append(info.num_terms)
    assert taken == sorted(taken) and taken[0] < taken[2] < 500


# --- R6: unbiased estimates ---


@pytest.mark.parametrize("trace_distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("method", ["truncated", "roulette"])
def test_estimators_are_unbiased(method, trace_distribution):
    model = make((4,), lipschitz_coeff=0.7, num_blocks=[2], trace_distribution=trace_distribution)
    with torch.no_grad():
        x = data((4,), 1).expand(200_000, 4)
        exact = model.log_det(x[:1], "exact")
        draws = model.log_det(x, method, generator=torch.Generator().manual_seed(0), tolerance=1e-9)
    error = draws.std() / math.sqrt(len(draws))
    assert error < 0.01 and draws.std() > 0.01
    assert (draws.mean() - exact).abs() < 4 * error


def test_roulette_of_the_worst_case_has_the_known_mean_and_variance():
    """g = -c x in one dimension, where v J^k v = (-c)^k without noise: the stops are the only randomness."""
    coeff, stop, exact_terms = 0.9, 0.1, 2
    model = linear_model(-coeff * torch.eye(1, dtype=torch.float64), coeff, roulette_stop_probability=stop, num_exact_terms=2)
    with torch.no_grad():
        draws = model.log_det(torch.zeros(200_000, 1).double(), "roulette", generator=torch.Generator().manual_seed(1))
    # second moment of the tail sum over the stop, by summation
    tail, mean, second = 0.0, 0.0, 0.0
    for k in range(1, 2000):
        tail -= coeff ** (k + exact_terms) / (k + exact_terms) * (1 - stop) ** (1 - k)
        probability = stop * (1 - stop) ** (k - 1)
        mean += probability * tail
        second += probability * tail**2
    std = math.sqrt(second - mean**2)
    error = std / math.sqrt(len(draws))
    assert draws.mean().item() == pytest.approx(math.log1p(-coeff), abs=4 * error)
    assert draws.std().item() == pytest.approx(std, rel=0.1)


def test_default_stop_probability_keeps_the_variance_finite(caplog):
    for coeff in (0.5, 0.9, 0.98):
        stop = (1 - coeff**2) / 2
        assert coeff**2 < 1 - stop
    model = make((4,), roulette_stop_probability=0.5, lipschitz_coeff=0.9, log_det_estimator="roulette").train()
    with caplog.at_level(logging.WARNING, logger="hfblog.models.flow.modeling_invertible_resnet"):
        _attach(caplog)
        model.encode(data((4,)))
    assert "variance" in caplog.text and "0.19" in caplog.text and "0.095" in caplog.text


def _attach(caplog) -> None:
    """transformers' loggers do not propagate."""
    logger = logging.getLogger("hfblog.models.flow.modeling_invertible_resnet")
    if caplog.handler not in logger.handlers:
        logger.addHandler(caplog.handler)


def test_running_variance_measures_the_training_estimator():
    model = make((8,), lipschitz_coeff=0.9, log_det_estimator="roulette", num_blocks=[1], num_hidden_layers=1).train()
    x = data((8,), 256)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([model.log_det(x) for _ in range(500)])
    expected = draws.var(0).mean().item()
    assert model.log_det_variance.item() == pytest.approx(expected, rel=0.5)


def test_estimates_in_evaluation_are_a_function_of_the_example():
    model = make((1, 8, 8), exact_log_det_size=16)
    x = data((1, 8, 8), 8)
    with torch.no_grad():
        together = model.log_prob(x)
        assert torch.equal(together, model.log_prob(x))
        alone = torch.cat([model.log_prob(one[None]) for one in x])
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)
        other = model.log_det(x, "truncated", generator=torch.Generator().manual_seed(5))
        exact = model.log_det(x, "exact")
        value, info = model.log_det(
            x, "truncated", num_probes=2000, generator=torch.Generator().manual_seed(5), return_info=True
        )
    assert not torch.equal(other, model.log_det(x))
    assert ((value - exact).abs() < 5 * info.standard_error + info.truncation_error).all()


# --- R7: gradients ---


@pytest.mark.parametrize("event_shape", [(6,), (1, 4, 4)])
def test_neumann_gradient_is_that_of_the_exact_log_det(event_shape):
    """With all unit vectors as probes and terms enough, there is no noise left."""
    model = make(event_shape, lipschitz_coeff=0.7)
    x = data(event_shape, 3).requires_grad_()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if "prior" not in n), strict=True)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)  # examples need not count alike

    def gradients(**plan) -> list[torch.Tensor]:
        value = (weights * model.log_det(x, **plan)).sum()
        return torch.autograd.grad(value, [x, *parameters], allow_unused=True)

    exact = gradients(method="exact")
    series = gradients(method="truncated", exact_trace=True, num_terms=120)
    for name, one, two in zip(["x", *names], exact, series, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8, msg=name)
    model.config.neumann_gradient = False
    for one, two in zip(exact, gradients(method="truncated", exact_trace=True, num_terms=120), strict=True):
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("neumann", [True, False])
def test_roulette_gradient_is_unbiased(neumann):
    model = make((3,), lipschitz_coeff=0.6, num_blocks=[1], neumann_gradient=neumann, hidden_size=5)
    weight = model.blocks[0].layers[1].weight
    point = data((3,), 1)
    (exact,) = torch.autograd.grad(model.log_det(point, "exact").sum(), weight)
    draws = []
    for seed in range(40):
        value = model.log_det(point.expand(500, 3), "roulette", generator=torch.Generator().manual_seed(seed)).mean()
        draws.append(torch.autograd.grad(value, weight)[0])
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 4.5 * error + 1e-12).all()


def test_memory_of_the_neumann_gradient_does_not_grow_with_the_terms():
    """Counted in what autograd keeps, not in bytes of the process."""

    def kept(neumann: bool, terms: int) -> int:
        model = make((8,), neumann_gradient=neumann)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.log_det(data((8,)), "truncated", num_terms=terms)
        return sum(sizes)

    assert kept(True, 5) == kept(True, 50)
    assert kept(False, 50) > 5 * kept(False, 5)


# --- R2: the inverse ---


@pytest.mark.parametrize("depth", [0, 5])
@pytest.mark.parametrize("coeff", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("event_shape", [(2,), (16,), (1, 8, 8)])
def test_inverse_both_ways_with_a_true_certificate(event_shape, coeff, depth):
    double = make(event_shape, lipschitz_coeff=coeff, anderson_depth=depth)
    x = data(event_shape, 16)
    latents = double.transform(x).detach()
    decoded, info = double.inverse(latents, return_info=True)
    assert (decoded - x).abs().max() < 1e-10
    assert info.converged.all()
    error = (decoded - x).flatten(1).norm(dim=1)
    assert (error <= info.certified_error).all()
    assert (info.evaluations <= math.ceil(math.log(1e-13) / math.log(coeff)) + 2).all() or depth
    # (not too far out, where the logit's own inverse, a sigmoid, has no digits left)
    latents = double.prior.sample(16, double.reference_tensor, 0.2, torch.Generator().manual_seed(0)).detach()
    with torch.no_grad():
        assert (double.transform(double.decode(latents)) - latents).abs().max() < 1e-9

    single = make(event_shape, torch.float32, lipschitz_coeff=coeff, anderson_depth=depth)
    x = x.float()
    latents = single.transform(x).detach()
    decoded, info = single.inverse(latents, return_info=True)
    assert (decoded - x).abs().max() < 1e-5
    # the exact inverse of the float32 network's float32 latents, found in float64
    truth = single.double().inverse(latents.double(), tol=1e-14)
    assert ((decoded.double() - truth).flatten(1).norm(dim=1) <= info.certified_error).all()


def test_certified_error_bounds_a_loose_inverse():
    for coeff in (0.5, 0.9, 0.98):
        model = make((8,), lipschitz_coeff=coeff, num_blocks=[2])
        x = data((8,), 64)
        latents = model.transform(x).detach()
        for tolerance, depth in itertools.product((1e-1, 1e-3), (0, 5)):
            decoded, info = model.inverse(latents, tolerance, anderson_depth=depth, return_info=True)
            error = (decoded - x).norm(dim=1)
            assert (error <= info.certified_error).all()
            assert error.max() > 1e-9


@pytest.mark.parametrize("coeff", [0.5, 0.9, 0.98])
def test_worst_case_of_the_fixed_point_iteration(coeff):
    """g = -c x: plain iteration needs as many evaluations as theory says, the accelerated one a handful."""
    matrix = -coeff * torch.eye(4, dtype=torch.float64)
    model = linear_model(matrix, coeff)
    latents = data((4,))
    tolerance = 1e-6
    x, info = model.inverse(latents, tolerance, 2000, anderson_depth=0, return_info=True)
    truth = latents / (1 - coeff)
    assert (x - truth).square().mean(1).sqrt().max() <= tolerance
    # the residual after n evaluations is c^n y, and c / (1 - c) times it must come down to the tolerance
    ratio = tolerance * (1 - coeff) / (coeff * latents.square().mean(1).sqrt())
    expected = (ratio.log() / math.log(coeff)).ceil()
    assert (info.evaluations[:, 0] - expected).abs().max() <= 1
    x, info = model.inverse(latents, tolerance, return_info=True)
    assert (x - truth).square().mean(1).sqrt().max() <= tolerance
    assert info.evaluations.max() <= 5


@pytest.mark.parametrize("coeff", [0.9, 0.98])
def test_acceleration_needs_fewer_evaluations(coeff):
    model = make((64,), lipschitz_coeff=coeff, num_blocks=[4])
    # linear maps near -c I stretch least and are slowest to invert
    with torch.no_grad():
        for block in model.blocks:
            for layer in block.layers:
                layer.weight.copy_(torch.eye(*layer.weight.shape, dtype=torch.float64) + 0.1 * layer.weight / 6)
    model.finalize()
    x = data((64,), 32)
    latents = model.transform(x).detach()
    plain, slow = model.inverse(latents, 1e-9, 3000, anderson_depth=0, return_info=True)
    fast, quick = model.inverse(latents, 1e-9, 3000, return_info=True)
    assert (plain - x).abs().max() < 1e-7 and (fast - x).abs().max() < 1e-7
    assert quick.evaluations.double().mean() < slow.evaluations.double().mean()


def test_examples_stop_one_by_one():
    model = make((8,), lipschitz_coeff=0.9, num_blocks=[1])
    latents = torch.cat([model.transform(data((8,), 4)).detach(), 1e-3 * torch.ones(1, 8).double()])
    together, info = model.inverse(latents, anderson_depth=0, return_info=True)
    assert len(set(info.evaluations[:, 0].tolist())) > 1
    for row in range(5):
        alone, single = model.inverse(latents[row : row + 1], anderson_depth=0, return_info=True)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)
        assert single.evaluations[0, 0] == info.evaluations[row, 0]


def test_solver_keeps_contracting_where_acceleration_misleads():
    """A proposal that raises the residual is dropped; even a jagged contraction converges."""
    generator = torch.Generator().manual_seed(0)
    slopes = 0.95 * torch.sign(torch.randn(6, generator=generator, dtype=torch.float64))
    y = 5 * torch.randn(20, 6, generator=generator, dtype=torch.float64)
    x, evaluations, met = solve_block(lambda x, rows: slopes * (x - x.round()).abs(), y, 0.95, 1e-10, 2000, 5)
    assert met.all()
    assert (x + slopes * (x - x.round()).abs() - y).abs().max() < 1e-9


def test_an_inverse_that_does_not_converge_says_so(caplog):
    model = make((8,), lipschitz_coeff=0.98)
    latents = model.transform(data((8,))).detach()
    with caplog.at_level(logging.WARNING, logger="hfblog.models.flow.modeling_invertible_resnet"):
        _attach(caplog)
        decoded, info = model.inverse(latents, max_iter=2, return_info=True)
    missed = (model.transform(decoded) - latents).norm(dim=1).max().item()
    assert not info.converged.any() and f"{missed:.3g}" in caplog.text and "max_iter=2" in caplog.text


def test_decode_is_differentiable_in_latents_and_weights():
    model = make((5,), lipschitz_coeff=0.9, num_blocks=[2], hidden_size=6)
    latents = data((5,), 2).requires_grad_()
    assert torch.autograd.gradcheck(model.decode, latents, atol=1e-6)
    layer = model.blocks[1].layers[0]
    probe = torch.randn(2, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model.decode(latents) * probe).sum(), layer.bias)
    step = 1e-5
    for index in range(3):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                layer.bias[index] += sign * step
                values.append((model.decode(latents) * probe).sum().item())
                layer.bias[index] -= sign * step
        assert gradient[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)


def test_rsample_reaches_the_weights():
    model = make((2,))
    sample = model.distribution().rsample((7,))
    assert sample.shape == (7, 2)
    sample.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "layers" in name and "weight" in name)


# --- R11: the density ---


def test_density_integrates_to_one():
    model = make((2,), num_blocks=[4], lipschitz_coeff=0.9)
    model.config.prior = "normal"
    with torch.no_grad():
        samples = model.sample(4000, generator=torch.Generator().manual_seed(0))
        low, high = samples.amin(0) - 3, samples.amax(0) + 3
        axes = [torch.linspace(low[i].item(), high[i].item(), 600, dtype=torch.float64) for i in range(2)]
        grid = torch.cartesian_prod(*axes)
        mass = sum(model.log_prob(part).exp().sum() for part in grid.split(20_000))
        cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
    assert (mass * cell).item() == pytest.approx(1, abs=1e-2)


def test_log_prob_is_the_change_of_variables():
    model = make((6,), prior="diagonal")
    x = data((6,))
    latents, log_det = model.encode(x)
    torch.testing.assert_close(model.log_prob(x), model.prior.log_prob(latents) + log_det)


# --- R12 and state ---


def test_saved_models_need_no_warm_up_and_keep_actnorm(tmp_path):
    model = InvertibleResNetModel(InvertibleResNetConfig(event_shape=(1, 8, 8), **IMAGES))
    images = torch.randint(17, (32, 1, 8, 8)) / 16
    model.initialize(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(5):
        model(images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)  # straight from training
    loaded = InvertibleResNetModel.from_pretrained(tmp_path)
    model.eval()
    x = model.dequantize(images)
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(x), model.log_prob(x))
        assert torch.equal(loaded.log_det(x, "exact"), model.log_det(x, "exact"))
    assert (loaded.lipschitz_certificate() <= 0.9 + 1e-6).all()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.train()(images)
    for name, value in loaded.state_dict().items():
        if "right" not in name and "log_det_variance" not in name:
            assert torch.equal(value, before[name]), name


def test_evaluation_after_training_is_certified_without_a_call():
    model = make((8,), torch.float32, lipschitz_coeff=0.9)
    model.train()
    model(data((8,), dtype=torch.float32)).loss.backward()
    with torch.no_grad():
        for block in model.blocks:
            for layer in block.layers:
                layer.weight.add_(20 * torch.randn(layer.weight.shape))
    assert (model.eval().lipschitz_certificate() <= 0.9 + 1e-6).all()


def test_initialize_normalises_every_block_input():
    model = InvertibleResNetModel(InvertibleResNetConfig(event_shape=(6,), **VECTORS))
    x = 5 + 3 * data((6,), 500, dtype=torch.float32)
    model.initialize(x)
    latents = model.eval().transform(x)
    torch.testing.assert_close(latents.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(0), torch.ones(6), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="at least 2"):
        model.initialize(x[:1])


def test_autocast_lowers_precision_in_training_alone():
    model = make((1, 8, 8), torch.float32)
    x = data((1, 8, 8), dtype=torch.float32)
    with torch.no_grad():
        exact = model.log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.log_prob(x), exact)
            decoded = model.decode(model.transform(x))
        assert (decoded - x).abs().max() < 1e-5
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = model.log_det(x, "exact").detach()
    assert not torch.equal(lowered, model.log_det(x, "exact").detach())


# --- the classifier ---


def classifier(**fields) -> InvertibleResNetForImageClassification:
    base = {"event_shape": (1, 8, 8), "num_levels": 17, "dequantization": "none", "block_type": "conv", "num_blocks": [2, 1]}
    base |= {"hidden_size": 8, "injective_padding": 1, "num_labels": 10, "data_transform": "center"}
    model = InvertibleResNetForImageClassification(InvertibleResNetConfig(**(base | fields)))
    saturate(model.flow)
    return model.eval()


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_images_come_back_from_the_classifiers_features(padding):
    model = classifier(injective_padding=padding)
    images = torch.randint(17, (5, 1, 8, 8)) / 16
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (5, 64 * (1 + padding))
        assert (model.reconstruct(features) - images).abs().max() < 1e-4
        decoded, info = model.reconstruct(features, return_info=True)
    assert info.converged.all() and model(images).logits.shape == (5, 10)


def test_padded_models_have_no_density_and_unbounded_ones_no_inverse():
    model = classifier()
    images = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="injective_padding=1.*no density"):
        model.flow.log_prob(images)
    unbounded = classifier(lipschitz_coeff=None)
    assert unbounded(images).logits.isfinite().all()
    for call in (lambda: unbounded.reconstruct(torch.zeros(2, 128)), unbounded.lipschitz_certificate):
        with pytest.raises(ValueError, match="lipschitz_coeff is None"):
            call()


def test_a_density_model_starts_a_classifier(tmp_path):
    model = make((1, 8, 8), torch.float32)
    model.save_pretrained(tmp_path)
    started = InvertibleResNetForImageClassification.from_pretrained(tmp_path, num_labels=10)
    x = data((1, 8, 8), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(started.flow.transform(x), model.transform(x))


def test_hybrid_loss_adds_the_density():
    images, labels = torch.randint(17, (6, 1, 8, 8)) / 16, torch.arange(6)
    losses = {}
    for weight in (0.0, 0.7):
        torch.manual_seed(0)
        model = classifier(injective_padding=0, density_weight=weight, dequantization="uniform")
        losses[weight] = model(images, labels=labels).loss
    with torch.no_grad():
        density = -model.flow.log_prob(model.flow.dequantize(images)).mean() / 64
    torch.testing.assert_close(losses[0.7], losses[0.0] + 0.7 * density)


# --- bad input ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lipschitz_coeff": 1.0}, "strictly between 0 and 1"),
        ({"lipschitz_coeff": -0.5}, "strictly between 0 and 1"),
        ({"dropout": 0.1}, "dropout=0.1.*random"),
        ({"block_norm": "batch_norm"}, "block_norm='batch_norm'.*use_actnorm"),
        ({"hidden_act": "gelo"}, "hidden_act='gelo'.*'lipswish'"),
        ({"event_shape": (1, 28, 28), "block_type": "conv", "num_blocks": [1, 1, 1]}, "7x7 is odd.*squeeze_first=False"),
        (
            {"event_shape": (1, 8, 8), "block_type": "conv", "num_blocks": [1, 1], "split": True, "squeeze": False},
            "halve the 1",
        ),
        ({"num_blocks": [2, 2]}, "one scale"),
        ({"data_transform": "log"}, "data_transform='log'"),
        ({"logit_alpha": 0.5}, "logit_alpha=0.5"),
        ({"inverse_tolerance": 0.0}, "inverse_tolerance=0.0"),
        ({"density_weight": -1.0}, "density_weight"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        InvertibleResNetConfig(**({"event_shape": (4,)} | VECTORS | fields))


def test_wrong_calls_are_refused():
    model = make((4,), torch.float32)
    x = data((4,), dtype=torch.float32)
    for call, message in (
        (lambda: model.inverse(x, 1e-12), r"tol=1e-12 cannot be reached in float32.*double"),
        (lambda: model.inverse(x, max_iter=0), "max_iter=0"),
        (lambda: model.inverse(x[:, :3]), r"\(batch, 4\), got \(6, 3\)"),
        (lambda: model.log_det(x, "precise"), "method='precise'.*'exact', 'truncated' or 'roulette'"),
        (lambda: model.log_det(x, "truncated", num_terms=0), "num_terms=0"),
        (lambda: model.log_prob(x[:, :3]), r"\(batch, 4\), got \(6, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="split=True"):
        classifier(split=True, injective_padding=0)


def test_an_exact_log_det_that_does_not_fit_names_its_bytes():
    config = InvertibleResNetConfig(
        event_shape=(3, 512, 512), block_type="conv", num_blocks=[1], hidden_size=1, kernel_sizes=[1], use_actnorm=False
    )
    model = InvertibleResNetModel(config).eval()
    with pytest.raises(ValueError, match=r"786432 dimensions needs about [\d,]{17,} bytes.*truncated"):
        model.log_det(torch.rand(1, 3, 512, 512), "exact")


def test_presets_and_other_flows():
    config = InvertibleResNetConfig.from_preset("paper_density", hidden_size=4, num_blocks=[1, 1, 1])
    model = InvertibleResNetModel(config).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 32, 32)
        assert (model.decode(model.transform(x)) - x).abs().max() < 1e-5
    assert InvertibleResNetConfig.from_preset("residual_flow").num_dense_blocks == 4
    from hfblog import NiceFlowModel

    nice = NiceFlowModel(NiceFlowConfig(event_shape=(4,), num_levels=None, dequantization="none", hidden_size=4))
    assert torch.equal(nice.log_det(torch.rand(3, 4)), nice.encode(torch.rand(3, 4))[1])
    with pytest.raises(ValueError, match="truncated"):
        nice.log_det(torch.rand(3, 4), "truncated")


# --- ways in which it broke before ---


def test_training_mode_without_gradient_computes_with_the_present_weights():
    """The norms of the last certificate are not those of weights that have moved."""
    model = make((6,), torch.float32, lipschitz_coeff=0.9)
    x = data((6,), dtype=torch.float32)
    model.train()
    model.log_prob(x).mean().backward()
    with torch.no_grad():
        for block in model.blocks:
            for layer in block.layers:
                layer.weight.mul_(10)  # the singular vectors stay
        latents = model.transform(x)
        assert (model.lipschitz_certificate() <= 0.9 * 1.01).all()
        assert (model.decode(latents) - x).abs().max() < 1e-4
        torch.testing.assert_close(latents, model.eval().transform(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-10])
def test_small_gradients_through_the_inverse_are_as_right_as_large_ones(scale):
    model = linear_model(-0.9 * torch.eye(4, dtype=torch.float64), 0.9).float()
    latents = data((4,), dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(scale * model.decode(latents).sum(), latents)
    torch.testing.assert_close(gradient / scale, torch.full_like(gradient, 10.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("depth", [0, 5])
@pytest.mark.parametrize("coeff", [0.9, 0.98])
def test_float32_stops_at_its_rounding(coeff, depth, caplog):
    """Where the solution is far larger than the data, the residual's last digits are those of the solution."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.diag(torch.rand(16, generator=generator, dtype=torch.float64))
    basis = orthogonal(16)
    model = linear_model(-coeff * basis @ spectrum @ basis.T, coeff).float()
    latents = data((16,), 200, dtype=torch.float32)
    with caplog.at_level(logging.WARNING, logger="hfblog.models.flow.modeling_invertible_resnet"):
        _attach(caplog)
        x, info = model.inverse(latents, anderson_depth=depth, return_info=True)
    assert info.converged.all() and not caplog.text
    truth = torch.linalg.solve(torch.eye(16).double() - coeff * basis @ spectrum @ basis.T, latents.double().T).T
    assert ((x - truth).norm(dim=1) <= info.certified_error + 1e-6 * truth.norm(dim=1)).all()
    assert (x - truth).abs().max() < 1e-4 * truth.abs().max()


def test_a_certified_cut_of_the_roulette_changes_nothing_that_counts(monkeypatch):
    model = make((8,), lipschitz_coeff=0.9, log_det_estimator="roulette")
    x = data((8,), 64)

    def draw(negligible: float) -> torch.Tensor:
        monkeypatch.setattr(log_determinant, "NEGLIGIBLE", negligible)
        with torch.no_grad():
            return model.log_det(x, "roulette", generator=torch.Generator().manual_seed(0))

    whole, cut = draw(0.0), draw(1e-3)
    assert not torch.equal(whole, cut)
    assert (whole - cut).abs().max() <= 1e-3 * len(model.blocks)


def test_initialisation_on_the_meta_device_certifies_the_norms():
    """The buffers are a function of the weights: whatever weights are drawn, the norms are theirs."""
    with torch.device("meta"):
        model = InvertibleResNetModel(InvertibleResNetConfig(event_shape=(1, 8, 8), **IMAGES))
    model.to_empty(device="cpu").init_weights()
    assert (model.eval().lipschitz_certificate() <= 0.9 + 1e-6).all()
    for block in model.blocks:
        for layer in block.layers:
            norm = layer.largest_singular(layer.weight.detach().double())[2]
            torch.testing.assert_close(layer.norm.double(), norm, rtol=1e-5, atol=0)

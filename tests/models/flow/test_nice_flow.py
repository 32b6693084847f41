"""NICE: exact density, exact inverse, and the article's and the paper's networks written out literally."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from scipy import stats
from torch import nn
from transformers import AutoConfig, AutoModel

from hfblog import NiceFlowConfig, NiceFlowModel
from hfblog.models.flow.modeling_flow import LogisticPrior, nats_to_bits_per_dim

PERMUTATIONS = ("reverse", "random", "swap")
PARTITIONS = ("interleaved", "half")
PRIORS = ("normal", "logistic", "diagonal")

# reversal needs an even number of dimensions
ORDERS = [
    (permutation, partition, size)
    for permutation, partition, size in itertools.product(PERMUTATIONS, PARTITIONS, (2, 5, 8))
    if permutation != "reverse" or size % 2 == 0
]


def randomise(model: NiceFlowModel, seed: int = 0, low: float = -0.5, high: float = 1.0) -> NiceFlowModel:
    """Random weights everywhere: a fresh model has zero output layers, for which every test here is trivial."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> None:
        tensor.copy_(std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                normal(layer.weight, layer.in_features**-0.5)
                normal(layer.bias, 0.3)
        scale = low + (high - low) * torch.rand(model.scaling.weight.shape, generator=generator)
        model.scaling.weight.copy_(scale / model.scaling.factor)
        if model.config.prior == "diagonal":
            normal(model.prior.mean, 0.5)
            normal(model.prior.log_std, 0.3)
    return model


def make(event_shape: tuple[int, ...] = (1, 2, 4), dtype: torch.dtype = torch.float64, **fields) -> NiceFlowModel:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_levels": 17, "event_shape": event_shape} | fields
    return randomise(NiceFlowModel(NiceFlowConfig(**fields)).to(dtype).eval())


def images(count: int, event_shape: tuple[int, ...] = (1, 2, 4), levels: int = 17, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (count, *event_shape), generator=generator) / (levels - 1)


def jacobian(function, point: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), point).flatten(1)


def linears(coupling: nn.Module) -> list[nn.Linear]:
    return [layer for layer in coupling.modules() if isinstance(layer, nn.Linear)]


# --- the inverse ---


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("permutation", "partition", "size"), ORDERS)
def test_inverse_both_ways(permutation, partition, size, prior):
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = make((size,), dtype, permutation=permutation, partition=partition, prior=prior)
        like = model.reference_tensor
        assert like.dtype == dtype
        x = torch.rand(32, size, dtype=dtype, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert (model.decode(model.encode(x)[0]) - x).abs().max() < bound
            for temperature in (0.1, 0.75, 1.0, 1.5):
                latents = model.prior.sample(32, like, temperature, torch.Generator().manual_seed(2))
                assert latents.dtype == dtype
                assert (model.encode(model.decode(latents))[0] - latents).abs().max() < bound


@pytest.mark.parametrize("layers", (1, 2, 3, 5))
@pytest.mark.parametrize(("permutation", "partition", "size"), ORDERS)
def test_inverse_for_every_number_of_couplings(permutation, partition, size, layers):
    model = make((size,), permutation=permutation, partition=partition, num_coupling_layers=layers)
    x = torch.rand(8, size, dtype=torch.float64)
    with torch.no_grad():
        assert (model.decode(model.encode(x)[0]) - x).abs().max() < 1e-12


@pytest.mark.parametrize("permutation", ("random", "swap"))
@pytest.mark.parametrize("partition", PARTITIONS)
def test_latents_stand_where_their_dimensions_do(permutation, partition):
    """Without couplings' shifts, an encoding is a reordering; "swap" leaves none for any number of couplings."""
    for layers, size in itertools.product((1, 2, 3, 4), (7, 8)):
        model = make((size,), permutation=permutation, partition=partition, num_coupling_layers=layers)
        with torch.no_grad():
            for coupling in model.couplings:
                coupling.output.weight.zero_()
                coupling.output.bias.zero_()
            model.scaling.weight.zero_()
            latents = model.encode(torch.arange(size, dtype=torch.float64)[None])[0][0]
        assert latents.sort().values.tolist() == list(range(size))
        assert (latents.tolist() == list(range(size))) == (permutation == "swap")


# --- the log-determinant ---


@pytest.mark.parametrize(("permutation", "partition", "size"), [*ORDERS, *itertools.product(PERMUTATIONS, PARTITIONS, (64,))])
def test_log_det_is_that_of_the_jacobian(permutation, partition, size):
    model = make((size,), permutation=permutation, partition=partition)
    x = torch.rand(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    latents, log_det = model.encode(x)
    assert log_det.shape == (2,)
    assert log_det.abs().min() > 1e-3
    for row in range(2):
        encoding = jacobian(lambda x: model.encode(x)[0], x[row])
        assert abs(torch.linalg.slogdet(encoding).logabsdet - log_det[row]) < 1e-10
        decoding = jacobian(model.decode, latents[row].detach())
        assert abs(torch.linalg.slogdet(decoding).logabsdet + log_det[row]) < 1e-10
        assert (encoding @ decoding - torch.eye(size)).abs().max() < 1e-10


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_density_integrates_to_one(permutation, prior):
    model = make((2,), permutation=permutation, prior=prior, hidden_size=8)
    draws = model.sample(4000, generator=torch.Generator().manual_seed(0))
    low, high = draws.amin(0), draws.amax(0)
    margin = 0.6 * (high - low)
    axes = [torch.linspace(a, b, 600, dtype=torch.float64) for a, b in zip(low - margin, high + margin, strict=True)]
    with torch.no_grad():
        density = model.log_prob(torch.cartesian_prod(*axes)).exp().reshape(600, 600)
    integral = torch.trapezoid(torch.trapezoid(density, axes[1]), axes[0])
    assert integral.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("layers", (3, 4))
@pytest.mark.parametrize(("permutation", "partition", "size"), [order for order in ORDERS if order[2] > 2])
def test_every_input_reaches_every_output(permutation, partition, size, layers):
    def influence(layers: int) -> torch.Tensor:
        fields = {"permutation": permutation, "partition": partition, "num_coupling_layers": layers}
        model = make((size,), hidden_size=32, hidden_act="gelu", **fields)
        points = torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        return sum(jacobian(lambda x: model.encode(x)[0], point).abs() for point in points)

    assert influence(layers).min() > 1e-6
    assert (influence(2) == 0).any()  # two are too few


@pytest.mark.parametrize("size", (3, 7))
def test_reversal_of_an_odd_number_of_dimensions_is_refused(size):
    with pytest.raises((ValueError, StrictDataclassError), match=rf"(?s)reverse.*{size}.*'swap' or 'random'"):
        NiceFlowConfig(event_shape=(size,), permutation="reverse")


# --- closed forms ---


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_without_shifts_the_density_is_that_of_scaled_variables(permutation, prior):
    model = make((6,), permutation=permutation, prior=prior)
    with torch.no_grad():
        for coupling in model.couplings:
            coupling.output.weight.zero_()
            coupling.output.bias.zero_()
    x = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = model.scaling.log_scale.exp().detach()
    order = (model.encode(torch.arange(6, dtype=torch.float64)[None])[0] / scale)[0].round().long()
    if permutation != "random":
        assert order.tolist() == list(range(6))
    if prior == "normal":
        latent = torch.distributions.Normal(torch.zeros(6, dtype=torch.float64), 1.0)
    elif prior == "diagonal":
        latent = torch.distributions.Normal(model.prior.mean, model.prior.log_std.exp())
    else:
        unit = torch.distributions.Uniform(torch.zeros(6, dtype=torch.float64), 1.0)
        latent = torch.distributions.TransformedDistribution(unit, torch.distributions.SigmoidTransform().inv)
    expected = (latent.log_prob(scale * x[:, order]) + scale.log()).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_logistic_density_and_its_gradient_far_out():
    prior = LogisticPrior(1)
    latents = torch.tensor([[-1e4], [-50.0], [-1.0], [0.0], [2.0], [50.0], [1e4]], requires_grad=True)
    log_prob = prior.log_prob(latents)
    assert log_prob.isfinite().all()
    expected = stats.logistic.logpdf(latents.detach().double().numpy())[:, 0]
    torch.testing.assert_close(log_prob.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert log_prob[0].item() == log_prob[-1].item() == -1e4
    (score,) = torch.autograd.grad(log_prob.sum(), latents)
    assert score.isfinite().all()
    assert score.abs().max() <= 1
    torch.testing.assert_close(score, -torch.tanh(latents.detach() / 2))


def test_logistic_samples_are_logistic():
    like = torch.empty(0, dtype=torch.float64)
    latents = LogisticPrior(4).sample(5000, like, 1.0, torch.Generator().manual_seed(0))
    assert latents.shape == (5000, 4)
    assert stats.kstest(latents.flatten().numpy(), stats.logistic.cdf).pvalue > 0.01
    assert latents.std().item() == pytest.approx(LogisticPrior.std, rel=0.02)
    cold = LogisticPrior(4).sample(5000, like, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(cold, 0.5 * latents)


def test_conversion_to_bits_per_dimension():
    assert nats_to_bits_per_dim(1980.50, 784, 256) == pytest.approx(4.356, abs=5e-4)
    # a density on [-1, 1] is smaller by a factor of 2 per dimension than that on [0, 1]
    assert nats_to_bits_per_dim(5371.78 + 3072 * math.log(2), 3072, 256) == pytest.approx(4.477, abs=1e-3)
    assert nats_to_bits_per_dim(0.0, 64, 17) == pytest.approx(math.log2(17))


# --- the article and the paper, literally ---


def article_m(coupling: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in linears(coupling):  # the output layer has a ReLU as well
        x = torch.relu(x @ layer.weight.T + layer.bias)
    return x


def article_encode(model: NiceFlowModel, images: torch.Tensor) -> torch.Tensor:
    """Reverse all dimensions, take pairs apart, subtract m of the first from the second, put the pairs together."""
    x = images.reshape(len(images), -1)
    for coupling in model.couplings:
        x = x[:, list(range(x.shape[1] - 1, -1, -1))]
        pairs = x.reshape(len(x), -1, 2)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        second = second - article_m(coupling, first)
        x = torch.stack([first, second], dim=-1).reshape(len(x), -1)
    return model.scaling.weight.exp() * x


def article_decode(model: NiceFlowModel, latents: torch.Tensor) -> torch.Tensor:
    x = latents / model.scaling.weight.exp()
    for coupling in reversed(model.couplings):
        pairs = x.reshape(len(x), -1, 2)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        second = second + article_m(coupling, first)
        x = torch.stack([first, second], dim=-1).reshape(len(x), -1)
        x = x[:, list(range(x.shape[1] - 1, -1, -1))]
    return x


def article_model(**fields) -> NiceFlowModel:
    config = NiceFlowConfig.from_preset("article", event_shape=(1, 4, 4), hidden_size=24, **fields)
    return randomise(NiceFlowModel(config).double().eval())


def test_article_preset_is_the_article_s_network():
    model = article_model()
    x = torch.rand(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    latents, log_det = model.encode(x)
    reference = article_encode(model, x)
    assert all((article_m(coupling, x.flatten(1)[:, ::2]) > 0).any() for coupling in model.couplings)
    torch.testing.assert_close(latents, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, model.scaling.weight.sum().expand(8))
    decoded = article_decode(model, latents)
    torch.testing.assert_close(model.decode(latents).flatten(1), decoded, rtol=1e-12, atol=1e-12)

    weights = list(model.parameters())
    gradients = torch.autograd.grad(latents.square().sum(), weights[:-1])
    expected = torch.autograd.grad(reference.square().sum(), weights[:-1])
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


def test_article_objective_is_the_loss_without_its_constant():
    model = article_model()
    x = torch.rand(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objective = (0.5 * article_encode(model, x).square().sum(1)).mean() - model.scaling.weight.sum()
    loss = model(x).loss
    torch.testing.assert_close(loss, objective + 16 / 2 * math.log(2 * math.pi), rtol=1e-12, atol=1e-12)


def test_article_preset_has_the_article_s_size():
    with torch.device("meta"):
        model = NiceFlowModel(NiceFlowConfig.from_preset("article"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_158_352
    assert [len(linears(coupling)) for coupling in model.couplings] == [6] * 4


def test_article_initial_scale():
    config = NiceFlowConfig.from_preset("article", event_shape=(4096,), hidden_size=2, num_hidden_layers=1)
    model = NiceFlowModel(config)
    assert model.scaling.log_scale.std().item() == pytest.approx(math.sqrt(2 / 4097), rel=0.05)
    assert model.initialized


def test_article_noise_is_negative_and_only_in_training():
    model = article_model()
    x = images(64, (1, 4, 4), levels=256).double()
    assert torch.equal(model.dequantize(x), x)
    model.train()
    noise = model.dequantize(x) - x
    assert noise.max() <= 0
    assert noise.min() >= -0.01
    assert noise.min() < -0.009
    assert noise.mean().item() == pytest.approx(-0.005, abs=5e-4)
    assert not torch.equal(model.dequantize(x), model.dequantize(x))
    half = torch.full_like(x, 0.5)
    torch.testing.assert_close(model.dequantize(x, noise=half), x - 0.005)


@pytest.mark.parametrize("layers", (3, 4))
def test_paper_preset_is_the_paper_s_network(layers):
    """Odd and even positions, m added to one by the other in turns, linear output, and a scaling."""
    fields = {"event_shape": (9,), "hidden_size": 24, "num_coupling_layers": layers}
    config = NiceFlowConfig.from_preset("paper", **fields)
    fresh = NiceFlowModel(config)
    for layer in linears(fresh):
        for parameter in (layer.weight, layer.bias):
            assert 0.005 < parameter.abs().max() <= 0.01
    assert fresh.scaling.weight.abs().max() == 0

    model = randomise(fresh.double().eval())
    x = torch.rand(8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = x.clone()
    for layer, coupling in enumerate(model.couplings):
        passive, shifted = (0, 1) if layer % 2 == 0 else (1, 0)
        m = h[:, passive::2]
        *hidden, last = linears(coupling)
        for linear in hidden:
            m = torch.relu(m @ linear.weight.T + linear.bias)
        h = h.clone()
        h[:, shifted::2] += m @ last.weight.T + last.bias
    latents, log_det = model.encode(x)
    torch.testing.assert_close(latents, model.scaling.weight.exp() * h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, model.scaling.weight.sum().expand(8))
    logistic = torch.from_numpy(stats.logistic.logpdf(latents.detach().numpy())).sum(1)
    torch.testing.assert_close(model.log_prob(x), logistic + log_det)


def test_fresh_model_starts_without_shifts():
    model = NiceFlowModel(NiceFlowConfig(event_shape=(8,), hidden_size=16, num_hidden_layers=2))
    x = torch.rand(4, 8)
    assert torch.equal(model.encode(x)[0], x)
    assert not model.initialized


# --- initialisation from data ---


def uneven_images(count: int, levels: int = 17) -> torch.Tensor:
    """Images whose first pixel is constant and whose others have different spreads."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([0, 1, 2, 4, 8, 12, 16, 16])
    values = (torch.rand(count, 8, generator=generator) * (spread + 1)).floor().clamp(max=16)
    return (values / (levels - 1)).reshape(count, 1, 2, 4)


@pytest.mark.parametrize("log_scale_factor", (1.0, 10.0))
@pytest.mark.parametrize("prior", ("normal", "logistic"))
@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_initialize_gives_every_latent_the_prior_s_spread(permutation, prior, log_scale_factor):
    model = make(permutation=permutation, prior=prior, log_scale_factor=log_scale_factor)
    pixels = uneven_images(4000)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not model.initialized
    model.initialize(pixels)
    assert model.initialized
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"initialized", "scaling.weight"}

    x = model.dequantize(pixels, generator=torch.Generator().manual_seed(9)).double()
    latents, log_det = model.encode(x)
    expected = math.pi / math.sqrt(3) if prior == "logistic" else 1.0
    assert (latents.std(0) / expected - 1).abs().max() < 0.05

    assert (model.decode(latents) - x).abs().max() < 1e-12
    slogdet = torch.linalg.slogdet(jacobian(lambda x: model.encode(x)[0].reshape(x.shape), x[0].flatten(0, 1)[None]))
    assert abs(slogdet.logabsdet - log_det[0]) < 1e-10


def test_initialize_of_the_learned_prior():
    model = NiceFlowModel(NiceFlowConfig(event_shape=(1, 2, 4), num_levels=17, hidden_size=16, prior="diagonal"))
    pixels = uneven_images(4000)
    model.initialize(pixels)
    latents = model(pixels).latents
    assert (latents.std(0) / model.prior.log_std.exp() - 1).abs().max() < 0.05


@pytest.mark.parametrize("dequantization", ("uniform", "blog", "none"))
def test_initialize_keeps_constant_pixels_finite(dequantization):
    model = make(dtype=torch.float32, dequantization=dequantization)
    pixels = uneven_images(50)
    with torch.no_grad():
        for coupling in model.couplings:
            coupling.output.weight.zero_()
    model.initialize(pixels)
    assert model.scaling.log_scale.isfinite().all()
    assert model.log_prob(model.dequantize(pixels)).isfinite().all()


def test_initialize_refuses_one_example():
    model = make()
    with pytest.raises(ValueError, match="at least 2 examples.*got 1"):
        model.initialize(images(1))
    assert not model.initialized


def test_initialize_is_reproducible_and_not_needed_without_data():
    first, second = make(), make()
    pixels = images(50)
    first.initialize(pixels)
    second.initialize(pixels)
    assert torch.equal(first.scaling.weight, second.scaling.weight)
    second.initialize(pixels, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(first.scaling.weight, second.scaling.weight)
    zeros = make(scale_init="zeros")
    weight = zeros.scaling.weight.clone()
    assert zeros.initialized
    zeros.initialize(pixels)
    assert torch.equal(zeros.scaling.weight, weight)


# --- save and load ---


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_saved_model_is_the_same_bit_for_bit(tmp_path, permutation, prior, dtype):
    model = make(dtype=dtype, permutation=permutation, prior=prior, permutation_seed=7)
    model.initialize(uneven_images(50))
    model.save_pretrained(tmp_path)
    torch.manual_seed(123)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is NiceFlowModel
    assert not loaded.training
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    for name, value in state.items():
        assert value.dtype == loaded_state[name].dtype
        assert torch.equal(value, loaded_state[name])
    pixels = images(8)
    x = model.dequantize(pixels).to(dtype)
    with torch.no_grad():
        assert torch.equal(model.log_prob(x), loaded.log_prob(x))
        assert torch.equal(model(pixels).log_prob, loaded(pixels).log_prob)
        latents = model.encode(x)[0]
        assert torch.equal(model.decode(latents), loaded.decode(latents))
    draws = [flow.sample(3, generator=torch.Generator().manual_seed(0)) for flow in (model, loaded)]
    assert torch.equal(*draws)


def test_random_order_is_read_from_the_weights(tmp_path):
    """The stored order holds, whatever another version of torch would draw from the same seed."""
    model = make(permutation="random")
    with torch.no_grad():
        model.order[0] = model.order[0].flip(0)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.order, model.order)
    assert torch.equal(make(permutation="random").order, make(permutation="random").order)
    assert not torch.equal(make(permutation="random").order, make(permutation="random", permutation_seed=1).order)


def test_what_the_weights_lack_is_drawn_as_in_a_new_model():
    """from_pretrained builds on the meta device, so what is missing has no values but those of `_init_weights`."""
    model = make(dtype=torch.float32, permutation="random", prior="diagonal", permutation_seed=7)
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("couplings.0")}
    loaded, info = NiceFlowModel.from_pretrained(None, config=model.config, state_dict=kept, output_loading_info=True)
    assert {"order", "initialized", "prior.mean", "scaling.weight"} <= set(info["missing_keys"])
    assert torch.equal(loaded.order, model.order)
    assert not loaded.initialized
    for value in (loaded.scaling.weight, loaded.prior.mean, loaded.prior.log_std, loaded.couplings[1].output.weight):
        assert (value == 0).all()
    assert torch.equal(loaded.couplings[0].output.weight, model.couplings[0].output.weight)


def test_loaded_model_is_not_initialised_again(tmp_path):
    model = make(dtype=torch.float32)
    model.initialize(uneven_images(50))
    model.save_pretrained(tmp_path / "fitted")
    loaded = AutoModel.from_pretrained(tmp_path / "fitted")
    assert loaded.initialized
    loaded.train()
    loaded(images(8)).loss.backward()
    assert torch.equal(loaded.scaling.weight, model.scaling.weight)

    make(dtype=torch.float32).save_pretrained(tmp_path / "fresh")
    assert not AutoModel.from_pretrained(tmp_path / "fresh").initialized


def test_saved_configuration_is_equal(tmp_path):
    config = NiceFlowConfig.from_preset("article", event_shape=(3, 4, 4), permutation="random", permutation_seed=4)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is NiceFlowConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert tuple(loaded.event_shape) == (3, 4, 4)
    assert loaded.event_size == 48


# --- sampling ---


@pytest.mark.parametrize("prior", PRIORS)
def test_sampling(prior):
    model = make(prior=prior)

    def draw(seed: int, **options) -> torch.Tensor:
        return model.sample(5, generator=torch.Generator().manual_seed(seed), **options)

    assert draw(0).shape == (5, 1, 2, 4)
    assert draw(0).dtype == torch.float64
    assert not draw(0).requires_grad
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0), draw(0, temperature=0.5))
    torch.manual_seed(3)
    first = model.sample(2)
    torch.manual_seed(3)
    assert torch.equal(first, model.sample(2))

    center = model.prior.mean if prior == "diagonal" else torch.zeros(8, dtype=torch.float64)
    torch.testing.assert_close(draw(0, temperature=0), model.decode(center.expand(5, 8)).detach(), rtol=0, atol=0)

    x, log_prob = draw(2, return_log_prob=True)
    assert torch.equal(x, draw(2))
    torch.testing.assert_close(log_prob, model.log_prob(x).detach())


def test_samples_follow_the_density():
    """The mean log-density of samples is minus the entropy: prior entropy minus log-determinant."""
    model = make(prior="logistic")
    _, log_prob = model.sample(20000, generator=torch.Generator().manual_seed(0), return_log_prob=True)
    entropy = 8 * 2 - model.scaling.log_scale.sum().item()
    error = log_prob.std().item() / math.sqrt(20000)
    assert abs(-log_prob.mean().item() - entropy) < 4 * error


def test_sampling_refuses_senseless_arguments():
    model = make()
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        model.sample(0)
    with pytest.raises(ValueError, match="temperature=-0.5 must not be negative"):
        model.sample(1, temperature=-0.5)
    with pytest.raises(ValueError, match=r"\(batch, 8\), got \(2, 7\)"):
        model.decode(torch.zeros(2, 7))


# --- dequantisation ---


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("levels", (2, 17, 256))
def test_dequantization_fills_one_level(levels, dtype):
    model = make((levels,), num_levels=levels, hidden_size=4)
    ladder = torch.arange(levels)
    grid = ladder.to(dtype) / (levels - 1)
    pixels = grid.expand(200, levels)
    x = model.dequantize(pixels, generator=torch.Generator().manual_seed(0))
    assert x.dtype == dtype
    inside = x * levels - ladder
    assert inside.min() > -1e-4
    assert inside.max() < 1 + 1e-4
    assert inside.min() < 0.05
    assert inside.max() > 0.95
    assert stats.kstest(inside.flatten().double().numpy(), "uniform").pvalue > 1e-3
    torch.testing.assert_close(model.quantize(x), pixels, rtol=0, atol=1e-6)
    # the ends of a level: 1 - 1e-4 is as close as single precision can tell from the next of 256 levels
    for end in (0.0, 1 - 1e-4 if dtype == torch.float32 else 1 - 1e-9):
        x = model.dequantize(pixels, noise=torch.full_like(pixels, end))
        torch.testing.assert_close(model.quantize(x), pixels, rtol=0, atol=1e-6)


def test_quantize_sends_what_lies_outside_to_the_ends():
    model = make((4,), num_levels=5)
    x = torch.tensor([[-3.0, 0.1, 0.999, 7.0]])
    assert model.quantize(x).tolist() == [[0.0, 0.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match="num_levels is None"):
        make((4,), num_levels=None, dequantization="none").quantize(x)


def test_dequantization_noise_is_the_caller_s_or_fixed_or_random():
    model = make()
    pixels = images(4)
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.dequantize(pixels, noise=noise), (pixels * 16 + noise) / 17)
    assert torch.equal(model.dequantize(pixels), model.dequantize(pixels))
    assert torch.equal(model(pixels).log_prob, model(pixels).log_prob)
    torch.testing.assert_close(model(pixels, noise=noise).log_prob, model.log_prob((pixels * 16 + noise) / 17))

    # evaluated alone or in a batch, an example has one density
    torch.testing.assert_close(model(pixels).log_prob[2:], model(pixels[2:]).log_prob)
    assert model.dequantize(torch.zeros(2, 1, 2, 4))[0].unique().numel() == 8

    model.train()
    assert not torch.equal(model.dequantize(pixels), model.dequantize(pixels))
    assert not torch.equal(*model.dequantize(torch.zeros(2, 1, 2, 4)))
    torch.testing.assert_close(model.dequantize(pixels, noise=noise), (pixels * 16 + noise) / 17)
    for training in (True, False):
        model.train(training)
        drawn = [model.dequantize(pixels, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


def test_no_dequantization():
    model = make(num_levels=None, dequantization="none")
    x = torch.randn(4, 1, 2, 4, dtype=torch.float64)
    for training in (True, False):
        assert torch.equal(model.train(training).dequantize(x), x)
    torch.testing.assert_close(model(x).log_prob, model.log_prob(x))


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("dequantization", ("uniform", "blog"))
@pytest.mark.parametrize(("wrong", "named"), ((255.0, r"\[0, 1\].*255"), (-0.25, r"\[0, 1\].*-0\.25"), (math.nan, "NaN")))
def test_values_out_of_range_are_refused(wrong, named, dequantization, training):
    model = make(dequantization=dequantization).train(training)
    pixels = images(4)
    pixels[1, 0, 1, 2] = wrong
    with pytest.raises(ValueError, match=named):
        model(pixels)
    with pytest.raises(ValueError, match=named):
        model.initialize(pixels)


@pytest.mark.parametrize("shape", ((4, 1, 2, 3), (4, 8), (2, 2, 4), (4, 2, 4, 1)))
def test_wrong_shapes_are_refused(shape):
    model = make()
    named = rf"\(batch, 1, 2, 4\), got \({', '.join(map(str, shape))}\)"
    for call in (model, model.log_prob, model.encode, model.initialize, model.bits_per_dim):
        with pytest.raises(ValueError, match=named):
            call(torch.zeros(shape))


@pytest.mark.parametrize("shape", ((1, 1, 2, 4), (4, 1, 2, 1), (4, 1, 2, 3)))
def test_noise_of_another_shape_is_refused(shape):
    """Noise that broadcasts would be shared between pixels or examples: no longer the bound."""
    with pytest.raises(ValueError, match=rf"\(4, 1, 2, 4\).*\({', '.join(map(str, shape))}\)"):
        make()(images(4), noise=torch.rand(shape))


# --- bits per dimension ---


def test_bits_per_dimension_come_from_the_density():
    model = make()
    pixels = images(16)
    generator = torch.Generator().manual_seed(4)
    bits = model.bits_per_dim(pixels, generator=generator)
    x = model.dequantize(pixels, generator=torch.Generator().manual_seed(4))
    expected = math.log2(17) - model.log_prob(x) / (8 * math.log(2))
    assert bits.shape == (16,)
    assert not bits.requires_grad
    torch.testing.assert_close(bits, expected.detach())
    assert torch.equal(model.bits_per_dim(pixels), model.bits_per_dim(pixels))


def test_importance_weighting_tightens_the_bound():
    model = make()
    pixels = images(16)
    plain = model.bits_per_dim(pixels, num_draws=8)
    weighted = model.bits_per_dim(pixels, num_draws=8, importance_weighted=True)
    assert (weighted < plain).all()
    torch.testing.assert_close(model.bits_per_dim(pixels, importance_weighted=True), model.bits_per_dim(pixels))


@pytest.mark.parametrize("prior", PRIORS)
def test_bits_per_dimension_bound_the_discrete_likelihood(prior):
    """All 16 images of two pixels with four levels, their probabilities by quadrature of the density."""
    model = make((2,), num_levels=4, prior=prior, permutation="random", hidden_size=8)
    randomise(model, seed=1, low=1.0, high=2.0)
    levels = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    points = (torch.arange(48, dtype=torch.float64) + 0.5) / 48
    cell = torch.cartesian_prod(points, points)
    with torch.no_grad():
        density = model.log_prob(((levels[:, None] + cell) / 4).reshape(-1, 2)).reshape(16, -1)
    nats = density.logsumexp(1) - math.log(len(cell)) - 2 * math.log(4)
    exact = -nats / (2 * math.log(2))
    assert 0.01 < nats.exp().sum() <= 1
    torch.testing.assert_close((2 ** (-2 * exact)).sum(), nats.exp().sum())

    pixels = levels.double() / 3
    plain = model.bits_per_dim(pixels, num_draws=400)
    error = density.std(1) / math.sqrt(400) / (2 * math.log(2))
    assert (plain >= exact - 4 * error).all()
    assert (plain - exact).max() > 0.01  # the bound is not tight, so the comparison above says something
    mean = math.log2(4) - density.mean(1) / (2 * math.log(2))
    assert ((plain - mean).abs() <= 4.5 * error + 1e-6).all()
    weighted = model.bits_per_dim(pixels, num_draws=400, importance_weighted=True)
    assert (weighted <= plain).all()
    ratio = (density - density.logsumexp(1, keepdim=True) + math.log(len(cell))).exp()
    error = ratio.std(1) / math.sqrt(400) / (2 * math.log(2))
    assert ((weighted - exact).abs() <= 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("dequantization", ("blog", "none"))
def test_bits_per_dimension_need_a_valid_dequantization(dequantization):
    with pytest.raises(ValueError, match=f"'{dequantization}'.*dequantization='uniform'"):
        make(dequantization=dequantization).bits_per_dim(images(2))


def test_bits_per_dimension_need_values_on_the_grid():
    model = make()
    with pytest.raises(ValueError, match="not on the grid of 17 levels"):
        model.bits_per_dim(images(2) * 0.9)
    with pytest.raises(ValueError, match="num_draws=0 must be at least 1"):
        model.bits_per_dim(images(2), num_draws=0)


@pytest.mark.parametrize("training", (True, False))
def test_bits_per_dimension_refuse_nan(training):
    model = make().train(training)
    model.bits_per_dim(images(2))
    with pytest.raises(ValueError, match="NaN|grid"):
        model.bits_per_dim(torch.full((2, 1, 2, 4), math.nan))


# --- interpolation, inpainting, the distribution ---


def test_interpolation():
    model = make()
    x1, x2 = torch.rand(2, 3, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = model.interpolate(x1, x2, steps=5)
    assert path.shape == (3, 5, 1, 2, 4)
    torch.testing.assert_close(path[:, 0], x1, rtol=0, atol=1e-12)
    torch.testing.assert_close(path[:, -1], x2, rtol=0, atol=1e-12)
    middle = (model.encode(x1)[0] + model.encode(x2)[0]) / 2
    torch.testing.assert_close(path[:, 2], model.decode(middle).detach(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="steps=1 must be at least 2"):
        model.interpolate(x1, x2, steps=1)
    with pytest.raises(ValueError, match=r"\(3, 1, 2, 4\) and \(2, 1, 2, 4\)"):
        model.interpolate(x1, x2[:2], steps=3)


def test_inpainting():
    model = make(prior="normal")
    # gentle shifts, so that the density has one broad peak: ascent from the corner must climb
    with torch.no_grad():
        for coupling in model.couplings:
            coupling.output.weight.mul_(0.1)
            coupling.output.bias.mul_(0.1)
        model.scaling.weight.fill_(1.0 / model.scaling.factor)
    x = torch.rand(16, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    x = torch.where(mask, x, 1.0)
    visible = x.clone()
    filled = model.inpaint(x, mask, num_steps=30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x, visible)
    assert filled.shape == x.shape
    assert not filled.requires_grad
    shown = mask.expand_as(x)
    assert torch.equal(filled[shown], x[shown])
    assert (filled[~shown] != x[~shown]).any()
    assert filled.min() >= 0
    assert filled.max() <= 1
    assert (model.log_prob(filled) > model.log_prob(x)).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in model.parameters())
    again = model.inpaint(x, mask, num_steps=30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, filled)
    with torch.no_grad():
        assert torch.equal(model.inpaint(x, mask, 30, torch.Generator().manual_seed(1)), filled)


def test_inpainting_climbs_where_the_density_is_as_narrow_as_a_trained_one():
    """Log-scales are 1.6 ... 4.5 on the digits: the score is up to 90 per pixel, far too long a step as it stands."""
    model = make(dtype=torch.float32, prior="logistic")
    with torch.no_grad():
        for coupling in model.couplings:
            coupling.output.weight.zero_()
        # every mode at 0.5
        for coupling, shift in zip(model.couplings, (-0.5, -0.5, 0, 0), strict=True):
            coupling.output.bias.fill_(shift)
        model.scaling.weight.fill_(3.5 / model.scaling.factor)
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    x = torch.full((16, 1, 2, 4), 0.7)
    filled = model.inpaint(x, mask, generator=torch.Generator().manual_seed(0))
    assert (model.log_prob(filled) > model.log_prob(x)).float().mean() > 0.9


def test_inpainting_leaves_visible_values_outside_the_unit_interval():
    model = make()
    x = torch.full((2, 1, 2, 4), 1.25, dtype=torch.float64)
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 0] = False
    filled = model.inpaint(x, mask, num_steps=2, generator=torch.Generator().manual_seed(0))
    assert (filled[:, 0, 0, 0] <= 1).all()
    assert (filled.flatten(1)[:, 1:] == 1.25).all()


def test_inpainting_needs_a_boolean_mask():
    with pytest.raises(ValueError, match="boolean.*torch.float32"):
        make().inpaint(torch.rand(2, 1, 2, 4), torch.ones(2, 1, 2, 4))


@pytest.mark.parametrize("prior", PRIORS)
def test_distribution(prior):
    model = make(prior=prior)
    distribution = model.distribution()
    assert distribution.event_shape == (1, 2, 4)
    assert distribution.batch_shape == ()
    x = torch.rand(3, 5, 1, 2, 4, dtype=torch.float64)
    log_prob = distribution.log_prob(x)
    assert log_prob.shape == (3, 5)
    torch.testing.assert_close(log_prob[1], model.log_prob(x[1]))
    assert distribution.log_prob(x[0, 0]).shape == ()
    assert distribution.sample().shape == (1, 2, 4)
    assert distribution.sample((2, 3)).shape == (2, 3, 1, 2, 4)
    assert not distribution.sample((2,)).requires_grad

    draw = distribution.rsample((4,))
    assert draw.shape == (4, 1, 2, 4)
    draw.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (model.scaling.weight.grad != 0).all()


def test_reparameterised_gradient():
    """The gradient of a draw's energy with respect to a log-scale, against a finite difference."""
    model = make(hidden_act="gelu")

    def energy() -> torch.Tensor:
        torch.manual_seed(0)
        return model.distribution().rsample((16,)).square().mean()

    (gradient,) = torch.autograd.grad(energy(), model.scaling.weight)
    step = 1e-6
    with torch.no_grad():
        model.scaling.weight[3] += step
        high = energy()
        model.scaling.weight[3] -= 2 * step
        low = energy()
    assert gradient[3].item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("shape", ((3, 2, 4, 1), (3, 4, 2, 1), (3, 1, 4, 2)))
def test_distribution_refuses_other_event_shapes(shape):
    """As many values in another order are not the same event."""
    with pytest.raises(ValueError, match="1, 2, 4"):
        make().distribution().log_prob(torch.rand(shape, dtype=torch.float64))


# --- training ---


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("permutation", "partition"), itertools.product(PERMUTATIONS, PARTITIONS))
def test_every_parameter_gets_a_gradient(permutation, partition, prior):
    model = make(dtype=torch.float32, permutation=permutation, partition=partition, prior=prior).train()
    model.initialize(images(32))
    model(images(32)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_gradient_agrees_with_finite_differences():
    model = make((4,), hidden_act="gelu", prior="diagonal", permutation="random", hidden_size=3)
    x = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.log_prob, x)
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        replaced = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(model, replaced, (x.detach(),), {"noise": torch.full_like(x, 0.5)}).loss

    assert torch.autograd.gradcheck(loss, tuple(model.parameters()))


def test_a_few_steps_lower_the_loss():
    model = make(dtype=torch.float32).train()
    pixels = uneven_images(64)
    model.initialize(pixels)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = model(pixels, noise=noise).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


def test_output():
    model = make()
    pixels = images(6)
    output = model(pixels)
    assert list(output.keys()) == ["loss", "log_prob", "latents", "log_det"]
    assert output.loss.shape == ()
    torch.testing.assert_close(output.loss, -output.log_prob.mean())
    assert output.log_prob.shape == output.log_det.shape == (6,)
    assert output.latents.shape == (6, 8)
    torch.testing.assert_close(output.log_prob, model.prior.log_prob(output.latents) + output.log_det)

    without = model(pixels, return_loss=False)
    assert without.loss is None
    assert torch.equal(without.log_prob, output.log_prob)
    fields = model(pixels, return_dict=False)
    assert isinstance(fields, tuple)
    assert len(fields) == 4
    assert torch.equal(fields[0], output.loss)
    assert len(model(pixels, return_dict=False, return_loss=False)) == 3


def test_extreme_inputs_stay_finite():
    model = make(dtype=torch.float32, prior="logistic")
    x = torch.full((2, 1, 2, 4), 1e4, requires_grad=True)
    log_prob = model.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert x.grad.isfinite().all()


# --- low precision ---


def test_autocast_keeps_the_density_in_single_precision():
    model = make((64,), torch.float32, hidden_size=32)
    x = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents, log_det = model.encode(x)
        with torch.autocast("cpu", torch.bfloat16):
            low_latents, low_log_det = model.encode(x)
            output = model(x.clamp(0, 1))
    assert low_latents.dtype == torch.float32
    assert torch.equal(low_log_det, log_det)
    assert output.log_prob.dtype == torch.float32
    assert (low_latents - latents).abs().max() < 0.2


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_inverse_under_autocast(permutation):
    """Enough values that some lie next to a rounding boundary of bfloat16."""
    model = make((64,), torch.float32, permutation=permutation, hidden_size=32)
    x = torch.rand(2048, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoded = model.decode(model.encode(x)[0])
    assert decoded.dtype == torch.float32
    assert (decoded - x).abs().max() < 1e-5


def test_low_precision_inputs_are_widened():
    model = make(dtype=torch.float32)
    x = torch.rand(4, 1, 2, 4)
    for dtype in (torch.float16, torch.bfloat16):
        latents, _ = model.encode(x.to(dtype))
        assert latents.dtype == torch.float32
        torch.testing.assert_close(model.encode(x.to(dtype).float())[0], latents)


def test_loading_in_low_precision_keeps_the_scaling(tmp_path):
    model = make(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.couplings[0].output.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.scaling.weight, model.scaling.weight)
    assert loaded(images(4)).latents.dtype == torch.float32
    assert loaded.sample(2).dtype == torch.float32


# --- configuration ---


@pytest.mark.parametrize(
    ("fields", "named"),
    (
        ({"prior": "gaussian"}, "'gaussian'.*'normal', 'logistic', 'diagonal'"),
        ({"permutation": "shuffle"}, "'shuffle'.*'reverse', 'random', 'swap'"),
        ({"partition": "checker"}, "'checker'.*'interleaved', 'half'"),
        ({"dequantization": "normal"}, "'normal'.*'uniform', 'blog', 'none'"),
        ({"scale_init": "ones"}, "'ones'.*'data', 'zeros', 'glorot'"),
        ({"coupling_init": "ones"}, "'ones'.*'zeros', 'glorot', 'uniform'"),
        ({"coupling_output_act": "tanh"}, "'tanh'.*None, 'relu'"),
        ({"coupling_sign": 2}, "coupling_sign=2.*1, -1"),
        ({"num_coupling_layers": 0}, "num_coupling_layers=0 must be positive"),
        ({"hidden_size": -8}, "hidden_size=-8 must be positive"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1 must be positive"),
        ({"log_scale_factor": 0}, "log_scale_factor=0 must be positive"),
        ({"noise_width": -0.01}, "noise_width=-0.01 must be positive"),
        ({"num_levels": 1}, "num_levels=1 must be at least 2"),
        ({"num_levels": None}, "needs num_levels"),
        ({"event_shape": (1, -8, 8)}, r"event_shape=\(1, -8, 8\)"),
        ({"event_shape": ()}, r"event_shape=\(\)"),
        ({"event_shape": (1,)}, r"event_shape=\(1,\).*at least 2"),
    ),
)
def test_configuration_refuses_wrong_values(fields, named):
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s){named}"):
        NiceFlowConfig(**fields)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    (
        ("hidden_size", "64", "int.*'64'"),
        ("hidden_size", 64.5, r"int.*64\.5"),
        ("num_levels", 16.5, r"16\.5"),
        ("permutation_seed", "zero", "int.*'zero'"),
        ("event_shape", 64, "64"),
        ("event_shape", (1, "8", 8), "'8'"),
        ("noise_width", "0.01", r"'0\.01'"),
        ("hidden_act", 3, "str.*3"),
    ),
)
def test_configuration_refuses_wrong_types(field, value, named):
    with pytest.raises((TypeError, ValueError, StrictDataclassError), match=f"(?s){field}.*{named}"):
        NiceFlowConfig(**{field: value})


def test_presets():
    paper, article = NiceFlowConfig.from_preset("paper"), NiceFlowConfig.from_preset("article")
    assert (paper.prior, paper.coupling_sign, paper.coupling_output_act) == ("logistic", 1, None)
    assert (paper.dequantization, paper.partition, paper.permutation) == ("uniform", "interleaved", "swap")
    assert (article.prior, article.coupling_sign, article.coupling_output_act) == ("normal", -1, "relu")
    assert (article.dequantization, article.noise_width, article.permutation) == ("blog", 0.01, "reverse")
    for config in (paper, article):
        assert (config.num_coupling_layers, config.hidden_size, config.num_hidden_layers) == (4, 1000, 5)
        assert config.hidden_act == "relu"
    changed = NiceFlowConfig.from_preset("article", prior="logistic", hidden_size=8)
    assert (changed.prior, changed.hidden_size, changed.coupling_sign) == ("logistic", 8, -1)
    assert NiceFlowConfig.from_preset("article").prior == "normal"
    with pytest.raises(ValueError, match="'blog'.*'paper', 'article'"):
        NiceFlowConfig.from_preset("blog")
    with pytest.raises((ValueError, StrictDataclassError), match="'gaussian'"):
        NiceFlowConfig.from_preset("paper", prior="gaussian")


def test_evaluation_noise_is_uniform_and_independent_between_examples():
    """A fixed function of each example, and as good as a draw: the chance of one draw must not stay in a mean."""
    model = NiceFlowModel(NiceFlowConfig(event_shape=(1, 8, 8), num_levels=17, hidden_size=4, num_hidden_layers=1)).eval()
    images = torch.randint(17, (400, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 16
    noise = (model.dequantize(images) * 17 - images * 16).flatten(1).double()
    assert noise.min() >= -1e-5 and noise.max() < 1 + 1e-5
    assert stats.kstest(noise.flatten(), "uniform").pvalue > 1e-3
    correlations = np.corrcoef(noise) - np.eye(len(noise))  # between examples
    assert abs(correlations).max() < 6 / math.sqrt(64) and abs(correlations.mean()) < 1e-2
    assert abs(np.corrcoef(noise.T) - np.eye(64)).max() < 5 / math.sqrt(400)  # between dimensions
    flipped = images.clone()
    flipped[0, 0, 3, 3] = (images[0, 0, 3, 3] * 16 + 1) % 17 / 16
    other = (model.dequantize(flipped) * 17 - flipped * 16).flatten(1).double()
    assert torch.equal(other[1:], noise[1:]) and (other[0] - noise[0]).abs().mean() > 0.2

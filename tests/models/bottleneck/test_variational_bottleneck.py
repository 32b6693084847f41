"""The bottleneck alone: rates against torch.distributions and integrals, its constraint step by step, priors, gradients.

`torch_law` and `torch_mixture` build the laws with torch.distributions and share no code with the package.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.nn import functional as F

from hfblog import GaussianPosterior, VariationalBottleneck, VIBConfig, VIBForImageClassification, interpolate_latents
from hfblog.models.bottleneck.variational_bottleneck import (
    LearnedPrior,
    MixturePrior,
    StandardPrior,
    VampPrior,
    draw_normal,
    gaussian_rate,
)

POSTERIORS = ["diag", "full"]
PRIORS = ["standard", "learned", "mixture", "vamp"]
B, FEATURES, K = 6, 5, 4

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def make_posterior(kind: str, batch: int = B, size: int = K) -> GaussianPosterior:
    """Random laws in float64."""
    mean, scale = torch.randn(batch, size).double(), torch.rand(batch, size).double() + 0.2
    if kind == "full":
        scale = torch.randn(batch, size, size).double().tril(-1) + torch.diag_embed(scale)
    return GaussianPosterior(mean, scale)


def torch_law(mean: Tensor, scale: Tensor) -> torch.distributions.Distribution:
    if scale.ndim == mean.ndim:
        return Independent(Normal(mean, scale), 1)
    return MultivariateNormal(mean, scale @ scale.mT)


def torch_prior(prior: nn.Module) -> torch.distributions.Distribution:
    """A diagonal prior in float64."""
    if isinstance(prior, LearnedPrior):
        return Independent(Normal(prior.mean.double(), (0.5 * prior.log_var.double()).exp()), 1)
    return Independent(Normal(torch.zeros(K).double(), torch.ones(K).double()), 1)


def torch_mixture(layer: VariationalBottleneck) -> MixtureSameFamily:
    prior = layer.prior
    if isinstance(prior, VampPrior):
        law = layer.posterior(prior.pseudo_inputs)
        components = torch_law(law.mean.double(), law.scale.double())
    else:
        components = torch_law(prior.mean.double(), prior.log_var.double().exp().sqrt())
    return MixtureSameFamily(Categorical(logits=prior.logits.double()), components)


@torch.no_grad()
def make_layer(**settings) -> VariationalBottleneck:
    """With parameters of the prior away from where they start."""
    layer = VariationalBottleneck(FEATURES, K, **({"num_components": 3} | settings))
    if layer.is_stochastic:
        for parameter in layer.prior.parameters():
            parameter += torch.randn_like(parameter) / 2
    return layer


# --- T1: rates ---


@pytest.mark.parametrize("prior_type", [StandardPrior, LearnedPrior])
@pytest.mark.parametrize("kind", POSTERIORS)
@torch.no_grad()
def test_rate_is_that_of_torch(kind, prior_type):
    posterior = make_posterior(kind)
    prior = StandardPrior() if prior_type is StandardPrior else LearnedPrior(K)
    for parameter in prior.parameters():
        parameter += torch.randn_like(parameter)
    law = torch_prior(prior)
    other = MultivariateNormal(law.mean, torch.diag_embed(law.variance)) if kind == "full" else law
    close(prior.rate(posterior).sum(1), kl_divergence(torch_law(posterior.mean, posterior.scale), other), rtol=0, atol=1e-6)
    if kind == "diag":
        each = kl_divergence(Normal(posterior.mean, posterior.scale), law.base_dist)
        close(prior.rate(posterior), each, rtol=0, atol=1e-6)
    latents = torch.randn(7, 2, K).double()
    close(prior.log_prob(latents), law.log_prob(latents), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_rate_to_any_diagonal_gaussian(kind):
    posterior, mean, log_var = make_posterior(kind), torch.randn(K).double(), torch.randn(K).double()
    other = MultivariateNormal(mean, torch.diag_embed(log_var.exp()))
    law = torch_law(posterior.mean, posterior.scale)
    law = law if kind == "full" else MultivariateNormal(law.mean, torch.diag_embed(law.variance))
    close(gaussian_rate(posterior, mean, log_var).sum(1), kl_divergence(law, other))


@pytest.mark.parametrize(
    ("mean", "std", "nats"),
    [
        (0, 1, 0),
        (2, 1, 2),
        (0, math.exp(-1), 1 + 0.5 * math.exp(-2) - 0.5),
        (-1, math.e, -1 + 0.5 * math.e**2),
    ],
)
def test_rates_are_nats(mean, std, nats):
    posterior = GaussianPosterior(torch.full((1, 3), float(mean)), torch.full((1, 3), std))
    torch.testing.assert_close(gaussian_rate(posterior), torch.full((1, 3), float(nats)))


@pytest.mark.parametrize("kind", POSTERIORS)
def test_gradients_of_rates_and_densities_are_those_of_finite_differences(kind):
    posterior, noise, latents = make_posterior(kind), torch.randn(B, 2, K).double(), torch.randn(3, K).double()

    def found(mean: Tensor, scale: Tensor, prior_mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
        law = GaussianPosterior(mean, scale.tril() if kind == "full" else scale)
        rate = gaussian_rate(law, prior_mean, log_var)
        return rate, law.transform(noise), law.log_prob_of_noise(noise), law.log_prob(latents)

    inputs = (posterior.mean, posterior.scale, torch.randn(K).double(), torch.randn(K).double())
    assert torch.autograd.gradcheck(found, tuple(value.requires_grad_() for value in inputs))


# --- the layers that make a posterior ---


@pytest.mark.parametrize("std_param", ["log_var", "softplus"])
@pytest.mark.parametrize("kind", POSTERIORS)
@torch.no_grad()
def test_posterior_is_what_two_linear_layers_say(kind, std_param):
    layer, features = make_layer(posterior=kind, std_param=std_param, std_shift=-0.7), torch.randn(B, FEATURES)
    raw = F.linear(features, layer.heads.scale.weight, layer.heads.scale.bias).double()
    first = raw[:, :K]
    std = (first / 2).exp() if std_param == "log_var" else (1 + (first - 0.7).exp()).log() + 1e-6
    found = layer(features)
    torch.testing.assert_close(found.mean, F.linear(features, layer.heads.mean.weight, layer.heads.mean.bias))
    if kind == "diag":
        assert layer.heads.scale.out_features == K
        torch.testing.assert_close(found.scale.double(), std, rtol=1e-6, atol=0)
        return
    expected = torch.zeros(B, K, K).double()
    for b in range(B):
        entries = iter(raw[b, K:])
        for row in range(K):
            for column in range(row):
                expected[b, row, column] = next(entries)
            expected[b, row, row] = std[b, row]
        assert not list(entries)
    torch.testing.assert_close(found.scale.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("std_param", "raw", "std"),
    [("log_var", 1e3, math.exp(5)), ("log_var", -1e3, math.exp(-10)), ("softplus", -1e3, 1e-6), ("softplus", 1e3, 995.0)],
)
@torch.no_grad()
def test_standard_deviations_stay_in_their_range(std_param, raw, std):
    layer = VariationalBottleneck(FEATURES, K, std_param=std_param)
    layer.heads.scale.weight.zero_()
    layer.heads.scale.bias.fill_(raw)
    found = layer(torch.randn(B, FEATURES))
    torch.testing.assert_close(found.scale, torch.full((B, K), std))
    assert torch.isfinite(found.rate).all() and found.penalty > 0


@pytest.mark.parametrize("kind", POSTERIORS)
def test_codes_and_their_densities(kind):
    posterior, noise, latents = make_posterior(kind), torch.randn(B, 3, K).double(), torch.randn(7, K).double()
    factor = posterior.scale if kind == "full" else torch.diag_embed(posterior.scale)
    codes = posterior.transform(noise)
    for b in range(B):
        law = MultivariateNormal(posterior.mean[b], scale_tril=factor[b])
        for s in range(3):
            close(codes[b, s], posterior.mean[b] + factor[b] @ noise[b, s])
        close(posterior.log_prob_of_noise(noise)[b], law.log_prob(codes[b]))
        close(posterior.log_prob(latents)[:, b], law.log_prob(latents))
        close(posterior.variance[b], law.variance)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_samples_have_the_posteriors_moments(kind):
    """For a full covariance that of L L^T, where a transposed factor would give another."""
    posterior = make_posterior(kind, batch=2)
    codes = posterior.transform(torch.randn(2, 200_000, K).double())
    factor = posterior.scale if kind == "full" else torch.diag_embed(posterior.scale)
    for b in range(2):
        torch.testing.assert_close(codes[b].mean(0), posterior.mean[b], rtol=0, atol=0.03)
        torch.testing.assert_close(codes[b].T.cov(), factor[b] @ factor[b].T, rtol=0.02, atol=0.04)
    if kind == "full":
        assert (factor @ factor.mT - factor.mT @ factor).abs().amax((1, 2)).min() > 0.2


@pytest.mark.parametrize("kind", POSTERIORS)
def test_reparameterised_gradients(kind):
    """T2: of E z^2 they are 2 mu and 2 sigma, or 2 L."""
    layer = VariationalBottleneck(1, 3, posterior=kind).train()
    with torch.no_grad():
        layer.heads.mean.bias.copy_(torch.tensor([1.5, -0.8, 0.6]))
        layer.heads.scale.bias.copy_(torch.tensor([0.3, -0.7, 0.2, 0.5, -0.9, 0.7])[: layer.heads.scale.out_features])
    found = layer(torch.zeros(1, 1), num_samples=200_000)
    mean, scale = torch.autograd.grad(found.latents.square().sum(2).mean(), [found.mean, found.scale])
    torch.testing.assert_close(mean, 2 * found.mean, rtol=0.02, atol=0)
    assert found.mean.abs().min() > 0.5
    # entries above the diagonal are constants
    scale = scale.tril() if kind == "full" else scale
    torch.testing.assert_close(scale, 2 * found.scale, rtol=0.02, atol=1e-12)


# --- what the rate adds to a loss ---


@pytest.mark.parametrize("prior", ["standard", "learned"])
@pytest.mark.parametrize("kind", POSTERIORS)
@torch.no_grad()
def test_layer_sums_over_dimensions_and_means_over_examples(kind, prior):
    layer, features = make_layer(posterior=kind, prior=prior, beta=0.3), torch.randn(B, FEATURES)
    found = layer(features)
    law, other = torch_law(found.mean.double(), found.scale.double()), torch_prior(layer.prior)
    if kind == "full":
        other = MultivariateNormal(other.mean, torch.diag_embed(other.variance))
    expected = kl_divergence(law, other)
    assert found.rate.shape == (B,) and found.penalty.ndim == 0
    torch.testing.assert_close(found.rate.double(), expected, rtol=1e-6, atol=1e-6)
    assert found.penalty.item() == pytest.approx(0.3 * sum(expected.tolist()) / B, rel=1e-5)
    assert layer(features.repeat(3, 1)).penalty.item() == pytest.approx(found.penalty.item(), rel=1e-6)


def hinge_and_fixed(target: float) -> tuple[VariationalBottleneck, VariationalBottleneck]:
    fixed = make_layer(beta=0.3)
    hinge = make_layer(beta=0.3, bottleneck="hinge", target_rate=target)
    hinge.load_state_dict(fixed.state_dict())
    return hinge, fixed


@torch.no_grad()
def test_hinge_without_free_nats_is_the_fixed_penalty():
    hinge, fixed = hinge_and_fixed(1e-12)
    features = torch.randn(B, FEATURES)
    assert hinge(features).penalty.item() == pytest.approx(fixed(features).penalty.item(), rel=1e-6)


@torch.no_grad()
def test_hinge_is_the_maximum_of_each_example():
    features = torch.randn(40, FEATURES)
    rates = make_layer()(features).rate
    hinge, _ = hinge_and_fixed(rates.median().item())
    rates = hinge(features).rate.tolist()
    target = hinge.settings["target_rate"]
    assert min(rates) < target - 0.1 and target + 0.1 < max(rates)
    expected = 0.3 * sum(max(rate - target, 0.0) for rate in rates) / 40
    assert hinge(features).penalty.item() == pytest.approx(expected, rel=1e-5)
    below = features[torch.tensor(rates) < target]
    assert hinge(below).penalty == 0


@torch.no_grad()
def test_free_bits_cost_nothing_for_each_dimension():
    layer, features = make_layer(beta=0.3, free_bits=0.2, prior="learned"), torch.randn(B, FEATURES)
    found = layer(features)
    each = kl_divergence(Normal(found.mean.double(), found.scale.double()), torch_prior(layer.prior).base_dist)
    assert (each < 0.2).any() and (each > 0.2).any()
    expected = 0.3 * sum(max(nats, 0.2) for row in each.tolist() for nats in row) / B
    assert found.penalty.item() == pytest.approx(expected, rel=1e-5)
    # what is reported is the rate itself
    torch.testing.assert_close(found.rate.double(), each.sum(1), rtol=1e-6, atol=1e-6)


def test_free_bits_leave_no_gradient():
    layer = make_layer(free_bits=50.0)
    found = layer(torch.randn(B, FEATURES))
    (gradient,) = torch.autograd.grad(found.penalty, [found.mean])
    assert (gradient == 0).all()


@pytest.mark.parametrize("bottleneck", ["fixed", "dual"])
def test_warm_up_raises_the_weight_of_training_steps(bottleneck):
    target = {"target_rate": 0.1, "dual_lr": 1e-9} if bottleneck == "dual" else {}
    layer = make_layer(bottleneck=bottleneck, beta=0.5, kl_warmup_steps=4, **target)
    features, noise = torch.randn(B, FEATURES), torch.randn(B, 1, K)
    with torch.no_grad():
        whole = layer.eval()(features).penalty.item()
    assert whole == pytest.approx(0.5 * (layer(features).rate.mean().item() - target.get("target_rate", 0)), rel=1e-5)
    layer.train()
    shares = [layer(features, noise=noise).penalty.item() / whole for _ in range(6)]
    assert shares == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1], rel=1e-5)
    assert layer.steps == 6
    assert layer.eval()(features).penalty.item() == pytest.approx(whole, rel=1e-5)


# --- T1: the dual multiplier ---


@pytest.mark.parametrize("update", ["exponential", "linear"])
def test_multiplier_moves_by_the_closed_form_of_each_step(update):
    layer = make_layer(bottleneck="dual", beta=0.2, target_rate=2.0, dual_lr=0.05, dual_update=update).train()
    expected, seen = 0.2, []
    for size in (0.1, 0.2, 1, 2, 0.5, 8, 0.01, 3, 0.1, 0.1, 0.1, 0.1):
        found = layer(size * torch.randn(B, FEATURES))
        rate = found.rate.mean().item()
        # the loss has the multiplier of before the step
        assert found.penalty.item() == pytest.approx(expected * (rate - 2), rel=1e-4, abs=1e-7)
        before = expected
        if update == "linear":
            expected = max(0.0, expected + 0.05 * (rate - 2))
        else:
            expected *= math.exp(0.05 * min(max(math.log(rate / 2), -1.0), 1.0))
        assert layer.multiplier.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert expected >= 0 and (expected > before or expected == before == 0 or rate < 2)
        assert expected < before or expected == before == 0 or rate > 2
        seen.append((rate > 2, abs(math.log(rate / 2)) > 1))
    assert {above for above, _ in seen} == {True, False} and {clipped for _, clipped in seen} == {True, False}
    assert layer.steps == len(seen)


def test_linear_multiplier_stops_at_zero_and_rises_again():
    layer = make_layer(bottleneck="dual", beta=0.0, target_rate=2.0, dual_lr=0.5, dual_update="linear").train()
    layer(0.01 * torch.randn(B, FEATURES))
    assert layer.multiplier == 0
    far = layer(9 * torch.randn(B, FEATURES))
    assert layer.multiplier.item() == pytest.approx(0.5 * (far.rate.mean().item() - 2), rel=1e-5) and layer.multiplier > 0


@torch.no_grad()
def test_exponential_multiplier_survives_rates_below_zero():
    """An estimated rate can be negative, and has no logarithm then."""
    layer = make_layer(bottleneck="dual", beta=0.2, target_rate=2.0, dual_lr=0.1)
    layer.update_state(torch.tensor([-3.0, 1.0]))
    assert layer.multiplier.item() == pytest.approx(0.2 * math.exp(-0.1), rel=1e-6)


@pytest.mark.parametrize("update", ["exponential", "linear"])
def test_gradient_of_a_penalty_has_the_multiplier_of_its_step(update):
    layer = make_layer(bottleneck="dual", beta=0.2, target_rate=0.1, dual_lr=5.0, dual_update=update).train()
    found = layer(torch.randn(B, FEATURES))
    assert layer.multiplier > 1
    (gradient,) = torch.autograd.grad(found.penalty, [found.mean])
    torch.testing.assert_close(gradient, 0.2 * found.mean / B)


def test_only_training_steps_move_the_state():
    """A query in the middle of training, without gradients, is no step; and an evaluation is none."""
    layer = make_layer(bottleneck="dual", target_rate=2.0)
    features = torch.randn(B, FEATURES)
    start = copy.deepcopy(layer.state_dict())
    layer.eval()(features)
    layer(features, num_samples=3)
    with torch.no_grad():
        layer.train()(features)
    assert all(torch.equal(value, start[name]) for name, value in layer.state_dict().items())
    layer(features)
    assert layer.steps == 1 and layer.multiplier != start["multiplier"]
    for bottleneck in ("fixed", "hinge"):
        other = make_layer(bottleneck=bottleneck, target_rate=2.0 if bottleneck == "hinge" else None).train()
        other(features)
        assert other.steps == 1 and other.multiplier.item() == pytest.approx(1e-3)


def test_state_is_saved_and_loaded_in_float32(tmp_path):
    settings = {"image_size": 2, "hidden_sizes": (), "latent_dim": 3, "num_labels": 2}
    model = VIBForImageClassification(VIBConfig(bottleneck="dual", target_rate=0.01, dual_lr=0.3, **settings)).train()
    for _ in range(3):
        model(torch.rand(8, 1, 2, 2))
    multiplier = model.bottleneck.multiplier.clone()
    assert multiplier.bfloat16().float() != multiplier > 1.2e-3
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = VIBForImageClassification.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.classifier.weight.dtype == dtype
        assert loaded.bottleneck.multiplier.dtype == torch.float32 and loaded.bottleneck.steps.dtype == torch.long
        assert torch.equal(loaded.bottleneck.multiplier, multiplier) and loaded.bottleneck.steps == 3
    layer = VariationalBottleneck(4, 3, bottleneck="dual", target_rate=0.01)
    layer.load_state_dict(model.bottleneck.state_dict())
    assert torch.equal(layer.multiplier, multiplier)


# --- priors whose rate is estimated ---


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
@pytest.mark.parametrize("kind", POSTERIORS)
@torch.no_grad()
def test_mixtures_are_those_of_torch(kind, prior):
    layer, latents = make_layer(posterior=kind, prior=prior), torch.randn(7, 2, K)
    law = torch_mixture(layer)
    assert law.mixture_distribution.probs.max() > 0.4 > 0.3 > law.mixture_distribution.probs.min()
    torch.testing.assert_close(layer.prior.log_prob(latents).double(), law.log_prob(latents.double()), rtol=1e-5, atol=1e-5)
    # the rate is the mean over the codes of log q(z|x) - log r(z), in training and in evaluation
    features, noise = torch.randn(B, FEATURES), torch.randn(B, 3, K)
    posterior = layer.posterior(features)
    for mode in (True, False):
        found = layer.train(mode)(features, noise=noise)
        assert found.latents.shape == (B, 3, K)
        for b in range(B):
            own = torch_law(posterior.mean[b].double(), posterior.scale[b].double())
            codes = found.latents[b].double()
            expected = (own.log_prob(codes) - law.log_prob(codes)).mean()
            torch.testing.assert_close(found.rate[b].double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_estimated_rate_comes_to_the_integral():
    """Brute force over a grid for one dimension, where the integral is exact to many digits."""
    layer = VariationalBottleneck(FEATURES, 1, prior="mixture", num_components=3)
    layer.prior.mean.copy_(torch.tensor([[-2.0], [0.5], [3.0]]))
    layer.prior.logits.copy_(torch.tensor([0.3, -1.0, 0.7]))
    layer.prior.log_var.copy_(torch.tensor([[-1.0], [0.4], [0.0]]))
    features = torch.randn(3, FEATURES)
    posterior = layer.posterior(features)
    law = torch_mixture(layer)
    z = torch.linspace(-30, 30, 400_001).double()
    found = layer(features, num_samples=200_000)
    for b in range(3):
        own = Normal(posterior.mean[b].double(), posterior.scale[b].double())
        difference = own.log_prob(z) - law.log_prob(z[:, None])
        exact = torch.trapezoid(own.log_prob(z).exp() * difference, z).item()
        spread = torch.trapezoid(own.log_prob(z).exp() * (difference - exact).square(), z).item() ** 0.5
        assert found.rate[b].item() == pytest.approx(exact, abs=4 * spread / 200_000**0.5)
        assert spread > 0.05 and exact > 0.05


@torch.no_grad()
def test_mixture_of_one_component_is_the_learned_prior():
    mixture, learned = make_layer(prior="mixture", num_components=1), make_layer(prior="learned")
    learned.heads.load_state_dict(mixture.heads.state_dict())
    learned.prior.mean.copy_(mixture.prior.mean[0])
    learned.prior.log_var.copy_(mixture.prior.log_var[0])
    features, noise = torch.randn(B, FEATURES), torch.randn(B, 50_000, K)
    assert mixture.prior.log_prob(noise).shape == (B, 50_000)
    torch.testing.assert_close(mixture.prior.log_prob(noise), learned.prior.log_prob(noise))
    torch.testing.assert_close(mixture(features, noise=noise).rate, learned(features).rate, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_vamp_components_are_posteriors_at_pseudo_inputs(kind):
    layer = make_layer(posterior=kind, prior="vamp")
    components, posterior = layer.prior.components(), layer.posterior(layer.prior.pseudo_inputs)
    assert torch.equal(components.mean, posterior.mean) and torch.equal(components.scale, posterior.scale)
    # an example that is a pseudo-input with all the weight costs nothing
    with torch.no_grad():
        layer.prior.logits.copy_(torch.tensor([50.0, 0, 0]))
        layer.prior.pseudo_inputs *= 3
    rate = layer(layer.prior.pseudo_inputs, noise=torch.randn(3, 5, K)).rate
    assert rate[0].item() == pytest.approx(0, abs=1e-5) and rate[1:].min() > 0.5
    # the heads learn from the prior, too, and stand in the checkpoint once
    latents = torch.randn(2, K)
    gradients = torch.autograd.grad(layer.prior.log_prob(latents).sum(), [layer.heads.mean.weight, layer.prior.pseudo_inputs])
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    heads = {f"heads.{part}.{name}" for part in ("mean", "scale") for name in ("weight", "bias")}
    assert set(layer.state_dict()) == {"multiplier", "steps", "prior.logits", "prior.pseudo_inputs"} | heads


@torch.no_grad()
def test_a_copied_vamp_prior_has_the_copied_heads():
    layer = make_layer(prior="vamp")
    twin = copy.deepcopy(layer)
    twin.heads.mean.bias += 1
    torch.testing.assert_close(twin.prior.components().mean, layer.prior.components().mean + 1)


@pytest.mark.parametrize("kind", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_draws_from_priors_have_their_moments(prior, kind):
    layer, count = make_layer(prior=prior, posterior=kind), 200_000
    law = torch_mixture(layer) if layer.needs_samples else torch_prior(layer.prior)
    drawn = layer.sample(count, generator=torch.Generator().manual_seed(3)).double()
    assert drawn.shape == (count, K)
    law_mean, law_std = law.mean, law.variance.sqrt()
    assert ((drawn.mean(0) - law_mean).abs() / law_std).max() < 5 / count**0.5
    torch.testing.assert_close(drawn.var(0), law.variance, rtol=0.03, atol=0)
    # entropy: moments beyond the second, and the correlations of mixtures
    nats = layer.prior.log_prob(drawn.float()).double()
    reference = law.log_prob(law.sample((count,)))
    spread = (nats.var() + reference.var()).sqrt() / count**0.5
    assert (nats.mean() - reference.mean()).abs() < 5 * spread


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
@torch.no_grad()
def test_mixtures_are_drawn_by_their_weights(prior):
    layer, count, shares = make_layer(prior=prior), 100_000, torch.tensor([0.6, 0.3, 0.1])
    layer.prior.logits.copy_(shares.log())
    layer.prior.logits += 7  # weights are shares of a sum
    far = 100 * torch.eye(3, K)
    if prior == "vamp":
        layer.heads.mean.weight.copy_(torch.eye(K, FEATURES))
        layer.heads.mean.bias.zero_()
        layer.prior.pseudo_inputs.copy_(F.pad(far, (0, 1)))
        layer.heads.scale.weight.zero_()
        layer.heads.scale.bias.copy_(torch.tensor([0.25, 1, 4, 9]).log())
        stds = torch.tensor([0.5, 1, 2, 3]).expand(3, K)
    else:
        layer.prior.mean.copy_(far)
        stds = (layer.prior.log_var / 2).exp()
    for temperature in (1.0, 0.5, 0.0):
        drawn = layer.sample(count, temperature)
        component = torch.cdist(drawn, far).argmin(1)
        frequency = component.bincount() / count
        assert ((frequency - shares).abs() < 4 * (shares * (1 - shares) / count).sqrt()).all()
        for index in range(3):
            own = drawn[component == index]
            torch.testing.assert_close(own.std(0), temperature * stds[index], rtol=0.05, atol=1e-6)
            torch.testing.assert_close(own.mean(0), far[index], rtol=0, atol=0.15)
        # which component it is says nothing of the place inside it
        assert temperature == 0 or torch.corrcoef(torch.stack([component == 0, drawn[:, 3]]))[0, 1].abs() < 0.02


@pytest.mark.parametrize("prior", ["standard", "learned"])
@torch.no_grad()
def test_temperature_is_a_factor_of_the_spread(prior):
    layer = make_layer(prior=prior)
    mean = torch_prior(layer.prior).mean.float()
    warm, cool = (layer.sample(9, t, torch.Generator().manual_seed(1)) for t in (1.0, 0.3))
    torch.testing.assert_close(cool - mean, 0.3 * (warm - mean))
    torch.testing.assert_close(layer.sample(2, 0.0), mean.expand(2, K))


# --- samples ---


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_when_codes_are_drawn(prior):
    layer, features = make_layer(prior=prior).train(), torch.randn(B, FEATURES)
    assert layer(features).latents.shape == (B, 1, K) and not torch.equal(layer(features).latents[:, 0], layer(features).mean)
    assert layer(features, num_samples=3).latents.shape == (B, 3, K)
    layer.eval()
    assert torch.equal(layer(features).latents, layer(features).mean[:, None])
    sampled = layer(features, num_samples=1)
    assert sampled.latents.shape == (B, 1, K) and not torch.equal(sampled.latents[:, 0], sampled.mean)
    noise = torch.randn(B, 2, K)
    torch.testing.assert_close(
        layer(features, noise=noise).latents, GaussianPosterior(sampled.mean, sampled.scale).transform(noise)
    )


@torch.no_grad()
def test_generators_make_draws_reproducible():
    layer, features = make_layer(prior="mixture"), torch.randn(B, FEATURES)
    draws = [layer(features, num_samples=2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    samples = [layer.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0].latents, draws[1].latents) and torch.equal(draws[0].rate, draws[1].rate)
    assert not torch.equal(draws[0].latents, draws[2].latents)
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    noise = draw_normal((B, 2, K), features, torch.Generator().manual_seed(0))
    assert torch.equal(layer(features, noise=noise).latents, draws[0].latents)


@torch.no_grad()
def test_the_deterministic_twin_has_no_rate():
    layer, features = VariationalBottleneck(FEATURES, K, bottleneck="none").train(), torch.randn(B, FEATURES)
    found = layer(features, num_samples=3)
    assert torch.equal(found.mean, layer.mean(features)) and torch.equal(found.latents, found.mean[:, None])
    assert found.rate is None and found.scale is None and found.penalty == 0
    assert not list(layer.buffers())
    for ask in (lambda: layer.sample(3), lambda: layer.posterior(features)):
        with pytest.raises(ValueError, match="bottleneck='none' has"):
            ask()


# --- T6: interpolation ---


def test_spherical_interpolation_keeps_the_length():
    size, count, steps = 100, 4000, 9
    start, end = torch.randn(2, count, size)
    spherical = interpolate_latents(start, end, steps)
    assert spherical.shape == (count, steps, size)
    lengths = spherical.norm(dim=2).mean(0)
    assert ((lengths / size**0.5 - 1).abs() < 0.02).all()
    # standard normal all the way: by the first moments, and by the fourth
    assert spherical.mean((0, 2)).abs().max() < 5 / (count * size) ** 0.5
    assert (spherical.square().mean((0, 2)) - 1).abs().max() < 0.02 and (spherical**4).mean((0, 2)).sub(3).abs().max() < 0.1
    linear = interpolate_latents(start, end, steps, "linear").norm(dim=2).mean(0)
    assert linear[4].item() == pytest.approx((size / 2) ** 0.5, rel=0.02)
    assert linear[4] < 0.75 * lengths[4]


def test_interpolation_by_hand():
    start, end = torch.randn(2, 3, 5).double()
    for step in range(4):
        t = step / 3
        angle = t * math.pi / 2
        close(interpolate_latents(start, end, 4)[:, step], math.cos(angle) * start + math.sin(angle) * end)
        close(interpolate_latents(start, end, 4, "linear")[:, step], (1 - t) * start + t * end)
    for mode in ("spherical", "linear"):
        ends = interpolate_latents(start, end, 2, mode)
        close(ends, torch.stack([start, end], 1))


# --- precision and compilation ---


def whole_rate(layer: VariationalBottleneck, mean: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """The rate in float64 of laws that are given."""
    own = torch_law(mean.double(), scale.double())
    if not layer.needs_samples:
        other = torch_prior(layer.prior)
        if scale.ndim == 3:
            other = MultivariateNormal(other.mean, torch.diag_embed(other.variance))
        return kl_divergence(own, other)
    factor = scale.double() if scale.ndim == 3 else torch.diag_embed(scale.double())
    codes = mean.double() + torch.einsum("bij,bsj->sbi", factor, noise.double())
    return (own.log_prob(codes) - torch_mixture(layer).log_prob(codes)).mean(0)


@pytest.mark.parametrize("lowered", ["autocast", "weights"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", POSTERIORS)
@torch.no_grad()
def test_rates_are_float32_whatever_the_network_computes_in(kind, prior, lowered):
    """Only the two linear layers are lowered: rates and codes of what they say are as good as ever."""
    layer, features, noise = make_layer(posterior=kind, prior=prior), torch.randn(B, FEATURES), torch.randn(B, 4, K)
    layer = layer.bfloat16() if lowered == "weights" else layer
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered == "autocast"):
        found = layer(features, noise=noise)
        expected = whole_rate(layer, found.mean, found.scale, noise)
    assert {value.dtype for value in (found.rate, found.mean, found.scale, found.latents)} == {torch.float32}
    torch.testing.assert_close(found.rate.double(), expected, rtol=2e-5, atol=2e-5)
    factor = found.scale if kind == "full" else torch.diag_embed(found.scale)
    codes = found.mean[:, None].double() + (factor[:, None].double() @ noise[..., None].double()).squeeze(3)
    torch.testing.assert_close(found.latents.double(), codes, rtol=2e-6, atol=2e-6)


class Network(nn.Module):
    """The layer between two others."""

    def __init__(self, **settings):
        super().__init__()
        self.first, self.last = nn.Linear(7, FEATURES), nn.Linear(K, 2)
        self.layer = make_layer(**settings)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        found = self.layer(self.first(x).tanh(), noise=noise)
        return self.last(found.latents).square().mean() + found.penalty


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_warmup_steps": 3, "free_bits": 0.1},
        {"bottleneck": "hinge", "target_rate": 0.5, "posterior": "full", "prior": "vamp"},
        {"bottleneck": "dual", "target_rate": 0.5, "prior": "mixture", "std_param": "softplus"},
        {"bottleneck": "dual", "target_rate": 0.5, "prior": "learned", "posterior": "full", "dual_update": "linear"},
    ],
    ids=["fixed", "hinge", "dual", "linear"],
)
def test_alone_in_a_network_it_compiles_to_one_graph(settings):
    torch.compiler.reset()
    network = Network(beta=0.1, **settings).train()
    twin = copy.deepcopy(network)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, noise = torch.randn(B, 7), torch.randn(B, 2, K)
        expected, found = network(x, noise), compiled(x, noise)
        torch.testing.assert_close(found, expected)
        expected.backward()
        found.backward()
    assert network.layer.steps == twin.layer.steps == 2
    for (name, value), other in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=name)
    for (name, parameter), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


# --- what must be refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": "capacity"}, "bottleneck='capacity' is not known; .* 'fixed', 'hinge', 'dual', 'none'"),
        ({"bottleneck": "dual"}, "bottleneck='dual' needs target_rate"),
        ({"bottleneck": "hinge"}, "bottleneck='hinge' needs target_rate"),
        ({"target_rate": 3.0}, "target_rate=3.0 belongs to bottleneck='dual' or 'hinge', but bottleneck='fixed'"),
        ({"bottleneck": "dual", "target_rate": 0.0}, "target_rate=0.0 must be a positive number"),
        ({"bottleneck": "hinge", "target_rate": -2.0}, "target_rate=-2.0 must be a positive number"),
        ({"bottleneck": "dual", "target_rate": math.inf}, "target_rate=inf must be a positive number"),
        ({"bottleneck": "dual", "target_rate": math.nan}, "target_rate=nan must be a positive number"),
        ({"bottleneck": "dual", "target_rate": 1.0, "beta": 0}, "beta=0 cannot grow by a factor"),
        ({"bottleneck": "dual", "target_rate": 1.0, "dual_lr": 0.0}, "dual_lr=0.0 must be positive"),
        ({"bottleneck": "dual", "target_rate": 1.0, "dual_update": "adam"}, "dual_update='adam'.*'exponential', 'linear'"),
        ({"beta": -0.1}, "beta=-0.1 must not be negative"),
        ({"beta": math.nan}, "beta=nan must not be negative"),
        ({"kl_warmup_steps": -1}, "kl_warmup_steps=-1 must not be negative"),
        ({"free_bits": -0.5}, "free_bits=-0.5 must not be negative"),
        ({"free_bits": 0.5, "posterior": "full"}, "free_bits=0.5 needs a rate for each dimension.*'full' and 'standard'"),
        ({"free_bits": 0.5, "prior": "vamp"}, "free_bits=0.5 needs a rate for each dimension.*'diag' and 'vamp'"),
        ({"free_bits": 0.5, "bottleneck": "hinge", "target_rate": 1.0}, "free_bits=0.5 has no place in bottleneck='hinge'"),
        ({"posterior": "banded"}, "posterior='banded' is not known; .* 'diag', 'full'"),
        ({"std_param": "exp"}, "std_param='exp' is not known; .* 'log_var', 'softplus'"),
        ({"prior": "cauchy"}, "prior='cauchy' is not known; .* 'standard', 'learned', 'mixture', 'vamp'"),
        ({"prior": "vamp", "num_components": 0}, "num_components=0 must be positive"),
        ({"latent_dim": 0}, "latent_dim=0 must be positive"),
        ({"posterior": "full", "input_dim": 1024, "latent_dim": 600}, "'full' with latent_dim=600 .*'diag'.* at most 512"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        VariationalBottleneck(**({"input_dim": FEATURES, "latent_dim": K} | settings))


def test_largest_full_covariance_that_is_named_is_one_that_is_built():
    with torch.device("meta"):
        layer = VariationalBottleneck(1024, 511, posterior="full")
    assert layer.heads.scale.weight.numel() <= 2**27


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer(torch.randn(B, K)), r"features must be \(batch, 5\), got \(6, 4\)"),
        (lambda layer: layer(torch.randn(B, 2, FEATURES)), r"features must be \(batch, 5\), got \(6, 2, 5\)"),
        (lambda layer: layer(torch.randn(B, FEATURES), noise=torch.randn(B, K)), r"\(6, samples, 4\), got \(6, 4\)"),
        (lambda layer: layer(torch.randn(B, FEATURES), noise=torch.randn(B, 2, 3)), r"\(6, samples, 4\), got \(6, 2, 3\)"),
        (lambda layer: layer(torch.randn(B, FEATURES), noise=torch.randn(5, 2, K)), r"\(6, samples, 4\), got \(5, 2, 4\)"),
        (lambda layer: layer.rate(make_posterior("diag")), "prior='mixture' is estimated with samples: give noise"),
        (lambda layer: layer.sample(0), "num_samples=0 must be at least 1"),
        (lambda layer: layer.sample(3, temperature=-0.5), "temperature=-0.5 not negative"),
        (lambda layer: layer.sample(3, temperature=math.nan), "temperature=nan not negative"),
        (lambda _: interpolate_latents(torch.randn(2, 3), torch.randn(2, 3), 1), "steps=1 must be at least 2"),
        (lambda _: interpolate_latents(torch.randn(2, 3), torch.randn(1, 3), 3), r"\(2, 3\) and \(1, 3\)"),
        (lambda _: interpolate_latents(torch.randn(3), torch.randn(3), 3), r"both ends must be \(batch, K\), got \(3,\)"),
        (
            lambda _: interpolate_latents(torch.randn(2, 3), torch.randn(2, 3), 3, "cubic"),
            "mode='cubic' is not known; .*'spherical', 'linear'",
        ),
    ],
)
def test_inputs_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_layer(prior="mixture"))


def test_types_of_priors():
    kinds = {"standard": StandardPrior, "learned": LearnedPrior, "mixture": MixturePrior, "vamp": VampPrior}
    for name, kind in kinds.items():
        layer = make_layer(prior=name)
        assert type(layer.prior) is kind and layer.needs_samples == (name in ("mixture", "vamp"))
        assert f"prior='{name}'" in repr(layer)

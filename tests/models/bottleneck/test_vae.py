"""Variational autoencoders: a linear one whose likelihood is known, bounds against loops, pixels, decoders, samples."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F
from transformers import AutoModel

from hfblog import VAEConfig, VAEModel, interpolate_latents
from hfblog.models.bottleneck import modeling_vae
from hfblog.models.bottleneck.encoders import ConvEncoder, strided_sizes
from hfblog.models.bottleneck.example_noise import keys_of_examples, normal_of_examples, uniform_of_examples
from hfblog.models.bottleneck.modeling_vae import PIXEL_SEED, ConvDecoder

SMALL = {"event_shape": (1, 4, 4), "num_levels": 17, "hidden_sizes": (12,), "latent_dim": 3}
PRIORS = ["standard", "learned", "mixture", "vamp"]
POSTERIORS = ["diag", "full"]


@torch.no_grad()
def make_model(**settings) -> VAEModel:
    """With weights far enough from their start for rates of some nats."""
    model = VAEModel(VAEConfig(**(SMALL | {"num_components": 3} | settings)))
    model.bottleneck.heads.mean.weight *= 3
    model.bottleneck.heads.scale.bias -= 1
    for parameter in model.bottleneck.prior.parameters():
        parameter += torch.randn_like(parameter) / 2
    return model.eval()


def images_of(size: int = 6, shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    return torch.randint(17, (size, *shape)) / 16


def law_of(mean: Tensor, scale: Tensor) -> MultivariateNormal:
    factor = scale if scale.ndim > mean.ndim else torch.diag_embed(scale)
    return MultivariateNormal(mean.double(), scale_tril=factor.double())


def own_noise(images: Tensor, num_samples: int, size: int = 3) -> Tensor:
    return normal_of_examples(keys_of_examples(images), (num_samples, size))


# --- a linear model: p(x) = N(b, W W^T + s^2 I) ---

STD = 0.6


def linear_model(**settings) -> VAEModel:
    config = {"event_shape": (5,), "hidden_sizes": (), "latent_dim": 2, "decoder": "gaussian", "decoder_std": STD}
    model = VAEModel(VAEConfig(**(config | {"num_levels": None} | settings))).eval()
    with torch.no_grad():
        model.decoder.output.bias.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3]))
    return model


def marginal(model: VAEModel) -> MultivariateNormal:
    weight = model.decoder.output.weight.detach().double()
    covariance = weight @ weight.T + STD**2 * torch.eye(5).double()
    return MultivariateNormal(model.decoder.output.bias.detach().double(), covariance)


@torch.no_grad()
def set_exact_posterior(model: VAEModel) -> None:
    """z | x ~ N(S W^T (x - b) / s^2, S) with S^-1 = I + W^T W / s^2."""
    weight, bias = model.decoder.output.weight.double(), model.decoder.output.bias.double()
    covariance = torch.linalg.inv(torch.eye(2).double() + weight.T @ weight / STD**2)
    heads = model.bottleneck.heads
    gain = covariance @ weight.T / STD**2
    heads.mean.weight.copy_(gain)
    heads.mean.bias.copy_(-gain @ bias)
    factor = torch.linalg.cholesky(covariance)
    heads.scale.weight.zero_()
    heads.scale.bias.copy_(torch.stack([2 * factor[0, 0].log(), 2 * factor[1, 1].log(), factor[1, 0]]))


@torch.no_grad()
def test_log_likelihood_is_known_where_the_posterior_is_exact():
    model = linear_model(posterior="full")
    set_exact_posterior(model)
    x = marginal(model).sample((7,)).float()
    known = marginal(model).log_prob(x.double())
    assert known.std() > 0.3
    # every weight is p(x) itself, whatever the code
    for count in (1, 3):
        torch.testing.assert_close(model.log_likelihood(x, num_samples=count), known, rtol=0, atol=2e-5)
    weighted = linear_model(posterior="full", importance_weighted=True, num_eval_samples=3)
    weighted.load_state_dict(model.state_dict())
    assert weighted(x).loss.item() == pytest.approx(-known.mean().item(), abs=1e-5)
    # the rate in closed form and the distortion of many codes together are -log p(x), too
    output = model(x, noise=own_noise(x, 100_000, 2))
    torch.testing.assert_close((output.distortion + output.rate).double(), -known, rtol=0, atol=0.03)


@pytest.mark.parametrize("posterior", POSTERIORS)
@torch.no_grad()
def test_log_likelihood_comes_to_the_known_one_from_below(posterior):
    exact = linear_model(posterior="full")
    set_exact_posterior(exact)
    # a posterior that is wrong, and wider than the true one
    model = linear_model(posterior=posterior)
    model.decoder.load_state_dict(exact.decoder.state_dict())
    heads, right = model.bottleneck.heads, exact.bottleneck.heads
    heads.mean.weight.copy_(0.8 * right.mean.weight)
    heads.mean.bias.copy_(right.mean.bias + 0.4)
    heads.scale.weight.mul_(0.1)
    heads.scale.bias[:2] = right.scale.bias[:2] + 1
    x = marginal(model).sample((200,)).float()
    known = marginal(model).log_prob(x.double())
    gaps = [known - model.log_likelihood(x, num_samples=count) for count in (1, 10, 100, 3000)]
    means = [gap.mean().item() for gap in gaps]
    errors = [gap.std().item() / 200**0.5 for gap in gaps]
    assert all(mean > -4 * error for mean, error in zip(means, errors, strict=True))
    assert means[0] > means[1] > means[2] > means[3] and means[0] > 1
    assert means[3] == pytest.approx(0, abs=0.02)
    torch.testing.assert_close(model.log_likelihood(x[:20], num_samples=100_000), known[:20], rtol=0, atol=0.05)
    # the bound of the loss lies below all of them: its gap is KL(q(z|x) || p(z|x))
    output, true = model(x, noise=own_noise(x, 5000, 2)), exact.encode(x)
    divergence = kl_divergence(law_of(output.mean, output.scale), law_of(true.mean, true.scale))
    gap = (output.distortion + output.rate).double() + known
    torch.testing.assert_close(gap, divergence, rtol=0.1, atol=0.1)
    assert output.loss.item() == pytest.approx((divergence - known).mean().item(), rel=2e-3)


def test_training_finds_the_known_likelihood():
    """The bound is tight for a linear model: at its minimum the loss is the data's own entropy."""
    torch.manual_seed(0)
    truth = linear_model()
    law = marginal(truth)
    model = linear_model(posterior="full", decoder_std=None)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 500)
    for _ in range(500):
        optimizer.zero_grad()
        model(law.sample((512,)).float()).loss.backward()
        optimizer.step()
        schedule.step()
    x = law.sample((20_000,)).float()
    with torch.no_grad():
        assert model.eval()(x).loss.item() == pytest.approx(-law.log_prob(x.double()).mean().item(), rel=0.01)
    assert model.decoder_std.item() == pytest.approx(STD, rel=0.03)


# --- bounds ---


@pytest.mark.parametrize("prior", ["standard", "learned"])
@pytest.mark.parametrize("posterior", POSTERIORS)
@torch.no_grad()
def test_loss_is_distortion_and_rate(posterior, prior):
    model = make_model(posterior=posterior, prior=prior, beta=0.7, binarization="threshold", num_eval_samples=2)
    x = images_of(5)
    output = model(x)
    law = law_of(output.mean, output.scale)
    other = Normal(torch.zeros(3).double(), torch.ones(3).double())
    if prior == "learned":
        other = Normal(model.bottleneck.prior.mean.double(), (model.bottleneck.prior.log_var.double() / 2).exp())
    rates = kl_divergence(law, MultivariateNormal(other.mean, torch.diag(other.variance)))
    torch.testing.assert_close(output.rate.double(), rates, rtol=1e-5, atol=1e-5)
    assert rates.mean() > 0.5
    event = (x > 0.5).float()
    total = torch.zeros(5)
    noise = own_noise(x, 2)
    for s in range(2):
        for b in range(5):
            factor = output.scale[b] if posterior == "full" else torch.diag(output.scale[b])
            code = output.mean[b] + factor @ noise[b, s]
            torch.testing.assert_close(output.latents[b, s], code, rtol=1e-5, atol=1e-6)
            pixels = Independent(Bernoulli(logits=model.decode_raw(code[None])[0]), 3)
            total[b] -= pixels.log_prob(event[b]) / 2
    torch.testing.assert_close(output.distortion, total)
    assert output.loss.item() == pytest.approx((total + 0.7 * output.rate).mean().item(), rel=1e-5)
    # one code's mean picture
    torch.testing.assert_close(output.reconstruction, model.decode(output.latents[:, 0]))
    assert model(x, return_loss=False).loss is None
    assert [tuple(value.shape) for value in model(x, return_dict=False)] == [tuple(value.shape) for value in output.values()]


@pytest.mark.parametrize("std", [0.3, None])
@torch.no_grad()
def test_distortion_of_a_gaussian_decoder(std):
    model = make_model(decoder="gaussian", decoder_std=std, min_decoder_std=0.05, event_shape=(2, 3), num_levels=None)
    if std is None:
        model.log_std.fill_(-1.0)
    expected_std = 0.3 if std else math.exp(-1) + 0.05
    raw, x = torch.randn(4, 5, 2, 3), torch.randn(4, 2, 3)
    expected = -Normal(raw, expected_std).log_prob(x[:, None]).sum((2, 3))
    torch.testing.assert_close(model.distortion(raw, x), expected)


@torch.no_grad()
def test_distortion_of_a_bernoulli_decoder():
    model, raw, x = make_model(), 3 * torch.randn(4, 5, 1, 4, 4), torch.rand(4, 1, 4, 4)
    for event in (x.round(), x):  # values in between have torch's cross-entropy
        expected = F.binary_cross_entropy_with_logits(raw, event[:, None].expand_as(raw), reduction="none").sum((2, 3, 4))
        torch.testing.assert_close(model.distortion(raw, event), expected)
    torch.testing.assert_close(
        model.distortion(raw, x.round()), -Independent(Bernoulli(logits=raw), 3).log_prob(x[:, None].round())
    )
    assert torch.isfinite(model.distortion(300 * raw, x)).all()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
@torch.no_grad()
def test_importance_weights_are_the_loop(posterior, prior):
    model = make_model(posterior=posterior, prior=prior, importance_weighted=True, binarization="none", num_train_samples=4)
    x, noise = images_of(3).round(), torch.randn(3, 4, 3)
    bounds = []
    encoded = model.encode(x)
    for b in range(3):
        law, weights = law_of(encoded.mean[b], encoded.scale[b]), []
        factor = encoded.scale[b] if posterior == "full" else torch.diag(encoded.scale[b])
        for s in range(4):
            code = encoded.mean[b] + factor @ noise[b, s]
            likelihood = Bernoulli(logits=model.decode_raw(code[None])[0].double()).log_prob(x[b].double()).sum()
            log_prior = model.bottleneck.prior.log_prob(code[None])[0].double()
            weights.append(likelihood + log_prior - law.log_prob(code.double()))
        largest = max(weights)
        bounds.append(largest.item() + math.log(sum(math.exp(weight - largest) for weight in weights) / 4))
    for mode in (True, False):
        output = model.train(mode)(x, noise=noise)
        assert output.loss.item() == pytest.approx(-sum(bounds) / 3, rel=1e-5)
    assert model.train()(x).latents.shape == (3, 4, 3)
    # tighter than the mean of the single codes
    plain = make_model(posterior=posterior, prior=prior, binarization="none")
    plain.load_state_dict(model.state_dict())
    many = torch.randn(3, 500, 3)
    assert model.eval()(x, noise=many).loss < plain(x, noise=many).loss - 0.05


@torch.no_grad()
def test_bounds_lie_below_the_integral():
    """Of a model with one code dimension, by a sum over a grid."""
    model = make_model(latent_dim=1, binarization="threshold", prior="mixture")
    model.bottleneck.heads.scale.bias += 2  # wide enough for the weights
    x = images_of(5)
    grid = torch.linspace(-20, 20, 8001)[:, None]
    logits = model.decode_raw(grid)
    likelihood = Independent(Bernoulli(logits=logits[:, None]), 3).log_prob((x > 0.5).float()).double()
    log_prior = model.bottleneck.prior.log_prob(grid).double()
    known = (likelihood + log_prior[:, None]).logsumexp(0) + math.log(grid[1] - grid[0])
    torch.testing.assert_close(model.log_likelihood(x, num_samples=200_000), known, rtol=0, atol=0.02)
    output = model(x, noise=own_noise(x, 5000, 1))
    gap = (output.distortion + output.rate).double() + known
    assert gap.min() > 0 and gap.mean() > 0.1


# --- log_likelihood, in any parts ---


@pytest.mark.parametrize("binarization", ["stochastic", "none"])
@torch.no_grad()
def test_log_likelihood_knows_no_batch_and_no_parts(binarization, monkeypatch):
    model, x = make_model(binarization=binarization, prior="vamp").train(), images_of(7)
    x = x if binarization == "stochastic" else x.round()
    whole = model.log_likelihood(x, num_samples=40)
    assert whole.shape == (7,) and whole.dtype == torch.float64 and model.training
    assert torch.equal(model.log_likelihood(x, num_samples=40), whole)
    for codes in (1, 7, 40, 100):
        monkeypatch.setattr(modeling_vae, "CODES_AT_A_TIME", codes)
        torch.testing.assert_close(model.log_likelihood(x, num_samples=40), whole, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(model.decode(torch.ones(9, 3)), model.decode(torch.ones(1, 3)).expand(9, 1, 4, 4))
    monkeypatch.undo()
    order = torch.randperm(7)
    torch.testing.assert_close(model.log_likelihood(x[order], num_samples=40), whole[order], rtol=1e-6, atol=1e-5)
    for row in range(7):
        alone = model.log_likelihood(x[row : row + 1], num_samples=40)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-6, atol=1e-5)
    # the mean of the weights by hand
    model.eval()
    output = model(x, noise=own_noise(x, 40))
    weights = model.log_weights(law_on_noise(output), own_noise(x, 40), distortions(model, output, model.binarize(x)))
    torch.testing.assert_close(weights.double().exp().mean(1).log(), whole, rtol=1e-5, atol=1e-4)
    drawn = [model.log_likelihood(x, 40, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def law_on_noise(output: Any) -> Any:
    return modeling_vae.GaussianPosterior(output.mean, output.scale)


def distortions(model: VAEModel, output: Any, event: Tensor) -> Tensor:
    return torch.stack(
        [model.distortion(model.decode_raw(codes)[:, None], event)[:, 0] for codes in output.latents.unbind(1)], 1
    )


@torch.no_grad()
def test_evaluation_of_an_example_knows_no_batch():
    model, x = make_model(num_eval_samples=2, prior="mixture"), images_of(7)
    state = torch.get_rng_state()
    output, order = model(x), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    shuffled = model(x[order])
    for name in ("distortion", "rate", "latents", "reconstruction"):
        torch.testing.assert_close(shuffled[name], output[name][order], rtol=1e-5, atol=1e-5)
        for row in range(7):
            torch.testing.assert_close(model(x[row : row + 1])[name][0], output[name][row], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.encode(x).rate, output.rate)
    torch.testing.assert_close(model.encode(x).mean, output.mean)
    assert output.loss.item() == pytest.approx((output.distortion + output.rate).mean().item(), rel=1e-6)


# --- binarization ---


@torch.no_grad()
def test_stochastic_pixels_are_drawn_anew_in_training_only():
    model, x = make_model(), images_of(200)
    grey = (x > 0) & (x < 1)
    first, second = (model.train().binarize(x) for _ in range(2))
    assert not torch.equal(first, second)
    fixed = model.eval().binarize(x)
    assert torch.equal(model.binarize(x), fixed)
    assert torch.equal(torch.cat([model.binarize(row[None]) for row in x]), fixed)
    assert torch.equal(model.binarize(x.flip(0)).flip(0), fixed)
    draws = [model.binarize(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    for event in (first, second, fixed, *draws):
        assert set(event.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(event[~grey], x[~grey])
    # the numbers of pixels are others than those of codes
    expected = uniform_of_examples(keys_of_examples(x), (1, 4, 4), PIXEL_SEED) < x
    assert torch.equal(fixed, expected.float()) and PIXEL_SEED != 1
    assert model.train()(x).distortion.shape == (200,)


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_stochastic_pixels_have_the_frequency_of_their_grey(training):
    """Over images that differ: those of one image are always the same in evaluation."""
    model, x = make_model().train(training), images_of(20_000)
    event = model.binarize(x)
    for level in range(17):
        chosen = event[x == level / 16]
        count = chosen.numel()
        assert abs(chosen.mean().item() - level / 16) <= 4 * (level / 16 * (1 - level / 16) / count) ** 0.5
    # and no two pixels of an image hang together
    residual = (event - x).flatten(1)
    assert torch.corrcoef(residual.T).fill_diagonal_(0).abs().max() < 5 / 20_000**0.5


@torch.no_grad()
def test_other_ways_to_take_grey_levels():
    x = torch.tensor([0.0, 0.2, 0.5, 0.500001, 0.8, 1.0] * 2 + [0.4] * 4).view(1, 1, 4, 4)
    for mode in (True, False):
        threshold = make_model(binarization="threshold").train(mode)
        assert threshold.binarize(x).flatten()[:6].tolist() == [0, 0, 0, 1, 1, 1]
        assert make_model(binarization="none").train(mode).binarize(x) is x
        assert make_model(decoder="gaussian", binarization="stochastic").train(mode).binarize(x) is x


@pytest.mark.parametrize("binarization", ["stochastic", "threshold", "none"])
@torch.no_grad()
def test_the_encoder_sees_the_event_that_is_scored(binarization):
    model, x = make_model(binarization=binarization), images_of(5)
    event = model.binarize(x)
    exact = make_model(binarization="none")
    exact.load_state_dict(model.state_dict())
    noise = torch.randn(5, 2, 3)
    assert torch.equal(model(x, noise=noise).loss, exact(event, noise=noise).loss)
    torch.testing.assert_close(model.encode(x).mean, exact.encode(event).mean)
    features = model.encoder.layers[0](2 * event.flatten(1) - 1).relu()
    torch.testing.assert_close(model.features(event), features)


# --- networks ---


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 7, 10), (3, 5, 1), (1, 9, 6)], ids=str)
@torch.no_grad()
def test_convolutions_come_back_to_the_size_they_started_from(shape, kernel):
    config = {"event_shape": shape, "network": "conv", "conv_channels": (4, 5, 6), "conv_kernel_size": kernel}
    model, x = make_model(**config), images_of(3, shape)
    assert isinstance(model.encoder, ConvEncoder) and isinstance(model.decoder, ConvDecoder)
    output = model(x)
    assert output.reconstruction.shape == x.shape and torch.isfinite(output.loss)
    maps = 2 * model.binarize(x) - 1
    sizes = strided_sizes(*shape[1:], 3)
    for layer, size in zip(model.encoder.layers, sizes[1:], strict=True):
        maps = F.conv2d(maps, layer.weight, layer.bias, stride=2, padding=kernel // 2).relu()
        assert tuple(maps.shape[2:]) == size
    torch.testing.assert_close(model.features(model.binarize(x)), model.encoder.head.layers[0](maps.flatten(1)).relu())
    # the decoder's maps have the sizes of the encoder's, in reverse, and nothing cuts off its last layer
    x = model.decoder.body(output.latents[:, 0]).unflatten(1, (6, *sizes[-1]))
    assert (x >= 0).all()
    for index, (layer, size) in enumerate(zip(model.decoder.layers, sizes[-2::-1], strict=True)):
        x = layer(x)
        assert tuple(x.shape[2:]) == size
        x = x.relu() if index < 2 else x
    assert (x < 0).any() and torch.equal(model.decode_raw(output.latents[:, 0]), x)


@torch.no_grad()
def test_the_decoder_of_mlp_is_the_encoder_in_reverse():
    model = make_model(hidden_sizes=(9, 7), event_shape=(2, 3), hidden_act="tanh")
    assert [layer.weight.shape for layer in model.encoder.layers] == [(9, 6), (7, 9)]
    assert [layer.weight.shape for layer in model.decoder.body.layers] == [(7, 3), (9, 7)]
    codes = torch.randn(4, 3)
    first, second = model.decoder.body.layers
    expected = model.decoder.output(second(first(codes).tanh()).tanh()).view(4, 2, 3)
    torch.testing.assert_close(model.decode_raw(codes), expected)
    torch.testing.assert_close(model.decode(codes), expected.sigmoid())
    gaussian = make_model(decoder="gaussian")
    assert torch.equal(gaussian.decode(codes), gaussian.decode_raw(codes))
    assert gaussian.decode(codes).min() < 0


# --- what users ask ---


@pytest.mark.parametrize("network", ["mlp", "conv"])
@torch.no_grad()
def test_codes_of_any_shape_are_decoded(network):
    model = make_model(network=network, conv_channels=(4,))
    codes = torch.randn(2, 5, 3)
    decoded = model.decode(codes)
    assert decoded.shape == (2, 5, 1, 4, 4) and decoded.min() >= 0 and decoded.max() <= 1
    assert model.decode(codes[0]).shape == (5, 1, 4, 4) and model.decode(codes[0, 0]).shape == (1, 4, 4)
    torch.testing.assert_close(model.decode(codes[0]), decoded[0])
    torch.testing.assert_close(model.decode(codes[1, 3]), decoded[1, 3])
    assert model.decode(codes[:0]).shape == (0, 5, 1, 4, 4)


@torch.no_grad()
def test_reconstructions_and_what_lies_between():
    model, x = make_model(), images_of(4)
    drawn = model.reconstruct(x)
    torch.testing.assert_close(drawn, model.decode(model(x).mean))
    codes = model.encode(x).mean
    for mode in ("spherical", "linear"):
        between = model.interpolate(x[:2], x[2:], steps=5, mode=mode)
        assert between.shape == (2, 5, 1, 4, 4)
        torch.testing.assert_close(between[:, 0], drawn[:2], rtol=0, atol=1e-6)
        torch.testing.assert_close(between[:, -1], drawn[2:], rtol=0, atol=1e-6)
        torch.testing.assert_close(between, model.decode(interpolate_latents(codes[:2], codes[2:], 5, mode)))
    middle = model.decode((codes[:2] + codes[2:]) / 2)
    torch.testing.assert_close(model.interpolate(x[:2], x[2:], 3, "linear")[:, 1], middle)
    torch.testing.assert_close(model.interpolate(x[:2], x[2:], 3)[:, 1], model.decode((codes[:2] + codes[2:]) * 0.5**0.5))
    assert model.interpolate(x[:2], x[2:]).shape == (2, 9, 1, 4, 4)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_samples_are_decoded_draws_from_the_prior(prior):
    model, generator = make_model(prior=prior), partial(torch.Generator().manual_seed, 1)
    drawn = model.sample(50, generator=generator())
    assert drawn.shape == (50, 1, 4, 4) and drawn.std(0).max() > 0.01
    assert torch.equal(drawn, model.sample(50, generator=generator()))
    torch.testing.assert_close(drawn, model.decode(model.bottleneck.sample(50, generator=generator())))
    cool = model.sample(50, temperature=0.5, generator=generator())
    torch.testing.assert_close(cool, model.decode(model.bottleneck.sample(50, 0.5, generator())))
    assert not torch.equal(cool, drawn)
    torch.manual_seed(0)
    free = model.sample(3)
    assert not torch.equal(free, model.sample(3))
    torch.manual_seed(0)
    assert torch.equal(free, model.sample(3))


@torch.no_grad()
def test_drawn_pixels_have_the_law_of_the_decoder():
    model, generator = make_model(), partial(torch.Generator().manual_seed, 1)
    model.decoder.output.bias.copy_(torch.linspace(-3, 3, 16))
    means, pixels = (model.sample(20_000, generator=generator(), sample_pixels=wish) for wish in (False, True))
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    spread = (means * (1 - means)).mean(0).div(20_000).sqrt()
    assert ((pixels - means).mean(0) / spread).abs().max() < 4.5
    low = means < 0.2
    assert (pixels - means)[low].mean().abs() < 0.01 and (pixels - means)[means > 0.8].mean().abs() < 0.01
    gaussian = make_model(decoder="gaussian", decoder_std=0.3)
    means, pixels = (gaussian.sample(5000, generator=generator(), sample_pixels=wish) for wish in (False, True))
    assert (pixels - means).std().item() == pytest.approx(0.3, rel=0.02)
    assert (pixels - means).mean().abs() < 4 * 0.3 / (5000 * 16) ** 0.5


@torch.no_grad()
def test_initialisation_by_data():
    x = torch.rand(40, 1, 4, 4) ** 2
    x[:, 0, 0, 0], x[:, 0, 3, 3] = 0, 1
    model = VAEModel(VAEConfig(**SMALL))
    model.initialize(x)
    expected = x.mean(0).clamp(0.005, 0.995)
    torch.testing.assert_close(model.decoder.output.bias.sigmoid().view(1, 4, 4), expected)
    model.decoder.output.weight.zero_()
    torch.testing.assert_close(model.sample(2)[0], expected)
    gaussian = VAEModel(VAEConfig(**SMALL, decoder="gaussian"))
    gaussian.initialize(5 * x - 2)
    torch.testing.assert_close(gaussian.decoder.output.bias.view(1, 4, 4), (5 * x - 2).mean(0))
    conv = VAEModel(VAEConfig(**SMALL, network="conv", conv_channels=(4,), prior="vamp", num_components=30))
    for model, images in ((conv, x), (VAEModel(VAEConfig(**SMALL, prior="vamp", num_components=100)), x)):
        model.initialize(images, torch.Generator().manual_seed(0))
        pseudo, features = model.bottleneck.prior.pseudo_inputs, model.features(images)
        distance = torch.cdist(pseudo, features)
        chosen = distance.argmin(1)
        # near features of training examples, each as often as any other, and no two alike
        assert (pseudo - features[chosen]).std().item() == pytest.approx(0.01, rel=0.2)
        counts = chosen.bincount(minlength=40)
        assert counts.max() - counts.min() <= 1 and torch.cdist(pseudo, pseudo).fill_diagonal_(1).min() > 0
        again = pseudo.clone()
        model.initialize(images, torch.Generator().manual_seed(0))
        assert torch.equal(model.bottleneck.prior.pseudo_inputs, again)


@torch.no_grad()
def test_saved_models_come_back_exactly(tmp_path):
    model, x = make_model(prior="vamp", posterior="full", decoder="gaussian"), images_of(5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VAEModel and loaded.log_std is not None
    for name, value in loaded(x).items():
        assert torch.equal(value, model(x)[name])
    assert torch.equal(loaded.log_likelihood(x, 20), model.log_likelihood(x, 20))
    generator = partial(torch.Generator().manual_seed, 1)
    assert torch.equal(loaded.sample(3, generator=generator()), model.sample(3, generator=generator()))
    lowered = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert lowered.log_std.dtype == torch.float32 and lowered(x).distortion.dtype == torch.float32
    torch.testing.assert_close(lowered.log_likelihood(x, 20), model.log_likelihood(x, 20), rtol=0.05, atol=0.3)


def test_transformers_takes_no_field_for_a_nested_configuration():
    """It reads a field named decoder as one, in saving and in training."""
    config = VAEConfig(**SMALL)
    assert config.get_text_config() is config and config.get_text_config(decoder=True) is config


def test_the_noise_of_pixels_stays_in_float32():
    model = AutoModel.from_config(VAEConfig(**SMALL, decoder="gaussian"), dtype=torch.bfloat16)
    assert model.decoder.output.weight.dtype == torch.bfloat16
    assert {model.log_std.dtype, model.bottleneck.multiplier.dtype, model(images_of()).loss.dtype} == {torch.float32}


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_every_parameter_learns_from_stochastic_pixels(decoder):
    model = make_model(decoder=decoder, prior="mixture", network="conv", conv_channels=(4,), num_train_samples=2).train()
    model(images_of(5)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_training_draws_new_codes_at_every_step():
    model, x = make_model(binarization="threshold", num_train_samples=2).train(), images_of(4)
    torch.manual_seed(0)
    first, second = model(x).latents, model(x).latents
    assert first.shape == (4, 2, 3) and (first != second).all() and (first[:, 0] != first[:, 1]).all()
    torch.manual_seed(0)
    assert torch.equal(model(x).latents, first)


def test_queries_in_training_move_nothing():
    model, x = make_model(bottleneck="dual", target_rate=1.0).train(), images_of(4)
    for ask in (model.encode, model.reconstruct, partial(model.log_likelihood, num_samples=3), partial(model.interpolate, x)):
        ask(x)
    assert model.bottleneck.steps == 0 and model.bottleneck.multiplier == 1 and model.training
    model(x)
    assert model.bottleneck.steps == 1 and model.bottleneck.multiplier != 1


# --- what must be refused ---


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        (
            {},
            lambda model: model(torch.full((2, 1, 4, 4), 1.5)),
            r"needs pixel_values in \[0, 1\], got \[1.5, 1.5\]; .*gaussian",
        ),
        ({}, lambda model: model(torch.full((2, 1, 4, 4), -0.5)), r"needs pixel_values in \[0, 1\], got \[-0.5, -0.5\]"),
        ({}, lambda model: model.log_likelihood(torch.full((2, 1, 4, 4), 2.0)), r"got \[2, 2\]"),
        ({}, lambda model: model.encode(torch.full((2, 1, 4, 4), 2.0)), r"got \[2, 2\]"),
        ({}, lambda model: model.initialize(torch.full((2, 1, 4, 4), 2.0)), r"got \[2, 2\]"),
        ({}, lambda model: model(torch.full((2, 1, 4, 4), math.nan)), "NaN or infinite"),
        ({"decoder": "gaussian"}, lambda model: model(torch.full((2, 1, 4, 4), math.nan)), "NaN or infinite"),
        ({"decoder": "gaussian"}, lambda model: model(torch.full((2, 1, 4, 4), math.inf)), "NaN or infinite"),
        ({}, lambda model: model(torch.rand(2, 1, 4, 5)), r"\(batch, 1, 4, 4\), got \(2, 1, 4, 5\)"),
        ({}, lambda model: model(torch.rand(1, 4, 4)), r"\(batch, 1, 4, 4\), got \(1, 4, 4\)"),
        ({}, lambda model: model.log_likelihood(torch.rand(2, 16)), r"\(batch, 1, 4, 4\), got \(2, 16\)"),
        ({}, lambda model: model.log_likelihood(torch.rand(2, 1, 4, 4), num_samples=0), "num_samples=0 must be at least 1"),
        ({}, lambda model: model(torch.rand(2, 1, 4, 4), noise=torch.randn(2, 3)), r"\(2, samples, 3\), got \(2, 3\)"),
        ({}, lambda model: model.decode(torch.randn(2, 4)), r"latents must be \(..., 3\), got \(2, 4\)"),
        ({}, lambda model: model.decode(torch.tensor(1.0)), r"latents must be \(..., 3\), got \(\)"),
        ({}, lambda model: model.sample(0), "num_samples=0 must be at least 1"),
        ({}, lambda model: model.sample(2, temperature=-1.0), "temperature=-1.0 not negative"),
        ({}, lambda model: model.interpolate(images_of(2), images_of(2), steps=1), "steps=1 must be at least 2"),
        ({}, lambda model: model.interpolate(images_of(2), images_of(3)), r"\(2, 3\) and \(3, 3\)"),
        ({}, lambda model: model.interpolate(images_of(2), images_of(2), mode="slerp"), "mode='slerp'.*'spherical', 'linear'"),
    ],
)
def test_inputs_that_are_refused(settings, call, message):
    with pytest.raises(ValueError, match=message):
        call(make_model(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"event_shape": ()}, r"event_shape=\(\) must hold one or more sizes"),
        ({"event_shape": (1, -4, 4)}, r"event_shape=\(1, -4, 4\) must be positive"),
        ({"network": "conv", "event_shape": (16,)}, r"network='conv' takes images .*not event_shape=\(16,\)"),
        ({"network": "conv", "conv_channels": ()}, r"conv_channels=\(\) must hold one or more"),
        ({"network": "unet"}, "network='unet' is not known; .*'mlp', 'conv'"),
        ({"conv_kernel_size": 4}, "conv_kernel_size=4 must be odd"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"num_levels": 1}, "num_levels=1 must be at least 2"),
        ({"hidden_act": "rely"}, "hidden_act='rely' is not known; .*'relu'"),
        ({"decoder": "beta"}, "decoder='beta' is not known; .*'bernoulli', 'gaussian'"),
        ({"binarization": "otsu"}, "binarization='otsu' is not known; .*'stochastic', 'threshold', 'none'"),
        ({"decoder_std": 0.0}, "decoder_std=0.0 must be positive"),
        ({"decoder_std": math.inf}, "decoder_std=inf must be positive"),
        ({"min_decoder_std": 0.0}, "min_decoder_std=0.0 must be positive"),
        ({"bottleneck": "none"}, "bottleneck='none' leaves an autoencoder without a prior"),
        ({"importance_weighted": True, "beta": 0.5}, "importance_weighted=True .*beta=0.5"),
        (
            {"importance_weighted": True, "bottleneck": "dual", "target_rate": 2.0},
            "importance_weighted=True .*bottleneck='dual'",
        ),
        ({"importance_weighted": True, "kl_warmup_steps": 5}, "importance_weighted=True .*kl_warmup_steps=5"),
        ({"importance_weighted": True, "free_bits": 0.1}, "importance_weighted=True .*free_bits=0.1"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        VAEConfig(**settings)

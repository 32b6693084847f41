"""Noise: densities against torch.distributions and scikit-learn, draws against densities, the alias table exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture

from hfblog import (
    FlowNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    NiceFlowConfig,
    NiceFlowModel,
    UniformNoise,
    UnigramNoise,
)
from hfblog.models.contrastive.noise_distributions import alias_table


def correlated(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]])
    return torch.randn(count, 3, generator=generator) @ mixing.T + torch.tensor([1.0, -2.0, 0.5])


def tiny_flow() -> NiceFlowModel:
    config = NiceFlowConfig(event_shape=(1, 2, 3), num_levels=17, hidden_size=8, num_hidden_layers=1)
    torch.manual_seed(0)
    return NiceFlowModel(config)


# every kind over events of shape (1, 2, 3)
KINDS = {
    "uniform": lambda: UniformNoise((1, 2, 3)),
    "gaussian": lambda: GaussianNoise((1, 2, 3)),
    "diagonal": lambda: GaussianNoise((1, 2, 3), covariance="diagonal", scale=1.5),
    "mixture": lambda: GaussianMixtureNoise((1, 2, 3), num_components=3),
    "diagonal mixture": lambda: GaussianMixtureNoise((1, 2, 3), num_components=2, covariance="diagonal"),
    "flow": lambda: FlowNoise(tiny_flow(), (1, 2, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_seeds_and_saved_state(kind):
    noise = KINDS[kind]()
    x = torch.randn(200, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7).view(1, 2, 3)
    assert noise.fit(x) is noise
    draws = [noise.sample((4, 5), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (4, 5, 1, 2, 3) and noise.log_prob(draws[0]).shape == (4, 5)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert noise.sample().shape == (1, 2, 3) and noise.sample(2).shape == (2, 1, 2, 3)
    assert noise.log_prob(draws[0].double()).dtype == torch.float64
    torch.testing.assert_close(noise.log_prob(draws[0])[1, 2], noise.log_prob(draws[0][1, 2]))
    assert torch.isfinite(noise.log_prob(draws[0])).all() and noise.fraction_outside(draws[0]) == 0
    other = KINDS[kind]()
    other.load_state_dict(noise.state_dict())
    assert torch.equal(other.log_prob(x), noise.log_prob(x))
    low, high = noise.box()
    assert low.shape == (6,) and ((draws[0].flatten(2) >= low) & (draws[0].flatten(2) <= high)).all()
    with pytest.raises(ValueError, match=r"expected points of shape \(..., 1, 2, 3\), got \(5, 6\)"):
        noise.log_prob(torch.zeros(5, 6))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flow"])
def test_moments_of_draws(kind):
    noise = KINDS[kind]()
    x = torch.randn(5000, 1, 2, 3, generator=torch.Generator().manual_seed(1)) + 2
    noise.fit(x)
    draws = noise.sample(40_000, torch.Generator().manual_seed(2)).flatten(1)
    if kind == "uniform":
        torch.testing.assert_close(draws.mean(0), (noise.low + noise.high) / 2, rtol=0, atol=0.1)
        torch.testing.assert_close(draws.std(0), (noise.high - noise.low) / math.sqrt(12), rtol=0.03, atol=0)
    else:
        scale = 1.5 if kind == "diagonal" else 1.0
        torch.testing.assert_close(draws.mean(0), x.flatten(1).mean(0), rtol=0, atol=0.05)
        torch.testing.assert_close(draws.std(0), scale * x.flatten(1).std(0), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "diagonal", "mixture"])
def test_densities_integrate_to_one_over_the_box(kind):
    builders = {
        "uniform": UniformNoise((2,)),
        "gaussian": GaussianNoise((2,)),
        "diagonal": GaussianNoise((2,), covariance="diagonal"),
        "mixture": GaussianMixtureNoise((2,), num_components=3),
    }
    noise = builders[kind].fit(correlated(500)[:, :2]).double()
    low, high = noise.box()
    axes = [torch.linspace(0, 1, 801, dtype=torch.float64)[:-1] + 1 / 1600 for _ in range(2)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 2)
    integral = noise.log_prob(torch.lerp(low, high, grid)).exp().mean() * (high - low).prod()
    assert integral.item() == pytest.approx(1, abs=1e-4)


def test_gaussian_is_the_maximum_likelihood_fit():
    x = correlated(1000)
    full = GaussianNoise((3,), scale=1.0).fit(x)
    expected = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    torch.testing.assert_close(full.log_prob(x), expected.log_prob(x), rtol=1e-4, atol=1e-4)
    wide = GaussianNoise((3,), covariance="diagonal", scale=1.5).fit(x)
    expected = torch.distributions.Normal(x.mean(0), 1.5 * x.std(0, correction=0))
    torch.testing.assert_close(wide.log_prob(x), expected.log_prob(x).sum(1), rtol=1e-4, atol=1e-4)
    draws = full.sample(50_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(draws.T), torch.cov(x.T), rtol=0.05, atol=0.05)
    exact = GaussianNoise((2,)).set_moments(1.0, 2.0)
    assert exact.log_prob(torch.ones(2)).item() == pytest.approx(-2 * math.log(2 * math.sqrt(2 * math.pi)))
    exact = GaussianNoise((2,), covariance="diagonal").set_moments(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert exact.log_prob(torch.tensor([0.0, 1.0])).item() == pytest.approx(-math.log(2 * math.pi) - math.log(3))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_mixture_is_fitted_as_well_as_scikit_learns(covariance):
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [6.0, 1.0], [-4.0, 5.0]])
    chosen = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 3000, replacement=True, generator=generator)
    x = centres[chosen] + torch.randn(3000, 2, generator=generator) @ torch.tensor([[1.0, 0.6], [0.0, 0.7]])
    noise = GaussianMixtureNoise((2,), num_components=3, covariance=covariance).fit(x, torch.Generator().manual_seed(1))
    kind = {"full": "full", "diagonal": "diag"}[covariance]
    reference = GaussianMixture(3, covariance_type=kind, n_init=5, random_state=0).fit(x.double().numpy())
    assert noise.log_prob(x).mean().item() == pytest.approx(reference.score(x.double().numpy()), abs=2e-3)
    assert sorted(noise.log_weights.exp().tolist()) == pytest.approx([0.2, 0.3, 0.5], abs=0.03)
    draws = noise.sample(20_000, torch.Generator().manual_seed(2))
    near = torch.cdist(draws, centres).argmin(1).bincount() / len(draws)
    torch.testing.assert_close(near, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.03)
    again = GaussianMixtureNoise((2,), num_components=3, covariance=covariance).fit(x, torch.Generator().manual_seed(1))
    assert torch.equal(again.means, noise.means)


def test_mixture_of_repeated_data_stays_finite():
    x = torch.zeros(50, 2)
    x[25:] = 1.0
    noise = GaussianMixtureNoise((2,), num_components=8).fit(x)
    assert torch.isfinite(noise.log_prob(x)).all() and torch.isfinite(noise.sample(100)).all()


def test_uniform_box():
    x = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    noise = UniformNoise((2,), margin=0.25).fit(x)
    torch.testing.assert_close(noise.low, torch.tensor([-0.5, 4.5]))
    torch.testing.assert_close(noise.high, torch.tensor([2.5, 5.5]))  # a side without range gets a width
    assert noise.log_prob(x[0]).item() == pytest.approx(-math.log(3.0))
    outside = torch.tensor([[3.0, 5.0], [1.0, 5.0], [1.0, 4.0], [1.0, 5.2]])
    assert noise.log_prob(outside).isneginf().tolist() == [True, False, True, False]
    assert noise.fraction_outside(outside) == 0.5
    noise.set_box(-1.0, torch.tensor([1.0, 3.0]))
    assert noise.log_volume.item() == pytest.approx(math.log(8))


def test_flow_as_noise_is_the_flow_and_stays_as_it_is():
    flow = tiny_flow()
    noise = FlowNoise(flow, (1, 2, 3))
    x = torch.rand(4, 1, 2, 3)
    torch.testing.assert_close(noise.log_prob(x), flow.log_prob(x))
    assert torch.equal(
        noise.sample(3, torch.Generator().manual_seed(0)), flow.sample(3, generator=torch.Generator().manual_seed(0))
    )
    assert not any(parameter.requires_grad for parameter in noise.parameters())
    noise.train()
    assert not flow.training
    x.requires_grad_()
    noise.log_prob(x).sum().backward()
    assert x.grad.abs().sum() > 0


# --- words ---


def table_law(keep: np.ndarray, alias: np.ndarray) -> np.ndarray:
    """The law that an alias table draws from, exactly."""
    law = keep / len(keep)
    np.add.at(law, alias, (1 - keep) / len(keep))
    return law


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("kind", ["uniform", "zipf", "random", "one holds nearly all"])
def test_alias_table_is_exact(size, kind):
    weights = {
        "uniform": np.ones(size),
        "zipf": 1 / np.arange(1, size + 1),
        "random": np.random.default_rng(0).gamma(0.3, size=size) + 1e-9,
        "one holds nearly all": np.r_[1e9, np.ones(size - 1)],
    }[kind]
    law = weights / weights.sum()
    keep, alias = alias_table(law)
    assert ((keep >= 0) & (keep <= 1)).all() and ((alias >= 0) & (alias < size)).all()
    np.testing.assert_allclose(table_law(keep, alias), law, atol=1e-12)


@pytest.mark.parametrize("power", [1.0, 0.75, 0.0])
def test_words_are_drawn_by_their_counts(power):
    counts = torch.tensor([50, 30, 10, 5, 3, 1, 1])
    noise = UnigramNoise(7, power).fit(counts)
    law = counts.double() ** power / (counts.double() ** power).sum()
    torch.testing.assert_close(noise.log_prob(torch.arange(7)), law.log().float())
    torch.testing.assert_close(
        torch.from_numpy(table_law(noise.keep.double().numpy(), noise.alias.numpy())), law, rtol=0, atol=1e-6
    )
    drawn = noise.sample((100, 1000), torch.Generator().manual_seed(0))
    assert drawn.shape == (100, 1000) and drawn.dtype == torch.int64
    found = drawn.flatten().bincount(minlength=7).numpy()
    assert stats.chisquare(found, law.numpy() * found.sum()).pvalue > 1e-3
    assert torch.equal(drawn, noise.sample((100, 1000), torch.Generator().manual_seed(0)))
    again = UnigramNoise(7, power)
    assert again.log_prob(torch.tensor(3)).item() == pytest.approx(-math.log(7))  # uniform until it is fitted
    again.load_state_dict(noise.state_dict())
    assert torch.equal(again.sample(50, torch.Generator().manual_seed(1)), noise.sample(50, torch.Generator().manual_seed(1)))


def test_smoothing_gives_every_word_a_chance():
    noise = UnigramNoise(3).fit(torch.tensor([8, 0, 0]), smoothing=1)
    torch.testing.assert_close(noise.log_prob(torch.arange(3)).exp(), torch.tensor([9, 1, 1]) / 11)


# --- bad input ---


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformNoise((2,), margin=-0.1), "margin=-0.1 must not be negative"),
        (lambda: UniformNoise((2,)).set_box(0.0, torch.tensor([1.0, 0.0])), "needs low < high in every dimension"),
        (lambda: GaussianNoise((2,), covariance="low rank"), "covariance='low rank' is not known; it must be one of 'full'"),
        (lambda: GaussianNoise((2,), scale=0.0), "scale=0.0 must be positive"),
        (lambda: GaussianMixtureNoise((2,), scale=math.inf), "scale=inf must be positive"),
        (lambda: GaussianMixtureNoise((2,), num_components=0), "num_components=0 must be at least 1"),
        (
            lambda: GaussianMixtureNoise((2,), num_components=8).fit(torch.randn(10, 2)),
            "num_components=8 needs at least twice as",
        ),
        (lambda: GaussianNoise((2,)).fit(torch.randn(1, 2)), "fitted to at least 2 examples, got 1"),
        (lambda: GaussianNoise((2,)).fit(torch.randn(5, 3)), r"expected points of shape \(..., 2\), got \(5, 3\)"),
        (
            lambda: GaussianNoise((2,)).fit(torch.tensor([[0.0, math.nan], [1.0, 2.0], [math.inf, 0.0]])),
            "2 of 3 examples hold NaN",
        ),
        (lambda: FlowNoise(torch.nn.Linear(2, 2), (2,)), "Linear has no log_prob and sample: it cannot be noise"),
        (lambda: FlowNoise(tiny_flow(), (6,)), r"over events of shape \(1, 2, 3\), but event_shape=\(6,\)"),
        (lambda: UnigramNoise(3, power=math.nan), "power=nan must be finite"),
        (lambda: UnigramNoise(3).fit(torch.ones(4)), r"counts must be \(3,\), one for each word, got \(4,\)"),
        (lambda: UnigramNoise(3).fit(torch.tensor([1, -2, 1])), "must not be negative, word 1 has -2"),
        (
            lambda: UnigramNoise(3).fit(torch.tensor([1, 0, 0])),
            "2 of 3 words have a count of 0, word 1 first.*Give smoothing=1",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()

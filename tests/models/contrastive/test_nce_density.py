"""Densities that learn their partition function: against maximum likelihood, closed forms and quadrature."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from transformers import AutoModel

from hfblog import NCEDensityConfig, NCEDensityModel, NiceFlowConfig, NiceFlowModel
from hfblog.data import DOUBLE_WELL_LOG_PARTITION, DOUBLE_WELL_QUADRATIC, DOUBLE_WELL_QUARTIC, load_data

SEEDS = range(10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(**settings) -> NCEDensityModel:
    torch.manual_seed(0)
    return NCEDensityModel(NCEDensityConfig(**settings))


def descend(model: NCEDensityModel, x: torch.Tensor, noise: torch.Tensor | None = None, steps: int = 300) -> NCEDensityModel:
    """Fit all data at once."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = model(x, noise).loss
        loss.backward()
        return loss

    model.train()
    optimizer.step(closure)
    return model.eval()


# --- T1 and T2: the double well ---


def fit_double_well(seed: int, noise: str, ratio: int, loss_type: str = "nce") -> NCEDensityModel:
    x = torch.tensor(load_data("double-well", seed=seed)["train"]["point"], dtype=torch.float64)
    fixed = {"log_partition": "fixed", "quadrature_points": 1000} if loss_type == "full" else {}
    model = build(event_shape=(1,), energy="quartic", noise=noise, noise_ratio=ratio, loss_type=loss_type, **fixed)
    if noise == "gaussian":
        model.noise.set_moments(0.0, 1.6)
    else:
        model.noise.set_box(-3.5, 3.5)
    drawn = model.noise.sample(ratio * len(x), generator(1000 + seed)).double()
    return descend(model.double(), x, None if loss_type == "full" else drawn)


def coefficients(model: NCEDensityModel) -> list[float]:
    energy = model.energy_function
    return [energy.quadratic.item(), energy.quartic.item(), model.log_partition.item()]


TRUTH = torch.tensor([DOUBLE_WELL_QUADRATIC, DOUBLE_WELL_QUARTIC, DOUBLE_WELL_LOG_PARTITION])


@pytest.fixture(scope="module")
def errors() -> dict[str, torch.Tensor]:
    """``(seeds, 3)`` errors of a, b and log Z under each way to learn them."""
    ways = {"mle": ("gaussian", 1, "full")} | {f"nce {ratio}": ("gaussian", ratio, "nce") for ratio in (1, 5, 10)}
    return {
        label: torch.tensor([coefficients(fit_double_well(seed, *way)) for seed in SEEDS]) - TRUTH
        for label, way in ways.items()
    }


def test_double_well_in_every_seed(errors):
    largest = errors["nce 10"].abs().amax(0)
    assert (largest < torch.tensor([0.08, 0.02, 0.06])).all(), largest


def test_double_well_is_as_exact_as_maximum_likelihood(errors):
    rmse = {label: error.square().mean(0).sqrt() for label, error in errors.items()}
    assert (rmse["nce 10"][:2] <= 1.2 * rmse["mle"][:2]).all(), rmse
    # more noise tells more
    assert (rmse["nce 1"] >= rmse["nce 5"]).all() and (rmse["nce 5"] >= rmse["nce 10"]).all(), rmse


@pytest.mark.parametrize(("noise", "quadratic"), [("gaussian", -2 - 1 / (2 * 1.6**2)), ("uniform", -2.0)])
def test_the_loss_of_the_article_learns_the_ratio(noise, quadratic):
    """Without log q in the classifier G - c is log p/q: only uniform noise leaves the energy as it is."""
    model = fit_double_well(0, noise, 10, "density_ratio")
    a, b, c = coefficients(model)
    assert a == pytest.approx(quadratic, abs=0.08) and b == pytest.approx(0.5, abs=0.02)
    if noise == "uniform":
        assert c + math.log(7) == pytest.approx(DOUBLE_WELL_LOG_PARTITION, abs=0.06)
    # log_prob puts log q back, and is the density either way
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    truth = 2 * x[:, 0] ** 2 - 0.5 * x[:, 0] ** 4 - DOUBLE_WELL_LOG_PARTITION
    torch.testing.assert_close(model.log_prob(x), truth, rtol=0, atol=0.06)
    assert model.check_normalization().integral == pytest.approx(1, abs=0.02)


# --- losses on laws with a closed form ---


@pytest.mark.parametrize(
    ("loss_type", "relative"),
    [
        ("nce", False),
        ("nce", True),
        ("density_ratio", False),
        ("ranking", False),
        ("ranking", True),
        ("random_softmax", False),
        ("conditional", False),
        ("conditional", True),
        ("full", False),
        ("full", True),
    ],
)
def test_a_normal_law_by_every_loss(loss_type, relative):
    """The density that the moments of the data give. (neg has no place for the constant of such a ratio.)"""
    mixing = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    x = torch.randn(4000, 2, generator=generator(), dtype=torch.float64) @ mixing.T + torch.tensor([0.5, -1.0])
    noise = "uniform" if loss_type == "random_softmax" else "gaussian"  # which leaves out log q
    learned = loss_type in ("nce", "density_ratio")
    model = build(
        energy="quadratic",
        loss_type=loss_type,
        relative_to_noise=relative,
        noise=noise,
        noise_scale=1.5,
        noise_ratio=5,
        perturbation_scale=1.0,
        quadrature_points=200,
        log_partition="learned" if learned else "fixed",
    ).double()
    model.fit_noise(x)
    model.noise.double()
    drawn = model.draw_noise(x, generator(1)).double()
    descend(model, x, drawn)
    if not learned:
        model.normalize()
    expected = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    tolerance = 1e-4 if loss_type == "full" else 0.25
    points = x[:200]
    torch.testing.assert_close(model.log_prob(points), expected.log_prob(points), rtol=0, atol=tolerance)
    assert model.check_normalization().integral == pytest.approx(1, abs=0.02)


def test_telescoping_bridges_where_plain_contrast_fails():
    """Ten dimensions, 20 nats between the laws: Rhodes, Xu, Gutmann 2020, figure 1 and section 4.1."""
    narrow, size, count = 0.082, 10, 4000
    x = narrow * torch.randn(count, size, generator=generator(), dtype=torch.float64)
    gap = size * (-math.log(narrow) - 0.5 * (1 - narrow**2))
    assert gap == pytest.approx(20, abs=0.1)
    found = {}
    for loss_type, settings in (
        ("nce", {"relative_to_noise": True}),
        ("telescoping", {"num_bridges": 6, "bridge_power": 2.0}),
    ):
        model = build(event_shape=(size,), energy="quadratic", loss_type=loss_type, noise_ratio=1, **settings)
        model.noise.set_moments(0.0, 1.0)
        model.double()
        noise = torch.randn(count, 1, size, generator=generator(1), dtype=torch.float64)
        descend(model, x, noise)
        fresh = narrow * torch.randn(5000, size, generator=generator(2), dtype=torch.float64)
        found[loss_type] = (model.log_prob(fresh) - model.noise.log_prob(fresh)).mean().item()
    assert found["telescoping"] == pytest.approx(gap, rel=0.05)
    assert abs(found["nce"] - gap) > 0.2 * gap


def test_bridges_are_a_path_from_data_to_noise():
    model = build(loss_type="telescoping", num_bridges=3, bridge_power=1.0, noise_ratio=2)
    x, noise = torch.randn(5, 2), torch.randn(5, 2, 2)
    path = model.bridge_points(x, noise)
    assert path.shape == (5, 2, 4, 2)
    torch.testing.assert_close(path[:, :, 0], x[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(path[:, :, 3], noise)
    torch.testing.assert_close(path[:, :, 1], math.sqrt(8 / 9) * x[:, None] + noise / 3)
    # the loss is a sum of classifications between neighbours
    model.energy_function.output.weight.data.normal_(generator=generator())
    output = model(x, noise)
    scores = model.bridge_scores(path) - model.log_partitions
    expected = sum(
        nn.functional.softplus(-scores[:, :, m, m]).mean() + nn.functional.softplus(scores[:, :, m + 1, m]).mean()
        for m in range(3)
    )
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.log_prob, scores[:, 0, 0].sum(-1) + model.noise.log_prob(x))


# --- the energy ---


def test_polynomials_against_their_formula():
    model = build(event_shape=(3,), energy="quartic").double()
    for parameter in model.energy_function.parameters():
        parameter.data.normal_(generator=generator())
    x = torch.randn(4, 3, dtype=torch.float64)
    h, a, b = (getattr(model.energy_function, name)[0] for name in ("linear", "quadratic", "quartic"))
    expected = torch.stack([-(h @ row) + row @ a @ row + (b * row**4).sum() for row in x])
    torch.testing.assert_close(model.energy(x), expected)
    gradient = torch.stack([h - (a + a.T) @ row - 4 * b * row**3 for row in x])
    torch.testing.assert_close(model.score(x), gradient)
    torch.testing.assert_close(model.log_prob(x), -expected - model.log_partition)


@pytest.mark.parametrize("energy", ["mlp", "conv"])
def test_networks_take_any_batch_shape_and_start_as_the_noise(energy):
    model = build(event_shape=(1, 4, 4), energy=energy, hidden_sizes=(6,), conv_channels=(3, 4), relative_to_noise=True)
    x = torch.randn(50, 1, 4, 4, generator=generator()) * 3 + 1
    model.fit_noise(x)
    model.eval()
    assert torch.equal(model.energy(x), torch.zeros(50))
    torch.testing.assert_close(model.log_prob(x), model.noise.log_prob(x))
    model.energy_function.output.weight.data.normal_(generator=generator())
    assert model.energy(x.view(5, 10, 1, 4, 4)).shape == (5, 10)
    torch.testing.assert_close(model.energy(x.view(5, 10, 1, 4, 4)).flatten(), model.energy(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.energy_function.input_mean, x.flatten(1).mean(0))
    # the score is that of the whole density, noise included
    step = 1e-3 * torch.randn(1, 1, 4, 4, generator=generator(1))
    difference = model.double().log_prob(x[:1].double() + step) - model.log_prob(x[:1].double() - step)
    assert (model.score(x[:1].double()) * 2 * step).sum().item() == pytest.approx(difference.item(), rel=1e-3)


def test_an_energy_of_ones_own(tmp_path):
    class Ring(nn.Module):
        def __init__(self):
            super().__init__()
            self.sharpness = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return -self.sharpness * (x.norm(dim=1) - 1) ** 2

    config = NCEDensityConfig(energy="custom", noise="uniform")
    model = NCEDensityModel(config, Ring())
    model.noise.set_box(-3.0, 3.0)
    x = torch.randn(4, 2)
    torch.testing.assert_close(model.energy(x), 2 * (x.norm(dim=1) - 1) ** 2)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.energy_function.sharpness.fill_(1.0)
    again = NCEDensityModel.from_pretrained(tmp_path, energy_function=Ring())
    assert again.energy_function.sharpness.item() == 2.0
    with pytest.raises(ValueError, match="an energy_function is what 'custom' takes"):
        NCEDensityModel(config)
    with pytest.raises(ValueError, match="an energy_function is what 'custom' takes"):
        NCEDensityModel(NCEDensityConfig(), Ring())


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (3,), r"one number a point, \(5,\) for points \(5, 2\), but gave \(5, 3\)"),
        (
            {"loss_type": "telescoping", "num_bridges": 4},
            (3,),
            r"\(5, 4\), one for each bridge for points \(5, 2\), but gave \(5, 3\)",
        ),
    ],
)
def test_an_energy_of_the_wrong_shape_is_named(settings, shape, message):
    class Wrong(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), *shape)

    model = NCEDensityModel(NCEDensityConfig(energy="custom", **settings), Wrong())
    with pytest.raises(ValueError, match=message):
        model(torch.randn(5, 2))


# --- the constant ---


def normal_model(scale: float = 0.7, size: int = 2, **settings) -> NCEDensityModel:
    """N(0, scale^2 I) as a quadratic energy with the right constant, over wider Gaussian noise."""
    model = build(event_shape=(size,), energy="quadratic", **settings)
    with torch.no_grad():
        model.energy_function.quadratic.copy_(torch.eye(size) / (2 * scale**2))
        model.log_partitions.fill_(size * math.log(scale * math.sqrt(2 * math.pi)))
    model.noise.set_moments(0.0, 1.0)
    return model.eval()


@pytest.mark.parametrize(
    ("size", "method", "settings"),
    [
        (1, "grid", {}),
        (2, "grid", {}),
        (2, "importance", {"num_samples": 50_000}),
        (6, "importance", {"num_samples": 50_000}),
        (6, "annealed", {"num_samples": 2000, "num_steps": 50, "step_size": 0.5}),
    ],
)
def test_integral_of_a_normal_law(size, method, settings):
    model = normal_model(size=size)
    found = model.check_normalization(method=method, generator=generator(), **settings)
    assert found.method == method and found.integral == pytest.approx(1, abs=1e-5 if method == "grid" else 4 * found.stderr)
    assert math.log(found.integral) == pytest.approx(found.log_integral)
    with torch.no_grad():
        model.log_partitions -= 0.5
    found = model.check_normalization(method=method, generator=generator(), **settings)
    assert found.integral == pytest.approx(math.exp(0.5), abs=1e-4 if method == "grid" else 4 * found.stderr)
    if method == "grid":
        assert found.effective_samples is None and found.stderr == 0
    else:
        assert 0.01 < found.stderr / found.integral * math.sqrt(settings["num_samples"]) < 5
        assert 1 < found.effective_samples <= settings["num_samples"]
    before = model.normalize()
    assert before.log_integral == pytest.approx(0.5, abs=0.05)
    assert model.check_normalization(generator=generator(1)).integral == pytest.approx(1, abs=0.05)


def test_annealing_reaches_what_importance_sampling_misses():
    """Where noise and model hardly meet: ten dimensions, a fifth of the width."""
    model = normal_model(scale=0.2, size=10)
    single = model.check_normalization(4000, "importance", generator())
    walked = model.check_normalization(400, "annealed", generator(), num_steps=500, step_size=0.3)
    assert abs(walked.log_integral) < 0.3 < 2 < abs(single.log_integral)
    assert walked.effective_samples > 40 > single.effective_samples
    assert walked.log_integral == model.check_normalization(400, "annealed", generator(), 500, 0.3).log_integral


def test_what_has_no_constant_cannot_be_normalized():
    with pytest.raises(ValueError, match="log_partition='none' has no c to set; use 'fixed' or 'learned'"):
        build(log_partition="none", loss_type="ranking").normalize()
    for method in ("grid", "quadrature"):
        with pytest.raises(ValueError, match=f"method='{method}' must be 'importance' or 'annealed', or 'grid' in one or two"):
            build(event_shape=(3,)).check_normalization(method=method)


# --- samples ---


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("importance", {}), ("rejection", {}), ("langevin", {"num_steps": 100, "step_size": 1.0})],
)
def test_samples_of_a_normal_law(method, settings, temperature):
    model = normal_model()
    draw = lambda seed: model.sample(4000, temperature, generator(seed), method, **settings)  # noqa: E731
    x = draw(0)
    assert x.shape == (4000, 2) and torch.equal(x, draw(0)) and not torch.equal(x, draw(1))
    expected = 0.7 * math.sqrt(temperature)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), rtol=0, atol=4 * expected / math.sqrt(4000))
    torch.testing.assert_close(x.std(0), torch.full((2,), expected), rtol=0.06, atol=0)
    assert abs(torch.corrcoef(x.T)[0, 1].item()) < 0.07


def test_samples_of_two_wells_fill_both():
    model = build(event_shape=(1,), energy="quartic")
    with torch.no_grad():
        model.energy_function.quadratic.fill_(-2.0)
        model.energy_function.quartic.fill_(0.5)
    model.noise.set_moments(0.0, 1.6)
    line = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    density = (2 * line**2 - 0.5 * line**4).exp()
    absolute = (torch.trapezoid(line.abs() * density, line) / torch.trapezoid(density, line)).item()
    for method in ("importance", "rejection", "langevin"):
        x = model.sample(4000, generator=generator(), method=method)
        assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
        assert x.abs().mean().item() == pytest.approx(absolute, abs=0.03)


def test_rejection_thins_what_it_kept_under_too_low_a_bound(monkeypatch):
    """Zeros of weight 1 and ones of weight 3; the pilot and the first batch have met no ones."""
    model = normal_model(size=1)
    calls = []

    def weighted_noise(count, generator, temperature):
        calls.append(count)
        ones = torch.zeros(1000) if len(calls) <= 2 else (torch.arange(1000) % 2).float()
        return ones[:, None], torch.where(ones == 1, math.log(3.0), 0.0).double()

    monkeypatch.setattr(model, "_weighted_noise", weighted_noise)
    x = model.sample(1300, method="rejection", generator=generator())
    # a third of the 1,000 zeros stays, then ones are three times as many among what is added
    expected = 1000 / 3 + (1300 - 1000 / 3) / 4
    assert (x == 0).sum().item() == pytest.approx(expected, abs=60) and len(calls) == 4


def test_samplers_say_what_goes_wrong(caplog):
    model = normal_model(scale=0.01, size=6)
    with pytest.raises(RuntimeError, match="rejection kept . of .* Use method='langevin'"):
        model.sample(10, method="rejection", generator=generator())
    import logging as standard_logging

    from transformers.utils import logging

    logging.enable_propagation()
    try:
        with caplog.at_level(standard_logging.WARNING):
            model.sample(64, generator=generator())
    finally:
        logging.disable_propagation()
    assert "fewer than num_samples=64: some will repeat" in caplog.text
    for settings, message in (
        ({"method": "gibbs"}, "method='gibbs' is not known; it must be one of 'importance'"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"oversampling": 0}, "oversampling=0 must be positive"),
        ({"method": "langevin", "num_steps": 0}, "num_steps=0 must be positive"),
        ({"method": "langevin", "step_size": -1.0}, "step_size=-1.0 must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample(4, **settings)
    with pytest.raises(ValueError, match="num_samples=0 must be positive"):
        model.sample(0)
    with torch.no_grad():
        model.energy_function.linear.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the walk left the finite numbers"):
        model.sample(4, method="langevin", num_steps=2)


# --- data ---


def test_dequantisation():
    model = build(event_shape=(1, 2, 2), num_levels=5, dequantization="uniform")
    levels = torch.randint(5, (6, 1, 2, 2), generator=generator())
    draws = torch.rand(6, 1, 2, 2, generator=generator(1))
    torch.testing.assert_close(model.dequantize(levels / 4, draws), (levels + draws) / 5)
    model.eval()
    first, again = model.dequantize(levels / 4), model.dequantize(levels.flip(0) / 4).flip(0)
    assert torch.equal(first, again)  # a function of each example
    assert torch.equal((first * 5).floor(), levels.float())
    drawn = [model.dequantize(levels / 4, generator=generator(2)) for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], first)
    for wrong, message in (
        (levels / 2, r"must lie in \[0, 1\], level k of K as k / \(K - 1\), got \[0, 2\]"),
        (torch.full((2, 1, 2, 2), math.nan), "hold NaN or infinite values in 2 of 2 examples"),
        (torch.zeros(2, 4), r"pixel_values must be \(batch, 1, 2, 2\), got \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong)


def test_data_outside_the_noise_are_named(caplog):
    from transformers.utils import logging

    model = build(event_shape=(1,), noise="uniform", noise_margin=0.0)
    model.fit_noise(torch.linspace(0, 1, 11)[:, None])
    logging.enable_propagation()
    try:
        assert model.check_coverage(torch.tensor([[0.5], [0.7], [1.5], [2.0]])) == 0.5
    finally:
        logging.disable_propagation()
    assert "50 % of the data lie outside the support of noise='uniform'" in caplog.text and "raise noise_margin" in caplog.text
    with pytest.raises(ValueError, match="100 % of the data lie outside"):
        model.check_coverage(torch.tensor([[5.0]]))
    model.train()
    with pytest.raises(ValueError, match="100 % of the data lie outside"):
        model(torch.full((4, 1), 5.0))
    with pytest.raises(ValueError, match="1 of 3 examples hold NaN or infinite values"):
        model.fit_noise(torch.tensor([[0.0], [math.nan], [1.0]]))


@pytest.mark.parametrize(("ratio", "shape"), [(3, (8, 3, 2)), (0.5, (4, 2)), (0.01, (1, 2)), (2.5, (20, 2))])
def test_any_ratio_of_noise_to_data(ratio, shape):
    model = build(noise_ratio=ratio)
    x = torch.randn(8, 2, generator=generator())
    noise = model.draw_noise(x, generator(1))
    assert noise.shape == shape
    output = model(x, noise)
    assert output.noise_logits.shape == shape[:-1]
    drawn, count = noise.view(-1, 2), noise.numel() // 2
    expected = -model.noise.log_prob(drawn) - model.log_partition - math.log(count / 8)
    torch.testing.assert_close(output.noise_logits.flatten(), expected)
    own = -model.noise.log_prob(x) - model.log_partition - math.log(count / 8)
    loss = nn.functional.softplus(-own).mean() + count / 8 * nn.functional.softplus(expected).mean()
    torch.testing.assert_close(output.loss, loss)


def test_noise_in_evaluation_is_a_function_of_the_batch():
    model = build().eval()
    x = torch.randn(8, 2)
    assert torch.equal(model(x).loss, model(x).loss)
    assert model(x, return_loss=False).loss is None
    assert len(model(x, return_dict=False)) == 5
    model.train()
    assert not torch.equal(model(x).loss, model(x).loss)


def test_conditional_noise_stands_around_each_datum():
    model = build(loss_type="conditional", log_partition="fixed", noise_ratio=500, perturbation_scale=0.5)
    x = torch.randn(6, 2) * torch.tensor([1.0, 10.0])
    model.fit_noise(torch.randn(1000, 2, generator=generator()) * torch.tensor([1.0, 10.0]))
    noise = model.draw_noise(x, generator())
    torch.testing.assert_close(noise.mean(1), x, rtol=0, atol=1.0)
    torch.testing.assert_close((noise - x[:, None]).std((0, 1)), torch.tensor([0.5, 5.0]), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match=r"loss_type='conditional' needs noise_samples \(batch, k, 2\), got \(12, 2\)"):
        model(x, torch.randn(12, 2))


# --- saved models ---


def test_noise_and_constants_are_saved_in_full(tmp_path):
    model = build(energy="mlp", noise="gaussian_mixture", num_components=3, loss_type="telescoping", num_bridges=3)
    x = torch.randn(200, 2, generator=generator()) * 5 + 3
    model.fit_noise(x)
    with torch.no_grad():
        model.log_partitions.copy_(torch.tensor([0.1, 0.2, 1 / 3]))
        model.energy_function.output.weight.normal_(generator=generator())
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.eval().log_prob(x), model.eval().log_prob(x))
    low = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert low.energy_function.output.weight.dtype == torch.bfloat16
    assert torch.equal(low.noise.means, model.noise.means) and torch.equal(low.log_partitions, model.log_partitions)
    assert low.log_prob(x).dtype == torch.float32
    torch.testing.assert_close(low.log_prob(x), model.log_prob(x), rtol=0.05, atol=0.5)


def test_a_flow_as_noise_travels_with_the_model(tmp_path):
    torch.manual_seed(1)
    flow = NiceFlowModel(NiceFlowConfig(event_shape=(1, 2, 2), num_levels=5, hidden_size=6, num_hidden_layers=1))
    flow.save_pretrained(tmp_path / "flow")
    model = NCEDensityModel.from_noise_pretrained(tmp_path / "flow", energy="mlp", hidden_sizes=(4,), relative_to_noise=True)
    assert model.config.event_shape == [1, 2, 2] or tuple(model.config.event_shape) == (1, 2, 2)
    assert (model.config.num_levels, model.config.dequantization) == (5, "uniform")
    x = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(model.eval().log_prob(x), flow.eval().log_prob(x))
    before = {name: value.clone() for name, value in model.noise.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randint(5, (8, 1, 2, 2)) / 4).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.noise.state_dict().items())
    model.save_pretrained(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "whole").glob("*.py")}
    assert {"modeling_nice_flow.py", "configuration_nice_flow.py", "modeling_nce_density.py", "energies.py"} <= names
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["noise_config"]["model_type"] == "nice_flow"
    again = AutoModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(again.eval().log_prob(x), model.eval().log_prob(x))
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    with pytest.raises(ValueError, match="it cannot be noise"):
        from transformers import BertConfig, BertModel

        NCEDensityModel.from_noise_pretrained(
            BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9))
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"event_shape": ()}, "event_shape=.* must hold one or more positive sizes"),
        ({"num_levels": 1, "dequantization": "uniform"}, "num_levels=1 must be at least 2"),
        ({"num_levels": 5}, "dequantization='none' with num_levels=5"),
        ({"dequantization": "uniform"}, "dequantization='uniform' with num_levels=None"),
        ({"energy": "spline"}, "energy='spline' is not known"),
        ({"energy": "conv"}, "energy='conv' needs conv_channels and an event_shape"),
        ({"conv_kernel_size": 2}, "conv_kernel_size=2 must be odd"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"noise": "flow"}, "noise='flow': noise_config is what 'flow' builds"),
        ({"noise_config": {"model_type": "nice_flow"}}, "noise='gaussian': noise_config is what 'flow' builds"),
        ({"noise_ratio": 0}, "noise_ratio=0 must be positive"),
        ({"noise_ratio": -2.0}, "noise_ratio=-2.0 must be positive"),
        ({"noise_covariance": "block"}, "noise_covariance='block' is not known"),
        ({"loss_type": "hinge"}, "loss_type='hinge' is not known"),
        ({"loss_type": "ranking"}, "log_partition='learned' learns nothing from loss_type='ranking'"),
        ({"log_partition": "none", "log_partition_init": 1.0}, "log_partition_init=1.0 has no place"),
        ({"log_partition_init": math.nan}, "log_partition_init=nan must be finite"),
        (
            {"loss_type": "telescoping", "noise_ratio": 0.5},
            "noise_ratio=0.5 must be a whole number for loss_type='telescoping'",
        ),
        (
            {"loss_type": "density_ratio", "relative_to_noise": True},
            "relative_to_noise=True is what loss_type='density_ratio' does",
        ),
        (
            {"loss_type": "random_softmax", "relative_to_noise": True, "log_partition": "fixed"},
            "relative_to_noise=True has no place in loss_type='random_softmax'",
        ),
        (
            {"loss_type": "full", "event_shape": (3,), "log_partition": "fixed"},
            r"loss_type='full' integrates over a grid, in one or two dimensions, not in the 3 of event_shape=\(3,\)",
        ),
    ],
)
def test_wrong_configurations_are_named(settings, message):
    with pytest.raises(Exception, match=message):
        NCEDensityConfig(**settings)

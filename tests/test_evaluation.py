"""What is measured: against closed forms and second computations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from test_training import tiny
from transformers import AutoModel

from hfblog import NiceFlowConfig, NiceFlowModel, evaluation, evaluation_density, hub, pictures, recipes, training


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny(
        folder,
        "training.num_train_epochs=2",
        card={
            "title": "Tiny",
            "summary": "A test.",
            "published": [{"name": "somebody", "log_likelihood": 1.0, "source": "x"}],
        },
        evaluation={"num_draws": 4, "num_samples": 9},
    )
    return training.train(recipe, folder / "out")


def test_metrics_card_and_pictures(trained):
    metrics = evaluation.evaluate(trained)
    assert metrics == json.loads((trained / "metrics.json").read_text())
    assert metrics["name"] == "tiny" and metrics["data"]["num_examples"] == 100
    assert metrics["num_parameters"] == AutoModel.from_pretrained(trained).num_parameters()
    assert {"seed", "num_draws"} <= set(metrics["settings"]) and metrics["settings"]["num_draws"] == 4
    for key in ("command", "hardware", "versions", "date", "seconds", "training"):
        assert metrics[key]
    assert [row["label"] for row in metrics["comparisons"]] == ["uniform", "diagonal Gaussian", "full Gaussian", "somebody"]
    for picture in metrics["pictures"]:
        assert Image.open(trained / picture["file"]).size[0] > 40
        assert (trained / picture["file"]).stat().st_size < 200 * 1024
    assert {"samples.png", "reconstructions.png", "interpolations.png", "inpainting.png", "spectrum.png", "curve.png"} == {
        picture["file"] for picture in metrics["pictures"]
    }
    card = (trained / "README.md").read_text()
    assert hub.format_number(metrics["results"]["log_likelihood"]["value"]) in card
    text = evaluation.report(metrics, trained)
    assert "scripts/push_to_hub.py" in text and "full Gaussian" in text


def test_the_stated_figure_is_the_models(trained):
    """Recomputed from the saved folder by hand: mean over draws and images of the exact log-density."""
    metrics = evaluation.evaluate(trained)
    model = AutoModel.from_pretrained(trained).double()
    recipe = recipes.load_recipe(trained / "recipe.yaml")
    processor = recipes.load_processor(recipe, trained)
    test = recipes.prepare_split(recipes.load_data_of(recipe), "test", recipe, processor)[:]["pixel_values"]
    generator = torch.Generator().manual_seed(123)
    with torch.no_grad():
        levels = (test * 16).round()
        draws = [model.log_prob((levels + torch.rand(test.shape, generator=generator)).double() / 17) for _ in range(64)]
    nats = torch.stack(draws).mean().item()
    assert metrics["results"]["log_likelihood"]["value"] == pytest.approx(nats, abs=0.5)
    stated = metrics["results"]["log_likelihood"]["value"]
    assert metrics["results"]["bits_per_dim"]["value"] == pytest.approx(math.log2(17) - stated / (64 * math.log(2)))


def test_two_evaluations_state_the_same(trained):
    first, second = evaluation.evaluate(trained), evaluation.evaluate(trained)
    assert first["results"] == second["results"] and first["comparisons"] == second["comparisons"]
    other = evaluation.evaluate(trained, overrides=["seed=1"])
    assert other["results"]["log_likelihood"]["value"] != first["results"]["log_likelihood"]["value"]


def test_exactness_is_measured_and_can_fail(trained):
    model = AutoModel.from_pretrained(trained)
    x = torch.rand(4, 1, 8, 8)
    checks = {check["label"]: check["value"] for check in evaluation_density.exactness_report(model, x, 2)}
    single, double, log_det = checks.values()
    assert single < 1e-5 and double < 1e-12 and log_det < 1e-10

    class Wrong(NiceFlowModel):
        def encode(self, x):
            latents, log_det = super().encode(x)
            return latents * 1.001, log_det

    wrong = Wrong.from_pretrained(trained)
    checks = [check["value"] for check in evaluation_density.exactness_report(wrong, x, 2)]
    assert checks[0] > 1e-4 and checks[1] > 1e-4
    assert checks[2] == pytest.approx(64 * math.log(1.001), rel=1e-6)


def test_gaussian_baselines_against_scipy():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))
    train, validation, test = (generator.normal(size=(size, 5)) @ mixing for size in (4000, 500, 50))
    rows = evaluation_density.gaussian_baselines(*map(torch.tensor, (train, validation, test)), num_levels=16)
    covariance = np.cov(train.T, bias=True)
    for row in rows:
        ridge = row.get("ridge", 0) * np.eye(5)
        expected = {
            "uniform": 0.0,
            "diagonal Gaussian": stats.multivariate_normal(train.mean(0), np.diag(np.diag(covariance)) + ridge),
            "full Gaussian": stats.multivariate_normal(train.mean(0), covariance + ridge),
        }[row["label"]]
        nats = expected if row["label"] == "uniform" else expected.logpdf(test).mean()
        assert row["log_likelihood"] == pytest.approx(nats, abs=1e-6)
        assert row["bits_per_dim"] == pytest.approx(4 - nats / (5 * math.log(2)))
        assert row.get("ridge", 0) < 0.1  # enough data: next to nothing is added


def test_gaussian_baselines_survive_what_training_never_saw():
    """A pixel that is constant in training and not in the rest: the plain fit has no bound on its loss there."""
    generator = torch.Generator().manual_seed(0)
    train, validation, test = (torch.rand(200, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    train[:, 0] = 0.5
    for row in evaluation_density.gaussian_baselines(train, validation, test, None)[1:]:
        assert row["ridge"] > 1e-3 and row["log_likelihood"] > -3


def test_noise_of_the_article_gives_no_bits_per_dimension(tmp_path):
    recipe = tiny(tmp_path, "training.num_train_epochs=1", model={"dequantization": "blog", "prior": "normal"})
    metrics = evaluation.evaluate(training.train(recipe, tmp_path / "out"))
    assert set(metrics["results"]) == {"log_likelihood"} and metrics["comparisons"] == []
    nats = metrics["results"]["log_likelihood"]["value"]
    assert any(f"the loss is {-nats - 32 * math.log(2 * math.pi):.2f}" in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_drows=3", "unknown key evaluation.num_drows; did you mean 'num_draws'"),
        ("num_draws=0", "evaluation.num_draws=0 must be an integer of at least 1"),
        ("batch_size=many", "evaluation.batch_size='many' must be an integer"),
        ("split=tset", "evaluation.split='tset' must be one of train, validation, test"),
    ],
)
def test_unknown_settings(trained, override, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(trained, overrides=[override])


def test_folders_that_cannot_be_evaluated(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        evaluation.evaluate(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a saved model"):
        evaluation.evaluate(tmp_path)
    hub.export(NiceFlowModel(NiceFlowConfig(event_shape=(2,), hidden_size=4)), tmp_path / "model")
    with pytest.raises(ValueError, match="no recipe.yaml"):
        evaluation.evaluate(tmp_path / "model")


def test_image_grid():
    images = [Image.new("L", (8, 4), color=value) for value in (0, 100, 200)]
    grid = pictures.image_grid(images, columns=2, scale=2, gap=1)
    assert grid.size == (2 * 16 + 1, 2 * 8 + 1)
    assert grid.getpixel((0, 0)) == 0 and grid.getpixel((17, 0)) == 100 and grid.getpixel((0, 9)) == 200
    assert pictures.image_grid([Image.new("RGB", (32, 32))] * 4).mode == "RGB"

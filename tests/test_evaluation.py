"""What is measured: against closed forms and second computations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from test_training import TINY, tiny, tiny_model
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


# --- the invertible ResNet ---


def invertible(folder: Path, **sections: dict) -> recipes.Recipe:
    model = {"model_type": "invertible_resnet", "hidden_size": 8} | sections.pop("model")
    return tiny_model(folder, model, **{"training": TINY["training"] | {"num_train_epochs": 2}} | sections)


def test_a_density_of_points_stands_beside_the_law_they_come_from(tmp_path):
    recipe = invertible(
        tmp_path,
        model={"event_shape": [2], "num_levels": None, "dequantization": "none", "num_blocks": [2]},
        data={"name": "moons", "max_examples": 300},
        evaluation={"num_samples": 50},
    )
    folder = training.train(recipe, tmp_path / "out")
    assert not (folder / "preprocessor_config.json").exists()
    metrics = evaluation.evaluate(folder)
    assert set(metrics["results"]) == {"log_likelihood"}
    rows = {row["label"]: row["log_likelihood"] for row in metrics["comparisons"]}
    law = rows["the law that the data are drawn from"]
    assert law == pytest.approx(-2.384, abs=0.15) and rows["full Gaussian"] == pytest.approx(-3.29, abs=0.15)
    assert metrics["results"]["log_likelihood"]["value"] < law
    checks = {row["label"]: row["value"] for row in metrics["exactness"]}
    assert checks["largest certified Lipschitz constant of 2 blocks"] <= 0.9 + 1e-6
    assert checks["largest inverse error, float64"] < 1e-10
    assert checks["largest log-det error against autograd, 4 examples, float64, nats"] < 1e-8
    assert (folder / "samples.png").stat().st_size > 1000
    card = (folder / "README.md").read_text()
    assert "processor" not in card and "pipeline_tag" not in card
    exec(re.findall(r"```python\n(.*?)```", card, re.S)[0].replace('"tiny"', repr(str(folder))), {})


def test_estimated_log_determinants_are_set_beside_exact_ones(tmp_path):
    recipe = invertible(
        tmp_path,
        model={"event_shape": [1, 8, 8], "num_levels": 17, "block_type": "conv", "num_blocks": [1], "exact_log_det_size": 16},
        evaluation={"num_draws": 2, "num_samples": 4, "exact_examples": 20},
    )
    folder = training.train(recipe, tmp_path / "out")
    metrics = evaluation.evaluate(folder)
    (note,) = [note for note in metrics["notes"] if "estimates" in note]
    assert not any("importance" in note for note in metrics["notes"])  # the noise of an estimate would raise it
    bias, error = map(float, re.search(r"by (-?[\d.]+) \+- ([\d.]+) nats", note).groups())
    assert abs(bias) < 5 * error + 0.01
    card = (folder / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.S)
    exec("\n".join(snippets).replace('"tiny"', repr(str(folder))), {})


def test_a_classifier_is_measured_and_its_images_come_back(tmp_path):
    recipe = invertible(
        tmp_path,
        model={
            "auto_class": "AutoModelForImageClassification",
            "event_shape": [1, 8, 8],
            "num_levels": 17,
            "dequantization": "none",
            "block_type": "conv",
            "num_blocks": [2],
            "hidden_size": 24,
            "injective_padding": 3,
        },
        data={"name": "digits"},
        training=TINY["training"] | {"num_train_epochs": 12, "learning_rate": 1e-2, "random_shift": 1},
    )
    folder = training.train(recipe, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["7"] == "7" and len(config["id2label"]) == 10
    (folder / "lipschitz.json").write_text(json.dumps(COEFFICIENTS))
    metrics = evaluation.evaluate(folder)
    rows = {row["label"]: row["error"] for row in metrics["comparisons"]}
    assert rows["largest class"] == pytest.approx(90, abs=2) and rows["logistic regression on pixels"] < 10
    assert metrics["results"]["error"]["value"] < 30
    checks = {row["label"]: row["value"] for row in metrics["exactness"]}
    assert checks["largest certified Lipschitz constant of 2 blocks"] <= 0.9 + 1e-6
    assert checks["largest error of 100 images reconstructed from their features"] < 1e-4
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "| none | 0.410 |" in card
    exec(re.findall(r"```python\n(.*?)```", card, re.S)[0].replace('"tiny"', repr(str(folder))), {})


COEFFICIENTS = {
    "command": "python scripts/compare_lipschitz.py",
    "seed": 0,
    "epochs": 6.0,
    "split": "test",
    "hardware": "a machine",
    "labels": {"error": "error rate (%)"},
    "rows": [
        {"coefficient": "none", "error": 0.41, "exactness": {}},
        {"coefficient": "0.9", "error": 0.5, "exactness": {"largest error": 1e-6}},
    ],
}

"""Noise contrastive estimation from a recipe to a card: training, what is measured, and comparisons with a known truth."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from test_capsule_recipes import run_snippets
from test_training import ROOT, TINY, tiny, tiny_model

from hfblog import comparison, evaluation, evaluation_contrastive, evaluation_density, recipes, tables, training
from hfblog.data import DOUBLE_WELL_LOG_PARTITION, double_well_log_density, load_data

DOUBLE_WELL = {"model_type": "nce_density", "event_shape": [1], "energy": "quartic", "noise_scale": 1.2, "noise_ratio": 5}
ON_POINTS = TINY["training"] | {
    "num_train_epochs": 10,
    "per_device_train_batch_size": 500,
    "per_device_eval_batch_size": 5000,
    "adam_beta2": 0.99,
    "learning_rate": 0.1,
    "initialize_examples": 20_000,
}
WORDS = {
    "model_type": "nce_lm",
    "backbone_config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2},
    "num_noise_samples": 10,
}


def tiny_words(folder: Path) -> recipes.Recipe:
    return tiny_model(
        folder,
        WORDS,
        data={"name": "chinese-news", "max_examples": 400},
        processor={"level": "word", "vocab_size": 300, "max_length": 16, "pack": True},
        training=TINY["training"] | {"initialize_examples": 10_000},
        evaluation={"num_samples": 3, "max_new_tokens": 10},
    )


def command(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def well_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("well")
    recipe = tiny_model(folder, DOUBLE_WELL, data={"name": "double-well"}, training=ON_POINTS)
    return training.train(recipe, folder / "out")


def test_density_on_the_line_from_recipe_to_card(well_folder, tmp_path):
    metrics = evaluation.evaluate(well_folder)
    recipe = recipes.load_recipe(well_folder / "recipe.yaml")
    model = recipe.auto_class.from_pretrained(well_folder)
    points = torch.tensor(load_data("double-well")["test"]["point"])
    found = {key: result["value"] for key, result in metrics["results"].items()}
    assert set(found) == {"log_likelihood", "integral", "quadratic", "quartic", "log_partition"}

    # the integral by another rule, and with it the likelihood
    line = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    with torch.no_grad():
        density = model.double().log_prob(line[:, None])
        log_prob = model.log_prob(points.double())
    integral = torch.trapezoid(density.exp(), line)
    assert found["integral"] == pytest.approx(integral.item(), rel=1e-4)
    assert found["log_likelihood"] == pytest.approx(log_prob.mean().item() - math.log(integral), abs=1e-4)
    truth = double_well_log_density(line[:, None])
    divergence = torch.trapezoid(truth.exp() * (truth - density + integral.log()), line).item()
    checks = {check["label"]: check["value"] for check in metrics["exactness"]}
    assert checks["divergence of the model from that law, by quadrature, nats"] == pytest.approx(divergence, abs=1e-5)
    assert 0 < divergence < 0.1

    rows = {row["label"]: row for row in metrics["comparisons"]}
    law = rows["the law that the data are drawn from"]
    assert law["log_likelihood"] > found["log_likelihood"] > rows["full Gaussian"]["log_likelihood"]
    assert (law["quadratic"], law["quartic"], law["log_partition"]) == (-2.0, 0.5, DOUBLE_WELL_LOG_PARTITION)
    assert "uniform" not in rows  # over what?
    assert found["quadratic"] == pytest.approx(-2, abs=0.5) and found["log_partition"] == pytest.approx(2.69, abs=0.5)
    assert {picture["file"] for picture in metrics["pictures"]} == {"samples.png", "ratio.png", "curve.png"}
    assert (well_folder / "samples.png").stat().st_size < 200 * 1024
    run_snippets_as(well_folder)
    command("scripts/sample.py", well_folder, "--num-samples", 5, "--output", tmp_path / "points.csv")
    assert np.loadtxt(tmp_path / "points.csv", delimiter=",").shape == (5,)


@pytest.mark.parametrize(("noise", "quadratic"), [("gaussian", -2 - 1 / (2 * 1.6**2)), ("uniform", -2)])
def test_the_loss_of_the_article_learns_the_ratio_to_its_noise(tmp_path, noise, quadratic):
    model = DOUBLE_WELL | {"noise": noise, "noise_scale": 1.6 / 1.3124, "loss_type": "density_ratio"}
    recipe = tiny_model(tmp_path, model, data={"name": "double-well"}, training=ON_POINTS | {"num_train_epochs": 20})
    metrics = evaluation.evaluate(training.train(recipe, tmp_path / "out"))
    assert "log_partition" not in metrics["results"]
    assert metrics["results"]["quadratic"]["value"] == pytest.approx(quadratic, abs=0.1)
    law = next(row for row in metrics["comparisons"] if row["label"].startswith("the law"))
    assert metrics["results"]["log_likelihood"]["value"] == pytest.approx(law["log_likelihood"], abs=0.01)


def test_what_is_not_learned_is_found_on_a_grid(tmp_path):
    model = DOUBLE_WELL | {"loss_type": "full", "log_partition": "fixed"}
    recipe = tiny_model(tmp_path, model, data={"name": "double-well"}, training=ON_POINTS | {"num_train_epochs": 20})
    results = evaluation.evaluate(training.train(recipe, tmp_path / "out"))["results"]
    assert "integral" not in results
    assert results["log_partition"]["value"] == pytest.approx(DOUBLE_WELL_LOG_PARTITION, abs=0.1)


def run_snippets_as(folder: Path) -> None:
    """The card's own snippets; they name the recipe, which is "tiny" in these tests."""
    assert '"tiny"' in (folder / "README.md").read_text(encoding="utf-8")
    run_snippets(folder)


def test_a_comparison_states_errors_where_the_truth_is_known(well_folder, tmp_path):
    recipe_file = well_folder / "recipe.yaml"
    variants = [comparison.Variant.parse("nce: data.seed={seed}")]
    record = comparison.run_comparison(recipe_file, variants, [0, 1], tmp_path, ["training.num_train_epochs=2"])
    assert record["truths"] == {"quadratic": -2.0, "quartic": 0.5, "log_partition": DOUBLE_WELL_LOG_PARTITION}
    runs = record["rows"][0]["runs"]
    assert runs[0] != runs[1]
    table = tables.comparison_table({"caption": "Seeds."} | record)
    errors = [abs(run["quartic"] - 0.5) for run in runs]
    name = f"RMSE of {record['labels']['quartic']}"
    place = table["columns"].index(name)
    assert table["columns"][place + 1] == "largest error"
    assert table["rows"][0][place] == pytest.approx(math.sqrt(sum(error**2 for error in errors) / 2))
    assert table["rows"][0][place + 1] == pytest.approx(max(errors))
    # a variant without such a figure
    ratio = {"label": "ratio", "num_parameters": 4, "runs": [{"quadratic": -2.2}]}
    table = tables.comparison_table({"caption": "Seeds."} | record | {"rows": [*record["rows"], ratio]})
    assert table["rows"][1][place : place + 2] == ["", ""]


def test_density_over_the_plane_from_recipe_to_card(tmp_path):
    model = {"model_type": "nce_density", "hidden_sizes": [16], "relative_to_noise": True, "noise": "gaussian_mixture"}
    data = {"name": "moons", "max_examples": 2000}
    folder = training.train(
        tiny_model(tmp_path, model | {"quadrature_points": 100}, data=data, training=ON_POINTS), tmp_path / "out"
    )
    metrics = evaluation.evaluate(folder)
    rows = {row["label"]: row["log_likelihood"] for row in metrics["comparisons"]}
    assert set(rows) == {
        "diagonal Gaussian",
        "full Gaussian",
        "the noise, gaussian mixture",
        "the law that the data are drawn from",
    }
    assert rows["the noise, gaussian mixture"] < metrics["results"]["log_likelihood"]["value"] < -2.3
    run_snippets_as(folder)


def test_density_of_images_against_a_trained_flow(tmp_path):
    noise = training.train(tiny(tmp_path), tmp_path / "flow")
    model = {
        "model_type": "nce_density",
        "noise_from": str(noise),
        "event_shape": [1, 8, 8],
        "num_levels": 17,
        "dequantization": "uniform",
        "energy": "conv",
        "conv_channels": [4],
        "hidden_sizes": [8],
        "relative_to_noise": True,
        "noise_ratio": 2,
    }
    settings = {"num_partition_samples": 2000, "num_walks": 500, "num_samples": 4, "num_steps": 4, "num_draws": 2}
    recipe = tiny_model(tmp_path, model, training=TINY["training"] | {"log_samples": 4}, evaluation=settings)
    folder = training.train(recipe, tmp_path / "out")
    assert (folder / "modeling_nice_flow.py").exists()
    assert len(list((folder / "checkpoints" / "samples").glob("*.png"))) == 3
    metrics = evaluation.evaluate(folder)
    results, rows = metrics["results"], {row["label"]: row for row in metrics["comparisons"]}
    nats = results["log_likelihood"]["value"]
    assert results["bits_per_dim"]["value"] == pytest.approx(math.log2(17) - nats / (64 * math.log(2)))
    flow = evaluation.evaluate(noise)["results"]["log_likelihood"]
    assert rows["the noise, flow"]["log_likelihood"] == pytest.approx(flow["value"], abs=3 * flow["stderr"])
    estimates = [row["value"] for row in metrics["exactness"] if row["label"].startswith("log of the integral")]
    assert len(estimates) == 3 and max(estimates) - min(estimates) < 0.3
    assert any(math.log(results["integral"]["value"]) == pytest.approx(value) for value in estimates)
    assert results["integral"]["stderr"] < 0.1
    pictures = {picture["file"] for picture in metrics["pictures"]}
    assert pictures == {"samples.png", "langevin.png", "noise.png", "ratio.png", "curve.png"}
    run_snippets_as(folder)
    command("scripts/sample.py", folder, "--num-samples", 4, "--output", tmp_path / "grid.png")


def test_noise_that_is_not_there_is_named(tmp_path):
    model = {"model_type": "nce_density", "noise_from": "outputs/no_such_flow", "event_shape": [1, 8, 8], "num_levels": 17}
    with pytest.raises(
        ValueError, match="outputs/no_such_flow' is neither a saved model .* scripts/recipes/no_such_flow.yaml"
    ):
        training.train(tiny_model(tmp_path, model | {"dequantization": "uniform"}), tmp_path / "out")
    with pytest.raises(ValueError, match="NiceFlowModel learns from no noise"):
        tiny(tmp_path, "model.noise_from=outputs/nice_flow_digits")


def test_likelihood_ratio_pictures_bear_infinite_ratios(tmp_path):
    ratios = torch.cat([torch.randn(100), torch.tensor([math.inf, -math.inf])])
    assert evaluation_contrastive.ratio_picture(ratios, torch.randn(50), tmp_path)["file"] == "ratio.png"


# --- words ---


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    return training.train(tiny_words(folder), folder / "out")


def test_words_from_recipe_to_card(words_folder):
    metrics = evaluation.evaluate(words_folder)
    recipe = recipes.load_recipe(words_folder / "recipe.yaml")
    model, tokenizer = recipe.auto_class.from_pretrained(words_folder), recipes.load_processor(recipe, words_folder)
    data = recipes.load_data_of(recipe)
    rows = {split: recipes.prepare_split(data, split, recipe, tokenizer)[:]["input_ids"] for split in data}
    ids = rows["test"]
    assert model.generation_config.max_length == 16
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids)
        unnormalized = model.score_tokens(ids)
    stats = model.partition_stats(ids)
    found = {key: result["value"] for key, result in metrics["results"].items()}
    assert found["perplexity"] == pytest.approx(output.loss.exp().item(), rel=1e-5)
    assert found["unnormalized_perplexity"] == pytest.approx((-unnormalized.mean()).exp().item(), rel=1e-5)
    assert found["partition_mean"] == pytest.approx(stats.mean.item(), abs=1e-5)
    assert found["partition_std"] == pytest.approx(stats.std.item(), abs=1e-5)
    others = {row["label"]: row["perplexity"] for row in metrics["comparisons"]}
    single, pairs = others.values()
    assert pairs < single < 300 and found["perplexity"] < single

    # pairs of words by hand, at the discount that the card states
    discount = float(next(label for label in others if label.startswith("pairs")).split()[-1])
    before, word = rows["train"][:, :-1].flatten().tolist(), rows["train"][:, 1:].flatten().tolist()
    together, alone, words = Counter(zip(before, word, strict=True)), Counter(before), Counter(word)
    kinds = Counter(first for first, _ in together)
    total = 0.0
    for row in ids.tolist():
        for first, second in zip(row, row[1:], strict=False):
            unigram = (words[second] + 1) / (len(word) + model.config.vocab_size)
            if alone[first]:
                kept = max(together[first, second] - discount, 0) / alone[first]
                total += math.log(kept + discount * kinds[first] / alone[first] * unigram)
            else:
                total += math.log(unigram)
    assert pairs == pytest.approx(math.exp(-total / ids[:, 1:].numel()), rel=1e-6)

    assert metrics["exactness"][0]["value"] < 1e-4
    assert len(metrics["samples"]) == 3
    card = (words_folder / "README.md").read_text(encoding="utf-8")
    assert "not chosen:" in card and "1. " + metrics["samples"][0]["text"] in card
    run_snippets_as(words_folder)
    assert len(command("scripts/generate.py", words_folder, "--num-texts", 2).strip("\n").split("\n")) == 2


def test_a_look_at_few_rows_is_no_baseline(words_folder):
    metrics = evaluation.evaluate(words_folder, overrides=["max_examples=5"], with_baselines=False)
    assert metrics["comparisons"] == [] and metrics["settings"]["max_examples"] == 5
    assert json.loads((words_folder / "metrics.json").read_text())["settings"]["max_examples"] == 5


@pytest.mark.parametrize(
    ("model", "override", "message"),
    [
        (DOUBLE_WELL, "evaluation.num_partition_samples=10", "num_partition_samples=10 must be an integer of at least 1000"),
        (DOUBLE_WELL, "evaluation.num_steps=0", "num_steps=0 must be an integer of at least 1"),
        (WORDS, "evaluation.max_new_tokens=0", "max_new_tokens=0 must be an integer of at least 1"),
        (WORDS, "evaluation.top_p=0", r"evaluation.top_p=0 must lie in \(0, 1\]"),
    ],
)
def test_wrong_evaluation_settings_are_refused(tmp_path, model, override, message):
    recipe = tiny_model(tmp_path, model, override)
    with pytest.raises(ValueError, match=message):
        recipe.evaluation_arguments(**recipe.evaluation)


def test_gaussians_of_points_stand_beside_no_uniform_law():
    points = [torch.randn(100, 2) for _ in range(3)]
    assert [row["label"] for row in evaluation_density.gaussian_baselines(*points, None)] == [
        "diagonal Gaussian",
        "full Gaussian",
    ]

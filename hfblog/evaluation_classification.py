"""Evaluation of classifiers: errors beside trivial and linear baselines; certificates and inverse of invertible ones."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm.auto import tqdm

from .data import find_column, text_column_of
from .evaluation_generation import ClassifierJudge
from .models.flow import InvertibleResNetForImageClassification
from .pictures import image_grid
from .recipes import EvaluationRun, data_collator


@torch.no_grad()
def predictions(model: torch.nn.Module, examples: Any, batch_size: int, **options: Any) -> dict[str, Tensor]:
    """The model's outputs on the CPU, joined over batches.

    Args:
        examples: prepared examples without labels: columns of tensors, or a list of batches.
        options: further arguments of the model.
    """
    if isinstance(examples, dict):
        columns = {name: values.split(batch_size) for name, values in examples.items()}
        examples = [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
    found: dict[str, list[Tensor]] = {}
    for batch in tqdm(examples, desc="Classifying", unit="batch"):
        output = model(**{name: values.to(model.device) for name, values in batch.items()}, **options)
        for name, value in output.items():
            found.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in found.items() if values[0].ndim}


def reported_images(run: EvaluationRun) -> tuple[Tensor, Tensor]:
    """Images and classes of the reported split."""
    test = run.prepared[run.arguments.split][:]
    return test["pixel_values"][: run.arguments.max_examples], test["labels"][: run.arguments.max_examples]


def reported_texts(run: EvaluationRun) -> tuple[list[dict[str, Tensor]], Tensor, int]:
    """Padded batches of the reported split without its labels, the labels, and the tokens of the longest text."""
    test, size = run.prepared[run.arguments.split], run.arguments.batch_size
    if run.arguments.max_examples is not None:
        test = test.select(range(min(run.arguments.max_examples, len(test))))
    collate, unlabelled = data_collator(run.recipe, run.processor), test.remove_columns("labels")
    batches = [
        dict(collate([unlabelled[row] for row in range(start, min(start + size, len(test)))]))
        for start in range(0, len(test), size)
    ]
    return batches, torch.tensor(test["labels"]), max(map(len, test["input_ids"]))


def error_result(wrong: Tensor) -> dict[str, Any]:
    """The error rate in percent with the standard error of a proportion."""
    error = wrong.double().mean().item()
    return {
        "label": "error rate",
        "unit": "%",
        "value": 100 * error,
        "stderr": 100 * math.sqrt(error * (1 - error) / len(wrong)),
    }


def error_note(wrong: Tensor, what: str) -> str:
    return f"{int(wrong.sum())} of {len(wrong):,} {what} are wrong; the standard error is that of a proportion."


def baseline_errors(run: EvaluationRun) -> list[dict[str, Any]]:
    """Error rates in percent on the reported split of the largest class and of logistic regression on the pixels."""
    if not run.with_baselines:
        return []
    test = run.arguments.split
    (train, train_labels), (held_out, labels) = (
        (columns["pixel_values"].flatten(1).numpy(), columns["labels"].numpy())
        for columns in (run.prepared[split][:] for split in ("train", test))
    )
    largest = np.bincount(train_labels).argmax()
    with warnings.catch_warnings():  # more iterations hardly change a baseline
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear = LogisticRegression(C=0.1, max_iter=100).fit(train, train_labels)
    return [
        {"label": "largest class", "error": 100 * float((labels != largest).mean())},
        {"label": "logistic regression on pixels", "error": 100 * (1 - float(linear.score(held_out, labels)))},
    ]


TEXT_BASELINE_NOTE = (
    "The n-grams are tf-idf of single characters, pairs and triples; regularisation chosen on the validation split."
)


def text_baseline_errors(run: EvaluationRun) -> list[dict[str, Any]]:
    """Error rates in percent on the reported split of the largest class and of logistic regression on n-grams."""
    if not run.with_baselines:
        return []
    split, data = run.arguments.split, run.recipe.data
    texts = {name: list(part[text_column_of(part, data.get("text_column"))]) for name, part in run.splits.items()}
    classes = {
        name: np.asarray(part[find_column(part, ClassLabel, data.get("label_column"))]) for name, part in run.splits.items()
    }
    judge = ClassifierJudge.fit(texts, classes, list(run.model.config.id2label.values()), split)
    largest = np.bincount(classes["train"]).argmax()
    return [
        {"label": "largest class", "error": 100 * float((classes[split] != largest).mean())},
        {"label": "character n-grams with logistic regression", "error": 100 * (1 - judge.test_accuracy)},
    ]


def mistakes_picture(run: EvaluationRun, pixel_values: Tensor, labels: Tensor, logits: Tensor) -> list[dict[str, str]]:
    """The first misclassified images, if there are any."""
    wrong = logits.argmax(1) != labels
    mistakes = pixel_values[wrong][:40]
    if not len(mistakes):
        return []
    image_grid(run.processor.post_process(mistakes), columns=10).save(run.folder / "mistakes.png", optimize=True)
    names = run.model.config.id2label
    pairs = zip(labels[wrong][:40].tolist(), logits.argmax(1)[wrong][:40].tolist(), strict=True)
    listed = ", ".join(f"{names[true]}→{names[given]}" for true, given in pairs)
    return [{"file": "mistakes.png", "caption": f"Misclassified test images, row by row true→given: {listed}"}]


def evaluate_invertible_classifier(run: EvaluationRun) -> dict[str, Any]:
    """Test error, baselines, certificates and the inverse of an invertible classifier."""
    model: InvertibleResNetForImageClassification = run.model
    arguments, config = run.arguments, run.model.config
    model.eval()
    pixel_values, labels = reported_images(run)
    logits = predictions(model, {"pixel_values": pixel_values}, arguments.batch_size)["logits"]
    wrong = logits.argmax(1) != labels
    results = {
        "error": error_result(wrong),
        "cross_entropy": {
            "label": "cross-entropy",
            "unit": "nats",
            "value": torch.nn.functional.cross_entropy(logits, labels).item(),
        },
    }
    exactness, pictures = [], mistakes_picture(run, pixel_values, labels, logits)
    if config.lipschitz_coeff is not None:
        exactness, picture = inverse_report(run, pixel_values[: arguments.inverse_examples].to(model.device))
        pictures.append(picture)
    return {
        "description": f"{len(wrong):,} images of the {arguments.split} split.",
        "results": results,
        "baselines": baseline_errors(run),
        "notes": [error_note(wrong, "images")],
        "exactness": exactness,
        "pictures": pictures,
        "tables": coefficient_table(run.folder),
    }


def coefficient_table(folder: Path) -> list[dict[str, Any]]:
    """What scripts/compare_lipschitz.py left in the folder, if it was run."""
    file = folder / "lipschitz.json"
    if not file.exists():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    checks = dict.fromkeys(label for row in record["rows"] for label in row["exactness"])
    return [
        {
            "caption": "The same network and training under several Lipschitz coefficients, "
            f"{record['epochs']:g} epochs each, seed {record['seed']}, measured on the {record['split']} split, "
            f"on {record['hardware']}. `{record['command']}`",
            "columns": ["coefficient", *record["labels"].values(), *checks],
            "rows": [
                [row["coefficient"]]
                + [row[key] for key in record["labels"]]
                + [row["exactness"].get(label, "") for label in checks]
                for row in record["rows"]
            ],
        }
    ]


@torch.no_grad()
def inverse_report(run: EvaluationRun, pixel_values: Tensor) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Certified bounds, and images from the features of the classifier's last map."""
    model = run.model
    certificate = model.lipschitz_certificate()
    features = model.features(pixel_values)
    decoded, info = model.reconstruct(features, return_info=True)
    again = model.features(decoded)
    rows = [
        {"label": f"largest certified Lipschitz constant of {len(certificate)} blocks", "value": certificate.max().item()},
        {
            "label": f"largest error of {len(decoded)} images reconstructed from their features",
            "value": (decoded - pixel_values).abs().max().item(),
        },
        {"label": "largest difference of the reconstructions' features", "value": (again - features).abs().max().item()},
        {"label": "evaluations of g per block and image", "value": info.evaluations.double().mean().item()},
    ]
    shown = [*pixel_values[:10].cpu(), *decoded[:10].cpu()]
    image_grid(run.processor.post_process(torch.stack(shown)), columns=10).save(
        run.folder / "reconstructions.png", optimize=True
    )
    return rows, {
        "file": "reconstructions.png",
        "caption": "Test images, and below them what their last feature map gives back",
    }

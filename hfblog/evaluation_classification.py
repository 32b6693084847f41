"""Evaluation of image classifiers: accuracy beside trivial and linear baselines, certificates, and the way back."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm.auto import tqdm

from .models.flow import InvertibleResNetForImageClassification
from .pictures import image_grid
from .recipes import EvaluationRun


@torch.no_grad()
def predictions(model: torch.nn.Module, pixel_values: Tensor, batch_size: int) -> Tensor:
    """Logits ``(examples, num_labels)`` on the CPU."""
    batches = tqdm(pixel_values.split(batch_size), desc="Classifying", unit="batch")
    return torch.cat([model(batch.to(model.device)).logits.float().cpu() for batch in batches])


def baseline_errors(run: EvaluationRun) -> list[dict[str, Any]]:
    """Error rates in percent on the reported split of the largest class and of logistic regression on the pixels."""
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


def evaluate_classification(run: EvaluationRun) -> dict[str, Any]:
    """Test error, baselines, certificates and the inverse of an invertible classifier."""
    model: InvertibleResNetForImageClassification = run.model
    arguments, config = run.arguments, run.model.config
    model.eval()
    test = run.prepared[arguments.split][:]
    pixel_values, labels = (test[name][: arguments.max_examples] for name in ("pixel_values", "labels"))
    logits = predictions(model, pixel_values, arguments.batch_size)
    wrong = logits.argmax(1) != labels
    error = wrong.double().mean().item()
    results = {
        "error": {
            "label": "error rate",
            "unit": "%",
            "value": 100 * error,
            "stderr": 100 * math.sqrt(error * (1 - error) / len(wrong)),
        },
        "cross_entropy": {
            "label": "cross-entropy",
            "unit": "nats",
            "value": torch.nn.functional.cross_entropy(logits, labels).item(),
        },
    }
    notes = [f"{int(wrong.sum())} of {len(wrong):,} images are wrong; the standard error is that of a proportion."]
    exactness, pictures = [], []
    mistakes = pixel_values[wrong][:40]
    if len(mistakes):
        image_grid(run.processor.post_process(mistakes), columns=10).save(run.folder / "mistakes.png", optimize=True)
        pairs = zip(labels[wrong][:40].tolist(), logits.argmax(1)[wrong][:40].tolist(), strict=True)
        names = ", ".join(f"{config.id2label[true]}→{config.id2label[given]}" for true, given in pairs)
        pictures.append({"file": "mistakes.png", "caption": f"Misclassified test images, row by row true→given: {names}"})
    if config.lipschitz_coeff is not None:
        exactness, picture = inverse_report(run, pixel_values[: arguments.inverse_examples].to(model.device))
        pictures.append(picture)
    return {
        "description": f"{len(wrong):,} images of the {arguments.split} split.",
        "results": results,
        "baselines": baseline_errors(run),
        "notes": notes,
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

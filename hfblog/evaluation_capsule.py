"""Evaluation of capsules: errors, two objects in one image, and what routing does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .evaluation_classification import (
    TEXT_BASELINE_NOTE,
    baseline_errors,
    error_note,
    error_result,
    mistakes_picture,
    predictions,
    reported_images,
    reported_texts,
    text_baseline_errors,
)
from .models.capsule import CapsuleForImageClassification
from .pictures import image_grid
from .recipes import EvaluationRun
from .tables import mean_and_deviation

ABLATION_FILE = "routing.json"


def stacked_pairs(pixel_values: Tensor, labels: Tensor, shuffles: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images on top of a shuffled copy of themselves, without pairs of one class: the article's test.

    Returns:
        ``(pairs, channels, 2 * height, width)`` and their classes ``(pairs, 2)``, the upper one first.
    """
    generator = torch.Generator().manual_seed(seed)
    images, classes = [], []
    for _ in range(shuffles):
        other = torch.randperm(len(labels), generator=generator)
        kept = labels != labels[other]
        images.append(torch.cat([pixel_values, pixel_values[other]], 2)[kept])
        classes.append(torch.stack([labels, labels[other]], 1)[kept])
    return torch.cat(images), torch.cat(classes)


def two_object_hits(lengths: Tensor, classes: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Whether the two longest capsules are those of the two classes, and whether both exceed the threshold, too."""
    values, found = lengths.topk(2)
    hits = (found.sort(1).values == classes.sort(1).values).all(1)
    return hits, hits & (values > threshold).all(1)


def two_object_test(
    model: CapsuleForImageClassification, pixel_values: Tensor, labels: Tensor, arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The stacked images and classes of `stacked_pairs`, and what `two_object_hits` says of the model on them."""
    stacked, classes = stacked_pairs(pixel_values, labels, arguments.pair_shuffles, arguments.seed)
    lengths = predictions(model, {"pixel_values": stacked}, arguments.batch_size)["logits"]
    return stacked, classes, *two_object_hits(lengths, classes)


def takes_two_objects(model: CapsuleForImageClassification) -> bool:
    """Whether a model over single objects can be shown an image of twice the height."""
    config = model.config
    return config.encoder_config is None and (config.weight_layout == "shared" or config.pooling == "mean")


def object_errors(
    model: CapsuleForImageClassification, pixel_values: Tensor, labels: Tensor, arguments: Any
) -> dict[str, float]:
    """Error on single objects and accuracies on two, in percent: the figures of the ablation."""
    lengths = predictions(model, {"pixel_values": pixel_values}, arguments.batch_size)["logits"]
    *_, hits, certain = two_object_test(model, pixel_values, labels, arguments)
    return {
        "error": 100 * (lengths.argmax(1) != labels).double().mean().item(),
        "two_objects": 100 * hits.double().mean().item(),
        "two_objects_threshold": 100 * certain.double().mean().item(),
    }


def evaluate_capsules_on_images(run: EvaluationRun) -> dict[str, Any]:
    """Test error, the article's test on two objects, baselines, the course of the routing, pictures."""
    model: CapsuleForImageClassification = run.model
    arguments, config = run.arguments, run.model.config
    model.eval()
    pixel_values, labels = reported_images(run)
    routed = config.pooling == "routing"
    found = predictions(model, {"pixel_values": pixel_values}, arguments.batch_size, output_routing_objective=routed)
    logits = found["logits"]
    wrong = logits.argmax(1) != labels
    results = {"error": error_result(wrong)}
    notes = [error_note(wrong, "images")]
    pictures = mistakes_picture(run, pixel_values, labels, logits)
    if takes_two_objects(model):
        stacked, classes, hits, certain = two_object_test(model, pixel_values, labels, arguments)
        for key, label, values in (
            ("two_objects", "two objects found", hits),
            ("two_objects_threshold", "two objects found, both above 0.5", certain),
        ):
            share = values.double().mean().item()
            results[key] = {"label": label, "unit": "%", "value": 100 * share}
            if arguments.pair_shuffles == 1:
                results[key]["stderr"] = 100 * math.sqrt(share * (1 - share) / len(values))
        notes.append(
            f"Two objects: each test image on top of one of {arguments.pair_shuffles} shuffled copies of the test images "
            f"({len(classes):,} images of twice the height; pairs of one class left out). Found means that the two longest "
            "capsules are those of the two classes. Trained on single objects only."
        )
        if routed:
            pictures.append(routing_picture(run, stacked, classes))
    if model.decoder is not None:
        pictures += reconstruction_pictures(run, pixel_values, labels)
    return {
        "description": f"{len(wrong):,} images of the {arguments.split} split.",
        "results": results,
        "baselines": baseline_errors(run),
        "notes": notes,
        "exactness": routing_report(found["routing_objective"]) if routed else [],
        "pictures": pictures,
        "tables": ablation_table(run.folder),
        "loss": "validation loss",
    }


def routing_report(objective: Tensor) -> list[dict[str, Any]]:
    """The objective of K-means along the iterations, ``(examples, iterations)``."""
    rows = [
        {"label": f"routing objective after softmax {step} (nats an example, mean)", "value": value}
        for step, value in enumerate(objective.double().mean(0).tolist(), 1)
    ]
    if objective.shape[1] > 1:
        rises = objective.diff(dim=1).max().item()
        rows.append({"label": "largest rise of the objective in any example (kmeans: float32's rounding)", "value": rises})
    return rows


@torch.no_grad()
def routing_picture(run: EvaluationRun, stacked: Tensor, classes: Tensor, count: int = 8) -> dict[str, str]:
    """Images of two objects, and below them to which share each place goes to the two classes."""
    model = run.model
    images, classes = stacked[:count], classes[:count]
    output = model(images.to(model.device), output_routing_weights=True)
    height, width = model.config.conv_output_size(*images.shape[2:])
    groups = output.routing_weights.shape[2] // (height * width)
    maps = output.routing_weights.float().cpu().unflatten(2, (groups, height, width)).mean(2)
    figure = Figure(figsize=(count, 5.4), dpi=80, layout="constrained")
    axes = figure.subplots(3, count)
    names = model.config.id2label
    for column in range(count):
        axes[0, column].imshow(images[column].permute(1, 2, 0).squeeze(-1), cmap="gray")
        for row in (0, 1):
            label = int(classes[column, row])
            axes[1 + row, column].imshow(maps[column, label], cmap="viridis", vmin=0, vmax=1)
            length = output.logits[column, label].item()
            axes[1 + row, column].set_title(f"{names[label]}: {length:.2f}", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(run.folder / "routing.png")
    return {
        "file": "routing.png",
        "caption": "The first test pairs. Below each image the share of every place that routing gives to the class of the "
        "upper and of the lower object (dark 0, bright 1), with the lengths of their capsules",
    }


@torch.no_grad()
def reconstruction_pictures(run: EvaluationRun, pixel_values: Tensor, labels: Tensor) -> list[dict[str, str]]:
    """Test images with their reconstructions, and what single numbers of a capsule change."""
    model = run.model
    images, classes = pixel_values[:10].to(model.device), labels[:10].to(model.device)
    capsules = model(images).capsules
    shown = torch.cat([images, model.reconstruct(capsules)])
    image_grid(run.processor.post_process(shown), columns=10).save(run.folder / "reconstructions.png", optimize=True)
    moves = torch.linspace(-0.25, 0.25, 11, device=model.device)
    rows = []
    for row in range(min(8, model.config.capsule_dim)):
        moved = capsules[:1].repeat(len(moves), 1, 1)
        moved[:, classes[0], row] += moves
        rows.append(model.reconstruct(moved, classes[:1].expand(len(moves))))
    grid = image_grid(run.processor.post_process(torch.cat(rows)), columns=len(moves))
    grid.save(run.folder / "dimensions.png", optimize=True)
    return [
        {"file": "reconstructions.png", "caption": "Test images, and below them the drawing of their longest capsule"},
        {
            "file": "dimensions.png",
            "caption": "The drawing of one test image's capsule, one of its numbers moved from -0.25 to 0.25 in each row",
        },
    ]


def ablation_table(folder: Path) -> list[dict[str, Any]]:
    """What scripts/compare_routing.py left in the folder, if it was run."""
    file = folder / ABLATION_FILE
    if not file.exists():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    return [
        {
            "caption": f"What routing itself buys: {record['epochs']:g} epochs each, the last weights, seeds "
            f"{', '.join(map(str, record['seeds']))}; mean and standard deviation over the seeds, in percent, on the "
            f"{record['split']} split, on {record['hardware']}. The mean pooling has {record['num_parameters']['mean']:,} "
            f"parameters, the capsules {record['num_parameters']['routing']:,}. `{record['command']}`",
            "columns": ["routing", "softmaxes", *record["labels"].values()],
            "rows": [
                [row["routing"], row["iterations"]]
                + [mean_and_deviation([run[key] for run in row["runs"]]) for key in record["labels"]]
                for row in record["rows"]
            ],
        }
    ]


# --- texts ---


def evaluate_capsules_on_texts(run: EvaluationRun) -> dict[str, Any]:
    """Test error of a text classifier, baselines, and the tokens that routing sends to each class."""
    arguments, model, split = run.arguments, run.model, run.arguments.split
    model.eval()
    batches, labels, longest = reported_texts(run)
    wrong = predictions(model, batches, arguments.batch_size)["logits"].argmax(1) != labels
    return {
        "description": f"{len(wrong):,} texts of the {split} split, cut after {longest} tokens.",
        "results": {"error": error_result(wrong)},
        "baselines": text_baseline_errors(run),
        "notes": [error_note(wrong, "texts"), TEXT_BASELINE_NOTE],
        "exactness": [],
        "pictures": [],
        "tables": [token_table(run, batches)] if model.config.pooling == "routing" else [],
        "loss": "validation loss",
    }


@torch.no_grad()
def token_table(run: EvaluationRun, batches: list[dict[str, Tensor]], shown: int = 15, least: int = 30) -> dict[str, Any]:
    """Tokens that routing sends to each class with the largest share, on average over where they stand."""
    model, tokenizer = run.model, run.processor
    sums = torch.zeros(tokenizer.vocab_size, model.config.num_labels, dtype=torch.float64)
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.float64)
    for batch in batches:
        inputs = {name: values.to(model.device) for name, values in batch.items()}
        weights = model(**inputs, output_routing_weights=True).routing_weights.double().cpu().mT
        there = batch["attention_mask"].bool()
        tokens = batch["input_ids"][there]
        sums.index_add_(0, tokens, weights[there])
        counts.index_add_(0, tokens, torch.ones(len(tokens), dtype=torch.float64))
    frequent = (counts >= least).nonzero().flatten()
    frequent = frequent[~torch.isin(frequent, torch.tensor(tokenizer.all_special_ids))]
    shares = sums[frequent] / counts[frequent, None]
    rows = []
    for label, name in model.config.id2label.items():
        best = shares[:, label].argsort(descending=True)[:shown].tolist()
        words = tokenizer.convert_ids_to_tokens(frequent[best].tolist())
        rows.append([name, " ".join(f"{word} {shares[row, label]:.2f}" for word, row in zip(words, best, strict=True))])
    return {
        "caption": "Tokens by the share that routing gives to a class, the mean over where they stand in the texts of the "
        f"{run.arguments.split} split; tokens that occur at least {least} times",
        "columns": ["class", "tokens with the largest shares"],
        "rows": rows,
    }

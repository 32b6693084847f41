"""From an exported folder to metrics.json, pictures and a card.

Every figure is stated with the draws, seed, command, hardware and versions that gave it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import hub
from .evaluation_bottleneck import evaluate_vae, evaluate_vib_on_images, evaluate_vib_on_texts
from .evaluation_capsule import evaluate_capsules_on_images, evaluate_capsules_on_texts
from .evaluation_classification import evaluate_invertible_classifier
from .evaluation_contrastive import evaluate_nce_density, evaluate_nce_lm
from .evaluation_density import evaluate_density
from .evaluation_generation import evaluate_generation
from .evaluation_item_vectors import evaluate_item_vectors
from .evaluation_terms import evaluate_terms
from .models.bottleneck import VAEModel, VIBForImageClassification, VIBForSequenceClassification
from .models.capsule import CapsuleForImageClassification, CapsuleForSequenceClassification
from .models.conditional_ln_bert import ConditionalLNBertForGeneration
from .models.contrastive import MinEntropyEmbeddingForPreTraining, NCEDensityModel, NCEForCausalLM
from .models.flow import FlowPreTrainedModel, InvertibleResNetForImageClassification
from .models.term_miner import TermMinerModel
from .pictures import curve_picture
from .recipes import (
    EvaluationRun,
    command_line,
    load_data_of,
    load_processor,
    load_recipe,
    prepare_splits,
    registered_models,
)
from .tables import comparison_table, read_comparisons


def evaluate(
    folder: str | Path,
    data: str | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    with_baselines: bool = True,
) -> dict[str, Any]:
    """Measure an exported model on its recipe's data, and write metrics.json, pictures and the card into its folder.

    Args:
        folder: what `hfblog.training.train` exported.
        data: data set in place of the recipe's, by name, Hub id or folder.
        overrides: ``key=value`` for fields of [`EvaluationArguments`].
        with_baselines: whether baselines of classifiers are measured beside the model.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: the folder is not a model, was not trained by a recipe, or an override is not known.
    """
    folder = Path(folder)
    hub.check_folder(folder)
    recipe_file = folder / "recipe.yaml"
    if not recipe_file.exists():
        raise ValueError(f"{folder} has no recipe.yaml: only a model trained by a recipe says what it is evaluated on")
    settings = [f"evaluation.{override}" for override in overrides]
    recipe = load_recipe(recipe_file, settings + ([f"data.name={data}"] if data is not None else []))
    arguments = recipe.evaluation_arguments(**recipe.evaluation)

    start = time.perf_counter()
    model = recipe.auto_class.from_pretrained(folder)
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    processor = load_processor(recipe, folder)
    splits = load_data_of(recipe)
    if arguments.split not in splits:
        raise ValueError(f"evaluation.split={arguments.split!r} must be one of {', '.join(splits)}")
    prepared = prepare_splits(splits, splits, recipe, processor)

    run = EvaluationRun(model, processor, splits, prepared, arguments, folder, recipe, with_baselines)
    measured = find_evaluator(model)(run)
    training_file = folder / "training.json"
    training = json.loads(training_file.read_text(encoding="utf-8")) if training_file.exists() else None
    loss = measured.pop("loss", "validation loss (nats)")
    if training and training["curve"]:
        curve_picture(training["curve"], folder / "curve.png", loss)
        noise = ", under one fixed draw of the noise" if getattr(model.config, "dequantization", "") == "uniform" else ""
        measured["pictures"].append({"file": "curve.png", "caption": f"{loss.capitalize()} by epoch{noise}"})
    published = [
        {("label" if key == "name" else key): value for key, value in row.items()} for row in recipe.card.get("published", [])
    ]
    tables = [comparison_table(record) for record in read_comparisons(folder).values()] + measured.pop("tables", [])
    metrics = {
        "name": recipe.name,
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "data": {
            "name": recipe.data["name"],
            "split": arguments.split,
            "num_examples": len(prepared[arguments.split]),
            "description": measured.pop("description"),
            "arguments": recipe.data,
        },
        "results": measured.pop("results"),
        "comparisons": [*measured.pop("baselines"), *published],
        **measured,
        "tables": tables,
        "settings": vars(arguments),
        "training": training,
        "command": command_line(),
        "hardware": hardware(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (folder / hub.METRICS_FILE).write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    hub.write_card(folder)
    return metrics


def report(metrics: dict[str, Any], folder: str | Path) -> str:
    """What was measured and what to do next, for the screen."""
    lines = [f"\n{metrics['name']}: {metrics['num_parameters']:,} parameters, {metrics['data']['description']}"]
    for key, result in metrics["results"].items():
        others = [f"{row['label']} {hub.format_number(row[key])}" for row in metrics["comparisons"] if key in row]
        lines.append(
            f"  {result['label']} ({result['unit']}): {hub.format_number(result['value'])}"
            + (f"   [{', '.join(others)}]" if others else "")
        )
    lines += [f"  {check['label']}: {hub.format_number(check['value'])}" for check in metrics["exactness"]]
    auto_class, kind = next(
        (name, kind)
        for name, kind in registered_models()[metrics["model_type"]].items()
        if kind.__name__ == metrics["architecture"]
    )
    draw = None
    if auto_class == "AutoModelForCausalLM":
        draw = f"python scripts/generate.py {folder} --help"
    elif hasattr(kind, "sample"):
        picture = "samples.png" if (Path(folder) / "preprocessor_config.json").exists() else "samples.csv"
        draw = f"python scripts/sample.py {folder} --num-samples 64 --output {picture}"
    load = f"from transformers import {auto_class} as A; print(A.from_pretrained('{folder}', trust_remote_code=True))"
    lines.append(f"""
The model is in {folder}: weights, code, processor, card (README.md), metrics.json and pictures. Next:
  load    python -c "{load}"{f"{chr(10)}  sample  {draw}" if draw else ""}
  push    python scripts/push_to_hub.py {folder} YOUR_NAME/{metrics["name"]}""")
    return "\n".join(lines)


def find_evaluator(model: torch.nn.Module) -> Callable[..., dict[str, Any]]:
    """The function that measures a model of this kind."""
    for kind, evaluator in EVALUATORS.items():
        if isinstance(model, kind):
            return evaluator
    raise ValueError(f"no evaluation is known for {type(model).__name__}")


EVALUATORS = {
    VIBForImageClassification: evaluate_vib_on_images,
    VIBForSequenceClassification: evaluate_vib_on_texts,
    VAEModel: evaluate_vae,
    CapsuleForImageClassification: evaluate_capsules_on_images,
    CapsuleForSequenceClassification: evaluate_capsules_on_texts,
    InvertibleResNetForImageClassification: evaluate_invertible_classifier,
    FlowPreTrainedModel: evaluate_density,
    ConditionalLNBertForGeneration: evaluate_generation,
    NCEDensityModel: evaluate_nce_density,
    NCEForCausalLM: evaluate_nce_lm,
    MinEntropyEmbeddingForPreTraining: evaluate_item_vectors,
    TermMinerModel: evaluate_terms,
}


# --- where it ran ---


def hardware() -> str:
    """The machine in words: processor, cores and memory, and the accelerator if there is one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    text = f"{os.cpu_count()} cores of {model}"
    if torch.cuda.is_available():
        text = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {text}"
    return text


def versions() -> dict[str, str]:
    packages = ("hfblog", "torch", "transformers", "accelerate", "datasets", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}

"""Variants of a recipe under several seeds, trained and measured alike."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import evaluation, recipes, training

# Nothing is chosen among epochs: every run reports its last weights.
LAST_WEIGHTS = (
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "training.load_best_model_at_end=false",
)


@dataclass
class Variant:
    """A row of a comparison.

    Args:
        label: its name in the table.
        overrides: ``section.key=value`` over the recipe; ``{seed}`` in a value stands for the seed.
    """

    label: str
    overrides: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """``"label: section.key=value section.key=value"``; a label alone is the recipe as it is."""
        label, _, overrides = text.partition(":")
        if not label.strip():
            raise ValueError(f"a variant has the form 'label: section.key=value ...', got {text!r}")
        return cls(label.strip(), overrides.split())

    @property
    def slug(self) -> str:
        return re.sub(r"\W+", "_", self.label).strip("_")


def run_comparison(
    recipe_file: str | Path,
    variants: list[Variant],
    seeds: list[int],
    work: str | Path,
    overrides: list[str] | tuple[str, ...] = (),
) -> dict[str, Any]:
    """Train and measure every variant under every seed.

    Args:
        work: folder of the models. A run that it already holds whole is not repeated, so an interrupted comparison goes on.

    Returns:
        The record that `hfblog.tables.comparison_table` reads: command, hardware, and the figures of every run.

    Raises:
        ValueError: an unknown override, two variants of one name, or a folder whose run was another's.
    """
    slugs = [variant.slug for variant in variants]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"the variants need names that differ in letters or digits, got {', '.join(slugs)}")
    # all of them are read before the first is trained: a typing error must not show hours later
    planned = [
        [
            recipes.load_recipe(
                recipe_file,
                [*overrides, *(text.replace("{seed}", str(seed)) for text in variant.overrides), f"training.seed={seed}"],
            )
            for seed in seeds
        ]
        for variant in variants
    ]
    rows, labels, truths = [], {}, {}
    for variant, its_recipes in zip(variants, planned, strict=True):
        runs = []
        for seed, recipe in zip(seeds, its_recipes, strict=True):
            folder = Path(work) / f"{variant.slug}-{seed}"
            written = folder / "recipe.yaml"
            if written.exists() and written.read_text(encoding="utf-8") != recipe.to_yaml():
                raise ValueError(f"{folder} holds the run of another recipe: name another --work, or remove it")
            if not written.exists() or not (folder / "training.json").exists():
                training.train(recipe, folder, overwrite=True)
            file = folder / "metrics.json"
            metrics = (
                json.loads(file.read_text(encoding="utf-8"))
                if file.exists()
                else evaluation.evaluate(folder, with_baselines=False)
            )
            labels |= {key: f"{result['label']} ({result['unit']})" for key, result in metrics["results"].items()}
            truths |= {key: result["truth"] for key, result in metrics["results"].items() if "truth" in result}
            runs.append({key: result["value"] for key, result in metrics["results"].items()})
            print(f"{variant.label}, seed {seed}: {json.dumps(runs[-1])}", flush=True)
        rows.append({"label": variant.label, "num_parameters": metrics["num_parameters"], "runs": runs})
    return {
        "command": recipes.command_line(),
        "seeds": seeds,
        "epochs": metrics["training"]["epochs"],
        "split": metrics["data"]["split"],
        "hardware": evaluation.hardware(),
        "labels": labels,
        "truths": truths,
        "rows": rows,
    }

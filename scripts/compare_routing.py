"""What routing itself buys: routing type x number of softmaxes x seeds, beside mean pooling with as many parameters.

    python scripts/compare_routing.py scripts/recipes/capsule_digits.yaml --into outputs/capsule_digits
    python scripts/compare_routing.py scripts/recipes/capsule_mnist.yaml --data ylecun/mnist --seeds 0 1 2 \
        training.num_train_epochs=5

Every model is trained by the recipe to its end and measured once on the test split: single objects, and two in one image that
were never trained on. Writes routing.json into a trained folder, from where scripts/evaluate.py takes the table into its
card. A run that --work already holds is not trained again, so an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hfblog import comparison, evaluation, evaluation_capsule, recipes, training  # noqa: E402

LABELS = {
    "error": "error rate (%)",
    "two_objects": "two objects found (%)",
    "two_objects_threshold": "both above 0.5 (%)",
}
# Nothing is chosen among epochs: every run reports its last weights.
NO_CHOICE = [*comparison.LAST_WEIGHTS, "training.logging_strategy=no"]


def settings(types: list[str], iterations: list[int]) -> list[tuple[str, int | str, list[str]]]:
    """Name, number of softmaxes and overrides of each row; one softmax is the same for all types, no routing."""
    rows: list[tuple[str, int | str, list[str]]] = [("mean pooling", "", ["model.pooling=mean"])]
    if 1 in iterations:
        rows.append(("none: uniform coupling", 1, ["model.routing_iterations=1"]))
    for kind in types:
        for count in iterations:
            if count > 1:
                rows.append((kind, count, [f"model.routing_type={kind}", f"model.routing_iterations={count}"]))
    return rows


def measure(recipe: recipes.Recipe, folder: Path) -> dict[str, float]:
    """Train the recipe into a folder, unless that was done, and measure it on the test split."""
    file = folder / "measured.json"
    if not file.exists():
        training.train(recipe, folder, overwrite=True)
        model = recipe.auto_class.from_pretrained(folder)
        splits = recipes.load_data_of(recipe)
        arguments = recipe.evaluation_arguments(**recipe.evaluation)
        held_out = recipes.prepare_split(splits, arguments.split, recipe, recipes.load_processor(recipe, folder))[:]
        figures = evaluation_capsule.object_errors(model, held_out["pixel_values"], held_out["labels"], arguments)
        file.write_text(json.dumps(figures | {"num_parameters": model.num_parameters()}), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe of capsules over images with shared weights")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the recipe's")
    parser.add_argument("--data", help="data set in place of the recipe's")
    parser.add_argument("--types", nargs="+", default=["kmeans", "replace", "hinton"], metavar="TYPE")
    parser.add_argument("--iterations", nargs="+", type=int, default=[1, 2, 3, 5], metavar="R")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--into", help="trained folder that gets routing.json; the work folder by default")
    parser.add_argument("--work", default="outputs/compare_routing", help="folder of the models")
    arguments = parser.parse_intermixed_args()
    overrides = arguments.overrides + ([f"data.name={arguments.data}"] if arguments.data else []) + NO_CHOICE
    rows = []
    try:
        for name, iterations, changes in settings(arguments.types, arguments.iterations):
            runs = []
            for seed in arguments.seeds:
                recipe = recipes.load_recipe(arguments.recipe, [*overrides, *changes, f"training.seed={seed}"])
                if recipe.config_class.model_type != "capsule" or not recipe.classifies_images:
                    raise ValueError(f"{arguments.recipe} is not a recipe of capsules over images")
                folder = Path(arguments.work) / f"{name.partition(':')[0].replace(' ', '_')}-{iterations or 0}-{seed}"
                runs.append(measure(recipe, folder))
                print(f"{name}, {iterations}, seed {seed}: {json.dumps(runs[-1])}", flush=True)
            rows.append({"routing": name, "iterations": iterations, "runs": runs})
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    record = {
        "command": recipes.command_line(),
        "seeds": arguments.seeds,
        "epochs": recipe.training.get("num_train_epochs", 3),
        "split": recipe.evaluation_arguments(**recipe.evaluation).split,
        "hardware": evaluation.hardware(),
        "labels": LABELS,
        "num_parameters": {kind: row["runs"][0]["num_parameters"] for kind, row in (("mean", rows[0]), ("routing", rows[-1]))},
        "rows": rows,
    }
    target = Path(arguments.into or arguments.work) / evaluation_capsule.ABLATION_FILE
    target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()

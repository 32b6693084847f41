"""Train a classifier under several Lipschitz coefficients, all else equal, and put the table into its card.

    python scripts/compare_lipschitz.py scripts/recipes/invertible_resnet_mnist_classifier.yaml --data ylecun/mnist \
        --into outputs/invertible_resnet_mnist_classifier

The coefficient none is the same network without a bound. Writes lipschitz.json into a trained folder, from where
scripts/evaluate.py takes the table into its card. A folder of --work that already holds a trained model is not trained
again, so an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hfblog import evaluation, recipes, training  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe of an invertible image classifier")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the recipe's")
    parser.add_argument("--data", help="data set in place of the recipe's")
    parser.add_argument("--coefficients", nargs="+", default=["none", "0.9", "0.5"], metavar="c")
    parser.add_argument("--into", help="trained folder that gets lipschitz.json; the work folder by default")
    parser.add_argument("--work", default="outputs/compare_lipschitz", help="folder of the models")
    arguments = parser.parse_intermixed_args()
    overrides = arguments.overrides + ([f"data.name={arguments.data}"] if arguments.data else [])
    rows = []
    try:
        for name in arguments.coefficients:
            coefficient = "null" if name == "none" else name
            recipe = recipes.load_recipe(arguments.recipe, [*overrides, f"model.lipschitz_coeff={coefficient}"])
            if not recipe.classifies_images:
                raise ValueError(f"{arguments.recipe} is not a recipe of an image classifier")
            folder = Path(arguments.work) / name
            if not (folder / "training.json").exists():
                training.train(recipe, folder, overwrite=True)
            metrics = evaluation.evaluate(folder)
            found = {key: result["value"] for key, result in metrics["results"].items()}
            inverse = {row["label"]: row["value"] for row in metrics["exactness"]}
            rows.append({"coefficient": name, **found, "exactness": inverse})
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    record = {
        "command": recipes.command_line(),
        "seed": recipe.training.get("seed", 0),
        "epochs": metrics["training"]["epochs"],
        "split": metrics["data"]["split"],
        "hardware": evaluation.hardware(),
        "labels": {key: f"{result['label']} ({result['unit']})" for key, result in metrics["results"].items()},
        "rows": rows,
    }
    target = Path(arguments.into or arguments.work) / "lipschitz.json"
    target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=2))
    print(target)


if __name__ == "__main__":
    main()

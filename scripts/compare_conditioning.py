"""Compare four ways to give a condition to BERT, with the same data, steps, seed and everything else.

    python scripts/compare_conditioning.py scripts/recipes/conditional_ln_bert_reviews.yaml --steps 900 \
        --into outputs/conditional_ln_bert_reviews model.hidden_size=128

layer_norm (the article), prefix_token (CTRL), embedding, pseudo_self_attention (Encoder-Agnostic). Writes conditioning.json
into a trained folder, from where scripts/evaluate.py takes the table into its card. Training and sampling speed are timed
afterwards, in turns, on the same batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from hfblog import evaluation, recipes, training  # noqa: E402
from hfblog.models.conditional_ln_bert.configuration_conditional_ln_bert import CONDITIONINGS  # noqa: E402


def time_in_turns(folders: dict[str, Path], recipe: recipes.Recipe, rounds: int) -> dict[str, tuple[float, float]]:
    """Median tokens a second in training and in sampling, each way in turn in every round."""
    data = recipes.load_data_of(recipe)
    tokenizer = recipes.load_processor(recipe, next(iter(folders.values())))
    prepared = recipes.prepare_split(data, "validation", recipe, tokenizer)
    batch = recipes.data_collator(recipe, tokenizer)([prepared[row] for row in range(32)])
    models = {way: recipe.auto_class.from_pretrained(folder, **recipe.kernel_settings) for way, folder in folders.items()}
    optimizers = {way: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) for way, model in models.items()}
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in models}
    classes = torch.arange(32) % models["layer_norm"].config.attribute_sizes[0]
    for _ in range(rounds + 1):
        for way, model in models.items():
            model.train()
            start = time.perf_counter()
            for _ in range(3):
                with torch.autocast("cpu", torch.bfloat16, enabled=bool(recipe.training.get("bf16"))):
                    loss = model(**batch).loss
                loss.backward()
                optimizers[way].step()
                optimizers[way].zero_grad()
            trained = 3 * int(batch["attention_mask"].sum()) / (time.perf_counter() - start)
            model.eval()
            start = time.perf_counter()
            model.generate(condition_ids=classes, min_new_tokens=48, max_new_tokens=48, do_sample=True)
            figures[way].append((trained, 32 * 48 / (time.perf_counter() - start)))
    return {way: tuple(map(statistics.median, zip(*found[1:], strict=True))) for way, found in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe of a conditional language model with one class column")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the recipe's")
    parser.add_argument("--data", help="data set in place of the recipe's")
    parser.add_argument("--steps", type=int, default=900, help="training steps of each way")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--into", help="trained folder that gets conditioning.json; the work folder by default")
    parser.add_argument("--work", default="outputs/compare_conditioning", help="folder of the four models")
    arguments = parser.parse_intermixed_args()
    overrides = arguments.overrides + [f"training.max_steps={arguments.steps}"]
    if arguments.data:
        overrides.append(f"data.name={arguments.data}")
    rows, folders = [], {}
    try:
        for way in CONDITIONINGS:
            found = []
            for seed in arguments.seeds:
                recipe = recipes.load_recipe(
                    arguments.recipe, [*overrides, f"model.conditioning={way}", f"training.seed={seed}"]
                )
                folder = training.train(recipe, Path(arguments.work) / f"{way}-{seed}", overwrite=True)
                found.append(evaluation.evaluate(folder)["results"])
                folders.setdefault(way, folder)
            model = recipe.auto_class.from_pretrained(folders[way])
            added = sum(parameter.numel() for _, parameter in model.condition_parameters())
            means = {key: statistics.mean(results[key]["value"] for results in found) for key in found[0]}
            rows.append({"way": way, "added_parameters": added} | means)
        speeds = time_in_turns(folders, recipes.load_recipe(arguments.recipe, overrides), rounds=5)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    for row in rows:
        row["training_tokens_per_second"], row["sampling_tokens_per_second"] = speeds[row["way"]]
    labels = {key: result["label"].removeprefix("test ") for key, result in found[0].items()}
    record = {
        "command": recipes.command_line(),
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "split": recipe.evaluation.get("split", "test"),
        "hardware": evaluation.hardware(),
        "labels": labels,
        "rows": rows,
    }
    target = Path(arguments.into or arguments.work) / "conditioning.json"
    target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=2))
    print(f"{target}")


if __name__ == "__main__":
    main()

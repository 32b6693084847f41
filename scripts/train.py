"""Train a recipe, evaluate it, and leave a whole model folder.

    accelerate launch scripts/train.py scripts/recipes/nice_flow_digits.yaml
    accelerate launch scripts/train.py scripts/recipes/nice_flow_mnist.yaml --data ylecun/mnist
    accelerate launch scripts/train.py scripts/recipes/nice_flow_digits.yaml training.num_train_epochs=5 --overwrite
    accelerate launch scripts/train.py scripts/recipes/nice_flow_digits.yaml training.resume_from_checkpoint=true

Any key of a recipe can be overridden as section.key=value. See scripts/accelerate/ for several processes and GPUs.
"""

from __future__ import annotations

import argparse
import os
import sys

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from hfblog import evaluation, recipes, training  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file of scripts/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the recipe's")
    parser.add_argument("--data", help="data set in place of the recipe's: a name, a Hub id or a local folder")
    parser.add_argument("--output-dir", help="default: outputs/<recipe name>")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in the output folder")
    parser.add_argument("--no-evaluation", action="store_true", help="train and export only")
    arguments = parser.parse_intermixed_args()
    overrides = arguments.overrides + ([f"data.name={arguments.data}"] if arguments.data else [])
    try:
        recipe = recipes.load_recipe(arguments.recipe, overrides)
        folder = training.train(recipe, arguments.output_dir, overwrite=arguments.overwrite)
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, training.LaunchError) as error:
        sys.exit(f"error: {error}")
    finally:
        # A process that ends with the group's threads running may abort, after all is written.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if int(os.environ.get("RANK", 0)) != 0 or arguments.no_evaluation:
        return
    print(evaluation.report(evaluation.evaluate(folder), folder))


if __name__ == "__main__":
    main()

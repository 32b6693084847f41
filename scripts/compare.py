"""Train variants of a recipe under several seeds, all else equal, and put the table into the recipe's card.

    python scripts/compare.py scripts/recipes/vib_reviews.yaml --name twin --caption "With and without a bottleneck." \
        --variant "bottleneck" --variant "deterministic twin: model.bottleneck=none" --seeds 0 1 2 3 4 \
        --into outputs/vib_reviews

A variant is "label: section.key=value ..."; {seed} in a value stands for the seed. Writes comparison-NAME.json into a trained
folder, from where scripts/evaluate.py takes the table into its card. A run that --work already holds is not repeated, so an
interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hfblog import comparison  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file of scripts/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values in place of the recipe's, for all")
    parser.add_argument("--data", help="data set in place of the recipe's: a name, a Hub id or a local folder")
    parser.add_argument("--variant", action="append", required=True, metavar="'label: section.key=value ...'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--name", required=True, help="of the comparison, in file names")
    parser.add_argument("--caption", default="Variants of the recipe.", help="first sentence under the table")
    parser.add_argument("--last-weights", action="store_true", help="report the last epoch instead of the best by validation")
    parser.add_argument("--into", help="trained folder that gets the record; the work folder by default")
    parser.add_argument("--work", help="folder of the models; default: outputs/RECIPE_NAME")
    arguments = parser.parse_intermixed_args()
    work = Path(arguments.work or f"outputs/{Path(arguments.recipe).stem}_{arguments.name}")
    overrides = arguments.overrides + ([f"data.name={arguments.data}"] if arguments.data else [])
    overrides += comparison.LAST_WEIGHTS if arguments.last_weights else []
    try:
        variants = [comparison.Variant.parse(text) for text in arguments.variant]
        record = comparison.run_comparison(arguments.recipe, variants, arguments.seeds, work, overrides)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    target = Path(arguments.into or work) / f"comparison-{arguments.name}.json"
    target.write_text(json.dumps({"caption": arguments.caption} | record, indent=2) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()

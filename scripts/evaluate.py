"""Measure a trained folder on its recipe's test split: metrics.json, pictures and card.

    python scripts/evaluate.py outputs/nice_flow_digits
    python scripts/evaluate.py outputs/nice_flow_mnist --data ylecun/mnist num_draws=4
    python scripts/evaluate.py outputs/nice_flow_digits --publish-card

Fields of hfblog.evaluation.EvaluationArguments can be overridden as key=value.
"""

from __future__ import annotations

import argparse
import os
import sys

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hfblog import evaluation, hub  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what scripts/train.py left")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="evaluation settings in place of the recipe's")
    parser.add_argument("--data", help="data set in place of the recipe's: a name, a Hub id or a local folder")
    parser.add_argument("--publish-card", action="store_true", help="copy card, metrics and pictures to model_cards/")
    arguments = parser.parse_intermixed_args()
    try:
        metrics = evaluation.evaluate(arguments.folder, arguments.data, overrides=arguments.overrides)
        if arguments.publish_card:
            print(f"card: {hub.publish_card(arguments.folder)}")
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(evaluation.report(metrics, arguments.folder))


if __name__ == "__main__":
    main()

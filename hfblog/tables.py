"""Tables of cards: comparisons under several seeds."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

COMPARISON_FILES = "comparison-*.json"


def mean_and_deviation(values: list[float], digits: int = 2) -> str:
    """``mean ± standard deviation``; the mean alone of one value."""
    mean = statistics.mean(values)
    digits = digits if abs(mean) >= 1 else digits + 2
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _errors(runs: list[dict[str, float]], key: str, truth: float) -> tuple[float | str, float | str]:
    """Root of the mean squared error, and the largest error; nothing where a run has no such figure."""
    if not all(key in run for run in runs):
        return "", ""
    errors = [abs(run[key] - truth) for run in runs]
    return math.sqrt(statistics.mean(error**2 for error in errors)), max(errors)


def comparison_table(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `run_comparison` as a table of a card; where the truth is known, with the errors."""
    seeds, labels = record["seeds"], record["labels"]
    spread = f", mean and standard deviation over the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    single = f", seed {seeds[0]}" if len(seeds) == 1 else ""
    truths = record.get("truths", {})
    errors = [name for key in truths for name in (f"RMSE of {labels[key]}", "largest error")]
    return {
        "caption": f"{record['caption']} {record['epochs']:g} epochs each{single}{spread}; on the {record['split']} split, on "
        f"{record['hardware']}. `{record['command']}`",
        "columns": ["", "parameters", *labels.values(), *errors],
        "rows": [
            [row["label"], row["num_parameters"]]
            + [
                mean_and_deviation([run[key] for run in row["runs"]]) if all(key in run for run in row["runs"]) else ""
                for key in labels
            ]
            + [error for key, truth in truths.items() for error in _errors(row["runs"], key, truth)]
            for row in record["rows"]
        ],
    }


def read_comparisons(folder: Path) -> dict[str, dict[str, Any]]:
    """The records that scripts/compare.py left in a folder, by name."""
    files = sorted(folder.glob(COMPARISON_FILES))
    return {file.stem.partition("-")[2]: json.loads(file.read_text(encoding="utf-8")) for file in files}

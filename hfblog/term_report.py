"""Mined terms for the eye: a table on the screen, and a page with the evidence for each term."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import jinja2

from .models.term_miner import TermMinerModel
from .models.term_miner.term_files import whole_file

# What a table shows of a term, and what its heading says.
COLUMNS = {
    "term": "term",
    "score": "score",
    "count": "count",
    "background_count": "elsewhere",
    "document_frequency": "documents",
    "cohesion": "cohesion",
    "left_entropy": "left H",
    "right_entropy": "right H",
    "burstiness": "burstiness",
    "cost_reduction": "cost reduction",
}
UNITS = {
    "score": "the higher, the earlier in the list",
    "cohesion": "nats by which its parts stand together more often than by chance",
    "left_entropy": "nats, of what stands to its left",
    "right_entropy": "nats, of what stands to its right",
    "burstiness": "nats by which it gathers in few documents",
    "cost_reduction": "nats a symbol by which it makes a text cheaper",
    "background_count": "occurrences in the backgrounds",
}

LABELLED = 40
PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 720, 320, 45


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def short(value: Any) -> str:
    """Three significant digits; whole numbers as they are."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_table(rows: Sequence[dict[str, Any]], file: IO[str] | None = None) -> None:
    """Terms in aligned columns, those that a miner without a background lacks left out.

    Args:
        rows: of [`TermMinerModel.extract_terms`].
        file: standard output by default.
    """
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    cells = [[COLUMNS[name] for name in names]] + [[short(row.get(name)) for name in names] for row in rows]
    widths = [max(width(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        padded = [
            cell + " " * (size - width(cell)) if column == 0 else " " * (size - width(cell)) + cell
            for column, (cell, size) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(padded).rstrip(), file=file or sys.stdout)


def find_examples(
    texts: Iterable[str], terms: Sequence[str], each: int = 3, around: int = 20, level: str = "character"
) -> dict[str, list[tuple]]:
    """Terms in their context, from the first texts that hold them.

    Args:
        each: examples a term.
        around: characters to either side.
        level: ``"word"`` where terms are whole words, and capitals are small letters in them.

    Returns:
        For each term that was found triples: what stands before, the term as it stands there, what stands behind.
    """
    found: dict[str, list[tuple]] = {}
    wanted = set(terms)
    for text in texts:
        if not wanted:
            break
        searched = text.lower() if level == "word" else text
        if len(searched) != len(text):  # a letter whose small form is two
            searched = text
        for term in [term for term in wanted if term in searched]:
            place = _whole(searched, term) if level == "word" else searched.index(term)
            if place < 0:
                continue
            end = place + len(term)
            example = (text[max(0, place - around) : place], text[place:end], text[end : end + around])
            found.setdefault(term, []).append(example)
            if len(found[term]) == each:
                wanted.discard(term)
    return found


def _whole(text: str, term: str) -> int:
    """Where a term first stands as whole words, or -1."""
    match = re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text)
    return match.start() if match else -1


def _points(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where terms lie in a picture of the score by the count, on a logarithmic scale."""
    if not rows:
        return []
    across = [math.log10(max(1, row["count"])) for row in rows]
    up = [row["score"] for row in rows]

    def scale(value: float, values: list[float], size: int) -> float:
        low, high = min(values), max(values)
        share = (value - low) / (high - low) if high > low else 0.5
        return PLOT_MARGIN + share * (size - 2 * PLOT_MARGIN)

    return [
        {
            "x": round(scale(x, across, PLOT_WIDTH), 1),
            "y": round(PLOT_HEIGHT - scale(y, up, PLOT_HEIGHT), 1),
            "term": row["term"],
            "count": row["count"],
            "label": place < LABELLED,
        }
        for place, (row, x, y) in enumerate(zip(rows, across, up, strict=True))
    ]


def write_report(
    miner: TermMinerModel,
    rows: Sequence[dict[str, Any]],
    path: str | Path,
    summary: dict[str, Any],
    examples: dict[str, list[tuple]] | None = None,
) -> None:
    """One HTML file, complete in itself: the terms in a table that sorts and filters, and behind each its evidence.

    Args:
        miner: gave the rows.
        rows: of [`TermMinerModel.extract_terms`].
        path: of the page; it appears when it is whole.
        summary: facts for the head of the page.
        examples: of `find_examples`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hfblog", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": short, "zip": zip}
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    details = [miner.explain(row["term"]) for row in rows]
    page = environment.get_template("term_report.html.jinja").render(
        rows=rows,
        details=details,
        names=names,
        columns=COLUMNS,
        units=UNITS,
        summary=summary,
        examples=examples or {},
        points=_points(rows),
        plot={"width": PLOT_WIDTH, "height": PLOT_HEIGHT},
    )
    with whole_file(path) as file:
        file.write(page)


__all__ = ["find_examples", "print_table", "write_report"]

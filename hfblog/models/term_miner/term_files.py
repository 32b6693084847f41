"""Mined terms as files: CSV, JSON, a user dictionary of jieba."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

SUFFIXES = (".csv", ".json", ".txt")


@contextlib.contextmanager
def whole_file(path: str | Path, **settings: Any) -> Iterator[IO[str]]:
    """A text file that appears under its name when all of it is written, and not at all if anything fails.

    Args:
        path: the folder must exist.
        settings: of `open`, UTF-8 by default.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(handle, "w", **({"encoding": "utf-8"} | settings)) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_terms(rows: Sequence[dict[str, Any]], path: str | Path) -> int:
    """Write terms to a file, in their order.

    Args:
        rows: of [`TermMinerModel.extract_terms`].
        path: ``.csv`` (UTF-8, with a header), ``.json`` (one array), or ``.txt``, a user dictionary that jieba loads: term,
            count, and the tag of a proper noun; terms with spaces, which cannot stand in one, are left out.

    Returns:
        How many terms were written.

    Raises:
        ValueError: another ending.
        OSError: it cannot be written; what stood there before is whole.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{str(path)!r} must end in {', '.join(SUFFIXES)} (the last is jieba's dictionary)")
    with whole_file(path, newline="") as file:
        if suffix == ".json":
            json.dump(list(rows), file, ensure_ascii=False, indent=1)
            file.write("\n")
        elif suffix == ".csv":
            plain = [{name: value for name, value in row.items() if not isinstance(value, (list, dict))} for row in rows]
            writer = csv.DictWriter(file, list(plain[0]) if plain else ["term"])
            writer.writeheader()
            writer.writerows(plain)
        else:
            rows = [row for row in rows if not any(map(str.isspace, row["term"]))]
            file.writelines(f"{row['term']} {max(1, row['count'])} nz\n" for row in rows)
    return len(rows)


__all__ = ["whole_file", "write_terms"]

"""Any text that somebody has, as a stream of documents: text files, JSON lines, CSV, parquet, folders, standard input.

Nothing is read before it is asked for, and no file is held in memory.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils.logging import tqdm

STANDARD_INPUT = "-"

COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
TEXT = (".txt", ".text", ".md", "")
JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLES = {".csv": ",", ".tsv": "\t"}
KNOWN = (*TEXT, *JSON_LINES, *TABLES, ".parquet")

# Where the text is, if nobody says.
COLUMNS = ("text", "content", "body", "document")

BLOCK = 2**22


def read_documents(
    sources: Iterable[str | Path],
    *,
    column: str | None = None,
    encoding: str = "utf-8",
    max_documents: int | None = None,
    progress: bool = False,
) -> Iterator[str]:
    """The documents of files and folders, one after the other.

    Args:
        sources: each a text file, where a line is a document; JSON lines, or one array (``.jsonl``, ``.json``); a table with
            a header (``.csv``, ``.tsv``); parquet; a folder, with all such files in it; or ``"-"``, lines of standard input.
            All but parquet may be compressed (``.gz``, ``.bz2``, ``.xz``).
        column: where the text is, in JSON and tables; the first of text, content, body and document that is there by default.
        encoding: of text; a byte order mark of UTF-8 is dropped.
        max_documents: stop after so many.
        progress: whether a bar shows the bytes that were read.

    Raises:
        ValueError: a source that is not there, empty, or of another kind; text in another encoding; a broken line; a column
            that is missing. The message names file and line.

    Example:

    ```python
    >>> import pathlib, tempfile
    >>> from hfblog.corpora import read_documents
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "laws.txt").write_text("第一条\\n\\n第二条\\n", encoding="utf-8")
    ...     list(read_documents([folder]))
    ['第一条', '第二条']

    ```
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents={max_documents} must be positive")
    if isinstance(sources, (str, Path)):
        sources = [sources]
    files = [file for source in sources for file in _files(str(source))]
    return islice(_read_all(files, column, encoding, progress), max_documents)


def _read_all(files: Sequence[str | Path], column: str | None, encoding: str, progress: bool) -> Iterator[str]:
    total = sum(Path(file).stat().st_size for file in files if file != STANDARD_INPUT)
    with tqdm(total=total or None, unit="B", unit_scale=True, desc="Reading", disable=not progress) as bar:
        for file in files:
            found = 0
            for document in _read(file, column, encoding, bar):
                found += 1
                yield document
            if not found:
                raise ValueError(f"{'standard input' if file == STANDARD_INPUT else file} is empty: it holds no text")


def _files(source: str) -> list[str | Path]:
    if source == STANDARD_INPUT:
        return [source]
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) and _suffix(file) in KNOWN)
        if not found:
            raise ValueError(f"the folder {path} holds no files that end in {', '.join(filter(None, KNOWN))}")
        return list(found)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    return [path]


def _suffix(path: Path) -> str:
    """What a file holds, by its name without the end of a compression."""
    return Path(path.stem).suffix.lower() if path.suffix in COMPRESSIONS else path.suffix.lower()


def _open(path: Path) -> IO[bytes]:
    return COMPRESSIONS.get(path.suffix, open)(path, "rb")


def _read(file: str | Path, column: str | None, encoding: str, bar: Any) -> Iterator[str]:
    if file == STANDARD_INPUT:
        yield from _lines(sys.stdin.buffer, "standard input", encoding, bar)
        return
    path = Path(file)
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path, column, bar)
        return
    with _open(path) as source:
        if suffix in JSON_LINES:
            yield from _json(source, path, column, encoding, bar)
        elif suffix in TABLES:
            yield from _table(source, path, column, encoding, bar, TABLES[suffix])
        else:
            yield from _lines(source, str(path), encoding, bar)


def _decoded_lines(source: IO[bytes], name: str, encoding: str, bar: Any) -> Iterator[list[str]]:
    """Lines, many at a time: large blocks are decoded at once."""
    if _is_wide(encoding):  # a line's end is no single byte there
        yield from ([line.rstrip("\n")] for line in io.TextIOWrapper(source, encoding))
        return
    rest, number, first = b"", 1, True
    while block := source.read(BLOCK):
        if first and b"\0" in block:
            _refuse_binary(block, name)
        if hasattr(source, "fileno"):
            bar.update(len(block))
        block = rest + (block.removeprefix(b"\xef\xbb\xbf") if first else block)
        first = False
        cut = block.rfind(b"\n") + 1
        block, rest = block[:cut], block[cut:]
        lines = _decode(block, name, number, encoding).replace("\r\n", "\n").split("\n")[:-1]
        yield lines
        number += len(lines)
    if rest:
        yield [_decode(rest, name, number, encoding)]


def _lines(source: IO[bytes], name: str, encoding: str, bar: Any) -> Iterator[str]:
    for lines in _decoded_lines(source, name, encoding, bar):
        yield from (line for line in lines if line and not line.isspace())


def _is_wide(encoding: str) -> bool:
    return encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))


def _refuse_binary(block: bytes, name: str) -> None:
    if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{name} is UTF-16: pass encoding='utf-16' (--encoding utf-16)")
    raise ValueError(f"{name} holds bytes of 0 and is no text; known are {', '.join(filter(None, KNOWN))}")


def _decode(block: bytes, name: str, number: int, encoding: str) -> str:
    """Text of a block that begins at some line."""
    try:
        return block.decode(encoding)
    except LookupError:
        raise ValueError(f"encoding={encoding!r} is not known to Python") from None
    except UnicodeDecodeError as error:
        before = block[: error.start]
        line = number + before.count(b"\n")
        column = error.start - before.rfind(b"\n")
        likely = sniff_encoding(block[before.rfind(b"\n") + 1 :][:BLOCK])
        if likely is not None and likely != encoding:
            advice = f"it looks like {likely}: pass encoding={likely!r} (--encoding {likely})"
        else:
            advice = "name its encoding (--encoding)"
        raise ValueError(
            f"{name}, line {line}, byte {column}: {block[error.start : error.start + 1]!r} is no {encoding}; {advice}"
        ) from None


def sniff_encoding(data: bytes) -> str | None:
    """What text that is no UTF-8 is likely to be: the encoding by which most of it reads as common letters.

    Args:
        data: a part of the text.

    Returns:
        A name of Python's codecs; None if no known one fits.
    """
    best, likely = 0.6, None
    for encoding in ("utf-8", "gb18030", "big5", "shift_jis", "euc_kr"):
        # a part may end within a character
        for length in range(len(data), max(0, len(data) - 4), -1):
            try:
                text = data[:length].decode(encoding)
            except UnicodeDecodeError:
                continue
            letters = [character for character in text if ord(character) > 127]
            common = sum(_is_common(character) for character in letters)
            if letters and common / len(letters) > best:
                best, likely = common / len(letters), encoding
            break
    return likely


def _is_common(character: str) -> bool:
    """Of the frequent part of CJK, by the first level of GB 2312 or Big5, kana or Hangul."""
    code = ord(character)
    if 0x3000 <= code <= 0x30FF or 0xAC00 <= code <= 0xD7A3 or 0xFF00 <= code <= 0xFF60:
        return True
    try:
        return 0xB0 <= character.encode("gb2312")[0] <= 0xD7
    except UnicodeEncodeError:
        pass
    try:
        return 0xA4 <= character.encode("big5")[0] <= 0xC6
    except UnicodeEncodeError:
        return False


def _text_of(row: Any, column: str | None, place: str) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a document is a string or an object with one, got {row!r:.80}")
    name = _column_of(list(row), column, place)
    if not isinstance(row[name], str):
        raise ValueError(f"{place}: {name!r} is no string but {row[name]!r:.80}")
    return row[name]


def _column_of(names: Sequence[str], column: str | None, place: str) -> str:
    for name in (column,) if column is not None else COLUMNS:
        if name in names:
            return name
    wanted = f"no column {column!r}" if column is not None else f"none of the columns {', '.join(COLUMNS)}; name it (--column)"
    raise ValueError(f"{place} has {wanted}; it has {', '.join(map(repr, names))}")


def _json(source: IO[bytes], path: Path, column: str | None, encoding: str, bar: Any) -> Iterator[str]:
    number = 0
    blocks = _decoded_lines(source, str(path), encoding, bar)
    for lines in blocks:
        if number == 0 and lines and lines[0].lstrip().startswith("["):
            yield from _json_array([*lines, *(line for block in blocks for line in block)], path, column)
            return
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error.msg}): {line!r:.80}") from None
            if text := _text_of(row, column, f"{path}, line {number}"):
                yield text


def _json_array(lines: list[str], path: Path, column: str | None) -> Iterator[str]:
    """One array is one value, which is read whole."""
    try:
        rows = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: no JSON ({error.msg})") from None
    for number, row in enumerate(rows, 1):
        if text := _text_of(row, column, f"{path}, entry {number}"):
            yield text


def _table(source: IO[bytes], path: Path, column: str | None, encoding: str, bar: Any, delimiter: str) -> Iterator[str]:
    lines = (line + "\n" for lines in _decoded_lines(source, str(path), encoding, bar) for line in lines)
    rows = csv.DictReader(lines, delimiter=delimiter)
    if not rows.fieldnames:
        return
    name = _column_of(rows.fieldnames, column, str(path))
    for row in rows:
        if row[name]:
            yield row[name]


def _parquet(path: Path, column: str | None, bar: Any) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no parquet file: {error}") from None
    name = _column_of(file.schema_arrow.names, column, str(path))
    kind = file.schema_arrow.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{path}: the column {name!r} holds {kind}, not strings")
    groups = max(1, file.metadata.num_row_groups)
    for group in range(file.metadata.num_row_groups):
        for batch in file.iter_batches(row_groups=[group], columns=[name]):
            yield from (text for text in batch.column(0).to_pylist() if text)
        bar.update(path.stat().st_size // groups)


__all__ = ["read_documents", "sniff_encoding"]

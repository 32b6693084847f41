"""word2vec's text and binary files of vectors, as gensim, fastText and the original program write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_word2vec(path: str | Path, words: Sequence[str], vectors: np.ndarray, binary: bool = False) -> None:
    """Write one vector a word; nothing is left behind where it fails half-way.

    Args:
        path: the file.
        words: ``(V,)``, without white space.
        vectors: ``(V, d)``.
        binary: float32 in place of decimal numbers.

    Raises:
        ValueError: numbers that do not belong together, or a word that the format cannot hold.
    """
    path, vectors = Path(path), np.ascontiguousarray(vectors, dtype="<f4")
    if vectors.ndim != 2 or len(words) != len(vectors):
        raise ValueError(f"{len(words)} words need vectors ({len(words)}, d), got {vectors.shape}")
    for word in words:
        if not word or word.split() != [word]:
            raise ValueError(f"the format separates words from numbers by white space: {word!r} cannot be a word in it")
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
            for word, vector in zip(words, vectors, strict=True):
                if binary:
                    file.write(word.encode() + b" " + vector.tobytes() + b"\n")
                else:
                    # nine digits bring every float32 back
                    numbers = " ".join(f"{number:.9g}" for number in vector.tolist())
                    file.write(f"{word} {numbers}\n".encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_word2vec(path: str | Path, binary: bool = False) -> tuple[list[str], np.ndarray]:
    """Words and their vectors ``(V, d)`` float32.

    Args:
        path: the file.
        binary: whether the numbers are float32 and no decimals.

    Raises:
        ValueError: the file is not of this kind; the message names the line or the word.
    """
    with open(path, "rb") as file:
        header = file.readline().split()
        if len(header) != 2 or not all(part.isdigit() for part in header):
            raise ValueError(f"{path} begins with no 'words dimensions', such as '10000 100'")
        count, size = map(int, header)
        words, vectors = [], np.empty((count, size), np.float32)
        for row in range(count):
            if binary:
                word = bytearray()
                while (letter := file.read(1)) not in (b" ", b""):
                    if letter != b"\n":
                        word += letter
                data = file.read(4 * size)
                if len(data) < 4 * size:
                    raise ValueError(f"{path} ends at word {row + 1} of {count}")
                vectors[row] = np.frombuffer(data, "<f4")
            else:
                line = file.readline()
                word, *numbers = line.rstrip().split(b" ")
                if len(numbers) != size:
                    what = "ends" if not line else f"has {len(numbers)} numbers, not {size},"
                    raise ValueError(f"{path} {what} in line {row + 2}; with binary=True it is read as float32")
                vectors[row] = np.array(numbers, dtype=np.float64)
            try:
                words.append(bytes(word).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {row + 2}, byte {error.start + 1}: {bytes(word)!r} is not UTF-8") from error
    return words, vectors


__all__ = ["read_word2vec", "write_word2vec"]

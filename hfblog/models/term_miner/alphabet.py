"""From text to symbols: what words are made of, numbered, with breaks where no word can go on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

LEVELS = ("character", "word")

BREAK = 0
# Symbols that stand for a whole run of digits and of letters, at the level of characters.
DIGITS, LETTERS = ord("0"), ord("a")

# Of 16 bits; rarer symbols than so many are breaks.
MOST_SYMBOLS = 2**16 - 1

# Code points that are looked up one by one; what lies beyond is Han (planes 2 and 3) or a break.
TABLE_SIZE = 0x30000
LAST_HAN = 0x33FFF

# Letters, marks within words, and numbers, at the level of words.
_WORDS = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*|[^\s\w]|_")


def _is_syllabic(name: str) -> bool:
    """Scripts that write no spaces between words: each character is a symbol of its own."""
    return name.startswith(
        ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "YI SYLLABLE", "THAI", "LAO", "KHMER", "MYANMAR")
    )


@lru_cache(maxsize=2)
def symbol_table(normalize: bool) -> np.ndarray:
    """The symbol of every code point below `TABLE_SIZE`, ``(TABLE_SIZE,)`` int32; 0 is a break.

    Args:
        normalize: whether a character counts as the first one of its NFKC form: full-width letters as plain ones.
    """
    table = np.zeros(TABLE_SIZE, np.int32)
    for code in range(TABLE_SIZE):
        if 0x3400 <= code <= 0x9FFF or code >= 0x20000:
            table[code] = code
            continue
        character = chr(code)
        form = (unicodedata.normalize("NFKC", character) or character)[0] if normalize else character
        category = unicodedata.category(form)
        if category == "Nd":
            table[code] = DIGITS
        elif category[0] == "L" or form == "〇":
            table[code] = ord(form) if _is_syllabic(unicodedata.name(form, "")) or form == "〇" else LETTERS
        elif category == "Mn" and code < 0x370:
            table[code] = LETTERS  # an accent that stands alone belongs to its letter
        elif category in ("Mn", "Mc") and _is_syllabic(unicodedata.name(form, "")):
            table[code] = ord(form)
    return table


def character_symbols(text: str, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The symbols of a text, a run of digits or letters being one, and where each begins.

    Args:
        text: any.
        normalize: see `symbol_table`.

    Returns:
        ``(n,)`` int32 symbols (code points; 0 for a break) and ``(n + 1,)`` int64 places in the text, the last its length.

    Example:

    ```python
    >>> from hfblog.models.term_miner.alphabet import character_symbols
    >>> symbols, places = character_symbols("１９９８年，IBM公司")
    >>> "".join(map(chr, symbols)).replace(chr(0), "|"), places.tolist()
    ('0年|a公司', [0, 4, 5, 6, 9, 10, 11])

    ```
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    table = symbol_table(normalize)
    symbols = table[np.minimum(codes, TABLE_SIZE - 1)]
    beyond = codes >= TABLE_SIZE
    if beyond.any():
        symbols[beyond] = np.where(codes[beyond] <= LAST_HAN, codes[beyond], BREAK)
    in_run = (symbols == DIGITS) | (symbols == LETTERS)
    kept = np.ones(len(symbols), bool)
    kept[1:] = (symbols[1:] != symbols[:-1]) | ~in_run[1:]
    return symbols[kept], np.append(np.flatnonzero(kept), len(symbols))


def word_tokens(text: str, normalize: bool = True, lowercase: bool = True) -> list[tuple[str | None, int, int]]:
    """Words of a text with spaces, and the marks between them: ``(word, begin, end)``, None in place of a mark's word."""
    tokens = []
    for match in _WORDS.finditer(text):
        word = match.group()
        if not word[0].isalnum():
            tokens.append((None, match.start(), match.end()))
            continue
        form = unicodedata.normalize("NFKC", word) if normalize else word
        tokens.append((form.lower() if lowercase else form, match.start(), match.end()))
    return tokens


class Alphabet:
    """The symbols that occur in a corpus, numbered from 1; 0 is a break.

    Args:
        symbols: characters, or words at that level, each once.
        level: ``"character"`` or ``"word"``.
        normalize: whether characters and words count as their NFKC form.
        lowercase: at the level of words, whether capitals count as small letters.

    Raises:
        ValueError: an unknown level, or more symbols than 16 bits can number.
    """

    def __init__(self, symbols: Sequence[str], level: str = "character", normalize: bool = True, lowercase: bool = True):
        if level not in LEVELS:
            raise ValueError(f"level={level!r} must be 'character' or 'word'")
        if len(symbols) > MOST_SYMBOLS:
            raise ValueError(f"an alphabet has at most {MOST_SYMBOLS} symbols, got {len(symbols)}")
        self.symbols, self.level, self.normalize, self.lowercase = list(symbols), level, normalize, lowercase
        self.ids = {symbol: index for index, symbol in enumerate(self.symbols, 1)}
        if level == "character":
            self._table = np.zeros(TABLE_SIZE, np.uint16)
            self._beyond = {}
            for symbol, index in self.ids.items():
                if ord(symbol) < TABLE_SIZE:
                    self._table[ord(symbol)] = index
                else:
                    self._beyond[ord(symbol)] = index

    def __len__(self) -> int:
        """Symbols and the break."""
        return len(self.symbols) + 1

    @property
    def joiner(self) -> str:
        """What stands between the symbols of a term."""
        return "" if self.level == "character" else " "

    def number(self, codes: np.ndarray) -> np.ndarray:
        """Ids ``(n,)`` uint16 of code points; unknown ones are breaks."""
        ids = self._table[np.minimum(codes, TABLE_SIZE - 1)]
        beyond = np.flatnonzero(codes >= TABLE_SIZE)
        if len(beyond):
            ids[beyond] = [self._beyond.get(int(code), BREAK) for code in codes[beyond]]
        return ids

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids ``(n,)`` uint16 of a text's symbols and where in the text each begins and ends, ``(n,)`` int64 each."""
        if self.level == "character":
            symbols, places = character_symbols(text, self.normalize)
            return self.number(symbols), places[:-1], places[1:]
        tokens = word_tokens(text, self.normalize, self.lowercase)
        ids = np.array([self.ids.get(word, BREAK) for word, _, _ in tokens], np.uint16)
        spans = np.array([(begin, end) for _, begin, end in tokens], np.int64).reshape(-1, 2)
        return ids, spans[:, 0], spans[:, 1]

    def encode_term(self, term: str) -> tuple[int, ...]:
        """The ids of a term's symbols; 0 where one is not known."""
        return tuple(self.encode(term)[0].tolist())

    def decode(self, ids: Iterable[int]) -> str:
        """The term of these ids. A run of digits reads ``0``, one of letters ``a``."""
        return self.joiner.join(self.symbols[index - 1] for index in ids)


__all__ = ["Alphabet", "character_symbols", "word_tokens"]

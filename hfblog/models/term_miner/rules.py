"""Hand rules for terms: what a reader of the list would strike out at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

# The kinds of rules are the article's (kexue.fm 6540), which wrote them for terms of electric power; these lists keep what
# is general in them: function words, adverbs of degree, titles and words of quantity.
CONTAINS = tuple("的了这那到较很越")
STARTS = tuple("每各该个被其从与及当为在和或由对将已")
ENDS = tuple("为一人给内中后省市院上所在有与及下者从和或等时")
CHINESE_NUMERALS = "一二三四五六七八九十"

# English words that a term neither begins nor ends with.
ENGLISH_EDGES = """
a about above according after again against ago all almost along already also although always am among an and another
any anything are around as at away back be became because become been before behind being below beneath beside besides
between beyond both but by came can cannot come could did do does doing done down during each either else enough even
ever every everything few first for found from further gave get give given go going got had has have having he hence her
here hers herself him himself his how however i if in indeed instead into is it its itself just last least less let like
made make many may me might mine more most much must my myself near neither never next no nobody none nor not nothing
now of off often on once one only onto or other others ought our ours ourselves out over own per perhaps put quite
rather said same saw say see seen several shall she should since so some something soon still such take taken than that
the their theirs them themselves then there therefore these they thing things this those though three through throughout
thus to together too took toward towards two under unless until up upon us use used using very was way we well went were
what whatever when where whereas whether which while who whole whom whose why will with within without would yet you
your yours yourself
"""

# Rules of a language in place of the Chinese ones.
LANGUAGES: dict[str, dict[str, Any]] = {
    "chinese": {},
    "english": {
        "contains": (),
        "starts": (),
        "ends": (),
        "edges": tuple(ENGLISH_EDGES.split()),
        "require": r"^(?=.*[^\W\d_]{2})[^\W\d_].*[^\W\d_]$",  # letters at both ends, two of them together
        "no_repeats": False,
        "no_counts": False,
    },
}


@dataclass
class TermRules:
    """What a term may not be. Every rule can be replaced or emptied; legitimate terms fall to some of them, too.

    Args:
        min_length: fewest characters.
        contains: strings that no term holds.
        starts: strings that no term begins with.
        ends: strings that no term ends with.
        edges: words that no term of words with spaces between them begins or ends with.
        forbidden: terms that are left out as they are.
        allowed: terms that pass whatever the other rules say.
        require: a regular expression that must be found in a term; a Han character by default, any if None.
        no_repeats: leave out terms of one character that is repeated.
        no_counts: leave out two characters of which the first is a Chinese numeral.

    Raises:
        ValueError: an expression that cannot be read, or a rule of the wrong type.

    Example:

    ```python
    >>> from hfblog import TermRules
    >>> rules = TermRules(allowed=["目的地"])
    >>> [term for term in ["变压器", "很大", "一种", "目的地", "他的"] if rules.accepts(term)]
    ['变压器', '目的地']
    >>> rules.broken("一种")
    'counts one of something'

    ```
    """

    min_length: int = 2
    contains: Iterable[str] = CONTAINS
    starts: Iterable[str] = STARTS
    ends: Iterable[str] = ENDS
    edges: Iterable[str] = ()
    forbidden: Iterable[str] = ()
    allowed: Iterable[str] = ()
    require: str | None = r"[\u3400-\u9fff]"
    no_repeats: bool = True
    no_counts: bool = True
    _sets: dict[str, frozenset[str]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        for name in ("contains", "starts", "ends", "edges", "forbidden", "allowed"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
                raise ValueError(f"rules.{name}={value!r} must be a list of strings")
            setattr(self, name, tuple(value))
        self._sets = {name: frozenset(getattr(self, name)) for name in ("edges", "forbidden", "allowed")}
        if self.require is not None:
            try:
                re.compile(self.require)
            except re.error as error:
                raise ValueError(f"rules.require={self.require!r} is no regular expression: {error}") from error

    @classmethod
    def of(cls, settings: str | dict[str, Any]) -> TermRules:
        """The rules of a language, ``"chinese"`` or ``"english"``, or those that a configuration spells out.

        Raises:
            ValueError: a language, or a rule, that there is not.

        Example:

        ```python
        >>> from hfblog import TermRules
        >>> rules = TermRules.of("english")
        >>> [term for term in ["interest rates", "of the nation", "item 4", "tragedy of the commons"] if rules.accepts(term)]
        ['interest rates', 'tragedy of the commons']

        ```
        """
        if isinstance(settings, str):
            if settings not in LANGUAGES:
                raise ValueError(f"rules={settings!r} must be settings, or one of {', '.join(map(repr, LANGUAGES))}")
            settings = LANGUAGES[settings]
        known = [f.name for f in fields(cls) if f.init]
        if unknown := set(settings) - set(known):
            raise ValueError(f"unknown rules {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(known)}")
        return cls(**settings)

    def broken(self, term: str) -> str | None:
        """The rule that a term breaks, in words; None if it passes."""
        if term in self._sets["allowed"]:
            return None
        if term in self._sets["forbidden"]:
            return "is on the list of forbidden terms"
        if len(term) < self.min_length:
            return f"has fewer than {self.min_length} characters"
        if self.require is not None and not re.search(self.require, term):
            return f"lacks what {self.require!r} asks for"
        for part in self.contains:
            if part in term:
                return f"holds {part!r}"
        for part in self.starts:
            if term.startswith(part):
                return f"begins with {part!r}"
        for part in self.ends:
            if term.endswith(part):
                return f"ends with {part!r}"
        words = term.split(" ")
        for word in (words[0], words[-1]):
            if word in self._sets["edges"]:
                return f"begins or ends with the word {word!r}"
        if self.no_repeats and len(term) > 1 and len(set(term)) == 1:
            return "repeats one character"
        if self.no_counts and len(term) == 2 and term[0] in CHINESE_NUMERALS:
            return "counts one of something"
        return None

    def accepts(self, term: str) -> bool:
        """Whether a term breaks no rule."""
        return self.broken(term) is None


__all__ = ["TermRules"]

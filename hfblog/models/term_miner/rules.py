"""Hand rules for terms: what a reader of the list would strike out at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

# The kinds of rules are the article's (kexue.fm 6540), which wrote them for terms of electric power; these lists keep what
# is general in them: function words, adverbs of degree, titles and words of quantity.
CONTAINS = tuple("的了这那到较很越")
STARTS = tuple("每各该个被其从与及当为在和或由对将已")
ENDS = tuple("为一人给内中后省市院上所在有与及下者从和或等时")
CHINESE_NUMERALS = "一二三四五六七八九十"


@dataclass
class TermRules:
    """What a term may not be. Every rule can be replaced or emptied; legitimate terms fall to some of them, too.

    Args:
        min_length: fewest characters.
        contains: strings that no term holds.
        starts: strings that no term begins with.
        ends: strings that no term ends with.
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
    forbidden: Iterable[str] = ()
    allowed: Iterable[str] = ()
    require: str | None = r"[\u3400-\u9fff]"
    no_repeats: bool = True
    no_counts: bool = True
    _sets: dict[str, frozenset[str]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        for name in ("contains", "starts", "ends", "forbidden", "allowed"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
                raise ValueError(f"rules.{name}={value!r} must be a list of strings")
            setattr(self, name, tuple(value))
        self._sets = {name: frozenset(getattr(self, name)) for name in ("forbidden", "allowed")}
        if self.require is not None:
            try:
                re.compile(self.require)
            except re.error as error:
                raise ValueError(f"rules.require={self.require!r} is no regular expression: {error}") from error

    @classmethod
    def from_dict(cls, settings: dict) -> TermRules:
        """Rules from a configuration.

        Raises:
            ValueError: a rule that there is not.
        """
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
        if self.no_repeats and len(term) > 1 and len(set(term)) == 1:
            return "repeats one character"
        if self.no_counts and len(term) == 2 and term[0] in CHINESE_NUMERALS:
            return "counts one of something"
        return None

    def accepts(self, term: str) -> bool:
        """Whether a term breaks no rule."""
        return self.broken(term) is None


__all__ = ["TermRules"]

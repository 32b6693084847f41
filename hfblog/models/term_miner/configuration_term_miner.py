"""Configuration of the term miner.

No ``from __future__ import annotations`` in configuration files: `strict` reads the annotations as objects, and checks no
type where it finds strings.
"""

import math
from dataclasses import field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .alphabet import LEVELS
from .contrast_scores import COMBINATIONS, CONTRASTS
from .discovery import METHODS
from .ngram_counts import MOST_ORDER
from .rules import TermRules

# Nats that an n-gram of 2, 3 and 4 symbols must cohere by.
COHESION_THRESHOLDS = {"combined": (1.0, 3.0, 5.0), "ngram_cohesion": (2.0, 4.0, 6.0)}


@strict
class TermMinerConfig(PreTrainedConfig):
    r"""How words are found in a corpus, which of them are called its terms, and what more is kept of them.

    The three stages are those of "Unsupervised mining of domain terms" (Su Jianlin, kexue.fm 6540): words are discovered,
    contrasted with another corpus, and grown from seeds by meaning.

    Args:
        level: what words are made of: ``"character"`` for scripts without spaces, where a run of digits or of letters is one
            symbol, or ``"word"``, for terms of several words.
        normalize: ``"NFKC"``, or None: whether full-width letters count as plain ones, and so on.
        lowercase: at the level of words, whether capitals count as small letters.
        method: how words are discovered: ``"combined"`` (candidates by cohesion, segmentation by probability and the
            variation of branching entropy), ``"ngram_cohesion"`` (kexue.fm 6920), ``"branching_entropy"`` (Magistry and Sagot
            2012), ``"pmi_cut"`` (kexue.fm 5476, as in the article) or ``"topwords"`` (Deng et al. 2016).
        max_ngram: longest n-gram that is looked at as a whole; longer words are chains of them.
        max_term_length: longest word in symbols.
        min_count: how often an n-gram or a word occurs at least; by the size of the corpus if None.
        cohesion_thresholds: nats by which n-grams of 2, 3, ... ``max_ngram`` symbols must cohere; those of the method if None.
        autonomy_weight: of ``"combined"``, what a standard deviation of autonomy is worth, in nats.
        single_symbol_penalty: of ``"combined"``, what a word of one symbol costs, in nats.
        em_rounds: how often probabilities are taken anew from the segmented corpus.
        min_proba, min_pmi: of ``"pmi_cut"``, least share of a pair and least pointwise mutual information, in nats.
        dedup: of ``"pmi_cut"``, whether words that their parts explain are dropped.
        compounds: whether terms of several words are looked for, too.
        compound_cohesion, compound_entropy: nats by which their words must cohere, and by which the law of what stands to
            either side must be open.
        contrast: how characteristic of the domain a word is: ``"share"`` (the article's), ``"log_odds"``, ``"g2"`` or
            ``"kl"``.
        combine: against several backgrounds, the ``"least"`` contrast counts, or they are ``"pooled"``.
        prior_strength: of ``"share"`` and ``"log_odds"``; a default of each if None.
        min_term_length: terms have at least so many symbols.
        min_documents: terms occur in at least so many documents.
        min_burstiness: terms are bursty by at least so many nats (residual inverse document frequency, Church and Gale 1995):
            words that are spread evenly over all documents are none. Not asked of fewer than 100 documents.
        rules: hand rules that terms must pass: ``"chinese"``, ``"english"``, or the settings of `TermRules`; none if None.
        min_similarity, max_similarity, decay: of growth from seeds: how near a neighbour must be at depth 0, in the end, and
            how fast that rises.
        top_n: neighbours of a term that are looked at.
        embedding_dim: length of the vectors of meaning; 0 for none.
        keep_counts: whether the folder holds the numbered corpora, from which `partial_fit` goes on. They are the text in
            another writing.
        num_words, num_compounds, num_term_symbols, num_symbol_bytes: sizes, which `fit` sets.
        background_names: of the backgrounds that `fit` was given.
        num_corpus_symbols, num_corpus_documents: sizes of what ``keep_counts`` keeps of each corpus.

    Example:

    ```python
    >>> from hfblog import TermMinerConfig
    >>> TermMinerConfig(method="ngram_cohesion").thresholds
    [2.0, 4.0, 6.0]

    ```
    """

    model_type = "term_miner"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_term_miner.TermMinerConfig",
        "AutoModel": "modeling_term_miner.TermMinerModel",
    }

    custom_pipeline: ClassVar[dict[str, Any]] = {
        "term-mining": {"impl": "pipeline_term_miner.TermMiningPipeline", "pt": ["AutoModel"], "type": "text"}
    }
    _auto_class = "AutoConfig"

    level: str = "character"
    normalize: str | None = "NFKC"
    lowercase: bool = True
    method: str = "combined"
    max_ngram: int = 4
    max_term_length: int = 12
    min_count: int | None = None
    cohesion_thresholds: list[float | int] | None = None
    autonomy_weight: float | int = 1.5
    single_symbol_penalty: float | int = 2.0
    em_rounds: int = 0
    min_proba: float | int = 5e-6
    min_pmi: float | int = 1.0
    dedup: bool = True
    compounds: bool = True
    compound_cohesion: float | int = 2.0
    compound_entropy: float | int = 1.5
    contrast: str = "share"
    combine: str = "least"
    prior_strength: float | int | None = None
    min_term_length: int = 2
    min_documents: int = 1
    min_burstiness: float | int = 0.3
    rules: dict[str, Any] | str | None = None
    min_similarity: float | int = 0.6
    max_similarity: float | int = 1.0
    decay: float | int = 0.35
    top_n: int = 200
    embedding_dim: int = 0
    keep_counts: bool = False
    num_words: int = 0
    num_compounds: int = 0
    num_term_symbols: int = 0
    num_symbol_bytes: int = 0
    background_names: list[str] = field(default_factory=list)
    num_corpus_symbols: list[int] = field(default_factory=list)
    num_corpus_documents: list[int] = field(default_factory=list)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # Set anew on every load: references that came from a Hub repository carry its name, and would keep pointing there.
        kwargs.pop("auto_map", None)
        custom_pipelines = kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self.auto_map = dict(self.auto_classes)
        # The installed package has registered its pipeline; only the copy that runs as remote code keeps the attribute, for
        # which transformers asks for trust_remote_code.
        if custom_pipelines and type(self).__module__.startswith("transformers_modules"):
            self.custom_pipelines = custom_pipelines

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"custom_pipelines": self.custom_pipeline}

    @property
    def num_terms(self) -> int:
        """Words, and compounds behind them."""
        return self.num_words + self.num_compounds

    @property
    def thresholds(self) -> list[float]:
        """Of cohesion, for 2, 3, ... ``max_ngram`` symbols."""
        if self.cohesion_thresholds is not None:
            return list(map(float, self.cohesion_thresholds))
        return list(COHESION_THRESHOLDS.get(self.method, COHESION_THRESHOLDS["combined"]))[: self.max_ngram - 1]

    def validate_choices(self):
        for name, known in (
            ("level", LEVELS),
            ("normalize", ("NFKC", None)),
            ("method", METHODS),
            ("contrast", tuple(CONTRASTS)),
            ("combine", COMBINATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, known))}")

    def validate_numbers(self):
        if not 2 <= self.max_ngram <= MOST_ORDER:
            raise ValueError(f"max_ngram={self.max_ngram} must lie between 2 and {MOST_ORDER}")
        if self.max_term_length < self.max_ngram:
            raise ValueError(f"max_term_length={self.max_term_length} must be at least max_ngram={self.max_ngram}")
        at_least_one = ("min_count", "min_term_length", "min_documents", "top_n")
        for name in (*at_least_one, "embedding_dim", "em_rounds", "num_words", "num_compounds"):
            least = int(name in at_least_one)
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.cohesion_thresholds is not None and len(self.cohesion_thresholds) != self.max_ngram - 1:
            raise ValueError(
                f"cohesion_thresholds={self.cohesion_thresholds} must be {self.max_ngram - 1} numbers, one for each of 2 to "
                f"max_ngram={self.max_ngram} symbols"
            )
        for name in (
            "autonomy_weight",
            "single_symbol_penalty",
            "min_proba",
            "min_pmi",
            "decay",
            "prior_strength",
            "compound_cohesion",
            "compound_entropy",
            "min_burstiness",
        ):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be finite and not negative")
        if self.rules is not None:
            TermRules.of(self.rules)
        if not -1 <= self.min_similarity <= self.max_similarity <= 1:
            raise ValueError(
                f"min_similarity={self.min_similarity} and max_similarity={self.max_similarity} are cosines, the least first"
            )


__all__ = ["TermMinerConfig"]

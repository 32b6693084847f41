"""A lexicon that was mined from a corpus, and what was counted for it, as a model.

The three stages are those of Su Jianlin's "Unsupervised mining of domain terms" (https://kexue.fm/archives/6540): words are
discovered in a corpus, contrasted with other corpora, and grown from seeds by meaning.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.logging import tqdm

from .alphabet import Alphabet
from .configuration_term_miner import TermMinerConfig
from .contrast_scores import burstiness, contrast_of, false_discovery, g2
from .discovery import UNKNOWN_SCORE, Lexicon, build_trie_of, discover, discover_compounds, occurrence_counts
from .growth import grow
from .rules import TermRules
from .segmentation import Segmenter
from .symbol_corpus import CorpusReader, SymbolCorpus, joint_alphabet
from .term_files import write_terms
from .tokenization_term_miner import SPECIAL_TOKENS, build_term_tokenizer

if TYPE_CHECKING:
    # Needed by a saved folder, so it is named here: save_pretrained copies the files a model file imports.
    from .pipeline_term_miner import TermMiningPipeline  # noqa: F401

# Fewer documents tell nothing of how evenly a word is spread.
ENOUGH_DOCUMENTS = 100

# Between terms of an alphabet in bytes.
SEPARATOR = "\n"

INTEGER_COLUMNS = ("counts", "occurrences", "documents")
FLOAT_COLUMNS = (
    "bonuses",
    "cohesions",
    "left_entropies",
    "right_entropies",
    "autonomies",
    "cost_reductions",
    "wordhoods",
    "burstiness",
    "contrasts",
)


@dataclass
class TermMinerOutput(ModelOutput):
    """Output of [`TermMinerModel`].

    Args:
        loss: scalar, nats a word: what the words of the batch cost as independent draws from the lexicon.
        log_probs: ``(batch, length)``, log-probability of each word, nats; 0 where there is none.
        termhoods: ``(batch, length)``, how characteristic each word is of the domain, see
            [`TermMinerModel.extract_terms`]; 0 where there is none.
        last_hidden_state: ``(batch, length, embedding_dim)``, vectors of meaning, if the miner has any.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    termhoods: Tensor | None = None
    last_hidden_state: Tensor | None = None


class TermTable(nn.Module):
    """All that is known of the terms; words first, compounds behind them."""

    def __init__(self, config: TermMinerConfig):
        super().__init__()
        size = config.num_terms
        backgrounds = len(config.background_names)
        self.unigram_logits = nn.Parameter(torch.zeros(config.num_words))
        for name in INTEGER_COLUMNS:
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        for name in FLOAT_COLUMNS:
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("symbol_bytes", torch.zeros(config.num_symbol_bytes, dtype=torch.uint8))
        self.register_buffer("term_symbols", torch.zeros(config.num_term_symbols, dtype=torch.int32))
        self.register_buffer("term_ends", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("background_counts", torch.zeros((backgrounds, size), dtype=torch.int64))
        # symbols, characters and documents of the domain and of every background
        self.register_buffer("corpus_sizes", torch.zeros((backgrounds + 1, 3), dtype=torch.int64))
        self.register_buffer("vectors", torch.zeros((size if config.embedding_dim else 0, config.embedding_dim)))
        self.register_buffer("corpus_symbols", torch.zeros(sum(config.num_corpus_symbols), dtype=torch.int32))
        self.register_buffer("corpus_starts", torch.zeros(sum(config.num_corpus_documents), dtype=torch.int64))


class TermMinerModel(PreTrainedModel):
    r"""Finds the words of a corpus, and among them the terms of its domain.

    ``forward`` takes the token ids of the mined lexicon's tokenizer, which lies beside the saved model.

    Example:

    ```python
    >>> from hfblog import TermMinerConfig, TermMinerModel
    >>> from hfblog.data import load_data
    >>> news = [text.replace(" ", "") for text in load_data("chinese-news")["test"]["text"]]
    >>> reviews = load_data("chinese-reviews")["test"]["text"]
    >>> miner = TermMinerModel(TermMinerConfig()).fit(news, background=reviews)
    >>> [row["term"] for row in miner.extract_terms(3)]
    ['两岸', '人民', '发展']
    >>> miner.segment("新华社记者报道了中国经济发展")
    [['新华社', '记者', '报道', '了', '中国', '经济', '发展']]

    ```
    """

    config_class = TermMinerConfig
    base_model_prefix = "term_miner"
    main_input_name = "input_ids"
    _auto_class = "AutoModel"

    def __init__(self, config: TermMinerConfig):
        super().__init__(config)
        self.table = TermTable(config)
        self._corpora: list[SymbolCorpus] = []
        self._cache: dict[str, Any] = {}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TermTable):
            for tensor in (*module.parameters(), *module.buffers()):
                init.zeros_(tensor)

    @property
    def is_fitted(self) -> bool:
        """Whether there is a lexicon."""
        return self.config.num_words > 0 and int(self.table.term_ends[-1]) > 0

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise ValueError("the miner has no lexicon yet: call fit(corpus) first, or load a folder of one that was fitted")

    # --- fitting ---

    def fit(
        self,
        corpus: Iterable[str] | SymbolCorpus,
        background: Iterable[str] | Mapping[str, Iterable[str]] | None = None,
        *,
        directory: str | Path | None = None,
    ) -> TermMinerModel:
        """Discover the words of a corpus, and contrast them with one or more others.

        Args:
            corpus: documents of the domain, strings; any iterable, also one that can be read only once.
            background: documents that are not of the domain, or several such corpora by their names. The nearer in style,
                the better: what differs is taken for the domain's.
            directory: where the corpora lie as numbers while they are counted, two bytes a character; in memory if None.

        Raises:
            ValueError: a corpus without text, a background identical to the domain, or nothing that is frequent enough.
            TypeError: a corpus that is a string, or a document that is none.
            ImportError: numba is not installed.
            OSError: the disk is full; nothing is left on it, and the miner is as it was.
        """
        readers = {"the corpus": self._reader(corpus, directory)}
        for name, documents in self._named(background).items():
            readers[name] = self._reader(documents, directory)
        alphabet = self._alphabet_of([reader.symbols() for reader in readers.values()])
        return self.fit_corpora({name: reader.finish(alphabet) for name, reader in readers.items()})

    def partial_fit(
        self, corpus: Iterable[str], background: Iterable[str] | Mapping[str, Iterable[str]] | None = None
    ) -> TermMinerModel:
        """Add documents; the result is that of `fit` on all of them together.

        Args:
            corpus, background: as in `fit`; backgrounds go to those of the same name.

        Raises:
            ValueError: the miner was loaded from a folder without the corpora (``keep_counts=False``).
        """
        if not self.is_fitted:
            return self.fit(corpus, background)
        before = self._kept_corpora()
        readers = {"the corpus": self._reader(corpus, None)}
        for name, documents in self._named(background).items():
            readers[name] = self._reader(documents, None)
        counts = [*(reader.symbols() for reader in readers.values()), *(known.symbol_counts() for known in before.values())]
        alphabet = self._alphabet_of(counts)
        together = {name: known.renumbered(alphabet) for name, known in before.items()}
        for name, reader in readers.items():
            new = reader.finish(alphabet)
            together[name] = together[name].extended(new) if name in together else new
        return self.fit_corpora(together)

    def _reader(self, documents: Any, directory: str | Path | None) -> CorpusReader:
        if isinstance(documents, (str, bytes)):
            raise TypeError(f"a corpus is an iterable of documents, got the string {documents!r:.60}: pass [text]")
        return CorpusReader(documents, self.config.level, self.config.normalize is not None, self.config.lowercase, directory)

    def _alphabet_of(self, counts: list[dict[str, int]]) -> Alphabet:
        config = self.config
        return joint_alphabet(counts, config.level, config.normalize is not None, config.lowercase)

    @staticmethod
    def _named(background: Any) -> dict[str, Iterable[str]]:
        if background is None:
            return {}
        return dict(background) if isinstance(background, Mapping) else {"background": background}

    def fit_corpora(self, corpora: Mapping[str, SymbolCorpus]) -> TermMinerModel:
        """As `fit`, of corpora that are numbered already, by one alphabet; the first is the domain."""
        names, (domain, *backgrounds) = list(corpora), list(corpora.values())
        for name, corpus in corpora.items():
            if not corpus.num_symbols:
                raise ValueError(
                    f"{name} holds no text: {corpus.num_documents:,} documents with {corpus.num_characters:,} characters, "
                    f"none of which is a symbol at level={self.config.level!r}"
                )
        for name, corpus in zip(names[1:], backgrounds, strict=True):
            if corpus.same_as(domain):
                raise ValueError(f"{name} is identical to the domain's corpus: nothing can stand out against it")
        lexicon = discover(domain, self.config)
        parts = [lexicon]
        if self.config.compounds:
            parts.append(discover_compounds(domain, lexicon, self.config))
        words = [word for part in parts for word in part.words]
        count = partial(occurrence_counts, build_trie_of(words), len(words))
        against = [corpus.sum_over_chunks(count)[0] for corpus in backgrounds]
        self._keep(names, [domain, *backgrounds], parts, words, against)
        return self

    def _keep(
        self,
        names: list[str],
        corpora: list[SymbolCorpus],
        parts: list[Lexicon],
        words: list[tuple[int, ...]],
        against: list[np.ndarray],
    ) -> None:
        """Everything into buffers; until here the miner is as it was."""
        config, domain = self.config, corpora[0]
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in (*INTEGER_COLUMNS, *FLOAT_COLUMNS[:-2], "log_shares")
        }
        background = np.stack(against) if against else np.empty((0, len(words)), np.int64)
        columns["burstiness"] = burstiness(columns["counts"], columns["documents"], domain.num_documents)
        columns["contrasts"] = np.zeros(len(words))
        if against:
            columns["contrasts"] = contrast_of(
                config.contrast, columns["counts"], background, config.combine, config.prior_strength
            )
        symbols = SEPARATOR.join(domain.alphabet.symbols).encode("utf-8")
        config.num_words, config.num_compounds = len(parts[0]), len(words) - len(parts[0])
        config.num_symbol_bytes = len(symbols)
        config.num_term_symbols = sum(map(len, words))
        config.background_names = names[1:]
        config.embedding_dim = 0
        kept = [corpus.in_one() for corpus in corpora] if config.keep_counts else []
        config.num_corpus_symbols = [len(chunk.symbols) for chunk in kept]
        config.num_corpus_documents = [len(chunk.starts) for chunk in kept]
        device = self.device
        table = TermTable(config)
        with torch.no_grad():
            table.unigram_logits.copy_(torch.from_numpy(columns["log_shares"][: config.num_words]))
        for name in (*INTEGER_COLUMNS, *FLOAT_COLUMNS):
            getattr(table, name).copy_(torch.from_numpy(columns[name]))
        table.symbol_bytes.copy_(torch.frombuffer(bytearray(symbols), dtype=torch.uint8))
        table.term_symbols.copy_(torch.tensor([symbol for word in words for symbol in word]))
        table.term_ends.copy_(torch.tensor([len(word) for word in words]).cumsum(0))
        table.background_counts.copy_(torch.from_numpy(background))
        sizes = [(corpus.num_symbols, corpus.num_characters, corpus.num_documents) for corpus in corpora]
        table.corpus_sizes.copy_(torch.tensor(sizes))
        if kept:
            table.corpus_symbols.copy_(torch.cat([torch.from_numpy(chunk.symbols.astype(np.int32)) for chunk in kept]))
            table.corpus_starts.copy_(torch.cat([torch.from_numpy(chunk.starts) for chunk in kept]))
        self.table = table.to(device)
        self._corpora = corpora
        self._cache = {}

    def _kept_corpora(self) -> dict[str, SymbolCorpus]:
        names = ["the corpus", *self.config.background_names]
        if not self._corpora:
            if not self.config.num_corpus_symbols:
                raise ValueError(
                    "this folder holds no corpora to add to: fit with TermMinerConfig(keep_counts=True) to save them with "
                    "the model"
                )
            symbols = self.table.corpus_symbols.cpu().numpy().astype(np.uint16)
            starts = self.table.corpus_starts.cpu().numpy()
            sizes = self.table.corpus_sizes.tolist()
            begin = place = 0
            for length, documents, size in zip(
                self.config.num_corpus_symbols, self.config.num_corpus_documents, sizes, strict=True
            ):
                part, bounds = symbols[begin : begin + length], starts[place : place + documents]
                self._corpora.append(SymbolCorpus(self.alphabet, [bounds], [part], num_characters=size[1]))
                begin, place = begin + length, place + documents
        return dict(zip(names, self._corpora, strict=True))

    # --- the lexicon ---

    def _cached(self, name: str, make: Any) -> Any:
        if name not in self._cache:
            self._check_fitted()
            self._cache[name] = make()
        return self._cache[name]

    @property
    def alphabet(self) -> Alphabet:
        """Numbers the symbols that words are made of."""

        def make() -> Alphabet:
            text = self.table.symbol_bytes.cpu().numpy().tobytes().decode("utf-8")
            config = self.config
            return Alphabet(text.split(SEPARATOR), config.level, config.normalize is not None, config.lowercase)

        return self._cached("alphabet", make)

    def _symbol_tuples(self) -> list[tuple[int, ...]]:
        def make() -> list[tuple[int, ...]]:
            symbols, ends = self.table.term_symbols.tolist(), self.table.term_ends.tolist()
            return [tuple(symbols[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]

        return self._cached("tuples", make)

    @property
    def terms(self) -> list[str]:
        """Words, the best first, and compounds behind them, as text; a run of digits reads ``0``, one of letters ``a``."""
        return self._cached("terms", lambda: list(map(self.alphabet.decode, self._symbol_tuples())))

    @property
    def words(self) -> list[str]:
        """Words, without compounds."""
        return self.terms[: self.config.num_words]

    @property
    def ids(self) -> dict[str, int]:
        """The place of each term in `terms`."""
        return self._cached("ids", lambda: {term: place for place, term in enumerate(self.terms)})

    def _column(self, name: str) -> np.ndarray:
        return self._cached(name, lambda: getattr(self.table, name).detach().float().cpu().numpy())

    def word_scores(self) -> Tensor:
        """What each word is worth to the segmentation, ``(num_words,)``, nats."""
        return self._log_probs() + self.table.bonuses[: self.config.num_words].float()

    def _log_probs(self) -> Tensor:
        return self.table.unigram_logits.float().log_softmax(0)

    # --- terms ---

    def extract_terms(
        self,
        k: int | None = None,
        *,
        include_runs: bool = False,
        rules: TermRules | bool = True,
        min_burstiness: float | None = None,
    ) -> list[dict[str, Any]]:
        """The terms of the domain, the most characteristic first.

        They are ranked by the contrast with the background, or by wordhood (how well they hold together, how open their ends
        are, how frequent) where there was none. Terms must be long and bursty enough, see [`TermMinerConfig`].

        Args:
            k: how many; all if None.
            include_runs: whether terms with runs of digits or letters, which read ``0`` and ``a``, are listed.
            rules: hand rules in place of those of the configuration; False for none.
            min_burstiness: in place of the configuration's.

        Returns:
            Rows with ``term``, ``score``, ``count``, ``background_count``, ``document_frequency``, ``cohesion``,
            ``left_entropy``, ``right_entropy``, ``autonomy``, ``cost_reduction``, ``burstiness``, ``contrast``.

        Raises:
            ValueError: the miner was not fitted, or k is not positive.
        """
        self._check_fitted()
        if k is not None and k < 1:
            raise ValueError(f"k={k} must be positive")
        order = self._ranking(include_runs, min_burstiness)
        if rules is True:
            rules = self._rules()
        rows = []
        for place in order:
            if k is not None and len(rows) == k:
                break
            if not rules or rules.accepts(self.terms[place]):
                rows.append(self._row(int(place)))
        return rows

    def _rules(self) -> TermRules | None:
        return None if self.config.rules is None else TermRules.of(self.config.rules)

    def _termhoods(self) -> np.ndarray:
        return self._column("contrasts" if self.config.background_names else "wordhoods")

    def _ranking(self, include_runs: bool = False, min_burstiness: float | None = None) -> np.ndarray:
        """Places of the terms that pass the configuration's limits, by falling score."""
        least = self.config.min_burstiness if min_burstiness is None else min_burstiness
        lengths = np.diff(self.table.term_ends.cpu().numpy(), prepend=0)
        documents = self.table.documents.cpu().numpy()
        passes = (lengths >= self.config.min_term_length) & (documents >= self.config.min_documents)
        passes &= self.table.counts.cpu().numpy() > 0
        if self._shows_burstiness() and least > 0:
            passes &= self._column("burstiness") >= least
        if not include_runs and self.config.level == "character":
            runs = {self.alphabet.ids.get(symbol, -1) for symbol in ("0", "a")}
            of_runs = np.isin(self.table.term_symbols.cpu().numpy(), list(runs))
            passes &= np.add.reduceat(of_runs, np.concatenate([[0], np.cumsum(lengths)[:-1]])) == 0
        order = np.lexsort((-self._column("wordhoods"), -self._termhoods()))
        return order[passes[order]]

    def _shows_burstiness(self) -> bool:
        return int(self.table.corpus_sizes[0, 2]) >= ENOUGH_DOCUMENTS

    def _row(self, place: int) -> dict[str, Any]:
        table = self.table
        against = [int(count) for count in table.background_counts[:, place]]
        return {
            "term": self.terms[place],
            "score": float(self._termhoods()[place]),
            "count": int(table.counts[place]),
            "background_count": sum(against) if against else None,
            "document_frequency": int(table.documents[place]),
            "cohesion": float(table.cohesions[place]),
            "left_entropy": float(table.left_entropies[place]),
            "right_entropy": float(table.right_entropies[place]),
            "autonomy": float(table.autonomies[place]),
            "cost_reduction": float(table.cost_reductions[place]),
            "burstiness": float(table.burstiness[place]),
            "contrast": float(table.contrasts[place]) if against else None,
        }

    def explain(self, term: str) -> dict[str, Any]:
        """Why a string is a term, or why not.

        Returns:
            The row of [`extract_terms`], and ``rank`` (from 1; None where a limit keeps it out), ``shares`` (occurrences in a
            million symbols of the domain and of each background), ``q_value`` (the share of false discoveries among terms of
            no less G2, Benjamini and Hochberg 1995), ``parts`` (how the miner would cut it without compounds), ``within``
            (longer terms that hold it, with counts) and ``reasons`` (sentences). For a string that is no term, ``term``,
            ``parts`` and ``reasons`` alone.
        """
        self._check_fitted()
        symbols = self.alphabet.encode_term(term)
        form = self.alphabet.decode(symbols) if symbols and all(symbols) else term
        parts = [part for words in self.segment([term]) for part in words]
        if form not in self.ids:
            unknown = [symbol for symbol, index in zip(term, symbols, strict=False) if not index]
            if self.config.level == "character" and unknown:
                why = f"{', '.join(map(repr, unknown))} never occurred in the corpus"
            else:
                why = f"the corpus did not hold it together: it is cut into {' | '.join(parts)}"
            return {"term": term, "parts": parts, "reasons": [f"{term!r} is not in the lexicon: {why}."]}
        place = self.ids[form]
        row = self._row(place)
        ranks = self._cached("ranks", lambda: {int(p): rank for rank, p in enumerate(self._ranking(), 1)})
        sizes = self.table.corpus_sizes[:, 0].tolist()
        against = self.table.background_counts[:, place].tolist()
        names = ["domain", *self.config.background_names]
        shares = {name: 1e6 * count / size for name, count, size in zip(names, [row["count"], *against], sizes, strict=True)}
        within = sorted(
            ((other, int(self.table.counts[self.ids[other]])) for other in self.terms if form in other and form != other),
            key=lambda pair: -pair[1],
        )[:10]
        detail = {
            "rank": ranks.get(place),
            "shares": shares,
            "q_value": float(self._q_values()[place]) if against else None,
            "parts": parts,
            "within": within,
        }
        return row | detail | {"reasons": self._reasons(place, row, detail)}

    def _q_values(self) -> np.ndarray:
        def make() -> np.ndarray:
            counts = self.table.counts.cpu().numpy()
            return false_discovery(g2(counts, self.table.background_counts.sum(0).cpu().numpy()))

        return self._cached("q_values", make)

    def _reasons(self, place: int, row: dict[str, Any], detail: dict[str, Any]) -> list[str]:
        """The evidence in sentences."""
        config = self.config
        occurrences = int(self.table.occurrences[place])
        alone = row["count"] / max(1, occurrences)
        several = len(detail["parts"]) > 1
        held = "words" if several and place >= config.num_words else self._unit
        reasons = [
            f"It occurs {row['count']:,} times in {row['document_frequency']:,} documents"
            + (f", and {occurrences - row['count']:,} times within or across other words." if alone < 1 else "."),
        ]
        if row["cohesion"]:
            reasons.append(
                f"Its {held} stand together at least {math.exp(row['cohesion']):,.0f} times as often as by chance "
                f"(cohesion {row['cohesion']:.2f} nats)."
            )
        ends = "open" if min(row["left_entropy"], row["right_entropy"]) > 1 else "bound"
        reasons.append(
            f"What stands to its left has {row['left_entropy']:.2f} nats of entropy and to its right "
            f"{row['right_entropy']:.2f}: its ends are {ends}."
        )
        if detail["q_value"] is not None:
            domain, *others = detail["shares"].values()
            rest = ", ".join(f"{share:,.1f} in {name}" for name, share in zip(config.background_names, others, strict=True))
            reasons.append(
                f"In a million {self._unit} it occurs {domain:,.1f} times in the domain and {rest} "
                f"({config.contrast} {row['contrast']:.3g}, false discovery rate {detail['q_value']:.2g})."
            )
        if row["burstiness"] and self._shows_burstiness() and config.min_burstiness > 0:
            spread = "gathers in few documents" if row["burstiness"] >= config.min_burstiness else "is spread evenly"
            reasons.append(f"It {spread} (burstiness {row['burstiness']:.2f} nats).")
        if detail["rank"] is None:
            reasons.append(f"It is not listed: {self._kept_out(place, row)}.")
        elif (rules := self._rules()) is not None and (broken := rules.broken(row["term"])):
            reasons.append(f"A hand rule strikes it: it {broken}.")
        return reasons

    @property
    def _unit(self) -> str:
        """What terms are made of, in words."""
        return "words" if self.config.level == "word" else "symbols"

    def _kept_out(self, place: int, row: dict[str, Any]) -> str:
        """The limit that a term of the lexicon does not reach."""
        config, length = self.config, len(self._symbol_tuples()[place])
        if length < config.min_term_length:
            return f"it has {length} {self._unit}, fewer than min_term_length={config.min_term_length}"
        if row["document_frequency"] < config.min_documents:
            return f"it is in {row['document_frequency']} documents, fewer than min_documents={config.min_documents}"
        if not row["count"]:
            return "the segmented corpus holds it only within other words"
        if self._shows_burstiness() and row["burstiness"] < config.min_burstiness:
            return f"its burstiness {row['burstiness']:.2f} is below min_burstiness={config.min_burstiness}"
        return "it holds a run of digits or letters, see include_runs"

    # --- texts ---

    def segment(self, texts: str | Iterable[str], compounds: bool = False) -> list[list[str]]:
        """Cut texts into words: the segmentation of the highest sum of `word_scores`.

        Args:
            texts: one or more.
            compounds: whether words that are a compound of the lexicon stay together, the longest first from the left.

        Returns:
            For each text its words; marks are words of their own, equal ones in a row one, and spaces are left out.
        """
        return list(self.iter_segment(texts, compounds))

    def iter_segment(self, texts: str | Iterable[str], compounds: bool = False) -> Iterator[list[str]]:
        """As `segment`, a text after the other, for more of them than memory holds."""
        texts = [texts] if isinstance(texts, str) else texts
        if not compounds:
            yield from self._segmenter().words(texts)
            return
        ahead, behind = itertools.tee(texts)
        for text, spans in zip(behind, self._segmenter().spans(ahead), strict=True):
            yield [text[begin:end] for begin, end in self._join(text, spans)]

    def _segmenter(self) -> Segmenter:
        def make() -> Segmenter:
            words = self._symbol_tuples()[: self.config.num_words]
            return Segmenter(words, self.word_scores().detach().cpu().numpy(), self.alphabet)

        return self._cached("segmenter", make)

    def _places(self) -> dict[tuple[int, ...], int]:
        """The place of each term, by the ids of its symbols; from ``num_words`` on they are compounds."""
        return self._cached("places", lambda: {word: place for place, word in enumerate(self._symbol_tuples())})

    def _join(self, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Words that are together a compound become one, the longest first, from the left."""
        places, num_words, limit = self._places(), self.config.num_words, self.config.max_term_length
        symbols = [self.alphabet.encode_term(text[begin:end]) for begin, end in spans]
        joined, first = [], 0
        while first < len(spans):
            stop, together = first + 1, symbols[first]
            for last in range(first + 1, len(spans)):
                together += symbols[last]
                gap = text[spans[last - 1][1] : spans[last][0]]
                if len(together) > limit or gap.strip() or (gap and self.config.level == "character"):
                    break
                if places.get(together, -1) >= num_words:
                    stop = last + 1
            joined.append((spans[first][0], spans[stop - 1][1]))
            first = stop
        return joined

    def find_terms(self, text: str) -> list[dict[str, Any]]:
        """The terms in a text, in its order.

        A term is what [`extract_terms`] lists, compounds included; within a compound its words are not listed again.

        Returns:
            ``term`` (as it stands in the text), ``score``, ``start``, ``end``.
        """
        ranked = self._cached("ranked", lambda: set(self._ranking(include_runs=True).tolist()))
        places, rules = self._places(), self._rules()
        found = []
        for begin, end in self._join(text, next(iter(self._segmenter().spans([text])))):
            place = places.get(self.alphabet.encode_term(text[begin:end]))
            if place in ranked and (rules is None or rules.accepts(self.terms[place])):
                score = float(self._termhoods()[place])
                found.append({"term": text[begin:end], "score": score, "start": begin, "end": end})
        return found

    # --- meaning ---

    def set_vectors(self, vectors: Any) -> TermMinerModel:
        """Give the terms vectors of meaning, for [`expand`].

        Args:
            vectors: [`WordVectors`], gensim's ``KeyedVectors``, or a dictionary of arrays. Terms that it lacks get none. The
                mean of all is taken off, which vectors of a small corpus share (Mu and Viswanath 2018, arXiv:1702.01417).

        Raises:
            ValueError: it has no vector of any term.
        """
        self._check_fitted()
        known = [place for place, term in enumerate(self.terms) if term in vectors]
        if not known:
            raise ValueError(f"the vectors hold none of the {len(self.terms):,} terms, such as {self.terms[0]!r}")
        names = [self.terms[place] for place in known]
        rows = vectors.vectors(names) if callable(getattr(vectors, "vectors", None)) else np.stack([vectors[n] for n in names])
        return self._keep_vectors(torch.tensor(known), torch.as_tensor(rows).float())

    @torch.no_grad()
    def embed_terms(
        self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
    ) -> TermMinerModel:
        """Vectors of meaning from any encoder that `AutoModel` loads: the mean of the last hidden states of a term's tokens,
        less the mean of all terms.

        Args:
            encoder: gives ``last_hidden_state``.
            tokenizer: the encoder's.
            batch_size: terms at a time.
        """
        self._check_fitted()
        parts = []
        for begin in tqdm(range(0, len(self.terms), batch_size), desc="Embedding terms"):
            batch = tokenizer(self.terms[begin : begin + batch_size], padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(encoder.device)
            hidden = encoder(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            parts.append(((hidden * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu())
        return self._keep_vectors(torch.arange(len(self.terms)), torch.cat(parts))

    def _keep_vectors(self, places: Tensor, rows: Tensor) -> TermMinerModel:
        self.config.embedding_dim = rows.shape[1]
        vectors = torch.zeros((len(self.terms), rows.shape[1]), device=self.device)
        vectors[places] = (rows - rows.mean(0)).to(self.device)
        self.table.vectors = vectors
        self._cache.pop("vectors", None)
        return self

    def expand(
        self,
        seeds: Sequence[str],
        negatives: Sequence[str] = (),
        centers: Sequence[str] = (),
        *,
        min_similarity: float | None = None,
        decay: float | None = None,
        max_terms: int | None = None,
    ) -> list[dict[str, Any]]:
        """Grow a list of terms by meaning, from seeds.

        Breadth first over neighbours by cosine, with a threshold that tightens with the depth; see `grow`.

        Args:
            seeds: terms to start from.
            negatives, centers: terms away from which, and towards which, the search leans.
            min_similarity, decay: in place of the configuration's.
            max_terms: stop at so many.

        Returns:
            Rows with ``term``, ``depth``, ``parent``, ``similarity`` (to the parent), ``threshold`` (that it passed),
            ``seed_similarity`` (to the mean of the seeds: where it falls, the list drifts) and ``score``.

        Raises:
            ValueError: no vectors, or a seed that is no term or has no vector; the message names it.
        """
        self._check_fitted()
        if not self.config.embedding_dim:
            raise ValueError("expand needs vectors of meaning: call set_vectors or embed_terms first")
        config = self.config
        grown = grow(
            self._column("vectors"),
            self._places_of(seeds, "seeds"),
            centers=self._places_of(centers, "centers"),
            negatives=self._places_of(negatives, "negatives"),
            min_similarity=config.min_similarity if min_similarity is None else min_similarity,
            max_similarity=config.max_similarity,
            decay=config.decay if decay is None else decay,
            top_n=config.top_n,
            max_terms=max_terms,
        )
        termhoods = self._termhoods()
        return [
            {
                "term": self.terms[place],
                "depth": int(depth),
                "parent": None if parent < 0 else self.terms[parent],
                "similarity": float(similarity),
                "threshold": None if parent < 0 else float(threshold),
                "seed_similarity": float(seed_similarity),
                "score": float(termhoods[place]),
            }
            for place, depth, parent, similarity, threshold, seed_similarity in zip(
                grown.indices,
                grown.depths,
                grown.parents,
                grown.similarities,
                grown.thresholds,
                grown.seed_similarities,
                strict=True,
            )
        ]

    def _places_of(self, terms: Sequence[str], name: str) -> list[int]:
        if isinstance(terms, str):
            raise ValueError(f"{name}={terms!r} must be a list of terms")
        missing = [term for term in terms if term not in self.ids]
        if missing:
            close = difflib.get_close_matches(missing[0], self.terms, n=3, cutoff=0.3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else self.explain(missing[0])["reasons"][0]
            raise ValueError(f"{name} that do not occur as terms: {', '.join(map(repr, missing))}; {hint}")
        places = [self.ids[term] for term in terms]
        without = [self.terms[place] for place in places if not self.table.vectors[place].any()]
        if without:
            raise ValueError(f"{name} without a vector: {', '.join(map(repr, without))}")
        return places

    # --- files ---

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """A fast tokenizer whose tokens are the words; see [`build_term_tokenizer`]."""
        self._check_fitted()
        single = {word for word in self.words if len(word) == 1}
        unknown = [symbol for symbol in self.alphabet.symbols if symbol not in single]
        config = self.config
        if config.level == "word":
            words, scores, unknown = self.terms, [0.0] * len(self.terms), []
        else:
            words, scores = self.words, self.word_scores().tolist()
        return build_term_tokenizer(
            words,
            scores,
            config.level,
            unknown=unknown,
            unknown_score=UNKNOWN_SCORE,
            normalize=config.normalize,
            lowercase=config.lowercase,
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model, and beside it the tokenizer of its lexicon, if it has one."""
        super().save_pretrained(save_directory, **kwargs)
        if self.is_fitted and kwargs.get("is_main_process", True):
            self.build_tokenizer().save_pretrained(save_directory)

    def export(self, path: str | Path, k: int | None = None, **settings: Any) -> int:
        """Write the terms to a file: ``.csv``, ``.json``, or ``.txt`` as a user dictionary of jieba.

        Args:
            path: its end says what is written.
            k, settings: of [`extract_terms`].

        Returns:
            How many terms were written.

        Raises:
            ValueError: an unknown ending.
        """
        return write_terms(self.extract_terms(k, **settings), path)

    # --- as a model ---

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TermMinerOutput | tuple:
        """What the words of texts cost, and how characteristic they are.

        Args:
            input_ids: ``(batch, length)`` int64, of the lexicon's tokenizer.
            attention_mask: ``(batch, length)``, 0 where there is padding.
            return_loss: whether the loss is wanted; its gradient moves the words' probabilities towards the texts.
        """
        places = input_ids - len(SPECIAL_TOKENS)
        known = (places >= 0) & (places < self.config.num_words)
        if attention_mask is not None:
            known &= attention_mask.bool()
        rows = places.clamp(0, max(0, self.config.num_words - 1)).masked_fill(~known, 0)
        log_probs = F.embedding(rows, self._log_probs()[:, None])[..., 0].masked_fill(~known, 0)
        termhoods = self.table.contrasts if self.config.background_names else self.table.wordhoods
        loss = None
        if return_loss:
            loss = -(log_probs.sum(1) / known.sum(1).clamp_min(1)).mean()
        output = TermMinerOutput(
            loss=loss,
            log_probs=log_probs,
            termhoods=termhoods[rows].masked_fill(~known, 0),
            last_hidden_state=F.embedding(rows, self.table.vectors) * known[..., None] if self.config.embedding_dim else None,
        )
        return output if return_dict is not False else output.to_tuple()


__all__ = ["TermMinerModel", "TermMinerOutput"]

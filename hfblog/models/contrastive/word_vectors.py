"""Words in place of numbers: what people ask of word vectors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForPreTraining, AutoTokenizer

from .configuration_min_entropy_embedding import MinEntropyEmbeddingConfig
from .map_equation import Clusters, cluster_by_infomap, neighbour_graph
from .modeling_min_entropy_embedding import MinEntropyEmbeddingForPreTraining, MinEntropyEmbeddingModel
from .tokenization_words import train_word_tokenizer
from .word2vec_format import read_word2vec, write_word2vec


class WordVectors:
    r"""A model of item vectors and the tokenizer that numbers its items.

    Unknown words are composed of their parts where the model has subwords, and are an error that names the nearest by
    spelling where it has none. A phrase such as ``new_york`` is found as ``new york``, too.

    Args:
        model: [`MinEntropyEmbeddingModel`], or [`MinEntropyEmbeddingForPreTraining`], which knows frequencies, too.
        tokenizer: numbers the words, frequent ones first.

    Example:

    ```python
    >>> import numpy as np
    >>> from hfblog import WordVectors
    >>> words = WordVectors.from_words(["up", "down", "red"], np.array([[1.0, 0.1], [0.9, 0.2], [0.0, 1.0]]))
    >>> words.most_similar("up", top_k=1)[0][0]
    'down'
    >>> words.most_similar("upp")
    Traceback (most recent call last):
        ...
    hfblog.models.contrastive.word_vectors.UnknownWordError: unknown word 'upp'; did you mean 'up'?

    ```
    """

    def __init__(self, model: MinEntropyEmbeddingModel | MinEntropyEmbeddingForPreTraining, tokenizer: Any):
        self.whole = model if isinstance(model, MinEntropyEmbeddingForPreTraining) else None
        self.model = model.model if self.whole is not None else model
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_tokens)
        vocabulary = tokenizer.get_vocab()
        if len(vocabulary) != self.model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(vocabulary)} words, but the model vocab_size={self.model.config.vocab_size}"
            )
        self.words: list[str] = [word for word in sorted(vocabulary, key=vocabulary.get) if word not in special]
        self.ids = {word: vocabulary[word] for word in self.words}
        self._normalizer = tokenizer.backend_tokenizer.normalizer

    # --- where they come from and go to ---

    @classmethod
    def from_pretrained(cls, folder: str | Path, **settings: Any) -> WordVectors:
        """A saved folder or Hub id; ``settings`` go to `AutoModelForPreTraining.from_pretrained`."""
        return cls(AutoModelForPreTraining.from_pretrained(folder, **settings), AutoTokenizer.from_pretrained(folder))

    @classmethod
    def from_words(cls, words: Sequence[str], vectors: np.ndarray | Tensor, **settings: Any) -> WordVectors:
        """Vectors of any other origin.

        Args:
            words: ``(n,)``, each once, the frequent ones first.
            vectors: ``(n, d)``.
            settings: of the [`MinEntropyEmbeddingConfig`].

        Raises:
            ValueError: a word that occurs twice, other numbers of words and vectors, or NaN.
        """
        vectors = torch.as_tensor(np.asarray(vectors)).float()
        if vectors.ndim != 2 or len(words) != len(vectors):
            raise ValueError(f"{len(words)} words need vectors ({len(words)}, d), got {tuple(vectors.shape)}")
        if len(set(words)) < len(words):
            twice = next(word for place, word in enumerate(words) if word in set(words[:place]))
            raise ValueError(f"the word {twice!r} occurs twice")
        if not torch.isfinite(vectors).all():
            row = int((~torch.isfinite(vectors)).any(1).nonzero()[0])
            raise ValueError(f"the vector of {words[row]!r} holds NaN or infinite numbers")
        tokenizer = train_word_tokenizer([words], keep_order=True)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "unk_token_id", "eos_token_id")}
        config = {"vocab_size": len(tokenizer), "embedding_dim": vectors.shape[1], "tie_context": True, "objective": "full"}
        model = MinEntropyEmbeddingModel(MinEntropyEmbeddingConfig(**(config | special | settings)))
        with torch.no_grad():
            model.embeddings.weight.zero_()
            model.embeddings.weight[-len(words) :] = vectors
        return cls(model, tokenizer)

    @classmethod
    def from_word2vec(cls, path: str | Path, binary: bool = False, **settings: Any) -> WordVectors:
        """A file of word2vec, fastText (``.vec``), GloVe with a header, or gensim; see `read_word2vec` for the errors."""
        return cls.from_words(*read_word2vec(path, binary), **settings)

    def save_word2vec(self, path: str | Path, binary: bool = False) -> None:
        """A file that those read, too; see `write_word2vec`."""
        write_word2vec(path, self.words, self.vectors(self.words).numpy(), binary)

    @classmethod
    def from_keyed_vectors(cls, vectors: Any, **settings: Any) -> WordVectors:
        """From gensim's ``KeyedVectors``."""
        return cls.from_words(vectors.index_to_key, vectors.vectors, **settings)

    def to_keyed_vectors(self) -> Any:
        """gensim's ``KeyedVectors``, with counts where they are known."""
        try:
            from gensim.models import KeyedVectors
        except ImportError as error:
            raise ImportError("KeyedVectors need gensim: pip install gensim") from error
        keyed = KeyedVectors(self.model.config.hidden_size)
        keyed.add_vectors(self.words, self.vectors(self.words).numpy())
        if self.whole is not None:
            for word, count in zip(self.words, self.whole.noise.counts[list(self.ids.values())].tolist(), strict=True):
                keyed.set_vecattr(word, "count", count)
        return keyed

    # --- words ---

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return self._find(word) is not None

    def _find(self, word: str) -> int | None:
        normal = self._normalized(word)
        for form in (word, normal, normal.replace(" ", "_")):
            if form in self.ids:
                return self.ids[form]
        return None

    def _normalized(self, word: str) -> str:
        """As the tokenizer has it, in small letters for instance."""
        return word if self._normalizer is None else self._normalizer.normalize_str(word).strip()

    def id_of(self, word: str) -> int:
        """The number of a word.

        Raises:
            KeyError: it is unknown; the message names the nearest by spelling.
        """
        if (found := self._find(word)) is None:
            raise UnknownWordError(f"unknown word {word!r}; {self._nearest_spelling(word)}")
        return found

    def _nearest_spelling(self, word: str) -> str:
        # words of similar length first: comparing all of a large vocabulary takes seconds
        alike = [other for other in self.words if abs(len(other) - len(word)) <= 2 and set(other) & set(word)]
        close = difflib.get_close_matches(word, alike, n=3, cutoff=0.5)
        return f"did you mean {' or '.join(map(repr, close))}?" if close else "no known word is spelled like it"

    def frequent(self, count: int | None = None) -> list[str]:
        """The most frequent words, the first in the tokenizer."""
        return self.words[:count]

    @torch.no_grad()
    def vectors(self, words: Sequence[str]) -> Tensor:
        """Vectors ``(n, hidden_size)`` float32 on the CPU; unknown words are composed of their parts.

        Raises:
            KeyError: a word is unknown and the model has no subwords.
        """
        found = [self._find(word) for word in words]
        unknown = [place for place, index in enumerate(found) if index is None]
        if unknown and self.model.subword_embeddings is None:
            self.id_of(words[unknown[0]])
        ids = torch.tensor([index or 0 for index in found], device=self.model.device)
        vectors = self.model.vectors(ids).detach().float().cpu()
        if unknown:
            parts_of = [self._normalized(words[place]) for place in unknown]
            vectors[unknown] = self.model.compose_words(parts_of).float().cpu()
        return vectors

    def fit_subwords(self, **settings: Any) -> None:
        """Vectors of parts of words, for unknown ones; see [`MinEntropyEmbeddingModel.fit_subwords`]."""
        self.model.fit_subwords(self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer)))), **settings)

    # --- questions ---

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two words."""
        return F.cosine_similarity(*self.vectors([first, second])[:, None], dim=-1).item()

    @torch.no_grad()
    def most_similar(
        self, query: str | Sequence[str] | Tensor, top_k: int = 10, metric: str = "cosine"
    ) -> list[tuple[str, float]]:
        """The nearest words, with their scores.

        Args:
            query: a word, several, of which the mean of the unit vectors is taken, or a vector ``(hidden_size,)``.
            top_k: how many.
            metric: see [`MinEntropyEmbeddingModel.most_similar`].
        """
        given: list[int] = []
        if not isinstance(query, Tensor):
            names = [query] if isinstance(query, str) else list(query)
            given = [index for name in names if (index := self._find(name)) is not None]
            vectors = self.vectors(names)
            query = vectors[0] if len(names) == 1 else F.normalize(vectors, dim=-1).mean(0)
        exclude = torch.tensor(given + self._special_ids(), device=self.model.device)
        found = self.model.most_similar(query.to(self.model.device), self._room(top_k, len(given)), metric, exclude)
        return self._named(found)

    @torch.no_grad()
    def analogy(
        self, a: str, b: str, c: str, top_k: int = 5, method: str = "3cosadd", num_candidates: int | None = None
    ) -> list[tuple[str, float]]:
        """``a`` is to ``b`` as ``c`` is to what? See [`MinEntropyEmbeddingModel.analogy`]."""
        ids = [torch.tensor(self.id_of(word), device=self.model.device) for word in (a, b, c)]
        special = len(self._special_ids())
        found = self.model.analogy(*ids, self._room(top_k, 3) + special, method, num_candidates)
        return [pair for pair in self._named(found) if pair[0] in self.ids][:top_k]

    def _room(self, top_k: int, given: int) -> int:
        if not 1 <= top_k <= len(self) - given:
            raise ValueError(f"top_k={top_k} must lie between 1 and {len(self) - given}, the words that are left")
        return top_k

    def _special_ids(self) -> list[int]:
        return list(self.tokenizer.all_special_ids)

    def _named(self, found: Any) -> list[tuple[str, float]]:
        names = self.tokenizer.convert_ids_to_tokens(found.indices.tolist())
        return list(zip(names, found.values.tolist(), strict=True))

    def _counts(self, what: str) -> Tensor:
        if self.whole is None or bool((self.whole.noise.counts == 1).all()):
            raise ValueError(f"{what} needs the words' frequencies, which MinEntropyEmbeddingForPreTraining has once trained")
        return self.whole.noise.counts

    def keywords(self, text: str | Sequence[str], top_k: int = 5) -> list[tuple[str, float]]:
        """The words of a text from which the whole text is cheapest to reach, in nats a word; see
        [`MinEntropyEmbeddingForPreTraining.keywords`].

        Args:
            text: words between spaces, or a list of words; unknown ones are left out.

        Raises:
            ValueError: no known word, or a model that knows no probabilities.
        """
        self._counts("keywords")
        ids = self._known_ids(text)
        if not ids:
            raise ValueError("the text has no known word")
        found = self.whole.keywords(torch.tensor(ids, device=self.model.device), min(top_k, len(set(ids))))
        return self._named(found)

    def _known_ids(self, text: str | Sequence[str]) -> list[int]:
        words = text.split() if isinstance(text, str) else text
        return [index for word in words if (index := self._find(word)) is not None]

    @torch.no_grad()
    def sentence_embedding(
        self, texts: Iterable[str | Sequence[str]], smoothing: float = 1e-3, remove_common: bool = False
    ) -> Tensor:
        """Weighted means of word vectors ``(texts, hidden_size)`` float32, rare words weighing more (Arora et al. 2017).

        Args:
            texts: words between spaces, or lists of words; unknown ones are left out, and a text of such alone is 0.
            smoothing: a of the weight ``a / (a + frequency)``.
            remove_common: whether the direction that all of these texts share, their first singular vector, is taken out.
        """
        counts = self._counts("sentence_embedding").double()
        weights = (smoothing / (smoothing + counts / counts.sum())).float().cpu()
        rows = []
        for text in texts:
            ids = torch.tensor(self._known_ids(text), dtype=torch.long)
            vectors = self.model.vectors(ids.to(self.model.device)).float().cpu()
            rows.append((weights[ids, None] * vectors).sum(0) / max(1, len(ids)))
        table = torch.stack(rows)
        if remove_common:
            common = torch.linalg.svd(table, full_matrices=False).Vh[:1]
            table = table - table @ common.T @ common
        return table

    def cluster(
        self,
        words: Sequence[str] | None = None,
        max_neighbours: int = 50,
        min_similarity: float = 0.6,
        num_trials: int = 10,
        seed: int = 1,
    ) -> tuple[list[list[str]], Clusters]:
        """Groups of words between which a random walk rarely crosses, by the map equation (Su 2019,
        https://kexue.fm/archives/7006).

        Args:
            words: which; the 10,000 most frequent by default, as in the article.
            max_neighbours, min_similarity: links of the walk, by cosine; the article's values.
            num_trials, seed: of InfoMap.

        Returns:
            Groups, the largest first, with the words in the given order and without words that are like no other; and the
            whole result.
        """
        words = list(words) if words is not None else self.frequent(10_000)
        links, weights = neighbour_graph(self.vectors(words), max_neighbours, min_similarity)
        clusters = cluster_by_infomap(links, weights, len(words), num_trials=num_trials, seed=seed)
        groups: dict[int, list[str]] = {}
        for word, module in zip(words, clusters.modules.tolist(), strict=True):
            if module >= 0:
                groups.setdefault(module, []).append(word)
        return sorted(groups.values(), key=len, reverse=True), clusters

    def picture(
        self, path: str | Path, words: Sequence[str] | None = None, groups: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        """A map of words in the plane by the t-SNE cost, as a picture.

        Args:
            path: of the PNG.
            words: which; the 200 most frequent by default.
            groups: ``(words,)``, names of their groups; where they are given, the map has coloured points and no words.
            seed: of the places at the beginning, where vectors have one dimension only.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("a picture needs matplotlib: pip install matplotlib") from error
        words = list(words) if words is not None else self.frequent(200)
        vectors = F.normalize(self.vectors(words), dim=-1)
        config = {"embedding_dim": 2, "cost": "student_t", "objective": "full", "normalize_over": "pairs"}
        torch.manual_seed(seed)
        plane = MinEntropyEmbeddingForPreTraining(
            MinEntropyEmbeddingConfig(vocab_size=len(words), tie_context=True, exclude_self=True, **config)
        )
        plane.fit_features(vectors, perplexity=min(20.0, (len(words) - 1) / 3))
        places = plane.model.vectors().detach().numpy()
        figure = Figure(figsize=(8, 8), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        if groups is None:
            axes.scatter(*places.T, s=2, alpha=0.3)
            for word, place in zip(words, places, strict=True):
                axes.annotate(word, place, fontsize=7, ha="center", va="center")
        else:
            kinds = sorted(set(groups), key=lambda kind: -list(groups).count(kind))
            for kind in kinds[:10]:
                axes.scatter(*places[[group == kind for group in groups]].T, s=12, label=kind)
            rest = places[[group not in kinds[:10] for group in groups]]
            if len(rest):
                axes.scatter(*rest.T, s=8, color="lightgrey", label="others")
            axes.legend()
        figure.savefig(path)


class UnknownWordError(KeyError):
    """A word that is not in the vocabulary."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError shows its message in quotes


__all__ = ["UnknownWordError", "WordVectors"]

"""Configuration of item vectors that make the next item cheap to reach."""

import math
from dataclasses import field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_contrastive import ContrastiveConfig, check_choice, check_positive

COSTS = ("dot", "l2", "student_t", "library")
EMBEDDING_OBJECTIVES = ("full", "neg", "nce", "ranking", "pmi_regression", "layout")
OUTPUT_VECTORS = ("input", "context", "sum", "concat")
NORMALIZATIONS = ("next", "pairs")


@strict
class MinEntropyEmbeddingConfig(ContrastiveConfig):
    r"""Vectors of words, books or any other items, placed so that going from one to the next costs least on average.

    Su Jianlin 2018, https://kexue.fm/archives/6191. Going from item i to item j costs ``-log q(j | i)`` nats, where
    ``q(j | i)`` is a softmax over j of a score; the expected cost is the cross-entropy S, never less than H(J | I).

    Args:
        vocab_size: number of items V.
        embedding_dim: d.
        cost: the score of j after i. ``"dot"``, ``<v_i, u_j>``, makes skip-gram (Mikolov et al. 2013); ``"l2"``,
            ``-|v_i - u_j|^2``, SNE; ``"student_t"``, ``-(nu + 1) / 2 log(1 + |v_i - u_j|^2 / nu)``, t-SNE's; ``"library"``,
            ``-|v_i - u_j|``, the walk between two shelves.
        degrees_of_freedom: nu of ``"student_t"``; 1 is t-SNE's.
        tie_context: whether u is v. Tied vectors bring together what occurs together, untied ones what occurs in the same
            places.
        item_bias: whether ``b_j`` is added to the score. A distance knows nothing of how frequent an item is: without it the
            costs other than ``"dot"`` stay above the entropy of single items.
        exclude_self: whether an item never follows itself, as in SNE.
        objective: ``"full"`` sums over all items; ``"neg"`` is word2vec's negative sampling, which learns
            ``log p(j | i) / q(j) - log k`` and not probabilities; ``"nce"`` and ``"ranking"`` (sampled softmax) learn
            probabilities from noise; ``"pmi_regression"`` fits the score to log ``p(i, j) / p(i) p(j)`` by weighted squares;
            ``"layout"`` is the article's first problem, no probabilities but the walk itself, ``|v_i| + |v_i - v_j|`` from the
            door to i and on to j, with things at least ``min_distance`` apart.
        normalize_over: in ``"full"``, whether probabilities sum to 1 over the ``"next"`` item, as in the article and in SNE,
            or over all ``"pairs"``, as in t-SNE.
        min_distance: of ``"layout"``, how near two items may be.
        num_noise_samples: noise items k for each pair.
        noise_power: noise is drawn by the items' counts to this power.
        window_size: in sequences, items up to so many places apart make pairs, nearer ones with more weight, as in word2vec;
            None makes pairs of all items of a record, which has no order (item2vec, Barkan and Koenigstein 2016).
        subsample: in training on sequences, word2vec's t: an item of frequency f is kept with chance ``sqrt(t / f) + t / f``;
            0 keeps all.
        output_vectors: what the model gives for an item: ``"input"`` v, ``"context"`` u, their ``"sum"`` or ``"concat"``.
        num_subwords: buckets for the parts of words, from which unknown words are composed
            ([`MinEntropyEmbeddingModel.fit_subwords`]); 0 for none.
        subword_lengths: fewest and most letters of these parts.
        initializer_range: v starts uniform within this number over d; u at 0, where it is another.

    Example:

    ```python
    >>> from hfblog import MinEntropyEmbeddingConfig
    >>> MinEntropyEmbeddingConfig(vocab_size=1000, embedding_dim=50, output_vectors="concat").hidden_size
    100

    ```
    """

    model_type = "min_entropy_embedding"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_min_entropy_embedding.MinEntropyEmbeddingConfig",
        "AutoModel": "modeling_min_entropy_embedding.MinEntropyEmbeddingModel",
        "AutoModelForPreTraining": "modeling_min_entropy_embedding.MinEntropyEmbeddingForPreTraining",
    }

    vocab_size: int = 30_000
    embedding_dim: int = 100
    cost: str = "dot"
    degrees_of_freedom: float | int = 1.0
    tie_context: bool = False
    item_bias: bool = False
    exclude_self: bool = False
    objective: str = "neg"
    normalize_over: str = "next"
    min_distance: float | int = 0.0
    num_noise_samples: int = 5
    noise_power: float | int = 0.75
    window_size: int | None = 5
    subsample: float | int = 1e-3
    output_vectors: str = "input"
    num_subwords: int = 0
    subword_lengths: list[int] = field(default_factory=lambda: [3, 6])
    initializer_range: float | int = 0.5
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    unk_token_id: int | None = None
    eos_token_id: int | None = None

    @property
    def hidden_size(self) -> int:
        """Length of the vectors that the model gives."""
        return self.embedding_dim * (2 if self.output_vectors == "concat" else 1)

    def validate_cost(self):
        check_choice("cost", self.cost, COSTS)
        check_choice("objective", self.objective, EMBEDDING_OBJECTIVES)
        check_choice("output_vectors", self.output_vectors, OUTPUT_VECTORS)
        check_choice("normalize_over", self.normalize_over, NORMALIZATIONS)
        check_positive(self, "vocab_size", "embedding_dim", "degrees_of_freedom", "num_noise_samples", "initializer_range")
        if self.window_size is not None:
            check_positive(self, "window_size")
        for name in ("subsample", "min_distance", "num_subwords"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        lengths = self.subword_lengths
        if len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"subword_lengths={lengths} must be two numbers, the fewest letters and the most")
        if self.normalize_over == "pairs" and self.objective != "full":
            raise ValueError(f"normalize_over='pairs' sums over all of them, which objective={self.objective!r} does not")
        if (self.objective == "layout") != (self.min_distance > 0) or (
            self.objective == "layout" and not (self.cost == "library" and self.tie_context)
        ):
            raise ValueError(
                "objective='layout' goes with cost='library', tie_context=True and a positive min_distance, and no other goes "
                f"with a min_distance; got {self.objective!r}, {self.cost!r}, {self.tie_context}, {self.min_distance}"
            )
        if not math.isfinite(self.noise_power):
            raise ValueError(f"noise_power={self.noise_power} must be finite")
        if self.tie_context and self.output_vectors != "input":
            raise ValueError(
                f"output_vectors={self.output_vectors!r} with tie_context=True: there is one vector an item, 'input'"
            )
        if self.objective in ("neg", "nce", "ranking") and self.num_noise_samples >= self.vocab_size:
            raise ValueError(
                f"num_noise_samples={self.num_noise_samples} must be fewer than the vocab_size={self.vocab_size} items; "
                "objective='full' takes all of them"
            )


__all__ = ["MinEntropyEmbeddingConfig"]

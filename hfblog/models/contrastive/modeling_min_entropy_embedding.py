"""Item vectors of least expected cost: skip-gram, SNE and t-SNE as one model.

Su Jianlin 2018, https://kexue.fm/archives/6191; Mikolov et al. 2013, arXiv:1310.4546; Hinton and Roweis 2002; van der
Maaten and Hinton 2008. All costs and entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from transformers.utils.logging import tqdm

from .affinities import feature_affinities
from .configuration_min_entropy_embedding import MinEntropyEmbeddingConfig
from .nce_loss import NCELoss
from .noise_distributions import UnigramNoise, count_ids, reset_noise
from .subwords import fit_subword_vectors, subword_matrix

# Scores computed at a time where no gradient is needed: a bound on memory, not on what is computed.
SCORES_AT_A_TIME = 2**24


@dataclass
class MinEntropyEmbeddingOutput(ModelOutput):
    """Output of [`MinEntropyEmbeddingForPreTraining`].

    Args:
        loss: scalar, nats a pair: the objective in training; otherwise the cost, the mean of ``-log q(j | i)`` over the pairs,
            by the sum over all items.
        pair_scores: ``(pairs,)``, or ``(batch, pairs)`` of sequences, the score of each pair.
    """

    loss: Tensor | None = None
    pair_scores: Tensor | None = None


@dataclass
class ReferencePoints(ModelOutput):
    """Where a cost stands between nothing known and all known, in nats: log V >= H(J) >= S >= H(J | I).

    Args:
        uniform: log V.
        unigram: H(J), what the next item costs without the one before it.
        cost: S; None where none was given.
        conditional: H(J | I), what no model is below.
        explained: ``(H(J) - S) / (H(J) - H(J | I))``, the share of the mutual information; negative where S is above H(J).
    """

    uniform: float | None = None
    unigram: float | None = None
    cost: float | None = None
    conditional: float | None = None
    explained: float | None = None


def reference_points(joint: Tensor, cost: float | None = None) -> ReferencePoints:
    """The reference points of a law over pairs.

    Args:
        joint: ``(V, V)``, dense or sparse COO, ``p(i, j)`` or counts.
        cost: the expected cost of a model.

    Raises:
        ValueError: it is not square, holds a negative number, or nothing.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import reference_points
    >>> points = reference_points(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
    >>> round(points.unigram, 4), points.conditional
    (0.6931, 0.0)

    ```
    """
    if joint.ndim != 2 or joint.shape[0] != joint.shape[1]:
        raise ValueError(f"a law over pairs is (V, V), got {tuple(joint.shape)}")
    sparse = joint.coalesce() if joint.is_sparse else joint.to_sparse()
    values = sparse.values().double()
    if not len(values) or values.min() < 0 or values.sum() == 0:
        raise ValueError("a law over pairs needs numbers that are not negative, and some that are positive")
    values = values / values.sum()
    rows, columns = sparse.indices()
    first, second = (
        torch.zeros(len(joint), dtype=torch.float64).index_add_(0, i.cpu(), values.cpu()) for i in (rows, columns)
    )

    def entropy(law: Tensor) -> float:
        return -torch.xlogy(law, law).sum().item()

    unigram = entropy(second)
    conditional = entropy(values) - entropy(first)
    explained = None
    if cost is not None:
        explained = (unigram - cost) / (unigram - conditional) if unigram > conditional else math.nan
    return ReferencePoints(math.log(len(joint)), unigram, cost, max(conditional, 0.0), explained)


def keep_chances(counts: Tensor, subsample: float) -> Tensor:
    """word2vec's ``sqrt(t / f) + t / f`` of frequencies f, at most 1, ``(V,)`` float32; t = 0 keeps everything."""
    if not subsample:
        return torch.ones(len(counts), dtype=torch.float32, device=counts.device)
    share = subsample * counts.sum().double() / counts.double().clamp_min(1)
    return (share.sqrt() + share).clamp_max(1).float()


def count_items(items: np.ndarray, vocab_size: int) -> Tensor:
    """How often each item occurs, ``(V,)`` int64, of an array that may be larger than the memory."""
    counts = np.zeros(vocab_size, np.int64)
    for begin in range(0, len(items), SCORES_AT_A_TIME):
        counts += np.bincount(items[begin : begin + SCORES_AT_A_TIME], minlength=vocab_size)
    return torch.from_numpy(counts)


def law_counts(law: Tensor) -> Tensor:
    """Whole numbers in proportion to ``p(j)``, ``(V,)`` int64: the frequencies of a law that was never counted."""
    frequencies = torch.sparse.sum(law, 0).to_dense()
    return (frequencies / frequencies.max() * 1e6).round().long()


class ContextEmbedding(nn.Embedding):
    """u, an item's vectors as the one that follows."""


class SubwordEmbedding(nn.Embedding):
    """Vectors of parts of words, 0 until they are fitted."""


class MinEntropyPreTrainedModel(PreTrainedModel):
    """What the models of item vectors share."""

    config_class = MinEntropyEmbeddingConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = False
    _no_split_modules = []
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if reset_noise(module):
            return
        if isinstance(module, SubwordEmbedding) or (isinstance(module, ContextEmbedding) and self.config.cost == "dot"):
            init.zeros_(module.weight)  # a distance needs two places; an inner product takes its first step from 0
        elif isinstance(module, nn.Embedding):
            bound = self.config.initializer_range / self.config.embedding_dim
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, MinEntropyEmbeddingForPreTraining) and module.item_bias is not None:
            init.zeros_(module.item_bias)


class MinEntropyEmbeddingModel(MinEntropyPreTrainedModel):
    r"""Vectors of items.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import MinEntropyEmbeddingConfig, MinEntropyEmbeddingModel
    >>> model = MinEntropyEmbeddingModel(MinEntropyEmbeddingConfig(vocab_size=50, embedding_dim=8))
    >>> model(torch.tensor([[3, 1, 4]])).last_hidden_state.shape
    torch.Size([1, 3, 8])
    >>> model.most_similar(torch.tensor(3), top_k=2).indices.shape
    torch.Size([2])

    ```
    """

    _auto_class = "AutoModel"

    def __init__(self, config: MinEntropyEmbeddingConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.context_embeddings = None
        if not config.tie_context:
            self.context_embeddings = ContextEmbedding(config.vocab_size, config.embedding_dim)
        self.subword_embeddings = None
        if config.num_subwords:
            self.subword_embeddings = SubwordEmbedding(config.num_subwords, config.hidden_size)
            self.subword_embeddings.requires_grad_(False)  # fitted, not trained
        self.learns_context = config.output_vectors != "input"
        self.post_init()

    def train(self, mode: bool = True) -> MinEntropyEmbeddingModel:
        """As in torch; what the output does not show is frozen, for the sake of what is built on it."""
        if self.context_embeddings is not None:
            self.context_embeddings.requires_grad_(self.learns_context)
        return super().train(mode)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value

    @property
    def context_vectors(self) -> Tensor:
        """u, ``(V, d)``."""
        return (self.embeddings if self.context_embeddings is None else self.context_embeddings).weight

    def vectors(self, ids: Tensor | None = None) -> Tensor:
        """What the model gives for items, ``(...) -> (..., hidden_size)``; by default of all of them."""
        ids = torch.arange(self.config.vocab_size, device=self.device) if ids is None else ids
        kind = self.config.output_vectors
        if kind == "input":
            return self.embeddings(ids)
        own, context = self.embeddings(ids), F.embedding(ids, self.context_vectors)
        if kind == "context":
            return context
        return own + context if kind == "sum" else torch.cat([own, context], -1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple:
        """Vectors of a batch.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: ``(batch, length)``; the vectors of padding are 0.
            inputs_embeds: ``(batch, length, hidden_size)`` in place of ``input_ids``.
            return_dict: a `BaseModelOutput`, or a tuple.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        hidden = self.vectors(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None].to(hidden.dtype)
        output = BaseModelOutput(last_hidden_state=hidden)
        return output if return_dict else output.to_tuple()

    # --- unknown words ---

    @torch.no_grad()
    def fit_subwords(self, words: Sequence[str], ridge: float = 0.005, steps: int = 50) -> None:
        """Fit vectors of parts of words to the words' own, by least squares; the words' own stay as they are.

        Args:
            words: all V of them, in the order of their ids. Those in brackets, such as ``[PAD]``, are left out.
            ridge: weight of the squared length of a part's vector.
            steps: of conjugate gradients.

        Raises:
            ValueError: a configuration without subwords, or another number of words.
        """
        if self.subword_embeddings is None:
            raise ValueError("num_subwords=0 in the configuration: there is no room for subwords, 200_000 are enough for most")
        if len(words) != self.config.vocab_size:
            raise ValueError(f"{len(words)} words, but vocab_size={self.config.vocab_size}")
        known = [index for index, word in enumerate(words) if not (word.startswith("[") and word.endswith("]"))]
        buckets, starts = subword_matrix(
            [words[index] for index in known], self.config.num_subwords, self.config.subword_lengths
        )
        vectors = self.vectors()[known].float().cpu()
        fitted = fit_subword_vectors(buckets, starts, vectors, self.config.num_subwords, ridge, steps)
        self.subword_embeddings.weight.copy_(fitted)

    def compose_words(self, words: Sequence[str]) -> Tensor:
        """Vectors of words, known or not, from those of their parts, ``(n, hidden_size)``.

        Raises:
            ValueError: a configuration without subwords.
        """
        if self.subword_embeddings is None:
            raise ValueError("num_subwords=0 in the configuration: unknown words have no vectors")
        buckets, starts = subword_matrix(words, self.config.num_subwords, self.config.subword_lengths)
        weight = self.subword_embeddings.weight
        return F.embedding_bag(buckets.to(weight.device), weight, starts.to(weight.device), mode="mean")

    # --- what users ask ---

    @torch.no_grad()
    def most_similar(self, query: Tensor, top_k: int = 10, metric: str = "cosine", exclude: Tensor | None = None) -> Any:
        """The items nearest to an item or a vector, as `torch.topk`: ``values`` and ``indices`` ``(..., top_k)``.

        Args:
            query: item ids ``(...)``, which are not among their own neighbours, or vectors ``(..., hidden_size)``.
            top_k: how many.
            metric: ``"cosine"`` ranks what is alike, ``"dot"`` what goes together, ``"distance"`` what stands near in a map.
            exclude: ids ``(..., n)`` that are left out.

        Raises:
            ValueError: another metric.
        """
        if metric not in ("cosine", "dot", "distance"):
            raise ValueError(f"metric={metric!r} must be 'cosine', 'dot' or 'distance'")
        if not query.is_floating_point():
            exclude = query[..., None] if exclude is None else torch.cat([exclude, query[..., None]], -1)
            query = self.vectors(query)
        table = self.vectors()
        if metric == "cosine":
            table, query = F.normalize(table, dim=-1), F.normalize(query, dim=-1)
        scores = query @ table.T
        if metric == "distance":
            scores = -(query.square().sum(-1, keepdim=True) - 2 * scores + table.square().sum(-1)).clamp_min(0).sqrt()
        if exclude is not None:
            scores = scores.scatter(-1, exclude, -math.inf)
        return scores.topk(top_k, dim=-1)

    @torch.no_grad()
    def analogy(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        top_k: int = 10,
        method: str = "3cosadd",
        num_candidates: int | None = None,
    ) -> Any:
        """``a`` is to ``b`` as ``c`` is to what? As `torch.topk`, ``(..., top_k)``; the three themselves are left out.

        Args:
            a, b, c: item ids ``(...)``.
            top_k: how many.
            method: ``"3cosadd"`` (Mikolov et al. 2013) or ``"3cosmul"`` (Levy and Goldberg 2014).
            num_candidates: answers come from the first so many items, the frequent ones of a vocabulary; from all by default.

        Raises:
            ValueError: another method, or ids that are no candidates.
        """
        if method not in ("3cosadd", "3cosmul"):
            raise ValueError(f"method={method!r} must be '3cosadd' or '3cosmul'")
        table = F.normalize(self.vectors()[:num_candidates], dim=-1)
        if max(ids.max().item() for ids in (a, b, c)) >= len(table):
            raise ValueError(f"the items of an analogy must be among the num_candidates={num_candidates} first ones")
        near_a, near_b, near_c = (table[ids] @ table.T for ids in (a, b, c))
        if method == "3cosadd":
            scores = near_b - near_a + near_c
        else:
            scores = ((near_b + 1) / 2) * ((near_c + 1) / 2) / ((near_a + 1) / 2 + 1e-3)
        return scores.scatter(-1, torch.stack([a, b, c], -1), -math.inf).topk(top_k, dim=-1)


class MinEntropyEmbeddingForPreTraining(MinEntropyPreTrainedModel):
    r"""Learns vectors from sequences, from pairs, or from a law over pairs.

    Example, the law itself:

    ```python
    >>> import torch
    >>> from hfblog import MinEntropyEmbeddingConfig, MinEntropyEmbeddingForPreTraining
    >>> joint = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) ** 4
    >>> config = MinEntropyEmbeddingConfig(vocab_size=20, embedding_dim=20, objective="full", initializer_range=10.0)
    >>> model = MinEntropyEmbeddingForPreTraining(config)
    >>> optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    >>> def loss():
    ...     optimizer.zero_grad()
    ...     value = model.expected_cost(joint)
    ...     value.backward()
    ...     return value
    >>> _ = optimizer.step(loss)
    >>> model.reference_points(joint).explained > 0.99
    True

    ```
    """

    _auto_class = "AutoModelForPreTraining"
    _keep_in_fp32_modules_strict = ["noise.log_probs", "noise.keep", "item_bias"]
    accepts_loss_kwargs = False

    def __init__(self, config: MinEntropyEmbeddingConfig):
        super().__init__(config)
        self.model = MinEntropyEmbeddingModel(config)
        self.model.learns_context = True
        self.item_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.item_bias else None
        self.noise = UnigramNoise(config.vocab_size, config.noise_power)
        self.loss = NCELoss(config.objective) if config.objective not in ("pmi_regression", "layout") else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embeddings = value

    # --- what depends on data ---

    @torch.no_grad()
    def initialize(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Count the items, once, before training: the noise and, where there is one, the bias.

        Args:
            input_ids: item ids of the training data, of any shape; the more, the better. Every item counts one more.
            attention_mask: of the same shape, 0 at padding.
            generator: not needed.

        Raises:
            ValueError: an id that is not below ``vocab_size``.
        """
        self.fit_noise(count_ids(input_ids, attention_mask, self.config.vocab_size, "item"), smoothing=1)

    @torch.no_grad()
    def fit_noise(self, counts: Tensor, smoothing: int = 0) -> None:
        """Set the noise, and the bias to the items' log-frequencies; see `UnigramNoise.fit` for the errors."""
        self.noise.fit(counts, smoothing)
        if self.item_bias is not None:
            frequencies = self.noise.counts.double()
            self.item_bias.copy_((frequencies / frequencies.sum()).log())

    @torch.no_grad()
    def fit_corpus(
        self,
        sequences: Any,
        epochs: int = 5,
        learning_rate: float = 0.025,
        min_learning_rate: float = 1e-4,
        threads: int = 1,
        seed: int = 0,
        first_epoch: int = 0,
        on_epoch_end: Callable[[int], None] | None = None,
    ) -> None:
        """Negative sampling over a corpus, or over records without an order, in compiled loops on the CPU.

        Noise is counted first. Windows and subsampling are the configuration's; a corpus may lie in a file that is mapped
        into memory (``numpy.memmap``).

        Args:
            sequences: lists of item ids, or the pair ``(items, starts)``: all of them one after the other, int32, and where
                each sequence begins, with the end.
            epochs: passes over the corpus.
            learning_rate, min_learning_rate: at the start and at the end; it falls linearly over all epochs.
            threads: how many; several are faster, and their result depends on their timing.
            seed: of subsampling, windows and noise.
            first_epoch: of an interrupted training, how many passes lie behind it; what follows is as it would have been.
            on_epoch_end: is told how many passes are done, with the vectors in the model.

        Raises:
            ImportError: numba is missing.
            ValueError: an empty corpus, ids outside the vocabulary, or a model that is no skip-gram.
        """
        from .skipgram_kernel import flatten_sequences, train_skipgram

        config = self.config
        if (config.cost, config.objective, config.tie_context, config.item_bias, config.exclude_self) != (
            "dot",
            "neg",
            False,
            False,
            False,
        ):
            raise ValueError(
                "the compiled loops learn cost='dot' by objective='neg' with tie_context=False, item_bias=False and "
                "exclude_self=False; the Trainer learns the others"
            )
        items, starts = flatten_sequences(sequences, config.vocab_size)
        self.fit_noise(count_items(items, config.vocab_size), smoothing=1)
        tables = [
            np.ascontiguousarray(layer.weight.detach().cpu().float().numpy())
            for layer in (self.model.embeddings, self.model.context_embeddings)
        ]

        def keep_vectors(epoch: int) -> None:
            for layer, table in zip((self.model.embeddings, self.model.context_embeddings), tables, strict=True):
                layer.weight.copy_(torch.from_numpy(table))
            if on_epoch_end is not None:
                on_epoch_end(epoch)

        train_skipgram(
            items,
            starts,
            *tables,
            keep_chances(self.noise.counts.cpu(), config.subsample).numpy(),
            self.noise.keep.cpu().float().numpy(),
            self.noise.alias.cpu().numpy(),
            window=config.window_size,
            num_noise=config.num_noise_samples,
            epochs=epochs,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            threads=threads,
            seed=seed,
            first_epoch=first_epoch,
            on_epoch_end=keep_vectors,
        )

    @torch.no_grad()
    def fit_features(self, features: Tensor, perplexity: float = 30.0, **settings: Any) -> ReferencePoints:
        """A map of feature vectors ``(V, ...)``: the law of `feature_affinities`, then `fit_law`, from principal components.

        With ``cost="student_t"`` and ``normalize_over="pairs"`` that is t-SNE, with ``"l2"`` and ``"next"`` SNE.

        Args:
            features: one vector an item.
            perplexity: how many neighbours an item has, in effect.
            settings: of `fit_law`.

        Raises:
            ValueError: see `feature_affinities`; or another number of items than ``vocab_size``.
        """
        features = torch.as_tensor(features).flatten(1).double()
        law = feature_affinities(features, perplexity, symmetric=self.config.normalize_over == "pairs")
        if len(features) == self.config.vocab_size:
            self.start_from_principal_components(features)
        return self.fit_law(law, **settings)

    @torch.no_grad()
    def start_from_principal_components(self, features: Tensor, spread: float = 1e-4) -> None:
        """Vectors along the largest principal components, the first with the standard deviation ``spread``."""
        features = torch.as_tensor(features).flatten(1).double()
        _, _, axes = torch.linalg.svd(features - features.mean(0), full_matrices=False)
        axes = axes[: self.config.embedding_dim]
        # an axis has no direction: the sign of its largest part is positive
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        places = (features - features.mean(0)) @ axes.T
        self.model.embeddings.weight[:, : len(axes)] = (spread * places / places[:, 0].std()).to(self.dtype)

    @torch.no_grad()
    def fit_law(
        self,
        joint: Tensor,
        steps: int | None = None,
        learning_rate: float | None = None,
        seed: int = 0,
        threads: int = 1,
        callback: Callable[[int, float], None] | None = None,
    ) -> ReferencePoints:
        """Learn a law over pairs itself, to the end: co-occurrence counts, neighbours of features, borrowing records.

        ``objective="layout"`` is solved by [`LibraryLayout`]; tied distances without a bias (SNE, t-SNE) descend in compiled
        loops; everything else takes Adam on the exact expected cost, which costs ``V^2`` a step.

        Args:
            joint: ``(V, V)``, dense or sparse COO, ``p(i, j)`` or counts.
            steps: 750 in compiled loops, 300 of Adam by default.
            learning_rate: that of t-SNE, or 0.05 for Adam, by default.
            seed: of a layout.
            threads: in compiled loops.
            callback: is told step and cost in nats every 50 steps.

        Returns:
            The reference points with the cost that was reached.

        Raises:
            ValueError: not a law over ``vocab_size`` items.
        """
        config = self.config
        if tuple(joint.shape) != (config.vocab_size,) * 2:
            raise ValueError(f"a law over vocab_size={config.vocab_size} items is square, got {tuple(joint.shape)}")
        reference_points(joint)  # its errors, before anything is changed
        law = (joint if joint.is_sparse else joint.to_sparse()).coalesce().double().cpu()
        law = law / law.values().sum()
        self.fit_noise(law_counts(law), smoothing=1)
        if config.objective == "layout":
            layout = self.library_layout(law).fit(seed=seed)
            self.model.embeddings.weight.zero_()
            self.model.embeddings.weight[self.occurring_items()] = layout.positions.to(self.dtype)
            return self.reference_points(joint)
        if config.tie_context and config.cost in ("l2", "student_t") and not config.item_bias and config.exclude_self:
            self._descend_in_loops(law, steps or 750, learning_rate, threads, callback)
            return self.reference_points(joint)
        dense = law.to_dense().float() if config.vocab_size**2 <= SCORES_AT_A_TIME else law.float()
        dense = dense.to(self.device)
        with torch.enable_grad():
            optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=learning_rate or 0.05)
            for step in range(steps or 300):
                optimizer.zero_grad()
                cost = self.law_objective(dense)
                cost.backward()
                optimizer.step()
                if callback is not None and (step + 1) % 50 == 0:
                    callback(step + 1, cost.item())
        return self.reference_points(joint)

    def occurring_items(self) -> Tensor:
        """Ids of the items that were seen, ``(n,)``: every other one has the count 1 that smoothing gave it."""
        return (self.noise.counts > 1).nonzero()[:, 0].cpu()

    def library_layout(self, joint: Tensor) -> Any:
        """The [`LibraryLayout`] problem of the items that occur: what nobody borrows needs no shelf, and stays at the door."""
        from .library_layout import LibraryLayout

        items = self.occurring_items()
        books = joint.to_dense()[items][:, items]
        return LibraryLayout(books, self.config.embedding_dim, float(self.config.min_distance))

    def _descend_in_loops(self, law: Tensor, steps: int, learning_rate: float | None, threads: int, callback: Any) -> None:
        from .map_kernel import MapProblem, descend_map

        config = self.config
        both = (law + law.T).coalesce()
        rows, columns = both.indices().numpy()
        problem = MapProblem(
            np.searchsorted(rows, np.arange(config.vocab_size + 1)),
            np.ascontiguousarray(columns),
            both.values().float().numpy(),
            torch.sparse.sum(law, 1).to_dense().float().numpy(),
            config.cost,
            float(config.degrees_of_freedom),
            config.normalize_over == "pairs",
            threads,
        )
        places = descend_map(
            problem,
            self.model.embeddings.weight.detach().cpu().float().numpy().T,
            steps=steps,
            learning_rate=learning_rate,
            callback=None if callback is None else lambda step, z: callback(step, problem.value(z)),
        )
        self.model.embeddings.weight.copy_(torch.from_numpy(places.T))

    # --- scores ---

    def _similarity(self, inner: Tensor, squares: Tensor | None) -> Tensor:
        cost = self.config.cost
        if cost == "dot":
            return inner
        distance = squares.clamp_min(0)
        if cost == "l2":
            return -distance
        if cost == "library":
            return -(distance + 1e-12).sqrt()
        nu = self.config.degrees_of_freedom
        return -0.5 * (nu + 1) * torch.log1p(distance / nu)

    def pair_scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of j after i in float32 at least, of ids of one shape that broadcast, ``(...)``."""
        v, u = self.model.embeddings(first), F.embedding(second, self.model.context_vectors)
        scores = self._similarity((v * u).sum(-1), None if self.config.cost == "dot" else (v - u).square().sum(-1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.config.exclude_self:
            scores = scores.masked_fill(first == second, -math.inf)
        return scores if self.item_bias is None else scores + self.item_bias[second]

    def scores(self, first: Tensor) -> Tensor:
        """Scores of all items after each i, ``(n,) -> (n, V)``."""
        v, u = self.model.embeddings(first), self.model.context_vectors
        inner = v @ u.T
        squares = None
        if self.config.cost != "dot":
            squares = v.square().sum(1, keepdim=True) - 2 * inner + u.square().sum(1)
        scores = self._similarity(inner, squares)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.config.exclude_self:
            scores = scores.scatter(1, first[:, None], -math.inf)
        return scores if self.item_bias is None else scores + self.item_bias

    # --- costs ---

    @property
    def log_prior(self) -> Tensor | float:
        """What scores lack of log-probabilities up to a constant, ``(V,)`` or 0: they are learned as ratios to it."""
        if self.config.objective == "neg":
            return self.noise.log_probs
        if self.config.objective == "pmi_regression":
            return (self.noise.counts.double() / self.noise.counts.sum()).log().float()
        return 0.0

    def log_normalizer(self, first: Tensor) -> Tensor:
        """log sum_j exp(score + log_prior) after each i in nats, ``(n,) -> (n,)``."""
        rows = max(1, SCORES_AT_A_TIME // self.config.vocab_size)
        if torch.is_grad_enabled() or len(first) <= rows:
            return torch.cat([(self.scores(part) + self.log_prior).logsumexp(1) for part in first.split(rows)])
        parts = tqdm(first.split(rows), desc="Sums over all items", unit="part", disable=len(first) < 20 * rows)
        return torch.cat([(self.scores(part) + self.log_prior).logsumexp(1) for part in parts])

    def log_prob(self, first: Tensor, second: Tensor) -> Tensor:
        """log q(j | i) in nats, ``(n,)`` ids i and j -> ``(n,)``."""
        items, place = first.unique(return_inverse=True)
        prior = self.log_prior
        prior = prior if isinstance(prior, float) else prior[second]
        return self.pair_scores(first, second) + prior - self.log_normalizer(items)[place]

    def law_objective(self, joint: Tensor) -> Tensor:
        """What `fit_law` makes small: `expected_cost`, or, over pairs, ``-log q(i, j)`` in nats; see there for the law."""
        if self.config.normalize_over == "next":
            return self.expected_cost(joint)
        return self._law_cost(joint, lambda mass, normalizers: normalizers.logsumexp(0))

    def expected_cost(self, joint: Tensor) -> Tensor:
        """S, the expected cost of the next item in nats, exactly; differentiable.

        Args:
            joint: ``(V, V)`` dense or sparse COO, a law of pairs or their counts.
        """
        return self._law_cost(joint, lambda mass, normalizers: (mass * normalizers).sum())

    def expected_walk(self, joint: Tensor) -> Tensor:
        """The article's first cost, ``sum p(i, j) (|v_i| + |v_i - u_j|)``: from the door to i and on to j; differentiable."""
        law = (joint if joint.is_sparse else joint.to_sparse()).coalesce()
        first, second = law.indices()
        return (law.values() / law.values().sum() * self._walks(first, second)).sum()

    def _walks(self, first: Tensor, second: Tensor) -> Tensor:
        v, u = self.model.embeddings(first), F.embedding(second, self.model.context_vectors)
        return v.norm(dim=-1) + (v - u).norm(dim=-1)

    def _law_cost(self, joint: Tensor, normalizer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``normalizer(mass, log-normalizers)``, of all items, minus the mean score."""
        prior = self.log_prior
        if not joint.is_sparse:
            weights = joint / joint.sum()
            scores, normalizers = weights.new_zeros(()), []
            rows = max(1, SCORES_AT_A_TIME // self.config.vocab_size)
            for ids in torch.arange(self.config.vocab_size, device=joint.device).split(rows):
                block = self.scores(ids) + prior
                part = weights[ids].to(block.dtype)
                # nothing times minus infinity is nothing
                scores = scores + torch.where(part > 0, part * block.masked_fill(part == 0, 0.0), 0.0).sum()
                normalizers.append(block.logsumexp(1))
            return normalizer(weights.sum(1), torch.cat(normalizers)) - scores
        law = joint.coalesce()
        first, second = law.indices()
        weights = law.values() / law.values().sum()
        scores = weights.new_zeros(())
        for part in torch.arange(len(weights), device=weights.device).split(SCORES_AT_A_TIME // 64):
            block = self.pair_scores(first[part], second[part])
            block = block if isinstance(prior, float) else block + prior[second[part]]
            scores = scores + (weights[part] * block).sum()
        mass = weights.new_zeros(self.config.vocab_size).index_add(0, first, weights)
        ids = mass.nonzero()[:, 0] if self.config.normalize_over == "next" else torch.arange(len(mass), device=mass.device)
        return normalizer(mass[ids], self.log_normalizer(ids)) - scores

    @torch.no_grad()
    def reference_points(self, joint: Tensor) -> ReferencePoints:
        """The expected cost under a law ``(V, V)``, dense or sparse COO, between the points that bound it."""
        return reference_points(joint, self.expected_cost(joint.to(self.device)).item())

    @torch.no_grad()
    def keywords(self, input_ids: Tensor, top_k: int = 5) -> Any:
        """The items of a text from which all of it is cheapest to reach: the largest mean of ``log q(j | i)`` over its j.

        Su Jianlin 2017, https://kexue.fm/archives/4316: a keyword is one that the text can be guessed from.

        Args:
            input_ids: ``(length,)``.
            top_k: how many, at most as there are different items.

        Returns:
            As `torch.topk`: ``values`` in nats, and ``indices``, item ids.
        """
        items, counts = input_ids.unique(return_counts=True)
        first, second = items.repeat_interleave(len(items)), items.repeat(len(items))
        log_q = self.log_prob(first, second).view(len(items), len(items))
        apart = 1 - torch.eye(len(items), device=log_q.device)  # no item is its own evidence
        weights = apart * counts
        values = (weights * log_q.masked_fill(apart == 0, 0.0)).sum(1) / weights.sum(1).clamp_min(1)
        found = values.topk(min(top_k, len(items)))
        return torch.return_types.topk((found.values, items[found.indices]))

    def window_pairs(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of places up to ``window_size`` apart in sequences ``(batch, length)``, both ways.

        Returns:
            Ids i, ids j and weights, ``(batch, pairs)`` each. Places o apart weigh ``1 - (o - 1) / window_size``, the chance
            that word2vec's random window holds them; in records without an order all weigh 1. Pairs with padding weigh 0.
        """
        width = self.config.window_size
        reach = min(width or input_ids.shape[1], input_ids.shape[1] - 1)
        if reach < 1:
            raise ValueError(f"sequences of length {input_ids.shape[1]} hold no pairs")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        firsts, seconds, weights = [], [], []
        for offset in range(1, reach + 1):
            left, right = input_ids[:, :-offset], input_ids[:, offset:]
            chance = 1.0 if width is None else 1 - (offset - 1) / width
            weight = chance * (mask[:, :-offset] * mask[:, offset:])
            firsts += [left, right]
            seconds += [right, left]
            weights += [weight, weight]
        return torch.cat(firsts, 1), torch.cat(seconds, 1), torch.cat(weights, 1)

    def subsampled(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sequences without a random part of their frequent items, so that windows reach further, as in word2vec.

        What is left of each sequence stands at its beginning; the mask says how much it is.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        chances = keep_chances(self.noise.counts, self.config.subsample)
        kept = mask.bool() & (torch.rand(input_ids.shape, device=input_ids.device) < chances[input_ids])
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
        return input_ids.gather(1, order), kept.gather(1, order).to(mask.dtype)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        center_ids: Tensor | None = None,
        context_ids: Tensor | None = None,
        weights: Tensor | None = None,
        noise_ids: Tensor | None = None,
        pmi: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
    ) -> MinEntropyEmbeddingOutput | tuple:
        """The loss of the pairs in sequences, or of pairs that are given.

        Args:
            input_ids: ``(batch, length)``, sequences of items.
            attention_mask: ``(batch, length)``, 0 at padding.
            center_ids, context_ids: ``(pairs,)``, i and j, in place of sequences.
            weights: ``(pairs,)``, how often each pair counts; 1 by default.
            noise_ids: noise in training: ``(batch, k)``, that of each sequence, or ``(pairs, k)``, that of each pair that is
                given; ``num_noise_samples`` are drawn for every pair by default.
            pmi: ``(pairs,)``, log p(i, j) / p(i) p(j), the target of ``"pmi_regression"``.
            return_loss: there is nothing else to return.
            return_dict: a [`MinEntropyEmbeddingOutput`], or a tuple of its fields that are not None.

        Raises:
            ValueError: neither sequences nor pairs, or no ``pmi`` where that is the target.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        if input_ids is not None:
            if self.training and self.config.subsample:
                input_ids, attention_mask = self.subsampled(input_ids, attention_mask)
            center_ids, context_ids, weights = self.window_pairs(input_ids, attention_mask)
            if noise_ids is not None:
                noise_ids = noise_ids[:, None].expand(*center_ids.shape, -1).flatten(0, 1)
        elif center_ids is None or context_ids is None:
            raise ValueError("give input_ids, or center_ids and context_ids")
        shape = center_ids.shape
        center_ids, context_ids = center_ids.flatten(), context_ids.flatten()
        scores = self.pair_scores(center_ids, context_ids)
        weights = torch.ones_like(scores) if weights is None else weights.flatten().to(scores.dtype)
        if self.config.objective == "layout":
            if self.training:
                raise ValueError(
                    "objective='layout' is a problem with constraints, which fit_law solves and no gradient alone"
                )
            losses = self._walks(center_ids, context_ids)
        elif self.training and self.config.normalize_over == "pairs":
            everything = torch.arange(self.config.vocab_size, device=scores.device)
            losses = self.log_normalizer(everything).logsumexp(0) - scores
        elif not self.training or self.config.objective == "full":
            losses = -self.log_prob(center_ids, context_ids)
        elif self.config.objective == "pmi_regression":
            if pmi is None:
                raise ValueError("objective='pmi_regression' needs pmi, a target for each pair")
            losses = (scores - pmi).square()
        else:
            if noise_ids is None:
                noise_ids = self.noise.sample((len(center_ids), self.config.num_noise_samples))
            losses = self.loss(
                scores,
                self.pair_scores(center_ids[:, None], noise_ids),
                self.noise.log_prob(context_ids),
                self.noise.log_prob(noise_ids),
                reduction="none",
            )
        loss = (weights * losses).sum() / weights.sum().clamp_min(1e-12)
        output = MinEntropyEmbeddingOutput(loss=loss, pair_scores=scores.view(shape))
        return output if return_dict else output.to_tuple()


__all__ = [
    "MinEntropyEmbeddingForPreTraining",
    "MinEntropyEmbeddingModel",
    "MinEntropyEmbeddingOutput",
    "ReferencePoints",
    "reference_points",
]

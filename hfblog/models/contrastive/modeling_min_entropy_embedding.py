"""Item vectors of least expected cost: skip-gram, SNE and t-SNE as one model.

Su Jianlin 2018, https://kexue.fm/archives/6191; Mikolov et al. 2013, arXiv:1310.4546; Hinton and Roweis 2002; van der
Maaten and Hinton 2008. All costs and entropies are in nats.
"""

from __future__ import annotations

import math
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

from .configuration_min_entropy_embedding import MinEntropyEmbeddingConfig
from .nce_loss import NCELoss
from .noise_distributions import UnigramNoise, count_ids, reset_noise

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


class ContextEmbedding(nn.Embedding):
    """u, an item's vectors as the one that follows."""


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
        if isinstance(module, ContextEmbedding) and self.config.cost == "dot":
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

    # --- what users ask ---

    @torch.no_grad()
    def most_similar(self, query: Tensor, top_k: int = 10, metric: str = "cosine", exclude: Tensor | None = None) -> Any:
        """The items nearest to an item or a vector, as `torch.topk`: ``values`` and ``indices`` ``(..., top_k)``.

        Args:
            query: item ids ``(...)``, which are not among their own neighbours, or vectors ``(..., hidden_size)``.
            top_k: how many.
            metric: ``"cosine"`` ranks what is alike, ``"dot"`` what goes together.
            exclude: ids ``(..., n)`` that are left out.

        Raises:
            ValueError: another metric.
        """
        if metric not in ("cosine", "dot"):
            raise ValueError(f"metric={metric!r} must be 'cosine' or 'dot'")
        if not query.is_floating_point():
            exclude = query[..., None] if exclude is None else torch.cat([exclude, query[..., None]], -1)
            query = self.vectors(query)
        table = self.vectors()
        if metric == "cosine":
            table, query = F.normalize(table, dim=-1), F.normalize(query, dim=-1)
        scores = query @ table.T
        if exclude is not None:
            scores = scores.scatter(-1, exclude, -math.inf)
        return scores.topk(top_k, dim=-1)

    @torch.no_grad()
    def analogy(self, a: Tensor, b: Tensor, c: Tensor, top_k: int = 10, method: str = "3cosadd") -> Any:
        """``a`` is to ``b`` as ``c`` is to what? As `torch.topk`, ``(..., top_k)``; the three themselves are left out.

        Args:
            a, b, c: item ids ``(...)``.
            top_k: how many.
            method: ``"3cosadd"`` (Mikolov et al. 2013) or ``"3cosmul"`` (Levy and Goldberg 2014).

        Raises:
            ValueError: another method.
        """
        if method not in ("3cosadd", "3cosmul"):
            raise ValueError(f"method={method!r} must be '3cosadd' or '3cosmul'")
        table = F.normalize(self.vectors(), dim=-1)
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
        self.loss = NCELoss(config.objective) if config.objective != "pmi_regression" else None
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
        subsample: float = 1e-3,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        """Negative sampling over a corpus in compiled loops on the CPU; noise is counted first.

        Args:
            sequences: lists of item ids, or the pair ``(items, starts)``: all of them one after the other, int32, and where
                each sequence begins, with the end.
            epochs: passes over the corpus.
            learning_rate, min_learning_rate: at the start and at the end; it falls linearly over all epochs.
            subsample: word2vec's t: an item of frequency f is kept with chance ``sqrt(t / f) + t / f``; 0 keeps all.
            threads: how many; several are faster, and their result depends on their timing.
            seed: of vectors, subsampling, windows and noise.

        Raises:
            ImportError: numba is missing.
            ValueError: an empty corpus, ids outside the vocabulary, or a model that is no skip-gram.
        """
        from .skipgram_kernel import flatten_sequences, subsampling, train_skipgram

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
        self.fit_noise(torch.from_numpy(np.bincount(items, minlength=config.vocab_size)), smoothing=1)
        tables = [
            np.ascontiguousarray(layer.weight.detach().cpu().float().numpy())
            for layer in (self.model.embeddings, self.model.context_embeddings)
        ]
        train_skipgram(
            items,
            starts,
            *tables,
            subsampling(self.noise.counts.cpu().numpy(), subsample),
            self.noise.keep.cpu().float().numpy(),
            self.noise.alias.cpu().numpy(),
            window=config.window_size,
            num_noise=config.num_noise_samples,
            epochs=epochs,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            threads=threads,
            seed=seed,
        )
        for layer, table in zip((self.model.embeddings, self.model.context_embeddings), tables, strict=True):
            layer.weight.copy_(torch.from_numpy(table))

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
        return torch.cat([(self.scores(part) + self.log_prior).logsumexp(1) for part in first.split(rows)])

    def log_prob(self, first: Tensor, second: Tensor) -> Tensor:
        """log q(j | i) in nats, ``(n,)`` ids i and j -> ``(n,)``."""
        items, place = first.unique(return_inverse=True)
        prior = self.log_prior
        prior = prior if isinstance(prior, float) else prior[second]
        return self.pair_scores(first, second) + prior - self.log_normalizer(items)[place]

    def expected_cost(self, joint: Tensor) -> Tensor:
        """S, the expected cost under a dense law ``(V, V)`` of pairs or their counts, exactly; differentiable."""
        weights = joint / joint.sum()
        rows = max(1, SCORES_AT_A_TIME // self.config.vocab_size)
        total = weights.new_zeros(())
        for ids in torch.arange(self.config.vocab_size, device=joint.device).split(rows):
            log_q = (self.scores(ids) + self.log_prior).log_softmax(1)
            part = weights[ids].to(log_q.dtype)
            # nothing times minus infinity is nothing
            total = total - torch.where(part > 0, part * log_q.masked_fill(part == 0, 0.0), 0.0).sum()
        return total

    @torch.no_grad()
    def reference_points(self, joint: Tensor) -> ReferencePoints:
        """The expected cost under a dense law ``(V, V)``, between the points that bound it."""
        return reference_points(joint, self.expected_cost(joint).item())

    def window_pairs(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of places up to ``window_size`` apart in sequences ``(batch, length)``, both ways.

        Returns:
            Ids i, ids j and weights, ``(batch, pairs)`` each. Places o apart weigh ``1 - (o - 1) / window_size``, the chance
            that word2vec's random window holds them; pairs with padding weigh 0.
        """
        reach = min(self.config.window_size, input_ids.shape[1] - 1)
        if reach < 1:
            raise ValueError(f"sequences of length {input_ids.shape[1]} hold no pairs")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        firsts, seconds, weights = [], [], []
        for offset in range(1, reach + 1):
            left, right = input_ids[:, :-offset], input_ids[:, offset:]
            weight = (1 - (offset - 1) / self.config.window_size) * (mask[:, :-offset] * mask[:, offset:])
            firsts += [left, right]
            seconds += [right, left]
            weights += [weight, weight]
        return torch.cat(firsts, 1), torch.cat(seconds, 1), torch.cat(weights, 1)

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
            center_ids, context_ids, weights = self.window_pairs(input_ids, attention_mask)
            if noise_ids is not None:
                noise_ids = noise_ids[:, None].expand(*center_ids.shape, -1).flatten(0, 1)
        elif center_ids is None or context_ids is None:
            raise ValueError("give input_ids, or center_ids and context_ids")
        shape = center_ids.shape
        center_ids, context_ids = center_ids.flatten(), context_ids.flatten()
        scores = self.pair_scores(center_ids, context_ids)
        weights = torch.ones_like(scores) if weights is None else weights.flatten().to(scores.dtype)
        if not self.training or self.config.objective == "full":
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

"""Language models trained by telling words from noise, at a cost that does not depend on the size of the vocabulary.

Mnih and Teh 2012, arXiv:1206.6426; Su Jianlin 2018, https://kexue.fm/archives/5617. After training the scores are close to
normalised by themselves, so a word's probability costs one inner product; the softmax over all words is there for generation
and for the exact likelihood.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_nce_lm import NCELMConfig
from .nce_loss import NCELoss
from .noise_distributions import UnigramNoise, count_ids, reset_noise

# Logits computed at a time where no gradient is needed: a bound on memory, not on what is computed.
LOGITS_AT_A_TIME = 2**24
# Under which names transformers' models give and take what they remember of a prefix.
CACHE_NAMES = ("past_key_values", "cache", "cache_params")


@dataclass
class NCELMOutput(ModelOutput):
    """Output of [`NCEForCausalLM`].

    Args:
        loss: scalar, nats a token: the loss that is trained in training, the exact cross-entropy otherwise.
        logits: ``(batch, length, V)``, ``G - c``, close to log-probabilities; None in training with labels.
        past_key_values, cache, cache_params: what the backbone keeps of the prefix, under its own name.
        hidden_states, attentions: the backbone's, if asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    cache: Any = None
    cache_params: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class PartitionStats(ModelOutput):
    """How close the scores are to log-probabilities: log sum_w exp(G(w, h) - c), in nats, over the contexts h of a batch.

    Args:
        mean, std, min, max: scalars; 0 would be normalised.
        num_contexts: how many.
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    min: Tensor | None = None
    max: Tensor | None = None
    num_contexts: int | None = None


class NCEForCausalLM(PreTrainedModel, GenerationMixin):
    r"""A causal language model with an output layer that noise contrastive estimation trains.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import NCEForCausalLM, NCELMConfig
    >>> backbone = {"model_type": "gpt2", "vocab_size": 1000, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    >>> model = NCEForCausalLM(NCELMConfig(backbone_config=backbone, num_noise_samples=20))
    >>> ids = torch.randint(1000, (4, 16))
    >>> model.initialize(ids)  # counts of the words; a real corpus gives all of its texts
    >>> model.train()(input_ids=ids, labels=ids).loss.isfinite().item()
    True
    >>> model.eval().score_tokens(ids).shape, model(input_ids=ids).logits.shape
    (torch.Size([4, 15]), torch.Size([4, 16, 1000]))
    >>> model.generate(ids[:, :4], max_new_tokens=3, do_sample=True, pad_token_id=0).shape
    torch.Size([4, 7])

    ```
    """

    config_class = NCELMConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _auto_class = "AutoModelForCausalLM"
    _keep_in_fp32_modules_strict = ["noise.log_probs", "noise.keep", "log_partition"]
    supports_gradient_checkpointing = True
    # what the backbone can do, the whole can; the backbone says so itself where it cannot
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = True

    def __init__(self, config: NCELMConfig):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        config.backbone_config.dtype = self.backbone.dtype  # as loading sets it: a saved configuration comes back equal
        taken = inspect.signature(self.backbone.forward).parameters
        self.cache_name = next((name for name in CACHE_NAMES if name in taken), None)
        self.takes_positions = "position_ids" in taken
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.noise = UnigramNoise(config.vocab_size, config.noise_power)
        start = torch.full((), float(config.log_partition_init))
        self.register_buffer("log_partition", start if config.log_partition == "fixed" else None)
        if config.log_partition == "learned":
            self.log_partition = nn.Parameter(start)
        self.partition_layer = nn.Linear(config.hidden_size, 1) if config.log_partition == "context" else None
        self.loss = NCELoss(config.loss_type)
        if config.tie_word_embeddings:
            embeddings = self.backbone.get_input_embeddings().weight
            name = next(name for name, parameter in self.backbone.named_parameters() if parameter is embeddings)
            self._tied_weights_keys = {"lm_head.weight": f"backbone.{name}"}
        self.post_init()
        if (length := getattr(config.backbone_config, "max_position_embeddings", None)) is not None:
            self.generation_config.max_length = length  # where nothing else is asked for, a text ends there

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if reset_noise(module):
            return
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.constant_(module.bias, self.config.log_partition_init if module is self.partition_layer else 0.0)
        elif module is self and self.log_partition is not None:
            init.constant_(self.log_partition, self.config.log_partition_init)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; new words are counted once in the noise."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if (size := embeddings.num_embeddings) != self.noise.vocab_size:
            counts = F.pad(self.noise.counts.cpu(), (0, max(size - self.noise.vocab_size, 0)), value=1)[:size]
            self.noise = UnigramNoise(size, self.config.noise_power).fit(counts).to(self.device)
        return embeddings

    # --- what depends on data ---

    @torch.no_grad()
    def initialize(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Count the words, once, before training: the noise, and biases that make an unigram model of it.

        Args:
            input_ids: word ids of the training texts, of any shape; the more, the better. Every word counts one more.
            attention_mask: of the same shape, 0 at padding.
            generator: not needed.

        Raises:
            ValueError: no words, or an id outside the vocabulary.
        """
        self.fit_noise(count_ids(input_ids, attention_mask, self.config.vocab_size), smoothing=1)

    @torch.no_grad()
    def fit_noise(self, counts: Tensor, smoothing: int = 0) -> None:
        """Set the noise, and the biases, from counts ``(V,)``; see `UnigramNoise.fit` for the errors."""
        self.noise.fit(counts, smoothing)
        if self.lm_head.bias is not None:
            frequencies = self.noise.counts.double()
            log_unigram = (frequencies / frequencies.sum()).log()
            c = self.log_partition if self.partition_layer is None else self.partition_layer.bias
            self.lm_head.bias.copy_(log_unigram + (0 if c is None else c))

    # --- the model ---

    def hidden_states(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        """The backbone's output, whose ``last_hidden_state`` is ``(batch, length, d)``.

        Places are counted from the first word that is not padding, as in generation, and a cache goes to the backbone under
        the name that it has there.
        """
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        kwargs = {k: v for k, v in kwargs.items() if k not in CACHE_NAMES and (v is not None or k != "position_ids")}
        if cache is not None and self.cache_name is not None:
            kwargs[self.cache_name] = cache
        counts = self.takes_positions and "position_ids" not in kwargs
        if counts and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            length = (kwargs["inputs_embeds"] if input_ids is None else input_ids).shape[1]
            kwargs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -length:]
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)

    def log_partition_of(self, hidden: Tensor) -> Tensor:
        """c of contexts, ``(..., d) -> (...)`` or a scalar, float32 at least."""
        if self.partition_layer is not None:
            return self.partition_layer(hidden)[..., 0].float()
        return hidden.new_zeros((), dtype=torch.float32) if self.log_partition is None else self.log_partition

    def logits_of(self, hidden: Tensor) -> Tensor:
        """``G - c`` of all words, ``(..., d) -> (..., V)``."""
        c = self.log_partition_of(hidden)
        return self.lm_head(hidden) - (c[..., None] if c.ndim else c).to(hidden.dtype)

    def word_scores(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """G of chosen words in float32, at a cost that does not depend on V.

        Args:
            hidden: ``(batch, length, d)``.
            ids: ``(batch, length)``, a word each; or noise: ``(k,)``, ``(batch, 1, k)`` or ``(batch, length, k)``.

        Returns:
            ``(batch, length)``, or ``(batch, length, k)``.
        """
        sparse = self.config.sparse_gradients
        vectors = F.embedding(ids, self.lm_head.weight, sparse=sparse)
        if ids.ndim == 2:
            scores = (hidden * vectors.to(hidden.dtype)).sum(-1, dtype=torch.float32)
        elif ids.ndim == 1:
            scores = F.linear(hidden, vectors).float()
        elif ids.shape[1] == 1:
            scores = torch.bmm(hidden, vectors[:, 0].mT).float()
        else:
            scores = torch.einsum("btd,btkd->btk", hidden, vectors).float()
        if self.lm_head.bias is None:
            return scores
        return scores + self.lm_head.bias.gather(0, ids.flatten(), sparse_grad=sparse).view(ids.shape).float()

    def draw_noise(self, batch: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise words as `noise_sharing` has them: ``(k,)``, ``(batch, k)`` or ``(batch, length, k)``."""
        shape = {"batch": (), "sequence": (batch,), "token": (batch, length)}[self.config.noise_sharing]
        return self.noise.sample((*shape, self.config.num_noise_samples), generator)

    def sampled_losses(self, hidden: Tensor, targets: Tensor, noise_ids: Tensor) -> Tensor:
        """Loss of each word from its noise, ``(batch, length)``; see `draw_noise` for the shapes."""
        if noise_ids.ndim == 2:
            noise_ids = noise_ids[:, None]
        noise_scores = self.word_scores(hidden, noise_ids).flatten(0, 1)
        noise_log_noise = self.noise.log_prob(noise_ids).expand(*targets.shape, -1).flatten(0, 1)
        c = self.log_partition_of(hidden)
        return self.loss(
            self.word_scores(hidden, targets).flatten(),
            noise_scores,
            self.noise.log_prob(targets).flatten(),
            noise_log_noise,
            c.expand(targets.shape).flatten() if c.ndim else c,
            reduction="none",
        ).view(targets.shape)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        noise_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NCELMOutput | tuple:
        """Scores of the next words, and the loss.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: ``(batch, length)``, 0 at padding.
            position_ids, past_key_values, cache, inputs_embeds, use_cache: as in transformers' decoders; which of the two
                names a cache goes by depends on the version.
            labels: ``(batch, length)``, usually ``input_ids``; they are shifted here. -100 does not count.
            noise_ids: noise words, ``(k,)``, ``(batch, k)`` or ``(batch, length - 1, k)``; drawn if not given. In training.
            logits_to_keep: compute logits of the last so many places only, 0 for all; or an index of places.
            num_items_in_batch: words over which the loss is averaged; those of this batch by default.
            return_dict: an [`NCELMOutput`], or a tuple of its fields that are not None.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        found = self.hidden_states(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = found.last_hidden_state
        loss = logits = None
        if self.training and labels is not None:
            hidden, targets = hidden[:, :-1], labels[:, 1:]
            if self.config.loss_type == "full":
                loss = self.cross_entropy(self.lm_head(hidden), targets, num_items_in_batch)
            else:
                counted = targets != -100
                targets = targets.clamp_min(0)
                if noise_ids is None:
                    noise_ids = self.draw_noise(*targets.shape)
                losses = self.sampled_losses(hidden, targets, noise_ids)
                loss = (losses * counted).sum() / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            if labels is None:
                logits = self.logits_of(hidden[:, kept])
            else:  # the loss is that of all places
                logits = self.logits_of(hidden)
                loss = self.cross_entropy(logits[:, :-1], labels[:, 1:], num_items_in_batch)
                logits = logits[:, kept]
        output = NCELMOutput(
            loss=loss,
            logits=logits,
            hidden_states=found.get("hidden_states"),
            attentions=found.get("attentions"),
            **({} if self.cache_name is None else {self.cache_name: found.get(self.cache_name)}),
        )
        return output if return_dict else output.to_tuple()

    def cross_entropy(self, logits: Tensor, targets: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Exact cross-entropy in nats a word, in float32; a constant added to all logits of a place does not matter."""
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
        return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)

    # --- what users ask ---

    @torch.no_grad()
    def score_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, normalized: bool = False, **kwargs: Any
    ) -> Tensor:
        """Log-probability in nats of each word after those before it, ``(batch, length) -> (batch, length - 1)``.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: 0 at padding. The scores of padding are 0, and that of a word with nothing but padding before it.
            normalized: whether to subtract the exact log-partition, at the cost of all words. Without, the scores are
                ``G - c`` at a cost that does not depend on V; `partition_stats` says how far they are from normalised.
        """
        hidden = self.hidden_states(input_ids, attention_mask, **kwargs).last_hidden_state[:, :-1]
        scores = self.word_scores(hidden, input_ids[:, 1:]) - self.log_partition_of(hidden)
        if normalized:
            scores = scores - self.log_normalizer(hidden)
        return scores if attention_mask is None else scores.masked_fill(~self.has_next_word(attention_mask), 0.0)

    def has_next_word(self, attention_mask: Tensor) -> Tensor:
        """Which places but the last hold a word that a word follows, ``(batch, length) -> (batch, length - 1)``."""
        return (attention_mask[:, :-1] != 0) & (attention_mask[:, 1:] != 0)

    def log_normalizer(self, hidden: Tensor) -> Tensor:
        """log sum_w exp(G(w, h) - c) in nats, ``(..., d) -> (...)``, in parts that fit into memory."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        rows = max(1, LOGITS_AT_A_TIME // self.config.vocab_size)
        parts = [self.logits_of(part).float().logsumexp(-1) for part in flat.split(rows)]
        return torch.cat(parts).view(hidden.shape[:-1])

    @torch.no_grad()
    def partition_stats(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> PartitionStats:
        """How close to normalised the scores are after each place of a batch ``(batch, length)`` that has a next word."""
        hidden = self.hidden_states(input_ids, attention_mask, **kwargs).last_hidden_state[:, :-1]
        found = self.log_normalizer(hidden)
        if attention_mask is not None:
            found = found[self.has_next_word(attention_mask)]
        return PartitionStats(
            mean=found.mean(), std=found.std(correction=0), min=found.min(), max=found.max(), num_contexts=found.numel()
        )


__all__ = ["NCEForCausalLM", "NCELMOutput", "PartitionStats"]

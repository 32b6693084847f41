"""BERT with Conditional Layer Normalization: text under a condition.

The article (https://kexue.fm/archives/7124) lets every LayerNorm of BERT read a condition vector c of fixed length,

    CLN(x, c) = (gamma + W_gamma h) * (x - mean) / std + (beta + W_beta h),    h = act(W_h c) or c,

with bias-free W_gamma = W_beta = 0 at the start, so that a network with pretrained weights starts as it was for every
condition. With a causal mask the masked language model becomes a language model p(x | c).

All that a condition does to the network is known before the first token: `condition_states` computes it once, and generation
reuses it in every step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as BaseModelOutput
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_conditional_ln_bert import SOURCE_MODEL_TYPES, ConditionalLNBertConfig, check_choice
from .tokenization_conditional_ln_bert import prune_tokenizer, used_tokens

logger = logging.get_logger(__name__)

# Under which name transformers gives and takes a cache; it changed in version 5.24.
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"

# RoBERTa's names for the same layers.
ROBERTA_NAMES = {
    r"^roberta\.": "bert.",
    r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
    r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
    r"^lm_head\.decoder\.": "cls.predictions.decoder.",
    r"^lm_head\.bias$": "cls.predictions.bias",
}


# --- the condition ---


class ZeroLinear(nn.Linear):
    """A bias-free map that starts at zero: a class of its own, because `_init_weights` sees a layer and not its place."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        nn.init.zeros_(self.weight)


class ConditionalLayerNorm(nn.Module):
    r"""LayerNorm over the last axis whose scale and shift read a condition.

    Args:
        hidden_size: size H of the last axis.
        condition_size: size C of the condition; None for a plain LayerNorm.
        eps: added to the variance.
        mode: ``"scale_shift"``, ``"scale"`` or ``"shift"``: what the condition moves.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import ConditionalLayerNorm
    >>> norm = ConditionalLayerNorm(8, condition_size=3)
    >>> x, condition = torch.randn(2, 5, 8), torch.randn(2, 3)
    >>> bool((norm(x, condition) == torch.nn.functional.layer_norm(x, (8,), eps=1e-12)).all())  # zero maps: a LayerNorm
    True

    ```
    """

    def __init__(self, hidden_size: int, condition_size: int | None, eps: float = 1e-12, mode: str = "scale_shift"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps
        maps = condition_size is not None
        self.condition_scale = ZeroLinear(condition_size, hidden_size) if maps and "scale" in mode else None
        self.condition_shift = ZeroLinear(condition_size, hidden_size) if maps and "shift" in mode else None

    def states(self, condition: Tensor) -> Tensor:
        """Scale gamma + W_gamma c and shift beta + W_beta c, ``(..., 2, H)``, for conditions ``(..., C)``."""
        size = (*condition.shape[:-1], self.weight.shape[0])
        scale = self.weight + self.condition_scale(condition) if self.condition_scale is not None else self.weight.expand(size)
        shift = self.bias + self.condition_shift(condition) if self.condition_shift is not None else self.bias.expand(size)
        return torch.stack([scale, shift], dim=-2)

    def forward(self, x: Tensor, condition: Tensor | None = None, states: Tensor | None = None) -> Tensor:
        """Normalise ``x``, ``(batch, length, H)``, under one condition a row ``(batch, C)`` or a token ``(batch, length, C)``.

        ``states`` are the result of `states`, where it was computed before.
        """
        if states is None:
            if condition is None:
                return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
            states = self.states(condition)
        scale, shift = (state.unsqueeze(-2) if state.ndim < x.ndim else state for state in states.unbind(-2))
        # Statistics in the precision of the weights (float32 under autocast). addcmul rounds as layer_norm's own affine
        # step does, so that zero maps give its bits.
        normalized = F.layer_norm(x.to(scale.dtype), self.weight.shape, eps=self.eps)
        return torch.addcmul(shift, normalized, scale)


class ConditionEncoder(nn.Module):
    """Classes, vectors or nothing as one vector ``(batch, condition_size)``, and what the network reads of it."""

    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.config = config
        # the last row of each table stands for "not given"
        self.classes = nn.ModuleList(nn.Embedding(size + 1, config.condition_size) for size in config.attribute_sizes)
        vector_is_input = not config.attribute_sizes or config.sum_conditions
        self.no_condition = nn.Parameter(torch.zeros(config.condition_size)) if vector_is_input else None
        hidden = config.condition_hidden_size
        self.dense = nn.Linear(config.condition_size, hidden, bias=False) if hidden else None
        self.act = ACT2FN[config.condition_hidden_act] if config.condition_hidden_act else nn.Identity()

    def check(self, condition: Tensor | None, condition_ids: Tensor | None, batch_size: int) -> None:
        config, sizes = self.config, self.config.attribute_sizes
        if condition is not None and condition_ids is not None and not config.sum_conditions:
            raise ValueError(
                "give condition or condition_ids, not both: this model takes one of them (sum_conditions=True adds them)"
            )
        if condition is not None and condition.shape != (batch_size, config.condition_size):
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; this batch needs {(batch_size, config.condition_size)}, "
                "(batch, condition_size)"
            )
        if condition_ids is None:
            return
        if not sizes:
            raise ValueError(
                "condition_ids were given, but num_condition_classes is not set: this model takes condition, a vector"
            )
        shape = (batch_size,) if len(sizes) == 1 else (batch_size, len(sizes))
        if condition_ids.shape != shape and condition_ids.shape != (batch_size, len(sizes)):
            raise ValueError(f"condition_ids have shape {tuple(condition_ids.shape)}; this batch needs {shape}")
        if condition_ids.is_floating_point():
            raise ValueError(f"condition_ids must be integers, not {condition_ids.dtype}")
        if torch.compiler.is_compiling() or (self.training and condition_ids.device.type != "cpu"):
            return  # looking at values would break the graph, or make training wait for the accelerator
        ids = condition_ids.reshape(batch_size, len(sizes))
        for index, size in enumerate(sizes):
            wrong = ids[:, index][(ids[:, index] < -1) | (ids[:, index] >= size)]
            if len(wrong):
                raise ValueError(
                    f"condition_ids hold {wrong[0].item()}, but attribute {index} has classes 0 to {size - 1} (-1: not given)"
                )

    def forward(self, condition: Tensor | None, condition_ids: Tensor | None, batch_size: int, hide: Tensor | None) -> Tensor:
        """``(batch, condition_size)``. ``hide``, ``(batch,)`` bool, marks rows whose condition is to be forgotten.

        Every parameter takes part in every call, with weight zero if need be: distributed training asks for that.
        """
        self.check(condition, condition_ids, batch_size)
        sizes = self.config.attribute_sizes
        reference = self.no_condition if self.no_condition is not None else self.classes[0].weight
        device = reference.device
        if condition_ids is None:
            ids = torch.full((batch_size, len(sizes)), -1, device=device)
        else:
            ids = condition_ids.to(device).reshape(batch_size, len(sizes))
        if hide is not None:
            ids = ids.masked_fill(hide[:, None], -1)
        vector = torch.zeros(batch_size, self.config.condition_size, dtype=reference.dtype, device=device)
        for index, (table, size) in enumerate(zip(self.classes, sizes, strict=True)):
            vector = vector + table(torch.where(ids[:, index] < 0, size, ids[:, index]))
        if condition is not None:
            given = condition.to(reference)
            hidden = torch.zeros(batch_size, dtype=torch.bool, device=device) if hide is None else hide
            if self.config.sum_conditions:
                return vector + torch.where(hidden[:, None], self.no_condition, given)
            absent = vector if self.no_condition is None else self.no_condition
            return torch.where(hidden[:, None], absent, given)
        return vector if self.no_condition is None else vector + self.no_condition

    def hidden(self, vector: Tensor) -> Tensor:
        """h = act(W_h c), what every LayerNorm reads."""
        return self.act(self.dense(vector)) if self.dense is not None else vector


# --- layers, named as in BERT so that its checkpoints load ---


def build_norm(config: ConditionalLNBertConfig, kind: str) -> ConditionalLayerNorm:
    conditional = config.conditioning == "layer_norm" and (config.condition_layers == "all" or kind in config.condition_layers)
    size = (config.condition_hidden_size or config.condition_size) if conditional else None
    return ConditionalLayerNorm(config.hidden_size, size, config.layer_norm_eps, config.condition_mode)


class ConditionalLNBertEmbeddings(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = build_norm(config, "embeddings")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_offset = config.position_offset

    def forward(
        self, words: Tensor, token_type_ids: Tensor, position_ids: Tensor, states: Tensor | None, added: Tensor | None
    ) -> Tensor:
        embeddings = words + self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + self.position_embeddings(position_ids + self.position_offset)
        if added is not None:
            embeddings = embeddings + added
        return self.dropout(self.LayerNorm(embeddings, states=states))


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(F.softmax(scores, dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ConditionalLNBertSelfAttention(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = config.attention_type == "causal"
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        extra: Tensor | None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_size)
        query = self.query(hidden_states).view(shape).transpose(1, 2)
        key = self.key(hidden_states).view(shape).transpose(1, 2)
        value = self.value(hidden_states).view(shape).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if extra is not None:  # the condition's own key and value, which every query sees
            more_key, more_value = (state.to(key.dtype).view(len(key), -1, 1, self.head_size) for state in extra.unbind(1))
            key, value = torch.cat([more_key, key], dim=2), torch.cat([more_value, value], dim=2)
            if attention_mask is not None:
                seen = True if attention_mask.dtype == torch.bool else 0.0
                attention_mask = F.pad(attention_mask, (1, 0), value=seen)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output.reshape(*hidden_states.shape[:-1], -1).contiguous(), weights


class ConditionalLNBertOutput(nn.Module):
    """Dense layer, dropout, residual and LayerNorm: the end of both halves of a block."""

    def __init__(self, config: ConditionalLNBertConfig, in_features: int, kind: str):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = build_norm(config, kind)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor, states: Tensor | None) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual, states=states)


class ConditionalLNBertAttention(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig, layer_idx: int):
        super().__init__()
        self.self = ConditionalLNBertSelfAttention(config, layer_idx)
        self.output = ConditionalLNBertOutput(config, config.hidden_size, "attention")

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, states: Tensor | None, extra: Tensor | None, **kwargs: Any
    ) -> Tensor:
        attended, _ = self.self(hidden_states, attention_mask, extra, **kwargs)
        return self.output(attended, hidden_states, states)


class ConditionalLNBertIntermediate(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.act(self.dense(hidden_states))


class ConditionalLNBertLayer(GradientCheckpointingLayer):
    def __init__(self, config: ConditionalLNBertConfig, layer_idx: int):
        super().__init__()
        self.attention = ConditionalLNBertAttention(config, layer_idx)
        self.intermediate = ConditionalLNBertIntermediate(config)
        self.output = ConditionalLNBertOutput(config, config.intermediate_size, "ffn")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        attention_norm: Tensor | None,
        output_norm: Tensor | None,
        extra: Tensor | None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        # What carries gradients comes by position: reentrant checkpointing loses track of keywords.
        attended = self.attention(hidden_states, attention_mask, attention_norm, extra, cache=cache, **kwargs)
        return self.output(self.intermediate(attended), attended, output_norm)


class ConditionalLNBertEncoder(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(ConditionalLNBertLayer(config, index) for index in range(config.num_hidden_layers))


class ConditionalLNBertPooler(nn.Module):
    """tanh(W h + b) of the token that has seen the whole text: the first under a bidirectional mask, else the last."""

    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.first = config.attention_type == "bidirectional"

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.first:
            token = hidden_states[:, 0]
        elif attention_mask is None or attention_mask.ndim != 2:
            token = hidden_states[:, -1]
        else:
            places = torch.arange(attention_mask.shape[1], device=hidden_states.device)
            last = (places * (attention_mask != 0)).argmax(dim=1)
            token = hidden_states[torch.arange(len(last), device=hidden_states.device), last]
        return torch.tanh(self.dense(token))


# --- models ---


def build_attention_mask(
    config: PreTrainedConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    token_type_ids: Tensor | None,
) -> Tensor | None:
    """The mask of the configuration's ``attention_type``, as its attention implementation takes it."""
    if config.attention_type == "bidirectional":
        return create_bidirectional_mask(config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    blocks = None
    if config.attention_type == "prefix_lm" and token_type_ids is not None:
        blocks = torch.where(token_type_ids == 0, 0, -1)  # block 0 sees all of itself
    elif config.attention_type == "prefix_lm" or config.conditioning == "pseudo_self_attention":
        # sdpa's own causal shortcut does not fit these; blocks of -1 are causal and ask for a mask that is written out
        blocks = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    return create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        block_sequence_ids=blocks,
        **{CACHE_NAME: cache},
    )


class ConditionalLNBertPreTrainedModel(PreTrainedModel):
    config_class = ConditionalLNBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["ConditionalLNBertEmbeddings", "ConditionalLNBertLayer"]
    _can_record_outputs = {"hidden_states": ConditionalLNBertLayer, "attentions": ConditionalLNBertSelfAttention}
    # heads and buffers of plain checkpoints that have no place here
    _keys_to_ignore_on_load_unexpected = [r"seq_relationship", r"position_ids", r"\.pooler\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # One function for inner and outer models: loading asks the innermost that holds a layer.
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            return
        super()._init_weights(module)
        if isinstance(module, ConditionEncoder):
            for table in module.classes:
                init.normal_(table.weight, std=self.config.condition_initializer_range)
            if module.no_condition is not None:
                init.zeros_(module.no_condition)
        elif isinstance(module, ConditionalLNBertLMPredictionHead):
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any):
        r"""Load a saved model, or start one from any plain BERT or RoBERTa checkpoint.

        From a plain checkpoint the fields of [`ConditionalLNBertConfig`] are keywords, the maps of the condition are zero,
        and the outputs are those of the checkpoint under every condition, until training moves the maps. A checkpoint
        without a language modelling head gets a new one, which transformers reports.

        Raises:
            ValueError: the checkpoint is of another architecture.

        Example:

        ```python
        model = ConditionalLNBertForGeneration.from_pretrained(
            "bert-base-chinese", condition_labels=["negative", "positive"]
        )
        ```
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, config=config, **kwargs)
        names = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
        source, _ = PreTrainedConfig.get_config_dict(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in names if name in kwargs}
        )
        if source.get("model_type") == cls.config_class.model_type:
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        check_choice("the checkpoint's model_type", source.get("model_type"), SOURCE_MODEL_TYPES)
        if not isinstance(config, cls.config_class):
            known = {name for name in cls.config_class.__dataclass_fields__ if name not in names} | {"num_labels", "id2label"}
            settings = {name: kwargs.pop(name) for name in list(kwargs) if name in known and name != "dtype"}
            config = cls.config_class.from_source(source, **settings)
        if source["model_type"] != "bert":
            kwargs["key_mapping"] = ROBERTA_NAMES | (kwargs.get("key_mapping") or {})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # saved again, the weights go by our names and not by the source's
        logger.warning_once(
            f"{cls.__name__} from {pretrained_model_name_or_path}: the condition has no effect before training "
            "(its maps start at zero)."
        )
        return loaded

    def condition_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that exist for the condition alone."""
        for name, parameter in self.named_parameters():
            if any(part.startswith("condition") for part in name.split(".")):
                yield name, parameter

    def freeze_backbone(self, frozen: bool = True) -> int:
        """Let training move only what the condition added (an image encoder stays frozen too), or everything again.

        Returns:
            How many parameters are left to train.
        """
        self.requires_grad_(not frozen)
        for _, parameter in self.condition_parameters():
            parameter.requires_grad_(True)
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    # what a condition does to the network

    @property
    def base(self) -> ConditionalLNBertModel:
        return getattr(self, self.base_model_prefix, self)

    def condition_vector(
        self,
        condition: Tensor | None = None,
        condition_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """The condition as one vector a row, ``(batch, condition_size)``; the learned "no condition" where nothing is given.

        Args:
            condition: ``(batch, condition_size)``.
            condition_ids: ``(batch,)``, or ``(batch, attributes)``; -1 where an attribute is not given.
            pixel_values: ``(batch, channels, height, width)`` for a model with an image encoder.
            batch_size: number of rows where nothing is given.
        """
        base = self.base
        if pixel_values is not None:
            if base.vision_model is None:
                raise ValueError("pixel_values were given, but this model has no image encoder (vision_config)")
            if condition is not None:
                raise ValueError("give condition or pixel_values, not both: the image encoder's vector is the condition")
            condition = base.encode_image(pixel_values)
        given = condition if condition is not None else condition_ids
        batch_size = len(given) if batch_size is None and given is not None else batch_size or 1
        hide = None
        if self.training and self.config.condition_dropout:
            hide = torch.rand(batch_size, device=self.device) < self.config.condition_dropout
        return base.condition_encoder(condition, condition_ids, batch_size, hide)

    def condition_states(self, vector: Tensor) -> Tensor:
        """All that a condition does to the network, ``(batch, states, hidden_size)``, for vectors ``(batch, condition_size)``.

        For conditional LayerNorms the scale and shift of each, in the order of the network, the LM head's last.
        """
        base = self.base
        hidden = base.condition_encoder.hidden(vector)
        if self.config.conditioning != "layer_norm":
            return torch.stack([projection(hidden) for projection in base.condition_projections], dim=1)
        norms = [module for module in self.modules() if isinstance(module, ConditionalLayerNorm)]
        return torch.cat([norm.states(hidden) for norm in norms], dim=1)

    def interpolate_conditions(self, start: Any, end: Any, t: float | Tensor) -> Tensor:
        """Vectors on the straight line between two conditions, for ``condition=``.

        Args:
            start, end: class id or name (a list for several attributes), or vector ``(condition_size,)``.
            t: 0 gives ``start``, 1 ``end``; a number, or ``(steps,)`` for several.

        Returns:
            ``(steps, condition_size)``.
        """
        ends = []
        for value in (start, end):
            if isinstance(value, Tensor) and value.is_floating_point():
                ends.append(self.condition_vector(condition=value.reshape(1, -1)))
            else:
                ends.append(self.condition_vector(condition_ids=self.resolve_condition_ids(value, 1)))
        t = torch.as_tensor(t, dtype=ends[0].dtype, device=ends[0].device).reshape(-1, 1)
        return torch.lerp(*ends, t)

    def resolve_condition_ids(self, value: Any, batch_size: int) -> Tensor:
        """Ids of a batch from an id, a class name, or a sequence or tensor of them.

        Raises:
            ValueError: a name that the configuration's ``condition_labels`` do not have.
        """
        attributes = len(self.config.attribute_sizes)
        if not isinstance(value, Tensor):
            single = isinstance(value, (str, int))
            rows = [value] if single else list(value)
            labels = self.config.attribute_labels
            flat_names = attributes > 1 and rows and not isinstance(rows[0], (list, tuple))
            rows = [rows] if flat_names else rows
            resolved = []
            for row in rows:
                entries = row if isinstance(row, (list, tuple)) else [row]
                resolved.append([self._class_id(entry, index, labels) for index, entry in enumerate(entries)])
            value = torch.tensor(resolved, device=self.device)
        value = value.to(self.device)
        value = value.reshape(1) if value.ndim == 0 else value
        value = value.squeeze(1) if value.ndim == 2 and attributes == 1 else value
        return value.expand(batch_size, *value.shape[1:]) if len(value) == 1 else value

    @staticmethod
    def _class_id(entry: Any, attribute: int, labels: list[list[str]]) -> int:
        if not isinstance(entry, str):
            return int(entry)
        names = labels[attribute] if attribute < len(labels) else []
        if entry not in names:
            raise ValueError(
                f"condition {entry!r} is not known; it must be one of {', '.join(map(repr, names)) or 'no names'}"
            )
        return names.index(entry)


class ConditionalLNBertModel(ConditionalLNBertPreTrainedModel):
    r"""BERT's embeddings and blocks under a condition.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import ConditionalLNBertConfig, ConditionalLNBertModel
    >>> config = ConditionalLNBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=32, num_condition_classes=3, bos_token_id=1, eos_token_id=2)
    >>> model = ConditionalLNBertModel(config).eval()
    >>> model(torch.tensor([[1, 7, 9, 2]]), condition_ids=torch.tensor([2])).last_hidden_state.shape
    torch.Size([1, 4, 16])

    ```
    """

    _auto_class = "AutoModel"

    def __init__(self, config: ConditionalLNBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = ConditionalLNBertEmbeddings(config)
        self.encoder = ConditionalLNBertEncoder(config)
        self.pooler = ConditionalLNBertPooler(config) if add_pooling_layer else None
        self.condition_encoder = ConditionEncoder(config)
        count = {"layer_norm": 0, "pseudo_self_attention": 2 * config.num_hidden_layers}.get(config.conditioning, 1)
        size = config.condition_hidden_size or config.condition_size
        self.condition_projections = nn.ModuleList(nn.Linear(size, config.hidden_size, bias=False) for _ in range(count))
        self.vision_model = AutoModel.from_config(config.vision_config) if config.vision_config is not None else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Pooled vectors ``(batch, condition_size)`` of images ``(batch, channels, height, width)``."""
        output = self.vision_model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = (
                output.last_hidden_state.flatten(2).mean(2)
                if output.last_hidden_state.ndim == 4
                else (output.last_hidden_state.mean(1))
            )
        return pooled.flatten(1)

    def check_inputs(self, input_ids: Tensor | None, token_type_ids: Tensor | None, length: int) -> None:
        config = self.config
        if length > config.max_length_of_text:
            raise ValueError(f"the text has {length} tokens, but the model has positions for {config.max_length_of_text}")
        if torch.compiler.is_compiling() or (input_ids is not None and input_ids.device.type != "cpu"):
            return  # looking at values would break the graph, or wait for the accelerator
        if input_ids is not None and input_ids.numel() and not 0 <= input_ids.min() <= input_ids.max() < config.vocab_size:
            raise ValueError(
                f"input_ids lie in [{input_ids.min()}, {input_ids.max()}], but the vocabulary has {config.vocab_size} tokens"
            )
        if token_type_ids is not None and token_type_ids.numel() and token_type_ids.max() >= config.type_vocab_size:
            raise ValueError(
                f"token_type_ids hold segment {token_type_ids.max()}, but the model has {config.type_vocab_size} segments"
            )

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        condition: Tensor | None = None,
        condition_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        condition_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Hidden states of a text under a condition.

        Args:
            input_ids: ``(batch, length)`` int64; or ``inputs_embeds``, ``(batch, length, hidden_size)``.
            attention_mask: ``(batch, length)``, 0 at padding.
            token_type_ids: ``(batch, length)`` segments; with ``attention_type="prefix_lm"`` segment 0 is the source.
            position_ids: ``(batch, length)`` from 0.
            condition: ``(batch, condition_size)`` vectors.
            condition_ids: ``(batch,)`` or ``(batch, attributes)`` classes, -1 where an attribute is not given.
            pixel_values: ``(batch, channels, height, width)`` for a model with an image encoder.
            condition_states: result of `condition_states`, in place of the three.
            past_key_values, cache, use_cache: see transformers' caches; the first two are one thing, renamed in version 5.24.
        """
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        given = input_ids if input_ids is not None else inputs_embeds
        batch_size, length = given.shape[:2]
        self.check_inputs(input_ids, token_type_ids, length)
        if condition_states is None:
            vector = self.condition_vector(condition, condition_ids, pixel_values, batch_size)
            condition_states = self.condition_states(vector)
        if self.config.attention_type == "bidirectional":
            use_cache, cache = False, None
        elif use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(length, device=given.device)[None] + past
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        mask = build_attention_mask(self.config, words, attention_mask, cache, token_type_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)

        conditioning, added, pairs = self.config.conditioning, None, itertools.repeat(None)
        if conditioning in ("layer_norm", "pseudo_self_attention"):
            pairs = iter(condition_states.unflatten(1, (-1, 2)).unbind(1))
        elif conditioning == "embedding":
            added = condition_states[:, :1]
        else:
            added = condition_states[:, :1] * (position_ids == 0).unsqueeze(-1)
        norms = pairs if conditioning == "layer_norm" else itertools.repeat(None)
        extras = pairs if conditioning == "pseudo_self_attention" else itertools.repeat(None)

        hidden_states = self.embeddings(words, token_type_ids, position_ids, next(norms), added)
        for layer in self.encoder.layer:
            hidden_states = layer(hidden_states, mask, next(norms), next(norms), next(extras), cache=cache, **kwargs)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states, attention_mask) if self.pooler is not None else None,
            **{CACHE_NAME: cache if use_cache else None},
        )


class ConditionalLNBertPredictionHeadTransform(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = build_norm(config, "head")

    def forward(self, hidden_states: Tensor, states: Tensor | None) -> Tensor:
        return self.LayerNorm(self.act(self.dense(hidden_states)), states=states)


class ConditionalLNBertLMPredictionHead(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.transform = ConditionalLNBertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor, states: Tensor | None) -> Tensor:
        return self.decoder(self.transform(hidden_states, states))


class ConditionalLNBertLMHead(nn.Module):
    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__()
        self.predictions = ConditionalLNBertLMPredictionHead(config)

    def forward(self, hidden_states: Tensor, states: Tensor | None) -> Tensor:
        return self.predictions(hidden_states, states)


class ConditionalLNBertForGeneration(ConditionalLNBertPreTrainedModel, GenerationMixin):
    r"""Language model under a condition: BERT with its masked-LM head, causal, prefix-LM or bidirectional.

    ``forward`` shifts ``labels`` itself, except under a bidirectional mask, where they are those of a masked language model.
    With ``attention_type="prefix_lm"`` it is a sequence-to-sequence model: ``tokenizer(source, target)`` gives the two
    segments, ``labels`` are -100 on the source, and `generate` continues ``tokenizer(source)``.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import ConditionalLNBertConfig, ConditionalLNBertForGeneration
    >>> config = ConditionalLNBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=32, condition_labels=["negative", "positive"], bos_token_id=1, eos_token_id=2)
    >>> model = ConditionalLNBertForGeneration(config).eval()
    >>> text = model.generate(condition_ids=["positive", "negative"], guidance_scale=2.0, max_new_tokens=5, do_sample=True)
    >>> text.shape[0]
    2

    ```
    """

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__(config)
        self.loss_type = "ForMaskedLM" if config.attention_type == "bidirectional" else "ForCausalLM"
        self.bert = ConditionalLNBertModel(config, add_pooling_layer=False)
        self.cls = ConditionalLNBertLMHead(config)
        # Stated, so that transformers' pipeline does not ask for 256 new tokens, for which there may be no positions.
        self.generation_config.max_length = config.max_length_of_text
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.cls.predictions.decoder = value
        self.cls.predictions.bias = value.bias

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        condition: Tensor | None = None,
        condition_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        condition_states: Tensor | None = None,
        negative_condition_states: Tensor | None = None,
        condition_guidance: float | Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``(batch, length, vocab_size)`` and, with ``labels``, the mean negative log-likelihood a token, in nats.

        Args:
            labels: ``(batch, length)`` token ids, -100 where no loss is wanted.
            negative_condition_states, condition_guidance: the condition to steer away from and how far; `generate` sets
                them. The logits are then those of the negative condition plus ``condition_guidance`` times the difference.
            logits_to_keep: only the last so many positions get logits; 0 for all.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, condition, condition_ids,
                pixel_values, condition_states, past_key_values, cache, use_cache: see [`ConditionalLNBertModel`].
        """
        rows = len(input_ids if input_ids is not None else inputs_embeds)
        if condition_states is None:
            vector = self.condition_vector(condition, condition_ids, pixel_values, rows)
            condition_states = self.condition_states(vector)
        guided = negative_condition_states is not None
        if guided:
            # one pass over both: rows of the condition, then rows of the negative one
            twice = lambda x: None if x is None else torch.cat([x, x])  # noqa: E731
            input_ids, inputs_embeds, attention_mask = twice(input_ids), twice(inputs_embeds), twice(attention_mask)
            token_type_ids, position_ids = twice(token_type_ids), twice(position_ids)
            condition_states = torch.cat([condition_states, negative_condition_states])
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            condition_states=condition_states,
            past_key_values=past_key_values,
            cache=cache,
            use_cache=use_cache and labels is None,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        head = condition_states[:, -2:] if self.config.conditioning == "layer_norm" else None
        logits = self.cls(outputs.last_hidden_state[:, kept], head)
        if guided:
            positive, negative = logits[:rows], logits[rows:]
            logits = torch.lerp(negative, positive, condition_guidance)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    # generation

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        condition: Tensor | None = None,
        condition_ids: Any = None,
        pixel_values: Tensor | None = None,
        guidance_scale: float | None = None,
        negative_condition: Tensor | None = None,
        negative_condition_ids: Any = None,
        **kwargs: Any,
    ) -> Any:
        r"""`GenerationMixin.generate` under a condition.

        Without a prompt the text starts from [CLS]. A causal model continues its prompt, so an end token that a tokenizer put
        there is masked; prompts of different lengths may be padded on either side. In the result the prompt has the width
        that it came with, padded on the left. Without ``max_length`` and ``max_new_tokens`` the text ends at its end token or
        with the last position.

        Args:
            inputs: prompt, ``(batch, length)``; also ``input_ids``.
            condition: ``(batch, condition_size)`` or ``(condition_size,)``.
            condition_ids: class ids or names: one for all, or one (a list for several attributes) a row.
            pixel_values: images, for a model with an image encoder.
            guidance_scale: s of classifier-free guidance, logits = l_0 + s (l_c - l_0), where l_0 are those of no condition
                or of the negative one (arXiv:2207.12598). 1 is no guidance. Needs a model trained with
                ``condition_dropout``, or a negative condition.
            negative_condition, negative_condition_ids: the condition to steer away from.
            **kwargs: everything else that `GenerationMixin.generate` takes (``do_sample``, ``num_beams``, ``top_p`` ...).

        Returns:
            ``(batch * num_return_sequences, length)`` token ids, or transformers' output class if asked for.

        Raises:
            ValueError: a condition that does not fit, a prompt that leaves no position, a negative guidance scale.
        """
        if self.config.attention_type == "bidirectional":
            raise ValueError("attention_type='bidirectional' cannot generate; load the model with attention_type='causal'")
        input_ids = kwargs.pop("input_ids", None)
        input_ids = inputs if inputs is not None else input_ids
        as_vector = lambda value: None if value is None else torch.as_tensor(value, dtype=self.dtype, device=self.device)  # noqa: E731
        condition, negative_condition = as_vector(condition), as_vector(negative_condition)
        sizes = [len(value) for value in (condition, pixel_values) if value is not None and value.ndim > 1]
        if isinstance(condition_ids, (list, tuple, Tensor)) and not (
            isinstance(condition_ids, Tensor) and not condition_ids.ndim
        ):
            sizes.append(len(self.resolve_condition_ids(condition_ids, 1)))
        batch_size = len(input_ids) if input_ids is not None else max(sizes, default=1)
        prompt = self._prepare_prompt(input_ids, kwargs, batch_size)
        kwargs.update(prompt)
        if batch_size > 1 and condition is not None and (condition.ndim == 1 or len(condition) == 1):
            condition = condition.reshape(1, -1).expand(batch_size, -1)
        elif condition is not None and condition.ndim == 1:
            condition = condition[None]
        if condition_ids is not None:
            condition_ids = self.resolve_condition_ids(condition_ids, batch_size)
        pixel_values = pixel_values.to(self.device, self.dtype) if pixel_values is not None else None
        vector = self.condition_vector(condition, condition_ids, pixel_values, batch_size)
        kwargs["condition_states"] = self.condition_states(vector)

        generation_config = copy.deepcopy(generation_config if generation_config is not None else self.generation_config)
        if guidance_scale is None:
            guidance_scale = generation_config.guidance_scale
        generation_config.guidance_scale = 1.0  # transformers' own guidance knows no condition
        negative = negative_condition is not None or negative_condition_ids is not None
        if guidance_scale is not None and guidance_scale < 0:
            raise ValueError(f"guidance_scale={guidance_scale} must not be negative; 1 is no guidance")
        if negative and guidance_scale in (None, 1):
            raise ValueError("a negative condition needs a guidance_scale above 1")
        if guidance_scale not in (None, 1):
            if negative_condition_ids is not None:
                negative_condition_ids = self.resolve_condition_ids(negative_condition_ids, batch_size)
            if negative_condition is not None:
                negative_condition = negative_condition.reshape(-1, negative_condition.shape[-1]).expand(batch_size, -1)
            away = self.condition_vector(negative_condition, negative_condition_ids, None, batch_size)
            kwargs |= {
                "negative_condition_states": self.condition_states(away),
                "condition_guidance": float(guidance_scale),
            }

        model_inputs = generation_config.update(**kwargs)
        width, limit = model_inputs["input_ids"].shape[1], self.config.max_length_of_text
        length = int(model_inputs["attention_mask"].sum(1).max())
        room, asked = limit - length, generation_config.max_new_tokens
        if room < 1:
            raise ValueError(f"the prompt has {length} tokens and leaves none of the model's {limit} positions for new text")
        if kwargs.get("max_new_tokens") is not None and asked > room:
            raise ValueError(
                f"prompt ({length} tokens) and max_new_tokens={asked} need {length + asked} positions, but the model has "
                f"{limit}: ask for at most {room} new tokens"
            )
        if asked is not None:  # as a total length: transformers warns where both are set. A default gives way.
            generation_config.max_length = width + min(asked, room)
            if self.generation_config.max_new_tokens is None:  # what is None here is filled from there
                generation_config.max_new_tokens = None
            else:
                generation_config.max_new_tokens = min(asked, room)
        elif generation_config.max_length is None or generation_config.max_length > width + room:
            generation_config.max_length = width + room
        return super().generate(generation_config=generation_config, **model_inputs)

    def _prepare_prompt(self, input_ids: Tensor | None, kwargs: dict[str, Any], batch_size: int) -> dict[str, Tensor]:
        """Prompt, mask and segments, padded on the left and without the end token of a causal prompt, as wide as given."""
        config = self.config
        if input_ids is None or input_ids.shape[1] == 0:
            if config.bos_token_id is None:
                raise ValueError("an empty prompt starts from [CLS], but the configuration has no bos_token_id")
            input_ids = torch.full((batch_size, 1), config.bos_token_id, device=self.device)
            kwargs = {}
        input_ids = input_ids.to(self.device)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask.to(self.device).long()
        types = kwargs.get("token_type_ids")
        types = torch.zeros_like(input_ids) if types is None else types.to(self.device)
        self.bert.check_inputs(input_ids, types, 0)
        if config.attention_type == "causal" and config.eos_token_id is not None:
            places = torch.arange(mask.shape[1], device=self.device)
            last = (places * mask).argmax(dim=1, keepdim=True)
            ends = torch.tensor(config.eos_token_id, device=self.device).reshape(-1)
            closed = torch.isin(input_ids.gather(1, last), ends) & (last > 0)
            mask = mask.scatter(1, last, (~closed).long() * mask.gather(1, last))
        order = mask.argsort(dim=1, stable=True)  # padding first; no column is taken away, so that callers can count
        mask = mask.gather(1, order)
        padding = config.pad_token_id if config.pad_token_id is not None else 0
        return {
            "input_ids": input_ids.gather(1, order).masked_fill(mask == 0, padding),
            "attention_mask": mask,
            "token_type_ids": types.gather(1, order),
        }

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder, num_new_tokens)
        if self.config.attention_type == "prefix_lm" and model_kwargs.get("token_type_ids") is not None:
            # what is written belongs to segment 1; transformers repeats the last segment of the prompt
            model_kwargs["token_type_ids"][:, -num_new_tokens:] = 1
        return model_kwargs

    def _reorder_cache(self, cache: Cache, beam_idx: Tensor) -> Cache:
        """Beams change places in both halves of a guided cache."""
        rows = cache.layers[0].keys.shape[0]
        if rows == 2 * len(beam_idx):
            beam_idx = torch.cat([beam_idx, beam_idx + len(beam_idx)])
        cache.reorder_cache(beam_idx)
        return cache

    @staticmethod
    def create_masks_for_generate(
        config, inputs_embeds, attention_mask, past_key_values=None, token_type_ids=None, cache=None, **kwargs
    ) -> Tensor | None:
        cache = past_key_values if cache is None else cache
        return build_attention_mask(config, inputs_embeds, attention_mask, cache, token_type_ids)

    # density and classification

    def sequence_log_probs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **condition: Any,
    ) -> Tensor:
        """log p(x_2 ... x_T | x_1, c) of each text in nats, ``(batch,)``.

        Padding does not count, nor does the source segment of a prefix LM.
        """
        if self.config.attention_type == "bidirectional":
            raise ValueError("attention_type='bidirectional' gives no probability of a text; use 'causal' or 'prefix_lm'")
        logits = self(input_ids, attention_mask, token_type_ids, use_cache=False, **condition).logits[:, :-1]
        counted = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.config.attention_type == "prefix_lm" and token_type_ids is not None:
            counted = counted * (token_type_ids > 0)
        log_probs = -F.cross_entropy(logits.float().transpose(1, 2), input_ids[:, 1:], reduction="none")
        return (log_probs * counted[:, 1:]).sum(1)

    @torch.no_grad()
    def classify(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        prior: Tensor | None = None,
        attribute: int = 0,
        condition_ids: Tensor | None = None,
    ) -> Tensor:
        """Which class wrote this text, by Bayes: log p(y | x) = log p(y) + log p(x | y) - log p(x).

        Args:
            input_ids, attention_mask, token_type_ids: texts, ``(batch, length)``.
            prior: p(y), ``(classes,)``; uniform by default.
            attribute: which attribute is asked for.
            condition_ids: ``(batch, attributes)``, what is known of the others; none by default.

        Returns:
            ``(batch, classes)`` log-probabilities in nats.
        """
        sizes = self.config.attribute_sizes
        if attribute not in range(len(sizes)):
            raise ValueError(f"attribute={attribute} is not known; this model has {len(sizes)}, counted from 0")
        if prior is not None and (prior.shape != (sizes[attribute],) or (prior < 0).any() or prior.sum() == 0):
            raise ValueError(f"prior must be {sizes[attribute]} probabilities, got {prior.tolist()}")
        ids = torch.full((len(input_ids), len(sizes)), -1, device=input_ids.device)
        if condition_ids is not None:
            ids = condition_ids.reshape(len(input_ids), len(sizes)).clone()
        scores = []
        for label in range(sizes[attribute]):
            ids[:, attribute] = label
            scores.append(self.sequence_log_probs(input_ids, attention_mask, token_type_ids, condition_ids=ids))
        scores = torch.stack(scores, dim=1)
        if prior is not None:
            scores = scores + prior.to(scores).log()
        return scores.log_softmax(1)

    # vocabulary and parts

    @torch.no_grad()
    def prune_vocab(self, tokenizer: Any, texts: Any = None, *, keep: Any = (), min_count: int = 1) -> Any:
        """Keep only some tokens, in this model (in place) and in a new tokenizer.

        Args:
            tokenizer: the model's WordPiece or WordLevel tokenizer.
            texts: keep what occurs in these at least ``min_count`` times.
            keep: tokens to keep besides. Special tokens always stay.

        Returns:
            The new tokenizer. Kept tokens keep their order and their embeddings.
        """
        tokens = set(keep) | (used_tokens(tokenizer, texts, min_count) if texts is not None else set())
        pruned, kept_ids = prune_tokenizer(tokenizer, tokens)
        rows = torch.tensor(kept_ids, device=self.device)
        words = self.get_input_embeddings()
        padding = kept_ids.index(words.padding_idx) if words.padding_idx in kept_ids else None
        new = nn.Embedding(
            len(rows), words.embedding_dim, padding_idx=padding, device=words.weight.device, dtype=words.weight.dtype
        )
        new.weight.copy_(words.weight[rows])
        decoder = nn.Linear(self.config.hidden_size, len(rows), device=self.device, dtype=self.dtype)
        decoder.weight.copy_(self.get_output_embeddings().weight[rows])
        decoder.bias.copy_(self.cls.predictions.bias[rows])
        self.set_input_embeddings(new)
        self.set_output_embeddings(decoder)
        self.config.vocab_size = len(rows)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            old = getattr(self.config, name)
            if isinstance(old, int):
                setattr(self.config, name, kept_ids.index(old) if old in kept_ids else None)
                setattr(self.generation_config, name, getattr(self.config, name))
        self.tie_weights()
        return pruned

    @classmethod
    def from_vision_and_text_pretrained(cls, vision: str, text: str, **kwargs: Any) -> ConditionalLNBertForGeneration:
        """Image captioning from two checkpoints: any image encoder, and any plain BERT or RoBERTa.

        Args:
            vision, text: folders or Hub ids.
            **kwargs: fields of [`ConditionalLNBertConfig`]; the article projects to 128 with an activation.
        """
        encoder = AutoModel.from_pretrained(vision)
        encoder = getattr(encoder, "vision_model", encoder)  # CLIP and its kind hold a text encoder, too
        kwargs = {"condition_hidden_size": 128, "condition_hidden_act": "silu"} | kwargs
        model = cls.from_pretrained(text, vision_config=encoder.config, **kwargs)
        model.bert.vision_model.load_state_dict(encoder.state_dict())
        return model


class ConditionalLNBertForSequenceClassification(ConditionalLNBertPreTrainedModel):
    r"""Classification or regression of texts, with side information as the condition.

    With ``attention_type="bidirectional"`` it reads BERT's pooled [CLS], under the other masks the last token.
    """

    _auto_class = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False  # the loss is a mean over texts, whatever the Trainer counts
    _keys_to_ignore_on_load_unexpected = [r"seq_relationship", r"position_ids", r"^cls\.", r"^lm_head\."]

    def __init__(self, config: ConditionalLNBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.loss_type = "ForSequenceClassification"
        self.bert = ConditionalLNBertModel(config)
        dropout = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        condition: Tensor | None = None,
        condition_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits ``(batch, num_labels)``; ``labels`` as in `transformers.BertForSequenceClassification`."""
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            condition,
            condition_ids,
            pixel_values,
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "ConditionalLNBertForGeneration",
    "ConditionalLNBertForSequenceClassification",
    "ConditionalLNBertModel",
    "ConditionalLNBertPreTrainedModel",
    "ConditionalLayerNorm",
]

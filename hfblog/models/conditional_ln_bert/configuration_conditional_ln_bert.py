"""Configuration of the BERT whose LayerNorms read a condition.

No ``from __future__ import annotations`` here: `strict` reads the annotations as objects, and checks no type where it finds
strings.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

ATTENTION_TYPES = ("causal", "prefix_lm", "bidirectional")
CONDITIONINGS = ("layer_norm", "prefix_token", "embedding", "pseudo_self_attention")
CONDITION_LAYERS = ("embeddings", "attention", "ffn", "head")
CONDITION_MODES = ("scale_shift", "scale", "shift")
# Encoders whose checkpoints `from_pretrained` takes as they are, and how many positions their padding uses up.
SOURCE_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise a ``ValueError`` that names the wrong value and the accepted ones."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; it must be one of {', '.join(map(repr, choices))}")


@strict
class ConditionalLNBertConfig(PreTrainedConfig):
    r"""Configuration of [`ConditionalLNBertModel`] and its heads (https://kexue.fm/archives/7124).

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, hidden_dropout_prob,
            attention_probs_dropout_prob, max_position_embeddings, type_vocab_size, initializer_range, layer_norm_eps,
            classifier_dropout: as in `transformers.BertConfig`.
        pad_token_id, bos_token_id, eos_token_id: BERT's [PAD], [CLS] and [SEP]: a text begins with the second and ends with
            the third.
        position_offset: added to every position; RoBERTa's positions begin at 2.
        attention_type: ``"causal"`` (language model), ``"prefix_lm"`` (UniLM, arXiv:1905.03197: segment 0 sees all of itself,
            segment 1 what came before) or ``"bidirectional"`` (masked language model, classification).
        conditioning: how the condition c enters. ``"layer_norm"`` is the article's; the others are there to be compared:
            ``"prefix_token"`` adds ``W c`` to the embedding of the first token (CTRL, arXiv:1909.05858),
            ``"embedding"`` to that of every token, ``"pseudo_self_attention"`` gives every attention layer one more key
            and value (arXiv:1908.06938).
        num_condition_classes: classes of the condition, a list for several attributes, or None where it is a vector.
        condition_labels: names of the classes, a list of lists for several attributes. Gives ``num_condition_classes``, and
            then `generate` takes names for ids.
        condition_size: length of the condition vector; 128, or with a ``vision_config`` that encoder's hidden size.
        condition_hidden_size: length of the projection that all LayerNorms read; None reads the vector itself.
        condition_hidden_act: activation after that projection; None for a linear one.
        condition_layers: ``"all"``, or which LayerNorms read the condition, out of "embeddings", "attention" (the one
            after attention), "ffn" (the one after the feed-forward network) and "head" (that of the LM head).
        condition_mode: ``"scale_shift"``, ``"scale"`` or ``"shift"``: which of gamma and beta the condition moves.
        condition_dropout: probability with which training hides an example's condition. Hidden conditions train "no
            condition", which `generate`'s guidance needs.
        condition_initializer_range: standard deviation of new class embeddings.
        sum_conditions: take ``condition`` and ``condition_ids`` together and add their vectors; otherwise one of the two.
        vision_config: configuration of an image encoder (anything `AutoModel` builds) whose pooled vector is the condition.

    Example:

    ```python
    >>> from hfblog import ConditionalLNBertConfig
    >>> config = ConditionalLNBertConfig(condition_labels=["negative", "positive"], hidden_size=64, num_attention_heads=2)
    >>> config.num_condition_classes
    2

    ```
    """

    model_type = "conditional_ln_bert"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    sub_configs = {"vision_config": AutoConfig}
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_conditional_ln_bert.ConditionalLNBertConfig",
        "AutoModel": "modeling_conditional_ln_bert.ConditionalLNBertModel",
        "AutoModelForCausalLM": "modeling_conditional_ln_bert.ConditionalLNBertForGeneration",
        "AutoModelForSequenceClassification": "modeling_conditional_ln_bert.ConditionalLNBertForSequenceClassification",
    }
    _auto_class = "AutoConfig"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    classifier_dropout: float | int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102
    tie_word_embeddings: bool = True
    use_cache: bool = True
    position_offset: int = 0
    attention_type: str = "causal"
    conditioning: str = "layer_norm"
    num_condition_classes: int | list[int] | tuple[int, ...] | None = None
    condition_labels: list | tuple | None = None
    condition_size: int | None = None
    condition_hidden_size: int | None = None
    condition_hidden_act: str | None = None
    condition_layers: str | list[str] | tuple[str, ...] = "all"
    condition_mode: str = "scale_shift"
    condition_dropout: float | int = 0.1
    condition_initializer_range: float | int = 0.1
    sum_conditions: bool = False
    vision_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # of the repository this was loaded from; set anew below
        if isinstance(self.vision_config, dict):
            if "model_type" not in self.vision_config:
                raise ValueError("vision_config must name its model_type, such as 'vit' or 'resnet'")
            self.vision_config = AutoConfig.for_model(**self.vision_config)
        if self.condition_size is None:
            self.condition_size = _pooled_size(self.vision_config) if self.vision_config is not None else 128
        if self.condition_labels and self.num_condition_classes is None:
            sizes = [len(names) for names in self.attribute_labels]
            self.num_condition_classes = sizes[0] if isinstance(self.condition_labels[0], str) else sizes
        super().__post_init__(**kwargs)
        self.auto_map = dict(self.auto_classes)

    @property
    def attribute_sizes(self) -> tuple[int, ...]:
        """Number of classes of each attribute; empty where the condition is a vector."""
        if self.num_condition_classes is None:
            return ()
        return (
            (self.num_condition_classes,) if isinstance(self.num_condition_classes, int) else tuple(self.num_condition_classes)
        )

    @property
    def attribute_labels(self) -> list[list[str]]:
        """Names of the classes of each attribute, if there are names."""
        if not self.condition_labels:
            return []
        one = isinstance(self.condition_labels[0], str)
        return [list(self.condition_labels)] if one else [list(names) for names in self.condition_labels]

    @property
    def max_length_of_text(self) -> int:
        """Tokens that have a position."""
        return self.max_position_embeddings - self.position_offset

    @classmethod
    def from_source(cls, source: PreTrainedConfig | dict[str, Any], **overrides: Any) -> "ConditionalLNBertConfig":
        """The configuration for the weights of a plain BERT or RoBERTa checkpoint.

        Raises:
            ValueError: the source is of another architecture.
        """
        source = source if isinstance(source, dict) else source.to_dict()
        model_type = source.get("model_type")
        check_choice("the checkpoint's model_type", model_type, SOURCE_MODEL_TYPES)
        shared = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
            "attention_probs_dropout_prob max_position_embeddings type_vocab_size initializer_range layer_norm_eps "
            "classifier_dropout pad_token_id bos_token_id eos_token_id tie_word_embeddings id2label label2id dtype"
        )
        settings = {name: source[name] for name in shared.split() if source.get(name) is not None}
        if source.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError(f"position_embedding_type={source['position_embedding_type']!r}: only 'absolute' is known here")
        if model_type != "bert":
            settings["position_offset"] = settings.get("pad_token_id", 1) + 1
        return cls(**(settings | overrides))

    def validate_architecture(self):
        check_choice("attention_type", self.attention_type, ATTENTION_TYPES)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "type_vocab_size",
        )
        for name in (*sizes, "condition_size", "condition_hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be positive")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.max_length_of_text < 1:
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} leaves no position over "
                f"position_offset={self.position_offset}"
            )
        if self.attention_type == "prefix_lm" and self.type_vocab_size < 2:
            raise ValueError(f"attention_type='prefix_lm' needs two segments, but type_vocab_size={self.type_vocab_size}")

    def validate_condition(self):
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        check_choice("condition_mode", self.condition_mode, CONDITION_MODES)
        if self.condition_hidden_act is not None:
            check_choice("condition_hidden_act", self.condition_hidden_act, tuple(ACT2FN))
            if self.condition_hidden_size is None:
                raise ValueError("condition_hidden_act needs condition_hidden_size: it follows that projection")
        if self.condition_layers != "all":
            if isinstance(self.condition_layers, str) or not self.condition_layers:
                raise ValueError(
                    f"condition_layers={self.condition_layers!r} must be 'all' or a list out of {CONDITION_LAYERS}"
                )
            for kind in self.condition_layers:
                check_choice("condition_layers", kind, CONDITION_LAYERS)
        for size in self.attribute_sizes:
            if size < 1:
                raise ValueError(f"num_condition_classes={self.num_condition_classes} must be positive")
        if self.condition_labels and tuple(map(len, self.attribute_labels)) != self.attribute_sizes:
            raise ValueError(
                f"condition_labels={self.condition_labels} do not name the classes that "
                f"num_condition_classes={self.num_condition_classes} counts"
            )
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout={self.condition_dropout} must lie in [0, 1)")
        if self.sum_conditions and not self.attribute_sizes:
            raise ValueError("sum_conditions=True adds a vector and classes, but num_condition_classes is not set")
        if self.vision_config is not None and self.attribute_sizes and not self.sum_conditions:
            raise ValueError("vision_config and num_condition_classes go together only with sum_conditions=True")


def _pooled_size(vision_config: PreTrainedConfig) -> int:
    """Length of the pooled vector of an image encoder."""
    if getattr(vision_config, "hidden_sizes", None):
        return vision_config.hidden_sizes[-1]
    if getattr(vision_config, "hidden_size", None):
        return vision_config.hidden_size
    raise ValueError(f"give condition_size: it does not follow from a {vision_config.model_type!r} configuration")


__all__ = ["ConditionalLNBertConfig"]

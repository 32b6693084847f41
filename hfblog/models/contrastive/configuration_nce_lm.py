"""Configuration of language models trained by noise contrastive estimation."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_contrastive import ContrastiveConfig, build_nested_config, check_choice, check_positive

LM_LOSSES = ("nce", "density_ratio", "neg", "ranking", "random_softmax", "full")
LM_PARTITIONS = ("none", "fixed", "learned", "context")
SHARINGS = ("batch", "sequence", "token")


@strict
class NCELMConfig(ContrastiveConfig):
    r"""A causal language model whose training never sums over the vocabulary.

    Mnih and Teh 2012, arXiv:1206.6426; Su Jianlin 2018, https://kexue.fm/archives/5617. The score of a word w after a context
    h is ``G(w, h) = <v_w, h> + b_w``, and its log-probability ``G(w, h) - c``.

    Args:
        backbone_config: configuration of any causal transformers model with a ``last_hidden_state`` (``gpt2``, ``llama``),
            as a dictionary with its ``model_type``; it says the size of the vocabulary.
        loss_type: ``"nce"``, ``"ranking"`` (sampled softmax), ``"full"`` (the softmax itself, the twin to compare with),
            ``"density_ratio"``, ``"neg"`` (word2vec's) or ``"random_softmax"``; see [`NCELoss`]. Those but the first three
            learn no probabilities of words unless the noise is uniform.
        num_noise_samples: noise words k that each word is told from.
        noise_power: noise is drawn by the words' counts to this power.
        noise_sharing: who shares k noise words: all words of a ``"batch"`` (one matrix product), those of a ``"sequence"``
            (one a row; more variety at little cost), or none, ``"token"`` (slow; the textbook form).
        log_partition: c. ``"fixed"`` is ``log_partition_init``, ``"none"`` is 0, ``"learned"`` one number, ``"context"`` a
            linear function of the hidden state.
        log_partition_init: where c starts, or stays.
        output_bias: whether words have a bias b_w. `NCEForCausalLM.initialize` sets it to the words' log-frequencies, so that
            the model starts as a normalised unigram model. One of it and ``log_partition="learned"`` is enough.
        sparse_gradients: the gradient of the output layer has rows of the words that were drawn only; of a vocabulary that is
            large. Takes an optimizer for sparse gradients (SGD, Adagrad, SparseAdam) and is not for ``"full"``.
        tie_word_embeddings: whether the output layer's vectors are the backbone's input vectors.
        initializer_range: standard deviation of the output layer's start.

    Example:

    ```python
    >>> from hfblog import NCELMConfig
    >>> config = NCELMConfig(backbone_config={"model_type": "gpt2", "vocab_size": 20000, "n_embd": 128, "n_head": 4})
    >>> config.vocab_size, config.hidden_size
    (20000, 128)

    ```
    """

    model_type = "nce_lm"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_nce_lm.NCELMConfig",
        "AutoModelForCausalLM": "modeling_nce_lm.NCEForCausalLM",
    }

    backbone_config: dict | PreTrainedConfig | None = None
    loss_type: str = "nce"
    num_noise_samples: int = 100
    noise_power: float | int = 1.0
    noise_sharing: str = "batch"
    log_partition: str = "fixed"
    log_partition_init: float | int = 0.0
    output_bias: bool = True
    sparse_gradients: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float | int = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        size = kwargs.pop("vocab_size", None)
        if self.backbone_config is None:
            self.backbone_config = {"model_type": "gpt2"}
        if isinstance(self.backbone_config, dict):
            settings = {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
            if size is not None:
                settings["vocab_size"] = size
            self.backbone_config = build_nested_config("backbone_config", settings | self.backbone_config)
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's: generation reads the shape of its cache there."""
        return self.backbone_config

    @property
    def vocab_size(self) -> int:
        """Number of words V."""
        return self.backbone_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.backbone_config.vocab_size = size

    @property
    def hidden_size(self) -> int:
        return self.backbone_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone_config.num_hidden_layers

    def validate_backbone(self):
        for name in ("vocab_size", "hidden_size"):
            if not isinstance(getattr(self.backbone_config, name, None), int):
                raise ValueError(f"backbone_config of model_type={self.backbone_config.model_type!r} does not state {name}")

    def validate_loss(self):
        check_choice("loss_type", self.loss_type, LM_LOSSES)
        check_choice("noise_sharing", self.noise_sharing, SHARINGS)
        check_choice("log_partition", self.log_partition, LM_PARTITIONS)
        check_positive(self, "num_noise_samples", "initializer_range")
        if not math.isfinite(self.noise_power):
            raise ValueError(f"noise_power={self.noise_power} must be finite")
        if self.log_partition == "learned" and self.output_bias:
            raise ValueError(
                "log_partition='learned' with output_bias=True says one thing twice: a constant in every bias is the same as "
                "one in c, and both drift. Use log_partition='fixed', or output_bias=False"
            )
        if self.log_partition in ("learned", "context") and self.loss_type not in ("nce", "density_ratio"):
            raise ValueError(
                f"log_partition={self.log_partition!r} learns nothing from loss_type={self.loss_type!r}; use 'fixed' or 'none'"
            )
        if not math.isfinite(self.log_partition_init):
            raise ValueError(f"log_partition_init={self.log_partition_init} must be finite")
        if self.log_partition == "none" and self.log_partition_init:
            raise ValueError(f"log_partition_init={self.log_partition_init} has no place in log_partition='none'")
        if self.sparse_gradients and (self.loss_type == "full" or self.tie_word_embeddings):
            raise ValueError(
                f"sparse_gradients=True with loss_type={self.loss_type!r} and tie_word_embeddings={self.tie_word_embeddings}: "
                "the gradient has rows for all words there"
            )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"vocab_size": self.vocab_size}


__all__ = ["NCELMConfig"]

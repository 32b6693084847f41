from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoProcessor

from .configuration_conditional_ln_bert import ConditionalLNBertConfig
from .modeling_conditional_ln_bert import (
    ConditionalLayerNorm,
    ConditionalLNBertForGeneration,
    ConditionalLNBertForSequenceClassification,
    ConditionalLNBertModel,
    ConditionalLNBertPreTrainedModel,
)
from .processing_conditional_ln_bert import ConditionalLNBertProcessor, build_captioning_processor
from .tokenization_conditional_ln_bert import prune_tokenizer, train_tokenizer

AutoConfig.register("conditional_ln_bert", ConditionalLNBertConfig, exist_ok=True)
AutoModel.register(ConditionalLNBertConfig, ConditionalLNBertModel, exist_ok=True)
AutoModelForCausalLM.register(ConditionalLNBertConfig, ConditionalLNBertForGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(ConditionalLNBertConfig, ConditionalLNBertForSequenceClassification, exist_ok=True)
AutoProcessor.register(ConditionalLNBertConfig, ConditionalLNBertProcessor, exist_ok=True)

__all__ = [
    "ConditionalLNBertConfig",
    "ConditionalLNBertForGeneration",
    "ConditionalLNBertForSequenceClassification",
    "ConditionalLNBertModel",
    "ConditionalLNBertPreTrainedModel",
    "ConditionalLNBertProcessor",
    "ConditionalLayerNorm",
    "build_captioning_processor",
    "prune_tokenizer",
    "train_tokenizer",
]

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForPreTraining

from .affinities import count_pairs, feature_affinities
from .configuration_contrastive import ContrastiveConfig
from .configuration_min_entropy_embedding import MinEntropyEmbeddingConfig
from .configuration_nce_density import NCEDensityConfig
from .configuration_nce_lm import NCELMConfig
from .library_layout import LibraryLayout
from .map_equation import Clusters, cluster_by_infomap, code_length, neighbour_graph
from .modeling_min_entropy_embedding import (
    MinEntropyEmbeddingForPreTraining,
    MinEntropyEmbeddingModel,
    MinEntropyEmbeddingOutput,
    ReferencePoints,
    reference_points,
)
from .modeling_nce_density import NCEDensityModel, NCEDensityOutput, Normalization
from .modeling_nce_lm import NCEForCausalLM, NCELMOutput, PartitionStats
from .nce_loss import NCELoss
from .noise_distributions import (
    FlowNoise,
    GaussianMixtureNoise,
    GaussianNoise,
    NoiseDistribution,
    UniformNoise,
    UnigramNoise,
)
from .phrases import Phrases, find_phrases, join_phrases, phrase_gain
from .subwords import subword_ids
from .tokenization_words import train_word_tokenizer
from .word2vec_format import read_word2vec, write_word2vec
from .word_vectors import UnknownWordError, WordVectors

AutoConfig.register("nce_density", NCEDensityConfig, exist_ok=True)
AutoModel.register(NCEDensityConfig, NCEDensityModel, exist_ok=True)

AutoConfig.register("nce_lm", NCELMConfig, exist_ok=True)
AutoModelForCausalLM.register(NCELMConfig, NCEForCausalLM, exist_ok=True)

AutoConfig.register("min_entropy_embedding", MinEntropyEmbeddingConfig, exist_ok=True)
AutoModel.register(MinEntropyEmbeddingConfig, MinEntropyEmbeddingModel, exist_ok=True)
AutoModelForPreTraining.register(MinEntropyEmbeddingConfig, MinEntropyEmbeddingForPreTraining, exist_ok=True)

__all__ = [
    "Clusters",
    "LibraryLayout",
    "Phrases",
    "cluster_by_infomap",
    "code_length",
    "find_phrases",
    "join_phrases",
    "neighbour_graph",
    "phrase_gain",
    "MinEntropyEmbeddingConfig",
    "MinEntropyEmbeddingForPreTraining",
    "MinEntropyEmbeddingModel",
    "MinEntropyEmbeddingOutput",
    "ReferencePoints",
    "read_word2vec",
    "reference_points",
    "ContrastiveConfig",
    "FlowNoise",
    "GaussianMixtureNoise",
    "GaussianNoise",
    "NCEDensityConfig",
    "NCEDensityModel",
    "NCEDensityOutput",
    "NCEForCausalLM",
    "NCELMConfig",
    "NCELMOutput",
    "NCELoss",
    "NoiseDistribution",
    "Normalization",
    "PartitionStats",
    "UniformNoise",
    "UnigramNoise",
    "UnknownWordError",
    "WordVectors",
    "count_pairs",
    "feature_affinities",
    "subword_ids",
    "train_word_tokenizer",
    "write_word2vec",
]

from transformers import AutoConfig, AutoModel

from .configuration_term_miner import TermMinerConfig
from .contrast_scores import contrast_of, smoothed_share
from .discovery import Lexicon
from .growth import Growth, grow, similarity_threshold
from .modeling_term_miner import TermMinerModel, TermMinerOutput
from .ngram_counts import NgramCounts, NgramTable, count_ngrams
from .pipeline_term_miner import TermMiningPipeline
from .rules import TermRules
from .spark_corpus import SparkCorpus, spark_corpora
from .symbol_corpus import CorpusReader, SymbolCorpus, joint_alphabet
from .tokenization_term_miner import build_term_tokenizer

AutoConfig.register("term_miner", TermMinerConfig, exist_ok=True)
AutoModel.register(TermMinerConfig, TermMinerModel, exist_ok=True)

__all__ = [
    "CorpusReader",
    "Growth",
    "Lexicon",
    "NgramCounts",
    "NgramTable",
    "SparkCorpus",
    "SymbolCorpus",
    "TermMinerConfig",
    "TermMinerModel",
    "TermMinerOutput",
    "TermMiningPipeline",
    "TermRules",
    "build_term_tokenizer",
    "contrast_of",
    "count_ngrams",
    "grow",
    "joint_alphabet",
    "similarity_threshold",
    "smoothed_share",
    "spark_corpora",
]

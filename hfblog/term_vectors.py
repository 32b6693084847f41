"""Vectors of meaning for mined terms, from the corpus they were mined in."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .data import encode_words
from .models.contrastive import MinEntropyEmbeddingConfig, MinEntropyEmbeddingForPreTraining, WordVectors
from .models.contrastive.tokenization_words import train_word_tokenizer
from .models.term_miner import TermMinerModel


def train_term_vectors(
    miner: TermMinerModel,
    texts: Iterable[str],
    *,
    embedding_dim: int = 100,
    min_count: int = 5,
    window_size: int = 5,
    num_noise_samples: int = 10,
    epochs: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> WordVectors:
    """Cut a corpus by a miner's lexicon, compounds included, and learn skip-gram vectors of its words and terms.

    The settings are the article's (kexue.fm 6540): 100 dimensions, ten noise words. The miner gets the vectors, too
    ([`TermMinerModel.set_vectors`]).

    Args:
        miner: fitted.
        texts: the corpus.
        min_count: rarer words get no vector.
        threads: of the compiled loops; with one, the same seed gives the same vectors.

    Raises:
        ValueError: no word is frequent enough.
        ImportError: numba is not installed.
    """
    corpus = encode_words(miner.iter_segment(texts, compounds=True), min_count)
    tokenizer = train_word_tokenizer([corpus.words], keep_order=True)
    offset = len(tokenizer) - len(corpus.words)
    torch.manual_seed(seed)
    model = MinEntropyEmbeddingForPreTraining(
        MinEntropyEmbeddingConfig(
            vocab_size=len(tokenizer),
            embedding_dim=embedding_dim,
            window_size=window_size,
            num_noise_samples=min(num_noise_samples, len(corpus.words) - 1),
            pad_token_id=tokenizer.pad_token_id,
            unk_token_id=tokenizer.unk_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.fit_corpus((corpus.items + offset, corpus.starts), epochs=epochs, threads=threads, seed=seed)
    vectors = WordVectors(model.eval(), tokenizer)
    miner.set_vectors(vectors)
    return vectors

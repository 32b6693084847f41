"""A tokenizer whose tokens are words, for texts whose words stand between spaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}

# Runs of characters that are no part of a word, as tokenizers and Arrow read it alike; what they call \w differs.
NO_WORD = r"[^\p{L}\p{N}_]+"


def train_word_tokenizer(
    texts: Iterable[str | Iterable[str]],
    vocab_size: int | None = None,
    *,
    min_count: int = 1,
    lowercase: bool = False,
    drop_punctuation: bool = False,
    keep_order: bool = False,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """A vocabulary of the words between spaces, the frequent ones first; rarer ones are [UNK].

    It is saved as ``tokenizer.json`` and loads through `AutoTokenizer`.

    Args:
        texts: the corpus; or records, lists of the names of things, which may hold spaces.
        vocab_size: at most so many tokens, special ones included.
        min_count: a word that is rarer is left out.
        lowercase: whether capitals count as small letters, in the corpus and ever after.
        drop_punctuation: whether whatever is no letter, digit or underscore stands for a space, in the corpus and ever after.
        keep_order: whether words are numbered as they appear, and not by frequency.
        model_max_length: where the tokenizer truncates.

    Raises:
        ValueError: no room beside the special tokens, or no word that is frequent enough.

    Example:

    ```python
    >>> from hfblog import train_word_tokenizer
    >>> tokenizer = train_word_tokenizer(["迈向 充满 希望 的 新 世纪", "新 的 希望"], min_count=2)
    >>> tokenizer.tokenize("充满 希望 的 新 世纪")
    ['[UNK]', '希望', '的', '新', '[UNK]']

    ```
    """
    if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size={vocab_size} must exceed the {len(SPECIAL_TOKENS)} special tokens")
    steps = [normalizers.Replace(Regex(NO_WORD), " ")] if drop_punctuation else []
    steps += [normalizers.Lowercase()] if lowercase else []
    normalizer = normalizers.Sequence(steps) if steps else None
    counts: Counter[str] = Counter()
    for text in texts:
        if isinstance(text, str):
            words = (text if normalizer is None else normalizer.normalize_str(text)).split()
        else:
            words = [word.lower() for word in text] if lowercase else text
        counts.update(words)
    for token in SPECIAL_TOKENS.values():
        counts.pop(token, None)
    # ties by the word itself: the same corpus gives the same numbers in any order
    words = [word for word, count in counts.items() if count >= min_count]
    if not keep_order:
        words.sort(key=lambda word: (-counts[word], word))
    if not words:
        raise ValueError(f"no word of the corpus occurs min_count={min_count} times")
    special = list(SPECIAL_TOKENS.values())
    vocabulary = (special + words)[:vocab_size]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    settings = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",  # where a decoder's prompts are padded
        bos_token=SPECIAL_TOKENS["eos_token"],
        **SPECIAL_TOKENS,
        **settings,
    )


__all__ = ["train_word_tokenizer"]

"""BERT-style tokenizers for generation: trained on a corpus, or a pretrained one with the tokens that a corpus needs.

Both are saved as ``tokenizer.json`` and load through `AutoTokenizer`. Unlike BERT's own, they write Chinese without spaces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

# Han characters, CJK punctuation, and full-width forms.
_CJK = (
    r"\x{2e80}-\x{303f}\x{3400}-\x{9fff}\x{f900}-\x{faff}\x{fe30}-\x{fe4f}\x{ff00}-\x{ffef}\x{2018}-\x{201d}\x{2026}\x{2014}"
)


def cjk_decoder() -> decoders.Decoder:
    """WordPiece's decoder, without spaces beside Chinese characters."""
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            decoders.Replace(Regex(f"(?<=[{_CJK}]) (?=[^ ])|(?<=[^ ]) (?=[{_CJK}])"), ""),
        ]
    )


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8000,
    *,
    lowercase: bool = True,
    min_count: int = 1,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with BERT's conventions: [CLS] text [SEP], a Chinese character is a token.

    Args:
        texts: the corpus.
        vocab_size: at most so many tokens, special ones included.
        lowercase: lower-case and strip accents, as BERT's uncased models do.
        min_count: a character that is rarer becomes [UNK], a longer piece is not made.
        model_max_length: where the tokenizer truncates.

    Example:

    ```python
    >>> from hfblog import train_tokenizer
    >>> tokenizer = train_tokenizer(["手机很好，屏幕清晰。", "a good phone"], vocab_size=100)
    >>> tokenizer.decode(tokenizer("手机很好，good")["input_ids"], skip_special_tokens=True)
    '手机很好，good'

    ```
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size={vocab_size} must exceed the {len(SPECIAL_TOKENS)} special tokens")
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    special = list(SPECIAL_TOKENS.values())
    vocabulary = [*special, *_pieces(words, vocab_size - len(special), min_count)]
    tokenizer = Tokenizer(WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = cjk_decoder()
    ids = {token: tokenizer.token_to_id(token) for token in special}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    settings = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        padding_side="right",
        truncation_side="right",
        **SPECIAL_TOKENS,
        **settings,
    )


def _pieces(words: Counter[str], size: int, min_count: int) -> list[str]:
    """The pieces of a WordPiece vocabulary: characters by frequency, then beginnings and ends of words by what they save.

    Not tokenizers' own trainer: it breaks ties by the order of a randomised hash table, so that two processes, or two runs,
    would number their tokens differently.
    """
    characters: Counter[str] = Counter()
    longer: Counter[str] = Counter()
    for word, count in words.items():
        characters[word[0]] += count
        for character in word[1:]:
            characters[f"##{character}"] += count
        for cut in range(1, min(len(word), 20)):
            longer[word[: cut + 1]] += count
            if cut < len(word) - 1:
                longer[f"##{word[cut:]}"] += count
    kept = [piece for piece in characters if characters[piece] >= min_count]
    pieces = sorted(kept, key=lambda piece: (-characters[piece], piece))[:size]
    # a piece of n characters saves n - 1 tokens wherever it is used
    savings = {piece: n * (len(piece.removeprefix("##")) - 1) for piece, n in longer.items() if n >= max(min_count, 2)}
    return pieces + sorted(savings, key=lambda piece: (-savings[piece], piece))[: size - len(pieces)]


def used_tokens(tokenizer: Any, texts: Iterable[str], min_count: int = 1) -> set[str]:
    """Tokens that occur in the texts at least ``min_count`` times."""
    counts: Counter[int] = Counter()
    texts = iter(texts)
    while batch := list(islice(texts, 1000)):
        for ids in tokenizer(batch, add_special_tokens=False, truncation=False)["input_ids"]:
            counts.update(ids)
    return {tokenizer.convert_ids_to_tokens(index) for index, count in counts.items() if count >= min_count}


def prune_tokenizer(tokenizer: Any, tokens: Iterable[str]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer with these tokens and the special ones only, and the old id of each of its tokens.

    Raises:
        ValueError: the tokenizer is neither WordPiece nor WordLevel, or a token is not in its vocabulary.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = state["model"]["type"]
    if kind not in ("WordPiece", "WordLevel"):
        raise ValueError(f"cannot prune a {kind} vocabulary, only WordPiece and WordLevel: its pieces need each other")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    keep = set(tokens) | set(tokenizer.all_special_tokens)
    unknown = sorted(keep - set(vocabulary))
    if unknown:
        raise ValueError(f"not in the vocabulary: {', '.join(map(repr, unknown[:5]))}")
    kept_ids = sorted(vocabulary[token] for token in keep)
    new_ids = {old: new for new, old in enumerate(kept_ids)}
    renumbered = {token: new_ids[index] for token, index in vocabulary.items() if index in new_ids}
    state["model"]["vocab"] = {
        t: i for t, i in sorted(renumbered.items(), key=lambda item: item[1]) if t in state["model"]["vocab"]
    }
    state["added_tokens"] = [
        entry | {"id": renumbered[entry["content"]]} for entry in state["added_tokens"] if entry["content"] in renumbered
    ]
    processor = state.get("post_processor") or {}
    for entry in (processor.get("special_tokens") or {}).values():
        entry["ids"] = [renumbered[token] for token in entry["tokens"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name][1] = renumbered[processor[name][0]]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = cjk_decoder()
    pruned = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )
    return pruned, kept_ids


__all__ = ["prune_tokenizer", "train_tokenizer", "used_tokens"]

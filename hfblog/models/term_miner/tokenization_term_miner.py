"""A tokenizer whose tokens are the words of a mined lexicon."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]"}

# Letters of scripts with spaces, as Oniguruma reads it.
_LETTERS = r"[\p{L}&&[^\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_MARKS = r"[^\p{L}\p{Nd}\p{Mn}\p{Mc}〇]"


def build_term_tokenizer(
    words: Sequence[str],
    scores: Sequence[float],
    level: str = "character",
    *,
    unknown: Sequence[str] = (),
    unknown_score: float = -30.0,
    normalize: str | None = "NFKC",
    lowercase: bool = True,
) -> PreTrainedTokenizerFast:
    """A fast tokenizer that segments as the miner does, and is saved as ``tokenizer.json``.

    At the level of characters it is a unigram model (Kudo 2018, arXiv:1804.10959): the segmentation of the highest sum of
    scores. A run of digits reads ``0`` and one of letters ``a``, and its offsets are those of its end. At the level of words
    the longest term at each place is taken.

    Args:
        words: of the lexicon; token i + 2 is word i, after [PAD] and [UNK].
        scores: of the words, nats.
        level: ``"character"`` or ``"word"``.
        unknown: symbols that are known and no word; they follow the words.
        unknown_score: of these.
        normalize: ``"NFKC"`` or None.
        lowercase: at the level of words.

    Example:

    ```python
    >>> from hfblog import build_term_tokenizer
    >>> tokenizer = build_term_tokenizer(["合同", "法", "0年"], [-1.0, -2.0, -3.0])
    >>> tokenizer.tokenize("１９９９年合同法")
    ['0年', '合同', '法']

    ```
    """
    special = list(SPECIAL_TOKENS.values())
    steps = [normalizers.NFKC()] if normalize else []
    if level == "word":
        steps += [normalizers.Lowercase()] if lowercase else []
        backend = Tokenizer(WordLevel({word: index for index, word in enumerate(special + list(words))}, "[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(
            Regex(r"[\p{L}\p{N}]+(?:['’.-][\p{L}\p{N}]+)*|[^\s]"), "removed", invert=True
        )
        terms = [AddedToken(word, single_word=True, normalized=True) for word in words if " " in word]
    else:
        steps += [normalizers.Replace(Regex(r"\p{Nd}+"), "0"), normalizers.Replace(Regex(_LETTERS + "+"), "a")]
        pieces = [(token, 0.0) for token in special] + list(zip(words, map(float, scores), strict=True))
        pieces += [(symbol, unknown_score) for symbol in unknown]
        backend = Tokenizer(Unigram(pieces, unk_id=1))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_MARKS), "isolated")]
        )
        backend.decoder = decoders.Fuse()
        terms = []
    backend.normalizer = normalizers.Sequence(steps)
    backend.add_tokens(terms)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **SPECIAL_TOKENS
    )


__all__ = ["build_term_tokenizer"]

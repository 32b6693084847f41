"""Tokenizers for generation: what goes in comes out, in the saved folder too."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

from hfblog import prune_tokenizer, train_tokenizer

CORPUS = ["手机很好，屏幕清晰。", "屏幕不好！价格12元", "a good phone, very good phones", "iPhone 手机 good"] * 3


@pytest.fixture
def tokenizer():
    return train_tokenizer(CORPUS, vocab_size=200)


@pytest.mark.parametrize(
    "text",
    [
        "手机很好，屏幕清晰。",
        "屏幕不好！",
        "a good phone, very good phones",
        "手机good手机",
        "价格12元。“很好”…",
        "good - phone",
    ],
)
def test_round_trip(text, tokenizer):
    tokenizer = train_tokenizer([*CORPUS, text], vocab_size=200)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "手机good，价格"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_training_is_reproducible_and_respects_its_limits():
    assert train_tokenizer(CORPUS, 60).get_vocab() == train_tokenizer(CORPUS, 60).get_vocab()
    assert len(train_tokenizer(CORPUS, 30)) <= 30
    rare = train_tokenizer([*CORPUS, "罕"], 500, min_count=2)
    assert rare("罕")["input_ids"][1] == rare.unk_token_id
    assert train_tokenizer(["Ab Ab"], 50, lowercase=False)("Ab")["input_ids"] != train_tokenizer(["ab ab"], 50)("ab")
    with pytest.raises(ValueError, match="vocab_size=5"):
        train_tokenizer(CORPUS, 5)


def test_pairs_have_two_segments(tokenizer):
    encoded = tokenizer("手机", "很好")
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_pruning(tokenizer):
    pruned, kept = prune_tokenizer(tokenizer, ["手", "机", "好"])
    assert len(pruned) == 8 and kept == sorted(kept)
    assert pruned.convert_ids_to_tokens(range(8)) == tokenizer.convert_ids_to_tokens(kept)
    ids = pruned("手机很好")["input_ids"]
    assert pruned.convert_ids_to_tokens(ids) == ["[CLS]", "手", "机", "[UNK]", "好", "[SEP]"]
    with pytest.raises(ValueError, match="not in the vocabulary: 'zebra'"):
        prune_tokenizer(tokenizer, ["zebra"])


def test_pruning_of_berts_own_tokenizer():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "我", "喜", "欢", "phone", "##s"]
    bert = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    pruned, kept = prune_tokenizer(bert, ["我", "喜", "欢"])
    assert kept == list(range(8))
    assert pruned.decode(pruned("我喜欢")["input_ids"], skip_special_tokens=True) == "我喜欢"


def test_byte_pairs_cannot_be_pruned():
    with pytest.raises(ValueError, match="cannot prune a BPE vocabulary"):
        prune_tokenizer(GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]), ["a"])

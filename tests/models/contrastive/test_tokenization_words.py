"""Tokenizers of words that stand between spaces."""

from __future__ import annotations

import json
import random

import pytest
import transformers

from hfblog import train_word_tokenizer

# 的 five times, 新 three, 世纪 and 希望 two, 充满 and 迈向 one
TEXTS = ["迈向 充满 希望 的 新 世纪", "新 的 希望", "的 的 世纪 新", "的"]
SPECIAL = ["[PAD]", "[UNK]", "[EOS]"]


def ordered(tokenizer) -> list[str]:
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


def test_words_by_how_often_they_occur():
    tokenizer = train_word_tokenizer(TEXTS)
    assert ordered(tokenizer) == [*SPECIAL, "的", "新", "世纪", "希望", "充满", "迈向"]  # ties by the word
    assert len(tokenizer) == tokenizer.vocab_size == 9
    assert tokenizer.get_vocab() == {word: index for index, word in enumerate(ordered(tokenizer))}


def test_round_trip_through_a_folder(tmp_path):
    tokenizer = train_word_tokenizer(TEXTS, model_max_length=17)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == 17 and loaded.padding_side == "left"
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    texts = [*TEXTS, "新 词 [EOS] 的", "", "  的   新 "]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"


def test_words_are_what_stands_between_spaces():
    tokenizer = train_word_tokenizer(["a-b c.d e'f A 1998年", "Ｕ ， 。"])
    for text in ("a-b c.d", "e'f  A\t1998年\n", "。 ， Ｕ"):
        assert tokenizer.tokenize(text) == text.split()
    assert tokenizer.tokenize("a - b a 1998") == ["[UNK]"] * 5  # nothing is taken apart, no letter changes its case
    assert tokenizer.tokenize("a-bc.d") == ["[UNK]"]


def test_texts_come_back():
    tokenizer = train_word_tokenizer(TEXTS)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())  # nothing is added
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer("新 词 的")["input_ids"]) == "新 [UNK] 的"
    padded = tokenizer(["新", "新 的 希望"], padding=True)
    assert tokenizer.batch_decode(padded["input_ids"], skip_special_tokens=True) == ["新", "新 的 希望"]


def test_special_tokens():
    tokenizer = train_word_tokenizer(TEXTS)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2, 2)
    assert tokenizer.num_special_tokens_to_add() == 0
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)
    assert tokenizer("的 [EOS] 新 [PAD]")["input_ids"] == [3, 2, 4, 0]
    assert tokenizer.decode([3, 2, 4, 0], skip_special_tokens=True) == "的 新"


def test_batches_are_padded_on_the_left():
    tokenizer = train_word_tokenizer(TEXTS)
    batch = tokenizer(["新", "新 的 希望"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"] == [[0, 0, 4], [4, 3, 6]]
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]


def test_long_texts_are_cut_where_the_model_ends():
    tokenizer = train_word_tokenizer(TEXTS, model_max_length=2)
    assert tokenizer.model_max_length == 2
    assert tokenizer(TEXTS[0], truncation=True)["input_ids"] == tokenizer("迈向 充满")["input_ids"]
    assert train_word_tokenizer(TEXTS).model_max_length > 10**6


@pytest.mark.parametrize(
    ("min_count", "kept"),
    [(1, ["的", "新", "世纪", "希望", "充满", "迈向"]), (2, ["的", "新", "世纪", "希望"]), (3, ["的", "新"]), (5, ["的"])],
)
def test_rare_words_are_unknown(min_count, kept):
    tokenizer = train_word_tokenizer(TEXTS, min_count=min_count)
    assert ordered(tokenizer) == [*SPECIAL, *kept]
    assert tokenizer.tokenize(TEXTS[0]) == [word if word in kept else "[UNK]" for word in TEXTS[0].split()]
    assert tokenizer("没有 这个")["input_ids"] == [1, 1]


@pytest.mark.parametrize("size", [4, 6, 9, 100])
def test_size_counts_special_tokens(size):
    whole = ordered(train_word_tokenizer(TEXTS))
    tokenizer = train_word_tokenizer(TEXTS, size)
    assert ordered(tokenizer) == whole[:size] and len(tokenizer) == min(size, 9)
    assert max(tokenizer(TEXTS[0])["input_ids"]) < size
    assert ordered(train_word_tokenizer(TEXTS, size, min_count=3)) == whole[: min(size, 5)]


def test_special_tokens_in_the_corpus_are_no_words():
    tokenizer = train_word_tokenizer(["[UNK] [UNK] 新 [PAD] [EOS]", "新"], min_count=1)
    assert ordered(tokenizer) == [*SPECIAL, "新"]


def test_the_same_texts_give_the_same_vocabulary_in_any_order():
    texts = [" ".join(f"w{index % 7}x{index % 11}" for index in range(start, start + 9)) for start in range(60)]
    expected = train_word_tokenizer(texts).get_vocab()
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        assert train_word_tokenizer(iter(texts)).get_vocab() == expected  # any iterable, once
        shuffled = [" ".join(random.Random(seed).sample(text.split(), 9)) for text in texts]
        assert train_word_tokenizer(shuffled).get_vocab() == expected


@pytest.mark.parametrize("size", [3, 0, -1])
def test_a_size_without_room_for_words_is_refused(size):
    with pytest.raises(ValueError, match=f"vocab_size={size} must exceed the 3 special tokens"):
        train_word_tokenizer(TEXTS, size)


@pytest.mark.parametrize(
    ("texts", "min_count"), [([], 1), ([""], 1), ([" ", "\n"], 1), (TEXTS, 6), (["[EOS] [UNK]"], 1)], ids=str
)
def test_a_corpus_without_words_is_refused(texts, min_count):
    with pytest.raises(ValueError, match=f"no word of the corpus occurs min_count={min_count} times"):
        train_word_tokenizer(texts, min_count=min_count)

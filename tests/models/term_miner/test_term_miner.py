"""The miner as a whole: fitted, extended, saved, as a tokenizer and a pipeline, explained, on Spark, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from hfblog import TermMinerConfig, TermMinerModel, spark_corpora
from hfblog.data import load_data


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    news = [text.replace(" ", "") for text in load_data("chinese-news")["test"]["text"]]
    return {"news": news, "reviews": load_data("chinese-reviews")["test"]["text"][:1500]}


@pytest.fixture(scope="module")
def miner(texts) -> TermMinerModel:
    return TermMinerModel(TermMinerConfig(keep_counts=True)).fit(texts["news"], {"reviews": texts["reviews"]})


def assert_same(first: TermMinerModel, second: TermMinerModel) -> None:
    assert first.terms == second.terms
    for (name, one), other in zip(first.table.state_dict().items(), second.table.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_saved_and_loaded(miner, texts, tmp_path):
    miner.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert_same(miner, loaded)
    assert loaded.segment(texts["news"][:50]) == miner.segment(texts["news"][:50])
    assert loaded.extract_terms(20) == miner.extract_terms(20)
    assert loaded.explain("中国") == miner.explain("中国")


@pytest.mark.parametrize("reloaded", [False, True])
def test_partial_fit_is_fit_on_all(miner, texts, tmp_path, reloaded):
    half = len(texts["news"]) // 2
    parts = TermMinerModel(TermMinerConfig(keep_counts=True)).fit(texts["news"][:half], {"reviews": texts["reviews"]})
    if reloaded:
        parts.save_pretrained(tmp_path)
        parts = AutoModel.from_pretrained(tmp_path)
    assert_same(parts.partial_fit(texts["news"][half:]), miner)


def test_the_disk_gives_what_the_memory_gives(texts, tmp_path):
    one, two = (
        TermMinerModel(TermMinerConfig()).fit(texts["news"][:500], texts["reviews"][:500], directory=directory)
        for directory in (None, tmp_path)
    )
    assert_same(one, two)


def test_tokenizer_segments_like_the_miner(miner, texts, tmp_path):
    miner.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts["news"][:200]:
        words = [word for word in miner.segment(text)[0] if any(map(str.isalnum, word))]
        tokens = [token for token in tokenizer.tokenize(text) if any(map(str.isalnum, token))]
        assert tokens == [miner.alphabet.decode(miner.alphabet.encode_term(word)) for word in words]
    place = miner.ids["中国"]
    output = miner(**tokenizer(["中国，", "中"], padding=True, return_tensors="pt"))
    assert output.termhoods[0, 0] == miner.table.contrasts[place]
    assert tokenizer.convert_tokens_to_ids("中国") == place + 2
    assert output.log_probs[0, 0].item() == pytest.approx(miner.table.unigram_logits.log_softmax(0)[place].item())
    assert (output.log_probs[1, 1:] == 0).all()


def test_words_of_the_newspaper(miner, texts):
    assert miner.segment("新华社记者报道，１９９８年中国经济发展。") == [
        ["新华社", "记者", "报道", "，", "１９９８年", "中国", "经济", "发展", "。"]
    ]
    compounds = miner.segment(texts["news"], compounds=True)
    for whole, together in ((miner.segment(texts["news"]), False), (compounds, True)):
        assert list(miner.iter_segment(iter(texts["news"]), together)) == whole
    assert any(miner.ids.get(word, 0) >= miner.config.num_words for words in compounds for word in words)
    for text, words in zip(texts["news"], compounds, strict=True):
        assert "".join(words) == "".join(text.split())


def test_terms_are_ranked_filtered_and_explained(miner):
    rows = miner.extract_terms()
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True) and len(rows) > 500
    assert all(row["burstiness"] >= miner.config.min_burstiness and "0" not in row["term"] for row in rows)
    detail = miner.explain(rows[9]["term"])
    assert detail["rank"] == 10 and rows[9].items() <= detail.items() and detail["q_value"] < 0.01
    assert any("In a million symbols" in reason for reason in detail["reasons"])
    assert "is not listed: it has 1 symbols" in " ".join(miner.explain("的")["reasons"]).lower()
    assert "is cut into" in miner.explain("中国的经济")["reasons"][0]
    assert "'龘' never occurred" in miner.explain("龘")["reasons"][0]
    with pytest.raises(ValueError, match="k=0 must be positive"):
        miner.extract_terms(0)


def test_pipeline_finds_terms(miner, tmp_path):
    miner.save_pretrained(tmp_path)
    find = pipeline("term-mining", model=str(tmp_path))
    text = "中国经济发展，经济体制改革。"
    found = find(text)
    assert found == miner.find_terms(text) and found
    assert all(text[row["start"] : row["end"]] == row["term"] for row in found)
    best = max(found, key=lambda row: row["score"])
    assert [row["term"] for row in find(text, top_k=1)] == [best["term"]]
    assert list(find(text for _ in range(2))) == [found, found]
    with pytest.raises(ValueError, match="takes texts, got int"):
        find(3)


def test_export(miner, tmp_path):
    jieba = pytest.importorskip("jieba")
    assert miner.export(tmp_path / "terms.csv", 50) == 50
    with open(tmp_path / "terms.csv", encoding="utf-8", newline="") as file:
        assert [row["term"] for row in csv.DictReader(file)] == [row["term"] for row in miner.extract_terms(50)]
    miner.export(tmp_path / "terms.json", 50)
    assert json.loads((tmp_path / "terms.json").read_text(encoding="utf-8")) == miner.extract_terms(50)
    miner.export(tmp_path / "terms.txt", 50)
    cutter = jieba.Tokenizer()
    cutter.load_userdict(str(tmp_path / "terms.txt"))
    assert cutter.FREQ[miner.extract_terms(1)[0]["term"]] == miner.extract_terms(1)[0]["count"]
    with pytest.raises(ValueError, match="must end in .csv, .json, .txt"):
        miner.export(tmp_path / "terms.xml")
    with pytest.raises(OSError):
        miner.export(tmp_path / "nowhere" / "terms.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["terms.csv", "terms.json", "terms.txt"]


def test_growth_by_meaning(miner, tmp_path):
    generator = np.random.default_rng(0)
    centre = {"企业": 0, "公司": 0, "市场": 0, "足球": 1, "比赛": 1}
    known = {word: group for word, group in centre.items() if word in miner.ids}
    axes = np.eye(8)
    vectors = {word: axes[group] + 0.05 * generator.normal(size=8) for word, group in known.items()}
    vectors |= {term: generator.normal(size=8) for term in miner.terms[500:540]}
    model = TermMinerModel(TermMinerConfig())
    with pytest.raises(ValueError, match="has no lexicon yet"):
        model.expand(["企业"])
    miner.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expand needs vectors of meaning"):
        model.expand(["企业"])
    model.set_vectors(vectors)
    grown = model.expand(["企业"], min_similarity=0.9)
    assert {row["term"] for row in grown} == {word for word, group in known.items() if group == 0}
    assert grown[0]["parent"] is None and grown[1]["parent"] == "企业" and grown[1]["similarity"] > grown[1]["threshold"]
    with pytest.raises(ValueError, match="seeds that do not occur as terms: '企业企业'"):
        model.expand(["企业企业"])
    with pytest.raises(ValueError, match="seeds without a vector: '的'"):
        model.expand(["的"])
    with pytest.raises(ValueError, match="hold none of the"):
        model.set_vectors({"龘": np.ones(3)})
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).expand(["企业"], min_similarity=0.9) == grown


def test_embeddings_of_an_encoder(miner, tmp_path):
    from transformers import BertConfig, BertModel

    from hfblog import train_tokenizer

    tokenizer = train_tokenizer(miner.terms[:200], vocab_size=300)
    encoder = BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).eval()
    miner.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).embed_terms(encoder, tokenizer)
    assert model.table.vectors.shape == (len(model.terms), 16)
    batch = tokenizer(["中国"], return_tensors="pt")
    single = encoder(**batch).last_hidden_state[0].mean(0)
    difference = model.table.vectors[model.ids["中国"]] - single
    torch.testing.assert_close(
        model.table.vectors[model.ids["经济"]] - difference,
        encoder(**tokenizer(["经济"], return_tensors="pt")).last_hidden_state[0].mean(0),
        rtol=1e-4,
        atol=1e-4,
    )


def test_terms_of_several_words_in_english():
    numbers = ["one", "two", "three", "four", "five", "six", "seven"]
    texts = [f"The neural network {word} sees {other}" for word in numbers for other in numbers]
    texts += [f"{word} is a word, {other} is the other" for word in numbers for other in numbers]
    config = TermMinerConfig(
        level="word",
        min_count=3,
        compounds=False,
        max_ngram=2,
        max_term_length=2,
        cohesion_thresholds=[2.5],
        single_symbol_penalty=0,
        autonomy_weight=0,
    )
    miner = TermMinerModel(config).fit(texts)
    assert "neural network" in miner.terms
    assert miner.segment("The Neural Network is old.") == [["The", "Neural Network", "is", "old", "."]]
    tokenizer = miner.build_tokenizer()
    assert "neural network" in tokenizer.tokenize("the Neural Network is")


@pytest.mark.parametrize(
    ("corpus", "background", "error", "message"),
    [
        ([], None, ValueError, "the corpus holds no text: 0 documents"),
        (["", " ，。"], None, ValueError, "the corpus holds no text: 2 documents"),
        (["只有一行"], None, ValueError, "no symbol of the corpus occurs min_count=3 times"),
        ("一个字符串", None, TypeError, r"pass \[text\]"),
        (["天地天地天地"] * 9, ["天地天地天地"] * 9, ValueError, "background is identical to the domain's corpus"),
        (["天地天地天地"] * 9, {"news": [""]}, ValueError, "news holds no text"),
    ],
)
def test_wrong_corpora(corpus, background, error, message):
    model = TermMinerModel(TermMinerConfig())
    with pytest.raises(error, match=message):
        model.fit(corpus, background)
    assert not model.is_fitted
    with pytest.raises(ValueError, match="has no lexicon yet"):
        model.segment("天地")


def test_without_the_corpora_nothing_is_added(miner, texts, tmp_path):
    lean = TermMinerModel(TermMinerConfig()).fit(texts["news"][:200])
    lean.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="keep_counts=True"):
        AutoModel.from_pretrained(tmp_path).partial_fit(["天地"])


def test_spark_gives_the_same(texts):
    """Three partitions on two cores, against one array in memory."""
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime")
    session = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = session.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    try:
        context = session.sparkContext
        corpora = spark_corpora(
            {"domain": context.parallelize(texts["news"], 3), "reviews": context.parallelize(texts["reviews"], 2)}
        )
        spread = TermMinerModel(TermMinerConfig()).fit_corpora(corpora)
        frame = session.createDataFrame([("天", "地")], ["a", "b"])
        with pytest.raises(ValueError, match="domain has the columns a, b"):
            spark_corpora({"domain": frame})
    finally:
        session.stop()
    assert_same(spread, TermMinerModel(TermMinerConfig()).fit(texts["news"], {"reviews": texts["reviews"]}))

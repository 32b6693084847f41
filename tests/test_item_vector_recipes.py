"""Item vectors from a recipe to a card: words, records, counts, maps; compiled loops beside the Trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, List, Value
from test_contrastive_recipes import run_snippets_as
from test_training import TINY, tiny, tiny_model
from transformers import AutoModelForPreTraining, AutoTokenizer

from hfblog import (
    WordVectors,
    evaluation,
    evaluation_item_vectors,
    recipes,
    reference_points,
    train_word_tokenizer,
    training,
)
from hfblog.data import PairTable, SequenceTable, encode_words, join_phrases_of, load_data

WORDS = {
    "model_type": "min_entropy_embedding",
    "auto_class": "AutoModelForPreTraining",
    "embedding_dim": 12,
    "num_noise_samples": 3,
    "window_size": 2,
    "num_subwords": 200,
    "subword_lengths": [1, 3],
}
NEWS = {"name": "chinese-news", "max_examples": 600}
LOOPS = TINY["training"] | {"loop_threads": 1, "learning_rate": 0.05}
MAP = WORDS | {
    "embedding_dim": 2,
    "cost": "student_t",
    "objective": "full",
    "normalize_over": "pairs",
    "tie_context": True,
    "exclude_self": True,
    "num_subwords": 0,
}
LAYOUT = MAP | {"cost": "library", "objective": "layout", "normalize_over": "next", "min_distance": 1.0}


def tiny_words(folder: Path, *overrides: str, **sections: dict) -> recipes.Recipe:
    settings = {"data": NEWS, "processor": {"min_count": 3}, "training": LOOPS, "evaluation": {"num_samples": 3}}
    return tiny_model(folder, WORDS, *overrides, **(settings | sections))


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory) -> Path:
    pytest.importorskip("numba")
    folder = tmp_path_factory.mktemp("words")
    return training.train(tiny_words(folder), folder / "out")


def test_words_from_recipe_to_card(words_folder):
    metrics = evaluation.evaluate(words_folder)
    found = {key: result["value"] for key, result in metrics["results"].items()}
    recipe = recipes.load_recipe(words_folder / "recipe.yaml")
    model, tokenizer = AutoModelForPreTraining.from_pretrained(words_folder), AutoTokenizer.from_pretrained(words_folder)
    assert isinstance(tokenizer.convert_tokens_to_ids("的"), int) and tokenizer.convert_tokens_to_ids("的") > 2

    # the cost by loops over the windows of the text, each pair as often as the training keeps it
    data = recipes.load_data_of(recipe)
    counts = model.noise.counts.double()
    keep = (1e-3 / (counts / counts.sum())).sqrt() + 1e-3 / (counts / counts.sum())
    keep = keep.clamp_max(1)
    for split, cost in (("train", found["cost"]), ("test", found["held_out_cost"])):
        law = torch.zeros(len(tokenizer), len(tokenizer), dtype=torch.float64)
        for text in data[split]["text"]:
            known = [index for index in tokenizer.convert_tokens_to_ids(text.split()) if index > 2]
            for here, i in enumerate(known):
                for there in range(max(0, here - 2), min(len(known), here + 3)):
                    if there != here:
                        j = known[there]
                        law[i, j] += (1.0 if abs(here - there) == 1 else 0.5) * keep[i] * keep[j]
        assert model.expected_cost(law).item() == pytest.approx(cost, rel=1e-5)
        if split == "train":
            points = reference_points(law, cost)
    for name in ("uniform", "unigram", "conditional"):
        assert found[name] == pytest.approx(getattr(points, name), rel=1e-5)
    assert found["explained"] == pytest.approx(100 * points.explained, rel=1e-3)
    assert found["uniform"] > found["unigram"] > found["conditional"] < found["cost"]

    rows = {row["label"]: row for row in metrics["comparisons"]}
    assert rows["frequencies of the training words"]["cost"] == pytest.approx(points.unigram)
    assert rows["frequencies of the training words"]["held_out_cost"] > points.conditional
    assert any(label.startswith("gensim") for label in rows)
    assert 0 < rows["random vectors"]["same_pos"] < 1 and 0 <= found["unknown_words"] <= 100
    assert len(metrics["samples"]) == 3 and (words_folder / "map.png").stat().st_size < 200_000
    run_snippets_as(words_folder)


def test_parts_of_speech_by_hand(words_folder):
    metrics = json.loads((words_folder / "metrics.json").read_text())
    words = WordVectors.from_pretrained(words_folder)
    tags: dict[str, dict[str, int]] = {}
    for row in load_data(**NEWS)["train"]:
        for word, tag in zip(row["tokens"], row["pos_tags"], strict=True):
            tags.setdefault(word, {}).setdefault(tag[0].lower(), 0)
            tags[word][tag[0].lower()] += 1
    kind = {word: max(found, key=found.get) for word, found in tags.items()}
    known = [word for word in words.words if word in kind][:5000]
    same = total = 0
    for word in known:
        scores = words.vectors(known) @ words.vectors([word])[0] / words.vectors(known).norm(dim=1)
        scores[known.index(word)] = -math.inf
        near = scores.topk(10).indices.tolist()
        same += sum(kind[known[index]] == kind[word] for index in near)
        total += 10
    assert metrics["results"]["same_pos"]["value"] == pytest.approx(same / total, abs=0.002)


def test_an_interrupted_run_in_loops_ends_at_the_same_weights(words_folder, tmp_path):
    recipe = tiny_words(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(recipe, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["checkpoint-1"]
    resumed = tiny_words(tmp_path, "training.resume_from_checkpoint=true")
    folder = training.train(resumed, tmp_path / "out")
    states = [AutoModelForPreTraining.from_pretrained(path).state_dict() for path in (folder, words_folder)]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name
    with pytest.raises(ValueError, match="already holds a run"):
        training.train(recipe, tmp_path / "out")


def _interrupted(recipe: recipes.Recipe, folder: Path) -> None:
    """Stop where the second epoch would end, after the first was saved."""
    from hfblog.models.contrastive import modeling_min_entropy_embedding as module

    own = module.MinEntropyEmbeddingForPreTraining.fit_corpus

    def fit_corpus(self, *arguments, on_epoch_end, **settings):
        def stop(epoch: int) -> None:
            if epoch == 2:
                raise KeyboardInterrupt
            on_epoch_end(epoch)

        own(self, *arguments, on_epoch_end=stop, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.MinEntropyEmbeddingForPreTraining, "fit_corpus", fit_corpus)
        training.train(recipe, folder)


def test_the_trainer_and_the_loops_learn_the_same(tmp_path):
    """One recipe, two trainers: what they reach under the law of the corpus."""
    generator = np.random.default_rng(0)
    topics = generator.dirichlet(np.full(24, 0.2), size=6)
    texts = [" ".join(f"w{word}" for word in generator.choice(24, 12, p=topics[generator.integers(6)])) for _ in range(1200)]
    data = tmp_path / "data"
    data.mkdir()
    Dataset.from_dict({"text": texts}).to_parquet(data / "train.parquet")
    costs = {}
    for name, settings in {
        "loops": {"loop_threads": 1, "learning_rate": 0.05, "num_train_epochs": 20},
        "trainer": {"learning_rate": 0.02, "num_train_epochs": 20, "lr_scheduler_type": "linear"},
    }.items():
        recipe = tiny_words(
            tmp_path,
            "model.subsample=0",
            "model.embedding_dim=8",
            "model.num_subwords=0",
            data={"name": str(data)},
            training=TINY["training"] | {"per_device_train_batch_size": 32, "eval_strategy": "no"} | settings,
        )
        folder = training.train(recipe, tmp_path / name)
        metrics = evaluation.evaluate(folder, with_baselines=False)
        costs[name] = {key: result["value"] for key, result in metrics["results"].items()}
        processor = recipes.load_processor(recipe, folder)
        assert len(processor) == 27
    assert costs["loops"]["unigram"] == pytest.approx(costs["trainer"]["unigram"])
    assert costs["loops"]["explained"] > 80 and costs["trainer"]["explained"] > 80
    assert costs["loops"]["cost"] == pytest.approx(costs["trainer"]["cost"], abs=0.02)


def test_subsampling_in_the_trainer_keeps_what_word2vec_keeps():
    torch.manual_seed(0)
    recipe_model = AutoModelForPreTraining.from_config(
        recipes.AutoConfig.for_model("min_entropy_embedding", vocab_size=5, num_noise_samples=2, subsample=0.05)
    )
    recipe_model.fit_noise(torch.tensor([1, 9, 90, 400, 500]))
    ids = torch.randint(5, (4000, 10))
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    kept, left = recipe_model.subsampled(ids, mask)
    assert (left.diff(dim=1) <= 0).all()  # what is left stands at the beginning
    counts = recipe_model.noise.counts.double()
    chances = ((0.05 / (counts / counts.sum())).sqrt() + 0.05 / (counts / counts.sum())).clamp_max(1)
    before, after = (torch.bincount(x[m == 1], minlength=5).double() for x, m in ((ids, mask), (kept, left)))
    torch.testing.assert_close(after / before, chances, atol=0.02, rtol=0)
    # in their order: what is left of a sequence is a part of it
    for row in range(50):
        rest = iter(ids[row, :8].tolist())
        assert all(item in rest for item in kept[row][left[row] == 1].tolist())


def test_records_have_no_order(tmp_path):
    """Baskets: whatever stands in a record makes a pair with all the rest of it."""
    generator = np.random.default_rng(0)
    names = [f"{kind} {index}" for kind in ("tea", "nail") for index in range(6)]
    records = [
        [names[6 * kind + index] for index in generator.permutation(6)[:4]] for kind in generator.integers(2, size=1500)
    ]
    data = tmp_path / "data"
    data.mkdir()
    Dataset.from_dict({"record": records}, features=Features({"record": List(Value("string"))})).to_parquet(
        data / "train.parquet"
    )
    recipe = tiny_words(
        tmp_path,
        "model.window_size=null",
        "model.subsample=0",
        "model.num_subwords=0",
        data={"name": str(data)},
        training=LOOPS | {"num_train_epochs": 20},
    )
    folder = training.train(recipe, tmp_path / "out")
    words = WordVectors.from_pretrained(folder)
    assert sorted(words.words) == sorted(names)
    for name in names:
        near = [other for other, _ in words.most_similar(name, top_k=5)]
        assert {other.split()[0] for other in near} == {name.split()[0]}
    metrics = evaluation.evaluate(folder, with_baselines=False)
    assert metrics["results"]["explained"]["value"] > 90
    assert metrics["results"]["unigram"]["value"] == pytest.approx(math.log(12), abs=0.01)


def test_a_map_from_recipe_to_card(tmp_path):
    recipe = tiny_model(
        tmp_path, MAP, data={"name": "digits", "max_examples": 100}, training=LOOPS, processor={"perplexity": 8}
    )
    folder = training.train(recipe, tmp_path / "out")
    assert not (folder / "tokenizer.json").exists()
    metrics = evaluation.evaluate(folder)
    found = {key: result["value"] for key, result in metrics["results"].items()}
    assert found["nearest"] > 80 and found["trustworthiness"] > 0.9
    rows = {row["label"].split(" (")[0]: row for row in metrics["comparisons"]}
    assert set(rows) == {"principal components", "scikit-learn's t-SNE", "all dimensions, no map"}
    assert rows["principal components"]["nearest"] < found["nearest"]
    positions = AutoModelForPreTraining.from_pretrained(folder).model.vectors().detach()
    data = recipes.load_data_of(recipe)
    labels = torch.tensor([label for part in data.values() for label in part["label"]])
    near = (torch.cdist(positions, positions) + 1e9 * torch.eye(len(positions))).argmin(1)
    assert found["nearest"] == pytest.approx(100 * (labels[near] == labels).double().mean().item())
    run_snippets_as(folder)
    # the Trainer learns the same law, pair by pair
    trained = training.train(
        tiny_model(
            tmp_path,
            MAP | {"normalize_over": "next"},
            data={"name": "digits", "max_examples": 100},
            processor={"perplexity": 8},
            training=TINY["training"] | {"num_train_epochs": 2, "per_device_train_batch_size": 512, "learning_rate": 0.1},
        ),
        tmp_path / "trained",
    )
    curve = json.loads((trained / "training.json").read_text())["curve"]
    assert curve[-1]["validation_loss"] < curve[0]["validation_loss"] < math.log(300)


def test_shelves_from_recipe_to_card(tmp_path):
    recipe = tiny_model(tmp_path, LAYOUT, data={"name": "les-miserables"}, training=LOOPS, evaluation={"num_samples": 3})
    folder = training.train(recipe, tmp_path / "out")
    metrics = evaluation.evaluate(folder)
    found = {key: result["value"] for key, result in metrics["results"].items()}
    rows = {row["label"]: row["walk"] for row in metrics["comparisons"] if "walk" in row}
    assert found["walk"] < rows["the most borrowed nearest the door"] < rows["in any order, mean of 100"]
    assert found["smallest_distance"] >= 0.99
    model, tokenizer = AutoModelForPreTraining.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    joint = recipes.prepare_split(recipes.load_data_of(recipe), "train", recipe, tokenizer).joint
    assert model.expected_walk(joint).item() == pytest.approx(found["walk"], rel=1e-5)
    assert tokenizer.convert_tokens_to_ids("Valjean") != tokenizer.unk_token_id
    assert (folder / "shelves.png").stat().st_size < 200_000
    run_snippets_as(folder)


def test_counts_are_learned_by_the_trainer(tmp_path):
    """PMI regression on pairs with their counts."""
    settings = WORDS | {"objective": "pmi_regression", "embedding_dim": 40, "num_subwords": 0, "initializer_range": 5.0}
    recipe = tiny_model(
        tmp_path,
        settings,
        data={"name": "les-miserables"},
        training=TINY["training"] | {"num_train_epochs": 30, "learning_rate": 0.05},
    )
    folder = training.train(recipe, tmp_path / "out")
    model, tokenizer = AutoModelForPreTraining.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    table = recipes.prepare_split(recipes.load_data_of(recipe), "train", recipe, tokenizer)
    assert isinstance(table, PairTable) and table.columns["weights"].mean().item() == pytest.approx(1)
    i, j = tokenizer.convert_tokens_to_ids(["Valjean", "Cosette"])
    share = table.joint.to_dense() / table.joint.to_dense().sum()
    place = ((table.columns["center_ids"] == i) & (table.columns["context_ids"] == j)).nonzero().item()
    assert table.columns["pmi"][place].item() == pytest.approx((share[i, j] / share[i].sum() / share[:, j].sum()).log().item())
    with torch.no_grad():
        scores = model.pair_scores(table.columns["center_ids"], table.columns["context_ids"])
    assert torch.corrcoef(torch.stack([scores, table.columns["pmi"]]))[0, 1] > 0.99


# --- data ---


def test_texts_are_encoded_the_same_from_anywhere(tmp_path, monkeypatch):
    texts = list(load_data(**NEWS)["train"]["text"]) + ["", "  ", "Ab aB"]
    whole = encode_words(texts, 2)
    rows = [[word for word in text.split() if word in set(whole.words)] for text in texts]
    assert [whole.words[item] for item in whole.items] == [word for row in rows for word in row]
    assert np.diff(whole.starts).tolist() == list(map(len, rows))
    assert whole.counts.tolist() == np.bincount(whole.items).tolist() == sorted(whole.counts.tolist(), reverse=True)
    monkeypatch.setattr("hfblog.data.TEXTS_AT_A_TIME", 37)
    for given in (
        texts,
        (text for text in texts),
        [text.split() for text in texts],
        Dataset.from_dict({"t": texts}).data["t"],
        pa.chunked_array([[text] for text in texts]),
    ):
        for file in (None, tmp_path / "items"):
            corpus = encode_words(given if not hasattr(given, "send") else iter(texts), 2, items_file=file)
            assert corpus.words == whole.words and np.array_equal(corpus.counts, whole.counts)
            assert np.array_equal(corpus.items, whole.items) and np.array_equal(corpus.starts, whole.starts)
    assert isinstance(corpus.items, np.memmap) and (tmp_path / "items").stat().st_size == 4 * len(whole.items)
    some = {word: 7 * place for place, word in enumerate(whole.words[:20])}
    known = encode_words(texts, vocabulary={word: place for place, word in enumerate(some)})
    assert set(known.items) <= set(range(20)) and known.counts.tolist() == whole.counts[:20].tolist()
    assert encode_words(["Ab aB", "ab"], 3, lowercase=True).words == ["ab"]
    marked = ["It's “so”, new_york: 3.5 – naïve!", "新词，旧词。", "a²b cafe\u0301 ½"]
    split = encode_words(marked, 1, drop_punctuation=True, lowercase=True)
    tokenizer = train_word_tokenizer(marked, drop_punctuation=True, lowercase=True)
    for place, text in enumerate(marked):
        words = [split.words[item] for item in split.items[split.starts[place] : split.starts[place + 1]]]
        assert words == tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert words == [["it", "s", "so", "new_york", "3", "5", "naïve"], ["新词", "旧词"], ["a²b", "cafe", "½"]][place]
    with pytest.raises(ValueError, match="no word of the corpus occurs min_count=2 times"):
        encode_words(["a b c"], 2)
    with pytest.raises(ValueError, match="no word of the corpus"):
        encode_words([])


def test_a_corpus_in_a_file_is_learned(tmp_path):
    pytest.importorskip("numba")
    corpora = [encode_words(["a b c a b", "b c"] * 50, 1, items_file=file) for file in (None, tmp_path / "items")]
    models = []
    for corpus in corpora:
        torch.manual_seed(0)
        config = recipes.AutoConfig.for_model("min_entropy_embedding", vocab_size=3, embedding_dim=4, num_noise_samples=2)
        models.append(AutoModelForPreTraining.from_config(config))
        models[-1].fit_corpus((corpus.items, corpus.starts), epochs=2)
    assert torch.equal(models[0].model.embeddings.weight, models[1].model.embeddings.weight)


def test_sequences_are_cut_and_those_without_pairs_left_out():
    corpus = encode_words(["a b c d e", "a", "b c", ""], 1)
    table = SequenceTable(corpus, max_length=2)
    rows = ["".join(corpus.words[item] for item in row["input_ids"]) for row in table]
    assert rows == ["ab", "cd", "bc"]
    assert table.item_counts(5).tolist() == corpus.counts.tolist()


def test_phrases_become_words_of_all_splits(tmp_path):
    texts = ["in New York it rains", "New York is far", "old york", "a new idea in york"] * 30
    splits = {split: Dataset.from_dict({"text": texts}) for split in ("train", "validation")}
    joined = join_phrases_of(splits, "text", min_count=50, min_pmi=0.5)
    for split in splits:
        assert joined[split]["text"][:4] == ["in new_york it rains", "new_york is far", "old york", "a new idea in york"]
    recipe = tiny_words(tmp_path, data=NEWS | {"phrases": {"passes": 2, "min_count": 5}})
    data = recipes.load_data_of(recipe)
    plain = load_data(**NEWS)
    for split in data:
        assert ["".join(text.split()).replace("_", "") for text in data[split]["text"]] == [
            "".join(text.split()).lower().replace("_", "") for text in plain[split]["text"]
        ]
    assert any("_" in text for text in data["test"]["text"])
    with pytest.raises(ValueError, match="unknown key data.phrases.pass; did you mean 'passes'"):
        tiny_words(tmp_path, data=NEWS | {"phrases": {"pass": 2}})


# --- what is wrong is named ---


def test_wrong_items_are_named(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Dataset.from_dict({"number": [1, 2, 3] * 10}).to_parquet(data / "train.parquet")
    with pytest.raises(ValueError, match="items are words of a text column, .* the data set has 'number'"):
        training.train(tiny_words(tmp_path, data={"name": str(data)}), tmp_path / "out")
    with pytest.raises(ValueError, match="NiceFlowModel has no such loops"):
        tiny(tmp_path, "training.loop_threads=1")
    with pytest.raises(ValueError, match="loop_threads=-1 must not be negative"):
        training.train(tiny_words(tmp_path, "training.loop_threads=-1"), tmp_path / "out")
    with pytest.raises(ValueError, match="unknown key processor.perplexty; did you mean 'perplexity'"):
        tiny_words(tmp_path, "processor.perplexty=3")
    with pytest.raises(ValueError, match="map_words=3 must be an integer of at least 20"):
        recipe = tiny_words(tmp_path, "evaluation.map_words=3")
        recipe.evaluation_arguments(**recipe.evaluation)
    assert not (tmp_path / "out").exists()


def test_a_file_in_another_encoding_is_named_with_line_and_byte(tmp_path):
    (tmp_path / "train.txt").write_bytes("第一 行\n".encode() + "ab 行\n".encode("gb18030"))
    with pytest.raises(ValueError, match=r"train.txt, line 2, byte 4: b'\\xd0' is no UTF-8. Convert"):
        load_data(str(tmp_path))


def test_ratings_and_analogies_come_from_files(words_folder, tmp_path):
    words = WordVectors.from_pretrained(words_folder)
    names = words.frequent(8)
    ratings = tmp_path / "own.txt"
    pairs = [(names[0], names[1], 3.0), (names[2], names[3], 1.0), (names[4], names[5], 2.0), ("nowhere", names[0], 9.0)]
    ratings.write_text("# two words and a rating\n" + "\n".join("\t".join(map(str, pair)) for pair in pairs), "utf-8")
    questions = tmp_path / "questions.txt"
    questions.write_text(f": kind\n{' '.join(names[:4])}\n{' '.join(names[4:])}\nnowhere {' '.join(names[:3])}\n", "utf-8")
    metrics = evaluation.evaluate(
        words_folder, overrides=[f"similarity=[{ratings}]", f"analogies=[{questions}]"], with_baselines=False
    )
    cosines = [words.similarity(first, second) for first, second, _ in pairs[:3]]
    ranks = np.argsort(np.argsort(cosines))
    expected = np.corrcoef(ranks, [2, 0, 1])[0, 1]
    assert metrics["results"]["own"]["value"] == pytest.approx(expected)
    right = [words.analogy(*names[at : at + 3], top_k=1)[0][0] == names[at + 3] for at in (0, 4)]
    assert metrics["results"]["questions"]["value"] == pytest.approx(50 * sum(right))
    notes = " ".join(metrics["notes"])
    assert "own: 3 of 4 pairs are known" in notes and "questions analogies: 2 of 3 questions" in notes
    with pytest.raises(ValueError, match="there is no file 'nowhere.txt'; known by name: wordsim353, simlex999, google"):
        evaluation.evaluate(words_folder, overrides=["similarity=[nowhere.txt]"])


def test_ratings_of_the_gensim_package_are_found():
    pytest.importorskip("gensim")
    assert len([line for line in evaluation_item_vectors._lines("wordsim353", True) if not line.startswith("#")]) == 353
    assert len(evaluation_item_vectors._lines("google", True)) > 19_000

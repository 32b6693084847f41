"""Texts through the whole house: data, recipes, the real Trainer, evaluation, scripts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file
from test_training import launch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from hfblog import data as hfblog_data
from hfblog import evaluation, hub, recipes, train_tokenizer, training
from hfblog import evaluation_generation as judged

ROOT = Path(__file__).parent.parent

TINY = {
    "model": {
        "model_type": "conditional_ln_bert",
        "auto_class": "AutoModelForCausalLM",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "condition_dropout": 0.0,
        "condition_size": 8,
    },
    "data": {"name": "chinese-reviews", "test_size": 60, "validation_size": 60, "max_examples": 120},
    "processor": {"vocab_size": 600, "max_length": 32, "split_long": False},
    "training": {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 24,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
    },
    "evaluation": {"num_samples": 8, "batch_size": 20, "guidance_scales": [1.0, 2.0]},
}


def write(folder: Path, **sections: dict) -> Path:
    content = {name: TINY.get(name, {}) | sections.get(name, {}) for name in {**TINY, **sections}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def tiny(folder: Path, *overrides: str, **sections: dict) -> recipes.Recipe:
    return recipes.load_recipe(write(folder, **sections), overrides)


# --- data ---


def test_reviews_are_distinct_and_no_test_text_is_trained_on():
    splits = hfblog_data.load_data("chinese-reviews", test_size=2000, validation_size=1000)
    texts = [text for part in splits.values() for text in part["text"]]
    assert len(texts) == len(set(texts)) == 17361
    for part in splits.values():
        assert Counter(part["label"])[1] / len(part) == pytest.approx(0.48, abs=0.01)
    assert splits["train"].features["label"].names == ["negative", "positive"]


@pytest.mark.parametrize("limit", [1, 3, 7, 20])
@pytest.mark.parametrize("text", ["屏幕很好。电池不行，一天要充两次。", "没有标点符号的很长的一句话", "a b，c", "。。。。"])
def test_split_text_loses_nothing(text, limit):
    parts = hfblog_data.split_text(text, limit)
    assert "".join(parts) == text and max(map(len, parts)) <= limit


def test_prepare_texts():
    texts = ["手机很好。屏幕清晰。", "差。"]
    features = Features({"text": Value("string"), "a": ClassLabel(names=["x", "y"]), "b": ClassLabel(names=["u", "v"])})
    dataset = Dataset.from_dict({"text": texts, "a": [0, 1], "b": [1, 0]}, features=features)
    tokenizer = train_tokenizer(texts, 100)
    with pytest.raises(ValueError, match="2 columns of ClassLabel"):
        hfblog_data.prepare_texts(dataset, tokenizer)
    one = hfblog_data.prepare_texts(dataset, tokenizer, label_column="a", max_length=7, split_long=True)
    assert one["condition_ids"] == [0, 0, 1]  # the first text in two parts
    read = [tokenizer.decode(ids, skip_special_tokens=True) for ids in one["input_ids"]]
    assert read == ["手机很好。", "屏幕清晰。", "差。"]
    both = hfblog_data.prepare_texts(dataset, tokenizer, label_column=["a", "b"], max_length=7)
    assert both["condition_ids"] == [[0, 1], [1, 0]] and max(map(len, both["input_ids"])) == 7
    none = hfblog_data.prepare_texts(dataset.remove_columns(["a", "b"]), tokenizer)
    assert none.column_names == ["input_ids", "attention_mask"]
    with pytest.raises(ValueError, match="max_length=2 leaves no room"):
        hfblog_data.prepare_texts(dataset, tokenizer, label_column="a", max_length=2)


def test_text_column():
    columns = {"title": ["a"], "body": ["b"]}
    with pytest.raises(ValueError, match="2 columns of strings"):
        hfblog_data.text_column_of(Dataset.from_dict(columns))
    assert hfblog_data.text_column_of(Dataset.from_dict(columns), "body") == "body"
    assert hfblog_data.text_column_of(Dataset.from_dict({"body": ["b"]})) == "body"


def test_captions_are_written_and_refused():
    features = Features({"image": Image(), "label": ClassLabel(names=["0", "1"])})
    images = [PILImage.new("L", (4, 4))] * 2
    dataset = Dataset.from_dict({"image": images, "label": [1, 0]}, features=features)
    assert hfblog_data.add_captions(dataset, "digit {}", ["zero", "one"])["text"] == ["digit one", "digit zero"]
    assert hfblog_data.add_captions(dataset, "{}!")["text"] == ["1!", "0!"]
    with pytest.raises(ValueError, match="has no {}"):
        hfblog_data.add_captions(dataset, "digit")
    with pytest.raises(ValueError, match="words are 1, but there are 2"):
        hfblog_data.add_captions(dataset, "digit {}", ["zero"])


# --- judges and measures ---


def test_verse_form():
    assert judged.verse_form("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。") == (4, 5)
    assert judged.verse_form("白日依山尽，黄河入海流。欲穷千里目，更上一层楼") is None  # not closed
    assert judged.verse_form("白日依山尽，黄河入海。") is None
    assert judged.verse_form("") is None


def test_rhymes():
    assert judged.rhymes("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。")  # liu, lou
    assert judged.rhymes("床前明月光，疑是地上霜。举头望明月，低头思故乡。")  # shuang, xiang
    assert not judged.rhymes("白日依山尽，黄河入海流。欲穷千里目，更上一层山。")
    assert judged.rhymes("白日依山尽，黄河入海流。") is None


def test_variety():
    distinct, bleu = judged.variety(["abab", "abab"])
    assert distinct == 2 / 6 and bleu == pytest.approx(1.0)
    distinct, bleu = judged.variety(["abcde", "fghij"])
    assert distinct == 1.0 and bleu < 0.1


def test_unigram_perplexity():
    train, test = {"input_ids": [[0, 1, 1, 2]]}, {"input_ids": [[0, 1, 3]]}
    expected = math.exp(-(math.log(3 / 6) + math.log(1 / 6)) / 2)
    assert judged.unigram_perplexity(train, test) == pytest.approx(expected)


def test_classifier_judge_is_fitted_on_training_data_alone():
    texts = {"train": ["很好很好", "太差太差"] * 10, "validation": ["很好", "太差"], "test": ["太差了", "很好了", "很好"]}
    labels = {"train": np.array([1, 0] * 10), "validation": np.array([1, 0]), "test": np.array([0, 1, 0])}
    judge = judged.ClassifierJudge.fit(texts, labels, ["negative", "positive"], "test")
    assert judge(["真是很好", "实在太差"]).tolist() == [1, 0]
    assert judge.test_accuracy == pytest.approx(2 / 3)


# --- recipe, Trainer, evaluation ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    return training.train(tiny(folder, card={"title": "Tiny", "summary": "A test."}), folder / "out")


def test_trained_folder_is_whole(trained):
    hub.check_folder(trained)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert model.config.vocab_size == len(tokenizer) and model.config.condition_labels == ["negative", "positive"]
    assert model.config.bos_token_id == tokenizer.cls_token_id and model.config.eos_token_id == tokenizer.sep_token_id
    drawn = model.generate(condition_ids=[0, 1] * 20, do_sample=True, top_k=0)
    never = {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id}
    ended = (drawn == tokenizer.sep_token_id).cumsum(1) > 0
    assert not never & set(drawn[:, 1:][~ended[:, 1:]].tolist())
    curve = json.loads((trained / "training.json").read_text())["curve"]
    assert curve[-1]["validation_loss"] < curve[0]["validation_loss"] < math.log(600)


def test_stock_pipeline_writes_under_a_condition(trained):
    write = pipeline("text-generation", model=str(trained))
    one = write("很好", condition_ids="positive", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    new = write("很好", condition_ids="positive", max_new_tokens=8, do_sample=False, return_full_text=False)
    assert one == "很好" + new[0]["generated_text"] and len(one) > 2 and " " not in one
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    ids = model.generate(**tokenizer("很好", return_tensors="pt"), condition_ids=1, max_new_tokens=8)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == one
    several = write("", condition_ids=0, max_new_tokens=8, do_sample=True, num_return_sequences=3, guidance_scale=2.0)
    assert len(several) == 3
    assert write("很好", condition_ids=1)[0]["generated_text"].startswith("很好")  # the pipeline's own 256 tokens do not fit
    many = write(["很好", "这本书很"], condition_ids=1, max_new_tokens=8, batch_size=2, do_sample=False)
    assert many[0][0]["generated_text"] == one


def test_evaluation_states_what_the_model_does(trained):
    metrics = evaluation.evaluate(trained)
    recipe = recipes.load_recipe(trained / "recipe.yaml")
    splits = recipes.load_data_of(recipe)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    total = correct = count = 0
    for text, label in zip(splits["test"]["text"], splits["test"]["label"], strict=True):
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            logits = model(encoded["input_ids"], condition_ids=torch.tensor([label])).logits[0, :-1].log_softmax(-1)
        total += logits.gather(1, encoded["input_ids"][0, 1:, None]).sum().item()
        count += encoded["input_ids"].shape[1] - 1
        correct += int(model.classify(**encoded).argmax() == label)
    assert metrics["results"]["perplexity"]["value"] == pytest.approx(math.exp(-total / count), rel=1e-4)
    assert metrics["results"]["bayes_accuracy"]["value"] == pytest.approx(correct / 60)
    assert metrics["exactness"][0]["value"] <= 1e-5
    card = (trained / "README.md").read_text()
    assert "guidance 2" in card and "distinct-2" in card and metrics["samples"][0]["text"] in card
    assert 'condition_ids=["negative", "positive"]' in card
    again = evaluation.evaluate(trained)
    assert again["results"] == metrics["results"] and again["samples"] == metrics["samples"]
    assert "scripts/generate.py" in evaluation.report(metrics, trained)


def test_the_card_shows_the_comparison_of_conditionings(trained):
    row = {"way": "layer_norm", "added_parameters": 12, "perplexity": 3.5}
    speeds = {"training_tokens_per_second": 1.0, "sampling_tokens_per_second": 2.0}
    record = {"rows": [row | speeds], "labels": {"perplexity": "test perplexity"}, "seeds": [0], "steps": 5, "split": "test"}
    (trained / "conditioning.json").write_text(json.dumps(record | {"hardware": "a machine", "command": "python x"}))
    evaluation.evaluate(trained)
    assert "| layer_norm | 12 | 3.500 | 1 | 2 |" in (trained / "README.md").read_text()
    (trained / "conditioning.json").unlink()


def test_interrupted_text_training_resumes_to_the_same_weights(tmp_path):
    keep = ("training.save_total_limit=10", "training.train_sampling_strategy=group_by_length", "model.condition_dropout=0.2")
    whole = training.train(tiny(tmp_path, *keep), tmp_path / "whole")
    first = min((whole / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    first.rename(tmp_path / "cut" / "checkpoints" / first.name)
    resumed = training.train(tiny(tmp_path, *keep, "training.resume_from_checkpoint=true"), tmp_path / "cut")
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_two_launched_processes_train_like_one(tmp_path):
    recipe = write(tmp_path)
    common = ["scripts/train.py", recipe, "--no-evaluation", "training.optim=sgd", "training.learning_rate=1e-1"]
    for processes, config, size in ((1, "one_cpu", 24), (2, "two_cpu_processes", 12)):
        done = launch(
            "--config_file",
            f"scripts/accelerate/{config}.yaml",
            *common,
            f"training.per_device_train_batch_size={size}",
            "--output-dir",
            tmp_path / str(processes),
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / str(processes) / "model.safetensors") for processes in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    read = [AutoTokenizer.from_pretrained(tmp_path / str(processes)).get_vocab() for processes in (1, 2)]
    assert read[0] == read[1]


def test_a_pretrained_checkpoint_from_the_hub_is_where_a_recipe_starts(tmp_path, hub_server, run_python):
    """The pretrained preset, with a small BERT on the loopback Hub in place of the real one."""
    texts = hfblog_data.load_data("chinese-reviews", max_examples=300)["train"]["text"]
    tokenizer = train_tokenizer(texts, 900)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    run_python(
        f"""
import sys
from huggingface_hub import HfApi
HfApi().create_repo("owner/bert")
HfApi().upload_folder(repo_id="owner/bert", folder_path=sys.argv[1])
from hfblog import recipes, training
recipe = recipes.load_recipe("{ROOT}/scripts/recipes/conditional_ln_bert_reviews_pretrained.yaml", [
    "model.init_from=owner/bert", "data.max_examples=64", "training.num_train_epochs=1", "training.bf16=false",
    "processor.min_count=2", "training.use_cpu=true", "model.freeze_backbone=true",
])
training.train(recipe, sys.argv[2])
""",
        tmp_path / "bert",
        tmp_path / "out",
        env=hub_server.env(tmp_path / "home"),
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    pruned = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(pruned) == model.config.vocab_size < len(tokenizer)
    source = BertForMaskedLM.from_pretrained(tmp_path / "bert").state_dict()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.state_dict()[query], source[query])  # frozen
    assert any(parameter.abs().max() > 0 for name, parameter in model.named_parameters() if "condition_scale" in name)


PULL_AND_WRITE = """
import sys
from transformers import AutoModelForCausalLM, pipeline
write = pipeline("text-generation", model="owner/writer", trust_remote_code=True)
assert type(write.model).__module__.startswith("transformers_modules")
print(write("很好", condition_ids="positive", max_new_tokens=8, do_sample=False, guidance_scale=2.0)[0]["generated_text"])
"""


def test_pushed_and_pulled_where_hfblog_is_absent(trained, tmp_path, hub_server, run_python):
    env = hub_server.env(tmp_path / "home")
    run_python("import sys; from hfblog import hub; hub.push(sys.argv[1], 'owner/writer')", trained, env=env)
    pulled = run_python(PULL_AND_WRITE, env=env, hfblog_absent=True).splitlines()[-1]
    write = pipeline("text-generation", model=str(trained))
    here = write("很好", condition_ids="positive", max_new_tokens=8, do_sample=False, guidance_scale=2.0)
    assert here[0]["generated_text"] == pulled


def test_learning_rates_by_name():
    model = torch.nn.ModuleDict({"condition": torch.nn.Linear(2, 2), "rest": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    training.scale_learning_rates(optimizer, model, {"condition.weight": 5.0, "bias": 0.5})
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    expected = {"condition.weight": 0.5, "condition.bias": 0.05, "rest.weight": 0.1, "rest.bias": 0.05}
    assert {name: pytest.approx(rates[parameter]) for name, parameter in model.named_parameters()} == expected
    with pytest.raises(ValueError, match="no trained parameter's name has 'conditoin'"):
        training.scale_learning_rates(optimizer, model, {"conditoin": 2.0})


CAPTION_ELSEWHERE = """
import sys
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = processor(images=[Image.open(sys.argv[2])], return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs))[0])
"""


def test_captions_from_images_to_sentences(tmp_path, run_python):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    caption = {"template": "the digit {}", "words": words}
    sections = {
        "model": {"condition_hidden_size": 16, "condition_hidden_act": "silu"},
        "data": {"name": "digits", "caption": caption},
        "processor": {"max_length": 10, "image_size": 16},
        "evaluation": {"control": "exact"},
    }
    path = write(tmp_path, **sections)
    content = yaml.safe_load(path.read_text())
    del content["model"]["condition_size"]
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    content["model"]["vision_config"] = resnet
    path.write_text(yaml.safe_dump(content))
    folder = training.train(recipes.load_recipe(path), tmp_path / "out")
    metrics = evaluation.evaluate(folder)
    assert 0 <= metrics["results"]["exact_match"]["value"] <= 1 and (folder / "captions.png").is_file()
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = processor(images=[PILImage.new("L", (8, 8)), PILImage.new("RGB", (9, 5))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    texts = processor.batch_decode(model.generate(**inputs))
    assert len(texts) == 2
    picture = tmp_path / "digit.png"
    PILImage.new("L", (8, 8)).save(picture)
    command = [sys.executable, "scripts/generate.py", folder, "--images", picture]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == texts[0], done.stderr
    assert run_python(CAPTION_ELSEWHERE, folder, picture, hfblog_absent=True).splitlines()[-1] == texts[0]
    with pytest.raises(ValueError, match="images, text or both"):
        processor()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["processor.vocab_sise=9"], "unknown key processor.vocab_sise; did you mean 'vocab_size'"),
        (["evaluation.num_draws=9"], "unknown key evaluation.num_draws"),
        (["data.label_column=lable"], "no column 'lable'"),
        (["data.text_column=label"], "column 'label' does not hold Value"),
        (["data.name=digits"], "columns of strings"),
        (["processor.vocab_size=3"], "vocab_size=3 must exceed"),
        (["training.learning_rate_factors={nothing: 2}"], "no trained parameter's name has 'nothing'"),
        (["training.learning_rate_factors={condition: 0}"], "must be positive"),
    ],
)
def test_bad_input(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        training.train(tiny(tmp_path, *overrides), tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("control=wish", "'classifier', 'verse' or 'exact'"),
        ("top_p=0", "top_p=0"),
        ("guidance_scales=[-1.0]", "none negative"),
        ("num_samples=0", "num_samples=0"),
    ],
)
def test_bad_evaluation_settings(trained, override, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(trained, overrides=[override])


def test_generate_script(trained):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "scripts/generate.py", str(trained), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run("--condition", "positive", "--num-texts", "3", "--guidance-scale", "2", "--prompt", "很好")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("很好") for line in lines)
    assert (
        run("--condition", "positive", "--num-texts", "3", "--guidance-scale", "2", "--prompt", "很好").stdout == done.stdout
    )
    wrong = run("--condition", "splendid")
    assert wrong.returncode == 1 and "error: condition 'splendid' is not known" in wrong.stderr

"""Evaluation of text generators: does a text meet its condition, how probable are real texts, how varied are new ones."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image as ImageFeature
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .data import condition_columns, find_column, text_column_of
from .models.conditional_ln_bert import ConditionalLNBertForGeneration
from .models.contrastive.modeling_nce_lm import CACHE_NAMES
from .pictures import plot
from .recipes import EvaluationRun, GenerationEvaluationArguments


def evaluate_generation(run: EvaluationRun) -> dict[str, Any]:
    """Perplexity, control, variety and samples of a conditional language model."""
    if run.arguments.control == "exact":
        return evaluate_captions(run)
    model, processor, data, arguments, splits = run.model, run.processor, run.prepared, run.arguments, run.splits
    model.eval()
    texts = {split: part[text_column_of(part, run.recipe.data.get("text_column"))] for split, part in splits.items()}
    columns = condition_columns(splits["train"], run.recipe.data.get("label_column"))
    if len(columns) != 1:
        raise ValueError(f"evaluation.control={arguments.control!r} judges one attribute, but the conditions are {columns}")
    labels = {split: np.asarray(part[columns[0]]) for split, part in splits.items()}
    names = model.config.attribute_labels[0]
    judge = (VerseJudge if arguments.control == "verse" else ClassifierJudge).fit(texts, labels, names, arguments.split)

    likelihood = test_likelihood(model, processor, data[arguments.split], arguments)
    wanted = np.arange(arguments.num_samples) % len(names)
    drawn: dict[float, list[str]] = {}
    for scale in arguments.guidance_scales:
        drawn[scale] = draw_texts(model, processor, wanted, arguments, scale)
    real_rows = np.random.default_rng(arguments.seed).permutation(len(texts[arguments.split]))[: arguments.num_samples]
    real = [texts[arguments.split][row] for row in real_rows]

    results: dict[str, dict[str, Any]] = {
        "perplexity": {
            "label": "test perplexity",
            "unit": "per token",
            "value": likelihood["perplexity"],
        }
    }
    rows, agreement = [], {}
    varieties = {scale: variety(samples) for scale, samples in drawn.items()}
    for scale, samples in drawn.items():
        agreement[scale] = float((judge(samples) == wanted).mean())
        key = "control" if scale == 1 else f"control_guidance_{scale:g}"
        label = judge.label if scale == 1 else f"{judge.label}, guidance {scale:g}"
        spread = math.sqrt(agreement[scale] * (1 - agreement[scale]) / len(samples))
        results[key] = {"label": label, "unit": "share", "value": agreement[scale], "stderr": spread}
        rows.append([f"samples, guidance {scale:g}", agreement[scale], *varieties[scale], *judge.extra(samples)])
    real_agreement = float((judge(real) == labels[arguments.split][real_rows]).mean())
    rows.append([f"real texts of the {arguments.split} split", real_agreement, *variety(real), *judge.extra(real)])
    results["bayes_accuracy"] = {
        "label": "class by Bayes' rule",
        "unit": "accuracy",
        "value": likelihood["bayes_accuracy"],
    }
    majority = np.bincount(labels[arguments.split]).max() / len(labels[arguments.split])
    baselines = [
        {"label": "the same model without the condition", "perplexity": likelihood["perplexity_none"]},
        {"label": "the same model under a wrong condition", "perplexity": likelihood["perplexity_wrong"]},
        {"label": "frequencies of single tokens", "perplexity": unigram_perplexity(data["train"], data[arguments.split])},
        {"label": "the most frequent class", "bayes_accuracy": float(majority)},
        {"label": "chance", "control": 1 / len(names)},
        *judge.baselines(),
    ]
    shown = arguments.guidance_scales[0]
    notes = [
        f"Perplexity is per token with the end token, over {likelihood['tokens']:,} tokens of {likelihood['texts']:,} texts, "
        f"{likelihood['unknown']:.2%} of them unknown; only models with the same tokens compare. "
        "Without the condition the model gets its learned 'no condition'.",
        f"{arguments.num_samples} samples, the same number of each class, drawn from the "
        + ("whole distribution" if arguments.top_p == 1 else f"nucleus of {arguments.top_p:g}")
        + f" at temperature {arguments.temperature:g}, seed {arguments.seed}; the error is the binomial standard error.",
        *judge.notes(),
    ]
    return {
        "description": f"{len(texts[arguments.split]):,} texts of the {arguments.split} split.",
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "exactness": cache_exactness(
            model,
            torch.tensor(data[arguments.split][0]["input_ids"], device=model.device)[None],
            condition_states=model.condition_states(model.condition_vector(condition_ids=torch.tensor([0]))),
        ),
        "tables": [
            {
                "caption": "Control and variety. Distinct-2: different pairs of neighbouring characters over all pairs. "
                "Self-BLEU: mean BLEU-4 of a text against the others, higher is less varied.",
                "columns": ["", judge.label, "distinct-2", "self-BLEU", *judge.extra_columns],
                "rows": rows,
            },
            *conditioning_table(run.folder),
        ],
        "samples": [
            {"condition": names[want], "text": text} for want, text in list(zip(wanted, drawn[shown], strict=True))[:20]
        ],
        "pictures": generation_pictures(model, processor, judge, arguments, varieties, agreement, run.folder),
    }


# --- likelihood ---


def _batches(dataset: Any, arguments: GenerationEvaluationArguments) -> list[dict[str, Tensor]]:
    """Examples in order, padded on the right."""
    count = len(dataset) if arguments.max_examples is None else min(arguments.max_examples, len(dataset))
    batches = []
    for start in range(0, count, arguments.batch_size):
        rows = dataset[start : min(start + arguments.batch_size, count)]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            name: pad([torch.tensor(row) for row in rows[name]], batch_first=True) for name in ("input_ids", "attention_mask")
        }
        batches.append(batch | {"condition_ids": torch.tensor(rows["condition_ids"])})
    return batches


@torch.no_grad()
def test_likelihood(
    model: ConditionalLNBertForGeneration, tokenizer: Any, dataset: Any, arguments: GenerationEvaluationArguments
) -> dict[str, Any]:
    """Perplexity under the right, a wrong and no condition, and accuracy of the class by Bayes' rule (uniform prior)."""
    classes = model.config.attribute_sizes[0]
    nats = {"own": 0.0, "none": 0.0, "wrong": 0.0}
    tokens = unknown = correct = texts = 0
    for batch in tqdm(_batches(dataset, arguments), desc="Likelihood", unit="batch"):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        own = batch.pop("condition_ids")
        by_class = torch.stack(
            [model.sequence_log_probs(**batch, condition_ids=torch.full_like(own, label)) for label in range(classes)], dim=1
        ).double()
        nats["own"] += by_class.gather(1, own[:, None]).sum().item()
        nats["wrong"] += by_class.gather(1, ((own + 1) % classes)[:, None]).sum().item()
        nats["none"] += model.sequence_log_probs(**batch).double().sum().item()
        correct += (by_class.argmax(1) == own).sum().item()
        tokens += int(batch["attention_mask"][:, 1:].sum())
        unknown += int((batch["input_ids"] == tokenizer.unk_token_id).sum())
        texts += len(own)
    perplexity = {name: math.exp(-value / tokens) for name, value in nats.items()}
    return {
        "perplexity": perplexity["own"],
        "perplexity_none": perplexity["none"],
        "perplexity_wrong": perplexity["wrong"],
        "bayes_accuracy": correct / texts,
        "tokens": tokens,
        "texts": texts,
        "unknown": unknown / tokens,
    }


def unigram_perplexity(train: Any, test: Any) -> float:
    """Perplexity of test tokens under the (add-one) frequencies of training tokens, the first token of a text left out."""
    counts = Counter(token for ids in train["input_ids"] for token in ids[1:])
    total, kinds = sum(counts.values()), len(counts) + 1
    logs = [math.log((counts[token] + 1) / (total + kinds)) for ids in test["input_ids"] for token in ids[1:]]
    return math.exp(-sum(logs) / len(logs))


@torch.no_grad()
def cache_exactness(model: PreTrainedModel, ids: Tensor, **states: Any) -> list[dict[str, Any]]:
    """Largest difference between logits token by token through the cache, and of the whole text ``(1, length)`` at once."""
    whole = model(ids, use_cache=False, **states).logits
    cache, steps = None, []
    for token in ids.split(1, dim=1):
        output = model(token, cache=cache, use_cache=True, **states)
        cache = next(output[name] for name in CACHE_NAMES if output.get(name) is not None)
        steps.append(output.logits)
    error = (torch.cat(steps, dim=1) - whole).abs().max().item()
    return [{"label": "largest difference of logits with and without cache", "value": error}]


def conditioning_table(folder: Path) -> list[dict[str, Any]]:
    """What scripts/compare_conditioning.py left in the folder, if it was run."""
    file = folder / "conditioning.json"
    if not file.exists():
        return []
    record = json.loads(file.read_text(encoding="utf-8"))
    measured = ["added_parameters", *record["labels"], "training_tokens_per_second", "sampling_tokens_per_second"]
    labels = {
        "added_parameters": "parameters added",
        "training_tokens_per_second": "training tokens/s",
        "sampling_tokens_per_second": "sampling tokens/s",
    } | record["labels"]
    seeds = f"seed{'s' if len(record['seeds']) > 1 else ''} {', '.join(map(str, record['seeds']))}"
    return [
        {
            "caption": f"Ways to give the condition, {record['steps']} steps each, {seeds}, measured on the {record['split']} "
            f"split, on {record['hardware']}; all else equal. `{record['command']}`",
            "columns": ["", *(labels[key] for key in measured)],
            "rows": [[row["way"], *(row[key] for key in measured)] for row in record["rows"]],
        }
    ]


# --- samples ---


def draw_texts(
    model: ConditionalLNBertForGeneration,
    tokenizer: Any,
    conditions: np.ndarray | Tensor,
    arguments: GenerationEvaluationArguments,
    guidance_scale: float,
) -> list[str]:
    """One text a condition, class ids or vectors, the same for the same seed."""
    torch.manual_seed(arguments.seed)
    conditions = torch.as_tensor(conditions)
    key = "condition" if conditions.is_floating_point() else "condition_ids"
    texts: list[str] = []
    for batch in tqdm(conditions.split(arguments.batch_size), desc=f"Samples, guidance {guidance_scale:g}", unit="batch"):
        ids = model.generate(
            **{key: batch},
            guidance_scale=guidance_scale,
            do_sample=True,
            top_k=0,
            top_p=float(arguments.top_p),
            temperature=float(arguments.temperature),
        )
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def variety(texts: Sequence[str], references: int = 100) -> tuple[float, float]:
    """Distinct-2 and self-BLEU of texts, by characters.

    Self-BLEU (Zhu et al. 2018, arXiv:1802.01886) is BLEU-4 with the other texts as references, here of the first
    ``references`` texts among themselves, with smoothing method 1 of nltk.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
    distinct = len(set(pairs)) / max(len(pairs), 1)
    few = [list(text) for text in texts[:references]]
    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu(few[:index] + few[index + 1 :], text, smoothing_function=smooth)
        for index, text in enumerate(few)
        if text
    ]
    return distinct, float(np.mean(scores))


# --- judges: which class does a text belong to? ---


@dataclass
class ClassifierJudge:
    """A classifier that has nothing in common with the generator: character n-grams and logistic regression."""

    classifier: Any
    test_accuracy: float
    strength: float
    names: list[str]

    label = "agreement with the requested class"
    extra_columns: tuple[str, ...] = ()

    @classmethod
    def fit(cls, texts: dict[str, list[str]], labels: dict[str, np.ndarray], names: list[str], split: str) -> ClassifierJudge:
        """Fit on the training split, choose the regularisation on the validation split, measure on ``split``."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        best: tuple[float, float, Any] | None = None
        for strength in (1.0, 4.0, 16.0, 64.0):
            classifier = make_pipeline(
                TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True),
                LogisticRegression(C=strength, max_iter=1000, random_state=0),
            ).fit(list(texts["train"]), labels["train"])
            accuracy = classifier.score(list(texts["validation"]), labels["validation"])
            if best is None or accuracy > best[0]:
                best = (accuracy, strength, classifier)
        assert best is not None
        return cls(best[2], float(best[2].score(list(texts[split]), labels[split])), best[1], names)

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self.classifier.predict(texts)

    def extra(self, texts: list[str]) -> tuple[float, ...]:
        return ()

    def baselines(self) -> list[dict[str, Any]]:
        return [{"label": "the judge: n-grams with logistic regression", "bayes_accuracy": self.test_accuracy}]

    def notes(self) -> list[str]:
        return [
            "The judge of the samples knows nothing of this model: logistic regression on tf-idf of characters, pairs and "
            f"triples, fitted to the training split (C = {self.strength:g} by validation). On the test split it is right in "
            f"{self.test_accuracy:.1%}, so agreement near that figure is all that it can certify."
        ]


def verse_form(text: str) -> tuple[int, int] | None:
    """(lines, characters a line) of a regular poem; None where the lines differ in length or are not closed by a mark."""
    lines = re.split("[，。？！；、：]", text)
    if lines[-1].strip():
        return None
    lengths = {len(line.strip()) for line in lines[:-1]}
    return (len(lines) - 1, lengths.pop()) if len(lengths) == 1 else None


def rhymes(text: str) -> bool | None:
    """Whether lines 2 and 4 end in the same final (modern reading, medial vowel left out); None for fewer lines."""
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise ImportError("rhymes are read with pypinyin: pip install 'hfblog[data]'") from error

    lines = [line.strip() for line in re.split("[，。？！；、：]", text) if line.strip()]
    if len(lines) < 4:
        return None
    ends = [lazy_pinyin(lines[index][-1], style=Style.FINALS)[0] for index in (1, 3)]
    nucleus = [re.sub("^[iuüv](?=[aeoê])", "", end) for end in ends]
    return nucleus[0] == nucleus[1]


@dataclass
class VerseJudge:
    """Reads the class off the form: number of lines, and characters a line."""

    forms: dict[tuple[int, int], int]
    test_accuracy: float
    chance_rhyme: float

    label = "exactly the requested form"
    extra_columns: tuple[str, ...] = ("lines 2 and 4 rhyme",)

    @classmethod
    def fit(cls, texts: dict[str, list[str]], labels: dict[str, np.ndarray], names: list[str], split: str) -> VerseJudge:
        """The most frequent form of each class in the training split."""
        counts = [Counter(verse_form(text) for text, own in zip(texts["train"], labels["train"], strict=True) if own == label)
                  for label in range(len(names))]  # fmt: skip
        forms = {count.most_common(1)[0][0]: label for label, count in enumerate(counts)}
        if None in forms or len(forms) != len(names):
            raise ValueError(f"evaluation.control='verse' needs classes with a form each; the data give {forms}")
        judge = cls(forms, 0.0, 0.0)
        judge.test_accuracy = float((judge(texts[split]) == labels[split]).mean())
        # lines of two different poems: what rhymes by accident
        some = list(texts[split])[:2000]
        mixed = [f"{a.split('。')[0]}。{b.split('。')[1]}。" for a, b in zip(some, some[1:], strict=False)]
        judge.chance_rhyme = judge.extra(mixed)[0]
        return judge

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.array([self.forms.get(verse_form(text), -1) for text in texts])

    def extra(self, texts: list[str]) -> tuple[float, ...]:
        found = [rhyme for rhyme in map(rhymes, texts) if rhyme is not None]
        return (float(np.mean(found)) if found else 0.0,)

    def baselines(self) -> list[dict[str, Any]]:
        return []

    def notes(self) -> list[str]:
        return [
            "Form: every line closed by a mark, and number and length of the lines those of the class; "
            f"{self.test_accuracy:.2%} of the real test poems have it. Rhyme is judged by modern readings (pypinyin, final "
            "without medial), which miss part of the old rhymes; couplets of two different poems rhyme in "
            f"{self.chance_rhyme:.1%}."
        ]


# --- captions ---


def evaluate_captions(run: EvaluationRun) -> dict[str, Any]:
    """Exact match of greedy captions, beside a linear classifier of pixels that writes into the same template."""
    from sklearn.linear_model import LogisticRegression

    model, processor, data, arguments, splits = run.model.eval(), run.processor, run.prepared, run.arguments, run.splits
    test = data[arguments.split]
    count = len(test) if arguments.max_examples is None else min(arguments.max_examples, len(test))
    texts = {split: list(part[text_column_of(part, run.recipe.data.get("text_column"))]) for split, part in splits.items()}
    written: list[str] = []
    nats = tokens = 0.0
    for start in tqdm(range(0, count, arguments.batch_size), desc="Captions", unit="batch"):
        batch = {
            name: value.to(model.device) for name, value in test[start : min(start + arguments.batch_size, count)].items()
        }
        written += processor.batch_decode(model.generate(pixel_values=batch["pixel_values"]))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        with torch.no_grad():
            nats -= model.sequence_log_probs(**inputs).double().sum().item()
        tokens += batch["attention_mask"][:, 1:].sum().item()
    match = np.array([a == b for a, b in zip(written, texts[arguments.split][:count], strict=True)])
    pixels = {
        split: data[split][: len(data[split])]["pixel_values"].flatten(1).numpy() for split in ("train", arguments.split)
    }
    linear = LogisticRegression(max_iter=200).fit(pixels["train"][:10000], texts["train"][:10000])
    linear_match = float((linear.predict(pixels[arguments.split][:count]) == np.array(texts[arguments.split][:count])).mean())
    frequent = Counter(texts["train"]).most_common(1)[0][0]
    accuracy = float(match.mean())
    image_column = find_column(splits[arguments.split], ImageFeature, run.recipe.data.get("image_column"))
    figure, axes = plot("", "")
    axes.axis("off")
    figure.set_size_inches(7, 5)
    shown = splits[arguments.split][:12]
    for index, (image, text) in enumerate(zip(shown[image_column], written, strict=False)):
        place = axes.inset_axes([index % 4 / 4, 0.7 - index // 4 * 0.34, 0.22, 0.24])
        place.imshow(image, cmap="gray")
        place.set_title(text, fontsize=7)
        place.axis("off")
    figure.savefig(run.folder / "captions.png")
    return {
        "description": f"{count:,} images of the {arguments.split} split.",
        "results": {
            "exact_match": {
                "label": "caption right, word for word",
                "unit": "share",
                "value": accuracy,
                "stderr": math.sqrt(accuracy * (1 - accuracy) / count),
            },
            "perplexity": {"label": "test perplexity", "unit": "per token", "value": math.exp(nats / tokens)},
        },
        "baselines": [
            {"label": "logistic regression on pixels, in the same sentence", "exact_match": linear_match},
            {"label": "the most frequent caption", "exact_match": texts[arguments.split][:count].count(frequent) / count},
        ],
        "notes": ["Greedy decoding. The image encoder was trained from scratch together with the language model."],
        "exactness": [],
        "pictures": [{"file": "captions.png", "caption": "The first twelve test images and their captions"}],
    }


# --- pictures ---


def generation_pictures(
    model: ConditionalLNBertForGeneration,
    tokenizer: Any,
    judge: Callable[[list[str]], np.ndarray],
    arguments: GenerationEvaluationArguments,
    varieties: dict[float, tuple[float, float]],
    agreement: dict[float, float],
    folder: Path,
) -> list[dict[str, str]]:
    """Control and variety over the guidance scale, and what is written between the first and the last class."""
    pictures = []
    if len(varieties) > 1:
        figure, axes = plot("guidance scale", "share")
        scales = sorted(varieties)
        axes.plot(scales, [agreement[scale] for scale in scales], marker="o", label="meets the condition")
        axes.plot(scales, [varieties[scale][0] for scale in scales], marker="s", label="distinct-2")
        axes.set_ylim(0, 1.02)
        axes.legend()
        figure.savefig(folder / "guidance.png")
        pictures.append({"file": "guidance.png", "caption": "Control against variety over the guidance scale"})

    classes = model.config.attribute_sizes[0]
    steps = torch.linspace(0, 1, 9)
    path = model.interpolate_conditions(0, classes - 1, steps)
    judged = [
        judge(draw_texts(model, tokenizer, vector.expand(arguments.batch_size, -1), arguments, 1.0))
        for vector in path.detach()
    ]
    figure, axes = plot("position between the first class (0) and the last (1)", "share of samples")
    for label in range(classes):
        share = [(found == label).mean() for found in judged]
        axes.plot(steps, share, marker="o", label=str(label))
    if any((found == -1).any() for found in judged):
        axes.plot(steps, [(found == -1).mean() for found in judged], marker=".", ls=":", color="grey", label="none")
    axes.legend(title="class", fontsize=8)
    figure.savefig(folder / "interpolation.png")
    names = ", ".join(f"{index} {name}" for index, name in enumerate(model.config.attribute_labels[0]))
    pictures.append(
        {"file": "interpolation.png", "caption": f"Classes of texts written under interpolated conditions ({names})"}
    )
    return pictures

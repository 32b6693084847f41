"""Recipes: what is trained, on what, how, and what its card says.

A recipe is a YAML file with the sections ``model`` (the configuration), ``data`` (`hfblog.data.load_data`), ``processor``
(an image processor's arguments, or `TextArguments`), ``training`` (`TrainingArguments`), ``evaluation`` (the arguments of
the family's evaluation) and ``card``. Every key can be overridden on the command line as ``section.key=value``; a key that
is not known is refused.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, List
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.models.auto import auto_factory, image_processing_auto, modeling_auto

from . import hub
from .data import (
    PairTable,
    SequenceTable,
    add_captions,
    condition_columns,
    encode_words,
    find_column,
    item_source,
    join_phrases_of,
    load_data,
    nearest,
    pack_texts,
    prepare_captions,
    prepare_features,
    prepare_images,
    prepare_pairs,
    prepare_points,
    prepare_texts,
    text_column_of,
    without_spaces,
)
from .models.conditional_ln_bert import build_captioning_processor, train_tokenizer
from .models.contrastive import MinEntropyEmbeddingConfig, feature_affinities, train_word_tokenizer
from .models.term_miner import TermMinerConfig

# Keys of the model section that are no fields of the configuration: what to build, and from which checkpoint.
MODEL_KEYS = (
    "model_type",
    "auto_class",
    "preset",
    "init_from",
    "encoder_from",
    "noise_from",
    "freeze_backbone",
    "attn_implementation",
)
# Keys of the data section that choose columns.
COLUMN_KEYS = ("image_column", "label_column", "text_column", "point_column", "caption", "phrases", "unspaced", "background")
SECTIONS = ("model", "data", "processor", "training", "evaluation", "card")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """`transformers.TrainingArguments` and what the recipes add to them."""

    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of an exponential moving average of the weights; 0 keeps none."}
    )
    initialize_examples: int = field(
        default=2048, metadata={"help": "Training examples for what a model sets from data before training."}
    )
    log_samples: int = field(
        default=64, metadata={"help": "Samples in the picture drawn at every evaluation by a generative model; 0 for none."}
    )
    random_shift: int = field(
        default=0, metadata={"help": "Training images are moved by up to so many pixels along each axis; for classifiers."}
    )
    learning_rate_factors: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Learning rates of parameters whose name matches a pattern, in learning_rates."},
    )
    loop_threads: int = field(
        default=0,
        metadata={
            "help": "Threads of the compiled loops on the CPU, for models that have them; 0 trains through the Trainer. Over "
            "a corpus, more than one are faster and their result depends on their timing."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in [0, 1)")
        if self.random_shift < 0:
            raise ValueError(f"random_shift={self.random_shift} must not be negative")
        if self.loop_threads < 0:
            raise ValueError(f"loop_threads={self.loop_threads} must not be negative")
        for pattern, factor in self.learning_rate_factors.items():
            if not factor > 0:
                raise ValueError(f"learning_rate_factors[{pattern!r}]={factor} must be positive")
        if self.ema_decay and self.save_only_model and self.load_best_model_at_end:
            raise ValueError(
                "ema_decay with load_best_model_at_end needs save_only_model=False: the average is in the optimizer's state"
            )


@dataclass
class TextArguments:
    """The ``processor`` section of a recipe that trains on texts.

    Args:
        tokenizer: tokenizer to start from, a Hub id or folder; that of ``model.init_from`` or ``model.encoder_from``, or else
            one trained on the training split.
        vocab_size: tokens of a new tokenizer, at most.
        min_count: with a new tokenizer, characters that are rarer become [UNK].
        prune_vocab: with a given tokenizer, keep only tokens that occur ``min_count`` times in the training split.
        lowercase: whether a new tokenizer lower-cases.
        max_length: longest text in tokens.
        split_long: cut longer texts at punctuation instead of dropping their end.
        image_size: side in pixels to which images are scaled, for a model with an image encoder.
        level: ``"word"`` makes tokens of what stands between spaces, ``"piece"`` of characters and parts of words.
        pack: fill rows of ``max_length`` with one text after the other, where a model learns from running text.
    """

    tokenizer: str | None = None
    vocab_size: int = 8000
    min_count: int = 2
    prune_vocab: bool = False
    lowercase: bool = True
    max_length: int = 128
    split_long: bool = False
    image_size: int = 32
    level: str = "piece"
    pack: bool = False

    def __post_init__(self):
        if self.level not in ("piece", "word"):
            raise ValueError(f"processor.level={self.level!r} must be 'piece' or 'word'")


@dataclass
class ItemArguments:
    """The ``processor`` section of a recipe for item vectors; what the items are follows from the data (`item_source`).

    Args:
        vocab_size: of words and records: most items, special ones included.
        min_count: of words and records: rarer ones are left out.
        lowercase: of words: whether capitals count as small letters.
        drop_punctuation: of words: whether whatever is no letter, digit or underscore stands for a space.
        max_length: of words and records, through the Trainer: longer sequences are cut.
        perplexity: of images and vectors: how many neighbours an item has, in effect.
    """

    vocab_size: int | None = None
    min_count: int = 5
    lowercase: bool = True
    drop_punctuation: bool = False
    max_length: int = 200
    perplexity: float | int = 30.0


@dataclass
class TermArguments:
    """The ``processor`` section of a recipe for a term miner: the vectors of meaning that are learned after the terms.

    Args:
        embedding_dim: their length; 0 for none.
        min_count: rarer words get none.
        window_size, num_noise_samples, epochs: of skip-gram.
    """

    embedding_dim: int = 0
    min_count: int = 5
    window_size: int = 5
    num_noise_samples: int = 10
    epochs: int = 5


@dataclass
class EvaluationArguments:
    """What every evaluation knows: the recipe's ``evaluation`` section.

    Args:
        split: the split that is reported.
        batch_size: examples at a time.
        num_samples: samples that are drawn.
        temperature: temperature of those samples.
        seed: seed of every draw.
        max_examples: use only the first so many examples; for a quick look, never for a card.
    """

    split: str = "test"
    batch_size: int = 500
    num_samples: int = 100
    temperature: float | int = 1.0
    seed: int = 0
    max_examples: int | None = None

    least: ClassVar[dict[str, int]] = {"batch_size": 1, "num_samples": 1, "max_examples": 1}

    def __post_init__(self):
        for name, low in self.least.items():
            value = getattr(self, name)
            if (value is not None or name != "max_examples") and (not isinstance(value, int) or value < low):
                raise ValueError(f"evaluation.{name}={value!r} must be an integer of at least {low}")


@dataclass
class DensityEvaluationArguments(EvaluationArguments):
    """Evaluation of a density over images or vectors. A square ``num_samples`` looks best.

    Args:
        num_draws: dequantisation draws per example.
        exactness_examples: examples whose log-determinant is compared with an autograd Jacobian.
        exact_examples: where log-determinants are estimated, examples on which the estimate is compared with the exact one.
    """

    num_draws: int = 16
    exactness_examples: int = 4
    exact_examples: int = 64

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {
        "num_draws": 1,
        "exactness_examples": 0,
        "exact_examples": 0,
    }


@dataclass
class ClassificationEvaluationArguments(EvaluationArguments):
    """Evaluation of a classifier of images or texts.

    Args:
        inverse_examples: test images that are turned into features and back, where the model is invertible.
        pair_shuffles: shuffled copies on which test images are stacked, where the model takes two objects in one image.
    """

    inverse_examples: int = 100
    pair_shuffles: int = 1

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {"inverse_examples": 1, "pair_shuffles": 1}


@dataclass
class BottleneckEvaluationArguments(ClassificationEvaluationArguments):
    """Evaluation of a classifier with a variational bottleneck.

    Args:
        num_bins: bins of confidence in the calibration error.
        attack_size: largest change of a grey level in [0, 1] by an attack on images; 0 for no attack.
        attack_steps: steps of the iterated attack.
        attack_examples: the first so many images are attacked.
    """

    num_bins: int = 15
    attack_size: float | int = 0.1
    attack_steps: int = 20
    attack_examples: int = 1000

    least: ClassVar[dict[str, int]] = ClassificationEvaluationArguments.least | {
        "num_bins": 1,
        "attack_steps": 1,
        "attack_examples": 1,
    }

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.attack_size <= 1:
            raise ValueError(f"evaluation.attack_size={self.attack_size} must lie in [0, 1]")


@dataclass
class VAEEvaluationArguments(EvaluationArguments):
    """Evaluation of a variational autoencoder. A square ``num_samples`` looks best.

    Args:
        num_importance_samples: codes an example in the bound on the log-likelihood.
    """

    num_importance_samples: int = 500

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {"num_importance_samples": 1}


def _check_nucleus(top_p: float) -> None:
    if not 0 < top_p <= 1:
        raise ValueError(f"evaluation.top_p={top_p} must lie in (0, 1]")


@dataclass
class GenerationEvaluationArguments(EvaluationArguments):
    """Evaluation of a text generator under conditions.

    Args:
        control: how a sample is asked whether it meets its condition: ``"classifier"`` (a bag of character n-grams with
            logistic regression, fitted to the training split), ``"verse"`` (number and length of lines, for poems whose
            classes are forms) or ``"exact"`` (the caption of the image, word for word).
        top_p: nucleus of the samples; 1 draws from the whole distribution.
        guidance_scales: scales of classifier-free guidance that are reported, 1 being none.
    """

    batch_size: int = 100
    num_samples: int = 400
    control: str = "classifier"
    top_p: float | int = 1.0
    guidance_scales: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0])

    def __post_init__(self):
        super().__post_init__()
        if self.control not in ("classifier", "verse", "exact"):
            raise ValueError(f"evaluation.control={self.control!r} must be 'classifier', 'verse' or 'exact'")
        _check_nucleus(self.top_p)
        if not self.guidance_scales or min(self.guidance_scales) < 0:
            raise ValueError(f"evaluation.guidance_scales={self.guidance_scales} must be one or more scales, none negative")


@dataclass
class NCEDensityEvaluationArguments(EvaluationArguments):
    """Evaluation of a density whose partition function is learned. A square ``num_samples`` looks best.

    Args:
        num_draws: dequantisation draws per example.
        num_partition_samples: noise samples of importance sampling, which estimates the integral beyond two dimensions.
        num_walks: walks of annealed importance sampling, which does so, too; the surer of the two normalises the likelihood.
        num_steps: steps of these walks, and of those that draw the samples of images.
    """

    num_draws: int = 16
    num_partition_samples: int = 1_000_000
    num_walks: int = 500
    num_steps: int = 2000

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {
        "num_draws": 1,
        "num_partition_samples": 1000,
        "num_walks": 10,
        "num_steps": 1,
    }


@dataclass
class LanguageModelEvaluationArguments(EvaluationArguments):
    """Evaluation of a language model over words; ``num_samples`` texts are shown.

    Args:
        max_new_tokens: longest text that is drawn.
        top_p: nucleus of the texts; 1 draws from the whole distribution.
    """

    batch_size: int = 32
    num_samples: int = 10
    max_new_tokens: int = 60
    top_p: float | int = 1.0

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {"max_new_tokens": 1}

    def __post_init__(self):
        super().__post_init__()
        _check_nucleus(self.top_p)


@dataclass
class ItemVectorEvaluationArguments(EvaluationArguments):
    """Evaluation of item vectors.

    Args:
        similarity: of words: ``"wordsim353"`` and ``"simlex999"`` (from the gensim package), or files with two words and a
            rating in every line, between tabs.
        analogies: of words: ``"google"`` (from the gensim package), or files of that form.
        analogy_candidates: answers to analogies are among the first so many words.
        pos_neighbours: of words with parts of speech (a column ``pos_tags`` beside ``tokens``): neighbours that are looked at.
        map_words: of words: how many stand in the picture.
        neighbours: of images and vectors: neighbours in trustworthiness.
    """

    similarity: list[str] = field(default_factory=list)
    analogies: list[str] = field(default_factory=list)
    analogy_candidates: int = 30_000
    pos_neighbours: int = 10
    map_words: int = 200
    neighbours: int = 12

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {
        "analogy_candidates": 4,
        "pos_neighbours": 1,
        "map_words": 20,
        "neighbours": 1,
    }


@dataclass
class TermEvaluationArguments(EvaluationArguments):
    """Evaluation of a term miner; ``num_samples`` terms are explained.

    Args:
        sentences: where the data have words that people separated: segmentation is measured on the last so many texts.
        gold_terms: a file of terms, one a line, which is used for nothing else.
        first_terms: the share of listed terms is measured among the first so many.
        min_gold_count: listed terms that occur less often need not be found.
        num_seeds: the first so many terms are the seeds of growth by meaning.
    """

    num_samples: int = 5
    sentences: int = 4000
    gold_terms: str | None = None
    first_terms: list[int] = field(default_factory=lambda: [100, 500, 1000, 2000])
    min_gold_count: int = 5
    num_seeds: int = 60

    least: ClassVar[dict[str, int]] = EvaluationArguments.least | {"sentences": 1, "min_gold_count": 1, "num_seeds": 1}

    def __post_init__(self):
        super().__post_init__()
        if not self.first_terms or min(self.first_terms) < 1:
            raise ValueError(f"evaluation.first_terms={self.first_terms} must be one or more positive numbers")


# Models whose evaluation takes more than others of their task.
EVALUATION_ARGUMENTS: dict[str, type[EvaluationArguments]] = {
    "min_entropy_embedding": ItemVectorEvaluationArguments,
    "nce_density": NCEDensityEvaluationArguments,
    "nce_lm": LanguageModelEvaluationArguments,
    "term_miner": TermEvaluationArguments,
    "vae": VAEEvaluationArguments,
    "vib": BottleneckEvaluationArguments,
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-3`` is a float and ``no`` a word, where PyYAML reads a string and False."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass
class Recipe:
    """A parsed and checked recipe; each section is a dictionary of known keys."""

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        return type(AutoConfig.for_model(self.model["model_type"]))

    @property
    def auto_class(self) -> Any:
        """The Auto class that builds and loads the model: the recipe's, or the first that it is registered with."""
        name = self.model.get("auto_class", next(iter(registered_models()[self.model["model_type"]])))
        return getattr(transformers, name)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return registered_models()[self.model["model_type"]][self.auto_class.__name__]

    @property
    def model_settings(self) -> dict[str, Any]:
        """The model section's fields of the configuration."""
        return {key: value for key, value in self.model.items() if key not in MODEL_KEYS}

    def build_config(self, **derived: Any) -> PreTrainedConfig:
        """The configuration; ``derived`` are fields that follow from the data, where the recipe does not set them."""
        settings = derived | self.model_settings
        for name, value in derived.items():
            if isinstance(value, dict):  # a nested configuration
                settings[name] = value | settings[name]
        try:
            if "preset" in self.model:
                return self.config_class.from_preset(self.model["preset"], **settings)
            return self.config_class(**settings)
        except StrictDataclassError as error:
            raise ValueError(f"the recipe's model section: {error}") from error

    @property
    def kernel_settings(self) -> dict[str, Any]:
        """Keywords that choose how the model computes, not what: they are not saved with it."""
        return {key: self.model[key] for key in ("attn_implementation",) if key in self.model}

    def new_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        return self.auto_class.from_config(config, **self.kernel_settings)

    @property
    def evaluation_arguments(self) -> type[EvaluationArguments]:
        """The class of the evaluation section."""
        if (own := EVALUATION_ARGUMENTS.get(self.model["model_type"])) is not None:
            return own
        if self.classifies:
            return ClassificationEvaluationArguments
        return GenerationEvaluationArguments if self.image_processor_class is None else DensityEvaluationArguments

    @property
    def classifies(self) -> bool:
        """Whether the examples have one class each, which the model is to name."""
        return self.classifies_images or self.auto_class is transformers.AutoModelForSequenceClassification

    @property
    def classifies_images(self) -> bool:
        return self.auto_class is transformers.AutoModelForImageClassification

    @property
    def image_processor_class(self) -> type | None:
        """The image processor of a model whose examples are images; None where they are texts."""
        if self.auto_class is transformers.AutoModelForSequenceClassification:
            return None
        return image_processor_class(self.config_class)

    @property
    def learns_items(self) -> bool:
        """Whether the model has one vector for each item of the data: words, things that are borrowed, or the examples."""
        return issubclass(self.config_class, MinEntropyEmbeddingConfig)

    @property
    def mines_terms(self) -> bool:
        """Whether the model is a lexicon that is counted, not trained."""
        return issubclass(self.config_class, TermMinerConfig)

    @property
    def text_arguments(self) -> type[TextArguments | ItemArguments | TermArguments]:
        """The class of the processor section of a recipe without an image processor."""
        if self.mines_terms:
            return TermArguments
        return ItemArguments if self.learns_items else TextArguments

    @property
    def models_points(self) -> bool:
        """Whether the examples are plain vectors that were never quantised: they need no processor."""
        shape, levels = (self.model.get(key, getattr(self.config_class, key, ())) for key in ("event_shape", "num_levels"))
        return self.image_processor_class is not None and len(shape or ()) not in (0, 3) and levels is None

    def to_yaml(self) -> str:
        sections = {section: getattr(self, section) for section in SECTIONS if getattr(self, section)}
        return yaml.safe_dump({"name": self.name} | sections, sort_keys=False, allow_unicode=True)


def _parameters(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.kind in kinds and p.name != "self"}


def _refuse_unknown(section: str, given: dict, known: set[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"unknown key {section}.{key}; {nearest(key, known)}")


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a section or key that is not known (the message names the nearest one), or a missing one.
    """
    path = Path(path)
    if not path.is_file():
        available = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise FileNotFoundError(f"there is no recipe {path}" + (f"; in that folder: {available}" if available else ""))
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} is not a mapping of sections")
    content = {key: value if value is not None else {} for key, value in content.items()}
    for section in content:
        if section not in (*SECTIONS, "name"):
            raise ValueError(f"unknown section {section!r} in {path}; {nearest(section, SECTIONS)}")
    for override in overrides:
        key, separator, value = override.partition("=")
        section, dot, entry = key.partition(".")
        if not separator or not dot:
            raise ValueError(f"an override has the form section.key=value, got {override!r}")
        if section not in SECTIONS:
            raise ValueError(f"unknown section {section!r} in override {override!r}; {nearest(section, SECTIONS)}")
        content.setdefault(section, {})[entry] = yaml.load(value, Loader=_Loader)

    recipe = Recipe(name=content.pop("name", path.stem), **{"model": {}, "data": {}} | content)
    if "model_type" not in recipe.model:
        raise ValueError(f"the recipe {path} does not say model.model_type")
    if recipe.model["model_type"] not in registered_models():
        raise ValueError(
            f"unknown model.model_type {recipe.model['model_type']!r}; "
            f"{nearest(recipe.model['model_type'], registered_models())}"
        )
    if "name" not in recipe.data:
        raise ValueError(f"the recipe {path} does not say data.name")
    config_fields = {f.name for f in fields(recipe.config_class)}
    _refuse_unknown("model", recipe.model, config_fields | set(MODEL_KEYS))
    _refuse_unknown("data", recipe.data, _parameters(load_data) | set(COLUMN_KEYS))
    _refuse_unknown("data.phrases", recipe.data.get("phrases") or {}, _parameters(join_phrases_of) - {"splits", "column"})
    _refuse_unknown("training", recipe.training, {f.name for f in fields(TrainingArguments) if f.init})
    _refuse_unknown("evaluation", recipe.evaluation, {f.name for f in fields(recipe.evaluation_arguments)})
    _refuse_unknown("card", recipe.card, set(hub.CARD_KEYS))
    processor_class = recipe.image_processor_class
    model_class = recipe.model_class
    if "noise_from" in recipe.model and not hasattr(model_class, "from_noise_pretrained"):
        raise ValueError(f"model.noise_from={recipe.model['noise_from']!r}: {model_class.__name__} learns from no noise")
    reads_text = processor_class is None and hasattr(model_class, "from_encoder_pretrained")
    if "encoder_from" in recipe.model and not reads_text:
        raise ValueError(
            f"model.encoder_from={recipe.model['encoder_from']!r}: {model_class.__name__} reads no text through an encoder"
        )
    _refuse_unknown(
        "processor", recipe.processor, _parameters(processor_class.__init__ if processor_class else recipe.text_arguments)
    )
    if recipe.training.get("loop_threads") and not hasattr(model_class, "fit_law"):
        raise ValueError(f"training.loop_threads={recipe.training['loop_threads']}: {model_class.__name__} has no such loops")
    return recipe


# --- what is registered ---


def registered_models() -> dict[str, dict[str, type[PreTrainedModel]]]:
    """Every model of this package: ``{model_type: {Auto class: model class}}``, read from transformers' own registers."""
    models: dict[str, dict[str, type[PreTrainedModel]]] = {}
    for auto_name in modeling_auto.__all__:
        auto_class = getattr(modeling_auto, auto_name)
        mapping = getattr(auto_class, "_model_mapping", None)
        if not isinstance(mapping, auto_factory._LazyAutoMapping):
            continue
        for config_class, model_class in mapping._extra_content.items():
            if config_class.__module__.startswith("hfblog."):
                models.setdefault(config_class.model_type, {})[auto_name] = model_class
    return models


def image_processor_class(config_class: type[PreTrainedConfig]) -> type | None:
    """The image processor registered for a configuration, if there is one."""
    backends = image_processing_auto.IMAGE_PROCESSOR_MAPPING._extra_content.get(config_class, {})
    return backends.get("pil")


# --- what a recipe leads to ---


def load_data_of(recipe: Recipe) -> DatasetDict:
    """The recipe's data set with its three splits; captions are written, and phrases joined, where the recipe says how."""
    data = load_data(**{key: value for key, value in recipe.data.items() if key not in COLUMN_KEYS})
    if caption := recipe.data.get("caption"):
        data = DatasetDict({split: add_captions(part, **caption) for split, part in data.items()})
    if recipe.data.get("unspaced"):
        data = without_spaces(data, text_column_of(data["train"], recipe.data.get("text_column")))
    if phrases := recipe.data.get("phrases"):
        column = text_column_of(data["train"], recipe.data.get("text_column"))
        data = join_phrases_of(data, column, **phrases)
    return data


def build(recipe: Recipe, data: DatasetDict) -> tuple[PreTrainedModel, Any]:
    """A recipe's model, new or from a checkpoint, and its processor or tokenizer.

    What follows from the data (vocabulary, names of the classes) is taken from the training split.
    """
    derived = class_names(recipe, data["train"]) if recipe.classifies else {}
    if recipe.image_processor_class is not None:
        model = _with_noise(recipe) if "noise_from" in recipe.model else recipe.new_model(recipe.build_config(**derived))
        if recipe.models_points:
            return model, None
        return model, recipe.image_processor_class.from_model_config(model.config, **recipe.processor)
    if recipe.mines_terms:
        return recipe.new_model(recipe.build_config()), None
    if recipe.learns_items:
        return _build_item_model(recipe, data)
    return _build_text_model(recipe, data["train"], derived)


def _with_noise(recipe: Recipe) -> PreTrainedModel:
    """A new model whose noise is another recipe's, or any other trained model."""
    start = recipe.model["noise_from"]
    try:
        return recipe.model_class.from_noise_pretrained(start, **recipe.model_settings)
    except OSError as error:
        raise ValueError(
            f"model.noise_from={start!r} is neither a saved model nor one on the Hub. What a recipe gives is left by "
            f"accelerate launch scripts/train.py scripts/recipes/{Path(start).name}.yaml"
        ) from error


def class_names(recipe: Recipe, train: Dataset) -> dict[str, Any]:
    """The classes of a data set as a classifier's configuration has them."""
    names = train.features[find_column(train, ClassLabel, recipe.data.get("label_column"))].names
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _build_item_model(recipe: Recipe, data: DatasetDict) -> tuple[PreTrainedModel, Any]:
    """A model over the words or things of the training split, or over all examples, and its tokenizer, if they have names."""
    settings, train = ItemArguments(**recipe.processor), data["train"]
    source = item_source(train)
    if source == "features":
        return recipe.new_model(recipe.build_config(vocab_size=sum(map(len, data.values())))), None
    if source == "pairs":
        tokenizer = train_word_tokenizer([train.features["first"].names])
    else:
        column = _item_column(recipe, train, source)
        tokenizer = train_word_tokenizer(
            train[column],
            settings.vocab_size,
            min_count=settings.min_count,
            lowercase=settings.lowercase,
            drop_punctuation=settings.drop_punctuation,
        )
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "unk_token_id", "eos_token_id")}
    return recipe.new_model(recipe.build_config(vocab_size=len(tokenizer), **special)), tokenizer


def _item_column(recipe: Recipe, dataset: Dataset, source: str) -> str:
    if source == "records":
        return find_column(dataset, List, recipe.data.get("text_column"))
    return text_column_of(dataset, recipe.data.get("text_column"))


def _prepare_items(data: DatasetDict, split: str, recipe: Recipe, tokenizer: Any) -> SequenceTable | PairTable:
    """Sequences of the items that have a number, or a law over pairs, which is that of all examples where these are items."""
    settings, dataset = ItemArguments(**recipe.processor), data[split]
    source = item_source(dataset)
    if source == "features":
        features = prepare_features(data, recipe.data.get("image_column"), recipe.data.get("point_column"))
        symmetric = recipe.model.get("normalize_over") == "pairs"
        law = feature_affinities(torch.from_numpy(features), float(settings.perplexity), symmetric)
        return PairTable(law, features)
    if source == "pairs":
        return prepare_pairs(dataset, tokenizer)
    column = _item_column(recipe, dataset, source)
    texts = dataset.select_columns(column).with_format("arrow")[:][column]
    vocabulary = {word: index for word, index in tokenizer.get_vocab().items() if index not in tokenizer.all_special_ids}
    corpus = encode_words(
        texts, vocabulary=vocabulary, lowercase=settings.lowercase, drop_punctuation=settings.drop_punctuation
    )
    return SequenceTable(corpus, settings.max_length)


def _build_text_model(recipe: Recipe, train: Dataset, derived: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    text = TextArguments(**recipe.processor)
    texts = train[text_column_of(train, recipe.data.get("text_column"))]
    if not recipe.classifies and recipe.model.get("vision_config") is None:
        names = [train.features[column].names for column in condition_columns(train, recipe.data.get("label_column"))]
        if names:
            derived["condition_labels"] = names[0] if len(names) == 1 else names
    start, encoder = recipe.model.get("init_from"), recipe.model.get("encoder_from")
    if text.tokenizer or start or encoder:
        tokenizer = AutoTokenizer.from_pretrained(text.tokenizer or start or encoder, model_max_length=text.max_length)
    elif text.level == "word":
        tokenizer = train_word_tokenizer(
            texts, text.vocab_size, min_count=text.min_count, lowercase=text.lowercase, model_max_length=text.max_length
        )
    else:
        tokenizer = train_tokenizer(
            texts,
            text.vocab_size,
            lowercase=text.lowercase,
            min_count=text.min_count,
            model_max_length=text.max_length,
        )
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id,
    }
    if start:
        model = recipe.model_class.from_pretrained(
            start, **(derived | special | recipe.model_settings | recipe.kernel_settings)
        )
    elif encoder:
        model = recipe.model_class.from_encoder_pretrained(encoder, **(derived | recipe.model_settings))
    else:
        size = {"vocab_size": len(tokenizer), "max_position_embeddings": text.max_length}
        fitting = special | size
        own = {key: value for key, value in fitting.items() if hasattr(recipe.config_class, key)}
        if "encoder_config" in recipe.model:
            own = {"encoder_config": fitting}
        elif "backbone_config" in recipe.model:
            own |= {"backbone_config": fitting}
        model = recipe.new_model(recipe.build_config(**derived, **own))
    if text.prune_vocab:
        tokenizer = model.prune_vocab(tokenizer, texts, min_count=text.min_count)
    if recipe.model.get("freeze_backbone"):
        model.freeze_backbone()
    if model.can_generate():
        never = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id]
        model.generation_config.suppress_tokens = sorted(index for index in never if index is not None)
    if getattr(model.config, "vision_config", None) is None:
        return model, tokenizer
    return model, build_captioning_processor(model.config.vision_config, tokenizer, text.image_size)


def load_processor(recipe: Recipe, folder: str | Path) -> Any:
    """The processor or tokenizer that a trained folder holds; None where the examples are plain vectors."""
    if recipe.models_points or (recipe.learns_items and not (Path(folder) / "tokenizer.json").exists()):
        return None
    if recipe.image_processor_class is not None:
        return AutoImageProcessor.from_pretrained(folder)
    loader = AutoTokenizer if recipe.model.get("vision_config") is None else AutoProcessor
    return loader.from_pretrained(folder)


def prepare_split(data: DatasetDict, split: str, recipe: Recipe, processor: Any) -> Any:
    """One split as the model's forward takes it."""
    if recipe.models_points:
        return prepare_points(data[split], recipe.data.get("point_column"))
    if recipe.mines_terms:
        return data[split][text_column_of(data[split], recipe.data.get("text_column"))]
    if recipe.learns_items:
        return _prepare_items(data, split, recipe, processor)
    columns = {key: recipe.data.get(key) for key in ("image_column", "label_column", "text_column")}
    if recipe.image_processor_class is not None:
        return prepare_images(data[split], processor, columns["image_column"], columns["label_column"])
    text = TextArguments(**recipe.processor)
    if recipe.model.get("vision_config") is not None:
        return prepare_captions(data[split], processor, columns["image_column"], columns["text_column"], text.max_length)
    if text.pack:
        return pack_texts(data[split], processor, columns["text_column"], text.max_length)
    return prepare_texts(
        data[split],
        processor,
        text_column=columns["text_column"],
        label_column=columns["label_column"],
        label_name="labels" if recipe.classifies else "condition_ids",
        max_length=text.max_length,
        split_long=text.split_long,
    )


def prepare_splits(data: DatasetDict, names: Iterable[str], recipe: Recipe, processor: Any) -> dict[str, Any]:
    """Splits by their names, see `prepare_split`; where the examples themselves are the items, one law of all of them."""
    if recipe.learns_items and item_source(data["train"]) == "features":
        return dict.fromkeys(names, prepare_split(data, "train", recipe, processor))
    return {split: prepare_split(data, split, recipe, processor) for split in names}


def mining_texts(data: DatasetDict, recipe: Recipe) -> list[str]:
    """All texts: a lexicon is found without labels, so that no split need be held back from it."""
    return [text for split in data for text in prepare_split(data, split, recipe, None)]


def background_texts(recipe: Recipe) -> dict[str, list[str]]:
    """All texts of the data sets that ``data.background`` names, without spaces where the recipe takes them out."""
    found = {}
    for name in recipe.data.get("background") or []:
        data = load_data(name)
        column = text_column_of(data["train"])
        if recipe.data.get("unspaced"):
            data = without_spaces(data, column)
        found[Path(name).name] = [text for part in data.values() for text in part[column]]
    return found


def data_collator(recipe: Recipe, processor: Any) -> Any:
    """What makes a batch of prepared examples: padding for texts, and labels where they are written; else the default."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return None
    if recipe.classifies:
        return DataCollatorWithPadding(processor)
    if recipe.learns_items:
        return partial(_collate_items, processor)
    return DataCollatorForLanguageModeling(processor, mlm=False)


def _collate_items(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Sequences are padded; pairs are not."""
    if "input_ids" in rows[0]:
        return dict(tokenizer.pad(rows, return_tensors="pt"))
    return default_data_collator(rows)


@dataclass
class EvaluationRun:
    """What an evaluation measures: a trained folder and all that its recipe leads to.

    Args:
        model: loaded, on the device.
        processor: its processor or tokenizer.
        splits: the data set as it is.
        prepared: the same splits as the model's forward takes them.
        arguments: of the family's evaluation.
        folder: where pictures go.
        recipe: the recipe that the folder was trained by.
        with_baselines: whether baselines, which take longer than the model to fit, are measured, too.
    """

    model: Any
    processor: Any
    splits: DatasetDict
    prepared: dict[str, Any]
    arguments: Any
    folder: Path
    recipe: Recipe
    with_baselines: bool = True


def command_line() -> str:
    """The command that runs this process, as it would be typed in the project's folder."""
    program = os.path.relpath(sys.argv[0]) if os.path.exists(sys.argv[0]) else sys.argv[0]
    launcher = "accelerate launch" if any(name.startswith("ACCELERATE_") for name in os.environ) else "python"
    return " ".join([launcher, program, *map(shlex.quote, sys.argv[1:])])

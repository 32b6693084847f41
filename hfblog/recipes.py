"""Recipes: what is trained, on what, how, and what its card says.

A recipe is a YAML file with the sections ``model`` (the configuration), ``data`` (`hfblog.data.load_data`), ``processor``,
``training`` (`TrainingArguments` below), ``evaluation`` (`EvaluationArguments`) and ``card``. Every key can be
overridden on the command line as ``section.key=value``; a key that is not known is refused.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import transformers
import yaml
from datasets import DatasetDict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import auto_factory, image_processing_auto, modeling_auto

from . import hub
from .data import load_data, nearest, prepare_images

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

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in [0, 1)")
        if self.ema_decay and self.save_only_model and self.load_best_model_at_end:
            raise ValueError(
                "ema_decay with load_best_model_at_end needs save_only_model=False: the average is in the optimizer's state"
            )


@dataclass
class EvaluationArguments:
    """The recipe's ``evaluation`` section.

    Args:
        split: the split that is reported.
        batch_size: examples at a time.
        num_draws: dequantisation draws per example.
        num_samples: samples in the picture, a square number looks best.
        temperature: temperature of those samples.
        exactness_examples: examples whose log-determinant is compared with an autograd Jacobian.
        seed: seed of every draw.
        max_examples: use only the first so many examples; for a quick look, never for a card.
    """

    split: str = "test"
    batch_size: int = 500
    num_draws: int = 16
    num_samples: int = 100
    temperature: float | int = 1.0
    exactness_examples: int = 4
    seed: int = 0
    max_examples: int | None = None

    def __post_init__(self):
        least = {"batch_size": 1, "num_draws": 1, "num_samples": 1, "exactness_examples": 0, "max_examples": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if (value is not None or name != "max_examples") and (not isinstance(value, int) or value < low):
                raise ValueError(f"evaluation.{name}={value!r} must be an integer of at least {low}")


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

    def build_config(self) -> PreTrainedConfig:
        settings = {k: v for k, v in self.model.items() if k not in ("model_type", "auto_class", "preset")}
        try:
            if "preset" in self.model:
                return self.config_class.from_preset(self.model["preset"], **settings)
            return self.config_class(**settings)
        except StrictDataclassError as error:
            raise ValueError(f"the recipe's model section: {error}") from error

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
    _refuse_unknown("model", recipe.model, config_fields | {"model_type", "auto_class", "preset"})
    _refuse_unknown("data", recipe.data, _parameters(load_data) | {"image_column", "label_column"})
    _refuse_unknown("training", recipe.training, {f.name for f in fields(TrainingArguments) if f.init})
    _refuse_unknown("evaluation", recipe.evaluation, {f.name for f in fields(EvaluationArguments)})
    _refuse_unknown("card", recipe.card, set(hub.CARD_KEYS))
    processor_class = image_processor_class(recipe.config_class)
    _refuse_unknown("processor", recipe.processor, _parameters(processor_class.__init__) if processor_class else set())
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


def build_processor(recipe: Recipe, config: PreTrainedConfig) -> Any:
    """The image processor of a configuration, with the recipe's settings over those that follow from it."""
    processor_class = image_processor_class(type(config))
    return processor_class.from_model_config(config, **recipe.processor) if processor_class is not None else None


def load_data_of(recipe: Recipe) -> DatasetDict:
    """The recipe's data set with its three splits."""
    return load_data(**{key: value for key, value in recipe.data.items() if not key.endswith("_column")})


def prepare_split(data: DatasetDict, split: str, recipe: Recipe, processor: Any) -> Any:
    """One split as the model's forward takes it."""
    return prepare_images(data[split], processor, recipe.data.get("image_column"), recipe.data.get("label_column"))


def command_line() -> str:
    """The command that runs this process, as it would be typed in the project's folder."""
    program = os.path.relpath(sys.argv[0]) if os.path.exists(sys.argv[0]) else sys.argv[0]
    launcher = "accelerate launch" if any(name.startswith("ACCELERATE_") for name in os.environ) else "python"
    return " ".join([launcher, program, *map(shlex.quote, sys.argv[1:])])

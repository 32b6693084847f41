"""From a recipe to a trained, exported folder, by `transformers.Trainer`.

A recipe is a YAML file with the sections ``model`` (the configuration), ``data`` (`hfblog.data.load_data`), ``processor``,
``training`` (`TrainingArguments` below), ``evaluation`` (`hfblog.evaluation`) and ``card``. Every key can be
overridden on the command line as ``section.key=value``; a key that is not known is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from datasets import DatasetDict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.models.auto import auto_factory, image_processing_auto, modeling_auto
from transformers.trainer_pt_utils import get_parameter_names

from . import hub
from .data import load_data, nearest, prepare_images

logger = logging.getLogger(__name__)

SECTIONS = ("model", "data", "processor", "training", "evaluation", "card")
CHECKPOINTS = "checkpoints"

# Where a recipe says nothing: choose the epoch by validation loss, keep that one and the last.
TRAINING_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
    "logging_strategy": "epoch",
    "logging_nan_inf_filter": False,
    "max_grad_norm": 0.0,
    "ddp_find_unused_parameters": False,
    "seed": 0,
    "report_to": "none",
}


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


# --- recipes ---


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
    from .evaluation import EvaluationArguments

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


# --- training ---


class EMAHook:
    """Exponential moving average of the weights, kept in the optimizer's state: it is saved, resumed and sharded with it.

    After step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards the weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float):
        self.optimizer = optimizer
        self.decay = decay
        optimizer.register_step_post_hook(self._update)

    @torch.no_grad()
    def _update(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for group in optimizer.param_groups:
            averages, weights, step = [], [], 0
            for weight in group["params"]:
                state = optimizer.state[weight]
                if "ema" not in state:
                    state["ema"], state["ema_step"] = weight.detach().clone(), 0
                state["ema_step"] += 1
                step = state["ema_step"]
                averages.append(state["ema"])
                weights.append(weight.detach())
            if weights:
                torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                if "ema" in self.optimizer.state[weight]:
                    yield weight, self.optimizer.state[weight]["ema"]

    @torch.no_grad()
    def copy_to_weights(self) -> None:
        for weight, average in self._pairs():
            weight.copy_(average)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model computes with the average."""
        kept = [(weight, weight.detach().clone()) for weight, _ in self._pairs()]
        self.copy_to_weights()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in kept:
                    weight.copy_(value)


class Trainer(transformers.Trainer):
    """`transformers.Trainer` with an average of the weights, no decay of vectors, and a stop where the loss is lost."""

    ema: EMAHook | None = None

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Only matrices decay: a decayed scale or bias is a prior nobody asked for."""
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        return [name for name in get_parameter_names(model, [torch.nn.LayerNorm]) if name not in vectors]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.args.ema_decay and self.ema is None:
            self.ema = EMAHook(getattr(optimizer, "optimizer", optimizer), self.args.ema_decay)
        return optimizer

    def averaged_weights(self) -> contextlib.AbstractContextManager:
        return self.ema.averaged_weights() if self.ema is not None else contextlib.nullcontext()

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self.averaged_weights():
            return super().evaluate(*args, **kwargs)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema is not None:
            self._load_optimizer_and_scheduler(self.state.best_model_checkpoint)

    def _finalize_training(self, *args, **kwargs):
        output = super()._finalize_training(*args, **kwargs)
        if self.ema is not None:
            self.ema.copy_to_weights()
        return output

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        super().log(logs, *args, **kwargs)
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise FloatingPointError(
                    f"{name} is {logs[name]} at step {self.state.global_step}: lower training.learning_rate, set "
                    "training.max_grad_norm, or look for NaN in the data. The last checkpoint is whole."
                )


class SampleGridCallback(TrainerCallback):
    """Draws a grid of samples at every evaluation: a PNG beside the checkpoints, and an image in TensorBoard if it is on."""

    def __init__(self, trainer: Trainer, processor: Any, num_samples: int):
        self.trainer = trainer
        self.processor = processor
        self.num_samples = num_samples

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        from .evaluation import image_grid

        if not state.is_world_process_zero:
            return
        model = self.trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
        with self.trainer.averaged_weights():
            samples = model.sample(self.num_samples, generator=torch.Generator().manual_seed(args.seed))
        grid = image_grid(self.processor.post_process(samples))
        folder = Path(args.output_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        grid.save(folder / f"step-{state.global_step:06d}.png")
        for callback in self.trainer.callback_handler.callbacks:
            if (writer := getattr(callback, "tb_writer", None)) is not None:
                import numpy as np

                image = np.asarray(grid.convert("RGB"))
                writer.add_image("samples", image, state.global_step, dataformats="HWC")


class LaunchError(RuntimeError):
    """The processes that run are not those that were asked for."""


def check_world(world_size: int) -> None:
    """Refuse to train in another world than the launcher was asked for.

    ``accelerate launch --cpu --num_processes 2`` starts one process without a word, and ``torchrun`` on a machine without
    an accelerator may start several that know nothing of each other: each would train, save and push.
    """
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked != world_size:
        raise LaunchError(
            f"the launcher started {asked} processes, but this one sees a world of {world_size}; without accelerators "
            "set training.use_cpu=true"
        )
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise LaunchError(
            "accelerate launch was asked for several processes but started one: with --cpu it only does so under mpirun. "
            "Use accelerate launch --config_file scripts/accelerate/two_cpu_processes.yaml"
        )


def build_training_arguments(recipe: Recipe, output_dir: Path) -> TrainingArguments:
    """The recipe's training section over `TRAINING_DEFAULTS`, on the machine at hand."""
    settings = TRAINING_DEFAULTS | recipe.training
    if settings["load_best_model_at_end"] and settings["eval_strategy"] == "no":
        settings["load_best_model_at_end"] = False
    settings.setdefault("use_cpu", not torch.accelerator.is_available())
    settings.setdefault("dataloader_pin_memory", not settings["use_cpu"])
    arguments = TrainingArguments(output_dir=str(output_dir / CHECKPOINTS), **settings)
    check_world(arguments.world_size)
    return arguments


def _check_output_dir(output_dir: Path, resume: Any, overwrite: bool) -> None:
    if output_dir.is_file():
        raise ValueError(f"{output_dir} is a file; the trained model needs a folder")
    checkpoints = sorted(output_dir.glob(f"{CHECKPOINTS}/checkpoint-*"))
    if resume and resume is True and not checkpoints:
        raise ValueError(f"nothing to resume: {output_dir / CHECKPOINTS} holds no checkpoint")
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise ValueError(f"nothing to resume: there is no checkpoint folder {resume}")
    if not resume and not overwrite and (checkpoints or (output_dir / "config.json").exists()):
        raise ValueError(
            f"{output_dir} already holds a run: go on with training.resume_from_checkpoint=true, replace it with "
            "--overwrite, or name another folder with --output-dir"
        )


def train(recipe: Recipe, output_dir: str | Path | None = None, overwrite: bool = False) -> Path:
    """Train a recipe and export the model, chosen on validation data, to a folder.

    Args:
        recipe: see `load_recipe`.
        output_dir: the folder; ``outputs/<recipe name>`` by default. Checkpoints go to ``checkpoints`` inside it.
        overwrite: replace what an earlier run left there.

    Returns:
        The folder: weights, configuration, code, processor, ``recipe.yaml`` and ``training.json`` (times and curve).
        The card and the metrics are added by `hfblog.evaluation.evaluate`.

    Raises:
        ValueError: anything wrong in the recipe, the data or the folder, before the folder is touched.
        FloatingPointError: the loss became NaN or infinite.
    """
    output_dir = Path(output_dir or Path("outputs") / recipe.name)
    resume = recipe.training.get("resume_from_checkpoint")
    _check_output_dir(output_dir, resume, overwrite)
    arguments = build_training_arguments(recipe, output_dir)
    config = recipe.build_config()
    processor = build_processor(recipe, config)
    with arguments.main_process_first(desc="preparing the data"):
        data = load_data_of(recipe)
        prepared = {split: prepare_split(data, split, recipe, processor) for split in ("train", "validation")}

    transformers.set_seed(arguments.seed)
    auto_class = recipe.model.get("auto_class", next(iter(registered_models()[config.model_type])))
    model = getattr(transformers, auto_class).from_config(config)
    if not resume:
        initialize(model, prepared["train"], arguments)

    if overwrite and not resume and arguments.process_index == 0:
        hub.clear_run(output_dir, CHECKPOINTS)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=prepared["train"],
        eval_dataset=prepared["validation"],
        processing_class=processor,
    )
    if arguments.log_samples and hasattr(model, "sample") and processor is not None:
        trainer.add_callback(SampleGridCallback(trainer, processor, arguments.log_samples))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start
    trainer.save_model(str(output_dir))
    if trainer.is_world_process_zero():
        (output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
        (output_dir / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        record = training_record(trainer, seconds, {split: len(part) for split, part in data.items()}, bool(resume))
        (output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return output_dir


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


def initialize(model: PreTrainedModel, dataset: Any, arguments: TrainingArguments) -> None:
    """Let a model set what depends on data, from the same seeded draw on every process."""
    if not hasattr(model, "initialize"):
        return
    generator = torch.Generator().manual_seed(arguments.seed)
    rows = torch.randperm(len(dataset), generator=generator)[: arguments.initialize_examples].tolist()
    batch = torch.utils.data.default_collate(dataset.__getitems__(rows))
    model.initialize(batch[model.main_input_name], generator=generator)


def training_record(trainer: Trainer, seconds: float, split_sizes: dict[str, int], resumed: bool) -> dict[str, Any]:
    """What the card says of the training: time, steps, seed, command and the validation curve."""
    history = trainer.state.log_history
    return {
        "command": command_line(),
        "seed": trainer.args.seed,
        "seconds": round(seconds, 1),
        "resumed": resumed,
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "processes": trainer.args.world_size,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "split_sizes": split_sizes,
        "curve": [
            {"epoch": entry["epoch"], "validation_loss": entry["eval_loss"]} for entry in history if "eval_loss" in entry
        ],
    }


def command_line() -> str:
    """The command that runs this process, as it would be typed in the project's folder."""
    program = os.path.relpath(sys.argv[0]) if os.path.exists(sys.argv[0]) else sys.argv[0]
    launcher = "accelerate launch" if any(name.startswith("ACCELERATE_") for name in os.environ) else "python"
    return " ".join([launcher, program, *map(shlex.quote, sys.argv[1:])])

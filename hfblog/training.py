"""From a recipe to a trained, exported folder, by `transformers.Trainer`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import DatasetDict
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_pt_utils import get_parameter_names
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import tqdm

from . import hub
from .data import PairTable, SequenceTable, ShiftedImages
from .models.contrastive import MinEntropyEmbeddingForPreTraining, WordVectors
from .pictures import image_grid
from .recipes import (
    Recipe,
    TermArguments,
    TrainingArguments,
    background_texts,
    build,
    command_line,
    data_collator,
    load_data_of,
    mining_texts,
    prepare_splits,
)
from .term_vectors import train_term_vectors

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
    rates_are_set = False

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Only matrices decay: a decayed scale or bias is a prior nobody asked for."""
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        return [name for name in get_parameter_names(model, [torch.nn.LayerNorm]) if name not in vectors]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.args.learning_rate_factors and not self.rates_are_set:
            scale_learning_rates(optimizer, model or self.model, self.args.learning_rate_factors)
            self.rates_are_set = True
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
        variance = getattr(self.model, "log_det_variance", None)
        if variance is not None and variance > 0 and "loss" in logs:
            logs["log_det_std"] = variance.item() ** 0.5  # of the training estimator, nats an example
        super().log(logs, *args, **kwargs)
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise FloatingPointError(
                    f"{name} is {logs[name]} at step {self.state.global_step}: lower training.learning_rate, set "
                    "training.max_grad_norm, or look for NaN in the data. The last checkpoint is whole."
                )


def scale_learning_rates(optimizer: torch.optim.Optimizer, model: torch.nn.Module, factors: dict[str, float]) -> None:
    """Move parameters into groups with a learning rate of their own.

    Args:
        factors: ``{pattern: factor}``; the first pattern that is found in a parameter's name (`re.search`) counts.

    Raises:
        ValueError: a pattern that no trained parameter's name has.
    """
    unused = set(factors)
    rates: dict[torch.nn.Parameter, float] = {}
    for name, parameter in model.named_parameters():
        matching = [pattern for pattern in factors if re.search(pattern, name)]
        if matching and parameter.requires_grad:
            unused.discard(matching[0])
            rates[parameter] = factors[matching[0]]
    if unused:
        raise ValueError(f"training.learning_rate_factors: no trained parameter's name has {', '.join(map(repr, unused))}")
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if parameter in rates]
        group["params"] = [parameter for parameter in group["params"] if parameter not in rates]
        for factor in sorted({rates[parameter] for parameter in chosen}):
            parameters = [parameter for parameter in chosen if rates[parameter] == factor]
            optimizer.add_param_group(group | {"params": parameters, "lr": group["lr"] * factor})


class SampleGridCallback(TrainerCallback):
    """Draws a grid of samples at every evaluation: a PNG beside the checkpoints, and an image in TensorBoard if it is on."""

    def __init__(self, trainer: Trainer, processor: Any, num_samples: int):
        self.trainer = trainer
        self.processor = processor
        self.num_samples = num_samples

    def on_evaluate(self, args, state, control, model=None, **kwargs):
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
    if resume is True and not checkpoints:
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
        The folder: weights, configuration, code, processor, ``recipe.yaml``, ``training.json`` (times and curve)
        and a card, into which `hfblog.evaluation.evaluate` brings the metrics.

    Raises:
        ValueError: anything wrong in the recipe, the data or the folder, before the folder is touched.
        FloatingPointError: the loss became NaN or infinite.
    """
    output_dir = Path(output_dir or Path("outputs") / recipe.name)
    resume = recipe.training.get("resume_from_checkpoint")
    _check_output_dir(output_dir, resume, overwrite)
    arguments = build_training_arguments(recipe, output_dir)
    with arguments.main_process_first(desc="preparing the data"):
        data = load_data_of(recipe)
        transformers.set_seed(arguments.seed)
        model, processor = build(recipe, data)
        if recipe.mines_terms:
            return mine_terms(recipe, model, data, arguments, output_dir, overwrite)
        prepared = prepare_splits(data, ("train", "validation"), recipe, processor)

    if arguments.loop_threads:
        return train_in_loops(recipe, model, processor, prepared["train"], arguments, output_dir, overwrite)
    if arguments.random_shift:
        prepared["train"] = ShiftedImages(prepared["train"], arguments.random_shift, arguments.seed)
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
        data_collator=data_collator(recipe, processor),
        compute_metrics=accuracy if recipe.classifies else None,
    )
    if arguments.log_samples and hasattr(model, "sample") and processor is not None:
        trainer.add_callback(SampleGridCallback(trainer, processor, arguments.log_samples))
    if arguments.use_cpu:
        keep_freed_memory()
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start
    finish(model, processor)
    trainer.save_model(str(output_dir))
    if trainer.is_world_process_zero():
        (output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
        record = trainer_record(trainer, seconds, {split: len(part) for split, part in data.items()}, bool(resume))
        write_records(recipe, record, output_dir)
    trainer.accelerator.wait_for_everyone()  # on every process the folder is whole from here on
    return output_dir


def write_records(recipe: Recipe, record: dict[str, Any], output_dir: Path) -> None:
    """What a finished run says of itself, beside its weights."""
    (output_dir / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (output_dir / hub.METRICS_FILE).unlink(missing_ok=True)  # of an earlier end of this run
    hub.write_card(output_dir)


def train_in_loops(
    recipe: Recipe,
    model: PreTrainedModel,
    processor: Any,
    dataset: SequenceTable | PairTable,
    arguments: TrainingArguments,
    output_dir: Path,
    overwrite: bool = False,
) -> Path:
    """Train item vectors in compiled loops, without the Trainer; see `train` for what is left in the folder.

    Over a corpus every epoch leaves a checkpoint, from which ``resume_from_checkpoint`` goes on. A law is learned in one go.
    """
    if arguments.world_size > 1:
        raise LaunchError(
            f"the compiled loops run in one process, not in {arguments.world_size}: set training.loop_threads to the number "
            "of cores, or to 0 for the Trainer"
        )
    resume = arguments.resume_from_checkpoint
    if overwrite and not resume:
        hub.clear_run(output_dir, CHECKPOINTS)
    start, done = time.perf_counter(), 0
    threads, seed = arguments.loop_threads, arguments.seed
    if isinstance(dataset, PairTable):
        if dataset.features is not None:
            model.start_from_principal_components(dataset.features)
        shown = [1]  # a layout tells nothing on its way
        with tqdm(desc="Learning the law", unit="step") as bar:

            def show(step: int, cost: float) -> None:
                bar.set_postfix({"nats": f"{cost:.4f}"}, refresh=False)
                bar.update(step - shown[-1])
                shown.append(step)

            most = arguments.max_steps if arguments.max_steps > 0 else None
            model.fit_law(dataset.joint, most, seed=seed, threads=threads, callback=show)
        epochs, steps = 1, shown[-1]
    else:
        epochs = math.ceil(arguments.num_train_epochs)
        if resume:
            checkpoint = Path(resume if isinstance(resume, str) else get_last_checkpoint(str(output_dir / CHECKPOINTS)))
            done = int(checkpoint.name.rpartition("-")[2])
            model = type(model).from_pretrained(checkpoint)

        def save_epoch(epoch: int) -> None:
            model.save_pretrained(output_dir / CHECKPOINTS / f"checkpoint-{epoch}")
            shutil.rmtree(output_dir / CHECKPOINTS / f"checkpoint-{epoch - 1}", ignore_errors=True)

        model.fit_corpus(
            (dataset.corpus.items, dataset.corpus.starts),
            epochs=epochs,
            learning_rate=arguments.learning_rate,
            threads=threads,
            seed=seed,
            first_epoch=done,
            on_epoch_end=None if arguments.save_strategy == "no" else save_epoch,
        )
        steps = epochs * len(dataset)
    seconds = time.perf_counter() - start
    finish(model, processor)
    hub.export(model.eval(), output_dir, processor)
    loops = f"{threads} thread{'s' if threads > 1 else ''} of compiled loops"
    record = training_record(
        seed, seconds, {"train": len(dataset)}, epochs, steps, resumed=bool(resume), distributed_type=loops
    )
    write_records(recipe, record, output_dir)
    return output_dir


def mine_terms(
    recipe: Recipe,
    model: PreTrainedModel,
    data: DatasetDict,
    arguments: TrainingArguments,
    output_dir: Path,
    overwrite: bool = False,
) -> Path:
    """Count instead of train: the lexicon of all texts, its contrast with the background, and vectors of meaning."""
    if arguments.world_size > 1:
        raise LaunchError(f"a term miner counts in one process, not in {arguments.world_size}; for larger corpora see Spark")
    if arguments.resume_from_checkpoint:
        raise ValueError("training.resume_from_checkpoint: a term miner leaves no checkpoints, run it again with --overwrite")
    start = time.perf_counter()
    texts = mining_texts(data, recipe)
    model.fit(texts, background_texts(recipe) or None)
    settings = TermArguments(**recipe.processor)
    if settings.embedding_dim:
        train_term_vectors(model, texts, **vars(settings), threads=max(1, arguments.loop_threads), seed=arguments.seed)
    seconds = time.perf_counter() - start
    if overwrite:
        hub.clear_run(output_dir, CHECKPOINTS)
    hub.export(model.eval(), output_dir)
    split_sizes = {split: len(part) for split, part in data.items()}
    record = training_record(arguments.seed, seconds, split_sizes, settings.epochs if settings.embedding_dim else 1, steps=1)
    write_records(recipe, record, output_dir)
    return output_dir


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """Share of examples whose largest logit is that of their class."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def keep_freed_memory() -> None:
    """Let glibc keep freed gradients for the next step: handing their pages back and forth is a tenth of a CPU step."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 2**25)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def initialize(model: PreTrainedModel, dataset: Any, arguments: TrainingArguments) -> None:
    """Let a model set what depends on data, from the same seeded draw on every process."""
    if not hasattr(model, "initialize"):
        return
    if isinstance(dataset, (SequenceTable, PairTable)):
        model.fit_noise(dataset.item_counts(model.config.vocab_size), smoothing=1)
        return
    generator = torch.Generator().manual_seed(arguments.seed)
    rows = torch.randperm(len(dataset), generator=generator)[: arguments.initialize_examples].tolist()
    batch = torch.utils.data.default_collate(dataset.__getitems__(rows))
    model.initialize(batch[model.main_input_name], generator=generator)


def finish(model: PreTrainedModel, processor: Any) -> None:
    """What follows from the trained weights: vectors of parts of words."""
    if isinstance(model, MinEntropyEmbeddingForPreTraining) and model.config.num_subwords:
        WordVectors(model, processor).fit_subwords()


def training_record(
    seed: int, seconds: float, split_sizes: dict[str, int], epochs: float, steps: int, **others: Any
) -> dict[str, Any]:
    """What the card says of the training: time, steps, seed, command and the validation curve; of one process by default."""
    return {
        "command": command_line(),
        "seed": seed,
        "seconds": round(seconds, 1),
        "resumed": False,
        "epochs": epochs,
        "steps": steps,
        "best_step": None,
        "processes": 1,
        "distributed_type": "compiled loops",
        "split_sizes": split_sizes,
        "curve": [],
    } | others


def trainer_record(trainer: Trainer, seconds: float, split_sizes: dict[str, int], resumed: bool) -> dict[str, Any]:
    """The record of a run of the Trainer."""
    state = trainer.state
    return training_record(
        trainer.args.seed,
        seconds,
        split_sizes,
        state.epoch,
        state.global_step,
        resumed=resumed,
        best_step=state.best_global_step if trainer.args.load_best_model_at_end else None,
        processes=trainer.args.world_size,
        distributed_type=trainer.accelerator.distributed_type.value,
        curve=[
            {"epoch": entry["epoch"], "validation_loss": entry["eval_loss"]}
            for entry in state.log_history
            if "eval_loss" in entry
        ],
    )

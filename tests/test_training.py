"""Recipes and the way from a recipe to an exported folder, with the real Trainer on real digits."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from hfblog import hub, recipes, training

ROOT = Path(__file__).parent.parent

RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))

TINY = {
    "model": {
        "model_type": "nice_flow",
        "event_shape": [1, 8, 8],
        "num_levels": 17,
        "hidden_size": 16,
        "num_hidden_layers": 1,
    },
    "data": {"name": "digits", "test_size": 100, "validation_size": 60, "max_examples": 128},
    "training": {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "log_samples": 0,
    },
}


def write_recipe(folder: Path, **sections: dict) -> Path:
    content = {name: TINY.get(name, {}) | sections.get(name, {}) for name in {**TINY, **sections}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def tiny(folder: Path, *overrides: str, **sections: dict) -> recipes.Recipe:
    return recipes.load_recipe(write_recipe(folder, **sections), overrides)


def tiny_model(folder: Path, model: dict, *overrides: str, **sections: dict) -> recipes.Recipe:
    """A recipe of another model on the same data."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"data": TINY["data"], "training": TINY["training"], "model": model} | sections))
    return recipes.load_recipe(path, overrides)


# --- recipes ---


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_has_a_card(path):
    recipe = recipes.load_recipe(path)
    recipe.build_config()
    recipe.evaluation_arguments(**recipe.evaluation)
    if recipe.image_processor_class is None:
        recipe.text_arguments(**recipe.processor)
    assert recipe.card["title"] and recipe.card["summary"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", "unknown key training.lerning_rate; did you mean 'learning_rate'"),
        ("model.hiden_size=1", "unknown key model.hiden_size; did you mean 'hidden_size'"),
        ("data.validaton_size=1", "unknown key data.validaton_size; did you mean 'validation_size'"),
        ("evaluation.num_draw=1", "unknown key evaluation.num_draw; did you mean 'num_draws'"),
        ("processor.num_level=1", "unknown key processor.num_level; did you mean 'num_levels'"),
        ("card.sumary=x", "unknown key card.sumary; did you mean 'summary'"),
        ("trainig.seed=1", "unknown section 'trainig'.*did you mean 'training'"),
        ("seed=1", "an override has the form section.key=value, got 'seed=1'"),
        ("training.seed", "an override has the form section.key=value, got 'training.seed'"),
        ("model.model_type=nice_flwo", "unknown model.model_type 'nice_flwo'; did you mean 'nice_flow'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, override, message):
    with pytest.raises(ValueError, match=re.escape(message) if ".*" not in message else message):
        tiny(tmp_path, override)


def test_a_typo_in_the_file_is_refused_too(tmp_path):
    with pytest.raises(ValueError, match="unknown key training.weight_decai; did you mean 'weight_decay'"):
        tiny(tmp_path, training={"weight_decai": 0.1})
    with pytest.raises(ValueError, match="unknown section 'modle'.*did you mean 'model'"):
        tiny(tmp_path, modle={"x": 1})


def test_wrong_values_are_refused_with_the_accepted_ones(tmp_path):
    with pytest.raises(ValueError, match="prior='cauchy'.*'normal', 'logistic'"):
        tiny(tmp_path, "model.prior=cauchy").build_config()
    with pytest.raises(ValueError, match="hidden_size.*expected int, got str"):
        tiny(tmp_path, "model.hidden_size=many").build_config()
    with pytest.raises(ValueError, match="preset='blog'.*'paper', 'article'"):
        tiny(tmp_path, "model.preset=blog").build_config()
    with pytest.raises(ValueError, match="ema_decay=1.5"):
        training.build_training_arguments(tiny(tmp_path, "training.ema_decay=1.5"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"there is no recipe .*tine.yaml; in that folder: tiny.yaml"):
        recipes.load_recipe(tmp_path / "tine.yaml")


def test_numbers_and_words_are_read_as_yaml_1_2(tmp_path):
    recipe = tiny(
        tmp_path, "training.learning_rate=1e-3", "training.eval_strategy=no", "training.load_best_model_at_end=false"
    )
    assert recipe.training["learning_rate"] == 1e-3
    assert recipe.training["eval_strategy"] == "no"
    assert recipe.training["load_best_model_at_end"] is False
    arguments = training.build_training_arguments(recipe, tmp_path / "out")
    assert arguments.eval_strategy == "no" and not arguments.load_best_model_at_end


def test_a_saved_recipe_is_the_recipe(tmp_path):
    recipe = tiny(tmp_path, "model.hidden_size=20", card={"title": "Zahlen – 数字"})
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert recipes.load_recipe(tmp_path / "again.yaml") == recipe


# --- training ---


def test_train_exports_a_whole_folder_chosen_on_validation_data(tmp_path):
    folder = training.train(tiny(tmp_path, "training.log_samples=9"), tmp_path / "out")
    assert hub.check_folder(folder)["model_type"] == "nice_flow"
    assert not (folder / "training_args.bin").exists()
    assert "## Use" in (folder / "README.md").read_text() and "## Results" not in (folder / "README.md").read_text()
    record = json.loads((folder / "training.json").read_text())
    assert record["split_sizes"] == {"train": 128, "validation": 60, "test": 100}
    losses = [point["validation_loss"] for point in record["curve"]]
    assert len(losses) == 3 and losses[-1] < losses[0]
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert processor.num_levels == 17 and bool(model.initialized)
    best = folder / "checkpoints" / f"checkpoint-{record['best_step']}"
    assert record["best_step"] == 4 * (losses.index(min(losses)) + 1)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in load_file(best / "model.safetensors").items())
    assert len(list((folder / "checkpoints" / "samples").glob("*.png"))) == 3


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("setting", ["training.ema_decay=0.9", "training.bf16=true", "training.gradient_accumulation_steps=2"])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, setting):
    keep = ("training.save_total_limit=10", setting)
    whole = training.train(tiny(tmp_path, *keep), tmp_path / "whole")
    checkpoints = sorted((whole / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 3
    # what is left where the machine stops after the first epoch
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    checkpoints[0].rename(tmp_path / "cut" / "checkpoints" / checkpoints[0].name)
    resumed = training.train(tiny(tmp_path, *keep, "training.resume_from_checkpoint=true"), tmp_path / "cut")
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert json.loads((resumed / "training.json").read_text())["resumed"]


def test_average_of_the_weights_is_what_it_says():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    hook = training.EMAHook(optimizer, decay=0.6)
    average = None
    for step in range(1, 30):
        layer(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        now = layer.weight.detach().clone()
        decay = min(0.6, (1 + step) / (10 + step))
        average = now if average is None else decay * average + (1 - decay) * now
    with hook.averaged_weights():
        torch.testing.assert_close(layer.weight.detach(), average)
    assert torch.equal(layer.weight.detach(), now)


def test_the_average_is_evaluated_and_exported(tmp_path):
    settings = ("training.ema_decay=0.95", "training.num_train_epochs=4")
    folder = training.train(tiny(tmp_path, *settings), tmp_path / "out")
    record = json.loads((folder / "training.json").read_text())
    best = folder / "checkpoints" / f"checkpoint-{record['best_step']}"
    raw, exported = load_file(best / "model.safetensors"), weights(folder)
    assert any(not torch.equal(raw[name], exported[name]) for name in raw)
    # the exported weights give the validation loss by which they were chosen
    recipe = tiny(tmp_path)
    model = AutoModel.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = recipes.prepare_split(recipes.load_data_of(recipe), "validation", recipe, processor)
    with torch.no_grad():
        loss = model(rows[:]["pixel_values"]).loss.item()
    assert loss == pytest.approx(min(point["validation_loss"] for point in record["curve"]), abs=1e-3)


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path):
    """Without drawn noise, so that both runs see the same numbers."""
    model = {"dequantization": "none"}
    sgd = ("training.optim=sgd", "training.learning_rate=1e-4", "training.num_train_epochs=1")
    large = training.train(tiny(tmp_path, *sgd, model=model), tmp_path / "large")
    steps = ("training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=4")
    small = training.train(tiny(tmp_path, *sgd, *steps, model=model), tmp_path / "small")
    for name, value in weights(large).items():
        torch.testing.assert_close(weights(small)[name], value, rtol=1e-4, atol=1e-6)


def test_only_matrices_decay(tmp_path):
    recipe = tiny(tmp_path)
    trainer = training.Trainer(
        model=AutoModel.from_config(recipe.build_config()),
        args=training.build_training_arguments(recipe, tmp_path / "out"),
        eval_dataset=[],
    )
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert decayed and all(name.endswith("weight") and "scaling" not in name for name in decayed)


def test_a_lost_loss_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d+: lower training.learning_rate"):
        training.train(tiny(tmp_path, "training.learning_rate=1e20"), tmp_path / "out")


def test_tensorboard_gets_numbers_and_pictures(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    settings = ("training.report_to=tensorboard", "training.log_samples=4", "training.num_train_epochs=1")
    training.train(tiny(tmp_path, *settings), tmp_path / "out")
    events = EventAccumulator(str(next((tmp_path / "logs").rglob("events*")).parent)).Reload()
    assert "eval/loss" in events.Tags()["scalars"] and events.Tags()["images"] == ["samples"]


def test_compiled_training(tmp_path):
    settings = ("training.torch_compile=true", "training.torch_compile_backend=aot_eager", "training.num_train_epochs=1")
    folder = training.train(tiny(tmp_path, *settings), tmp_path / "out")
    plain = training.train(tiny(tmp_path, "training.num_train_epochs=1"), tmp_path / "plain")
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=1e-3, atol=1e-4)


# --- what must not happen ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=digts"], "no data set 'digts'.*did you mean 'digits'"),
        (["data.image_column=picture"], "no column 'picture'.*'image' \\(Image\\)"),
        (["data.image_column=label"], "column 'label' does not hold Image values"),
        (["model.event_shape=[1, 7, 8]"], "expected images of 7x8 pixels.*got 8x8"),
        (["model.event_shape=[9]"], "not that of grey or colour images"),
        (["model.permutation=reverse", "model.event_shape=[1, 3, 3]"], "even number of dimensions"),
        (["data.test_size=5000"], "test_size=5000 leaves no examples"),
        (["training.resume_from_checkpoint=true"], "nothing to resume"),
    ],
)
def test_bad_input_leaves_no_folder(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        training.train(tiny(tmp_path, *overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path):
    one = ("training.num_train_epochs=1",)
    folder = training.train(tiny(tmp_path, *one), tmp_path / "out")
    (folder / "notes.json").write_text("mine")
    with pytest.raises(ValueError, match="already holds a run.*resume_from_checkpoint=true.*--overwrite"):
        training.train(tiny(tmp_path, *one), folder)
    training.train(tiny(tmp_path, *one, "training.seed=3"), folder, overwrite=True)
    assert json.loads((folder / "training.json").read_text())["seed"] == 3
    assert (folder / "notes.json").read_text() == "mine"


def test_another_world_than_asked_for_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    training.check_world(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    training.check_world(2)
    with pytest.raises(training.LaunchError, match="started 2 processes, but this one sees a world of 1"):
        training.check_world(1)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(training.LaunchError, match="two_cpu_processes.yaml"):
        training.check_world(1)


# --- the launcher ---


def launch(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=cwd, capture_output=True, text=True)


def test_two_launched_processes_train_like_one(tmp_path):
    """scripts/accelerate/two_cpu_processes.yaml truly starts two, and they reach the weights of one."""
    recipe = write_recipe(tmp_path, model={"dequantization": "none"})
    common = ["scripts/train.py", recipe, "--no-evaluation", "training.optim=sgd", "training.learning_rate=1e-4"]
    runs = {
        1: ["--config_file", "scripts/accelerate/one_cpu.yaml", *common, "training.per_device_train_batch_size=32"],
        2: ["--config_file", "scripts/accelerate/two_cpu_processes.yaml", *common, "training.per_device_train_batch_size=16"],
    }
    for processes, arguments in runs.items():
        # port 0: any that is free
        done = launch("--main_process_port", 0, *arguments, "--output-dir", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / str(processes) / "training.json").read_text())["processes"] == processes
    for name, value in weights(tmp_path / "1").items():
        torch.testing.assert_close(weights(tmp_path / "2")[name], value, rtol=1e-4, atol=1e-6)


def test_a_launch_that_silently_starts_one_process_is_refused(tmp_path):
    recipe = write_recipe(tmp_path)
    done = launch("--cpu", "--num_processes", "2", "scripts/train.py", recipe, "--output-dir", tmp_path / "out")
    assert done.returncode != 0
    assert "error: accelerate launch was asked for several processes but started one" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_configurations_are_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines >= 1
    assert transformers.utils.is_accelerate_available()


def test_the_noise_of_estimated_log_determinants_is_logged(tmp_path):
    model = {"model_type": "invertible_resnet", "num_blocks": [1], "log_det_estimator": "roulette", "event_shape": [1, 8, 8]}
    for estimator, seen in (("roulette", True), ("exact", False)):
        recipe = tiny(tmp_path, "training.num_train_epochs=10", model=model | {"log_det_estimator": estimator})
        folder = training.train(recipe, tmp_path / estimator)
        state = max(folder.glob("checkpoints/*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
        history = json.loads(state.read_text())["log_history"]
        values = [entry["log_det_std"] for entry in history if "log_det_std" in entry]
        assert bool(values) == seen and all(0 < value < 100 for value in values)


def test_shifted_training_resumes_to_the_same_weights(tmp_path):
    model = {
        "model_type": "invertible_resnet",
        "auto_class": "AutoModelForImageClassification",
        "event_shape": [1, 8, 8],
        "block_type": "conv",
        "num_blocks": [1],
        "dequantization": "none",
        "hidden_size": 8,
    }
    overrides = ("training.random_shift=1", "training.num_train_epochs=3", "training.save_total_limit=5")
    whole = training.train(tiny(tmp_path, *overrides, model=model), tmp_path / "whole")
    shutil.copytree(whole / "checkpoints" / "checkpoint-4", tmp_path / "resumed" / "checkpoints" / "checkpoint-4")
    resume = (*overrides, "training.resume_from_checkpoint=true")
    resumed = training.train(tiny(tmp_path, *resume, model=model), tmp_path / "resumed")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)

"""What every registered model must do, whatever it is a model of. Each test stands for a way in which models break."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from model_examples import EXAMPLES
from torch.utils.data import Dataset
from transformers.dynamic_module_utils import get_imports

from hfblog import hub
from hfblog.recipes import registered_models

MODELS = [
    pytest.param(model_type, auto_name, id=f"{model_type}-{auto_name}")
    for model_type, classes in registered_models().items()
    for auto_name in classes
]

TRAINED = [param for param in MODELS if param.values[1] not in EXAMPLES[param.values[0]].without_loss]

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def build(model_type: str, auto_name: str, **changes) -> transformers.PreTrainedModel:
    """A fresh model with a configuration of its own, ready to be trained."""
    config = transformers.AutoConfig.for_model(model_type, **(EXAMPLES[model_type].settings(auto_name) | changes))
    torch.manual_seed(0)
    model = getattr(transformers, auto_name).from_config(config)
    if hasattr(model, "initialize"):
        model.initialize(EXAMPLES[model_type].batch(32, auto_name)[model.main_input_name])
    return model


def outputs(model: transformers.PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.eval()
    with torch.no_grad():
        return {name: value for name, value in model(**batch).items() if isinstance(value, torch.Tensor)}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Rows(Dataset):
    """A batch as a data set."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def __len__(self) -> int:
        return len(next(iter(self.batch.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.batch.items()}


def test_every_registered_model_has_an_example():
    assert set(registered_models()) == set(EXAMPLES)


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_save_and_load_are_bit_identical(model_type, auto_name, tmp_path):
    model = build(model_type, auto_name)
    batch = EXAMPLES[model_type].batch(4, auto_name)
    model.save_pretrained(tmp_path)
    loaded, info = getattr(transformers, auto_name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is type(model)
    assert_same(model.state_dict(), loaded.state_dict())
    assert_same(outputs(model, batch), outputs(loaded, batch))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_a_model_with_missing_weights_is_initialised_like_a_new_one(model_type, auto_name):
    model = build(model_type, auto_name)
    batch = EXAMPLES[model_type].batch(4, auto_name)
    config = copy.deepcopy(model.config)
    reference = getattr(transformers, auto_name).from_config(copy.deepcopy(config))
    loaded = type(model).from_pretrained(None, config=config, state_dict={})
    assert all(torch.isfinite(value).all() for value in outputs(loaded, batch).values())
    for (name, expected), value in zip(reference.state_dict().items(), loaded.state_dict().values(), strict=True):
        if expected.is_floating_point():
            assert value.double().std(correction=0) == pytest.approx(expected.double().std(correction=0).item(), rel=0.5), name
        else:
            assert torch.equal(value, expected), name


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_all_state_is_in_the_checkpoint(model_type, auto_name):
    with torch.device("meta"):
        model = getattr(transformers, auto_name).from_config(
            transformers.AutoConfig.for_model(model_type, **EXAMPLES[model_type].settings(auto_name))
        )
    saved = set(model.state_dict())
    for name, module in model.named_modules():
        if type(module).__module__.startswith("transformers."):
            continue  # an encoder of transformers' own refills its buffers when it is loaded
        buffers = {f"{name}.{key}".lstrip(".") for key, _ in module.named_buffers(recurse=False)}
        assert buffers <= saved, buffers - saved
        loose = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not loose, f"{name} holds tensors that are neither parameters nor buffers: {loose}"


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_loads_in_lower_precision(model_type, auto_name, tmp_path):
    build(model_type, auto_name).save_pretrained(tmp_path)
    loaded = getattr(transformers, auto_name).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert any(parameter.dtype == torch.bfloat16 for parameter in loaded.parameters())
    result = outputs(loaded, EXAMPLES[model_type].batch(4, auto_name))
    assert all(torch.isfinite(value).all() for value in result.values())


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_every_parameter_gets_a_finite_gradient(model_type, auto_name):
    model = build(model_type, auto_name).train()
    output = model(**EXAMPLES[model_type].batch(8, auto_name))
    has_loss = auto_name not in EXAMPLES[model_type].without_loss
    objective = output.loss if has_loss else sum(value.square().sum() for value in output.values() if torch.is_tensor(value))
    objective.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("model_type", "auto_name"), TRAINED)
def test_output_is_a_model_output_with_the_loss_first(model_type, auto_name):
    model = build(model_type, auto_name)
    batch = EXAMPLES[model_type].batch(4, auto_name)
    output = model(**batch)
    assert isinstance(output, transformers.utils.ModelOutput)
    assert next(iter(output)) == "loss" and output.loss.ndim == 0
    as_tuple = model.eval()(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], model(**batch).loss)


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_a_row_does_not_depend_on_its_batch(model_type, auto_name):
    model = build(model_type, auto_name)
    batch = {name: value for name, value in EXAMPLES[model_type].batch(4, auto_name).items() if not name.startswith("noise")}
    together = outputs(model, batch)
    for row in range(4):
        alone = outputs(model, {name: values[row : row + 1] for name, values in batch.items()})
        for name, value in alone.items():
            if value.ndim:
                torch.testing.assert_close(value[0], together[name][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model_type", "auto_name"), TRAINED)
def test_compiles_to_one_graph(model_type, auto_name):
    model = build(model_type, auto_name).train()
    batch = EXAMPLES[model_type].batch(4, auto_name)
    expected = model(**batch).loss
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss
    torch.testing.assert_close(compiled, expected)


@pytest.mark.parametrize("model_type", EXAMPLES)
def test_configuration_round_trip_and_refusals(model_type, tmp_path):
    example = EXAMPLES[model_type]
    config = transformers.AutoConfig.for_model(model_type, **example.config)
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config) and loaded.to_diff_dict() == config.to_diff_dict()
    for wrong in example.wrong:
        with pytest.raises(Exception, match=next(iter(wrong))):
            transformers.AutoConfig.for_model(model_type, **(example.config | wrong))


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_saved_code_demands_nothing_but_transformers_brings(model_type, auto_name, tmp_path):
    """The Hub's remote code check looks at every file, wherever an import stands; those in try blocks are let go."""
    hub.export(build(model_type, auto_name), tmp_path, EXAMPLES[model_type].processor(auto_name))
    for file in tmp_path.glob("*.py"):
        assert set(get_imports(file)) <= {"PIL", "huggingface_hub", "numpy", "tokenizers", "torch", "transformers"} | set(
            sys.stdlib_module_names
        ), file.name


@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_saved_configuration_names_every_auto_class(model_type, auto_name, tmp_path):
    build(model_type, auto_name).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", *registered_models()[model_type]} <= set(auto_map)
    hub.check_folder(tmp_path)
    # what a Hub repository adds to the references must not stay when the model is saved elsewhere
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {name: f"somebody/else--{reference}" for name, reference in auto_map.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    getattr(transformers, auto_name).from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == auto_map
    hub.check_folder(tmp_path / "again")


# --- the stock Trainer ---


def stock_trainer(model, folder: Path, rows: Rows, **settings) -> transformers.Trainer:
    defaults = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    }
    arguments = transformers.TrainingArguments(output_dir=str(folder), **(defaults | settings))
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize(("model_type", "auto_name"), TRAINED)
def test_stock_trainer_trains_and_resumes_to_the_same_weights(model_type, auto_name, tmp_path):
    # Without stated noise: what the model draws itself must come back after an interruption, too.
    batch = {name: value for name, value in EXAMPLES[model_type].batch(40, auto_name).items() if not name.startswith("noise")}
    whole = stock_trainer(build(model_type, auto_name), tmp_path / "whole", Rows(batch))
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    for step in (3, 5):  # in the middle and at the end of an epoch of five steps
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        if not checkpoint.exists():
            continue
        resumed = stock_trainer(build(model_type, auto_name), tmp_path / f"resumed-{step}", Rows(batch))
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert_same(whole.model.state_dict(), resumed.model.state_dict())


TWO_PROCESSES = """
import os, sys
import torch, transformers
import hfblog
sys.path.insert(0, sys.argv[1])
from test_contracts import Rows, build
from model_examples import EXAMPLES
from pathlib import Path

model_type, auto_name, folder, batch_size = sys.argv[2:6]
arguments = transformers.TrainingArguments(
    output_dir=folder, per_device_train_batch_size=int(batch_size), max_steps=3, save_strategy="no", report_to="none",
    use_cpu=True, disable_tqdm=True, seed=1, optim="sgd", learning_rate=1e-3, max_grad_norm=0.0,
    ddp_find_unused_parameters=False,
)
rows = Rows(EXAMPLES[model_type].batch(24, auto_name))
trainer = transformers.Trainer(model=build(model_type, auto_name), args=arguments, train_dataset=rows)
trainer.train()
if trainer.is_world_process_zero():
    torch.save({"world": arguments.world_size, "weights": trainer.model.state_dict()}, Path(folder) / "result.pt")
if torch.distributed.is_initialized():
    torch.distributed.barrier()  # nobody hangs up on a process that still talks
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is written; threads that the group leaves may abort an interpreter that ends
"""


@pytest.mark.parametrize(("model_type", "auto_name"), TRAINED)
def test_two_processes_give_the_weights_of_one(model_type, auto_name, tmp_path):
    import os
    import subprocess
    import sys

    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    results = []
    for processes, batch_size in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(script)]
        command += [str(Path(__file__).parent), model_type, auto_name, str(folder), str(batch_size)]
        env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(folder / "result.pt"))
    one, two = results
    assert (one["world"], two["world"]) == (1, 2)
    start = build(model_type, auto_name).state_dict()
    moved = 0
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6, msg=name)
        moved += int(not torch.equal(start[name], value))
    assert moved > 0


# --- fresh processes, with the package and without ---

LOAD_AND_RUN = """
import sys, torch, transformers
if sys.argv[5] == "with":
    import hfblog
model = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], trust_remote_code=sys.argv[5] == "without")
batch = torch.load(sys.argv[3])
with torch.no_grad():
    output = model(**batch)
torch.save({name: value for name, value in output.items() if isinstance(value, torch.Tensor)}, sys.argv[4])
if sys.argv[5] == "without":
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    again = sys.argv[4] + "-saved"
    model.save_pretrained(again)
    from pathlib import Path
    if Path(sys.argv[2], "preprocessor_config.json").exists():
        transformers.AutoImageProcessor.from_pretrained(sys.argv[2], trust_remote_code=True).save_pretrained(again)
    have = {p.name for p in Path(again).glob("*.py")}
    need = {p.name for p in Path(sys.argv[2]).glob("*.py")}
    assert need <= have, need - have
    getattr(transformers, sys.argv[1]).from_pretrained(again, trust_remote_code=True)

    from huggingface_hub import HfApi
    HfApi().create_repo("owner/model")
    HfApi().upload_folder(repo_id="owner/model", folder_path=sys.argv[2])
    pulled = getattr(transformers, sys.argv[1]).from_pretrained("owner/model", trust_remote_code=True)
    with torch.no_grad():
        for name, value in pulled(**batch).items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, output[name]), name
"""


@pytest.mark.parametrize("installed", ["with", "without"])
@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_loads_in_a_fresh_process(model_type, auto_name, installed, tmp_path, run_python, hub_server):
    """Bit-identical with hfblog installed, and as remote code where it is not: from the saved folder alone, from the Hub."""
    model = build(model_type, auto_name)
    batch = EXAMPLES[model_type].batch(4, auto_name)
    hub.export(model, tmp_path / "model", EXAMPLES[model_type].processor(auto_name))
    torch.save(batch, tmp_path / "batch.pt")
    run_python(
        LOAD_AND_RUN,
        auto_name,
        tmp_path / "model",
        tmp_path / "batch.pt",
        tmp_path / "output.pt",
        installed,
        env=hub_server.env(tmp_path / "home"),
        hfblog_absent=installed == "without",
    )
    assert_same(outputs(model, batch), torch.load(tmp_path / "output.pt"))


# --- on an accelerator ---

needs_accelerator = pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")


@needs_accelerator
@pytest.mark.parametrize(("model_type", "auto_name"), MODELS)
def test_gives_the_same_on_an_accelerator(model_type, auto_name):
    model, batch = build(model_type, auto_name), EXAMPLES[model_type].batch(4, auto_name)
    expected, device = outputs(model, batch), torch.accelerator.current_accelerator()
    found = outputs(model.to(device), {name: values.to(device) for name, values in batch.items()})
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.device.type == device.type
        torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-4, atol=1e-4)


@needs_accelerator
@pytest.mark.parametrize(("model_type", "auto_name"), TRAINED)
def test_stock_trainer_trains_in_bfloat16_on_an_accelerator(model_type, auto_name, tmp_path):
    batch = EXAMPLES[model_type].batch(40, auto_name)
    trainer = stock_trainer(build(model_type, auto_name), tmp_path, Rows(batch), use_cpu=False, bf16=True)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert next(trainer.model.parameters()).device.type == torch.accelerator.current_accelerator().type

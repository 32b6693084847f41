"""What the README says, done: its snippets, its commands, its numbers."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_text
from test_contrastive_recipes import DOUBLE_WELL, ON_POINTS, tiny_words
from test_training import tiny, tiny_model

import hfblog.corpora
import hfblog.data
import hfblog.models.bottleneck as bottleneck
import hfblog.models.capsule as capsule
import hfblog.models.conditional_ln_bert as conditional
import hfblog.models.contrastive as contrastive
import hfblog.models.flow as flow
import hfblog.models.term_miner as term_miner
from hfblog import hub, recipes, training

ROOT = Path(__file__).parent.parent

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = sorted((ROOT / "model_cards").glob("*/metrics.json"))


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.train(tiny(tmp_path, "training.num_train_epochs=1"), "outputs/nice_flow_digits")
    invertible = {"model_type": "invertible_resnet", "num_blocks": [2]}
    recipe = tiny(tmp_path, "training.num_train_epochs=1", model=invertible)
    training.train(recipe, "outputs/invertible_resnet_digits")
    capsules = {
        "model_type": "capsule",
        "auto_class": "AutoModelForImageClassification",
        "conv_channels": [4],
        "pool_after": None,
    }
    training.train(tiny_model(tmp_path, capsules, "training.num_train_epochs=1"), "outputs/capsule_digits")
    training.train(test_text.tiny(tmp_path, "training.num_train_epochs=1"), "outputs/conditional_ln_bert_reviews")
    bottleneck = {
        "model_type": "vib",
        "auto_class": "AutoModelForImageClassification",
        "encoder_type": "mlp",
        "image_size": 8,
    }
    training.train(tiny_model(tmp_path, bottleneck, "training.num_train_epochs=1"), "outputs/vib_digits")
    training.train(
        tiny_model(tmp_path, DOUBLE_WELL, data={"name": "double-well"}, training=ON_POINTS), "outputs/nce_double_well"
    )
    training.train(tiny_words(tmp_path), "outputs/nce_lm_news")
    snippets = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(snippets) >= 3
    for snippet in snippets:
        exec(snippet, {})


@pytest.mark.parametrize(
    "module",
    [
        capsule.configuration_capsule,
        capsule.modeling_capsule,
        flow.configuration_invertible_resnet,
        flow.modeling_invertible_resnet,
        flow.configuration_nice_flow,
        flow.modeling_nice_flow,
        flow.image_processing_flow,
        bottleneck.configuration_vae,
        bottleneck.configuration_vib,
        bottleneck.modeling_vae,
        bottleneck.modeling_vib,
        bottleneck.variational_bottleneck,
        conditional.configuration_conditional_ln_bert,
        conditional.modeling_conditional_ln_bert,
        conditional.tokenization_conditional_ln_bert,
        contrastive.affinities,
        contrastive.configuration_min_entropy_embedding,
        contrastive.configuration_nce_density,
        contrastive.configuration_nce_lm,
        contrastive.library_layout,
        contrastive.map_equation,
        contrastive.modeling_min_entropy_embedding,
        contrastive.modeling_nce_density,
        contrastive.modeling_nce_lm,
        contrastive.nce_loss,
        contrastive.noise_distributions,
        contrastive.phrases,
        contrastive.subwords,
        contrastive.tokenization_words,
        contrastive.word_vectors,
        hfblog.corpora,
        hfblog.data,
        term_miner.alphabet,
        term_miner.configuration_term_miner,
        term_miner.contrast_scores,
        term_miner.discovery,
        term_miner.growth,
        term_miner.modeling_term_miner,
        term_miner.ngram_counts,
        term_miner.rules,
        term_miner.tokenization_term_miner,
    ],
    ids=lambda module: module.__name__,
)
def test_docstring_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_commands_name_files_that_exist():
    for path in re.findall(r"scripts/[\w/.]+\.(?:py|yaml)", README):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\(((?:model_cards|scripts)[^)]*)\)", README):
        assert (ROOT / path).is_file(), path
    assert "pip install torch==2.13.0 -e '.[test]' && pytest -n auto" in README


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_cards_and_readme_state_what_was_measured(path):
    metrics = json.loads(path.read_text())
    assert path.parent.name == metrics["name"]
    assert (ROOT / "scripts" / "recipes" / f"{metrics['name']}.yaml").is_file()
    assert metrics["settings"]["max_examples"] is None and metrics["data"]["split"] == "test"
    card = path.with_name("README.md").read_text(encoding="utf-8")
    for key, result in metrics["results"].items():
        number = hub.format_number(result["value"])
        assert f"**{number}**" in card, key
        assert number in README, key
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card):
        assert (path.parent / picture).stat().st_size < 200 * 1024


def test_every_recipe_has_a_card():
    recipes = {path.stem for path in (ROOT / "scripts" / "recipes").glob("*.yaml")}
    recipes.remove("conditional_ln_bert_reviews_pretrained")  # starts from a checkpoint on the Hub: nothing measured here
    recipes.remove("invertible_resnet_cifar10")  # needs an accelerator: nothing measured here
    assert {path.parent.name for path in CARDS} == recipes


def test_command_line_tools_end_to_end(tmp_path):
    """evaluate, sample and push as a user types them; a wrong word gives one line, not a traceback."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    folder = training.train(tiny(tmp_path, "training.num_train_epochs=1"), tmp_path / "out")
    done = run("scripts/evaluate.py", folder, "num_draws=2")
    assert done.returncode == 0, done.stderr
    assert "log-likelihood (nats)" in done.stdout and "push_to_hub.py" in done.stdout
    done = run("scripts/sample.py", folder, "--num-samples", 4, "--output", tmp_path / "grid.png")
    assert done.returncode == 0 and (tmp_path / "grid.png").is_file(), done.stderr
    for arguments, message in (
        (["scripts/evaluate.py", folder, "num_drows=2"], "error: unknown key evaluation.num_drows; did you mean 'num_draws'?"),
        (["scripts/evaluate.py", tmp_path], f"error: {tmp_path} is not a saved model: it has no config.json"),
        (["scripts/push_to_hub.py", tmp_path, "me/model"], f"error: {tmp_path} is not a saved model: it has no config.json"),
        (["scripts/train.py", tmp_path / "tiny.yaml", "model.hiden_size=3"], "error: unknown key model.hiden_size"),
        (["scripts/train.py", tmp_path / "tiny.yaml", "--data", "digts"], "error: there is no data set 'digts'"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_evaluation_is_documented():
    for arguments in (
        recipes.ClassificationEvaluationArguments,
        recipes.DensityEvaluationArguments,
        recipes.GenerationEvaluationArguments,
        recipes.LanguageModelEvaluationArguments,
        recipes.NCEDensityEvaluationArguments,
    ):
        documented = recipes.EvaluationArguments.__doc__ + arguments.__doc__
        for name in vars(arguments()):
            assert f"{name}:" in documented

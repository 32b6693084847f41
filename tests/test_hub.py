"""Folders, cards and the Hub: the real client against a loopback server that speaks the Hub's protocol."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import GITATTRIBUTES
from huggingface_hub import ModelCard
from transformers import AutoModel

from hfblog import FlowImageProcessor, NiceFlowConfig, NiceFlowModel, hub

CONFIG = {"event_shape": (1, 8, 8), "num_levels": 17, "hidden_size": 12, "num_hidden_layers": 1, "coupling_init": "glorot"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = NiceFlowModel(NiceFlowConfig(**CONFIG))
    model.initialize(torch.randint(17, (32, 1, 8, 8)) / 16)
    processor = FlowImageProcessor(size={"height": 8, "width": 8}, num_levels=17)
    return hub.export(model, tmp_path / "nice_flow_tiny", processor)


METRICS = {
    "name": "nice_flow_tiny",
    "num_parameters": 1234,
    "data": {"name": "digits", "split": "test", "num_examples": 10, "description": "10 images of the test split."},
    "results": {
        "log_likelihood": {"label": "log-likelihood", "unit": "nats", "value": 12.3456, "stderr": 0.5},
        "bits_per_dim": {"label": "bits/dim", "unit": "17 levels", "value": 3.5},
    },
    "comparisons": [
        {"label": "uniform", "log_likelihood": 0.0, "bits_per_dim": 4.087},
        {"label": "somebody", "log_likelihood": 11.0, "source": "a paper"},
    ],
    "notes": ["A note."],
    "exactness": [{"label": "largest inverse error, float32", "value": 3e-7}],
    "pictures": [{"file": "samples.png", "caption": "Samples"}],
    "settings": {"seed": 0},
    "training": {
        "command": "accelerate launch scripts/train.py x.yaml",
        "seed": 0,
        "seconds": 30.0,
        "resumed": False,
        "epochs": 3.0,
        "steps": 30,
        "best_step": 20,
        "processes": 1,
        "split_sizes": {"train": 100, "validation": 10, "test": 10},
        "curve": [],
    },
    "command": "python scripts/evaluate.py x",
    "hardware": "2 cores",
    "versions": {"python": "3.11"},
    "date": "2026-01-01",
}


# --- folders ---


def test_export_writes_a_whole_folder(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= names
    assert {"modeling_nice_flow.py", "configuration_nice_flow.py", "modeling_flow.py", "pipeline_flow.py"} <= names
    assert {"image_processing_flow.py", "configuration_flow.py"} <= names
    assert hub.check_folder(folder)["model_type"] == "nice_flow"


def test_export_keeps_a_card_somebody_wrote(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine")
    hub.export(AutoModel.from_pretrained(folder), folder)
    assert (folder / "README.md").read_text().endswith("mine")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("modeling_nice_flow.py", "lacks code.*modeling_nice_flow.py"),
    ],
)
def test_check_folder_names_what_is_missing(folder, remove, message):
    (folder / remove).unlink()
    with pytest.raises(ValueError, match=message):
        hub.check_folder(folder)


def test_check_folder_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        hub.check_folder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        hub.check_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no model_type"):
        hub.check_folder(tmp_path)


# --- cards ---


def test_card_has_valid_metadata_and_the_measured_numbers(folder):
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    recipe = "name: nice_flow_tiny\ncard: {title: A tiny flow, datasets: [ylecun/mnist]}\n"
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "samples.png").write_bytes(b"")
    card = ModelCard.load(hub.write_card(folder))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and "hfblog" in data["tags"]
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert data["license"] == "apache-2.0" and data["datasets"] == ["ylecun/mnist"]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"log_likelihood": 12.3456, "bits_per_dim": 3.5}
    assert "| **this model** | **12.35** ± 0.500 | **3.500** |" in card.text
    assert "| uniform | 0 | 4.087 |" in card.text and "| somebody | 11 |  |" in card.text
    assert "somebody: a paper" in card.text and "![samples](samples.png)" in card.text
    assert "30 seconds" in card.text and "{{" not in card.text and "More Information Needed" not in card.text


def test_card_without_metrics_states_none(folder):
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.eval_results is None
    assert "## Results" not in text and "## Use" in text


def test_the_cards_snippet_runs_where_hfblog_is_not_installed(folder, run_python):
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S).group(1)
    assert 'folder = "nice_flow"' in snippet
    code = snippet.replace('folder = "nice_flow"', f"folder = {str(folder)!r}")
    code += "\nassert len(images) == 16 and reconstruction.shape == (16, 1, 8, 8)\n"
    code += "assert (reconstruction - model.dequantize(pixel_values)).abs().max() < 1e-5\n"
    run_python(code, hfblog_absent=True)


def test_publish_card_copies_what_was_measured(folder, tmp_path):
    with pytest.raises(ValueError, match="evaluate it first"):
        hub.publish_card(folder, tmp_path / "cards")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    target = hub.publish_card(folder, tmp_path / "cards")
    assert {path.name for path in target.iterdir()} == {"README.md", "metrics.json"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3, "3"),
        (12345, "12,345"),
        (2.7221, "2.722"),
        (1980.5, "1,980.50"),
        (3e-7, "3.0e-07"),
        ("x", "x"),
        (-12.345, "-12.35"),
    ],
)
def test_format_number(value, text):
    assert hub.format_number(value) == text


# --- the Hub ---

PUSH = """
import sys
from hfblog import hub
commit = hub.push(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
print(commit.oid)
"""

PULL = """
import sys, torch
from hfblog import hub
from transformers import AutoImageProcessor, AutoModel
repo_id, reference, revision = sys.argv[1:4]
if revision == "None":
    revision = None
folder = hub.pull(repo_id, revision=revision)
local = AutoModel.from_pretrained(reference)
x = torch.rand(3, 1, 8, 8)
for source, arguments in ((folder, {}), (repo_id, {"revision": revision} if revision else {})):
    model = AutoModel.from_pretrained(source, **arguments)
    assert torch.equal(model.log_prob(x), local.log_prob(x))
    AutoImageProcessor.from_pretrained(source, **arguments)
print(folder)
"""

REMOTE = """
import sys, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline
repo_id, expected = sys.argv[1:3]
model = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
assert torch.equal(model.log_prob(torch.full((2, 1, 8, 8), 0.3)), torch.load(expected))
config = AutoConfig.from_pretrained(repo_id, trust_remote_code=True)
assert type(AutoModel.from_config(config, trust_remote_code=True)).__name__ == "NiceFlowModel"
AutoImageProcessor.from_pretrained(repo_id, trust_remote_code=True)
images = pipeline(model=repo_id, trust_remote_code=True)(2, seed=0)
assert len(images) == 2 and images[0].size == (8, 8)
model.push_to_hub(repo_id + "-again")
again = AutoModel.from_pretrained(repo_id + "-again", trust_remote_code=True)
assert torch.equal(again.log_prob(torch.full((2, 1, 8, 8), 0.3)), torch.load(expected))
"""


def test_push_pull_and_push_again(folder, tmp_path, hub_server, run_python):
    env = hub_server.env(tmp_path / "home")
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "model.safetensors").write_bytes(b"not for the Hub")
    (folder / "training_args.bin").write_bytes(b"neither")
    run_python(PUSH, folder, "owner/tiny", "{}", env=env)
    expected = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    expected.pop("training_args.bin")
    assert hub_server.files("owner/tiny") == expected | {".gitattributes": GITATTRIBUTES}
    assert not hub_server.is_private("owner/tiny")
    pulled = Path(run_python(PULL, "owner/tiny", folder, "None", env=env).splitlines()[-1])
    assert {path.name: path.read_bytes() for path in pulled.iterdir() if path.name in expected} == expected

    # a second push is one more commit, and an old one stays readable by its id
    first = hub_server.commits("owner/tiny")[0].oid
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nmore\n")
    run_python(PUSH, folder, "owner/tiny", "{}", env=env)
    assert hub_server.files("owner/tiny")["README.md"].endswith(b"more\n")
    assert not hub_server.files("owner/tiny", first)["README.md"].endswith(b"more\n")

    run_python(PUSH, folder, "owner/tiny", "{'revision': 'trial'}", env=env)
    run_python(PULL, "owner/tiny", folder, "trial", env=env)
    run_python(PULL, "owner/tiny", folder, first, env=env)


def test_remote_code_from_the_hub_runs_without_hfblog(folder, tmp_path, hub_server, run_python):
    env = hub_server.env(tmp_path / "home")
    run_python(PUSH, folder, "owner/tiny", "{}", env=env)
    with torch.no_grad():
        torch.save(AutoModel.from_pretrained(folder).log_prob(torch.full((2, 1, 8, 8), 0.3)), tmp_path / "expected.pt")
    run_python(REMOTE, "owner/tiny", tmp_path / "expected.pt", env=env, hfblog_absent=True)


def refused(code: str, arguments: list[str], env: dict[str, str], tmp_path: Path) -> str:
    """The last line of what a failing process says."""
    script = tmp_path / "refused.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_private_repositories_need_their_token(folder, tmp_path, hub_server, run_python):
    owner, other = hub_server.env(tmp_path / "home"), hub_server.env(tmp_path / "other", token="hf_other")
    run_python(PUSH, folder, "owner/secret", "{'private': True}", env=owner)
    assert hub_server.is_private("owner/secret")
    run_python(PULL, "owner/secret", folder, "None", env=owner)
    assert "RepositoryNotFoundError" in refused(PULL, ["owner/secret", folder, "None"], other, tmp_path)
    anonymous = hub_server.env(tmp_path / "nobody", token=None)
    assert "RepositoryNotFoundError" in refused(PULL, ["owner/secret", folder, "None"], anonymous, tmp_path)
    assert re.search("LocalTokenNotFoundError|401", refused(PUSH, [folder, "owner/new", "{}"], anonymous, tmp_path))
    assert re.search("403|Forbidden", refused(PUSH, [folder, "owner/new", "{}"], other, tmp_path))
    assert hub_server.repo_ids() == ["owner/secret"]


def test_a_private_push_never_lands_in_a_public_repository(folder, tmp_path, hub_server):
    hub_server.add_repo("owner/open")
    before = hub_server.files("owner/open")
    env = hub_server.env(tmp_path / "home")
    message = refused(PUSH, [folder, "owner/open", "{'private': True}"], env, tmp_path)
    assert "owner/open exists and is public, not private: nothing was uploaded" in message
    assert hub_server.files("owner/open") == before


def test_missing_repository_revision_and_half_a_model(folder, tmp_path, hub_server):
    env = hub_server.env(tmp_path / "home")
    assert "RepositoryNotFoundError" in refused(PULL, ["owner/nothing", folder, "None"], env, tmp_path)
    hub_server.add_repo("owner/half", {"config.json": b'{"model_type": "nice_flow"}'})
    assert "RevisionNotFoundError" in refused(PULL, ["owner/half", folder, "no-such-branch"], env, tmp_path)
    assert "no weights" in refused(PULL, ["owner/half", folder, "None"], env, tmp_path)
    assert "is not a saved model" in refused(PUSH, [tmp_path, "owner/new", "{}"], env, tmp_path)
    assert "owner/new" not in hub_server.repo_ids()


def test_a_connection_that_drops_half_way(folder, tmp_path, hub_server, run_python):
    env = hub_server.env(tmp_path / "home")
    hub_server.drop_connection("POST", "/commit/main", after_bytes=100)
    refused(PUSH, [folder, "owner/tiny", "{}"], env, tmp_path)
    assert set(hub_server.files("owner/tiny")) == {".gitattributes"}  # no half of a commit
    hub_server.clear_faults()
    run_python(PUSH, folder, "owner/tiny", "{}", env=env)

    hub_server.drop_connection("GET", "model.safetensors", after_bytes=1000, times=1)
    run_python(PULL, "owner/tiny", folder, "None", env=env)  # the client tries again
    fresh = hub_server.env(tmp_path / "fresh")
    hub_server.drop_connection("GET", "model.safetensors", after_bytes=1000, times=1, reset=True)
    refused(PULL, ["owner/tiny", folder, "None"], fresh, tmp_path)
    hub_server.clear_faults()
    run_python(PULL, "owner/tiny", folder, "None", env=fresh)  # and nothing of the first try is in the way

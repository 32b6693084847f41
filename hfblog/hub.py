"""Saved folders, their cards, and the way to the Hub and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData, snapshot_download
from transformers import PreTrainedModel

CARD_KEYS = ("title", "summary", "datasets", "license", "language", "tags", "published", "notes", "citation")
CARD_FILE, METRICS_FILE = "README.md", "metrics.json"
# What a run leaves beside the model and nobody wants to download.
NOT_UPLOADED = ("checkpoints/**", "runs/**", "training_args.bin", ".cache/**")

PIPELINE_TAGS = {
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForCausalLM": "text-generation",
}
# Models whose Auto class tells no task.
MODEL_TAGS = {"vae": "unconditional-image-generation"}


def export(model: PreTrainedModel, folder: str | Path, processor: Any = None) -> Path:
    """Write a model as a whole folder: weights, configuration, code, processor or tokenizer, and a card.

    ``model.save_pretrained`` writes the first three; this adds the rest, and checks that all that the configuration names
    is there. A card that stands in the folder is kept.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    if not (folder / CARD_FILE).exists():
        write_card(folder)
    check_folder(folder)
    return folder


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The configuration of a saved model's folder, after a look whether the folder is whole.

    Raises:
        ValueError: the folder is not there, is not a model, or lacks a file; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder} is not a saved model: it has no config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{config_file} is not valid JSON: {error}") from error
    if "model_type" not in config:
        raise ValueError(f"{config_file} names no model_type")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no weights (*.safetensors)")
    needed = {f"{reference.split('--')[-1].split('.')[0]}.py" for reference in config.get("auto_map", {}).values()}
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder} lacks code that its config.json names: {', '.join(missing)}")
    return config


def clear_run(folder: Path, checkpoints: str) -> None:
    """Remove what an earlier run left in its output folder; all other files stay."""
    shutil.rmtree(folder / checkpoints, ignore_errors=True)
    names = ("config.json", "preprocessor_config.json", "recipe.yaml", "training.json", METRICS_FILE, CARD_FILE)
    for path in (*folder.glob("model*.safetensors*"), *(folder / name for name in names)):
        path.unlink(missing_ok=True)


# --- cards ---


def write_card(folder: str | Path) -> Path:
    """Render ``README.md`` of a saved folder from its config.json, recipe.yaml and metrics.json."""
    folder = Path(folder)
    recipe_file = folder / "recipe.yaml"
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8")) if recipe_file.exists() else {}
    metrics_file = folder / METRICS_FILE
    metrics = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.exists() else None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path = folder / CARD_FILE
    path.write_text(render_card(config, recipe, metrics, {p.name for p in folder.glob("*.png")}), encoding="utf-8")
    return path


def render_card(config: dict[str, Any], recipe: dict[str, Any], metrics: dict[str, Any] | None, pictures: set[str]) -> str:
    """The text of a model card with valid metadata: nothing in it was typed that could have been measured."""
    card = recipe.get("card", {})
    name = recipe.get("name", config["model_type"])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hfblog", "."), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": format_number, "duration": format_duration}
    body = environment.get_template("card_template.md").render(
        name=name, card=card, config=config, metrics=metrics, pictures=pictures, pipeline_tag=pipeline_tag(config)
    )
    return f"---\n{card_data(config, recipe, metrics).to_yaml()}\n---\n\n{body}"


def card_data(config: dict[str, Any], recipe: dict[str, Any], metrics: dict[str, Any] | None) -> ModelCardData:
    card = recipe.get("card", {})
    data = ModelCardData(
        language=card.get("language"),
        license=card.get("license", "apache-2.0"),
        library_name="transformers",
        pipeline_tag=pipeline_tag(config),
        tags=["hfblog", config["model_type"], *card.get("tags", [])],
        datasets=card.get("datasets"),
    )
    if metrics is not None:
        # a local copy of a Hub data set goes by the name that others know
        dataset = card["datasets"][0] if card.get("datasets") else Path(metrics["data"]["name"]).name
        # Written out rather than through EvalResult: that class has no place for an error or a unit.
        results = [
            {"type": key, "name": f"{result['label']} ({result['unit']})", "value": result["value"]}
            for key, result in metrics["results"].items()
        ]
        data["model-index"] = [
            {
                "name": recipe.get("name", config["model_type"]),
                "results": [
                    {
                        "task": {"type": pipeline_tag(config) or "other"},
                        "dataset": {"type": dataset, "name": dataset, "split": metrics["data"]["split"]},
                        "metrics": results,
                    }
                ],
            }
        ]
    return data


def pipeline_tag(config: dict[str, Any]) -> str | None:
    """The Hub's task for a saved configuration: that of the architecture that was saved, or else of its Auto classes."""
    references = config.get("auto_map", {})
    saved = [name for name, reference in references.items() if reference.split(".")[-1] in (config.get("architectures") or [])]
    for auto_class in saved or references:
        if auto_class in PIPELINE_TAGS:
            return PIPELINE_TAGS[auto_class]
    for task in config.get("custom_pipelines", {}):
        return task
    return MODEL_TAGS.get(config["model_type"])


def format_number(value: Any) -> str:
    """Four significant digits or two decimals, and the exponent where it is small."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or value == int(value):
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.1e}"


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def publish_card(folder: str | Path, cards_dir: str | Path = "model_cards") -> Path:
    """Copy what was measured (card, metrics, pictures) from a saved folder to ``model_cards/<recipe>``."""
    folder = Path(folder)
    if not (folder / METRICS_FILE).exists():
        raise ValueError(f"{folder} has no {METRICS_FILE}: evaluate it first")
    target = Path(cards_dir) / json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["name"]
    target.mkdir(parents=True, exist_ok=True)
    for path in (folder / CARD_FILE, folder / METRICS_FILE, *folder.glob("*.png")):
        shutil.copyfile(path, target / path.name)
    return target


# --- the Hub ---


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Upload a saved folder to a model repository of the Hub, creating it where it is missing.

    Args:
        folder: a saved model; checkpoints and logs in it stay behind.
        repo_id: ``owner/name``.
        private: whether a new repository is private; the owner's default if None.
        revision: branch to commit to, created where it is missing; main by default.
        token: access token; the one of ``hf auth login`` by default.
        commit_message: message of the commit.

    Raises:
        ValueError: the folder is not a whole model, or the repository exists with another visibility than asked for.
        huggingface_hub.errors.HfHubHTTPError: what the Hub refused.
    """
    folder = Path(folder)
    config = check_folder(folder)
    if not (folder / CARD_FILE).exists():
        write_card(folder)
    ModelCard.load(folder / CARD_FILE)  # a broken card is refused here, before anything is created
    api = HfApi(token=token, library_name="hfblog")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private is not None and api.model_info(repo_id).private != private:
        there, asked = ("public", "private") if private else ("private", "public")
        raise ValueError(f"{repo_id} exists and is {there}, not {asked}: nothing was uploaded. Change it on the Hub first.")
    if revision is not None and revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        ignore_patterns=list(NOT_UPLOADED),
        commit_message=commit_message or f"Upload {config['model_type']} with hfblog",
    )


def pull(repo_id: str, folder: str | Path | None = None, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download a model repository whole, to ``folder`` or to the Hub's cache, and check it.

    Raises:
        huggingface_hub.errors.RepositoryNotFoundError: no such repository, or a private one without its token.
        huggingface_hub.errors.RevisionNotFoundError: no such branch, tag or commit.
        ValueError: the repository is not a whole model.
    """
    path = Path(snapshot_download(repo_id, revision=revision, token=token, local_dir=folder))
    check_folder(path)
    return path

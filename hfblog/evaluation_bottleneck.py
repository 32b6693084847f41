"""Evaluation of bottlenecks: errors, calibration, nats kept and forgotten, attacks, unfamiliar inputs; likelihoods of VAEs."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Ellipse
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from .evaluation_classification import (
    TEXT_BASELINE_NOTE,
    baseline_errors,
    error_note,
    error_result,
    mistakes_picture,
    reported_images,
    reported_texts,
    text_baseline_errors,
)
from .models.bottleneck import VAEModel, VIBForImageClassification
from .models.bottleneck.modeling_vib import entropy_of_labels
from .pictures import image_grid, plot
from .recipes import EvaluationRun
from .tables import read_comparisons

# Left by scripts/benchmark_vae.py in a trained folder: figures of other packages on the same test images.
PEER_FILE = "peer.json"


def calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean gap of confidence and accuracy over equal bins.

    Args:
        probabilities: ``(batch, classes)``.
        labels: class ids ``(batch,)``.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    # a confidence on an edge belongs to the bin below it, as in the paper
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, right - confidence)
    return gaps.abs().sum().item() / len(labels)


def prediction_scores(log_probs: Tensor, labels: Tensor, num_bins: int) -> dict[str, float]:
    """Error in percent, negative log-likelihood in nats, calibration error in percent."""
    return {
        "error": 100 * (log_probs.argmax(1) != labels).double().mean().item(),
        "nll": -log_probs.double().gather(1, labels[:, None]).mean().item(),
        "ece": 100 * calibration_error(log_probs.exp(), labels, num_bins),
    }


@torch.no_grad()
def coded(run: EvaluationRun, batches: list[dict[str, Tensor]], num_samples: int | None) -> dict[str, Tensor]:
    """What a classifier makes of examples, joined over batches on the CPU.

    Returns:
        Log-probabilities of the classes: ``log_probs`` by the mean probability and ``mean_code`` from the mean code
        ``(batch, classes)``, ``each`` of every drawn code ``(batch, samples, classes)``; ``rate`` ``(batch,)`` in nats.
    """
    model = run.model
    found: dict[str, list[Tensor]] = {}
    for batch in tqdm(batches, desc="Coding", unit="batch"):
        output = model.code({name: values.to(model.device) for name, values in batch.items()}, num_samples)
        each = model.logits_of(output.latents).log_softmax(-1)
        parts = {
            "log_probs": model.mean_prediction(each, False).log_softmax(-1),
            "each": each,
            "mean_code": model.logits_of(output.mean).log_softmax(-1),
            "rate": output.rate,
        }
        for name, value in parts.items():
            if value is not None:
                found.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def image_batches(pixel_values: Tensor, batch_size: int) -> list[dict[str, Tensor]]:
    return [{"pixel_values": part} for part in pixel_values.split(batch_size)]


# --- classifiers ---


def evaluate_vib_on_images(run: EvaluationRun) -> dict[str, Any]:
    """Errors, calibration, rate and bounds, attacks and unfamiliar images, what can still be read from the codes."""
    model: VIBForImageClassification = run.model
    arguments = run.arguments
    pixel_values, labels = reported_images(run)
    batches = image_batches(pixel_values, arguments.batch_size)
    report = classifier_report(run, batches, labels, "images")
    logits = report.pop("log_probs")
    report["pictures"] = mistakes_picture(run, pixel_values, labels, logits) + report["pictures"]
    if arguments.attack_size:
        report["results"] |= attack_results(run, pixel_values, labels)
        report["notes"].append(
            f"Attacks change each grey level by up to {arguments.attack_size:g} (of a range of 1) on the first "
            f"{min(arguments.attack_examples, len(labels)):,} images: one step of the gradient's sign, or "
            f"{arguments.attack_steps} smaller ones. Both go through the model's own prediction; robustness of this kind can "
            "be a gradient that vanishes."
        )
    if model.bottleneck.is_stochastic:
        others = unfamiliar_images(pixel_values, arguments.batch_size)
        report["tables"].append(unfamiliar_table(run, report.pop("coded"), others, "images"))
        if pixel_values[0].numel() <= 1024:
            forgotten, picture = forgotten_report(run, pixel_values)
            report["exactness"].append(forgotten)
            report["pictures"].append(picture)
    report.pop("coded", None)
    return report | {"baselines": twin_rows(run) + baseline_errors(run)}


def evaluate_vib_on_texts(run: EvaluationRun) -> dict[str, Any]:
    """Errors, calibration, rate and bounds, and unfamiliar texts."""
    batches, labels, longest = reported_texts(run)
    report = classifier_report(run, batches, labels, "texts")
    report.pop("log_probs")
    found = report.pop("coded")
    if run.model.bottleneck.is_stochastic:
        others = {"the same texts, every token replaced by a random one": random_texts(run, batches)}
        report["tables"].append(unfamiliar_table(run, found, others, "texts"))
    report["notes"].append(TEXT_BASELINE_NOTE)
    report["description"] = f"{len(labels):,} texts of the {run.arguments.split} split, cut after {longest} tokens."
    return report | {"baselines": twin_rows(run) + text_baseline_errors(run)}


def classifier_report(run: EvaluationRun, batches: list[dict[str, Tensor]], labels: Tensor, what: str) -> dict[str, Any]:
    """What classifiers of images and of texts share, with ``coded`` and ``log_probs`` for what comes after."""
    model, arguments, config = run.model.eval(), run.arguments, run.model.config
    stochastic = model.bottleneck.is_stochastic
    found = coded(run, batches, config.num_eval_samples if stochastic else None)
    by_samples = stochastic and config.eval_mode == "sample"
    log_probs = found["log_probs"] if by_samples else found["mean_code"]
    wrong = log_probs.argmax(1) != labels
    scores = prediction_scores(log_probs, labels, arguments.num_bins)
    results: dict[str, Any] = {
        "error": error_result(wrong),
        "nll": {"label": "cross-entropy", "unit": "nats", "value": scores["nll"]},
        "ece": {"label": "calibration error", "unit": "%", "value": scores["ece"]},
    }
    notes = [
        error_note(wrong, what),
        f"Predicted from {f'the mean probability over {config.num_eval_samples} codes' if by_samples else 'the mean code'}; "
        f"calibration error over {arguments.num_bins} equal bins of confidence.",
    ]
    tables, pictures = [], []
    if stochastic:
        entropy = entropy_of_labels(labels)
        each = found["each"].double().gather(2, labels[:, None, None].expand(-1, found["each"].shape[1], 1))
        rate = found["rate"].double()
        results["rate"] = {
            "label": "rate, bound on I(Z; X)",
            "unit": "nats",
            "value": rate.mean().item(),
            "stderr": rate.std().item() / math.sqrt(len(rate)),
        }
        results["information"] = {"label": "bound on I(Z; Y)", "unit": "nats", "value": entropy + each.mean().item()}
        notes.append(
            f"The code keeps at most {rate.mean():.2f} nats ({rate.mean() / math.log(2):.2f} bits) of an example on average, "
            f"and at least {entropy + each.mean():.3f} of the {entropy:.3f} nats of its class."
        )
        if config.bottleneck == "dual":
            notes.append(
                f"The target is {config.target_rate:g} nats; the multiplier that training found is "
                f"{model.bottleneck.multiplier.item():.4g}."
            )
        predictions = {
            "mean code": found["mean_code"],
            "one code": found["each"][:, 0],
            f"mean of {config.num_eval_samples} codes": found["log_probs"],
        }
        rows = [
            [name, *prediction_scores(values, labels, arguments.num_bins).values()] for name, values in predictions.items()
        ]
        tables.append(
            {
                "caption": "The same weights, predicted from the mean code, from one draw, and by the mean probability",
                "columns": ["prediction", "error (%)", "cross-entropy (nats)", "calibration error (%)"],
                "rows": rows,
            }
        )
        pictures += plane_picture(run)
        if config.latent_dim == 2:
            pictures.append(latent_picture(run, batches, labels))
    return {
        "description": f"{len(labels):,} {what} of the {arguments.split} split.",
        "results": results,
        "notes": notes,
        "exactness": [],
        "pictures": pictures,
        "tables": tables,
        "loss": "validation loss",
        "log_probs": log_probs,
        "coded": found,
    }


def twin_rows(run: EvaluationRun) -> list[dict[str, Any]]:
    """The twins of the comparison named ``twin``, with their means over the seeds."""
    record = read_comparisons(run.folder).get("twin")
    if record is None:
        return []
    count = len(record["seeds"])
    suffix = f", mean of {count} seeds" if count > 1 else ""
    return [
        {"label": row["label"] + suffix}
        | {key: statistics.mean(figures[key] for figures in row["runs"]) for key in row["runs"][0]}
        for row in record["rows"]
        if "twin" in row["label"]
    ]


def attack(model: VIBForImageClassification, pixel_values: Tensor, labels: Tensor, size: float, steps: int) -> Tensor:
    """Images changed by at most ``size`` in each grey level to raise the loss: signs of gradients.

    One step is the fast gradient sign method (Goodfellow et al. 2015, arXiv:1412.6572), several are projected gradients
    (Madry et al. 2018, arXiv:1706.06083), each of 2.5 * size / steps.
    """
    changed = pixel_values.clone()
    for _ in range(steps):
        changed.requires_grad_()
        loss = model(pixel_values=changed, labels=labels).task_loss
        (gradient,) = torch.autograd.grad(loss, changed)
        step = size if steps == 1 else 2.5 * size / steps
        moved = changed.detach() + step * gradient.sign()
        changed = torch.minimum(torch.maximum(moved, pixel_values - size), pixel_values + size).clamp(0, 1)
    return changed.detach()


def attack_results(run: EvaluationRun, pixel_values: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy in percent under both attacks."""
    model, arguments = run.model, run.arguments
    results = {}
    for key, label, steps in (("fgsm", "one step", 1), ("pgd", f"{arguments.attack_steps} steps", arguments.attack_steps)):
        right = 0
        images, classes = pixel_values[: arguments.attack_examples], labels[: arguments.attack_examples]
        parts = list(zip(images.split(arguments.batch_size), classes.split(arguments.batch_size), strict=True))
        for part, its_classes in tqdm(parts, desc=f"Attack of {label}", unit="batch"):
            part, its_classes = part.to(model.device), its_classes.to(model.device)
            changed = attack(model, part, its_classes, arguments.attack_size, steps)
            with torch.no_grad():
                right += int((model(pixel_values=changed).logits.argmax(1) == its_classes).sum())
        results[key] = {"label": f"accuracy under attack, {label}", "unit": "%", "value": 100 * right / len(images)}
    return results


def unfamiliar_images(pixel_values: Tensor, batch_size: int) -> dict[str, list[dict[str, Tensor]]]:
    """Test images turned into what nobody trained on."""
    size = pixel_values[0, 0].numel()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    shuffled = pixel_values.flatten(2)[..., order].view_as(pixel_values)
    others = {"pixels in another, fixed order": shuffled, "grey levels inverted": 1 - pixel_values}
    if pixel_values.shape[2] == pixel_values.shape[3]:
        others["turned by a quarter"] = pixel_values.rot90(1, (2, 3))
    return {name: image_batches(images.contiguous(), batch_size) for name, images in others.items()}


def random_texts(run: EvaluationRun, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same texts with every ordinary token drawn anew from the tokens of the vocabulary."""
    generator = torch.Generator().manual_seed(run.arguments.seed)
    special, vocabulary = torch.tensor(run.processor.all_special_ids), torch.arange(len(run.processor))
    ordinary = vocabulary[~torch.isin(vocabulary, special)]
    drawn = []
    for batch in batches:
        ids = batch["input_ids"]
        others = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)]
        drawn.append(batch | {"input_ids": torch.where(torch.isin(ids, special), ids, others)})
    return drawn


def unfamiliar_table(
    run: EvaluationRun, found: dict[str, Tensor], others: dict[str, list[dict[str, Tensor]]], what: str
) -> dict[str, Any]:
    """How well the rate, and for comparison the largest probability, tell test examples from others."""
    rows = []
    for name, batches in others.items():
        strange = coded(run, batches, run.model.config.num_eval_samples)
        is_strange = np.repeat([0, 1], [len(found["rate"]), len(strange["rate"])])
        areas = [
            roc_auc_score(is_strange, torch.cat([score(found), score(strange)]).numpy())
            for score in (lambda part: part["rate"], lambda part: -part["log_probs"].max(1).values)
        ]
        rows.append([name, strange["rate"].mean().item(), *areas])
    return {
        "caption": f"Test {what} (mean rate {found['rate'].mean():.2f} nats) against others: area under the ROC curve of the "
        "rate, and of one minus the largest probability; 0.5 is chance",
        "columns": [f"unfamiliar {what}", "mean rate (nats)", "rate", "largest probability"],
        "rows": rows,
    }


def forgotten_report(run: EvaluationRun, pixel_values: Tensor) -> tuple[dict[str, Any], dict[str, str]]:
    """How much of the images a linear map can still read from drawn codes, and what that looks like."""
    model, size = run.model, run.arguments.batch_size

    @torch.no_grad()
    def codes(images: Tensor) -> np.ndarray:
        parts = [model.code({"pixel_values": part.to(model.device)}, 1).latents[:, 0].cpu() for part in images.split(size)]
        return torch.cat(parts).double().numpy()

    train = run.prepared["train"][:]["pixel_values"][:10_000]
    target, held_out = train.flatten(1).double().numpy(), pixel_values.flatten(1).double().numpy()
    read = Ridge(alpha=1.0).fit(codes(train), target).predict(codes(pixel_values))
    left = np.square(held_out - read).sum() / np.square(held_out - target.mean(0)).sum()
    rows = torch.as_tensor(read[:10], dtype=torch.float32).view_as(pixel_values[:10]).clamp(0, 1)
    shown = torch.cat([pixel_values[:10], rows])
    image_grid(run.processor.post_process(shown), columns=10).save(run.folder / "forgotten.png", optimize=True)
    share = {
        "label": "forgotten: share of the images' variance that no linear map reads from a drawn code (ridge on "
        f"{len(train):,} training images)",
        "value": float(left),
    }
    return share, {
        "file": "forgotten.png",
        "caption": "Test images, and below them all that a linear map reads from one drawn code",
    }


def plane_picture(run: EvaluationRun) -> list[dict[str, str]]:
    """The information plane over the weights of the rate, from the comparison named ``beta``."""
    record = read_comparisons(run.folder).get("beta")
    if record is None:
        return []
    points = [
        (row["label"], figures["rate"], figures["information"], figures["error"])
        for row in record["rows"]
        for figures in row["runs"]
        if "rate" in figures
    ]
    labels, rates, informations, errors = zip(*points, strict=True)
    figure, axes = plot("rate, at least I(Z; X) (nats)", "bound on I(Z; Y) (nats)")
    figure.set_size_inches(6.5, 3.6)
    axes.set_xscale("log")
    axes.plot(rates, informations, "o-", color="tab:blue")
    for label, rate, information in zip(labels, rates, informations, strict=True):
        axes.annotate(label, (rate, information), textcoords="offset points", xytext=(4, -10), fontsize=7)
    top = math.log(run.model.config.num_labels)
    axes.axvline(top, color="gray", linestyle="--", linewidth=1)
    axes.axhline(top, color="gray", linestyle="--", linewidth=1)
    errors_axes = axes.twinx()
    errors_axes.plot(rates, errors, "s-", color="tab:red", markersize=3, linewidth=1)
    errors_axes.set_yscale("log")
    errors_axes.set_ylabel("test error (%)", color="tab:red")
    figure.savefig(run.folder / "information_plane.png")
    return [
        {
            "file": "information_plane.png",
            "caption": "What codes keep of the image and of its class (blue), and the test error (red, right axis), as the "
            "weight of the rate changes; dashed: the logarithm of the number of classes",
        }
    ]


@torch.no_grad()
def latent_picture(run: EvaluationRun, batches: list[dict[str, Tensor]], labels: Tensor, shown: int = 1000) -> dict[str, str]:
    """Codes in the plane, the spread of some, and the class that the decoder gives to every place."""
    model = run.model
    outputs = [model.encode(**{name: values.to(model.device) for name, values in batch.items()}) for batch in batches]
    mean, scale = (torch.cat([output[name] for output in outputs]).float().cpu() for name in ("mean", "scale"))
    low, high = mean.quantile(0.001, 0), mean.quantile(0.999, 0)
    margin = 0.1 * (high - low)
    low, high = low - margin, high + margin
    across, down = (torch.linspace(low[axis].item(), high[axis].item(), 300) for axis in (0, 1))
    places = torch.cartesian_prod(across, down)
    classes = model.logits_of(places.to(model.device)).argmax(1).cpu().view(300, 300).T
    figure, axes = plot("first number of the code", "second number")
    figure.set_size_inches(6, 5)
    count = model.config.num_labels
    colours = ListedColormap([f"C{label % 10}" for label in range(count)])
    extent = (low[0].item(), high[0].item(), low[1].item(), high[1].item())
    axes.imshow(classes, origin="lower", extent=extent, cmap=colours, vmin=-0.5, vmax=count - 0.5, alpha=0.25, aspect="auto")
    axes.scatter(*mean[:shown].T, c=labels[:shown], s=5, cmap=colours, vmin=-0.5, vmax=count - 0.5)
    for row in range(min(100, len(mean))):
        factor = scale[row] if scale.ndim == 3 else scale[row].diag()
        rotation, deviations, _ = torch.linalg.svd(factor)
        angle = math.degrees(math.atan2(rotation[1, 0], rotation[0, 0]))
        width, height = (4 * deviations).tolist()
        axes.add_patch(Ellipse(mean[row].tolist(), width, height, angle=angle, fill=False, color="black", linewidth=0.4))
    for label in range(count):
        centre = mean[labels == label].median(0).values
        axes.annotate(model.config.id2label[label], centre.tolist(), fontsize=12, weight="bold", ha="center", va="center")
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    figure.savefig(run.folder / "latent_map.png")
    return {
        "file": "latent_map.png",
        "caption": f"Mean codes of {min(shown, len(mean)):,} test examples, the law of the first hundred codes as ellipses of "
        "two standard deviations, and in the background the class that the decoder sees there",
    }


# --- autoencoders ---


def evaluate_vae(run: EvaluationRun) -> dict[str, Any]:
    """Bounds on the test log-likelihood, a trivial baseline, and pictures."""
    model: VAEModel = run.model.eval()
    arguments, config = run.arguments, run.model.config
    test = run.prepared[arguments.split][:]["pixel_values"][: arguments.max_examples]
    bounds, likelihoods, distortions, rates, codes = [], [], [], [], []
    with torch.no_grad():
        for part in tqdm(test.split(arguments.batch_size), desc="Likelihood", unit="batch"):
            part = part.to(model.device)
            output = model(part)
            distortions.append(output.distortion.double().cpu())
            rates.append(output.rate.double().cpu())
            codes.append(output.mean.cpu())
            likelihoods.append(model.log_likelihood(part, arguments.num_importance_samples).cpu())
    distortion, rate, likelihood = torch.cat(distortions), torch.cat(rates), torch.cat(likelihoods)
    bounds = distortion + rate
    spread = torch.cat(codes).var(0)
    results = {
        "nll": {
            "label": f"-log p(x), importance-weighted with {arguments.num_importance_samples} codes",
            "unit": "nats",
            "value": -likelihood.mean().item(),
            "stderr": likelihood.std().item() / math.sqrt(len(likelihood)),
        },
        "bound": {
            "label": "evidence bound",
            "unit": "nats",
            "value": bounds.mean().item(),
            "stderr": bounds.std().item() / math.sqrt(len(bounds)),
        },
        "distortion": {"label": "distortion", "unit": "nats", "value": distortion.mean().item()},
        "rate": {"label": "rate", "unit": "nats", "value": rate.mean().item()},
    }
    notes = [
        "The evidence bound is distortion plus rate, one code an example; the importance-weighted bound is tighter.",
        f"{int((spread > 0.01).sum())} of {config.latent_dim} dimensions are used: the mean code's variance over the test "
        "examples is above 0.01.",
    ]
    if config.decoder == "bernoulli":
        notes.append(
            {
                "stochastic": "Pixels are 0 or 1, drawn with the grey level as probability: anew in every step of training, "
                "and for each test image once, by numbers that the image itself determines.",
                "threshold": "Pixels are 0 or 1, by grey levels above 0.5.",
                "none": "The grey levels themselves are scored, which is no likelihood.",
            }[config.binarization]
        )
    peers = run.folder / PEER_FILE
    baselines = pixel_baselines(run, test) + (json.loads(peers.read_text(encoding="utf-8")) if peers.exists() else [])
    return {
        "description": f"{len(test):,} examples of the {arguments.split} split.",
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "exactness": [],
        "pictures": vae_pictures(run, test) if run.processor is not None else [],
    }


@torch.no_grad()
def pixel_baselines(run: EvaluationRun, test: Tensor) -> list[dict[str, Any]]:
    """-log p(x) in nats of the binary test images where every pixel is independent of the others."""
    if run.model.config.decoder != "bernoulli":
        return []
    model = run.model
    train = run.prepared["train"][:]["pixel_values"]
    # one more lit and one more dark image than were seen: no pixel is impossible
    lit = (model.binarize(train).double().sum(0) + 1) / (len(train) + 2)
    x = model.binarize(test).double()
    nats = -(x * lit.log() + (1 - x) * (1 - lit).log()).flatten(1).sum(1)
    return [{"label": "independent pixels", "nll": nats.mean().item()}]


@torch.no_grad()
def vae_pictures(run: EvaluationRun, test: Tensor) -> list[dict[str, str]]:
    model, arguments = run.model, run.arguments
    generator = torch.Generator().manual_seed(arguments.seed)

    def save(images: Tensor, name: str, columns: int | None = None) -> None:
        image_grid(run.processor.post_process(images), columns=columns).save(run.folder / name, optimize=True)

    save(model.sample(arguments.num_samples, arguments.temperature, generator), "samples.png")
    shown = test[:10].to(model.device)
    save(torch.cat([model.binarize(shown), model.reconstruct(shown)]), "reconstructions.png", 10)
    first, second = test[10:15].to(model.device), test[15:20].to(model.device)
    rows = [model.interpolate(first, second, 10, mode) for mode in ("spherical", "linear")]
    save(torch.stack(rows, 1).flatten(0, 2), "interpolations.png", 10)
    pictures = [
        {"file": "samples.png", "caption": f"Samples, temperature {arguments.temperature:g}"},
        {
            "file": "reconstructions.png",
            "caption": "Test images as the model takes them, and below them what their codes give",
        },
        {
            "file": "interpolations.png",
            "caption": "From one test image to another, in turn on the arc (z1 cos t + z2 sin t) and on the straight line",
        },
    ]
    if model.config.latent_dim == 2:
        steps = torch.special.ndtri(torch.linspace(0.02, 0.98, 16, dtype=torch.float64)).float()
        places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        save(model.decode(places.flatten(0, 1).to(model.device)), "latent_map.png", 16)
        pictures.append({"file": "latent_map.png", "caption": "The plane of codes, at equal steps of the prior's probability"})
    return pictures

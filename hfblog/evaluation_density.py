"""Evaluation of density models over images or vectors: likelihood, baselines, exactness, pictures."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from .data import KNOWN_DENSITIES
from .models.contrastive import NCEDensityModel
from .models.flow import FlowPreTrainedModel, InvertibleResNetModel
from .models.flow.modeling_flow import nats_to_bits_per_dim
from .pictures import image_grid, plot
from .recipes import DensityEvaluationArguments, EvaluationArguments, EvaluationRun


def event_batches(dataset: Any, arguments: EvaluationArguments) -> list[Tensor]:
    """The examples ``pixel_values`` in order, ``(batch_size, *event_shape)`` each."""
    count = len(dataset) if arguments.max_examples is None else min(arguments.max_examples, len(dataset))
    starts = range(0, count, arguments.batch_size)
    return [dataset[start : min(start + arguments.batch_size, count)]["pixel_values"] for start in starts]


@torch.no_grad()
def dequantized_log_probs(
    model: FlowPreTrainedModel | NCEDensityModel, batches: list[Tensor], num_draws: int, generator: torch.Generator
) -> Tensor:
    """``(num_draws, examples)`` float64: log-density in nats of each example under each draw of the noise."""
    rows = []
    for batch in tqdm(batches, desc="Log-density", unit="batch"):
        batch = batch.to(model.device)
        draws = [model.log_prob(model.dequantize(batch, generator=generator)) for _ in range(num_draws)]
        rows.append(torch.stack(draws).double().cpu())
    return torch.cat(rows, dim=1)


def gaussian_baselines(train: Tensor, validation: Tensor, test: Tensor, num_levels: int | None) -> list[dict[str, Any]]:
    """Mean test log-density in nats of normals fitted to the training data, and of the uniform law over grey levels.

    The sample covariance of pixels that hardly ever change punishes the one image where they do, so each normal gets the
    multiple of the identity, added to its covariance, that suits the validation data best.

    Args:
        train, validation, test: ``(examples, D)``; grey levels dequantised to ``[0, 1]``.
        num_levels: K, for bits per dimension; None for data that were never quantised.
    """
    train, validation, test = train.double(), validation.double(), test.double()
    size = test.shape[1]
    mean = train.mean(0)
    centred = train - mean
    covariance = centred.T @ centred / len(train)
    variances, axes = torch.linalg.eigh(covariance)

    def mean_log_prob(data: Tensor, variance: Tensor) -> float:
        normal = torch.distributions.Normal(torch.zeros_like(variance), variance.sqrt())
        return normal.log_prob(data).sum(1).mean().item()

    def best_ridge(data: Tensor, variance: Tensor) -> float:
        ridges = [0.0, *torch.logspace(-7, 0, 36, dtype=torch.float64).tolist()]
        return max(ridges, key=lambda ridge: mean_log_prob(data, (variance + ridge).clamp_min(1e-12)))

    baselines = [] if num_levels is None else [{"label": "uniform", "log_likelihood": 0.0}]
    for label, basis, variance in (
        ("diagonal Gaussian", None, covariance.diagonal()),
        ("full Gaussian", axes, variances),
    ):
        held_out, measured = ((x - mean) if basis is None else (x - mean) @ basis for x in (validation, test))
        ridge = best_ridge(held_out, variance)
        nats = mean_log_prob(measured, (variance + ridge).clamp_min(1e-12))
        baselines.append({"label": label, "log_likelihood": nats, "ridge": ridge})
    if num_levels is not None:
        for row in baselines:
            row["bits_per_dim"] = nats_to_bits_per_dim(row["log_likelihood"], size, num_levels)
    return baselines


def exactness_report(model: FlowPreTrainedModel, x: Tensor, num_jacobians: int) -> list[dict[str, Any]]:
    """Errors of the inverse in both precisions, and of the log-determinant against autograd, in the trained model.

    Args:
        x: ``(examples, *event_shape)``, dequantised.
        num_jacobians: how many of them to differentiate; a Jacobian has D * D entries.
    """
    double = copy.deepcopy(model).double().cpu()
    x = x.cpu()
    checks = []
    with torch.no_grad():
        single = copy.deepcopy(model).float().cpu()
        for label, flow, data in (("float32", single, x.float()), ("float64", double, x.double())):
            error = (flow.decode(flow.transform(data)) - data).abs().max().item()
            checks.append({"label": f"largest inverse error, {label}", "value": error})
    if num_jacobians:
        few = x[:num_jacobians].double()
        jacobian = torch.func.vmap(
            torch.func.jacrev(lambda one: double.transform(one[None])[0], chunk_size=128), chunk_size=1
        )(few)
        reference = torch.linalg.slogdet(jacobian.reshape(len(few), model.config.event_size, -1))[1]
        with torch.no_grad():
            error = (reference - double.log_det(few, method="exact")).abs().max().item()
        checks.append({"label": f"largest log-det error against autograd, {len(few)} examples, float64, nats", "value": error})
    return checks


@torch.no_grad()
def lipschitz_report(model: InvertibleResNetModel, x: Tensor) -> list[dict[str, Any]]:
    """Certified bounds of the blocks, and what the inverse of ``x`` costs with and without acceleration."""
    certificate = model.lipschitz_certificate()
    latents = model.transform(x)
    rows = [
        {"label": f"largest certified Lipschitz constant of {len(certificate)} blocks", "value": certificate.max().item()},
    ]
    for label, depth in (("accelerated", None), ("plain fixed point", 0)):
        decoded, info = model.inverse(latents, anderson_depth=depth, return_info=True)
        rows.append(
            {
                "label": f"evaluations of g per block and example in the inverse, {label}",
                "value": info.evaluations.double().mean().item(),
            }
        )
        rows.append({"label": f"largest inverse error, {label}", "value": (decoded - x).abs().max().item()})
    return rows


@torch.no_grad()
def estimator_note(model: InvertibleResNetModel, x: Tensor) -> str:
    """How far the estimated log-determinant is from the exact one, on a few examples."""
    difference = (model.log_det(x) - model.log_det(x, method="exact")).double()
    error = (difference.std() / math.sqrt(len(difference))).item() if len(difference) > 1 else math.nan
    return (
        "Log-determinants are estimates: a series with a certified truncation below 0.001 nats per block and "
        f"{model.config.num_trace_samples} probe per draw. On {len(x)} of the examples (one draw) they differ from the "
        f"exact ones by {difference.mean().item():.3f} +- {error:.3f} nats on average, with a standard deviation of "
        f"{difference.std().item():.2f} nats per example; the standard error above includes that noise."
    )


def evaluate_density(run: EvaluationRun) -> dict[str, Any]:
    """Test log-likelihood, bits per dimension, baselines, exactness and pictures of a density model."""
    model, processor, data, arguments = run.model, run.processor, run.prepared, run.arguments
    config = model.config
    generator = torch.Generator().manual_seed(arguments.seed)
    model.eval()
    valid_bound = config.dequantization == "uniform"
    continuous = config.num_levels is None
    batches = event_batches(data[arguments.split], arguments)
    num_draws = arguments.num_draws if valid_bound else 1
    log_probs = dequantized_log_probs(model, batches, num_draws, generator)
    per_example = log_probs.mean(0)
    nats = per_example.mean().item()
    stderr = (per_example.std() / math.sqrt(len(per_example))).item()
    results = {
        "log_likelihood": {"label": "log-likelihood", "unit": "nats", "value": nats, "stderr": stderr},
    }
    notes = []
    if valid_bound:
        estimated = isinstance(model, InvertibleResNetModel) and config.event_size > config.exact_log_det_size
        weighted = (log_probs.logsumexp(0) - math.log(num_draws)).mean().item()
        to_bits = lambda value: nats_to_bits_per_dim(value, config.event_size, config.num_levels)  # noqa: E731
        results["bits_per_dim"] = {"label": "bits/dim", "unit": f"{config.num_levels} levels", "value": to_bits(nats)}
        notes.append(
            f"Log-density of x = (k + u) / {config.num_levels} on [0, 1]^{config.event_size}, mean over {num_draws} draws of "
            f"u per image; the error is the standard error over {len(per_example):,} images."
            # the noise of estimated log-determinants would raise the log of a mean
            + (
                ""
                if estimated
                else f" The importance-weighted bound of the same draws is {weighted:.2f} nats, "
                f"{to_bits(weighted):.4f} bits/dim."
            )
        )
    elif continuous:
        notes.append(f"Log-density of the data as they are; the standard error is over {len(per_example):,} examples.")
    else:
        notes.append(
            f"dequantization={config.dequantization!r}: the density is taken at the lattice points themselves. That is "
            "no bound on a discrete likelihood, so no bits per dimension are stated, and the figure must not be compared "
            "with those of dequantised models."
        )
    if config.prior == "normal" and config.model_type == "nice_flow":
        constant = config.event_size / 2 * math.log(2 * math.pi)
        notes.append(
            f"In the article's convention, which drops the constant D/2 log 2 pi = {constant:.2f}, "
            f"the loss is {-nats - constant:.2f}."
        )
    if valid_bound or continuous:
        flat = [
            torch.cat([model.dequantize(batch, generator=generator).flatten(1) for batch in event_batches(part, arguments)])
            for part in (data["train"], data["validation"], data[arguments.split])
        ]
        baselines = gaussian_baselines(*flat, config.num_levels)
        notes.append(
            "The Gaussians are fitted to the training split, with the ridge on the covariance that suits the validation split."
        )
    else:
        baselines = []  # a normal fitted to lattice points has unbounded density where a pixel never changes
    if (known := KNOWN_DENSITIES.get(run.recipe.data["name"])) is not None:
        truth = known(torch.cat(batches)).mean().item()
        baselines.append({"label": "the law that the data are drawn from", "log_likelihood": truth})

    shown = batches[0].to(model.device)[: max(arguments.num_samples, 10)]
    x = model.dequantize(shown, generator=generator)
    exactness = exactness_report(model, x, arguments.exactness_examples if config.event_size <= 1024 else 0)
    if isinstance(model, InvertibleResNetModel):
        exactness += lipschitz_report(model, x)
        if config.event_size > config.exact_log_det_size and arguments.exact_examples:
            notes.append(estimator_note(model, x[: arguments.exact_examples]))
    draw = density_pictures if processor is not None else plane_pictures
    return {
        "description": f"{len(per_example):,} {'points' if processor is None else 'images'} of the {arguments.split} split.",
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "exactness": exactness,
        "pictures": draw(model, processor, x, arguments, run.folder),
    }


@torch.no_grad()
def density_pictures(
    model: FlowPreTrainedModel, processor: Any, x: Tensor, arguments: DensityEvaluationArguments, folder: Path
) -> list[dict[str, str]]:
    """Samples, reconstructions, interpolations, inpainting and, where the flow has one, the spectrum of its scaling."""
    generator = torch.Generator().manual_seed(arguments.seed)
    samples = model.sample(arguments.num_samples, temperature=arguments.temperature, generator=generator)
    image_grid(processor.post_process(samples)).save(folder / "samples.png", optimize=True)
    pictures = [{"file": "samples.png", "caption": f"Samples at temperature {arguments.temperature:g}, not chosen"}]

    shown = x[:10]
    reconstruction = model.decode(model.transform(shown))
    error = (reconstruction - shown).abs()
    rows = [*processor.post_process(shown), *processor.post_process(reconstruction), *processor.post_process(error * 1e6)]
    image_grid(rows, columns=10).save(folder / "reconstructions.png", optimize=True)
    pictures.append(
        {
            "file": "reconstructions.png",
            "caption": "Test images, what decode(encode(x)) makes of them, and 1,000,000 times the difference",
        }
    )

    path = model.interpolate(x[:5], x[5:10], steps=9)
    image_grid(processor.post_process(path.flatten(0, 1)), columns=9).save(folder / "interpolations.png", optimize=True)
    pictures.append({"file": "interpolations.png", "caption": "Straight lines in latent space between test images"})

    height = x.shape[-2]
    upper, middle = (torch.ones(x.shape[1:], dtype=torch.bool, device=x.device) for _ in range(2))
    upper[:, : height // 2] = False
    middle[:, height // 4 : height - height // 4, x.shape[-1] // 4 : x.shape[-1] - x.shape[-1] // 4] = False
    rows = []
    for mask in (upper, middle):
        filled = model.inpaint(shown, mask, generator=generator.manual_seed(arguments.seed))
        for image in (torch.where(mask, shown, torch.full_like(shown, 0.5)), filled):
            rows += processor.post_process(image)
    image_grid(rows, columns=10).save(folder / "inpainting.png", optimize=True)
    pictures.append(
        {
            "file": "inpainting.png",
            "caption": "Test images with hidden parts (grey), and below each what gradient ascent on the density fills in",
        }
    )

    if hasattr(model, "scaling"):
        spectrum_picture(torch.exp(-model.scaling.log_scale).cpu().numpy(), folder / "spectrum.png")
        pictures.append(
            {"file": "spectrum.png", "caption": "Spread exp(-s) along each latent direction, sorted (paper, figure 8)"}
        )
    return pictures


@torch.no_grad()
def plane_pictures(
    model: FlowPreTrainedModel | NCEDensityModel, processor: None, x: Tensor, arguments: EvaluationArguments, folder: Path
) -> list[dict[str, str]]:
    """The density over the plane beside samples of it; nothing for vectors of other sizes."""
    if model.config.event_size != 2:
        return []
    low, high = x.amin(0).cpu() - 0.5, x.amax(0).cpu() + 0.5
    across, up = (torch.linspace(low[axis].item(), high[axis].item(), 200) for axis in range(2))
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1).view(-1, 2).to(model.device)
    density = torch.cat([model.log_prob(part) for part in grid.split(4000)]).exp().view(200, 200).cpu()
    generator = torch.Generator().manual_seed(arguments.seed)
    samples = model.sample(2000, temperature=float(arguments.temperature), generator=generator).cpu()
    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.pcolormesh(across, up, density, cmap="magma", rasterized=True)
    left.set_title("density")
    right.scatter(*samples.T, s=2, alpha=0.5)
    right.set_title("2,000 samples")
    for axes in (left, right):
        axes.set_aspect("equal")
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
    figure.savefig(folder / "samples.png")
    return [{"file": "samples.png", "caption": "The model's density over the plane, and samples from it"}]


def spectrum_picture(spread: np.ndarray, path: Path) -> None:
    figure, axes = plot("latent dimension, sorted", "exp(-s)")
    axes.semilogy(np.sort(spread)[::-1])
    figure.savefig(path)

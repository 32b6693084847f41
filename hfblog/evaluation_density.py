"""Evaluation of density models over images: likelihood, baselines, exactness, pictures."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .models.flow import FlowPreTrainedModel
from .models.flow.modeling_flow import nats_to_bits_per_dim
from .pictures import image_grid, plot
from .recipes import DensityEvaluationArguments, EvaluationRun


def _batches(dataset: Any, arguments: DensityEvaluationArguments) -> list[Tensor]:
    count = len(dataset) if arguments.max_examples is None else min(arguments.max_examples, len(dataset))
    starts = range(0, count, arguments.batch_size)
    return [dataset[start : min(start + arguments.batch_size, count)]["pixel_values"] for start in starts]


@torch.no_grad()
def dequantized_log_probs(
    model: FlowPreTrainedModel, batches: list[Tensor], num_draws: int, generator: torch.Generator
) -> Tensor:
    """``(num_draws, examples)`` float64: log-density in nats of each example under each draw of the noise."""
    rows = []
    for batch in tqdm(batches, desc="Log-density", unit="batch"):
        batch = batch.to(model.device)
        draws = [model.log_prob(model.dequantize(batch, generator=generator)) for _ in range(num_draws)]
        rows.append(torch.stack(draws).double().cpu())
    return torch.cat(rows, dim=1)


def gaussian_baselines(train: Tensor, validation: Tensor, test: Tensor, num_levels: int | None) -> list[dict[str, Any]]:
    """Mean test log-density in nats of the uniform law and of normals fitted to the training data.

    The sample covariance of pixels that hardly ever change punishes the one image where they do, so each normal gets the
    multiple of the identity, added to its covariance, that suits the validation data best.

    Args:
        train, validation, test: ``(examples, D)``, dequantised to ``[0, 1]``.
        num_levels: K, for bits per dimension.
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

    baselines = [{"label": "uniform", "log_likelihood": 0.0}]
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
            error = (flow.decode(flow.encode(data)[0]) - data).abs().max().item()
            checks.append({"label": f"largest inverse error, {label}", "value": error})
    if num_jacobians:
        few = x[:num_jacobians].double()
        jacobian = torch.func.vmap(
            torch.func.jacrev(lambda one: double.encode(one[None])[0][0], chunk_size=128), chunk_size=1
        )(few)
        reference = torch.linalg.slogdet(jacobian.reshape(len(few), model.config.event_size, -1))[1]
        error = (reference - double.encode(few)[1]).abs().max().item()
        checks.append({"label": f"largest log-det error against autograd, {len(few)} examples, float64, nats", "value": error})
    return checks


def evaluate_density(run: EvaluationRun) -> dict[str, Any]:
    """Test log-likelihood, bits per dimension, baselines, exactness and pictures of a density model over images."""
    model, processor, data, arguments = run.model, run.processor, run.prepared, run.arguments
    config = model.config
    generator = torch.Generator().manual_seed(arguments.seed)
    model.eval()
    valid_bound = config.dequantization == "uniform"
    batches = _batches(data[arguments.split], arguments)
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
        weighted = (log_probs.logsumexp(0) - math.log(num_draws)).mean().item()
        to_bits = lambda value: nats_to_bits_per_dim(value, config.event_size, config.num_levels)  # noqa: E731
        results["bits_per_dim"] = {"label": "bits/dim", "unit": f"{config.num_levels} levels", "value": to_bits(nats)}
        notes.append(
            f"Log-density of x = (k + u) / {config.num_levels} on [0, 1]^{config.event_size}, mean over {num_draws} draws of "
            f"u per image; the error is the standard error over {len(per_example):,} images. The importance-weighted bound "
            f"of the same draws is {weighted:.2f} nats, {to_bits(weighted):.4f} bits/dim."
        )
    else:
        notes.append(
            f"dequantization={config.dequantization!r}: the density is taken at the lattice points themselves. That is "
            "no bound on a discrete likelihood, so no bits per dimension are stated, and the figure must not be compared "
            "with those of dequantised models."
        )
    if config.prior == "normal":
        constant = config.event_size / 2 * math.log(2 * math.pi)
        notes.append(
            f"In the article's convention, which drops the constant D/2 log 2 pi = {constant:.2f}, "
            f"the loss is {-nats - constant:.2f}."
        )
    if valid_bound:
        flat = [
            torch.cat([model.dequantize(batch, generator=generator).flatten(1) for batch in _batches(part, arguments)])
            for part in (data["train"], data["validation"], data[arguments.split])
        ]
        baselines = gaussian_baselines(*flat, config.num_levels)
        notes.append(
            "The Gaussians are fitted to the training split, with the ridge on the covariance that suits the validation split."
        )
    else:
        baselines = []  # a normal fitted to lattice points has unbounded density where a pixel never changes

    shown = batches[0].to(model.device)[: max(arguments.num_samples, 10)]
    x = model.dequantize(shown, generator=generator)
    return {
        "description": f"{len(per_example):,} images of the {arguments.split} split.",
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "exactness": exactness_report(model, x, arguments.exactness_examples if config.event_size <= 1024 else 0),
        "pictures": density_pictures(model, processor, x, arguments, run.folder),
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
    reconstruction = model.decode(model.encode(shown)[0])
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


def spectrum_picture(spread: np.ndarray, path: Path) -> None:
    figure, axes = plot("latent dimension, sorted", "exp(-s)")
    axes.semilogy(np.sort(spread)[::-1])
    figure.savefig(path)

"""Evaluation of what noise contrastive estimation trained: densities and language models without a partition function.

Neither is taken at its word: likelihoods are normalised by a grid, by importance sampling or by the sum over all words, and
what the model says of its own constant stands beside it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from .data import DOUBLE_WELL_LOG_PARTITION, DOUBLE_WELL_QUADRATIC, DOUBLE_WELL_QUARTIC, KNOWN_DENSITIES
from .evaluation_density import dequantized_log_probs, event_batches, gaussian_baselines, plane_pictures
from .evaluation_generation import cache_exactness, unigram_perplexity
from .models.contrastive import NCEDensityModel, NCEForCausalLM, Normalization
from .models.flow.modeling_flow import nats_to_bits_per_dim
from .pictures import image_grid, plot
from .recipes import EvaluationRun, LanguageModelEvaluationArguments, NCEDensityEvaluationArguments, data_collator

# --- densities ---


@torch.no_grad()
def evaluate_nce_density(run: EvaluationRun) -> dict[str, Any]:
    """Normalised log-likelihood, the learned constant beside the true one, baselines and pictures of a density."""
    model, processor, data, arguments = run.model, run.processor, run.prepared, run.arguments
    config = model.config
    model.eval()
    generator = torch.Generator().manual_seed(arguments.seed)
    found, others = normalizations(model, arguments, generator)
    batches = event_batches(data[arguments.split], arguments)
    num_draws = arguments.num_draws if config.num_levels is not None else 1
    per_example = dequantized_log_probs(model, batches, num_draws, generator).mean(0) - found.log_integral
    nats = per_example.mean().item()
    stderr = (per_example.std() / math.sqrt(len(per_example))).item()
    results: dict[str, dict[str, Any]] = {
        "log_likelihood": {"label": "log-likelihood, normalised", "unit": "nats", "value": nats, "stderr": stderr}
    }
    if config.num_levels is not None:
        bits = nats_to_bits_per_dim(nats, config.event_size, config.num_levels)
        results["bits_per_dim"] = {"label": "bits/dim", "unit": f"{config.num_levels} levels", "value": bits}
    if config.log_partition == "learned":
        results["integral"] = {
            "label": "integral of the density as learned",
            "unit": "1 is right",
            "value": found.integral,
        }
        if found.stderr:
            results["integral"]["stderr"] = found.stderr
    known = KNOWN_DENSITIES.get(run.recipe.data["name"])
    if run.recipe.data["name"] == "double-well" and config.energy == "quartic":
        results |= double_well_results(model, found)

    continuous = [
        torch.cat([model.dequantize(batch, generator=generator) for batch in event_batches(data[split], arguments)])
        for split in ("train", "validation", arguments.split)
    ]
    of_data = continuous[-1].to(model.device)
    noise = model.noise.sample(len(of_data), generator).to(model.device)
    mean_log_noise = model.noise.log_prob(of_data).mean().item()
    baselines = [
        *gaussian_baselines(*(part.flatten(1) for part in continuous), config.num_levels),
        {"label": f"the noise, {config.noise.replace('_', ' ')}", "log_likelihood": mean_log_noise},
    ]
    if config.num_levels is not None:
        baselines[-1]["bits_per_dim"] = nats_to_bits_per_dim(mean_log_noise, config.event_size, config.num_levels)
    exactness = others
    if known is not None:
        truth = known(of_data.cpu()).mean().item()
        baselines.append({"label": "the law that the data are drawn from", "log_likelihood": truth})
        baselines[-1] |= {key: result["truth"] for key, result in results.items() if "truth" in result}
        if config.event_size == 1:
            error = divergence_from(known, model, found)
            exactness.append({"label": "divergence of the model from that law, by quadrature, nats", "value": error})
    ratios = [log_ratio(model, points) for points in (of_data, noise)]
    told = np.mean([(ratios[0] > 0).double().mean().item(), (ratios[1] < 0).double().mean().item()])
    exactness.append({"label": "share of test data and as much noise that the log-ratio tells apart", "value": float(told)})
    notes = [
        f"The likelihood is normalised: {normalization_note(model, found, arguments)}",
        "The standard error is over "
        + (f"{len(per_example):,} images." if processor is not None else f"{len(per_example):,} points.")
        + ("" if config.num_levels is None else f" Mean over {num_draws} draws of the dequantisation noise for each."),
        "The Gaussians are fitted to the training split, with the ridge on the covariance that suits the validation split.",
    ]
    pictures = [ratio_picture(*ratios, run.folder)]
    if processor is not None:
        pictures = image_pictures(model, processor, arguments, run.folder) + pictures
    elif config.event_size == 1:
        pictures = [line_picture(model, found, known, of_data, run.folder), *pictures]
    else:
        pictures = plane_pictures(model, None, of_data, arguments, run.folder) + pictures
    return {
        "description": f"{len(per_example):,} {'points' if processor is None else 'images'} of the {arguments.split} split.",
        "results": results,
        "baselines": baselines,
        "notes": notes,
        "exactness": exactness,
        "loss": f"validation loss ({config.loss_type}, nats)",
        "pictures": pictures,
    }


def double_well_results(model: NCEDensityModel, found: Normalization) -> dict[str, dict[str, Any]]:
    """The coefficients of exp(-a x^2 - b x^4) / Z that were learned, each with the truth; of a ratio there is no Z."""
    energy = model.energy_function
    # what is not learned is what a grid makes of it
    missing = 0.0 if model.config.log_partition == "learned" else found.log_integral
    values = {
        "quadratic": ("a", energy.quadratic.item(), DOUBLE_WELL_QUADRATIC),
        "quartic": ("b", energy.quartic.item(), DOUBLE_WELL_QUARTIC),
        "log_partition": ("log Z", model.log_partition.item() + missing, DOUBLE_WELL_LOG_PARTITION),
    }
    if model.config.learns_ratio:
        del values["log_partition"]
    return {
        key: {"label": label, "unit": f"truth {truth:.4g}", "value": value, "truth": truth}
        for key, (label, value, truth) in values.items()
    }


def normalizations(
    model: NCEDensityModel, arguments: NCEDensityEvaluationArguments, generator: torch.Generator
) -> tuple[Normalization, list[dict[str, Any]]]:
    """The surest estimate of the integral, and the logarithms of all: where these agree, they are to be trusted."""
    if model.config.event_size <= 2:
        return model.check_normalization(), []
    count, steps = arguments.num_walks, arguments.num_steps
    estimates = {
        f"{arguments.num_partition_samples:,} noise samples": model.check_normalization(
            arguments.num_partition_samples, "importance", generator
        )
    }
    for length in (max(1, steps // 2), steps):
        walked = model.check_normalization(count, "annealed", generator, num_steps=length)
        estimates[f"{count:,} walks of {length:,} steps from noise to model"] = walked
    return min(estimates.values(), key=lambda other: other.stderr / other.integral), [
        {
            "label": f"log of the integral of the density as learned, {label} (worth {other.effective_samples:,.0f} of the "
            f"model; relative standard error {other.stderr / other.integral:.3f}), nats",
            "value": other.log_integral,
        }
        for label, other in estimates.items()
    ]


def normalization_note(model: NCEDensityModel, found: Normalization, arguments: NCEDensityEvaluationArguments) -> str:
    """How the integral was found, and what c lacks."""
    constant = f"c = {model.log_partition.item():.3f}, as it is {model.config.log_partition} in the model,"
    lack = f"{constant} lacks {found.log_integral:.4f} nats."
    if found.method == "grid":
        return f"the integral is a sum over a grid of {model.config.quadrature_points} points along each axis; {lack}"
    way = (
        f"{arguments.num_partition_samples:,} noise samples"
        if found.method == "importance"
        else f"{arguments.num_walks:,} walks of annealed importance sampling (Neal 2001)"
    )
    return (
        f"the integral is the mean weight of {way}, an estimate that is too low more often than too high, with "
        f"{found.stderr / found.integral:.3f} nats of standard error; {lack}"
    )


@torch.no_grad()
def divergence_from(known: Any, model: NCEDensityModel, found: Normalization) -> float:
    """KL(known || model) in nats over the model's grid."""
    points, log_volume = model.quadrature_grid()
    truth = known(points.cpu())
    own = torch.cat([model.log_prob(part) for part in points.split(2**16)]).double().cpu() - found.log_integral
    return (truth.exp() * (truth - own)).sum().item() * math.exp(log_volume)


@torch.no_grad()
def log_ratio(model: NCEDensityModel, points: Tensor) -> Tensor:
    """log p(x) / q(x) in nats, ``(count, *event_shape) -> (count,)``."""
    return torch.cat([(model.log_prob(part) - model.noise.log_prob(part)).cpu() for part in points.split(2**14)])


def ratio_picture(of_data: Tensor, of_noise: Tensor, folder: Path) -> dict[str, str]:
    """Histograms of the log-ratio: where they do not overlap, noise teaches nothing."""
    finite = torch.cat([of_data, of_noise])
    low, high = (finite[finite.isfinite()].quantile(share).item() for share in (0.002, 0.998))
    figure, axes = plot("log p(x) / q(x), nats", "density")
    bins = np.linspace(low, high, 80)
    for values, label in ((of_data, "test data"), (of_noise, "noise")):
        axes.hist(values.numpy(), bins=bins, density=True, alpha=0.5, label=label)
    axes.legend()
    figure.savefig(folder / "ratio.png")
    return {"file": "ratio.png", "caption": "The learned log-ratio of density to noise, on test data and on noise"}


@torch.no_grad()
def line_picture(model: NCEDensityModel, found: Normalization, known: Any, x: Tensor, folder: Path) -> dict[str, str]:
    """A density on the line: data, law, noise, and the model with the constant that it learned."""
    low, high = x.min().item() - 0.5, x.max().item() + 0.5
    points = torch.linspace(low, high, 400, device=model.device)[:, None]
    figure, axes = plot("x", "density")
    axes.hist(x[:, 0].cpu().numpy(), bins=100, density=True, color="lightgrey", label="test data")
    line = points[:, 0].cpu()
    axes.plot(line, model.noise.log_prob(points).exp().cpu(), linestyle=":", color="tab:orange", label="noise")
    if known is not None:
        axes.plot(line, known(points.cpu()).exp(), color="black", linewidth=2.5, alpha=0.5, label="law")
    axes.plot(line, model.log_prob(points).exp().cpu(), color="tab:blue", linestyle="--", label="model, c as learned")
    constant = model.log_partition.item()
    truth = constant + found.log_integral
    axes.set_title(f"c = {constant:.3f}, log of the integral of exp(-energy) = {truth:.3f}", fontsize="medium")
    axes.legend(fontsize="small")
    figure.savefig(folder / "samples.png")
    return {"file": "samples.png", "caption": "Data, their law, the noise, and the model with the constant that it learned"}


@torch.no_grad()
def image_pictures(
    model: NCEDensityModel, processor: Any, arguments: NCEDensityEvaluationArguments, folder: Path
) -> list[dict[str, str]]:
    """Samples by importance resampling and by a Langevin walk, beside samples of the noise."""
    generator = torch.Generator().manual_seed(arguments.seed)
    count, temperature = arguments.num_samples, float(arguments.temperature)
    drawn = {
        "samples": (
            model.sample(count, temperature, generator, oversampling=1000),
            f"Samples at temperature {temperature:g}, each chosen by weight from 1,000 of the noise",
        ),
        "langevin": (
            model.sample(count, temperature, generator, "langevin", num_steps=arguments.num_steps),
            f"The same by {arguments.num_steps} steps of a Metropolis-adjusted Langevin walk from the noise",
        ),
        "noise": (model.noise.sample(count, generator), "Samples of the noise that the energy corrects"),
    }
    pictures = []
    for name, (x, caption) in drawn.items():
        image_grid(processor.post_process(x)).save(folder / f"{name}.png", optimize=True)
        pictures.append({"file": f"{name}.png", "caption": caption})
    return pictures


# --- language models ---


@torch.no_grad()
def evaluate_nce_lm(run: EvaluationRun) -> dict[str, Any]:
    """Exact perplexity, that of the scores as they are, how far these are from normalised, baselines and texts."""
    model, tokenizer, arguments = run.model, run.processor, run.arguments
    model.eval()
    dataset = run.prepared[arguments.split]
    if arguments.max_examples is not None:
        dataset = Subset(dataset, range(min(arguments.max_examples, len(dataset))))
    found = word_likelihood(run, dataset)
    perplexities = {name: math.exp(-found[name].mean().item()) for name in ("normalized", "unnormalized")}
    partition = found["log_normalizer"]
    results = {
        "perplexity": {"label": "test perplexity", "unit": "per word", "value": perplexities["normalized"]},
        "unnormalized_perplexity": {
            "label": "the same by scores without a softmax",
            "unit": "per word",
            "value": perplexities["unnormalized"],
        },
        "partition_mean": {"label": "log-partition, mean", "unit": "nats, 0 is normalised", "value": partition.mean().item()},
        "partition_std": {"label": "its standard deviation", "unit": "nats", "value": partition.std(correction=0).item()},
    }
    baselines = []
    if run.with_baselines:
        rows = {split: [torch.as_tensor(row) for row in part[:]["input_ids"]] for split, part in run.prepared.items()}
        lists = {split: {"input_ids": [row.tolist() for row in rows[split]]} for split in ("train", arguments.split)}
        baselines = [
            {"label": "frequencies of single words", "perplexity": unigram_perplexity(lists["train"], lists[arguments.split])},
            bigram_baseline(rows["train"], rows["validation"], rows[arguments.split], model.config.vocab_size),
        ]
    unknown = (found["targets"] == tokenizer.unk_token_id).double().mean().item()
    return {
        "description": f"{len(found['targets']):,} words of the {arguments.split} split.",
        "results": results,
        "baselines": baselines,
        "notes": [
            f"Perplexity is that of the softmax over all {model.config.vocab_size:,} words, per word with the end of a line "
            f"and without the first of a row; {unknown:.2%} are unknown and count as one. Only models with the same words "
            "compare.",
            "Without a softmax, a word's log-probability is its score minus the constant, at a cost that does not depend on "
            "the vocabulary; a perplexity below the exact one says that these sum to more than 1.",
        ],
        "exactness": cache_exactness(model, torch.as_tensor(dataset[0]["input_ids"], device=model.device)[None]),
        "loss": "validation cross-entropy (nats a word)",
        "samples": [{"text": text} for text in draw_texts(model, tokenizer, arguments)],
        "pictures": [partition_picture(partition, run.folder)],
    }


@torch.no_grad()
def word_likelihood(run: EvaluationRun, dataset: Any) -> dict[str, Tensor]:
    """``(words,)`` each: log-probabilities in nats with and without a softmax, log-partition of the context, word ids."""
    model = run.model
    loader = DataLoader(dataset, run.arguments.batch_size, collate_fn=data_collator(run.recipe, run.processor))
    parts: dict[str, list[Tensor]] = {name: [] for name in ("normalized", "unnormalized", "log_normalizer", "targets")}
    for batch in tqdm(loader, desc="Likelihood", unit="batch"):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        targets, ids = batch.pop("labels")[:, 1:], batch["input_ids"]
        counted = targets != -100
        hidden = model.hidden_states(**batch).last_hidden_state[:, :-1]
        scores = model.word_scores(hidden, ids[:, 1:]) - model.log_partition_of(hidden)
        log_normalizer = model.log_normalizer(hidden)
        values = (scores - log_normalizer, scores, log_normalizer, targets)
        for part, value in zip(parts.values(), values, strict=True):
            part.append(value[counted].cpu())
    return {name: torch.cat(part).double() for name, part in parts.items()}


def bigram_baseline(train: list[Tensor], validation: list[Tensor], test: list[Tensor], vocab_size: int) -> dict[str, Any]:
    """Pairs of neighbours with absolute discounting over the words' frequencies; the discount suits the validation split."""

    def pairs(rows: list[Tensor]) -> np.ndarray:
        return np.concatenate([np.stack([row[:-1].numpy(), row[1:].numpy()]) for row in rows], 1)

    before, word = pairs(train)
    unigram = np.bincount(word, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    seen, counts = np.unique(before * vocab_size + word, return_counts=True)
    totals = np.bincount(before, minlength=vocab_size)
    followers = np.bincount(seen // vocab_size, minlength=vocab_size)

    def perplexity(rows: list[Tensor], discount: float) -> float:
        before, word = pairs(rows)
        place = np.searchsorted(seen, before * vocab_size + word).clip(max=len(seen) - 1)
        count = np.where(seen[place] == before * vocab_size + word, counts[place], 0)
        total = np.maximum(totals[before], 1)
        left = np.where(totals[before] > 0, discount * followers[before] / total, 1.0)
        return float(np.exp(-np.log(np.maximum(count - discount, 0) / total + left * unigram[word]).mean()))

    discount = min(np.linspace(0.05, 0.95, 19), key=lambda value: perplexity(validation, value))
    return {"label": f"pairs of words, discount {discount:.2f}", "perplexity": perplexity(test, discount)}


@torch.no_grad()
def draw_texts(model: NCEForCausalLM, tokenizer: Any, arguments: LanguageModelEvaluationArguments) -> list[str]:
    """Texts from the beginning of a line."""
    device = model.device
    torch.manual_seed(arguments.seed)
    ids = model.generate(
        torch.full((arguments.num_samples, 1), tokenizer.eos_token_id, device=device),
        attention_mask=torch.ones(arguments.num_samples, 1, dtype=torch.long, device=device),
        do_sample=True,
        top_k=0,
        top_p=float(arguments.top_p),
        temperature=float(arguments.temperature),
        max_new_tokens=arguments.max_new_tokens,
    )
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def partition_picture(log_normalizer: Tensor, folder: Path) -> dict[str, str]:
    figure, axes = plot("log of the sum of exp(score - c) over all words, nats", "contexts")
    low, high = (log_normalizer.quantile(share).item() for share in (0.001, 0.999))
    axes.hist(log_normalizer.numpy(), bins=np.linspace(min(low, -0.5), max(high, 0.5), 80))
    axes.axvline(0, color="black", linestyle="--")
    figure.savefig(folder / "partition.png")
    return {"file": "partition.png", "caption": "Log-partition of the test contexts; 0, the dashed line, is normalised"}

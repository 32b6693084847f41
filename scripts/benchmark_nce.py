"""python scripts/benchmark_nce.py --threads 1 --json benchmark.json

The output layer of a language model in a training step, with noise words and with the softmax over all words, side by side.
Hidden states are given; a step is the loss, its gradients by hidden states and by the layer's weights, drawn noise included,
and one update of the weights by SGD. Contestants:

    full softmax        torch's cross-entropy over logits of all words, as transformers' models have it
    adaptive softmax    torch.nn.AdaptiveLogSoftmaxWithLoss, which approximates it by clusters of rarer words
    textbook NCE        noise of its own for each word by torch.multinomial, vectors gathered for each, dense gradients; as
                        public repositories write it
    hfblog              NCEForCausalLM: noise shared by the batch or a row, dense and sparse gradients; and sampled softmax

Before anything is timed, the textbook's loss and gradient are compared with hfblog's under the same noise, and a difference
ends the program. Contestants take turns within each round, so that a drifting machine slows all of them; a ratio is the median
over rounds of the ratio to the full softmax within a round. Words are drawn by Zipf's law. A line at the end compares
the alias table with torch.multinomial and numpy's choice, in words a second.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

from hfblog import NCEForCausalLM, NCELMConfig, UnigramNoise  # noqa: E402
from hfblog.evaluation import hardware  # noqa: E402

FULL = "full softmax"


class TextbookNCE(nn.Module):
    """One draw of k noise words for each word, and binary classification of all of them (Mnih and Teh 2012, equation 8)."""

    def __init__(self, size: int, probabilities: Tensor, num_noise: int):
        super().__init__()
        self.vectors, self.bias = nn.Embedding(len(probabilities), size), nn.Embedding(len(probabilities), 1)
        self.register_buffer("probabilities", probabilities)
        self.num_noise = num_noise

    def forward(self, hidden: Tensor, targets: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = torch.multinomial(self.probabilities, targets.numel() * self.num_noise, replacement=True)
            noise = noise.view(*targets.shape, self.num_noise)
        words = torch.cat([targets[..., None], noise], -1)
        scores = (self.vectors(words) @ hidden[..., None])[..., 0] + self.bias(words)[..., 0]
        logits = scores - (self.num_noise * self.probabilities[words]).log()
        is_data = torch.zeros_like(logits)
        is_data[..., 0] = 1
        return F.binary_cross_entropy_with_logits(logits, is_data, reduction="none").sum(-1).mean()


def counts_by_zipf(vocab_size: int) -> Tensor:
    return (10**7 / torch.arange(1, vocab_size + 1, dtype=torch.float64)).long() + 1


def build(vocab_size: int, arguments: argparse.Namespace, **settings) -> NCEForCausalLM:
    """A model whose backbone is never run, and as small as can be."""
    torch.manual_seed(0)
    backbone = {"model_type": "gpt2", "vocab_size": 1, "n_embd": arguments.hidden_size, "n_layer": 1, "n_head": 1}
    config = NCELMConfig(backbone_config=backbone, num_noise_samples=arguments.num_noise, **settings)
    config.backbone_config.vocab_size = vocab_size
    with torch.device("meta"):
        model = NCEForCausalLM(config)
    model.lm_head = nn.Linear(arguments.hidden_size, vocab_size)
    model.noise = UnigramNoise(vocab_size, config.noise_power)
    if model.log_partition is not None:
        model.log_partition = torch.zeros(())
    model.fit_noise(counts_by_zipf(vocab_size))
    return model


def contestants(
    vocab_size: int, arguments: argparse.Namespace
) -> dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Parameter]]]:
    """Label -> the loss of hidden states and targets, and the parameters of the layer."""
    found = {}
    full = build(vocab_size, arguments, loss_type="full")
    found[FULL] = (lambda h, t: full.cross_entropy(full.lm_head(h), t), list(full.lm_head.parameters()))
    cutoffs = [cutoff for cutoff in (2000, 10_000, 100_000) if cutoff < vocab_size]
    adaptive = nn.AdaptiveLogSoftmaxWithLoss(arguments.hidden_size, vocab_size, cutoffs)
    found["adaptive softmax"] = (
        lambda h, t: adaptive(h.flatten(0, 1), t.flatten()).loss,
        list(adaptive.parameters()),
    )
    counts = counts_by_zipf(vocab_size).double()
    textbook = TextbookNCE(arguments.hidden_size, (counts / counts.sum()).float(), arguments.num_noise)
    found["textbook NCE"] = (textbook, list(textbook.parameters()))
    for label, settings in {
        "hfblog, noise for the batch": {"noise_sharing": "batch"},
        "hfblog, noise for the batch, sparse": {"noise_sharing": "batch", "sparse_gradients": True},
        "hfblog, noise for a row, sparse": {"noise_sharing": "sequence", "sparse_gradients": True},
        "hfblog, sampled softmax for a row, sparse": {
            "noise_sharing": "sequence",
            "sparse_gradients": True,
            "loss_type": "ranking",
        },
    }.items():
        model = build(vocab_size, arguments, **settings)

        def loss(hidden: Tensor, targets: Tensor, model: NCEForCausalLM = model) -> Tensor:
            return model.sampled_losses(hidden, targets, model.draw_noise(*targets.shape)).mean()

        found[label] = (loss, list(model.lm_head.parameters()))
    return found


def check(vocab_size: int, arguments: argparse.Namespace) -> None:
    """The textbook's loss is ours."""
    model = build(vocab_size, arguments, noise_sharing="token")
    textbook = TextbookNCE(arguments.hidden_size, model.noise.log_probs.exp(), arguments.num_noise)
    textbook.vectors.weight.data.copy_(model.lm_head.weight)
    textbook.bias.weight.data.copy_(model.lm_head.bias[:, None])
    hidden, targets = torch.randn(2, 8, arguments.hidden_size), torch.randint(vocab_size, (2, 8))
    noise = model.draw_noise(2, 8)
    losses = [textbook(hidden, targets, noise), model.sampled_losses(hidden, targets, noise).mean()]
    gradients = [torch.autograd.grad(losses[0], textbook.vectors.weight), torch.autograd.grad(losses[1], model.lm_head.weight)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def measure(vocab_size: int, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    check(vocab_size, arguments)
    law = counts_by_zipf(vocab_size).double()
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch_size, arguments.length)
    targets = torch.multinomial(law, shape[0] * shape[1], replacement=True, generator=generator).view(shape)
    hidden = torch.randn(*shape, arguments.hidden_size, generator=generator).requires_grad_()
    layers = contestants(vocab_size, arguments)
    optimizers = {label: torch.optim.SGD(parameters, lr=1e-3) for label, (_, parameters) in layers.items()}
    steps: dict[str, list[float]] = {label: [] for label in layers}
    updates: dict[str, list[float]] = {label: [] for label in layers}
    for turn in tqdm(range(arguments.repeats + 1), desc=f"{vocab_size:,} words", unit="round"):
        for label, (loss, _) in layers.items():
            hidden.grad = None
            start = time.perf_counter()
            loss(hidden, targets).backward()
            middle = time.perf_counter()
            optimizers[label].step()
            end = time.perf_counter()
            optimizers[label].zero_grad(set_to_none=True)
            if turn:  # the first is for warming up
                steps[label].append(middle - start)
                updates[label].append(end - start)
    return [
        {
            "contestant": label,
            "ms": 1000 * median(steps[label]),
            "ratio": median(full / own for full, own in zip(steps[FULL], steps[label], strict=True)),
            "ms_with_update": 1000 * median(updates[label]),
            "ratio_with_update": median(full / own for full, own in zip(updates[FULL], updates[label], strict=True)),
            "tokens_per_second": targets.numel() / median(updates[label]),
        }
        for label in layers
    ]


def draws(vocab_size: int, count: int = 100_000, repeats: int = 5) -> dict[str, float]:
    """Words a second from one law."""
    law = counts_by_zipf(vocab_size).double()
    law /= law.sum()
    noise, single = UnigramNoise(vocab_size).fit(counts_by_zipf(vocab_size)), law.float()
    numbers = np.random.default_rng(0)
    ways = {
        "alias table": lambda: noise.sample(count),
        "torch.multinomial": lambda: torch.multinomial(single, count, replacement=True),
        "numpy's choice": lambda: numbers.choice(vocab_size, count, p=law.numpy()),
    }
    times: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(repeats):
        for label, draw in ways.items():
            start = time.perf_counter()
            draw()
            times[label].append(time.perf_counter() - start)
    return {label: count / median(values) for label, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[20_000, 100_000, 500_000])
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16, help="rows; logits of 16 x 64 and 500,000 words take 2 GB")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--num-noise", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the figures there, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record = {"hardware": hardware(), "torch": torch.__version__, "arguments": vars(arguments), "sizes": {}, "draws": {}}
    for vocab_size in arguments.vocab_sizes:
        rows = record["sizes"][vocab_size] = measure(vocab_size, arguments)
        shape = f"{arguments.batch_size} x {arguments.length}, hidden size {arguments.hidden_size}"
        print(f"\n{vocab_size:,} words, {shape}, {arguments.num_noise} noise words\n")
        print("| output layer | loss and gradients | full softmax / this | with the update | full softmax / this | tokens/s |")
        print("|---|---:|---:|---:|---:|---:|")
        for row in rows:
            print(
                f"| {row['contestant']} | {row['ms']:.1f} ms | {row['ratio']:.1f} | {row['ms_with_update']:.1f} ms | "
                f"{row['ratio_with_update']:.1f} | {row['tokens_per_second']:,.0f} |"
            )
        found = record["draws"][vocab_size] = draws(vocab_size)
        print("\nnoise, words a second: " + ", ".join(f"{label} {speed:,.0f}" for label, speed in found.items()))
    print(f"\n{record['hardware']}, {arguments.threads} thread(s), torch {torch.__version__}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()

"""Decoding with and without cache, beside transformers' own BERT decoder, against the memory bandwidth.

    python scripts/benchmark_conditional_ln_bert.py                          # 4 layers of 256, as in the recipes
    python scripts/benchmark_conditional_ln_bert.py --size base --batch 1 --new-tokens 128 --dtype bfloat16

Everything runs in one process, in turns, greedy, with the same weights. The bound is that of one pass over the weights a
step (for a batch, one pass serves all rows) at the bandwidth of a large copy, measured here. "without cache" is what the
article's code did: a whole pass over the text for every token. It is timed at nine lengths, and the sum over all lengths is
taken by the trapezoidal rule, because long texts would take hours; with the cache every step is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import BertConfig, BertLMHeadModel, logging  # noqa: E402

from hfblog import ConditionalLNBertConfig, ConditionalLNBertForGeneration  # noqa: E402
from hfblog.evaluation import hardware, versions  # noqa: E402

SIZES = {
    "recipe": {
        "vocab_size": 6000,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "base": {"vocab_size": 21128},
}


def bandwidth() -> float:
    """Bytes a second that one copy of 512 MB reads, the best of five."""
    source = torch.ones(2**27)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return source.numel() * 4 / min(times)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.no_grad()
def without_cache(model: ConditionalLNBertForGeneration, batch: int, new_tokens: int) -> float:
    """Seconds for a text whose every token takes a whole pass."""
    lengths = np.unique(np.linspace(1, new_tokens, 9).round().astype(int))
    classes = torch.zeros(batch, dtype=torch.long)
    seconds = []
    for length in lengths:
        ids = torch.full((batch, int(length)), 5)
        seconds.append(timed(lambda: model(ids, condition_ids=classes, use_cache=False, logits_to_keep=1)))  # noqa: B023
    return float(np.trapezoid(seconds, lengths) + seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="recipe")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="two are slower than one for a single text")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    shape = SIZES[arguments.size] | {"max_position_embeddings": max(arguments.new_tokens) + 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    dtype = getattr(torch, arguments.dtype)
    ours = ConditionalLNBertForGeneration(ConditionalLNBertConfig(**shape, **special, num_condition_classes=2))
    ours = ours.to(dtype).eval()
    peer = BertLMHeadModel(BertConfig(**shape, **special, is_decoder=True)).to(dtype).eval()
    weights = sum(p.numel() for n, p in peer.named_parameters() if "embeddings." not in n or "word" in n)
    speed = bandwidth()
    print(f"{hardware()}, {arguments.threads} thread(s), {versions()}")
    print(f"{peer.num_parameters():,} parameters, {arguments.dtype}; a copy reads {speed / 1e9:.1f} GB/s")
    header = ("batch", "new tokens", "no cache", "cache", "ratio", "static", "guided x2", "BertLMHead", "bound", "of bound")
    print("".join(f"{name:>12}" for name in header) + "   (tokens/s)")
    for batch in arguments.batch:
        for new in arguments.new_tokens:
            start = torch.full((batch, 1), 2)
            settings = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False}
            mask = torch.ones_like(start)
            ways = {
                "cache": lambda: ours.generate(start, condition_ids=1, **settings),  # noqa: B023
                "static": lambda: ours.generate(start, condition_ids=1, cache_implementation="static", **settings),  # noqa: B023
                "guided": lambda: ours.generate(start, condition_ids=1, guidance_scale=2.0, **settings),  # noqa: B023
                "peer": lambda: peer.generate(start, attention_mask=mask, **settings),  # noqa: B023
            }
            seconds: dict[str, list[float]] = {name: [] for name in (*ways, "without")}
            for _ in range(arguments.rounds + 1):
                for name, way in ways.items():
                    seconds[name].append(timed(way))
                seconds["without"].append(without_cache(ours, batch, new))
            rate = {name: batch * new / statistics.median(found[1:]) for name, found in seconds.items()}
            bound = batch * speed / (weights * dtype.itemsize)
            cells = [batch, new, rate["without"], rate["cache"], rate["cache"] / rate["without"]]
            cells += [rate["static"], rate["guided"], rate["peer"], bound, rate["cache"] / bound]
            print("".join(f"{cell:>12.2f}" if isinstance(cell, float) else f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

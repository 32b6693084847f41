"""python scripts/compare_costs.py

Which cost explains how much of what neighbours say of each other: the 2,000 most frequent words of a month of the People's
Daily (pip install -e '.[data]'), pairs up to five places apart, learned whole by Adam. The law is learned and measured alike;
its entropies, in nats, bound every cost.
"""

from __future__ import annotations

import argparse
import os
import time

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from hfblog import MinEntropyEmbeddingConfig, MinEntropyEmbeddingForPreTraining, count_pairs, reference_points  # noqa: E402
from hfblog.data import encode_words, load_data  # noqa: E402
from hfblog.evaluation import hardware  # noqa: E402

# Cost, whether vectors are tied, whether items have a bias.
VARIANTS = [
    ("dot", False, False),
    ("dot", True, False),
    ("dot", True, True),
    ("l2", True, False),
    ("l2", True, True),
    ("student_t", True, False),
    ("student_t", True, True),
    ("library", True, True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=2000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[3, 50])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    texts = [text for split in load_data("chinese-news").values() for text in split["text"]]
    # rare words make no gap: their neighbours are not each other's
    corpus = encode_words(texts, min_count=1)
    law = count_pairs(corpus.items, corpus.starts, len(corpus.words))
    first, second = law.indices()
    kept = (first < arguments.vocab_size) & (second < arguments.vocab_size)
    size = (arguments.vocab_size, arguments.vocab_size)
    joint = torch.sparse_coo_tensor(law.indices()[:, kept], law.values()[kept], size, check_invariants=False).to_dense()
    bounds = reference_points(joint)
    print(
        f"log V {bounds.uniform:.3f}, H(J) {bounds.unigram:.3f}, entropy given the one before {bounds.conditional:.3f} nats\n"
    )
    columns = " | ".join(f"d = {size}: cost | explained" for size in arguments.dimensions)
    print(f"| cost | vectors | bias | {columns} |\n|---|---|---|" + "---:|---:|" * len(arguments.dimensions))
    start = time.perf_counter()
    for cost, tied, bias in VARIANTS:
        cells = []
        for size in arguments.dimensions:
            torch.manual_seed(arguments.seed)
            config = {"embedding_dim": size, "cost": cost, "tie_context": tied, "item_bias": bias, "objective": "full"}
            model = MinEntropyEmbeddingForPreTraining(
                MinEntropyEmbeddingConfig(vocab_size=arguments.vocab_size, initializer_range=0.1 * size, **config)
            )
            points = model.fit_law(joint, arguments.steps, arguments.learning_rate)
            cells.append(f"{points.cost:.3f} | {100 * points.explained:.0f} %")
        print(f"| {cost} | {'tied' if tied else 'untied'} | {'yes' if bias else 'no'} | {' | '.join(cells)} |", flush=True)
    print(f"\n{arguments.steps} steps, seed {arguments.seed}, {time.perf_counter() - start:.0f} s on {hardware()}")


if __name__ == "__main__":
    main()

"""python scripts/benchmark_map.py

A map of scikit-learn's 1,797 digits by the t-SNE cost (pip install -e '.[words]') beside scikit-learn's own t-SNE, one after
the other in one process on one thread: CPU seconds, class of the nearest neighbour, trustworthiness, and the Kullback-Leibler
divergence of the map's law from that of the features, which both make small, in nats and under one law for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.manifold import TSNE, trustworthiness  # noqa: E402

from hfblog import MinEntropyEmbeddingConfig, MinEntropyEmbeddingForPreTraining, feature_affinities  # noqa: E402
from hfblog.evaluation import hardware  # noqa: E402
from hfblog.evaluation_item_vectors import nearest_class  # noqa: E402


def new_map(items: int) -> MinEntropyEmbeddingForPreTraining:
    config = {"embedding_dim": 2, "cost": "student_t", "objective": "full", "normalize_over": "pairs"}
    return MinEntropyEmbeddingForPreTraining(
        MinEntropyEmbeddingConfig(vocab_size=items, tie_context=True, exclude_self=True, **config)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--perplexity", type=float, default=30.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, classes = load_digits(return_X_y=True)
    # the compiler's time is nobody's map
    new_map(100).fit_features(torch.from_numpy(x[:100]), 10.0, steps=1)
    law = feature_affinities(torch.from_numpy(x), arguments.perplexity)
    entropy = -torch.xlogy(law.values(), law.values()).sum().item()
    rows: dict[str, list[list[float]]] = {"hfblog": [], "scikit-learn": []}
    for seed in range(arguments.repeats):
        for way in rows:
            start = time.process_time()
            if way == "hfblog":
                model = new_map(len(x))
                model.fit_features(torch.from_numpy(x), arguments.perplexity)
                places = model.model.vectors().detach().numpy()
            else:
                peer = TSNE(perplexity=arguments.perplexity, init="pca", random_state=seed, n_jobs=1)
                places = peer.fit_transform(x)
            seconds = time.process_time() - start
            judge = new_map(len(x))
            with torch.no_grad():
                judge.model.embeddings.weight.copy_(torch.from_numpy(places))
                divergence = judge.law_objective(law).item() - entropy
            trust = trustworthiness(x, places, n_neighbors=12)
            rows[way].append([seconds, 100 * nearest_class(places, classes), trust, divergence])
            print(way, rows[way][-1], flush=True)
    print("\n| | CPU seconds | nearest has the class (%) | trustworthiness, 12 neighbours | divergence (nats) |")
    print("|---|---:|---:|---:|---:|")
    for way, found in rows.items():
        middle = [statistics.median(column) for column in zip(*found, strict=True)]
        print(f"| {way} | {middle[0]:.1f} | {middle[1]:.2f} | {middle[2]:.4f} | {middle[3]:.3f} |")
    ratio = statistics.median(r[0] for r in rows["scikit-learn"]) / statistics.median(r[0] for r in rows["hfblog"])
    print(f"\nscikit-learn takes {ratio:.2f} times as long; medians of {arguments.repeats}, {hardware()}")


if __name__ == "__main__":
    main()

"""python scripts/benchmark_min_entropy_embedding.py FOLDER_OF_ENGLISH --drop-punctuation --seeds 0 1 2
python scripts/benchmark_min_entropy_embedding.py chinese-news FOLDER_OF_CHINESE --segment --similarity RATINGS --seeds 0 1 2

Skip-gram with negative sampling beside gensim's Word2Vec (pip install -e '.[bench]'): the same corpus, dimensions, window,
epochs, subsampling and negatives. Every run has a process of its own and begins with the vocabulary, from lower-cased texts
in an Arrow column for hfblog and from lists of words for gensim, which its time does not count. Speed is words of the corpus,
all epochs, by CPU seconds of all threads, vocabulary included. Quality is measured by gensim's own functions on ratings of
pairs of words (Spearman's correlation) and on Google's analogies (per cent right), unknown words left out. Chinese texts
without spaces are segmented by jieba, before any time is taken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch is imported: waiting threads that spin make two threads slower than one beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def lowered(arguments: dict[str, Any]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import load_dataset

    from hfblog.data import NAMED_DATA, text_column_of
    from hfblog.models.contrastive.tokenization_words import NO_WORD

    parts = []
    for name in arguments["data"]:
        splits = NAMED_DATA[name]() if name in NAMED_DATA else load_dataset(name)
        for data in splits.values():
            texts = pc.utf8_lower(data.data[text_column_of(data)]).combine_chunks()
            if arguments["drop_punctuation"]:
                texts = pc.replace_substring_regex(texts, NO_WORD, " ")
            parts.append(segmented(texts) if arguments["segment"] and name not in NAMED_DATA else texts)
    texts = pa.chunked_array([part.cast(pa.large_string()) for part in parts])
    return texts[: arguments["max_texts"]] if arguments["max_texts"] else texts


def segmented(texts: Any) -> Any:
    import jieba
    import pyarrow as pa

    jieba.setLogLevel("WARNING")
    return pa.array([" ".join(word for word in jieba.cut(text) if word.strip()) for text in texts.to_pylist()])


def ours(arguments: dict[str, Any], seed: int, threads: int, file: str) -> dict[str, float]:
    import torch

    from hfblog import MinEntropyEmbeddingConfig, MinEntropyEmbeddingForPreTraining, write_word2vec
    from hfblog.data import encode_words

    torch.set_num_threads(1)
    texts = lowered(arguments)
    settings = {
        "embedding_dim": arguments["dimensions"],
        "window_size": arguments["window"],
        "num_noise_samples": arguments["negatives"],
        "subsample": arguments["subsample"],
    }
    # the compiler's time is not the corpus's
    small = MinEntropyEmbeddingForPreTraining(MinEntropyEmbeddingConfig(vocab_size=50, **settings))
    small.fit_corpus([[1, 2, 3]], epochs=1)
    cpu, wall = time.process_time(), time.perf_counter()
    corpus = encode_words(texts, min_count=arguments["min_count"])
    torch.manual_seed(seed)
    model = MinEntropyEmbeddingForPreTraining(MinEntropyEmbeddingConfig(vocab_size=len(corpus.words), **settings))
    model.fit_corpus(
        (corpus.items, corpus.starts),
        epochs=arguments["epochs"],
        threads=threads,
        seed=seed,
    )
    found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "words": len(corpus.items)}
    write_word2vec(file, corpus.words, model.model.embeddings.weight.detach().numpy(), binary=True)
    return found


def gensims(arguments: dict[str, Any], seed: int, threads: int, file: str) -> dict[str, float]:
    from gensim.models import Word2Vec

    sentences = [text.split() for text in lowered(arguments).to_pylist()]
    cpu, wall = time.process_time(), time.perf_counter()
    model = Word2Vec(
        sentences,
        sg=1,
        hs=0,
        vector_size=arguments["dimensions"],
        window=arguments["window"],
        negative=arguments["negatives"],
        min_count=arguments["min_count"],
        sample=arguments["subsample"],
        epochs=arguments["epochs"],
        workers=threads,
        seed=seed,
    )
    found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    found["words"] = int(sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key))
    model.wv.save_word2vec_format(file, binary=True)
    return found


def quality(file: str, similarity: list[str]) -> dict[str, float]:
    from gensim.models import KeyedVectors
    from gensim.test.utils import datapath

    vectors = KeyedVectors.load_word2vec_format(file, binary=True)
    found = {}
    for name in similarity:
        _, (correlation, _), unknown = vectors.evaluate_word_pairs(datapath(name) if name in ENGLISH else name)
        found[Path(name).stem] = correlation
        print(f"{Path(name).stem}: {unknown:.1f} % of the pairs are unknown", flush=True)
    if similarity == ENGLISH:
        analogies, _ = vectors.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=30_000)
        found[ANALOGIES] = 100 * analogies
    return found


# In the gensim package.
ENGLISH = ["wordsim353.tsv", "simlex999.txt"]
ANALOGIES = "Google analogies (%)"
WAYS = {"hfblog": ours, "gensim": gensims}


def run(way: str, arguments: dict[str, Any], seed: int, threads: int, folder: str, results: Any) -> None:
    file = str(Path(folder) / "vectors")
    found = WAYS[way](arguments, seed, threads, file)
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["speed"] = found["words"] * arguments["epochs"] / found["cpu"]
    results.put(found | quality(file, arguments["similarity"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="names, Hub ids or local folders with a column of texts; all of them together")
    parser.add_argument("--drop-punctuation", action="store_true", help="words are runs of letters and digits")
    parser.add_argument("--segment", action="store_true", help="segment the texts of folders and Hub ids by jieba")
    parser.add_argument(
        "--similarity", nargs="+", default=ENGLISH, help="files of rated pairs, between tabs; those of gensim by default"
    )
    parser.add_argument("--max-texts", type=int)
    parser.add_argument("--dimensions", type=int, default=100)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--subsample", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", help="write the figures there, too")
    arguments = vars(parser.parse_args())

    from hfblog.evaluation import hardware

    context = multiprocessing.get_context("spawn")
    record: list[dict[str, Any]] = []
    for threads in arguments["threads"]:
        for seed in arguments["seeds"]:
            for way in WAYS:
                with tempfile.TemporaryDirectory() as folder:
                    results = context.Queue()
                    process = context.Process(target=run, args=(way, arguments, seed, threads, folder, results))
                    process.start()
                    found = results.get()
                    process.join()
                record.append({"way": way, "threads": threads, "seed": seed} | found)
                print(json.dumps(record[-1]), flush=True)
    pairs = [Path(name).stem for name in arguments["similarity"]]
    measured = ["speed", "wall", "memory", *pairs, *([ANALOGIES] if ANALOGIES in record[0] else [])]
    print("\n| | threads | words per CPU second | seconds | memory, MB | " + " | ".join(measured[3:]) + " |")
    print("|---|" + "---:|" * (len(measured) + 1))
    for threads in arguments["threads"]:
        speeds = {}
        for way in WAYS:
            rows = [row for row in record if row["way"] == way and row["threads"] == threads]
            speeds[way] = statistics.median(row["speed"] for row in rows)
            cells = []
            for name in measured:
                values = [row[name] for row in rows]
                spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 and name in measured[3:] else ""
                cells.append(
                    f"{statistics.mean(values):,.3f}{spread}" if name in pairs else f"{statistics.mean(values):,.1f}{spread}"
                )
            print(f"| {way} | {threads} | " + " | ".join(cells) + " |")
        print(f"\n{threads} thread(s): {speeds['hfblog'] / speeds['gensim']:.2f} times gensim's words per CPU second\n")
    print(f"{hardware()}, seeds {', '.join(map(str, arguments['seeds']))}")
    if arguments["json"]:
        Path(arguments["json"]).write_text(json.dumps(record, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Characters per CPU second and memory of word discovery, side by side with other packages, and from 1 MB to 1 GB.

    pip install -e '.[bench]' && python scripts/benchmark_term_miner.py
    python scripts/benchmark_term_miner.py --counter kenlm/build/bin/count_ngrams --more laws/ poems/ --characters 1e6 28e6
    python scripts/benchmark_term_miner.py --scaling 1 10 100 1000 --more laws/ poems/ --peers

Every measurement is a process of its own that reads the same file: ours goes from the text to the lexicon with all its
statistics and to the segmented text; the others go as far as they go, see the last column. CPU seconds are those of the
process and of what it starts; compiling our loops, which happens once on a machine, is not counted. "ours / theirs" sets our
whole way, segmented text included, against how far the others go; "to the lexicon" stops ours there. The corpus is the
newspaper and the reviews of hfblog's data, and what --more names, its lines repeated in random order up to the size.

The author's later algorithm (kexue.fm 6920, github.com/bojone/word-discovery) is run in Python 3 with KenLM's own counter, the
one that it calls: build the target count_ngrams of github.com/kpu/kenlm and name it by --counter.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ORDER = 4
ALLOWED = re.compile("[^\u4e00-\u9fa50-9a-zA-Z ]+")


def least_count(characters: float) -> int:
    """Of a word, as ours chooses it by the size of the corpus."""
    return max(3, math.ceil(math.sqrt(characters / 200_000)))


def lines_of(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


# --- those that are measured: a file of lines in, the size of the lexicon out ---


def ours(path: str, directory: str, options: dict[str, Any]) -> int:
    from hfblog import TermMinerConfig, TermMinerModel
    from hfblog.corpora import read_documents

    warm = list(read_documents([path], max_documents=4000))
    TermMinerModel(TermMinerConfig(compounds=options["compounds"])).fit(warm).segment(warm)
    TermMinerModel(TermMinerConfig(method="ngram_cohesion", compounds=options["compounds"])).fit(warm)
    begin(options)
    miner = TermMinerModel(TermMinerConfig(compounds=options["compounds"]))
    miner.fit(read_documents([path]), directory=directory if options["on_disk"] else None)
    options["lexicon_cpu"] = time.process_time() - options["start"]
    collections.deque(miner.iter_segment(read_documents([path])), maxlen=0)
    return len(miner.words)


def authors(path: str, directory: str, options: dict[str, Any]) -> int:
    """n-grams of KenLM's counter, chains of those that cohere, words that hold together; dictionaries as in the original."""
    texts = [piece for line in lines_of(path) for piece in ALLOWED.split(line) if piece]
    corpus, names, grams = (Path(directory) / name for name in ("corpus", "names", "grams"))
    with open(corpus, "w", encoding="utf-8") as file:
        for text in texts:
            file.write(" ".join(text) + "\n")
    with open(corpus, "rb") as source, open(grams, "wb") as target:
        command = [options["counter"], "-o", str(ORDER), "-S", "4G", "-T", directory, "--write_vocab_list", str(names)]
        subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL, check=True)
    characters = names.read_bytes().decode("utf-8").split("\0")
    least, total = least_count(options["characters"]), 0
    tables: list[dict[str, int]] = [{} for _ in range(ORDER)]
    data = grams.read_bytes()
    record = struct.Struct(f"<{ORDER}Iq")
    for *ids, count in record.iter_unpack(data):
        if count >= least:
            total += count
            gram = "".join(characters[index] for index in ids if index > 2)
            for size in range(1, len(gram) + 1):
                tables[size - 1][gram[:size]] = tables[size - 1].get(gram[:size], 0) + count
    solid = set()
    for size, threshold in ((2, 2), (3, 4), (4, 6)):
        for gram, count in tables[size - 1].items():
            parts = ((gram[:cut], gram[cut:]) for cut in range(1, size))
            product = max(tables[len(a) - 1].get(a, total) * tables[len(b) - 1].get(b, total) for a, b in parts)
            if math.log(total * count / product) >= threshold:
                solid.add(gram)
    trie: dict = {}
    for gram in solid:
        node = trie
        for character in gram:
            node = node.setdefault(character, {})
        node[True] = gram
    counts: dict[str, int] = {}
    for text in texts:
        start, end = 0, 1
        for place in range(len(text)):
            if place == end:
                counts[text[start:end]] = counts.get(text[start:end], 0) + 1
                start, end = place, place + 1
            node = trie
            for offset, character in enumerate(text[place:]):
                if character not in node:
                    break
                node = node[character]
                if True in node and place + offset + 1 > end:
                    end = place + offset + 1
        counts[text[start:end]] = counts.get(text[start:end], 0) + 1
    words = {
        word
        for word, count in counts.items()
        if count >= least
        and (
            len(word) < 3
            or (len(word) <= ORDER and word in solid)
            or (len(word) > ORDER and all(word[i : i + ORDER] in solid for i in range(len(word) + 1 - ORDER)))
        )
    }
    return len(words)


def nlp_zeros(path: str, directory: str, options: dict[str, Any]) -> int:
    collections.Iterable = collections.abc.Iterable  # which it imports from where it was before Python 3.10
    import logging

    from nlp_zero import Word_Finder

    logging.disable(logging.CRITICAL)

    class Texts:
        def __iter__(self) -> Iterable[str]:
            for line in lines_of(path):
                yield ALLOWED.sub(" ", line)

    finder = Word_Finder(min_proba=5e-6, min_pmi=1)
    finder.train(Texts())
    finder.find(Texts())
    tokenizer = finder.export_tokenizer()
    for text in Texts():
        tokenizer.tokenize(text)
    return len(finder.words)


def smoothnlps(path: str, directory: str, options: dict[str, Any]) -> int:
    from smoothnlp.algorithm.phrase import extract_phrase

    return len(extract_phrase(lines_of(path)))


def jiebas(path: str, directory: str, options: dict[str, Any]) -> int:
    import jieba

    jieba.setLogLevel("WARNING")
    words = set()
    for line in lines_of(path):
        words.update(jieba.cut(line, HMM=True))
    return len(words)


PEERS = {
    "author's later algorithm": (authors, "lexicon"),
    "nlp-zero (the article's)": (nlp_zeros, "lexicon, segmentation"),
    "smoothnlp": (smoothnlps, "lexicon"),
    "jieba": (jiebas, "segmentation by its dictionary and HMM"),
}


# --- measuring ---


def begin(options: dict[str, Any]) -> None:
    """From here on time and memory count."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory is that of now
    options |= {"start": time.process_time(), "wall": time.perf_counter(), "base": highest_memory()}


def highest_memory() -> int:
    """Of this process, KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def worker(name: str, path: str, options: dict[str, Any]) -> None:
    """One measurement, in this process; prints JSON."""
    function = ours if name == "hfblog" else PEERS[name][0]
    with tempfile.TemporaryDirectory(dir=options["directory"]) as directory:
        begin(options)
        words = function(path, directory, options)
        wall = time.perf_counter() - options["wall"]
        peak = highest_memory()
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - options["start"] + started.ru_utime + started.ru_stime
    lexicon_cpu = options.get("lexicon_cpu", cpu)
    print(
        json.dumps(
            {"words": words, "cpu": cpu, "lexicon_cpu": lexicon_cpu, "wall": wall, "peak": peak, "base": options["base"]}
        )
    )


def measure(name: str, path: Path, characters: int, arguments: argparse.Namespace, on_disk: bool = False) -> dict[str, Any]:
    options = {
        "characters": characters,
        "counter": arguments.counter,
        "compounds": arguments.compounds,
        "on_disk": on_disk,
        "directory": arguments.directory,
    }
    command = [sys.executable, __file__, "--worker", name, str(path), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"ended with {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def make_corpus(path: Path, characters: int, sources: list[str], seed: int = 0) -> int:
    """Lines of all sources, as often as it takes, in random order; gives back how many characters."""
    generator, written = np.random.default_rng(seed), 0
    with open(path, "w", encoding="utf-8") as file:
        while written < characters:
            for index in generator.permutation(len(sources)):
                file.write(sources[index] + "\n")
                written += len(sources[index]) + 1
                if written >= characters:
                    break
    return written


def source_lines(more: list[str]) -> list[str]:
    from hfblog.corpora import read_documents
    from hfblog.data import load_data

    lines = [
        text.replace(" ", "")
        for name in ("chinese-news", "chinese-reviews")
        for s in load_data(name).values()
        for text in s["text"]
    ]
    for source in more:
        lines += list(read_documents([source]))
    return [line for document in lines for line in document.splitlines() if line.strip()]


def table(rows: list[dict[str, Any]]) -> None:
    heads = ["", "characters", "CPU seconds", "to the lexicon", "thousand characters a CPU second", "ours / theirs"]
    heads += ["to the lexicon", "peak MB", "bytes a character", "words", "what"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        cells = [row["name"], f"{row['characters']:,}"]
        if "error" in row:
            print("| " + " | ".join([*cells, row["error"]]) + " |")
            continue
        own = next(r for r in rows if r["name"].startswith("hfblog") and r["characters"] == row["characters"])
        peer = not row["name"].startswith("hfblog")
        lexicon = "lexicon" in row["what"]
        cells += [f"{row['cpu']:.2f}", f"{row['lexicon_cpu']:.2f}" if lexicon else ""]
        cells += [f"{row['characters'] / row['cpu'] / 1000:,.0f}", f"{row['cpu'] / own['cpu']:.1f}" if peer else ""]
        cells += [f"{row['lexicon_cpu'] / own['lexicon_cpu']:.1f}" if peer and lexicon else "", f"{row['peak'] / 1024:,.0f}"]
        cells += [f"{1024 * (row['peak'] - row['base']) / row['characters']:.0f}", f"{row['words']:,}", row["what"]]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", nargs="+", type=float, default=[1e6], help="sizes at which peers are run, too")
    parser.add_argument(
        "--scaling", nargs="*", type=float, default=[], metavar="MB", help="sizes of ours alone, symbols on the disk"
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--counter", help="KenLM's count_ngrams")
    parser.add_argument("--more", nargs="*", default=[], help="further files or folders of text")
    parser.add_argument("--compounds", action="store_true", help="look for terms of several words, too")
    parser.add_argument("--directory", help="for temporary files")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, path, options = arguments.worker
        worker(name, path, json.loads(options))
        return
    lines, rows = source_lines(arguments.more), []
    print(f"{sum(map(len, lines)):,} characters in {len(lines):,} different lines")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        path = Path(folder) / "corpus.txt"
        for size in arguments.characters if arguments.peers else []:
            characters = make_corpus(path, int(size), lines)
            rows.append({"name": "hfblog", "characters": characters, "what": "lexicon, statistics, segmentation"})
            rows[-1] |= measure("hfblog", path, characters, arguments)
            for name in arguments.peers:
                if name == "author's later algorithm" and not arguments.counter:
                    continue
                row = {"name": name, "characters": characters, "what": PEERS[name][1]}
                rows.append(row | measure(name, path, characters, arguments))
                print(rows[-1], flush=True)
        for megabytes in arguments.scaling:
            characters = make_corpus(path, int(megabytes * 1e6 / 2.9), lines)
            row = {
                "name": f"hfblog, {path.stat().st_size / 1e6:,.0f} MB on the disk",
                "characters": characters,
                "what": "lexicon, statistics, segmentation",
            }
            rows.append(row | measure("hfblog", path, characters, arguments, on_disk=True))
            print(rows[-1], flush=True)
    table(rows)


if __name__ == "__main__":
    main()

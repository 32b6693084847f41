"""Mine the terms of a corpus: a table on the screen, a CSV file, and a page with the evidence for each term.

    python scripts/mine_terms.py laws/ --background news.txt reviews.jsonl --top 1000 --output outputs/laws
    zcat corpus.txt.gz | python scripts/mine_terms.py - --top 200
    python scripts/mine_terms.py chinese-news --background chinese-reviews --top 500
    python scripts/mine_terms.py abstracts.parquet --column abstract --level word --rules english

A corpus is text (a document a line), JSON lines, CSV, parquet, compressed or not, a folder of these, standard input (-), or
one of hfblog's data sets by name. The output folder holds terms.csv, terms.json, terms.txt (jieba's user dictionary),
report.html, and the miner itself in model/, which AutoModel and AutoTokenizer load.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import yaml  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402

from hfblog import TermMinerConfig, TermMinerModel  # noqa: E402
from hfblog.corpora import STANDARD_INPUT, read_documents  # noqa: E402
from hfblog.data import NAMED_DATA, load_data, text_column_of  # noqa: E402
from hfblog.models.term_miner.rules import LANGUAGES  # noqa: E402
from hfblog.term_report import find_examples, print_table, write_report  # noqa: E402
from hfblog.term_vectors import train_term_vectors  # noqa: E402

ON_SCREEN = 40


def documents(sources: list[str], arguments: argparse.Namespace, progress: bool = True) -> Iterator[str]:
    """Files and folders, or named data sets, whose words may have spaces between them, which are left out."""
    for source in sources:
        if source in NAMED_DATA and not Path(source).exists():
            for part in load_data(source).values():
                for text in part[text_column_of(part)]:
                    yield text.replace(" ", "") if arguments.level == "character" else text
        else:
            yield from read_documents(
                [source], column=arguments.column, encoding=arguments.encoding, progress=progress and source != STANDARD_INPUT
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", help="files, folders, - or named data sets")
    parser.add_argument(
        "--background", nargs="+", default=[], metavar="CORPUS", help="what is not of the domain; each one apart"
    )
    parser.add_argument("--top", type=int, default=1000, help="how many terms (default 1000)")
    parser.add_argument("--output", default="outputs/terms", help="folder (default outputs/terms)")
    parser.add_argument("--column", help="where the text is, in JSON, CSV and parquet")
    parser.add_argument("--encoding", default="utf-8", help="of text files, such as gb18030 (default utf-8)")
    parser.add_argument("--level", choices=("character", "word"), default="character", help="word: languages with spaces")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="fields of TermMinerConfig, such as min_count=10"
    )
    parser.add_argument("--rules", choices=LANGUAGES, help="leave out what a reader of this language would strike at once")
    parser.add_argument("--seeds", nargs="+", default=[], metavar="TERM", help="grow a list from these terms, by meaning")
    parser.add_argument("--negatives", nargs="+", default=[], metavar="TERM", help="away from these")
    parser.add_argument("--directory", help="where the corpora lie while they are counted; a temporary folder by default")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    return parser.parse_args()


def mine(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if arguments.top < 1:
        raise ValueError(f"--top {arguments.top} must be positive")
    if (output / "terms.csv").exists() and not arguments.overwrite:
        raise ValueError(f"{output} already holds terms: replace them with --overwrite, or name another folder with --output")
    if (arguments.seeds or arguments.negatives) and STANDARD_INPUT in arguments.corpus:
        raise ValueError("growing from seeds reads the corpus twice, which standard input cannot be: give a file")
    settings = {}
    for pair in arguments.set:
        name, separator, value = pair.partition("=")
        if not separator or name not in TermMinerConfig.__annotations__:
            raise ValueError(f"--set {pair}: there is no such field of TermMinerConfig")
        settings[name] = yaml.safe_load(value)
    if arguments.rules:
        settings["rules"] = arguments.rules
    start = time.perf_counter()
    miner = TermMinerModel(TermMinerConfig(level=arguments.level, **settings))
    files = [Path(source).name for source in arguments.background]
    background = {
        name if files.count(name) == 1 else source: documents([source], arguments)
        for name, source in zip(files, arguments.background, strict=True)
    }
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        miner.fit(documents(arguments.corpus, arguments), background, directory=directory)
        seconds = time.perf_counter() - start
        rows = miner.extract_terms(arguments.top)
        if not rows:
            raise ValueError("no term passes the limits; try --set min_count=2 min_burstiness=0 compounds=true")
        sizes = miner.table.corpus_sizes.tolist()
        summary = {
            "corpus": ", ".join(arguments.corpus),
            "documents": sizes[0][2],
            "characters": sizes[0][1],
            "backgrounds": ", ".join(f"{name} ({size[1]:,})" for name, size in zip(background, sizes[1:], strict=True))
            or "none",
            "lexicon": f"{miner.config.num_words:,} words, {miner.config.num_compounds:,} compounds",
            "method": f"{miner.config.method}, ranked by {miner.config.contrast if background else 'wordhood'}",
            "seconds": round(seconds, 1),
        }
        examples = {}
        if STANDARD_INPUT not in arguments.corpus:
            again = documents(arguments.corpus, arguments, progress=False)
            examples = find_examples(again, [row["term"] for row in rows], level=arguments.level)
        if arguments.seeds:
            train_term_vectors(miner, documents(arguments.corpus, arguments))
    output.mkdir(parents=True, exist_ok=True)
    for name in ("terms.csv", "terms.json", "terms.txt"):
        miner.export(output / name, arguments.top)
    write_report(miner, rows, output / "report.html", summary, examples)
    miner.save_pretrained(output / "model")
    print_table(rows[:ON_SCREEN])
    print(
        f"\n{len(rows):,} terms of {sizes[0][1]:,} characters in {seconds:.1f} s; {output / 'report.html'} shows the evidence."
    )
    if arguments.seeds:
        print("\nGrown from the seeds:")
        for row in miner.expand(arguments.seeds, arguments.negatives, max_terms=ON_SCREEN):
            path = f"by {row['parent']}, cosine {row['similarity']:.2f}" if row["parent"] else "seed"
            print(f"  {row['term']}  depth {row['depth']}, {path}, to the seeds {row['seed_similarity']:.2f}")


def main() -> None:
    try:
        mine(parse())
    except (ValueError, OSError, ImportError, StrictDataclassError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

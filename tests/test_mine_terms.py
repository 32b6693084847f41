"""The command, the table, the report."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hfblog import TermMinerConfig, TermMinerModel
from hfblog.term_report import find_examples, print_table, width, write_report

ROOT = Path(__file__).parent.parent


def run(*arguments: object, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/mine_terms.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **settings)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    from hfblog.data import load_data

    path = tmp_path_factory.mktemp("corpus") / "news.txt"
    lines = [text.replace(" ", "") for text in load_data("chinese-news")["validation"]["text"]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]


def test_the_command(corpus, tmp_path):
    out = tmp_path / "out"
    done = run(corpus, "--background", "chinese-reviews", "--top", 60, "--output", out, "--seeds", "企业")
    assert done.returncode == 0, done.stderr
    assert "60 terms of" in done.stdout and "Grown from the seeds:" in done.stdout and "企业  depth 0, seed" in done.stdout
    assert {path.name for path in out.iterdir()} == {"model", "report.html", "terms.csv", "terms.json", "terms.txt"}
    page = Page()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("tr") == 61 and page.tags.count("details") == 60 and page.tags.count("mark") > 60 and not page.links
    again = run(corpus, "--output", out)
    assert again.returncode == 1 and "already holds terms" in again.stderr and "Traceback" not in again.stderr
    piped = run("-", "--top", 5, "--output", tmp_path / "piped", input=corpus.read_text(encoding="utf-8"))
    assert piped.returncode == 0 and "5 terms of" in piped.stdout, piped.stderr


def test_wrong_words_give_one_line(corpus, tmp_path):
    (tmp_path / "gbk.txt").write_bytes("中华人民共和国".encode("gb18030"))
    for arguments, message in (
        ([tmp_path / "none.txt"], "there is no file or folder"),
        ([tmp_path / "gbk.txt"], "--encoding gb18030"),
        ([corpus, "--set", "min_cuont=2"], "there is no such field of TermMinerConfig"),
        ([corpus, "--set", "method=guess"], "method='guess' must be one of"),
        ([corpus, "--background", corpus], "identical to the domain's corpus"),
        ([corpus, "--top", 0], "--top 0 must be positive"),
    ):
        done = run(*arguments, "--output", tmp_path / "out")
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()


def test_table_is_aligned():
    text = io.StringIO()
    print_table([{"term": "中华", "score": 0.5, "count": 1200}, {"term": "ab", "score": 12.25, "count": 3}], text)
    lines = text.getvalue().splitlines()
    assert len({width(line) for line in lines}) == 1 and "1,200" in lines[1] and "12.2" in lines[2]


def test_report_escapes(tmp_path):
    miner = TermMinerModel(TermMinerConfig(min_count=2)).fit(["天地人和", "天地", "人和天地"] * 3)
    row = miner.extract_terms(1)[0] | {"term": "<b>"}
    write_report(miner, [row], tmp_path / "page.html", {"<i>": "&"}, {"<b>": [("<", "<b>", ">")]})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;" in page and "<i>" not in page
    with pytest.raises(OSError):
        write_report(miner, [row], tmp_path / "nowhere" / "page.html", {})


def test_examples():
    found = find_examples(["天地人和", "人和", "天地"], ["天地", "无"], each=1, around=1)
    assert found == {"天地": [("", "天地", "人")]}
    texts = ["A grand stand of the Grand Standards", "the Grand Stand"]
    found = find_examples(texts, ["grand stand", "tan"], around=4, level="word")
    assert found == {"grand stand": [("A ", "grand stand", " of "), ("the ", "Grand Stand", "")]}


def test_english_against_two_files_of_one_name(tmp_path):
    numbers = ["one", "two", "three", "four", "five", "six", "seven"]
    pairs = [(first, second) for first in numbers for second in numbers]
    texts = {
        "domain": [f"The Neural Network {first} sees {second}" for first, second in pairs]
        + [f"{first} is a word, {second} is the other" for first, second in pairs],
        "news": [f"The {first} sees the {second}" for first, second in pairs],
        "letters": [f"Dear {first}, the network of {second}" for first, second in pairs],
    }
    for name, lines in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    domain, *backgrounds = [tmp_path / name / "texts.txt" for name in texts]
    settings = ["min_count=3", "compounds=false", "max_ngram=2", "max_term_length=2", "cohesion_thresholds=[2.5]"]
    settings += ["single_symbol_penalty=0", "autonomy_weight=0"]
    out = tmp_path / "out"
    done = run(
        domain, "--background", *backgrounds, "--level", "word", "--rules", "english", "--output", out, "--set", *settings
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((out / "terms.json").read_text(encoding="utf-8"))
    assert row["term"] == "neural network" and row["count"] == 49 and row["background_count"] == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<mark>Neural Network</mark>" in page and "Its words stand together" in page and "In a million words" in page
    assert all(str(path) in page for path in backgrounds)

"""Corpora from real files: every kind, compressed or not, and what is said of those that cannot be read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers.utils import logging

from hfblog import corpora
from hfblog.corpora import read_documents, sniff_encoding

LAWS = ["中华人民共和国的一切权力属于人民", "第二条 公民在法律面前一律平等", "naïve café"]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines_of(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def test_lines_end_only_at_line_feeds(tmp_path: Path):
    path = put(tmp_path / "a.txt", "a\r\nb\u2028c\x0bd\x0ce\x85f\r\n\r\n  \n\ng\rh\n\u3000\ni")
    assert list(read_documents([path])) == ["a", "b\u2028c\x0bd\x0ce\x85f", "g\rh", "i"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "A.TXT", "a.log"])
def test_any_text_file_by_name(tmp_path: Path, name: str):
    path = put(tmp_path / name, lines_of(LAWS))
    assert list(read_documents([path])) == list(read_documents(str(path))) == LAWS


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_blocks_of_any_size_give_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int):
    path = put(tmp_path / "a.txt", "\ufeff" * (block >= 3) + "\r\n".join(LAWS * 5))
    monkeypatch.setattr(corpora, "BLOCK", block)
    assert list(read_documents([path])) == LAWS * 5


def test_a_line_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora, "BLOCK", 16)
    texts = ["法" * 1000, "律", "a" * 500]
    assert list(read_documents([put(tmp_path / "a.txt", "\n".join(texts))])) == texts


@pytest.mark.parametrize("ending, compress", [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files(tmp_path: Path, ending: str, compress):
    text = put(tmp_path / f"a.txt{ending}", compress(lines_of(LAWS).encode()))
    bare = put(tmp_path / f"bare{ending}", compress(lines_of(LAWS).encode()))
    rows = put(tmp_path / f"a.jsonl{ending}", compress(lines_of([json.dumps({"text": law}) for law in LAWS]).encode()))
    table = put(tmp_path / f"a.tsv{ending}", compress(lines_of(["id\ttext", *(f"1\t{law}" for law in LAWS)]).encode()))
    assert list(read_documents([text, bare, rows, table])) == LAWS * 4


def test_gzip_members_one_after_the_other(tmp_path: Path):
    path = put(tmp_path / "a.gz", b"".join(gzip.compress(f"{law}\n".encode()) for law in LAWS))
    assert list(read_documents([path])) == LAWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_json_lines(tmp_path: Path, name: str):
    rows = [{"id": 1, "content": LAWS[0]}, {"text": LAWS[1], "content": "title"}, {"content": ""}, {"document": LAWS[2]}]
    path = put(tmp_path / name, "\ufeff" + "\n\n".join(map(json.dumps, rows)))
    assert list(read_documents([path])) == LAWS


def test_text_wins_over_content_body_and_document(tmp_path: Path):
    path = put(tmp_path / "a.jsonl", json.dumps({name: name for name in ("document", "body", "content", "text")}))
    assert list(read_documents([path])) == ["text"]
    assert list(read_documents([path], column="body")) == ["body"]


def test_json_lines_of_strings(tmp_path: Path):
    assert list(read_documents([put(tmp_path / "a.jsonl", lines_of(list(map(json.dumps, LAWS))))])) == LAWS


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array(tmp_path: Path, indent: int | None):
    rows = json.dumps([{"text": law} for law in LAWS], indent=indent, ensure_ascii=False)
    assert list(read_documents([put(tmp_path / "a.json", rows + "\n")])) == LAWS


def test_text_in_json_keeps_its_own_line_ends(tmp_path: Path):
    path = put(tmp_path / "a.jsonl", json.dumps({"text": "a\nb"}))
    assert list(read_documents([path])) == ["a\nb"]


@pytest.mark.parametrize("name, delimiter", [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables(tmp_path: Path, name: str, delimiter: str, mark: str):
    texts = ['he said "no", twice', "two\nlines", "tab\there", *LAWS]
    with open(tmp_path / name, "w", encoding="utf-8", newline="") as file:
        file.write(mark)
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["abstract", "n"], *([text, 1] for text in texts), ["", 1], []])
    assert list(read_documents([tmp_path / name], column="abstract")) == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet(tmp_path: Path, kind: pa.DataType):
    table = pa.table({"id": range(5), "body": pa.array([*LAWS, None, ""], kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert list(read_documents([tmp_path / "a.parquet"])) == LAWS
    assert list(read_documents([tmp_path / "a.parquet"], column="body", max_documents=2)) == LAWS[:2]


def test_a_folder_is_read_in_order_and_recursively(tmp_path: Path):
    (tmp_path / "b").mkdir()
    put(tmp_path / "c.txt", "4\n5\n")
    put(tmp_path / "b" / "b.jsonl.gz", gzip.compress(b'{"text": "2"}\n{"text": "3"}'))
    put(tmp_path / "a.csv", "text\n1\n")
    put(tmp_path / "picture.png", b"\x89PNG\0")
    put(tmp_path / "LICENSE", "not this\n")
    assert list(read_documents([tmp_path])) == list("12345")
    assert list(read_documents([tmp_path, tmp_path / "LICENSE"]))[-1] == "not this"


def test_max_documents_goes_over_all_sources(tmp_path: Path):
    paths = [put(tmp_path / f"{name}.txt", lines_of([name] * 3)) for name in "ab"]
    assert list(read_documents(paths, max_documents=4)) == ["a", "a", "a", "b"]
    with pytest.raises(ValueError, match="max_documents=0 must be positive"):
        read_documents(paths, max_documents=0)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path):
    good, bad = put(tmp_path / "a.txt", "a\n"), put(tmp_path / "b.jsonl", "no JSON\n")
    documents = read_documents([good, bad])
    assert next(documents) == "a"
    with pytest.raises(ValueError, match="line 1"):
        next(documents)


def test_standard_input_in_a_process(tmp_path: Path):
    code = "from hfblog.corpora import read_documents; print(ascii(list(read_documents(['-']))))"
    done = subprocess.run([sys.executable, "-c", code], input=lines_of(LAWS).encode(), capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == ascii(LAWS)


def test_empty_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(ValueError, match="standard input is empty"):
        list(read_documents(["-"]))


# --- encodings ---


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_other_encodings(tmp_path: Path, encoding: str):
    path = put(tmp_path / "a.txt", lines_of(LAWS[:2]).encode(encoding))
    assert list(read_documents([path], encoding=encoding)) == LAWS[:2]


@pytest.mark.parametrize(
    "encoding, text",
    [("gb18030", LAWS[0]), ("big5", "中華民國國民在法律上一律平等"), ("shift_jis", "国民は法の下に平等")],
)
def test_a_wrong_encoding_names_file_line_byte_and_the_likely_one(tmp_path: Path, encoding: str, text: str):
    path = put(tmp_path / "a.txt", b"a line\nab" + text.encode(encoding) + b"\n")
    message = rf"a\.txt, line 2, byte 3: b'\\x..' is no utf-8; it looks like {encoding}: .*--encoding {encoding}\)"
    with pytest.raises(ValueError, match=message):
        list(read_documents([path]))
    assert list(read_documents([path], encoding=encoding)) == ["a line", f"ab{text}"]
    assert sniff_encoding(text.encode(encoding)) == encoding


def test_the_place_of_a_wrong_byte_in_a_later_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora, "BLOCK", 10)
    path = put(tmp_path / "a.txt", b"12345\n" * 20 + b"abc\xff\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 21, byte 4: b'\\xff' is no utf-8"):
        list(read_documents([path]))


def test_a_damaged_byte_in_utf_8_gets_no_false_advice(tmp_path: Path):
    path = put(tmp_path / "a.txt", lines_of(LAWS[:2] * 50).encode() + b"\xe4\xb8\n" + lines_of(LAWS[:2] * 50).encode())
    with pytest.raises(ValueError, match="line 101, byte 1: .* is no utf-8; name its encoding"):
        list(read_documents([path]))


def test_sniff_encoding_of_parts():
    assert sniff_encoding(LAWS[0].encode()) == "utf-8"
    assert sniff_encoding(LAWS[0].encode("gb18030")[:-1]) == "gb18030"  # cut within a character
    assert sniff_encoding(b"plain") is None
    assert sniff_encoding("déjà vu à la fenêtre".encode("latin-1")) is None


def test_utf_16_names_its_encoding(tmp_path: Path):
    for name, encoding in (("little", "utf-16-le"), ("big", "utf-16-be")):
        path = put(tmp_path / name, ("\ufeff" + lines_of(LAWS)).encode(encoding))
        with pytest.raises(ValueError, match=f"{name} is UTF-16: pass encoding='utf-16'"):
            list(read_documents([path]))
        assert list(read_documents([path], encoding="utf-16")) == LAWS


def test_an_unknown_encoding(tmp_path: Path):
    with pytest.raises(ValueError, match="encoding='utf-9' is not known"):
        list(read_documents([put(tmp_path / "a.txt", "a\n")], encoding="utf-9"))


# --- what cannot be read ---


def test_sources_that_are_not_there(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no file or folder .*nowhere"):
        read_documents([tmp_path / "nowhere"])
    put(tmp_path / "picture.png", b"\x89PNG\0")
    with pytest.raises(ValueError, match=r"the folder .* holds no files that end in \.txt, "):
        read_documents([tmp_path])
    with pytest.raises(ValueError, match=r"picture\.png holds bytes of 0"):
        list(read_documents([tmp_path / "picture.png"]))


@pytest.mark.parametrize(
    "name, content", [("a.txt", ""), ("b.txt", "\n \n"), ("c.jsonl", '{"text": ""}\n'), ("d.csv", "text\n"), ("e.json", "[]")]
)
def test_a_source_without_a_document(tmp_path: Path, name: str, content: str):
    with pytest.raises(ValueError, match=f"{re.escape(name)} is empty"):
        list(read_documents([put(tmp_path / name, content)]))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"text": "a"}\n\n{broken\n', r"a\.jsonl, line 3: no JSON .*\{broken"),
        ("a.json", '[{"text": "a"},\n{"text" "b"}]\n', r"a\.json, line 2: no JSON"),
        ("a.jsonl", '{"title": "a", "id": 1}\n', "line 1 has none of the columns text, .*it has 'title', 'id'"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', r"line 1: 'text' is no string but \['a', 'b'\]"),
        ("a.jsonl", "7\n", "line 1: a document is a string or an object with one, got 7"),
        ("a.json", '["a", 7]\n', r"a\.json, entry 2: a document is a string"),
        ("a.csv", "title,id\na,1\n", r"a\.csv has none of the columns .*it has 'title', 'id'"),
        ("a.parquet", "text", r"a\.parquet is no parquet file"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path: Path, name: str, content: str, message: str):
    with pytest.raises(ValueError, match=message):
        list(read_documents([put(tmp_path / name, content)]))


def test_a_column_that_is_missing_or_holds_no_strings(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "words": [["a", "b"]], "number": [1]}), path)
    with pytest.raises(ValueError, match="has no column 'title'; it has 'text', 'words', 'number'"):
        list(read_documents([path], column="title"))
    with pytest.raises(ValueError, match="the column 'words' holds list<.*not strings"):
        list(read_documents([path], column="words"))
    with pytest.raises(ValueError, match="the column 'number' holds int64, not strings"):
        list(read_documents([path], column="number"))


# --- progress ---


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bars, which the environment of the tests turns off."""
    monkeypatch.setattr(logging, "_tqdm_active", True)


def test_the_bar_counts_bytes(tmp_path: Path, capfd: pytest.CaptureFixture, bars: None):
    path = put(tmp_path / "a.txt", "a\n" * 1000)
    assert sum(1 for _ in read_documents([path])) == 1000
    assert capfd.readouterr().err == ""
    assert sum(1 for _ in read_documents([path], progress=True)) == 1000
    assert "2.00k/2.00k" in capfd.readouterr().err

"""Any text as a stream of documents."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfblog.corpora import read_documents, sniff_encoding

LAWS = ["第一条　为了惩罚犯罪", "第二条 保护人民", "第三条"]


def written(path, data) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return str(path)


@pytest.mark.parametrize("suffix", [".txt", ".md", "", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt.gz", ".jsonl.gz"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"laws{suffix}"
    rows = [{"id": number, "text": text} for number, text in enumerate(LAWS)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif suffix.startswith(".jsonl"):
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    elif suffix == ".json":
        data = json.dumps(rows, ensure_ascii=False, indent=1)
    elif suffix in (".csv", ".tsv"):
        data = "\n".join([",".join(["id", "text"]), *(f"{row['id']},{row['text']}" for row in rows)])
        data = data.replace(",", "\t") if suffix == ".tsv" else data
    else:
        data = "\ufeff" + "\r\n\r\n".join(LAWS)
    if suffix != ".parquet":
        written(path, gzip.compress(data.encode("utf-8")) if suffix.endswith(".gz") else data)
    assert list(read_documents([path])) == LAWS
    assert list(read_documents([path], max_documents=2)) == LAWS[:2]


def test_folders_and_line_ends(tmp_path):
    written(tmp_path / "b.txt", "二\u2028仍是二\n三")
    (tmp_path / "a").mkdir()
    written(tmp_path / "a" / "x.jsonl", '{"content": "一"}\n\n')
    written(tmp_path / "picture.png", b"\x89PNG\0")
    assert list(read_documents([tmp_path])) == ["一", "二\u2028仍是二", "三"]


def test_standard_input(run_python):
    code = """
import io, sys
from hfblog.corpora import read_documents
sys.stdin = io.TextIOWrapper(io.BytesIO("天\\n地\\n".encode()))
print(list(read_documents(["-"])))
"""
    assert run_python(code) == "['天', '地']"


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16"])
def test_other_encodings_are_named(tmp_path, encoding):
    text = "中華人民共和國\n第二條 體系" if encoding == "big5" else "中华人民共和国\n第二条 犯罪"
    path = written(tmp_path / "laws.txt", text.encode(encoding))
    with pytest.raises(ValueError, match=f"laws.txt.*--encoding {encoding}"):
        list(read_documents([path]))
    assert list(read_documents([path], encoding=encoding)) == text.split("\n")


def test_where_text_is_no_text(tmp_path):
    for name, data, settings, message in (
        ("empty.txt", "\n \n", {}, "empty.txt is empty"),
        ("bad.txt", "天\n地".encode() + b"\n\xff\xfe\xff", {}, r"line 3, byte 1: b'\\xff' is no utf-8"),
        ("zeros.txt", b"a\0b", {}, "holds bytes of 0"),
        ("broken.jsonl", '{"text": "a"}\n{"text":', {}, "line 2: no JSON"),
        ("other.jsonl", '{"name": "a"}', {}, "line 1 has none of the columns text, .*it has 'name'"),
        ("other.csv", "name,age\na,1\n", {"column": "body"}, "no column 'body'; it has 'name', 'age'"),
        ("number.jsonl", '{"text": 3}', {}, "'text' is no string but 3"),
        ("fake.parquet", b"PAR0", {}, "fake.parquet is no parquet file"),
        ("plain.txt", "a", {"encoding": "klingon"}, "encoding='klingon' is not known"),
    ):
        path = written(tmp_path / name, data)
        with pytest.raises(ValueError, match=message):
            list(read_documents([path], **settings))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match="holds int64, not strings"):
        list(read_documents([tmp_path / "numbers.parquet"]))
    with pytest.raises(ValueError, match="there is no file or folder nowhere"):
        read_documents(["nowhere"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no files that end in"):
        read_documents([tmp_path / "none"])
    with pytest.raises(ValueError, match="max_documents=0"):
        read_documents([tmp_path], max_documents=0)


def test_sniffing():
    assert sniff_encoding("中国人民".encode("gb18030")[:-1]) == "gb18030"
    assert sniff_encoding(b"\xff\xff\xff") is None

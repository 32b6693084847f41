"""The loopback Hub, driven by the real clients in subprocesses: they read their settings when they are imported."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import GITATTRIBUTES, HubServer

REPO = "owner/model"
CARD = "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: fill-mask\ntags:\n- toy\n---\n# Toy\n"

PRELUDE = """
import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

args = json.loads(sys.argv[1])
api = HfApi()

def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
    return None

def contents(folder):
    files = [p for p in Path(folder).rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes().hex() for p in files}

def report(value):
    print(json.dumps(value))
"""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub
        assert hub.errors == []


def run_client(server: HubServer, home: Path, script: str, token: str | None = "hf_owner", **args: Any) -> Any:
    """Run a client script, return what it reported."""
    program = PRELUDE + textwrap.dedent(script)
    env = server.env(home, token) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, json.dumps(args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_files(folder: Path, files: dict[str, bytes]) -> str:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return str(folder)


def decoded(contents: dict[str, str]) -> dict[str, bytes]:
    return {path: bytes.fromhex(data) for path, data in contents.items()}


def count(server: HubServer, method: str, path_part: str) -> int:
    return sum(m == method and path_part in target for m, target, _ in server.requests)


def test_upload_download_and_update(server: HubServer, tmp_path: Path) -> None:
    first = {
        "README.md": CARD.encode(),
        "config.json": b"{}\n",
        "empty.txt": b"",
        "model.safetensors": bytes(range(256)) * 500,
        "data/ä b#1.txt": "grüße".encode(),
    }
    second = {**first, "config.json": b'{"a": 1}\n'}
    del second["empty.txt"]
    folders = [write_files(tmp_path / "1", first), write_files(tmp_path / "2", second)]
    script = """
        api.create_repo(args["repo"])
        shas, copies = [], []
        for folder in args["folders"]:
            api.upload_folder(repo_id=args["repo"], folder_path=folder, delete_patterns="*")
            copies.append(contents(snapshot_download(args["repo"])))
            shas.append(api.model_info(args["repo"]).sha)
        # Unchanged files are recognised by their ids: no third commit.
        api.upload_folder(repo_id=args["repo"], folder_path=folder)
        assert api.model_info(args["repo"]).sha == shas[-1]
        old = Path(hf_hub_download(args["repo"], "config.json", revision=shas[0])).read_text()
        local = snapshot_download(args["repo"], revision=shas[0], local_dir=args["local"], allow_patterns="data/*")
        report([shas, copies, old])
    """
    shas, copies, old = run_client(
        server, tmp_path / "home", script, repo=REPO, folders=folders, local=str(tmp_path / "local")
    )

    attributes = {".gitattributes": GITATTRIBUTES}
    assert [decoded(copy) for copy in copies] == [first | attributes, second | attributes]
    assert server.files(REPO) == second | attributes
    assert server.files(REPO, shas[0]) == first | attributes
    assert old == "{}\n"
    assert (tmp_path / "local" / "data" / "ä b#1.txt").read_bytes() == first["data/ä b#1.txt"]
    assert [commit.oid for commit in server.commits(REPO)[:-1]] == shas[::-1]
    assert [commit.title for commit in server.commits(REPO)][-1] == "initial commit"
    # The weights did not change, so they travelled once.
    assert [status for method, _, status in server.requests if method == "PUT"] == [200]


def test_branches_and_tags(server: HubServer, tmp_path: Path) -> None:
    oid = server.add_repo(REPO, {"a.txt": b"one"})
    script = """
        repo = args["repo"]
        api.create_tag(repo, tag="v1.0")
        api.create_tag(repo, tag="v1.0", exist_ok=True)
        api.create_branch(repo, branch="exp/two")
        api.create_branch(repo, branch="exp/two", exist_ok=True)
        for revision, text in (("exp/two", b"two"), ("main", b"three")):
            api.upload_file(repo_id=repo, path_or_fileobj=text, path_in_repo="a.txt", revision=revision)
        read = lambda revision: Path(hf_hub_download(repo, "a.txt", revision=revision)).read_text()
        texts = [read(r) for r in ("main", "v1.0", "exp/two", args["oid"])]
        refs = api.list_repo_refs(repo)
        names = [[ref.name for ref in group] for group in (refs.branches, refs.tags)]
        titles = [commit.title for commit in api.list_repo_commits(repo, revision="v1.0")]
        to_tag = error_of(api.upload_file, repo_id=repo, path_or_fileobj=b"", path_in_repo="b", revision="v1.0")
        stale = error_of(
            api.upload_file, repo_id=repo, path_or_fileobj=b"x", path_in_repo="b", parent_commit=args["oid"]
        )
        api.delete_tag(repo, tag="v1.0")
        gone = error_of(api.model_info, repo, revision="v1.0")
        report([texts, names, titles, to_tag, stale, gone])
    """
    texts, names, titles, to_tag, stale, gone = run_client(server, tmp_path, script, repo=REPO, oid=oid)
    assert texts == ["three", "one", "two", "one"]
    assert names == [["exp/two", "main"], ["v1.0"]]
    assert titles == ["Add files", "initial commit"]
    assert (to_tag, stale, gone) == ("RevisionNotFoundError", "HfHubHTTPError", "RevisionNotFoundError")


def test_repo_information_and_settings(server: HubServer, tmp_path: Path) -> None:
    server.add_repo(REPO, {"README.md": CARD.encode(), "sub/model.bin": b"weights"})
    server.add_repo("other/hidden", private=True)
    script = """
        repo = args["repo"]
        info = api.model_info(repo, files_metadata=True)
        siblings = {s.rfilename: (s.size, s.lfs.sha256 if s.lfs else None) for s in info.siblings}
        folders = [entry.path for entry in api.list_repo_tree(repo)]
        paths = [(p.path, p.size) for p in api.get_paths_info(repo, ["sub/model.bin", "sub", "no"]) if p.path != "sub"]
        api.update_repo_settings(repo, visibility="private")
        private = api.model_info(repo).private
        api.move_repo(repo, "owner/renamed")
        api.create_repo("owner/set", repo_type="dataset", private=True)
        api.upload_file(repo_id="owner/set", path_or_fileobj=b"1,2", path_in_repo="x.csv", repo_type="dataset")
        read = Path(hf_hub_download("owner/set", "x.csv", repo_type="dataset")).read_text()
        models = [model.id for model in api.list_models(author="owner")] + [m.id for m in api.list_models()]
        api.delete_repo("owner/set", repo_type="dataset")
        api.delete_repo("owner/set", repo_type="dataset", missing_ok=True)
        report([
            api.whoami()["name"], info.tags, info.card_data.license, info.pipeline_tag, siblings, folders, paths,
            private, read, models,
        ])
    """
    name, tags, licence, task, siblings, folders, paths, private, read, models = run_client(
        server, tmp_path, script, repo=REPO
    )
    assert (name, licence, task, private, read) == ("owner", "mit", "fill-mask", True, "1,2")
    assert tags == ["toy", "transformers", "fill-mask", "license:mit"]
    assert siblings["README.md"] == [len(CARD), None] and siblings["sub/model.bin"][0] == 7
    assert len(siblings["sub/model.bin"][1]) == 64
    assert folders == [".gitattributes", "README.md", "sub"]
    assert paths == [["sub/model.bin", 7]]
    assert models == ["owner/renamed"] * 2
    assert server.is_private("owner/renamed")
    assert (server.repo_ids(), server.repo_ids("dataset")) == (["other/hidden", "owner/renamed"], [])


@pytest.mark.parametrize("token", ["hf_owner", None])
def test_missing_repo_revision_and_entry(server: HubServer, tmp_path: Path, token: str | None) -> None:
    server.add_repo(REPO, {"a.txt": b"a"})
    script = """
        repo = args["repo"]
        report([
            error_of(api.model_info, "owner/nope"),
            error_of(api.model_info, "nope"),
            error_of(hf_hub_download, "owner/nope", "a.txt"),
            error_of(snapshot_download, "owner/nope"),
            error_of(api.model_info, repo, revision="nope"),
            error_of(hf_hub_download, repo, "a.txt", revision="nope"),
            error_of(hf_hub_download, repo, "nope.txt"),
            api.file_exists(repo, "a.txt"),
            api.file_exists(repo, "nope.txt"),
            api.repo_exists("owner/nope"),
            api.revision_exists(repo, "nope"),
        ])
    """
    reported = run_client(server, tmp_path, script, token=token, repo=REPO)
    assert reported[:4] == ["RepositoryNotFoundError"] * 4
    assert reported[4:7] == ["RevisionNotFoundError"] * 2 + ["RemoteEntryNotFoundError"]
    assert reported[7:] == [True, False, False, False]


def test_visibility_and_write_access(server: HubServer, tmp_path: Path) -> None:
    server.add_repo("owner/hidden", {"a.txt": b"a"}, private=True)
    server.add_repo("owner/open", {"a.txt": b"a"})
    script = """
        put = lambda repo: error_of(api.upload_file, repo_id=repo, path_or_fileobj=b"b", path_in_repo="b.txt")
        report([
            error_of(hf_hub_download, "owner/hidden", "a.txt"),
            error_of(snapshot_download, "owner/hidden"),
            error_of(hf_hub_download, "owner/open", "a.txt"),
            put("owner/hidden"),
            put("owner/open"),
            error_of(api.create_repo, "owner/new"),
            error_of(api.create_repo, "owner/open", exist_ok=True),
            error_of(api.create_repo, "owner/hidden", exist_ok=True),
        ])
    """
    seen = {
        token: run_client(server, tmp_path / str(token), script, token=token)
        for token in ("hf_owner", "hf_other", None, "hf_wrong")
    }
    missing, denied = "RepositoryNotFoundError", "HfHubHTTPError"
    assert seen["hf_owner"] == [None] * 8
    assert seen["hf_other"] == [missing, missing, None, missing, denied, denied, None, denied]
    assert seen[None] == [missing, missing, None, missing, denied, denied, None, denied]
    assert seen["hf_wrong"] == [denied] * 8
    assert server.repo_ids() == ["owner/hidden", "owner/new", "owner/open"]
    statuses = {status for _, target, status in server.requests if target.endswith("/repos/create")}
    assert statuses == {200, 401, 403, 409}


def test_creating_twice(server: HubServer, tmp_path: Path) -> None:
    script = """
        urls = [api.create_repo(args["repo"], private=True, exist_ok=True) for _ in range(2)]
        report([[url.repo_id for url in urls], error_of(api.create_repo, args["repo"])])
    """
    assert run_client(server, tmp_path, script, repo=REPO) == [[REPO, REPO], "HfHubHTTPError"]
    assert server.is_private(REPO)


def test_interrupted_download(server: HubServer, tmp_path: Path) -> None:
    # The client hands on downloads in pieces of 10 MiB: only what is longer can be resumed.
    large = bytes(range(251)) * 60_000
    server.add_repo(REPO, {"large.bin": large, "small.bin": b"small" * 100})
    server.drop_connection("GET", "/large.bin", after_bytes=11 * 2**20)
    server.drop_connection("GET", "/small.bin", after_bytes=10, reset=True)
    script = """
        outcomes = [error_of(hf_hub_download, args["repo"], name) for name in ("large.bin", "small.bin")]
        snapshot_download(args["repo"])
        report([outcomes, contents(hf_hub_download(args["repo"], "large.bin").rsplit("/", 1)[0])])
    """
    outcomes, copies = run_client(server, tmp_path, script, repo=REPO)
    assert outcomes == [None, "ReadError"]
    assert decoded(copies) == server.files(REPO)
    assert [s for m, t, s in server.requests if (m, t.rsplit("/", 1)[-1]) == ("GET", "large.bin")] == [0, 206]
    assert [s for m, t, s in server.requests if (m, t.rsplit("/", 1)[-1]) == ("GET", "small.bin")] == [0, 200]


def test_interrupted_upload(server: HubServer, tmp_path: Path) -> None:
    oid = server.add_repo(REPO)
    files = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000}
    folder = write_files(tmp_path / "folder", files)
    script = """
        report(error_of(api.upload_folder, repo_id=args["repo"], folder_path=args["folder"]))
    """

    def upload(number: int) -> Any:
        return run_client(server, tmp_path / str(number), script, repo=REPO, folder=folder)

    server.fail("PUT", "/lfs-upload/", 400)
    assert upload(1) == "RuntimeError"
    assert [commit.oid for commit in server.commits(REPO)] == [oid]

    # A broken upload of the object is repeated; the commit is not, so the call fails.
    server.drop_connection("PUT", "/lfs-upload/", after_bytes=1000)
    server.drop_connection("POST", "/commit/main", after_bytes=20)
    assert upload(2) in ("ReadError", "RemoteProtocolError", "WriteError")
    assert [status for method, _, status in server.requests if method == "PUT"] == [400, 0, 200]
    assert [commit.oid for commit in server.commits(REPO)] == [oid]

    assert upload(3) is None
    assert server.files(REPO) == files | {".gitattributes": GITATTRIBUTES}
    # The object of the failed attempt was kept.
    assert count(server, "PUT", "/lfs-upload/") == 3


def test_passing_server_error_is_retried(server: HubServer, tmp_path: Path) -> None:
    server.add_repo(REPO, {"a.txt": b"a"})
    server.fail("GET", f"/api/models/{REPO}/tree", 503)
    script = """
        report(contents(snapshot_download(args["repo"])))
    """
    assert decoded(run_client(server, tmp_path, script, repo=REPO)) == server.files(REPO)
    assert [s for _, target, s in server.requests if "/tree/" in target] == [503, 200]


def test_upload_broken_off_by_the_client_has_no_effect(server: HubServer) -> None:
    oid = server.add_repo(REPO)
    lines = [
        {"key": "header", "value": {"summary": "half"}},
        {"key": "file", "value": {"path": "a.txt", "content": "YQ=="}},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    head = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hf_owner\r\n"
    for length, commits in ((len(body) + 100, 1), (len(body), 2)):
        host, port = server.endpoint.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        assert len(server.commits(REPO)) == commits
        assert server.commits(REPO)[-1].oid == oid
    assert [status for _, _, status in server.requests] == [0, 200]


@pytest.mark.parametrize(
    ("byte_range", "status", "body", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=10-", 416, None, "bytes */10"),
    ],
)
def test_ranges(server: HubServer, byte_range: str, status: int, body: bytes | None, content_range: str | None) -> None:
    server.add_repo(REPO, {"a.txt": b"0123456789"})
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"))
    connection.request("GET", f"/{REPO}/resolve/main/a.txt", headers={"Range": byte_range})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    assert (response.status, response.headers["Content-Range"]) == (status, content_range)
    assert body is None or data == body


def test_environment_hides_the_callers_settings(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    env = server.env(tmp_path, token=None)
    hidden = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"}
    assert not hidden & set(env)
    assert env["HF_ENDPOINT"] == server.endpoint and env["HF_HOME"] == str(tmp_path)
    assert server.env(tmp_path)["HF_TOKEN"] == "hf_owner"


def test_model_card_validation(server: HubServer, tmp_path: Path) -> None:
    server.add_repo(REPO)
    cards = {
        "good": CARD,
        "no metadata": "# Toy\n",
        "language is a boolean": CARD.replace("license: mit", "language: no"),
        "tags are no list": CARD.replace("- toy", "toy"),
        "broken": CARD.replace("license: mit", "license: [mit"),
    }
    script = """
        class RawCard(ModelCard):  # gets past the client's own parser
            def __init__(self, text):
                self.text = text

            def __str__(self):
                return self.text

        outcomes = {name: error_of(RawCard(text).validate) for name, text in args["cards"].items()}
        upload = lambda text: api.upload_file(
            repo_id=args["repo"], path_or_fileobj=text.encode(), path_in_repo="README.md"
        )
        outcomes["upload of broken"] = error_of(upload, args["cards"]["broken"])
        upload(args["cards"]["good"])
        report(outcomes)
    """
    outcomes = run_client(server, tmp_path, script, repo=REPO, cards=cards)
    accepted = {name for name, error in outcomes.items() if error is None}
    assert accepted == {"good", "no metadata"}
    assert set(outcomes.values()) == {None, "ValueError"}
    assert server.files(REPO)["README.md"] == CARD.encode()


def test_transformers_round_trip(server: HubServer, tmp_path: Path) -> None:
    script = """
        import torch
        from transformers import AutoModel, BertConfig, BertModel

        config = BertConfig(
            vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        model = BertModel(config).eval()
        model.push_to_hub(args["repo"], private=True)
        copy = AutoModel.from_pretrained(args["repo"])
        ids = torch.arange(6)[None]
        with torch.no_grad():
            assert torch.equal(model(ids).last_hidden_state, copy(ids).last_hidden_state)
        ours, theirs = model.state_dict(), copy.state_dict()
        report(ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours))
    """
    assert run_client(server, tmp_path, script, repo=REPO) is True
    assert server.is_private(REPO)
    assert {"config.json", "model.safetensors", "README.md"} <= set(server.files(REPO))

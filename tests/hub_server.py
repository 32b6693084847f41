"""A loopback server that speaks the Hugging Face Hub's protocol, for tests that drive the real client libraries.

Mocking libraries do not intercept the HTTP client of ``huggingface_hub`` 2.x, and the client reads its settings when
it is imported; so tests start this server and run client code in a subprocess with ``HubServer.env``. Repositories
(commits, branches, tags, LFS objects) live in memory and are seen by the test through ``files``, ``commits``,
``is_private`` and ``requests``. ``drop_connection`` and ``fail`` break chosen requests.

Not implemented: Xet storage, multi-part LFS uploads, pull requests, discussions, organisations, spaces, redirects of
moved repositories.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png")
LFS_THRESHOLD = 10 * 1024 * 1024
REPO_TYPES = {"models": "model", "datasets": "dataset"}
# The real Hub starts every repository with a commit that holds this file.
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

_FRONT_MATTER = re.compile(r"^\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
_HUB_VARIABLES = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")


class Blob:
    """Contents of one file; ``lfs`` tells how it was committed, which decides its ETag and object ids."""

    def __init__(self, data: bytes, lfs: bool = False) -> None:
        self.data = data
        self.lfs = lfs

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def _stored(self) -> bytes:
        """What git itself would hold: the contents, or the pointer to an LFS object."""
        if not self.lfs:
            return self.data
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return pointer.encode()

    @cached_property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self._stored) + self._stored).hexdigest()

    @property
    def content_oid(self) -> str:
        """The id the client compares with its local file to skip unchanged ones, also used as ETag."""
        return self.sha256 if self.lfs else self.git_oid

    def lfs_info(self, oid_key: str) -> dict[str, Any]:
        """LFS metadata; the tree calls the digest ``oid`` where ``siblings`` calls it ``sha256``."""
        return {oid_key: self.sha256, "size": len(self.data), "pointerSize": len(self._stored)}


@dataclass(frozen=True)
class Commit:
    """One commit with the full listing of its files."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """A repository: refs point to commit oids, uploaded LFS objects are kept by their sha256."""

    repo_type: str
    repo_id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """Commit of a branch, a tag, a full ref or a (possibly short) commit oid."""
        if revision == "HEAD":
            revision = "main"
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or revision
        if oid in self.commits:
            return self.commits[oid]
        matches = [c for o, c in self.commits.items() if len(oid) >= 7 and o.startswith(oid)]
        return matches[0] if len(matches) == 1 else None

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and its ancestors, newest first."""
        commits = [commit]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def add_commit(self, branch: str, files: dict[str, Blob], author: str, title: str, message: str = "") -> Commit:
        parent = self.branches.get(branch)
        listing = [(path, blob.git_oid) for path, blob in sorted(files.items())]
        # The number of commits keeps two commits with equal contents apart, as a time stamp would.
        identity = json.dumps([parent, title, message, author, listing, len(self.commits)])
        oid = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, message, author, _now(), files)
        self.branches[branch] = oid
        return self.commits[oid]


@dataclass
class _Fault:
    method: str
    path_part: str
    times: int
    status: int | None = None
    after_bytes: int = 0
    reset: bool = False


@dataclass
class _Request:
    method: str
    parts: list[str]
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None

    def json(self) -> dict[str, Any]:
        try:
            payload = json.loads(self.body)
        except ValueError:
            payload = None
        if not isinstance(payload, dict):
            raise _HubError(400, "Expected a JSON object")
        return payload


@dataclass
class _Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _HubError(Exception):
    """An error response; ``code`` becomes X-Error-Code, from which the client chooses its exception."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": " ".join(message.split()).encode("ascii", "replace").decode()}
        if code is not None:
            self.headers["X-Error-Code"] = code
        self.headers.update(headers or {})
        self.payload = dict(payload or {})

    def response(self) -> _Response:
        return _json({"error": self.message, **self.payload}, self.status, self.headers)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _json(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> _Response:
    body = json.dumps(payload, default=str).encode()
    return _Response(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def _flag(request: _Request, name: str) -> bool:
    return request.query.get(name, [""])[-1].lower() in ("1", "true")


def _is_private(payload: Mapping[str, Any], default: bool) -> bool:
    if "visibility" in payload:
        return payload["visibility"] == "private"
    return bool(payload.get("private", default))


def _front_matter(readme: str) -> Any:
    """Parsed metadata block of a card, None without one; raises ``yaml.YAMLError``."""
    match = _FRONT_MATTER.match(readme)
    return yaml.safe_load(match.group(1)) if match else None


def card_errors(readme: str) -> list[str]:
    """Problems of a card's metadata: broken YAML, or the wrong types of well-known fields.

    The type checks catch YAML's own traps, such as ``language: no`` which is a boolean.
    """
    try:
        data = _front_matter(readme)
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if data is None:
        return []
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]

    def is_strings(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    errors = []
    for key in ("license", "license_name", "library_name", "pipeline_tag"):
        if data.get(key) is not None and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for key in ("language", "base_model", "datasets", "metrics"):
        if data.get(key) is not None and not isinstance(data[key], str) and not is_strings(data[key]):
            errors.append(f'"{key}" must be a string or a list of strings')
    if data.get("tags") is not None and not is_strings(data["tags"]):
        errors.append('"tags" must be a list of strings')
    index = data.get("model-index")
    if index is not None:
        if not isinstance(index, list) or not all(isinstance(item, dict) for item in index):
            errors.append('"model-index" must be a list of mappings')
        elif not all(isinstance(i.get("name"), str) and isinstance(i.get("results"), list) for i in index):
            errors.append('"model-index" entries need "name" and "results"')
    return errors


def _byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte asked for, None for the whole file."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if first == "":
        start, stop = max(size - int(last), 0), size - 1
    else:
        start, stop = int(first), min(int(last), size - 1) if last else size - 1
    if start > stop:
        raise _HubError(416, "Requested range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


class HubServer:
    """In-memory Hub on 127.0.0.1, as a context manager or with ``start`` and ``stop``.

    ``tokens`` maps access tokens to user names; a user may write under the own name only.
    """

    def __init__(self, tokens: Mapping[str, str] | None = None) -> None:
        self.tokens = dict(tokens) if tokens is not None else {"hf_owner": "owner", "hf_other": "other"}
        # (method, request target with its query, status); status 0: the connection was dropped.
        self.requests: list[tuple[str, str, int]] = []
        # Tracebacks of unexpected exceptions, each of which was answered with status 500.
        self.errors: list[str] = []
        self._repos: dict[tuple[str, str], Repo] = {}
        self._faults: list[_Fault] = []
        # Signs upload addresses: like pre-signed storage URLs they are used without the access token.
        self._secret = secrets.token_bytes(16)
        self._lock = threading.RLock()
        self._httpd: _HttpServer | None = None
        self._thread: threading.Thread | None = None

    # -- life cycle

    def start(self) -> HubServer:
        self._httpd = _HttpServer(("127.0.0.1", 0), _Handler)
        self._httpd.hub = self
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._httpd is None or self._thread is None:
            return
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()
        self._httpd = self._thread = None

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        if self._httpd is None:
            raise RuntimeError("the server is not running")
        return f"http://127.0.0.1:{self._httpd.server_port}"

    def env(self, home: Path | str, token: str | None = "hf_owner") -> dict[str, str]:
        """Environment for a client process: this server, caches under ``home``, none of the caller's Hub settings."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(_HUB_VARIABLES)}
        env.update(
            HF_ENDPOINT=self.endpoint,
            HF_HOME=str(home),
            HF_MODULES_CACHE=str(Path(home) / "modules"),
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_UPDATE_CHECK="1",
            HF_HUB_OFFLINE="0",
            HF_HUB_ETAG_TIMEOUT="5",
            HF_HUB_DOWNLOAD_TIMEOUT="5",
            # Loading *.bin weights would otherwise start a thread that calls a public conversion service.
            DISABLE_SAFETENSORS_CONVERSION="1",
            NO_PROXY="127.0.0.1",
            no_proxy="127.0.0.1",
        )
        if token is None:
            env["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
        else:
            env["HF_TOKEN"] = token
        return env

    # -- state, as tests see and prepare it

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        private: bool = False,
        repo_type: str = "model",
    ) -> str:
        """Create a repository without a client, with one commit if ``files`` are given; returns the head's oid."""
        with self._lock:
            commit = self._create(repo_type, repo_id, private)
            if files:
                repo = self._repos[repo_type, repo_id]
                blobs = {path: Blob(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
                repo.lfs.update({blob.sha256: blob.data for blob in blobs.values() if blob.lfs})
                commit = repo.add_commit("main", {**commit.files, **blobs}, repo.owner, "Add files")
            return commit.oid

    def repo_ids(self, repo_type: str = "model") -> list[str]:
        with self._lock:
            return sorted(repo_id for kind, repo_id in self._repos if kind == repo_type)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Contents by path, LFS objects resolved, with the ``.gitattributes`` every repository starts with."""
        with self._lock:
            return {path: blob.data for path, blob in self._known(repo_id, revision, repo_type).files.items()}

    def is_private(self, repo_id: str, repo_type: str = "model") -> bool:
        with self._lock:
            return self._repos[repo_type, repo_id].private

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Commits of a revision, newest first; the last one is the initial commit made at creation."""
        with self._lock:
            return self._repos[repo_type, repo_id].history(self._known(repo_id, revision, repo_type))

    def _known(self, repo_id: str, revision: str, repo_type: str) -> Commit:
        commit = self._repos[repo_type, repo_id].find(revision)
        if commit is None:
            raise KeyError(revision)
        return commit

    # -- faults

    def drop_connection(self, method: str, path_part: str, after_bytes: int = 0, times: int = 1, reset: bool = False) -> None:
        """Cut the next ``times`` requests whose target contains ``path_part``.

        A download gets full headers and ``after_bytes`` bytes of its body, then end of stream, which the client takes
        for a passing fault; with ``reset`` a TCP reset instead, which it does not retry while it reads a body. An
        upload is read for ``after_bytes`` bytes, then reset without a response and without any effect here.
        """
        self._add_fault(_Fault(method, path_part, times, after_bytes=after_bytes, reset=reset))

    def fail(self, method: str, path_part: str, status: int, times: int = 1) -> None:
        """Answer the next ``times`` requests whose target contains ``path_part`` with ``status``, doing nothing."""
        self._add_fault(_Fault(method, path_part, times, status=status))

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def _add_fault(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def _take_fault(self, method: str, target: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and fault.path_part in target:
                    fault.times -= 1
                    return fault
        return None

    def _log(self, method: str, target: str, status: int) -> None:
        with self._lock:
            self.requests.append((method, target, status))

    # -- protocol

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> _Response:
        url = urlsplit(target)
        # Split before decoding: a revision or a path may hold an encoded slash.
        parts = [unquote(part) for part in url.path.split("/") if part]
        try:
            user = self._user(headers.get("Authorization"))
            with self._lock:
                return self._route(_Request(method, parts, parse_qs(url.query), headers, body, user))
        except _HubError as error:
            return error.response()
        except Exception:
            self.errors.append(traceback.format_exc())
            return _json({"error": traceback.format_exc()}, 500)

    def _user(self, authorization: str | None) -> str | None:
        if authorization is None:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise _HubError(401, "Invalid credentials in Authorization header")
        return user

    def _route(self, request: _Request) -> _Response:
        match request.method, request.parts:
            case "GET", ["api", registry] if registry.endswith("-harnesses"):
                # Every client process asks for this list until it has a cached copy.
                return _json({"standardEnvVars": [], "harnesses": {}})
            case "GET", ["api", "whoami-v2"]:
                return self._whoami(request)
            case "POST", ["api", "validate-yaml"]:
                return self._validate_yaml(request)
            case "POST", ["api", "repos", "create"]:
                return self._create_repo(request)
            case "DELETE", ["api", "repos", "delete"]:
                return self._delete_repo(request)
            case "POST", ["api", "repos", "move"]:
                return self._move_repo(request)
            case "GET", ["api", ("models" | "datasets") as kind]:
                return self._list_repos(request, REPO_TYPES[kind])
            case _, ["api", ("models" | "datasets") as kind, *rest]:
                return self._repo_api(request, REPO_TYPES[kind], rest)
            case _, ["datasets", *rest]:
                return self._repo_files(request, "dataset", rest)
            case _, ["lfs-upload", ("models" | "datasets") as kind, namespace, name, oid] if request.method == "PUT":
                return self._lfs_upload(request, REPO_TYPES[kind], f"{namespace}/{name}", oid)
            case _, [first, *_] if first != "api":
                return self._repo_files(request, "model", request.parts)
        raise _HubError(404, "Not found")

    def _repo_api(self, request: _Request, repo_type: str, rest: list[str]) -> _Response:
        repo_id = "/".join(rest[:2])

        def get(write: bool = False) -> Repo:
            return self._repo(request, repo_type, repo_id, write)

        match request.method, rest[2:]:
            case "GET", []:
                return self._repo_info(get(), "main")
            case "GET", ["revision", revision]:
                return self._repo_info(get(), revision)
            case "GET", ["tree", revision, *path]:
                return self._tree(get(), revision, "/".join(path), _flag(request, "recursive"))
            case "POST", ["paths-info", revision]:
                return self._paths_info(get(), revision, request)
            case "GET", ["refs"]:
                return self._refs(get())
            case "GET", ["commits", revision]:
                return self._history(get(), revision)
            case "GET", ["auth-check", *scope]:
                get(write=scope == ["write"])
                return _json({})
            case "POST", ["preupload", revision]:
                return self._preupload(get(write=True), revision, request)
            case "POST", ["commit", revision]:
                return self._commit(get(write=True), revision, request)
            case ("POST" | "DELETE") as method, [("branch" | "tag") as kind, name]:
                repo = get(write=True)
                if method == "DELETE":
                    return self._delete_ref(repo.branches if kind == "branch" else repo.tags, name)
                if kind == "branch":
                    start = request.json().get("startingPoint") or "main"
                    return self._create_ref(repo, repo.branches, name, start)
                return self._create_ref(repo, repo.tags, request.json()["tag"], name)
            case "PUT", ["settings"]:
                repo = get(write=True)
                repo.private = _is_private(request.json(), repo.private)
                return _json({"private": repo.private})
        get()  # an unknown repository is the more useful complaint
        raise _HubError(404, "Not found")

    def _repo_files(self, request: _Request, repo_type: str, rest: list[str]) -> _Response:
        match request.method, rest:
            case (("GET" | "HEAD"), [namespace, name, "resolve", revision, *path]) if path:
                repo = self._repo(request, repo_type, f"{namespace}/{name}")
                return self._resolve(repo, revision, "/".join(path), request.headers.get("Range"))
            case "POST", [namespace, name, "info", "lfs", *action] if name.endswith(".git"):
                repo = self._repo(request, repo_type, f"{namespace}/{name.removesuffix('.git')}", write=True)
                if action == ["objects", "batch"]:
                    return self._lfs_batch(repo, request)
                if action == ["verify"]:
                    return self._lfs_verify(repo, request)
            case (("GET" | "HEAD"), [name, "resolve", _, *path]) if path:
                self._repo(request, repo_type, name)
        raise _HubError(404, "Not found")

    def _repo(self, request: _Request, repo_type: str, repo_id: str, write: bool = False) -> Repo:
        """The repository if the user may see it (and write to it)."""
        repo = self._repos.get((repo_type, repo_id))
        if repo is None or (repo.private and request.user != repo.owner):
            # Private and missing look alike. The client knows a 401 without the code only under https URLs.
            if request.user is None:
                raise _HubError(401, "Invalid username or password.", "RepoNotFound")
            raise _HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self._check_namespace(request, repo.owner)
        return repo

    def _check_namespace(self, request: _Request, namespace: str) -> None:
        if request.user is None:
            raise _HubError(401, "Invalid username or password.")
        if request.user != namespace:
            raise _HubError(403, f'You don\'t have write access under the namespace "{namespace}"')

    def _find(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise _HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _url(self, repo: Repo, *parts: str) -> str:
        prefix = [] if repo.repo_type == "model" else [f"{repo.repo_type}s"]
        return "/".join([self.endpoint, *prefix, repo.repo_id, *parts])

    # accounts and repositories

    def _whoami(self, request: _Request) -> _Response:
        if request.user is None:
            raise _HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write", "createdAt": _now()}
        return _json(
            {
                "type": "user",
                "id": hashlib.sha1(request.user.encode()).hexdigest()[:24],
                "name": request.user,
                "fullname": request.user,
                "email": f"{request.user}@example.com",
                "emailVerified": True,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def _validate_yaml(self, request: _Request) -> _Response:
        content = str(request.json().get("content", ""))
        errors = [{"message": message} for message in card_errors(content)]
        warnings = []
        if not errors and not _front_matter(content):
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
        return _json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def _create(self, repo_type: str, repo_id: str, private: bool) -> Commit:
        repo = self._repos[repo_type, repo_id] = Repo(repo_type, repo_id, private)
        return repo.add_commit("main", {".gitattributes": Blob(GITATTRIBUTES)}, repo.owner, "initial commit")

    def _payload_repo(self, request: _Request) -> tuple[str, str]:
        """Type and id of the repository a create or delete call names."""
        payload = request.json()
        namespace = payload.get("organization") or request.user
        self._check_namespace(request, namespace or "")
        return payload.get("type") or "model", f"{namespace}/{payload['name']}"

    def _create_repo(self, request: _Request) -> _Response:
        repo_type, repo_id = self._payload_repo(request)
        if repo_type not in REPO_TYPES.values():
            raise _HubError(400, f"Unsupported repository type: {repo_type}")
        known = self._repos.get((repo_type, repo_id))
        if known is not None:
            # The client reads "url" from this answer too when it was called with exist_ok.
            raise _HubError(409, f"You already created this {repo_type} repo", payload={"url": self._url(known)})
        self._create(repo_type, repo_id, _is_private(request.json(), default=False))
        return _json({"url": self._url(self._repos[repo_type, repo_id]), "id": repo_id, "name": repo_id})

    def _delete_repo(self, request: _Request) -> _Response:
        repo_type, repo_id = self._payload_repo(request)
        self._repo(request, repo_type, repo_id, write=True)
        del self._repos[repo_type, repo_id]
        return _json({})

    def _move_repo(self, request: _Request) -> _Response:
        payload = request.json()
        source, target, repo_type = payload["fromRepo"], payload["toRepo"], payload.get("type") or "model"
        repo = self._repo(request, repo_type, source, write=True)
        self._check_namespace(request, target.split("/")[0])
        if (repo_type, target) in self._repos:
            raise _HubError(409, f"{target} already exists")
        repo.repo_id = target
        self._repos[repo_type, target] = self._repos.pop((repo_type, source))
        return _json({})

    def _list_repos(self, request: _Request, repo_type: str) -> _Response:
        author, search = (request.query.get(key, [""])[0] for key in ("author", "search"))
        found = [
            self._info(repo, self._find(repo, "main"), siblings=False)
            for (kind, _), repo in sorted(self._repos.items())
            if kind == repo_type
            and (not repo.private or request.user == repo.owner)
            and author in ("", repo.owner)
            and search in repo.repo_id
        ]
        return _json(found)

    def _repo_info(self, repo: Repo, revision: str) -> _Response:
        return _json(self._info(repo, self._find(repo, revision), siblings=True))

    def _info(self, repo: Repo, commit: Commit, siblings: bool) -> dict[str, Any]:
        readme = commit.files.get("README.md", Blob(b"")).data.decode(errors="replace")
        try:
            card = _front_matter(readme)
        except yaml.YAMLError:
            card = None
        card = card if isinstance(card, dict) else {}
        info: dict[str, Any] = {
            "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
            "id": repo.repo_id,
            "author": repo.owner,
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repo.history(commit)[-1].date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [str(tag) for tag in card.get("tags") or []],
            "cardData": card,
        }
        if repo.repo_type == "model":
            info["modelId"] = repo.repo_id
            for key in ("library_name", "pipeline_tag"):
                if card.get(key):
                    info[key] = card[key]
                    info["tags"].append(str(card[key]))
        if card.get("license"):
            info["tags"].append(f"license:{card['license']}")
        if siblings:
            info["siblings"] = [
                {
                    "rfilename": path,
                    "size": len(blob.data),
                    "blobId": blob.git_oid,
                    **({"lfs": blob.lfs_info("sha256")} if blob.lfs else {}),
                }
                for path, blob in sorted(commit.files.items())
            ]
            info["usedStorage"] = sum(len(blob.data) for blob in commit.files.values())
        return info

    # revisions

    def _refs(self, repo: Repo) -> _Response:
        def rows(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in sorted(refs.items())]

        branches, tags = rows(repo.branches, "heads"), rows(repo.tags, "tags")
        return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def _history(self, repo: Repo, revision: str) -> _Response:
        return _json(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": commit.date,
                }
                for commit in repo.history(self._find(repo, revision))
            ]
        )

    def _create_ref(self, repo: Repo, refs: dict[str, str], name: str, start: str) -> _Response:
        commit = self._find(repo, start)
        if name in refs:
            raise _HubError(409, f"Reference already exists: {name}")
        refs[name] = commit.oid
        return _json({})

    def _delete_ref(self, refs: dict[str, str], name: str) -> _Response:
        if name not in refs:
            raise _HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if name == "main":
            raise _HubError(403, "The default branch cannot be deleted")
        del refs[name]
        return _json({})

    # reading files

    def _entry(self, commit: Commit, path: str) -> dict[str, Any] | None:
        """Tree entry of a file or a folder."""
        blob = commit.files.get(path)
        if blob is not None:
            lfs = {"lfs": blob.lfs_info("oid")} if blob.lfs else {}
            return {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid, **lfs}
        inside = [(p, b.git_oid) for p, b in sorted(commit.files.items()) if p.startswith(f"{path}/")]
        if not inside:
            return None
        oid = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
        return {"type": "directory", "path": path, "size": 0, "oid": oid}

    def _no_entry(self, commit: Commit, message: str) -> _HubError:
        # The client caches the absence of an optional file under this commit.
        return _HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit.oid})

    def _tree(self, repo: Repo, revision: str, folder: str, recursive: bool) -> _Response:
        commit = self._find(repo, revision)
        prefix = f"{folder}/" if folder else ""
        paths = set()
        for path in commit.files:
            if not path.startswith(prefix):
                continue
            steps = path.removeprefix(prefix).split("/")
            for depth in range(1, (len(steps) if recursive else 1) + 1):
                paths.add(prefix + "/".join(steps[:depth]))
        if folder and not paths:
            raise self._no_entry(commit, f"{folder} does not exist on {revision}")
        return _json([self._entry(commit, path) for path in sorted(paths)])

    def _paths_info(self, repo: Repo, revision: str, request: _Request) -> _Response:
        commit = self._find(repo, revision)
        if "json" in request.headers.get("Content-Type", ""):
            paths = request.json()["paths"]
        else:
            paths = parse_qs(request.body.decode()).get("paths", [])
        entries = [self._entry(commit, path.strip("/")) for path in paths]
        return _json([entry for entry in entries if entry is not None])

    def _resolve(self, repo: Repo, revision: str, path: str, byte_range: str | None) -> _Response:
        commit = self._find(repo, revision)
        blob = commit.files.get(path)
        if blob is None:
            raise self._no_entry(commit, "Entry not found")
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.content_oid}"',
            "X-Repo-Commit": commit.oid,
        }
        if blob.lfs:
            headers["X-Linked-Etag"] = headers["ETag"]
            headers["X-Linked-Size"] = str(len(blob.data))
        wanted = _byte_range(byte_range, len(blob.data))
        if wanted is None:
            return _Response(200, blob.data, headers)
        start, stop = wanted
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(blob.data)}"
        return _Response(206, blob.data[start : stop + 1], headers)

    # writing files

    def _preupload(self, repo: Repo, revision: str, request: _Request) -> _Response:
        commit = self._find(repo, revision)
        answers = []
        for item in request.json()["files"]:
            lfs = item["path"].lower().endswith(LFS_SUFFIXES) or item["size"] > LFS_THRESHOLD
            known = commit.files.get(item["path"])
            answers.append(
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": known.content_oid if known else None,
                }
            )
        return _json({"files": answers})

    def _signature(self, repo: Repo, oid: str, size: int) -> str:
        text = f"{repo.repo_type} {repo.repo_id} {oid} {size}"
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()

    def _lfs_batch(self, repo: Repo, request: _Request) -> _Response:
        objects = []
        for item in request.json()["objects"]:
            answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in repo.lfs:
                place = f"{self.endpoint}/lfs-upload/{repo.repo_type}s/{quote(repo.repo_id)}/{item['oid']}"
                signature = self._signature(repo, item["oid"], item["size"])
                answer["actions"] = {
                    "upload": {"href": f"{place}?size={item['size']}&signature={signature}", "header": {}},
                    "verify": {"href": f"{self._url(repo)}.git/info/lfs/verify", "header": {}},
                }
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _lfs_upload(self, request: _Request, repo_type: str, repo_id: str, oid: str) -> _Response:
        repo = self._repos.get((repo_type, repo_id))
        size, signature = (request.query.get(key, [""])[0] for key in ("size", "signature"))
        if repo is None or not size.isdigit() or signature != self._signature(repo, oid, int(size)):
            raise _HubError(403, "Invalid upload signature")
        if len(request.body) != int(size) or hashlib.sha256(request.body).hexdigest() != oid:
            raise _HubError(400, "The object does not have the announced size and digest")
        repo.lfs[oid] = request.body
        return _Response(200, b"", {"ETag": f'"{oid}"'})

    def _lfs_verify(self, repo: Repo, request: _Request) -> _Response:
        payload = request.json()
        if len(repo.lfs.get(payload["oid"], b"")) != payload["size"]:
            raise _HubError(404, "Object not found")
        return _json({})

    def _commit(self, repo: Repo, branch: str, request: _Request) -> _Response:
        if _flag(request, "create_pr"):
            raise _HubError(400, "Pull requests are not supported by this server")
        if branch not in repo.branches:
            raise _HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repo.commits[repo.branches[branch]]
        header: dict[str, Any] = {}
        files = dict(head.files)
        try:
            for line in request.body.splitlines():
                if line.strip():
                    item = json.loads(line)
                    if item["key"] == "header":
                        header = item["value"]
                    else:
                        self._apply(repo, head, files, item["key"], item["value"])
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise _HubError(400, f"Malformed commit: {error!r}") from error
        if not header.get("summary"):
            raise _HubError(400, "A commit needs a summary")
        if header.get("parentCommit") and not head.oid.startswith(header["parentCommit"]):
            raise _HubError(412, "A commit has happened since. Please refresh and try again.")
        if files.get("README.md") is not head.files.get("README.md") and "README.md" in files:
            problems = card_errors(files["README.md"].data.decode(errors="replace"))
            if problems:
                raise _HubError(400, "Invalid metadata in README.md: " + "; ".join(problems))
        author = request.user or repo.owner
        commit = repo.add_commit(branch, files, author, header["summary"], header.get("description") or "")
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": self._url(repo, "commit", commit.oid)})

    def _apply(self, repo: Repo, head: Commit, files: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
        """Apply one line of a commit to the listing."""
        path = value["path"]
        if key in ("file", "lfsFile") and any(step in ("", ".", "..", ".git") for step in path.split("/")):
            raise _HubError(400, f"Invalid path: {path}")
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            if value["oid"] not in repo.lfs:
                raise _HubError(400, f"{path} is an LFS pointer to an object that was not uploaded")
            files[path] = Blob(repo.lfs[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise self._no_entry(head, f"A file with this name doesn't exist: {path}")
        elif key == "deletedFolder":
            inside = [p for p in files if p.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise self._no_entry(head, f"A file with this name doesn't exist: {path}")
            for p in inside:
                del files[p]
        else:
            raise _HubError(400, f"Unknown operation: {key}")


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Record what broke, but for clients that went away: that is part of many tests."""
        if not isinstance(sys.exception(), ConnectionError):
            self.hub.errors.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the requests are kept in ``HubServer.requests``."""

    def _serve(self) -> None:
        hub = self.server.hub
        fault = hub._take_fault(self.command, self.path)
        drop = fault if fault is not None and fault.status is None else None
        try:
            if drop is not None and self.command != "GET":
                self._read_body(limit=drop.after_bytes)
                self._reset()
                raise ConnectionAbortedError
            body = self._read_body()
        except ConnectionError:
            hub._log(self.command, self.path, 0)
            self.close_connection = True
            return

        if fault is not None and fault.status is not None:
            response = _HubError(fault.status, "Injected fault").response()
        else:
            response = hub._answer(self.command, self.path, self.headers, body)
        # Before it is sent: the test may look as soon as the client is done.
        hub._log(self.command, self.path, response.status if drop is None else 0)

        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if drop is not None:
            self.wfile.write(response.body[: drop.after_bytes])
            self.close_connection = True
            if drop.reset:
                self._reset()
        elif self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self, limit: int | None = None) -> bytes:
        """The body, or about its first ``limit`` bytes; an upload the client broke off must have no effect."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            length = int(self.headers.get("Content-Length") or 0)
            length = length if limit is None else min(length, limit)
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionAbortedError
            return body
        body = b""
        while limit is None or len(body) < limit:
            header = self.rfile.readline()
            if not header:
                raise ConnectionAbortedError
            size = int(header.split(b";")[0], 16)
            chunk = self.rfile.read(size)
            if len(chunk) < size or not self.rfile.readline():
                raise ConnectionAbortedError
            if not size:
                break
            body += chunk
        return body

    def _reset(self) -> None:
        """Close with a TCP reset, at once: a regular close would end the stream in good order first."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

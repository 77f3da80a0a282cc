"""A server of the tests' own that answers as the hub does, for data sets and models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("", "main", COMMIT, "refs/convert/parquet")


class Hub(ThreadingHTTPServer):
    """Repositories, each of files by their paths, as the hub serves them.

    Attributes:
        sets, models: by ORG/NAME.
        gated: of which files answer 403.
        broken: paths that are cut, or other than their hash says, when they are downloaded.
        status: answered to everything, if it is not 0.
        got: the files that were downloaded.
        tokens: that may write.
        made: of each repository that was made, what was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.sets: dict[str, dict[str, bytes]] = {}
        self.models: dict[str, dict[str, bytes]] = {}
        self.gated = {"some/gated"}
        self.broken: set[str] = set()
        self.status = 0
        self.got: list[str] = []
        self.tokens = {"hf_writes"}
        self.made: dict[str, Any] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, folder: Path, offline: bool = False) -> dict[str, str]:
        """Of a process that asks it, and keeps what it gets in a folder."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_XET": "1",
            "DIFFUSE_CACHE": str(folder / "cache"), "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        }  # fmt: skip


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers inside the block."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if self.server.status:
            return self.answer(self.server.status)
        for kind, repos in (("datasets", self.server.sets), ("models", self.server.models)):
            if path.startswith(f"/api/{kind}/"):
                org, name, *rest = path.removeprefix(f"/api/{kind}/").split("/")
                return self.listing(repos, f"{org}/{name}", "/".join(rest[1:]))
        repos = self.server.sets if path.startswith("/datasets/") else self.server.models
        name, _, rest = path.removeprefix("/datasets").strip("/").partition("/resolve/")
        return self.file(repos, name, rest.partition("/")[2])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(self.path.partition("?")[0])
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if token not in self.server.tokens:
            return self.answer(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.made[name] = asked
            self.server.models.setdefault(name, {})
            return self.json({"url": f"{self.server.url}/{name}"})
        org, model, what, _ = path.removeprefix("/api/models/").split("/", 3)
        if what == "preupload":
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.json({"files": [{"path": path, **plain} for path in paths]})
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "deletedFile":
                del self.server.models[f"{org}/{model}"][line["value"]["path"]]
            if line["key"] == "file":
                data = base64.b64decode(line["value"]["content"])
                self.server.models[f"{org}/{model}"][line["value"]["path"]] = data
        url = f"{self.server.url}/{org}/{model}/commit/{COMMIT}"
        return self.json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def listing(self, repos: Mapping[str, dict[str, bytes]], name: str, revision: str) -> None:
        if name not in repos:
            return self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in REVISIONS:
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        files = [
            {"rfilename": path, "size": len(data), "blobId": "0" * 40,
             "lfs": {"sha256": sha(data), "size": len(data), "pointerSize": 1}}
            for path, data in repos[name].items()
        ]  # fmt: skip
        private = self.server.made.get(name, {}).get("private", False)
        return self.json({"id": name, "sha": COMMIT, "siblings": files, "private": private})

    def file(self, repos: Mapping[str, dict[str, bytes]], name: str, path: str) -> None:
        if name in self.server.gated:
            return self.answer(403, headers={"X-Error-Code": "GatedRepo"})
        if path not in repos.get(name, ()):
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        data = repos[name][path]
        head = {"ETag": f'"{sha(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if path in self.server.broken:
            data = data[:-9] + bytes(9)
        if self.command == "GET":
            self.server.got.append(path)
        return self.answer(200, data, head)

    def json(self, values: Any) -> None:
        self.answer(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""Weights from a folder, from the cache, or over the network, which fails in every way."""

import contextlib
import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_operations import FULL, failing

from diffuse_cli.metrics.features import published_weights
from diffuse_cli.metrics.features.published_weights import PublishedWeights, download
from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import BusyError, ModelFileError, OutputError
from diffuse_cli.system.events import Notice, Progress, finish

CONTENT = bytes(range(256)) * 4096 * 2 + b"the end"
NAME = "network-weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    def do_GET(self):
        way = self.path.split("/")[1]
        self.server.asked.append(self.path)
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", f"/good/{NAME}")
            self.end_headers()
            return
        if way == "none":
            self.send_error(404)
            return
        content = {"other": CONTENT[::-1], "long": CONTENT + b"!"}.get(way, CONTENT)
        self.send_response(200)
        if way != "unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 3] if way == "cut" else content)

    def log_message(self, *_):
        pass


class Silent(Handler):
    """Says nothing after half of the content."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2])
        self.wfile.flush()
        self.server.stop.wait(10)


@contextlib.contextmanager
def serving(handler):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.stop = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server():
    with serving(Handler) as server:
        yield server


@pytest.fixture
def published(server):
    """The weights, as they are published under a way of the server."""

    def at(way):
        return PublishedWeights(
            network="some-network",
            file=NAME,
            url=f"http://127.0.0.1:{server.server_port}/{way}/{NAME}",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            size=len(CONTENT),
        )

    return at


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFUSE_WEIGHTS", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "cache" / "weights"


def there(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("way", ["good", "moved", "unsized"])
def test_weights_are_downloaded_once(server, published, cache, way):
    events = []
    work = published(way).find()
    with contextlib.suppress(StopIteration):
        while True:
            events.append(next(work))
    assert (cache / NAME).read_bytes() == CONTENT
    assert there(cache) == [NAME]
    said, *counts = events
    assert isinstance(said, Notice)
    assert published(way).url in said.text
    assert counts == [Progress("download", done, 3, "MiB") for done in (1, 2, 3)]
    asked = len(server.asked)
    assert finish(published(way).find()) == cache / NAME
    assert len(server.asked) == asked


FAILURES = {
    "none": "the server answers 404",
    "cut": f"it ended after {len(CONTENT) // 3:,} of {len(CONTENT):,} bytes",
    "other": f"its SHA-256 is {hashlib.sha256(CONTENT[::-1]).hexdigest()}",
    "long": f"it has more than {len(CONTENT):,} bytes",
}


def check_fails(what, reason):
    with pytest.raises(ModelFileError) as caught:
        finish(what.find())
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    for text in (reason, what.url, what.sha256, "--feature-weights FILE", "DIFFUSE_WEIGHTS"):
        assert text in str(caught.value)


@pytest.mark.parametrize("way", FAILURES)
def test_what_is_not_the_published_file_is_not_kept(published, cache, way):
    check_fails(published(way), FAILURES[way])
    assert there(cache) == []


def test_without_a_network_one_line_says_what_to_do(published, cache, monkeypatch):
    """A server that falls silent is not waited for."""
    monkeypatch.setattr(published_weights, "PATIENCE", 0.2)
    with serving(Silent) as server:
        for url, reason in (
            ("http://127.0.0.1:1/w.pth", "Connection refused"),
            ("https://no.such.host.invalid/w.pth", ""),
            (f"http://127.0.0.1:{server.server_port}/{NAME}", "timed out"),
        ):
            check_fails(replace(published("good"), url=url), reason)
        server.stop.set()
    assert there(cache) == []


def test_nothing_is_downloaded_where_nothing_is_kept(server, published, monkeypatch):
    monkeypatch.setenv("DIFFUSE_CACHE", "")
    check_fails(published("good"), "DIFFUSE_CACHE")
    assert server.asked == []


def test_the_folder_of_the_variable_comes_first(server, published, tmp_path, monkeypatch):
    """What lies there is the user's: it is checked when it is loaded, and never replaced."""
    folder = tmp_path / "mine"
    monkeypatch.setenv("DIFFUSE_WEIGHTS", str(folder))
    finish(published("good").find())
    assert len(server.asked) == 1
    folder.mkdir()
    (folder / NAME).write_bytes(b"other")
    assert finish(published("good").find()) == folder / NAME
    assert len(server.asked) == 1
    with pytest.raises(ModelFileError, match="SHA-256"):
        published_weights.build_network(torch.nn.Identity, folder / NAME, published("good"), "-")
    assert (folder / NAME).read_bytes() == b"other"


def test_a_full_disk_is_no_fault_of_the_network(published, cache, monkeypatch):
    monkeypatch.setattr(files, "operation", failing("sync", FULL))
    with pytest.raises(OutputError):
        finish(published("good").find())
    assert not (cache / NAME).exists()


def test_an_interrupted_download_leaves_nothing(published, cache):
    """And what a killed one left goes, as does a damaged file."""
    work = download(published("good"), cache / NAME)
    for _ in range(2):
        next(work)
    assert there(cache) != []
    work.close()
    assert there(cache) == []
    cache.mkdir(parents=True, exist_ok=True)
    (cache / f".{NAME}.123.tmp").write_bytes(b"half")
    (cache / NAME).write_bytes(CONTENT[:-1])
    assert finish(published("good").find()) == cache / NAME
    assert (cache / NAME).read_bytes() == CONTENT
    assert there(cache) == [NAME]


def test_two_do_not_download_at_a_time(server, published, cache, monkeypatch):
    @contextlib.contextmanager
    def held(path, hint):
        raise BusyError("process 7 is writing", hint)
        yield

    monkeypatch.setattr(outputs, "hold_lock", held)
    with pytest.raises(BusyError, match=r"Wait for it$"):
        finish(published("good").find())
    assert server.asked == []

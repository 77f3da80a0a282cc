"""Reading bytes at a place, also on a system that has not all that Linux has."""

from __future__ import annotations

import contextlib
import os
import tarfile
from pathlib import Path

import pytest

from diffuse_cli.data.sources import open_source
from diffuse_cli.system.descriptors import open_to_read, read_at

WITHOUT = ("O_NONBLOCK", "pread")
"""What Windows lacks."""


@pytest.fixture(params=[(), WITHOUT], ids=["here", "without"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in request.param:
        monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("_system")
def test_bytes_are_read_where_they_lie(tmp_path: Path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    descriptor = open_to_read(path)
    assert [*read_at(descriptor, 3, 50), *read_at(descriptor, 9, 98)] == [50, 51, 52, 98, 99]
    assert read_at(descriptor, 2, 0) == b"\0\1"
    assert read_at(descriptor, 2, 100) == b""
    os.close(descriptor)


def test_line_ends_stay_where_a_system_would_translate_them(tmp_path: Path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(os, "O_BINARY", 1 << 30, raising=False)
    monkeypatch.setattr(os, "open", lambda path, flags: asked.append(flags) or 7)
    assert open_to_read(tmp_path) == 7
    assert asked[0] & os.O_BINARY


@pytest.mark.usefixtures("_system")
def test_folders_and_shards_are_read(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        (folder / f"{k}.png").write_bytes(bytes([k, 13, 10, 26]) * 500)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(folder, ".")
    for path in (folder, tmp_path / "shard.tar"):
        with contextlib.closing(open_source(path)) as source:
            found = {entry.name: source.read(entry) for entry in source.entries()}
        assert found == {f"{k}.png": bytes([k, 13, 10, 26]) * 500 for k in range(3)}

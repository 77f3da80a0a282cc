"""Processes that decode: what comes back is what this process would have made, whatever happens."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_corpus import BOMB, encoded, fill, noise, png, read, zipped

from diffuse_cli.data import Dataset, decoding_workers, read_images
from diffuse_cli.data.decoding_workers import DecodingTask, Result, decode_files
from diffuse_cli.data.sources import Entry
from diffuse_cli.media import LARGE
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import finish

Started = list[subprocess.Popen[bytes]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, processes_begun: Started) -> Started:
    """The processes that are started; few files are many here."""
    monkeypatch.setattr(decoding_workers, "MANY_FILES", 1)
    return processes_begun


def ended(started: Started) -> bool:
    return all(each.returncode is not None for each in started)


def corpus() -> dict[str, bytes]:
    """Every kind of result, over several chunks."""
    kinds = ("PNG", "JPEG", "BMP", "GIF")
    data = {
        f"{'ab'[k % 2]}/{k:03d}.{kinds[k % 4].lower()}": encoded(noise(k), kinds[k % 4])
        for k in range(300)
    }
    data |= {"a/cut.png": encoded(noise(1))[:-30], "b/bomb.png": BOMB, "a/é.png": b""}
    return data | {"a/clear.png": encoded(noise(7, mode="RGBA")), "b/grey.png": encoded(noise(8))}


def sound(seed: int, rate: int) -> bytes:
    """A WAV of a quarter of a second."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(seed).integers(-999, 999, rate // 4, "<i2"))
    return buffer.getvalue()


def same(one: Dataset, two: Dataset) -> bool:
    arrays = ("stored", "labels", "digests")
    equal = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays)
    return equal and (one.names, one.summary) == (two.names, two.summary)


SETS: dict[str, tuple[dict[str, bytes], dict[str, Any]]] = {
    "every kind": (corpus(), {}),
    "grey over a background": (corpus(), {"channels": 1, "background": "navy"}),
    "a size": ({**corpus(), "c.png": encoded(noise(9, (90, 70)))}, {"size": (5, 7)}),
    "a large one at last": ({**corpus(), "zz.png": encoded(noise(9, (90, 70)))}, {}),
    "another size at first": ({**corpus(), "0.png": encoded(noise(9, (9, 7)))}, {}),
    "sounds of two rates": ({f"{k}.wav": sound(k, 8000 << k % 2) for k in range(9)}, {}),
}


DECODED_AGAIN = {"a large one at last", "another size at first"}


@pytest.mark.parametrize(("name", "packed"), [(name, k % 2 == 1) for k, name in enumerate(SETS)])
def test_processes_give_what_threads_give(
    tmp_path: Path, started: Started, name: str, packed: bool
) -> None:
    data, options = SETS[name]
    source = zipped(tmp_path / "x.zip", data) if packed else fill(tmp_path / "x", data)
    threads = read(source, workers=1, **options)
    assert not started
    processes = read(source, workers=2, **options)
    assert len(started) == (4 if name in DECODED_AGAIN else 2)
    assert ended(started)
    assert same(threads, processes)


def test_names_of_any_bytes(tmp_path: Path, started: Started) -> None:
    for k, name in enumerate([b"\xff\xfe.png", b"new\nline.png", "é".encode() + b".png"]):
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(noise(k)))
    assert same(read(tmp_path, workers=2), read(tmp_path, workers=1))
    assert started


def test_a_process_that_ends_is_done_without(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "in", corpus())
    expected = read(folder, workers=1)
    work = read_images(folder, workers=2)
    next(work)  # listed
    original = decoding_workers.Worker.decode
    calls: list[int] = []

    def decode(self: decoding_workers.Worker, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            for each in started:
                each.kill()
                each.wait()
        return original(self, *arguments)

    monkeypatch.setattr(decoding_workers.Worker, "decode", decode)
    assert same(finish(work), expected)
    assert len(calls) > 3


def test_a_process_that_speaks_something_else_is_done_without(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "in", corpus())
    expected = read(folder, workers=1)
    program = tmp_path / "program"
    for code in ("echo hello", "exit 3", "echo '[]'", "echo '[1]'"):
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        assert same(read(folder, workers=2), expected)
    assert ended(started)


def test_without_processes_threads_decode(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    folder = fill(tmp_path / "in", corpus())
    assert same(read(folder, workers=2), read(folder, workers=1))
    assert not started


def test_closing_early_ends_processes_and_threads(tmp_path: Path, started: Started) -> None:
    before = threading.active_count()
    folder = fill(tmp_path / "in", {**corpus(), "zz.png": b""})
    with pytest.raises(DataError):
        read(folder, workers=2, strict=True)
    work = read_images(folder, workers=2)
    for _ in range(2):
        next(work)
    work.close()
    assert started
    assert ended(started)
    assert threading.active_count() == before


def test_files_in_the_current_folder_are_not_imported(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("json", "PIL", "numpy", "diffuse_cli")
    fill(tmp_path, {f"{name}.py": b"raise SystemExit('imported')" for name in names})
    folder = fill(tmp_path / "in", corpus())
    expected = read(folder, workers=1)
    monkeypatch.chdir(tmp_path)
    # Nothing but a process can decode.
    monkeypatch.setattr(
        decoding_workers, "decode_files", lambda reading, late: [1 / 0 for _ in late]
    )
    assert same(read(folder, workers=2), expected)


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", corpus())
    code = """if True:
        import os, sys, time
        from pathlib import Path
        from diffuse_cli.data.decoding_workers import DecodingTask
        from diffuse_cli.media import ReadSettings
        from diffuse_cli.data.sources import open_source
        from diffuse_cli.data.sources.entries import list_samples
        from diffuse_cli.data.decoding_workers import Worker
        source = open_source(Path(sys.argv[1]))
        reading = DecodingTask(source, "image", ReadSettings())
        worker = Worker(reading)
        me = f"/proc/self/task/{os.getpid()}/children"
        print(len(worker.decode(reading, list_samples(source).candidates)), open(me).read())
        sys.stdout.flush()
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    count, pid = map(int, parent.stdout.readline().split())
    assert count == 305
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in _state(pid):
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_nothing_is_said_and_nothing_heavy_imported(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", corpus())
    code = "from diffuse_cli.data.decoding_workers import main; main()"
    code += "; print(sorted({'torch', 'typer', 'rich'} & set(sys.modules)))"
    line = b'["%s", "image"]\n' % os.fsencode(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; " + code], input=line, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"[]\n", b"")


def test_a_large_image_is_decoded_here(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many processes as cores would each take the memory that one large image takes."""
    side, long = 4100, png(8, 8, 8, 0, bytes(72))
    files = {
        **corpus(),
        "a/pixels.png": png(side, side, 1, 0, bytes(side * (side // 8 + 2))),
        "b/bytes.png": long + bytes(LARGE),
        "b/bytes-of-rubbish.png": bytes(LARGE + 1),
    }
    folder = fill(tmp_path, files)
    expected = read(folder, workers=1)
    here: list[str] = []

    def decode(reading: DecodingTask, entries: Sequence[Entry]) -> list[Result]:
        here.extend(entry.name for entry in entries)
        return decode_files(reading, entries)

    monkeypatch.setattr(decoding_workers, "decode_files", decode)
    monkeypatch.setattr(decoding_workers, "SMALL_FILE", LARGE)
    assert same(read(folder, workers=2), expected)
    assert sorted(here) == ["a/pixels.png", "b/bytes-of-rubbish.png", "b/bytes.png"]
    assert len(expected) == 304


@pytest.mark.parametrize(("many", "small", "count"), [(21, 2**15, 0), (20, 2**15, 2), (20, 50, 0)])
def test_few_or_large_files_are_for_threads(
    tmp_path: Path, started: Started, monkeypatch: Any, many: int, small: int, count: int
) -> None:
    fill(tmp_path, {f"{k}.png": encoded(noise(k)) for k in range(20)})
    monkeypatch.setattr(decoding_workers, "MANY_FILES", many)
    monkeypatch.setattr(decoding_workers, "SMALL_FILE", small)
    read(tmp_path, workers=2)
    assert len(started) == count

"""A model file from a stranger: rejected in one line, with no more memory than it has bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import begin, environment
from lab import ROOT
from process_server import Server

from diffuse_cli.models import tensor_file

FUZZ = ROOT / "tests" / "fuzz"

READ = """
import os, sys
from pathlib import Path
from peak_memory import forget, peak
from diffuse_cli.models import model_file
from diffuse_cli.system.errors import ModelFileError
good, *others = sys.argv[1:]
model_file.load(good)
for path in others:
    sys.stdout.flush()
    if os.fork() == 0:
        forget()
        start = peak()
        try:
            model_file.load(path)
            outcome = "accepted"
        except ModelFileError:
            outcome = "rejected"
        print(Path(path).name, outcome, peak() - start, flush=True)
        os._exit(0)
    os.wait()
sys.exit(0)
"""
"""Reads a good file, so that everything is imported, and then others, each in a process forked
from there: what memory that took."""

MEGABYTES = 100 * 1_000_000


def file_of(header: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


def described(config: bytes) -> bytes:
    text = json.dumps(config.decode(), ensure_ascii=False).encode()
    return file_of(b'{"__metadata__":{"diffuse.config":' + text + b"}}")


def listed(item: bytes, count: int, brackets: bytes = b"{}") -> bytes:
    """An object, or a list, of so many items, each with a text of its own."""
    return brackets[:1] + b",".join(item % k for k in range(count)) + brackets[1:]


MOST = tensor_file.LARGEST_HEADER - 100

HEADERS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b"[" + b"[]," * (MOST // 3) + b"[]]",
    "objects": lambda: b'{"a":[' + b"{}," * (MOST // 3 - 10) + b"{}]}",
    "nested": lambda: b"[" * MOST,
    "deep": lambda: b'{"a":' * (MOST // 5),
    "numbers": lambda: b"[" + b"0," * (MOST // 2 - 10) + b"0]",
    "fractions": lambda: b"[" + b"1e1," * (MOST // 4 - 10) + b"0]",
    "keys": lambda: listed(b'"%06x":0', MOST // 11),
    "tensors": lambda: listed(b'"%06x":{}', MOST // 12),
    "metadata": lambda: b'{"__metadata__":' + listed(b'"%06x":"ab"', MOST // 16) + b"}",
    "texts": lambda: listed(b'"%06x"', MOST // 10, b"[]"),
    "wide text": lambda: b'{"a":"' + "\U0001f600".encode() * (MOST // 4 - 10) + b'"}',
    "a wide letter": lambda: '{"a":"\U0001f600'.encode() + b"a" * (MOST - 20) + b'"}',
    "escapes": lambda: b'{"a":"' + rb"\ud83d\ude00" * (MOST // 12 - 10) + b'"}',
    "quotes without an end": lambda: b'{"' + rb"\"" * (MOST // 2 - 10),
    "a huge number": lambda: b'{"a":' + b"9" * (MOST - 10) + b"}",
    "keys under the limit": lambda: listed(b'"%06x":0', 199_000),
    "metadata under the limit": lambda: (
        b'{"__metadata__":' + listed(b'"%06x":"%%d"', 190_000) + b"}"
    ),
    "lists under the limit": lambda: (
        b'{"\\ud83d\\ude00":[' + b"[]," * 99_000 + b"[]]}" + b" " * 10**6
    ),
}

DESCRIPTIONS = [
    "lists", "deep", "texts", "wide text", "a wide letter", "escapes", "quotes without an end",
    "a huge number", "keys under the limit", "metadata under the limit", "lists under the limit",
]  # fmt: skip
"""Those that are tried as a description too, which the same function parses: one that meets each
limit, and all that it decodes."""

FILES = [(name, "header") for name in HEADERS] + [(name, "description") for name in DESCRIPTIONS]


def named(name: str, place: str) -> str:
    return f"{name}.{place}".replace(" ", "-")


def memory(server: Server, model: Path, *paths: Path) -> dict[str, tuple[str, int]]:
    """For each file, by its name, whether it is accepted and the bytes that reading it takes."""
    reading = begin(server, [model, *paths], model.parent, environment(), before=READ)
    out, err = reading.communicate(timeout=300)
    assert reading.wait() == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == [path.name for path in paths], err
    return {name: (outcome, int(grown)) for name, outcome, grown in rows}


def write_large(path: Path) -> None:
    """A file of 200 MB of weights that are all there."""
    from networks import plan

    from diffuse_cli.config.shared_options import DiffusionConfig
    from diffuse_cli.models import model_file

    blueprint = plan(size=8, width=256, multipliers=(1, 2), blocks=2).blueprint(DiffusionConfig())
    ema = {name: torch.zeros(shape) for name, shape in blueprint.shapes.items()}
    model_file.save(path, model_file.StoredModel(blueprint=blueprint, ema=ema, step=1))


def write_giant(model: Path, path: Path) -> None:
    """A file of 100 kB whose description asks for a network of 100 GB."""
    data = model.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"]["diffuse.config"])
    config["network"] |= {"width": 4096, "multipliers": [8, 16], "blocks": 16, "groups": 32}
    config["network"].pop("heads", None)
    header["__metadata__"]["diffuse.config"] = json.dumps(config)
    path.write_bytes(file_of(json.dumps(header).encode()) + data[8 + length :])


@pytest.fixture(scope="module")
def files(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each of the headers, some also as a description in one, and others."""
    folder = tmp_path_factory.mktemp("headers")
    for name, place in FILES:
        text = HEADERS[name]()
        if place == "header":
            data = file_of(text)
        else:
            data = described(text[: MOST // 2 - 100].decode(errors="ignore").encode())
        (folder / named(name, place)).write_bytes(data)
    write_large(folder / "large")
    write_giant(model, folder / "giant")
    return folder


@pytest.fixture(scope="module")
def grown(server: Server, model: Path, files: Path) -> dict[str, tuple[str, int]]:
    """What reading each of the files takes."""
    return memory(server, model, *sorted(files.iterdir()))


@pytest.mark.parametrize(("name", "place"), FILES)
def test_a_header_unfolds_to_no_more_than_its_bound(grown, name: str, place: str):
    outcome, size = grown[named(name, place)]
    assert outcome == "rejected"
    assert size < 2_000_000 + MEGABYTES  # less than the smallest of the files and the bound


def test_a_large_file_takes_its_size(grown, files: Path):
    """Weights of a network that are all there: no mask and no copy of them is made."""
    size = (files / "large").stat().st_size
    assert size > 200_000_000
    outcome, taken = grown["large"]
    assert outcome == "accepted"
    assert size * 0.9 < taken < size + MEGABYTES


def test_shapes_of_a_giant_network_are_compared_before_anything_is_allocated(grown, files: Path):
    outcome, taken = grown["giant"]
    assert outcome == "rejected"
    assert taken < (files / "giant").stat().st_size + MEGABYTES


def test_mutated_files_are_accepted_or_rejected_and_nothing_else(spawn):
    """Sixty here; `mutate_models.py` does any number, with a seed."""
    program = f"import json, sys; sys.path.insert(0, {str(FUZZ)!r}); import mutate_models\n"
    program += "print(json.dumps(mutate_models.run(60, seed=0, processes=0))); sys.exit(0)"
    out, err = spawn(before=program).communicate(timeout=300)
    found = json.loads(out)
    assert found["failed"] == [], err
    assert found["outcomes"]["accepted"] > 3
    assert found["outcomes"]["rejected"] > 30

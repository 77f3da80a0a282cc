"""A model file from a stranger: rejected in one line, with no more memory than it has bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import begin, environment, mostly_slow
from edited_models import change_description, join_file
from lab import ROOT
from networks import plan
from process_server import Server

from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.models import model_file, tensor_file

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


def described(config: bytes) -> bytes:
    text = json.dumps(config.decode(), ensure_ascii=False).encode()
    return join_file(b'{"__metadata__":{"diffuse.config":' + text + b"}}")


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


def header_file(name: str, place: str) -> bytes:
    text = HEADERS[name]()
    if place == "header":
        return join_file(text)
    return described(text[: MOST // 2 - 100].decode(errors="ignore").encode())


def memory(server: Server, model: Path, folder: Path) -> dict[str, tuple[str, int]]:
    """For each file, by its name, whether it is accepted and the bytes that reading it takes."""
    line = [model, *sorted(folder.iterdir())]
    reading = begin(server, line, model.parent, environment(), before=READ)
    out, err = reading.communicate(timeout=300)
    assert reading.wait() == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == [path.name for path in line[1:]], err
    return {name: (outcome, int(grown)) for name, outcome, grown in rows}


def write_large(path: Path) -> None:
    """A file of 200 MB of weights that are all there."""
    blueprint = plan(size=8, width=256, multipliers=(1, 2), blocks=2).blueprint(DiffusionConfig())
    ema = {name: torch.zeros(shape) for name, shape in blueprint.shapes.items()}
    model_file.save(path, model_file.StoredModel(blueprint=blueprint, ema=ema, step=1))


def ask_for_a_giant(config: dict[str, Any]) -> None:
    """Let a description be that of a network of 100 GB."""
    config["network"] |= {"width": 4096, "multipliers": [8, 16], "blocks": 16, "groups": 32}
    config["network"].pop("heads", None)


@pytest.mark.parametrize("files", mostly_slow([FILES[::7], FILES], always=1), ids=["some", "all"])
def test_a_header_unfolds_to_no_more_than_its_bound(server, model: Path, tmp_path: Path, files):
    for k, (name, place) in enumerate(files):
        (tmp_path / f"{k:02d}-{name}-{place}".replace(" ", "-")).write_bytes(
            header_file(name, place)
        )
    for name, (outcome, taken) in memory(server, model, tmp_path).items():
        assert outcome == "rejected", name
        assert taken < 2_000_000 + MEGABYTES, name  # the smallest of the files, and the bound


def test_shapes_of_a_giant_network_are_compared_before_anything_is_allocated(
    server, model: Path, tmp_path: Path
):
    """Weights of a network that are all there take their size: no mask and no copy is made."""
    write_large(tmp_path / "large")
    (tmp_path / "giant").write_bytes(change_description(model.read_bytes(), ask_for_a_giant))
    grown = memory(server, model, tmp_path)
    sizes = {name: (tmp_path / name).stat().st_size for name in ("large", "giant")}
    outcome, taken = grown["giant"]
    assert outcome == "rejected"
    assert taken < sizes["giant"] + MEGABYTES
    outcome, taken = grown["large"]
    assert outcome == "accepted"
    assert sizes["large"] > 200_000_000
    assert sizes["large"] * 0.9 < taken < sizes["large"] + MEGABYTES


def test_mutated_files_are_accepted_or_rejected_and_nothing_else(spawn):
    """Sixty here; `mutate_models.py` does any number, with a seed."""
    program = f"import json, sys; sys.path.insert(0, {str(FUZZ)!r}); import mutate_models\n"
    program += "print(json.dumps(mutate_models.run(60, seed=0, processes=0))); sys.exit(0)"
    out, err = spawn(before=program).communicate(timeout=300)
    found = json.loads(out)
    assert found["failed"] == [], err
    assert found["outcomes"]["accepted"] > 3
    assert found["outcomes"]["rejected"] > 30

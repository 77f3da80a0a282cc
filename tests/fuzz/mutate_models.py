"""Mutated model files through the reader and the command line.

    python tests/fuzz/mutate_models.py --count 10000 --seed 0 --processes 100

Each file is read by `model_file.load`, and then by `diffuse info`, `sample` or `train --init` in
this process; some also in a process of their own. A file may be accepted (0) or rejected (4).
Anything else is a failure: a traceback, another exit code, more than one line on stderr, a time
over the limit, memory over the size of the file and 100 MB. Prints one JSON object, and exits with
1 where there was a failure.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DIFFUSE_CACHE"] = ""

import argparse
import contextlib
import dataclasses
import json
import random
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/fuzz")]

import numpy as np
from edited_models import change_description, join_file, split_file
from lab import RECIPES, write_images
from peak_memory import forget, peak
from trials import Late, Ran, in_time, run_here, run_there

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.models import model_file
from diffuse_cli.system.errors import ModelFileError

MEGABYTES = 100


def write_model(path: Path) -> bytes:
    """A small whole model that is told columns, with a recommendation, trained a little on `images`
    beside it."""
    images, recipe = write_images(path.parent / "images", 4), path.with_name("tiny.toml")
    rows = (
        f"{p.relative_to(images)},{k},{'ab'[k % 2]}" for k, p in enumerate(images.rglob("*.png"))
    )
    (images / "metadata.csv").write_text("\n".join(["file_name,level,site", *rows]))
    recipe.write_text(RECIPES["tiny"])
    line = ["train", str(images), "--config", str(recipe), "--steps", "2", "-o", str(path), "-q"]
    assert run_here([*line, "--condition-on", "level,site"]).code == 0
    recommending = dataclasses.replace(
        model_file.load(path), sampling=SamplerChoice("ddim", 2, 1.0)
    )
    model_file.save(path, recommending)
    return path.read_bytes()


# -- mutations ------------------------------------------------------------------------------------

NASTY: list[Callable[[random.Random], Any]] = [
    lambda r: None,
    lambda r: r.choice([True, False]),
    lambda r: r.choice([0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400]),
    lambda r: r.choice([0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf")]),
    lambda r: r.choice(
        ["", "..", "../../etc/passwd", "/dev/zero", "[red]x[/red]", "\x1b[2J\x07\n"]
    ),
    lambda r: "A" * r.choice([10, 10_000, 1_000_000]),
    lambda r: "\U0001f600" * r.choice([10, 10_000, 500_000]),
    lambda r: [],
    lambda r: {},
    lambda r: [[]] * r.choice([3, 60_000]),
    lambda r: [0] * r.choice([3, 500_000]),
    lambda r: {str(k): {} for k in range(r.choice([3, 60_000]))},
    lambda r: nested(r.choice([3, 40, 900])),
    lambda r: {"..": 1, "\x00": 2},
]


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, depth: int = 50) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a JSON value, but for those far down."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if depth and isinstance(value[key], (dict, list)):
            yield from places(value[key], depth - 1)


def change_json(value: Any, draw: random.Random) -> None:
    """Replace, remove, add or rename something in place."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        container, key = draw.choice(list(places(value)))
        kind = draw.choice(["replace"] * 5 + ["remove", "add", "rename", "tweak", "tweak"])
        if kind == "replace":
            container[key] = draw.choice(NASTY)(draw)
        elif kind == "remove":
            del container[key]
        elif kind == "add" and isinstance(container, dict):
            container[str(draw.choice(NASTY)(draw))[:1000]] = draw.choice(NASTY)(draw)
        elif kind == "rename" and isinstance(container, dict):
            container[str(draw.choice(NASTY)(draw))[:1000]] = container.pop(key)
        elif kind == "tweak" and isinstance(container[key], int):
            container[key] += draw.choice([-4, -1, 1, 4, 2**20, 2**40])


KINDS = ["bytes", "bytes", "header", "description", "description", "weights", "frame"]


def mutate(good: bytes, draw: random.Random) -> bytes:
    """A file like `good`, but wrong somewhere; now and then a whole one."""
    kind = draw.choice(KINDS)
    header, body = split_file(good)
    if kind == "bytes":
        return change_bytes(good, draw, len(good) - len(body))
    if kind == "description":
        return change_description(good, lambda described: change_json(described, draw))
    if kind == "header":
        change_json(header, draw)
    elif kind == "weights":
        values = np.frombuffer(body, "<f4").copy()
        values[draw.randrange(len(values))] = draw.choice([np.nan, np.inf, 3e38, -0.0, 1e-45])
        body = values.tobytes()
    elif kind == "frame":
        text = json.dumps(header).encode()
        size = len(text)
        size = draw.choice([0, 1, 2, size - 1, size + 1, size + len(body), 2**31, 2**63, 2**64 - 1])
        body = draw.choice([body, body[:-1], body + b"\0", b"", body * 2])
        text = draw.choice([text, text, b"\xef\xbb\xbf" + text, b" " * 64 + text, text + b" " * 9])
        return struct.pack("<Q", size) + text + body
    return join_file(header, body)


def change_bytes(good: bytes, draw: random.Random, head: int) -> bytes:
    """Set, cut and insert bytes, mostly in the header."""
    changed = bytearray(good)
    for _ in range(draw.choice([1, 1, 2, 8])):
        end = min(draw.choice([8, head, head, len(good)]), len(changed))
        at = draw.randrange(end)
        some = draw.randbytes(draw.choice([1, 1, 2, 8]))
        kind = draw.choice(["set", "flip", "cut", "insert", "truncate", "copy"])
        if kind == "set":
            changed[at : at + len(some)] = some
        elif kind == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del changed[at : at + len(some)]
        elif kind == "insert":
            changed[at:at] = some
        elif kind == "truncate":
            del changed[draw.randrange(len(changed)) :]
        else:
            changed[at:at] = changed[at : at + draw.randrange(200)]
        if not changed:
            break
    return bytes(changed)


# -- trials ---------------------------------------------------------------------------------------


COMMANDS = [
    ["sample", "m.safetensors", "-n", "1", "--steps", "2", "--overwrite", "-q", "-o", "out"],
    ["info", "m.safetensors", "-q"],
    ["info", "m.safetensors", "-q", "--json"],
    ["train", "images", "--init", "m.safetensors", "--steps", "1", "--overwrite", "-q", "-o",
     "o.safetensors"],
]  # fmt: skip
"""What a mutated file is given to. Training is rare: it takes a hundred times as long."""


def check(command: list[str], ran: Ran) -> str:
    """Return what a command line must not do, or an empty string."""
    # A configuration that a file brings may not go with the images, or with itself.
    allowed = (0, 2, 4) if command[0] == "train" else (0, 4)
    if ran.code not in allowed or "Traceback" in ran.err:
        return f"{command[0]}: exit {ran.code}: {ran.err[-300:]}"
    failure = ran.json["error"]["message"] if ran.code and ran.out else ""
    if ran.code and (ran.err.count("\n") != 1 or failure not in ran.err):
        return f"not one line: {ran.err[:300]!r} {ran.out[:100]!r}"
    if any(not c.isprintable() and c != "\n" for c in ran.out + ran.err):
        return f"not escaped: {ran.err[:300]!r} {ran.out[:300]!r}"
    return ""


def trial(path: Path, draw: random.Random) -> tuple[str, str]:
    """Return what became of a file in the reader and the command line, and what was wrong."""
    try:
        with in_time():
            forget()
            before = peak()
            try:
                model_file.load(path)
                outcome = "accepted"
            except ModelFileError:
                outcome = "rejected"
            taken = peak() - before
            if taken > path.stat().st_size + MEGABYTES * 1_000_000:
                return outcome, f"{taken / 1e6:.0f} MB for {path.stat().st_size / 1e6:.1f} MB"
            few = 40 if outcome == "accepted" else 10
            command = COMMANDS[3] if draw.randrange(few) == 0 else draw.choice(COMMANDS[:3])
            return outcome, check(command, run_here(command))
    except Late:
        return "late", "over the time"
    except Exception:
        return "failed", traceback.format_exc()[-400:]


def run(count: int, seed: int, processes: int) -> dict[str, Any]:
    """Try all files."""
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path(folder, "m.safetensors")
        good = write_model(path)
        for command in COMMANDS:  # what is imported on the way is not the file's
            assert not check(command, run_here(command))
        for k in range(count):
            path.write_bytes(mutate(good, draw))
            outcome, fault = trial(path, draw)
            outcomes[outcome] += 1
            if processes and k % max(1, count // processes) == 0:
                outcomes["processes"] += 1
                command = draw.choice(COMMANDS[:3])
                fault = fault or check(command, run_there(command))
            if fault:
                failures.append(f"{k}: {fault}")
                print(failures[-1], file=sys.stderr, flush=True)
    return {"count": count, "seed": seed, "outcomes": outcomes, "failed": failures}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    found = run(given.count, given.seed, given.processes)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["failed"] else 0)

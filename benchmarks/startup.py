"""How long until an answer, and what of it is Python's and torch's?

Each command is a process of its own, from start to end; they take turns, and the median counts. The
model is an untrained `tiny` one for 28x28 images. `imports` are the packages that `sample` imports,
by the time in their own files (`-X importtime` makes all slower), and those beyond what torch
imports itself. Prints JSON.

    python benchmarks/startup.py > benchmarks/results/startup.json
    python benchmarks/startup.py MODEL --rounds 9
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import common
from steps import plan, say, show, significant

from diffuse_cli.models import model_file

IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)
SHOWN = 10
"""Packages that are listed."""

EXIT = {"a usage error": 2}


def make_model(path: Path) -> Path:
    """An untrained model of the preset `tiny`."""
    made = plan(28, images=2, preset="tiny")
    weights = made.blueprint.build().state_dict()
    model_file.save(path, model_file.StoredModel(blueprint=made.blueprint, ema=weights))
    return path


def commands(model: Path, out: Path) -> dict[str, list[str]]:
    """What is timed, as arguments of Python."""
    diffuse = ["-m", "diffuse_cli"]
    sample = [*diffuse, "sample", str(model), "-n", "1", "-o", str(out), "--overwrite", "--quiet"]
    return {
        "python": ["-c", "pass"],
        "import numpy": ["-c", "import numpy"],
        "import torch": ["-c", "import torch"],
        "import torch, accelerate": ["-c", "import torch, accelerate"],
        "--version": [*diffuse, "--version"],
        "--help": [*diffuse, "--help"],
        "sample --help": [*diffuse, "sample", "--help"],
        "a usage error": [*diffuse, "sample", str(model), "--sampler", "dddim"],
        "sample -n 1": sample,
        "sample -n 1 --precision fp32": [*sample, "--precision", "fp32"],
    }


def run(name: str, arguments: Sequence[str]) -> tuple[float, str]:
    """Seconds of a process, and its stderr.

    Raises:
        RuntimeError: it did not end as it should.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode != EXIT.get(name, 0):
        raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stderr}")
    return taken, done.stderr


def imported(arguments: Sequence[str]) -> dict[str, int]:
    """Microseconds in the own file of each module that a process imports."""
    _, told = run("imports", ["-X", "importtime", *arguments])
    return {name: int(own) for own, name in IMPORT.findall(told)}


def heaviest(modules: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The packages with the most time, by their modules."""
    seconds, counts = Counter[str](), Counter[str]()
    for name, own in modules.items():
        package = name.partition(".")[0]
        seconds[package] += own
        counts[package] += 1
    return {
        package: {"modules": counts[package], "seconds": significant(taken / 1e6, 3)}
        for package, taken in seconds.most_common(SHOWN)
    }


def main() -> None:
    """Time every command, and list what the last one imports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="otherwise an untrained one is made")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or make_model(Path(folder) / "tiny.safetensors")
        todo = commands(model, Path(folder) / "out")
        seconds: dict[str, list[float]] = {name: [] for name in todo}
        for i in range(given.rounds + 1):
            for name, arguments in todo.items():
                taken, _ = run(name, arguments)
                if i:  # the first brings files into the page cache
                    seconds[name].append(taken)
        torch_alone = imported(todo["import torch"])
        sample = imported(todo["sample -n 1"])
    rows = {
        name: {"seconds": significant(median(s), 3), "fastest_seconds": significant(min(s), 3)}
        for name, s in seconds.items()
    }
    beyond = {name: own for name, own in sample.items() if name not in torch_alone}
    show({"": name, **row} for name, row in rows.items())
    for title, modules in (("sample", sample), ("beyond torch", beyond)):
        say(f"\nimports, {title}")
        show({"": name, **row} for name, row in heaviest(modules).items())
    share = rows["import torch"]["seconds"] / rows["sample -n 1"]["seconds"]
    result = {
        "machine": common.machine(),
        "commands": rows,
        "torch_share_of_sample": significant(share, 3),
        "imports": {"sample": heaviest(sample), "beyond_torch": heaviest(beyond)},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""What others read in a run directory, while a training writes there: checkpoints and metrics.

Nothing is locked: a checkpoint appears whole, and may be removed at any time.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse_cli.system import files

CONFIG, CHECKPOINTS, METRICS, LOCK = "config.toml", "checkpoints", "metrics.jsonl", "lock"
MANIFEST, AVERAGE = "manifest.json", "ema.safetensors"
"""Files of a checkpoint: its checksums, written last, and the averaged weights, a model file."""

BEST = ".best.safetensors"
"""Suffix of the best model's file."""

MEMORY = "memory:"
"""How the name of data begins that a program holds."""


def run_at(path: Path) -> Path | None:
    """Return the run directory that a path is, or in which it is a checkpoint; None for anything
    else."""
    with contextlib.suppress(OSError):  # a name that is too long, a folder that is not ours
        if (path / MANIFEST).is_file() and (path / AVERAGE).is_file():
            return path.parent.parent
        if path.suffix == ".run" or (path / CHECKPOINTS).is_dir():
            return path if (path / CONFIG).is_file() else None
    return None


def run_of(model: Path) -> Path:
    """Return the run directory of a model: of a file, also of a best one, or that which it is
    in."""
    if found := run_at(model):
        return found
    own = model.with_suffix(".run")
    if own.exists() or not model.name.endswith(BEST):
        return own
    return model.with_name(model.name.removesuffix(BEST) + ".run")


def model_of(run: Path) -> Path:
    """Return the model file of a run directory."""
    return run.with_suffix(".safetensors")


def complete(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that are whole, newest first by step."""
    return sorted((p.parent for p in checkpoints.glob(f"step-*/{MANIFEST}")), reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def fault(checkpoint: Path, *names: str) -> str:
    """Return the fault of these files of a checkpoint, or of all of them; empty where they match
    the manifest."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text())["files"]
        for name in names or sums:
            if files.sha256(checkpoint / name) != sums[name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return files.show(str(error))
    return ""


def resume_line(data: str, model: str, options: Sequence[str] = ()) -> str:
    """Return how a run is resumed: a command with these options, or the call of a program that has
    the data."""
    if data.startswith(MEMORY):
        return f"diffuse.train(data, out={model!r}, resume=True)"
    return shlex.join(["diffuse", "train", data, "--resume", *options, "-o", model])


def rows(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that have a step; others, such as a torn one, are skipped."""
    yield from (x for x in files.read_json_lines(log) if finite(x.get("step")) is not None)


def last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the last number of a name in a log."""
    found = (finite(row.get(name)) for row in reversed(rows))
    return next((value for value in found if value is not None), None)


def finite(value: Any) -> float | None:
    """Return a number of a log; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None

"""Read checkpoints and metrics of a run directory, also while a training run writes there.

Readers take no locks. A checkpoint appears whole, and may be removed at any time.
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
"""Files of a checkpoint: the checksums, written last, and a model file with the EMA weights."""

BEST = ".best.safetensors"
"""Suffix of the best model's file."""

MEMORY = "memory:"
"""Prefix of the name of data that a program holds in memory."""


def name_path(path: Path) -> Path:
    """Return a path whose last part is a name, also for `.` and `..`."""
    return path.resolve() if path.name in ("", "..") else path


def find_run(path: Path) -> Path | None:
    """Return the run directory of a path that is a run directory or a checkpoint, else None."""
    with contextlib.suppress(OSError):  # a name that is too long, a folder without permission
        if (path / MANIFEST).is_file() and (path / AVERAGE).is_file():
            return path.parent.parent
        if path.suffix == ".run" or (path / CHECKPOINTS).is_dir():
            return path if (path / CONFIG).is_file() else None
    return None


def run_folder(model: Path) -> Path:
    """Return the run directory of a model: a model file, a best model file, or a checkpoint."""
    model = name_path(model)
    if run := find_run(model):
        return run
    run = model.with_suffix(".run")
    if run.exists() or not model.name.endswith(BEST):
        return run
    return model.with_name(model.name.removesuffix(BEST) + ".run")


def model_path(run: Path) -> Path:
    """Return the model file of a run directory."""
    return run.with_suffix(".safetensors")


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints, newest first."""
    folders = (path.parent for path in checkpoints.glob(f"step-*/{MANIFEST}"))
    named = (path for path in folders if path.name.removeprefix("step-").isdecimal())
    return sorted(named, key=checkpoint_step, reverse=True)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def find_damage(checkpoint: Path, *names: str) -> str:
    """Return the first fault of these files of a checkpoint, empty if they match the manifest.

    Without names, all files are checked.
    """
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text())["files"]
        for name in names or sums:
            if files.sha256(checkpoint / name) != sums[name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return files.show(str(error))
    return ""


def resume_line(data: str, model: str, options: Sequence[str] = ()) -> str:
    """Return the command that resumes a run, or the Python call for data in memory."""
    if data.startswith(MEMORY):
        return f"diffuse.train(data, out={model!r}, resume=True)"
    return shlex.join(["diffuse", "train", data, "--resume", *options, "-o", model])


def extend_line(line: str, steps: int, minutes: float | None) -> str:
    """Return the command of `resume_line` for twice the minutes, or the steps of a run without."""
    name, value = ("minutes", f"{2 * minutes:g}") if minutes else ("steps", f"{2 * steps}")
    return f"{line[:-1]}, {name}={value})" if line.endswith(")") else f"{line} --{name} {value}"


def read_log(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that have a step. Other lines, such as a cut line, are skipped."""
    yield from (x for x in files.read_json_lines(log) if finite_or_none(x.get("step")) is not None)


def last_value(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the last value of a name in a log."""
    values = (finite_or_none(row.get(name)) for row in reversed(rows))
    return next((value for value in values if value is not None), None)


def finite_or_none(value: Any) -> float | None:
    """Return a number of a log as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None

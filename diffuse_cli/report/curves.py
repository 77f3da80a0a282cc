"""The course of a training, from the model's run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.training.rundir import RunDirectory, run_of

POINTS = 250
"""Points of a curve at most; neighbours are averaged."""

KEYS = ("loss", "held_out_loss", "kid")


@dataclass(frozen=True)
class Curve:
    """Values by step, with standard errors, 0 if there are none."""

    steps: list[float]
    values: list[float]
    errors: list[float]


def log_of(model: Path) -> Path | None:
    """The log of a model's training; the best model of a run has the log of the run."""
    if model.suffix != ".safetensors":
        return None
    return RunDirectory(run_of(model).with_suffix(".safetensors")).metrics


def read_curves(log: Path) -> dict[str, Curve]:
    """The curves in `metrics.jsonl` by the names in `KEYS`; other lines are skipped."""
    points: dict[str, list[tuple[float, float, float]]] = {key: [] for key in KEYS}
    for row in _rows(log):
        for key, given in points.items():
            if (value := _finite(row.get(key))) is not None:
                error = _finite(row.get(f"{key}_standard_error")) or 0.0
                given.append((float(row["step"]), value, error))
    found = {}
    for key, given in points.items():
        if given:
            parts = np.array_split(given, min(POINTS, len(given)))
            found[key] = Curve(*np.stack([part.mean(0) for part in parts], 1).tolist())
    return found


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # a torn line
                if isinstance(row, dict) and _finite(row.get("step")) is not None:
                    yield row
    except OSError:
        return


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None

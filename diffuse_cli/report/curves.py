"""The course of a training, from the model's run directory."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
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

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def log_of(model: Path) -> Path | None:
    """The log of a model's training; the best model of a run has the log of the run."""
    if model.suffix != ".safetensors":
        return None
    return RunDirectory(run_of(model).with_suffix(".safetensors")).metrics


def read_curves(log: Path) -> dict[str, Curve]:
    """The curves in `metrics.jsonl` by the names in `KEYS`; other lines are skipped."""
    found: dict[str, Curve] = defaultdict(Curve)
    for row in _rows(log):
        for key in KEYS:
            if (value := _finite(row.get(key))) is not None:
                found[key].steps.append(float(row["step"]))
                found[key].values.append(value)
                found[key].errors.append(_finite(row.get(f"{key}_standard_error")) or 0.0)
    return {key: _thinned(found[key]) for key in KEYS if key in found}


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


def _thinned(curve: Curve) -> Curve:
    parts = min(POINTS, len(curve.steps))
    columns = (curve.steps, curve.values, curve.errors)
    means = ([float(part.mean()) for part in np.array_split(c, parts)] for c in columns)
    return Curve(*means)

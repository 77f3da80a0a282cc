"""The course of a training, from the model's run directory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffuse_cli.runs import finite, rows

POINTS = 250
"""Points of a curve at most; neighbours are averaged."""

KEYS = ("loss", "held_out_loss", "kid")


@dataclass(frozen=True)
class Curve:
    """Values by step, with standard errors, 0 if there are none."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def read_curves(log: Path) -> dict[str, Curve]:
    """The curves in `metrics.jsonl` by the names in `KEYS`; other lines are skipped."""
    found: dict[str, Curve] = defaultdict(Curve)
    for row in rows(log):
        for key in KEYS:
            if (value := finite(row.get(key))) is not None:
                found[key].steps.append(float(row["step"]))
                found[key].values.append(value)
                found[key].errors.append(finite(row.get(f"{key}_standard_error")) or 0.0)
    return {key: _thinned(found[key]) for key in KEYS if key in found}


def _thinned(curve: Curve) -> Curve:
    parts = min(POINTS, len(curve.steps))
    columns = (curve.steps, curve.values, curve.errors)
    means = ([float(part.mean()) for part in np.array_split(c, parts)] for c in columns)
    return Curve(*means)

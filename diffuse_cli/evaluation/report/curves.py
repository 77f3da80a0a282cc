"""The course of a training, from the model's run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffuse_cli.metrics.features import KIDS
from diffuse_cli.system.run_reader import finite, rows

POINTS = 250
"""Points of a curve at most; neighbours are averaged."""

KEYS = ("loss", "held_out_loss", *KIDS)


@dataclass(frozen=True)
class Curve:
    """Values by step, with standard errors, 0 if there are none."""

    steps: list[float]
    values: list[float]
    errors: list[float]


def read_curves(log: Path) -> dict[str, Curve]:
    """The curves in `metrics.jsonl` by the names in `KEYS`; other lines are skipped."""
    points: dict[str, list[tuple[float, float, float]]] = {key: [] for key in KEYS}
    for row in rows(log):
        for key, given in points.items():
            if (value := finite(row.get(key))) is not None:
                error = finite(row.get(f"{key}_standard_error")) or 0.0
                given.append((float(row["step"]), value, error))
    found = {}
    for key, given in points.items():
        if given:
            parts = np.array_split(given, min(POINTS, len(given)))
            found[key] = Curve(*np.stack([part.mean(0) for part in parts], 1).tolist())
    return found

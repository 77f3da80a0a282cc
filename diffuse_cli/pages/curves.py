"""Curves of a training run, from the log in its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffuse_cli.metrics.features import KIDS
from diffuse_cli.system.run_reader import finite_or_none, read_log

POINTS = 250
"""The most points of a curve. Neighbors are averaged."""

SMOOTH = 20
"""A smoothed curve averages 1/SMOOTH of all points to each side."""

COPIES = ("memorized_features", "memorized_pixels")

NAMES = ("loss", "held_out_loss", *KIDS, *COPIES, "lr", "images_per_second")
"""Curves by their names in the log."""


@dataclass(frozen=True)
class Curve:
    """Values by step, with standard errors, 0 if they are unknown."""

    steps: list[float]
    values: list[float]
    errors: list[float]

    @property
    def reach(self) -> int:
        """The number of points to each side that a smoothed curve averages."""
        return len(self.values) // SMOOTH

    def smooth(self) -> list[float]:
        """Return the means over `reach` points to each side, fewer at the ends."""
        sums, places = np.cumsum([0.0, *self.values]), np.arange(len(self.values))
        near = np.minimum(self.reach, np.minimum(places, places[::-1]))
        low, high = places - near, places + near + 1
        return list(((sums[high] - sums[low]) / (high - low)).tolist())


def read_curves(log: Path) -> dict[str, Curve]:
    """Read the curves in `metrics.jsonl` by the names in `NAMES`. Other lines are skipped."""
    points: dict[str, list[tuple[float, float, float]]] = {key: [] for key in NAMES}
    for row in read_log(log):
        for key, given in points.items():
            if (value := finite_or_none(row.get(key))) is not None:
                error = finite_or_none(row.get(f"{key}_standard_error")) or 0.0
                given.append((float(row["step"]), value, error))
    curves = {}
    for key, given in points.items():
        if given:
            parts = np.array_split(given, min(POINTS, len(given)))
            curves[key] = Curve(*np.stack([part.mean(0) for part in parts], 1).tolist())
    return curves

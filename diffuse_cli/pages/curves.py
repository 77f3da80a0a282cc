"""Curves of training runs, from the logs in their run directories, and their plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from diffuse_cli.metrics import Measurement, label
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.pages import charts
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

    def to_line(self, name: str) -> charts.Line:
        """Return the line of a plot, with a mark for each point if there are few."""
        errors = self.errors if any(self.errors) else None
        return charts.Line(name, self.steps, self.values, errors, len(self.steps) < charts.FEW)

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


# -- plots ----------------------------------------------------------------------------------------

CAPTIONS: Mapping[str, tuple[str, str]] = {
    "loss": ("training loss", "Training loss, lower is better."),
    "held_out_loss": ("held-out loss", "Held-out loss. If only it rises, the model memorizes."),
    **{key: (label(key), f"{label(key)}, lower is better.") for key in KIDS},
    **{
        key: (label(key), f"{label(key).capitalize()}, about 0.05 if no samples are copies.")
        for key in COPIES
    },
    "lr": ("learning rate", "Learning rate."),
    "images_per_second": ("samples per second", "Samples per second."),
}
"""The axis and the caption of each curve."""

LOSSES = {"held_out_loss": "held-out", "loss": "training"}
"""Losses that a run shows in one plot."""


def plot_run(curves: Mapping[str, Curve]) -> list[tuple[str, Markup]]:
    """Plot the curves of a run: losses together, with the smoothed one, then each of the others."""
    plots = []
    if lines := make_lines(curves, LOSSES):
        if (curve := curves.get("loss")) and curve.reach:
            lines.insert(0, charts.Line("training, smoothed", curve.steps, curve.smooth()))
        caption = "Loss, lower is better. If only the held-out loss rises, the model memorizes."
        plots.append((caption, _plot("loss", lines, "loss")))
    for key, (words, caption) in CAPTIONS.items():
        if key not in (*LOSSES, *COPIES) and (lines := make_lines(curves, {key: words})):
            plots.append((caption, _plot(key, lines, words)))
    if lines := make_lines(curves, {key: key.partition("_")[2] for key in COPIES}):
        caption = "Memorization rate, about 0.05 if no samples are copies."
        plots.append((caption, _plot("copies", lines, "memorization rate")))
    return plots


def plot_runs(runs: Mapping[str, Mapping[str, Curve]]) -> list[tuple[str, Markup]]:
    """Plot each curve that a run has, smoothed, with a line for each run."""
    plots = []
    for key, (words, caption) in CAPTIONS.items():
        lines = [
            charts.Line(name, curve.steps, curve.smooth(), marks=len(curve.steps) < charts.FEW)
            for name, curves in runs.items()
            if (curve := curves.get(key))
        ]
        if lines:
            plots.append((caption, _plot(f"both-{key}", lines, words)))
    return plots


def make_lines(curves: Mapping[str, Curve], names: Mapping[str, str]) -> list[charts.Line]:
    """Return a line for each of these curves that a run has, under its name."""
    return [curves[key].to_line(name) for key, name in names.items() if key in curves]


def _plot(name: str, lines: list[charts.Line], axis: str) -> Markup:
    """Plot lines over steps, losses on a logarithmic axis."""
    last_values = "; ".join(f"{line.label}: last {Measurement(line.y[-1])}" for line in lines)
    log = axis.endswith("loss") and all(value > 0 for line in lines for value in line.y)
    return charts.lines(name, lines, f"{axis} over steps: {last_values}", "step", axis, log_y=log)

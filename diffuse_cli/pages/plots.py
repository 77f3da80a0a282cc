"""Plots of the curves of one run, or of several runs together, each with its caption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from markupsafe import Markup

from diffuse_cli.metrics import Measurement, label
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.pages import charts
from diffuse_cli.pages.charts import Line
from diffuse_cli.pages.curves import COPIES, Curve

Curves = Mapping[str, Curve]
"""Curves of a run by their names in the log."""

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


def plot_run(curves: Curves) -> list[tuple[str, Markup]]:
    """Plot the curves of a run: losses together, with the smoothed one, then each of the others."""
    plots, losses = [], {key: words for key, words in LOSSES.items() if key in curves}
    if losses:
        lines = [*_lines(curves, losses)]
        if (loss_curve := curves.get("loss")) and loss_curve.reach:
            lines.insert(0, Line("training, smoothed", loss_curve.steps, loss_curve.smooth()))
        caption = "Loss, lower is better. If only the held-out loss rises, the model memorizes."
        plots.append((caption, _plot("loss", lines, "loss")))
    for key, (words, caption) in CAPTIONS.items():
        if key in curves and key not in (*LOSSES, *COPIES):
            plots.append((caption, _plot(key, [*_lines(curves, {key: words})], words)))
    copies = {key: key.partition("_")[2] for key in COPIES if key in curves}
    if copies:
        caption = "Memorization rate, about 0.05 if no samples are copies."
        plots.append((caption, _plot("copies", [*_lines(curves, copies)], "memorization rate")))
    return plots


def plot_runs(runs: Mapping[str, Curves]) -> list[tuple[str, Markup]]:
    """Plot each curve that a run has, smoothed, with a line for each run."""
    plots = []
    for key, (words, caption) in CAPTIONS.items():
        lines = [
            Line(name, curve.steps, curve.smooth(), marks=len(curve.steps) < charts.FEW)
            for name, curves in runs.items()
            if (curve := curves.get(key))
        ]
        if lines:
            plots.append((caption, _plot(f"both-{key}", lines, words)))
    return plots


def _lines(curves: Curves, names: Mapping[str, str]) -> Iterator[Line]:
    for key, words in names.items():
        curve = curves[key]
        errors = curve.errors if any(curve.errors) else None
        yield Line(words, curve.steps, curve.values, errors, marks=len(curve.steps) < charts.FEW)


def _plot(name: str, lines: list[Line], axis: str) -> Markup:
    """Plot lines over steps, losses on a logarithmic axis."""
    last_values = "; ".join(f"{line.label}: last {Measurement(line.y[-1])}" for line in lines)
    log = axis.endswith("loss") and all(value > 0 for line in lines for value in line.y)
    return charts.lines(name, lines, f"{axis} over steps: {last_values}", "step", axis, log_y=log)

"""Plot of `tune --plot`: the quality of settings against their cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.evaluation.results import TuningResult
from diffuse_cli.media import figures
from diffuse_cli.metrics import label, read_measurement
from diffuse_cli.metrics.features import describe_network
from diffuse_cli.sampling.setting_search import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, TOP, WIDTH, HEIGHT = 0.85, 1.0, 6.2, 4.3  # inches
KEYS, LINE = 7.45, 0.27

MARKERS = "osD^vP*X"
"""Markers of the samplers, which are readable without color."""

RING: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": figures.INK}
PLAIN: dict[str, Any] = {"parse_math": False}


def plot_tradeoff(tuning: TuningResult, name: str) -> bytes:
    """Plot the KID over seconds per image as PNG, with a line for each sampler.

    Points are labeled with their steps and have bars of a standard error. Hollow points are other
    guidance scales, labeled with × for guidance and w for autoguidance. A ring marks the
    recommended setting. If a KID is not above 0, its axis is linear.
    """
    sheet = figures.Sheet(9.2, 5.95, 150)
    sheet.text(LEFT, 0.4, name, 8, fontsize=12, fontweight="bold", **PLAIN)
    line = (
        f"{tuning.n:,} generated against {tuning.real:,} real {tuning.words.many}, "
        f"{describe_network(tuning.features)}. Numbers are steps, bars standard errors"
    )
    sheet.text(LEFT, 0.66, line, 8, fontsize=9, color=figures.FAINT, **PLAIN)
    axes = sheet.axes(LEFT, TOP, WIDTH, HEIGHT)
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds per {tuning.words.one}, on {tuning.device}", fontsize=9)
    axes.set_ylabel(f"{label(tuning.metric)}, lower is better", fontsize=9)
    if all(row.values[tuning.metric] > 0 for row in tuning.rows):
        axes.set_yscale("log")
    axes.tick_params(length=0, which="both")
    samplers = list(dict.fromkeys(row.setting.sampler for row in tuning.rows))
    for i, sampler in enumerate(samplers):
        _plot_sampler(axes, tuning, sampler, i)
    [best] = [row for row in tuning.rows if row.setting == tuning.recommended]
    place = best.seconds, best.values[tuning.metric]
    axes.plot(*place, "o", markersize=13, markeredgewidth=1.5, zorder=6, **RING)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            figures.number_axis(axis, "g")
    _plot_legend(sheet, tuning, samplers)
    return figures.encode_png(sheet.render())


def _plot_sampler(axes: Axes, tuning: TuningResult, sampler: str, i: int) -> None:
    """Plot a sampler's line, and its points for other guidance scales and a Gaussian start."""
    first = tuning.rows[0].setting
    rows = [row for row in tuning.rows if row.setting.sampler == sampler]
    labels = {id(row): _describe_difference(row.setting, first) for row in rows}
    line = [(f"{row.setting.steps}", row) for row in rows if not labels[id(row)]]
    line.sort(key=lambda point: point[1].setting.steps)
    other_points = [(labels[id(row)], row) for row in rows if labels[id(row)]]
    _points(axes, line, tuning.metric, i, (0, 7), linestyle="-")
    _points(axes, other_points, tuning.metric, i, (11, -3), linestyle="", markerfacecolor="white")


def _describe_difference(setting: SamplerChoice, first: SamplerChoice) -> str:
    """Describe a Gaussian start, scales other than the first setting's, and noise levels."""
    pairs = (
        (setting.guidance, first.guidance, "×"),
        (setting.weak_guidance, first.weak_guidance, "w"),
    )
    scales = [f"{sign}{scale:g}" for scale, first_scale, sign in pairs if scale != first_scale]
    if setting.guidance_interval:
        scales.append("{:g} to {:g}".format(*setting.guidance_interval))
    start = [f"{setting.steps} Gaussian"] if setting.start else []
    return " ".join([*start, *scales])


def _points(
    axes: Axes,
    points: Sequence[tuple[str, Trial]],
    metric: str,
    i: int,
    offset: tuple[int, int],
    **style: Any,
) -> None:
    """Plot labeled points with bars, in the marker and color of the i-th sampler."""
    from matplotlib.patheffects import withStroke

    if not points:
        return
    style |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 5.5, "markeredgewidth": 1.1}
    values, errors = zip(*(read_measurement(row.values, metric) for _, row in points), strict=True)
    style |= {"color": figures.color(i), "linewidth": 1.4, "elinewidth": 0.7, "zorder": 3}
    axes.errorbar([row.seconds for _, row in points], values, errors, **style)
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
    beside |= {"color": figures.color(i), "zorder": 5}
    beside["path_effects"] = [withStroke(linewidth=2, foreground="white")]
    for text, row in points:
        axes.annotate(text, (row.seconds, row.values[metric]), offset, **beside)


def _plot_legend(sheet: figures.Sheet, tuning: TuningResult, samplers: Sequence[str]) -> None:
    """Plot the legend: samplers, other guidance scales, the recommendation."""
    style: dict[str, Any] = {"fontsize": 9, "va": "center", **PLAIN}
    marks: list[tuple[str, dict[str, Any]]] = [
        (name, {"marker": MARKERS[i % len(MARKERS)], "color": figures.color(i)})
        for i, name in enumerate(samplers)
    ]
    first = tuning.rows[0].setting
    hollow = {"marker": "o", "color": figures.FAINT, "markerfacecolor": "white"}
    if first.guidance is not None:
        marks.append((f"×: guidance other than {first.guidance:g}", hollow))
    if first.weak_guidance is not None:
        marks.append(("w: autoguidance", hollow))
    for row, (words, mark) in enumerate(marks):
        y = TOP + 0.1 + row * LINE
        _plot_legend_mark(sheet, y, markersize=6, **mark)
        sheet.text(KEYS, y, words, 1.65, **style)
    y = TOP + 0.3 + len(marks) * LINE
    _plot_legend_mark(sheet, y, marker="o", markersize=11, clip_on=False, **RING)
    sheet.text(KEYS, y, "recommended:", 1.65, fontweight="bold", **style)
    for i, words in enumerate(str(tuning.recommended).split(", ")):
        sheet.text(KEYS, y + (i + 1) * 0.2, words, 1.65, **style)


def _plot_legend_mark(sheet: figures.Sheet, y: float, **mark: Any) -> None:
    axes = sheet.axes(KEYS - 0.27, y - 0.1, 0.2, 0.2)
    axes.plot([0], [0], **mark)
    axes.set_axis_off()

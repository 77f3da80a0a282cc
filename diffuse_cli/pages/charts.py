"""Plots as inline SVG, with selectable text and the page's colors."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffuse_cli.media import figures
from diffuse_cli.metrics import Measurement
from diffuse_cli.pages.templates import escape_unprintable

WIDTH = 4.9
"""Width of a plot in inches. Its text is then readable on a phone and on a page."""

FEW = 40
"""Points of a curve up to which each has a mark."""

COLUMNS = 3
"""Entries of a legend side by side."""

COLORS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "ink")
_NAMES = ("ink", "faint", "rule", "paper", *COLORS[:-1])
INKS = {name: f"#{k:02x}{k:02x}{k:02x}" for k, name in enumerate(_NAMES, 1)}
"""Placeholders for the colors of the page, replaced when a plot is inserted."""

DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "*", "X")


def choose_style(i: int) -> tuple[str, str, str]:
    """Return the color, dash and mark of the i-th series.

    The first 64 series differ, and the first eight differ in color and in mark.
    """
    turn = i + i // len(COLORS)
    return COLORS[i % len(COLORS)], DASHES[turn % len(DASHES)], MARKS[turn % len(MARKS)]


_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INKS["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.edgecolor": INKS["faint"],
    "axes.labelcolor": INKS["ink"],
    "axes.labelsize": 9,
    "grid.color": INKS["rule"],
    "grid.linewidth": 0.6,
    **{f"{axis}tick.color": INKS["faint"] for axis in "xy"},
    **{f"{axis}tick.labelsize": 8.5 for axis in "xy"},
    **{f"{axis}tick.labelcolor": INKS["ink"] for axis in "xy"},
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.loc": "lower right",
    "legend.borderaxespad": 0,
}


class Dot(NamedTuple):
    """Row of a dot plot, with an optional reference."""

    label: str
    value: Measurement
    reference: Measurement | None = None


@dataclass(frozen=True)
class Line:
    """Series of a plot. `errors` are standard errors, plotted as bars or as a `band`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] | None = None
    marks: bool = False
    band: bool = False


class Plot:
    """SVG plot: fill `axes`, then call `svg`."""

    def __init__(
        self, name: str, height: float, left: float = 0.75, bottom: float = 0.5, top: float = 0.3
    ) -> None:
        self.name = name
        self.figure = Figure(figsize=(WIDTH, height))
        wide, high = 1 - (left + 0.28) / WIDTH, 1 - (bottom + top) / height
        box = (left / WIDTH, bottom / height, wide, high)
        self.axes: Axes = self.figure.add_axes(box)

    def svg(self, label: str) -> Markup:
        """Return the plot as an SVG element. `label` is for screen readers."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", metadata=nothing)
        return _inline_svg(buffer.getvalue(), self.name, label)


MEASURED: dict[str, Any] = {"color": INKS["first"], "marker": "o", "markerfacecolor": INKS["first"]}
REFERENCE: dict[str, Any] = {"color": INKS["second"], "marker": "D", "markerfacecolor": "none"}


def dots(name: str, rows: Sequence[Dot], label: str, xlabel: str) -> Markup:
    """Plot a row for each value with its error bar, and a diamond at its reference."""
    with figures.matplotlib_style(_STYLE):
        bottom = 0.5 if xlabel else 0.28
        left = min(max(1.55, 0.2 + 0.07 * max(len(row.label) for row in rows)), WIDTH / 2)
        plot = Plot(name, bottom + 0.35 + 0.3 * len(rows), left=left, bottom=bottom)
        axes = plot.axes
        for k, row in enumerate(rows):
            if row.reference is not None:
                _point(axes, row.reference, k + 0.18, REFERENCE)
            _point(axes, row.value, k - 0.1, MEASURED)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(xlabel)
        if any(row.reference for row in rows):
            styles = {"measured": MEASURED, "reference": REFERENCE}.items()
            marks = [Line2D([], [], linestyle="", label=word, **style) for word, style in styles]
            axes.legend(handles=marks, ncols=2, handletextpad=0.2, bbox_to_anchor=(1, 1))
        return plot.svg(label)


def _point(axes: Axes, x: Measurement, y: float, style: Mapping[str, Any]) -> None:
    axes.errorbar(
        [x.value], [y], xerr=[x.error] if 0 < x.error < math.inf else None, linestyle="",
        capsize=2.5, markersize=5.5, elinewidth=1.3, clip_on=False, zorder=3, **style,
    )  # fmt: skip


def lines(
    name: str,
    series: Sequence[Line],
    label: str,
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Plot series over x. `mark` is a vertical line with a label."""
    with figures.matplotlib_style(_STYLE):
        rows = math.ceil(len(series) / COLUMNS)
        top = 0.1 + 0.18 * rows
        plot = Plot(name, 2.4 + top, top=top)
        axes = plot.axes
        for i, line in enumerate(series):
            color, dash, point = choose_style(i)
            errors = None if line.band else line.errors
            if line.band and line.errors is not None:
                _band(axes, line, INKS[color])
            axes.errorbar(
                line.x, line.y, yerr=errors, fmt=dash, color=INKS[color], label=line.label,
                linewidth=1.5, elinewidth=1, capsize=2, marker=point if line.marks else "",
                markersize=4.5,
            )  # fmt: skip
        _scale(axes, log_x, log_y)
        if mark is not None:
            axes.axvline(mark[0], color=INKS["faint"], linewidth=1, linestyle=":")
            axes.annotate(
                mark[1], (mark[0], 1), (-3, -2), xycoords=("data", "axes fraction"), va="top",
                ha="right", textcoords="offset points", fontsize=8, color=INKS["faint"],
            )  # fmt: skip
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(series) > 1:
            axes.legend(ncols=min(len(series), COLUMNS), bbox_to_anchor=(1, 1))
        return plot.svg(label)


def _band(axes: Axes, line: Line, color: str) -> None:
    """Plot one standard error to each side. Below 0 it ends at a thousandth of the value."""
    pairs = list(zip(line.y, line.errors or (), strict=True))
    low = [y - error if y - error > 0 else y / 1000 for y, error in pairs]
    high = [y + error for y, error in pairs]
    axes.fill_between(line.x, low, high, color=color, alpha=0.25, linewidth=0)


def outlines(
    name: str,
    edges: Sequence[float],
    series: Mapping[str, Sequence[float]],
    label: str,
    xlabel: str,
) -> Markup:
    """Plot densities of several series over the same ranges of x, as outlines."""
    with figures.matplotlib_style(_STYLE):
        plot = Plot(name, 1.95, top=0.28, left=0.3)
        axes = plot.axes
        for i, (series_name, heights) in enumerate(series.items()):
            color, dash, _ = choose_style(i)
            axes.stairs(
                heights, edges, baseline=None, color=INKS[color], linestyle=dash, linewidth=1.5,
                label=series_name,
            )  # fmt: skip
        figures.number_axis(axes.xaxis, ",.10g")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, None)
        axes.set_yticks([])
        axes.set_xlabel(xlabel)
        axes.legend(ncols=COLUMNS, bbox_to_anchor=(1, 1))
        return plot.svg(label)


def stairs(
    name: str, values: Sequence[float], edges: Sequence[float], label: str, xlabel: str, ylabel: str
) -> Markup:
    """Plot values over ranges of x on logarithmic axes, with gaps for values up to 0."""
    with figures.matplotlib_style(_STYLE):
        plot = Plot(name, 2.6, top=0.15)
        heights = [v if v > 0 else math.nan for v in values]
        plot.axes.stairs(heights, edges, baseline=None, color=INKS["first"], linewidth=1.6)
        _scale(plot.axes, True, any(value > 0 for value in values))
        plot.axes.set_xlim(edges[0], edges[-1])
        plot.axes.set_xlabel(xlabel)
        plot.axes.set_ylabel(ylabel)
        return plot.svg(label)


def _scale(axes: Axes, log_x: bool, log_y: bool) -> None:
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        figures.number_axis(axis, ",.10g")


def _inline_svg(svg: str, name: str, label: str) -> Markup:
    """Turn an SVG file into an element with unique ids and the page's colors and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    ids = {first or second for first, second in used}
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in ids else "", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    for color, stand_in in INKS.items():
        body = body.replace(stand_in, f"var(--{color})")
    body = re.sub(r"(font: [^;\"']*)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", body)
    return Markup(
        f'<svg {box[0]} role="img" aria-label="{escape(escape_unprintable(label))}">{body.strip()}'
    )

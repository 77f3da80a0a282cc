"""Plots of benchmark results, as PNG bytes; the same results give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffuse_cli.media import figures

Points = Sequence[tuple[float, float, float]]
"""(x, y, standard error of y)."""


def png(sheet: figures.Sheet) -> bytes:
    """The finished sheet."""
    buffer = io.BytesIO()
    sheet.render().save(buffer, "png", optimize=True)
    return buffer.getvalue()


def headed(width: float, height: float, title: str, under: str) -> figures.Sheet:
    """A sheet with its title, and what it shows below that."""
    sheet = figures.Sheet(width, height, 150)
    sheet.text(0.3, 0.3, title, fontsize=12, va="center")
    sheet.text(0.3, 0.58, under, width - 0.6, fontsize=8.5, va="center", color=figures.FAINT)
    return sheet


def lines(
    title: str,
    under: str,
    series: Mapping[str, Points],
    labels: tuple[str, str],
    level: tuple[str, float] | None = None,
    marks: Sequence[float] = (),
) -> bytes:
    """Series over a logarithmic axis, with error bars, each named at its end; `level` is a line
    across. The other axis is logarithmic too where its values are far apart. `marks` are numbers
    on the axis, by default those of all points."""
    sheet = headed(7.8, 4.9, title, under)
    axes = sheet.axes(0.8, 0.9, 4.9, 3.4)
    axes.set_xscale("log")
    heights = [y for points in series.values() for _, y, _ in points]
    heights += [level[1]] if level else []
    if min(heights) > 0 and max(heights) > 5 * min(heights):
        axes.set_yscale("log")
        marks = _log_ticks(min(heights), max(heights))
        axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    ends = []
    for i, (name, points) in enumerate(series.items()):
        x, y, error = zip(*sorted(points), strict=True)
        axes.errorbar(
            x, y, error, fmt="o-", color=figures.color(i), linewidth=1.8, markersize=4,
            elinewidth=0.8, capsize=2,
        )  # fmt: skip
        ends.append((y[-1], name, x[-1], figures.color(i)))
    ticks = marks or sorted({x for points in series.values() for x, _, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    if level:
        axes.axhline(level[1], color=figures.FAINT, linewidth=1.0, linestyle="--")
        ends.append((level[1], level[0], max(ticks), figures.FAINT))
    axes.margins(0.06, 0.12)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.tick_params(length=0)
    _name(axes, ends)
    return png(sheet)


def copying(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """KID, and the rate of samples near training images, over steps for each number of images."""
    sheet = headed(
        7.8, 3.9, "Quality and copying with few images",
        "KID × 1000 with its standard error, and the rate of near samples in pixels; log x",
    )  # fmt: skip
    panels = [("KID × 1000", "kid_x1000"), ("near a training image", "memorized_pixels")]
    counts = sorted({row["images"] for row in rows})
    for i, (label, key) in enumerate(panels):
        axes = sheet.axes(0.75 + 3.75 * i, 0.95, 2.9, 2.3)
        axes.set_xscale("log")
        for k, count in enumerate(counts):
            own = sorted((r for r in rows if r["images"] == count), key=lambda row: row["steps"])
            errors = [row[f"{key}_standard_error"] for row in own]
            x, y = [row["steps"] for row in own], [row[key] for row in own]
            axes.errorbar(
                x, y, errors, fmt="o-", color=figures.color(k), linewidth=1.8, markersize=4,
                elinewidth=0.8, capsize=2, label=f"{count:,} images",
            )  # fmt: skip
        if i:
            chance = rows[0]["memorized_expected"]
            axes.axhline(chance, color=figures.FAINT, linewidth=1.0, linestyle="--")
        ticks = sorted({row["steps"] for row in rows})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        axes.set_xlabel("steps of 32 images")
        axes.set_ylabel(label)
        if not i:
            axes.legend(frameon=False, fontsize=8.5)
    return png(sheet)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two values, or just beyond them."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [mark for mark in marks if 0.8 * low <= mark <= 1.25 * high]


def _name(axes: Any, ends: Sequence[tuple[float, str, float, str]]) -> None:
    """Write each series' name right of the plot, at the height of its end, none over another."""
    axes.get_xlim(), axes.get_ylim()  # settles the limits, on which the heights depend
    height, least = 0.0, 0.055
    order = sorted(ends)
    heights: list[float] = []
    for y, *_ in order:
        at = axes.transAxes.inverted().transform(axes.transData.transform((1, y)))[1]
        height = max(at, height + least) if heights else at
        heights.append(height)
    for at, (_, name, _, color) in zip(heights, order, strict=True):
        axes.annotate(
            name, (1.02, at), xycoords="axes fraction", color=color, fontsize=8.5, va="center",
            annotation_clip=False,
        )  # fmt: skip


def budget(parts: Sequence[Mapping[str, Any]], seconds: float) -> bytes:
    """A bar for each part of a step, in milliseconds, with what it would take at the roof."""
    height = 1.5 + 0.28 * len(parts)
    sheet = headed(
        7.8, height, "Where the time of a training step goes",
        f"milliseconds of {1e3 * seconds:,.0f}, dark: the same work at the roof",
    )  # fmt: skip
    axes = sheet.axes(2.5, 0.85, 4.6, height - 1.2)
    places = range(len(parts), 0, -1)
    spent = [part["ms"] for part in parts]
    axes.barh(places, spent, 0.62, color=figures.COLORS[5])
    least = [min(part["ms"], part.get("ms_at_the_roof", 0.0)) for part in parts]
    axes.barh(places, least, 0.62, color=figures.COLORS[0])
    for place, part in zip(places, parts, strict=True):
        axes.annotate(
            f"{part['ms']:,.1f}", (part["ms"], place), (4, 0), textcoords="offset points",
            fontsize=7.5, va="center", color=figures.FAINT,
        )  # fmt: skip
    axes.set_yticks(list(places), [part["part"] for part in parts])
    axes.margins(0.08, 0.02)
    axes.tick_params(length=0)
    axes.grid(visible=False, axis="y")
    return png(sheet)


SERIES = {"batch_size": "batch size", "size": "resolution", "width": "width"}


def growth(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Speed with what FLOP alone would give, and memory, over each series, log-log; PNG."""
    sheet = headed(
        9.4, 5.6, "How the cost of a training step grows",
        "`tiny`, batch 32, 32×32, width 32 unless varied, log-log, dashed: the first "
        "point's GFLOP/s kept",
    )  # fmt: skip
    for i, (name, points) in enumerate(found.items()):
        x = [row[name] for row in points]
        rate = points[0]["gflop_per_s"]
        kept = [rate / row["gflop_per_image"] for row in points]
        lines = (
            ("images per second", "images_per_s", 0.9),
            ("MiB beyond the imports", "over_imports_mib", 3.2),
        )
        for label, key, top in lines:
            axes = sheet.axes(0.8 + 2.95 * i, top, 2.3, 1.75)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            if key == "images_per_s":
                axes.plot(x, kept, "--", color=figures.FAINT, linewidth=1.0)
            axes.plot(
                x, [row[key] for row in points], "o-", color=figures.color(i), linewidth=1.8,
                markersize=4,
            )  # fmt: skip
            for row in points:
                axes.annotate(
                    f"{row[key]:,.0f}", (row[name], row[key]), (0, 6),
                    textcoords="offset points", fontsize=7, ha="center", color=figures.FAINT,
                )  # fmt: skip
            axes.margins(0.12, 0.25)
            axes.set_xticks(x, [str(value) for value in x])
            axes.minorticks_off()
            axes.tick_params(length=0)
            axes.set_xlabel(SERIES[name] if key != "images_per_s" else "")
            axes.set_ylabel(label if i == 0 else "")
    return png(sheet)

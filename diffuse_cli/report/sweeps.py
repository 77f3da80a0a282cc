"""The section of a sweep over samplers, steps and guidance scales."""

from __future__ import annotations

from diffuse_cli.report.charts import Line, lines
from diffuse_cli.report.elements import Markup, element, join, table
from diffuse_cli.report.wording import KNOWN, error_of, measured
from diffuse_cli.sweeps.recommending import Tried, Tuned


def sweep(swept: Tuned) -> Markup:
    """A table with a row for each setting, and a plot of what the images cost and are worth."""
    key = swept.metric
    label = KNOWN[key].label if key in KNOWN else key
    better = KNOWN[key].better if key in KNOWN else ""
    best = str(swept.recommended)
    rows = [
        [
            [str(row.setting), _mark(swept, row)],
            measured(row.values, key),
            f"{row.evaluations:,}",
            f"{row.seconds:.3g}",
        ]
        for row in swept.rows
    ]
    return join(
        element(
            "p",
            f"Before the evaluation, {swept.n:,} images were drawn with each of these settings and "
            f"measured by {label} ({better}). Everything else on this page was measured with "
            f"{best}, the recommended one. What a setting costs is how many times the network is "
            "evaluated for an image.",
        ),
        element("figure", _plot(swept, label)),
        element(
            "p",
            "The lowest of many tries is a little flattered: to publish a number of this setting, "
            "measure it again with another --seed, or against other real images.",
        ),
        table(
            ["sampler, steps, guidance", label, "evaluations", "seconds an image"],
            rows,
            class_="counts",
        ),
    )


def _mark(swept: Tuned, row: Tried) -> Markup | None:
    return element("small", "recommended") if row.setting == swept.recommended else None


def _plot(swept: Tuned, label: str) -> Markup:
    """A line for each sampler and guidance, over the evaluations of the network."""
    groups: dict[str, list[Tried]] = {}
    for row in swept.rows:
        guided = "" if row.setting.guidance is None else f", guidance {row.setting.guidance:g}"
        groups.setdefault(row.setting.sampler + guided, []).append(row)
    series = []
    for name, rows in groups.items():
        rows.sort(key=lambda row: row.evaluations)
        values = [row.values[swept.metric] for row in rows]
        errors = [error_of(row.values, swept.metric) for row in rows]
        series.append(Line(name, [r.evaluations for r in rows], values, errors, marks=True))
    said = f"{label} of each sampler and guidance scale over the network evaluations of an image"
    return lines("sweep", series, said, "network evaluations an image", label, log_x=True)

"""The contents of the section on samplers, steps and guidance scales that were tried."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from diffuse_cli.metrics import label, measured
from diffuse_cli.report.charts import Line, lines
from diffuse_cli.sweeps.recommending import Tried, Tuned


def sweep(swept: Tuned) -> dict[str, Any]:
    """A row for each setting, and a plot of quality against cost."""
    rows = [(row, measured(row.values, swept.metric)) for row in swept.rows]
    name = label(swept.metric)
    return {"swept": swept, "label": name, "rows": rows, "plot": _plot(swept, name)}


def _plot(swept: Tuned, label: str) -> Markup:
    """A line for each sampler and guidance scale, over network evaluations."""
    groups: dict[str, list[Tried]] = {}
    for row in swept.rows:
        guided = "" if row.setting.guidance is None else f", guidance {row.setting.guidance:g}"
        groups.setdefault(row.setting.sampler + guided, []).append(row)
    series = []
    for name, rows in groups.items():
        rows.sort(key=lambda row: row.evaluations)
        values, errors = zip(*(measured(row.values, swept.metric) for row in rows), strict=True)
        series.append(Line(name, [r.evaluations for r in rows], values, errors, marks=True))
    said = f"{label} of each sampler and guidance scale over network evaluations per image"
    return lines("sweep", series, said, "network evaluations per image", label, log_x=True)

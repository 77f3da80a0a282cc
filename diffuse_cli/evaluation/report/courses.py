"""The contents of the sections on bits by timestep, on the training, and on what `tune` tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffuse_cli.evaluation.evaluation_run import Evaluated
from diffuse_cli.evaluation.report import charts
from diffuse_cli.evaluation.report.charts import Line
from diffuse_cli.evaluation.report.curves import Curve, read_curves
from diffuse_cli.evaluation.tune.candidates import Tried, Tuned
from diffuse_cli.metrics import Measured, label, measured
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.system.run_reader import METRICS, run_of


def bits(found: Evaluated) -> dict[str, Any]:
    """The terms of the bound by timestep."""
    terms = found.terms
    if not terms:
        return {"plot": None, "words": found.words}
    edges = [term["first"] + 1 for term in terms] + [terms[-1]["last"] + 2]
    values = [term["bits_per_timestep"] for term in terms]
    density = " of the density" if "nats_per_dim" in found.values else ""
    said = (
        f"Bits per dimension{density} that each timestep costs, from {Measured(values[0])} at the "
        f"first to {Measured(values[-1])} at the last"
    )
    axis = f"bits per dimension{density}, each"
    plot = charts.stairs("bits", values, edges, said, "timestep + 1", axis)
    keys = {"total": "bits_per_dim", "first": "bits_decoder", "others": "bits_middle",
            "left": "bits_prior"}  # fmt: skip
    return {"plot": plot, **{name: measured(found.values, key) for name, key in keys.items()}}


def training(found: Evaluated, model: Path) -> dict[str, Any]:
    """The curves of the model's run, if its log lies beside the model file."""
    log = run_of(model) / METRICS if found.model else None
    curves = read_curves(log) if log else {}
    step = float(found.model["step"]) if curves else 0.0
    loss = {"loss": "training", "held_out_loss": f"{found.words.many} held out"}
    series = [
        Line(name, curves[key].steps, curves[key].values, marks=len(curves[key].steps) < 40)
        for key, name in loss.items()
        if key in curves
    ]
    return {
        "model": bool(found.model),
        "words": found.words,
        "log": log and f"{log.parent.name}/{log.name}",
        "loss": _loss(series, step) if series else None,
        "kid": next((_kid(curves[key], key, step) for key in KIDS if key in curves), None),
        "kid_label": next((label(key) for key in KIDS if key in curves), ""),
    }


def _loss(series: list[Line], step: float) -> Markup:
    said = "; ".join(f"loss of {line.label}: last {Measured(line.y[-1])}" for line in series)
    positive = all(value > 0 for line in series for value in line.y)
    return charts.lines("loss", series, f"Loss over steps: {said}", "step", "loss",
                        log_y=positive, mark=(step, "measured"))  # fmt: skip


def _kid(curve: Curve, key: str, step: float) -> Markup:
    name = label(key)
    line = Line(name, curve.steps, curve.values, curve.errors, marks=True)
    best = min(range(len(curve.values)), key=curve.values.__getitem__)
    lowest = Measured(curve.values[best], curve.errors[best])
    said = f"{name} over steps, lowest {lowest} at step {curve.steps[best]:,.0f}"
    return charts.lines("kid", [line], said, "step", name, mark=(step, "measured"))


def sweep(swept: Tuned) -> dict[str, Any]:
    """A row for each setting, and a plot of quality against cost."""
    rows = [(row, measured(row.values, swept.metric)) for row in swept.rows]
    name = label(swept.metric)
    return {"swept": swept, "label": name, "rows": rows, "plot": _quality(swept, name)}


def _quality(swept: Tuned, label: str) -> Markup:
    """A line for each sampler, start, learned times or not, and guidance scale, over
    evaluations."""
    groups: dict[str, list[Tried]] = {}
    for row in swept.rows:
        setting = row.setting
        name = setting.sampler + setting.begun + setting.learned + setting.scales
        groups.setdefault(name, []).append(row)
    series = []
    for name, rows in groups.items():
        rows.sort(key=lambda row: row.evaluations)
        values, errors = zip(*(measured(row.values, swept.metric) for row in rows), strict=True)
        series.append(Line(name, [r.evaluations for r in rows], values, errors, marks=True))
    axis = f"network evaluations per {swept.words.one}"
    said = f"{label} of each sampler and guidance scale over {axis}"
    return charts.lines("sweep", series, said, axis, label, log_x=True)

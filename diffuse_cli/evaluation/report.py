"""HTML report of an evaluation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffuse_cli import metrics
from diffuse_cli.config import options
from diffuse_cli.config.eval_options import EvalConfig, TuneConfig
from diffuse_cli.evaluation.examples import ReportImages
from diffuse_cli.evaluation.results import EvaluationResult, TuningResult, strip_folders
from diffuse_cli.media import Array
from diffuse_cli.metrics import Measurement, read_measurement
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.pages import charts, curves, templates
from diffuse_cli.pages.charts import Line
from diffuse_cli.sampling.setting_search import Trial
from diffuse_cli.system import plural, run_reader

COLORS = {1: "grey", 3: "color"}

FINGERPRINTS = {
    "data": "the real {many}",
    "subject": "the generated {many}",
    "given": "the conditioning {many}",
    "table": "the metadata columns",
}
"""Names of data with a fingerprint, by their keys in `EvaluationResult.fingerprints`."""

SAMPLE, SMALL, LARGE = 56, 48, 84
"""Approximate side of an image on the screen: among many, in a row, in a pair."""

DATA_BUDGET = 200_000
"""The most uncompressed bytes of pixels in one set of images."""


def page(
    config: EvalConfig,
    result: EvaluationResult,
    numbers: Mapping[str, Any],
    swept: TuningResult | None = None,
    tune_config: TuneConfig | None = None,
) -> str:
    """Render an evaluation as HTML. A repeated evaluation differs only in the seconds.

    Args:
        numbers: the object that `--json` prints.
        swept: the result of `tune` before the evaluation, or None.
        tune_config: the configuration of `tune`.
    """
    images, subject = result.images, options.place_name(config.subject)
    assert images is not None
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "samples": ("Samples", show_samples(result, images)),
        "numbers": ("Metrics", show_numbers(result)),
        "distributions": ("Channels and frequencies", show_distributions(result)),
        "answers": ("Conditions and results", show_paired_images(images.paired_images)),
        "ensembles": ("Ensembles", show_ensembles(result, images)),
        "classes": ("Class by class", show_classes(result, images)),
        "bits": ("Bits by timestep", show_bits(result)),
        "training": ("Training", show_training(result, Path(config.subject))),
        "sweep": ("Samplers, steps and guidance", show_sweep(swept)),
        "nearest": (f"Nearest training {result.words.many}", show_nearest(result, images)),
        "repeat": ("Repeat this", _repeat(config, result, numbers, tune_config)),
    }
    every = {"words": result.words, "model": result.model}
    return templates.render_page(
        "page",
        f"Evaluation of {subject}",
        subject=subject,
        data=options.place_name(config.data),
        result=result,
        color=COLORS if result.words.one == "image" else {},
        plural=plural,
        verdict=[remark for remark in result.remarks if remark.level != "note"],
        sections=[
            (name, title, templates.render(name, **every, **data))
            for name, (title, data) in parts.items()
            if data
        ],
    )


def _repeat(
    config: EvalConfig,
    result: EvaluationResult,
    numbers: Mapping[str, Any],
    tune_config: TuneConfig | None,
) -> dict[str, Any]:
    name = "tune" if tune_config else "eval"
    typed = [name, *options.to_arguments(tune_config or config, places=False)]
    return {
        "command": shlex.join(["diffuse", *typed]),
        "facts": {name: _format_value(value) for name, value in _facts(config, result).items()},
        "json": json.dumps(strip_folders(numbers), indent=2),
    }


def _facts(config: EvalConfig, result: EvaluationResult) -> dict[str, Any]:
    """Return everything that the metrics depend on, by readable names."""
    many = result.words.many
    subject = {"model" if result.model else f"generated {many}": options.place_name(config.subject)}
    names = {key: f"fingerprint of {text.format(many=many)}" for key, text in FINGERPRINTS.items()}
    versions = {f"model made with {k}": v for k, v in result.model.get("versions", {}).items()}
    return {
        **subject,
        f"real {many}": options.place_name(config.data),
        "which of them": {"held-out": "the held-out part", "all": "all"}[result.part],
        f"number of {many}": f"{result.generated:,} generated, {result.real:,} real",
        **{names[key]: value for key, value in result.fingerprints.items()},
        **{name.replace("_", " "): value for name, value in result.settings.items()},
        **{f"feature network: {k.replace('_', ' ')}": v for k, v in result.features.items()},
        **versions,
        **result.made_with,
        **(
            {f"training {many} compared in features": f"at most {config.train_n:,}"}
            if "memorized_features" in result.values
            else {}
        ),
        "seconds": f"{result.seconds:,.1f}",
    }


def _format_value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def show_numbers(result: EvaluationResult) -> dict[str, Any]:
    """Group metrics by the question that they answer, with a plot for each axis."""
    groups = []
    for question, group in groupby(metrics.select_numbers(result.values), lambda n: n.question):
        members = list(group)
        groups.append(
            {
                "question": metrics.QUESTIONS[question],
                "rows": [(n, n.text(result.values), n.reference(result.values)) for n in members],
                "plots": list(_plots(question, members, result.values)),
            }
        )
    return {"groups": groups, "notes": [r for r in result.remarks if r.level == "note"]}


def _plots(
    question: str, group: Sequence[metrics.MetricNumber], values: metrics.Values
) -> Iterator[Markup]:
    """Yield a dot plot for each axis with two metrics or a reference."""
    for place, axis in enumerate(dict.fromkeys(n.axis for n in group if n.axis)):
        members = [n for n in group if n.axis == axis and n.can_show(values)]
        rows = [
            charts.Dot(n.label, read_measurement(values, n.key), n.reference(values))
            for n in members
        ]
        if len(rows) > 1 or any(row.reference for row in rows):
            text = "; ".join(f"{n.label} {n.text(values)}" for n in members)
            yield charts.dots(f"{question}-{place}", rows, f"Plot: {text}", axis)


def show_samples(result: EvaluationResult, images: ReportImages) -> dict[str, Any]:
    """Show the first images of both sides."""
    sides = []
    for title, side, count in (
        ("Generated", images.generated, result.generated),
        ("Real", images.real, result.real),
    ):
        room = max(4, DATA_BUDGET // min(int(side.samples[0].size), SAMPLE**2 * 3))
        first = side.samples[:room]
        what = f"{title.lower()} {result.words.one}"
        named = {k: f" of class {name}" for k, name in enumerate(images.names)}
        words = [f"{what} {k}{named.get(int(side.labels[k]), '')}" for k in range(len(first))]
        sides.append((title, templates.make_pictures(first, words, SAMPLE), count))
    return {"sides": sides}


def show_classes(result: EvaluationResult, images: ReportImages) -> dict[str, Any]:
    """Show a row of images of both sides for each class, and its metrics."""
    head, *rows = metrics.class_table(result.classes)
    return {
        "grid": list(_class_images(images, result.words.one)),
        "more": images.more_classes,
        "columns": metrics.class_numbers(result.classes),
        "head": head,
        "rows": rows,
    }


def _class_images(
    images: ReportImages, what: str
) -> Iterator[tuple[str, list[tuple[str, list[templates.Picture]]]]]:
    if not images.classes:
        return
    size = 2 * min(int(images.classes[0].generated[0].size), SMALL**2 * 3)
    room = max(2, 2 * DATA_BUDGET // (len(images.classes) * size))
    for one in images.classes:
        cells = []
        for side, pixels in (("generated", one.generated), ("real", one.real)):
            first = pixels[:room]
            words = [f"{side} {what} {k} of class {one.name}" for k in range(len(first))]
            cells.append((side, templates.make_pictures(first, words, SMALL)))
        yield one.name, cells


def show_paired_images(sides: Mapping[str, Array]) -> dict[str, Any]:
    """Show a row of pictures for each of the first real images, empty without pictures."""
    if not sides:
        return {}
    size = len(sides) * min(int(next(iter(sides.values()))[0].size), LARGE**2 * 3)
    room = max(3, DATA_BUDGET // size)
    rows = zip(*(side[:room] for side in sides.values()), strict=True)
    return {
        "names": list(sides),
        "rows": [
            templates.make_pictures(row, [f"{name}, of image {k}" for name in sides], LARGE)
            for k, row in enumerate(rows)
        ],
    }


def show_ensembles(result: EvaluationResult, images: ReportImages) -> dict[str, Any]:
    """Show the first ensembles, maps, the rank histogram, spread against error, and spectra."""
    scores = result.details.get("ensembles")
    if not scores:
        return {}
    count = scores["members"] + 1
    band = [2 * count * error for error in scores["ranks"]["frequencies_standard_error"]]
    ranks = {
        "real": [count * frequency for frequency in scores["ranks"]["frequencies"]],
        "least by chance": [1 - width for width in band],
        "most by chance": [1 + width for width in band],
    }
    edges = [k / count for k in range(count + 1)]
    key = "spread_error_ratio"
    bins = sorted((r["spread"], r[key], r[f"{key}_standard_error"]) for r in scores["bins"])
    spread, ratio, errors = map(list, zip(*bins, strict=True))
    lines = [
        Line("measured", spread, ratio, errors, marks=True),
        Line("right", spread, [1] * len(bins)),
    ]
    axes = "spread, in standard deviations of real values", "spread / error"
    spectrum = scores["spectrum"]
    maps = [templates.make_pictures([p], [name], 2 * LARGE) for name, p in images.maps.items()]
    return {
        **show_paired_images(images.ensembles),
        "maps": list(zip(maps, images.maps, strict=True)),
        "ranks": charts.outlines("ranks", edges, ranks, "Rank histogram", "rank among members"),
        "bins": charts.lines("bins", lines, "Spread / error", *axes, log_x=spread[0] > 0),
        "spectrum": _spectrum(spectrum, "ensemble-spectrum") if any(spectrum["real"]) else None,
        "remarks": [r for r in result.remarks if r.kind in {f["kind"] for f in scores["findings"]}],
    }


def show_nearest(result: EvaluationResult, images: ReportImages) -> dict[str, Any]:
    """Show the generated images nearest to training images, each next to that image."""
    pairs, one = [], result.words.one
    for pair, *pixels in images.twins:
        words = (f"generated {one} {pair.sample}", f"its nearest training {one}")
        pairs.append((templates.make_pictures(pixels, words, LARGE), pair))
    return {"pairs": pairs, "remarks": [r for r in result.remarks if r.kind == "memorization"]}


def show_bits(result: EvaluationResult) -> dict[str, Any]:
    """Show the terms of the variational bound by timestep."""
    terms = result.terms
    if not terms:
        return {"plot": None}
    edges = [term["first"] + 1 for term in terms] + [terms[-1]["last"] + 2]
    values = [term["bits_per_timestep"] for term in terms]
    density = " of the density" if "nats_per_dim" in result.values else ""
    alt = (
        f"Bits per dimension{density} that each timestep costs, from {Measurement(values[0])} at "
        f"the first to {Measurement(values[-1])} at the last"
    )
    axis = f"bits per dimension{density}, each"
    keys = {"total": "bits_per_dim", "first": "bits_decoder", "others": "bits_middle",
            "left": "bits_prior"}  # fmt: skip
    return {
        "plot": charts.stairs("bits", values, edges, alt, "timestep + 1", axis),
        **{name: read_measurement(result.values, key) for name, key in keys.items()},
    }


def show_training(result: EvaluationResult, model: Path) -> dict[str, Any]:
    """Show the curves of the model's run, if its log is next to the model file."""
    log = run_reader.run_folder(model) / run_reader.METRICS if result.model else None
    run_curves = curves.read_curves(log) if log else {}
    step = float(result.model["step"]) if run_curves else 0.0
    losses = {"loss": "training", "held_out_loss": f"held-out {result.words.many}"}
    series = curves.make_lines(run_curves, losses)
    kid = next((key for key in KIDS if key in run_curves), None)
    return {
        "log": log and f"{log.parent.name}/{log.name}",
        "loss": _loss(series, step) if series else None,
        "kid": _kid(run_curves[kid], kid, step) if kid else None,
        "kid_label": metrics.label(kid) if kid else "",
    }


def _loss(series: list[Line], step: float) -> Markup:
    losses = "; ".join(f"loss of {line.label}: last {Measurement(line.y[-1])}" for line in series)
    positive = all(value > 0 for line in series for value in line.y)
    return charts.lines("loss", series, f"Loss over steps: {losses}", "step", "loss",
                        log_y=positive, mark=(step, "measured"))  # fmt: skip


def _kid(curve: curves.Curve, key: str, step: float) -> Markup:
    name = metrics.label(key)
    line = Line(name, curve.steps, curve.values, curve.errors, marks=True)
    best = min(range(len(curve.values)), key=curve.values.__getitem__)
    lowest = Measurement(curve.values[best], curve.errors[best])
    alt = f"{name} over steps, lowest {lowest} at step {curve.steps[best]:,.0f}"
    return charts.lines("kid", [line], alt, "step", name, mark=(step, "measured"))


def show_sweep(swept: TuningResult | None) -> dict[str, Any]:
    """Show a row for each setting, and a plot of quality against cost. Empty without `tune`."""
    if swept is None:
        return {}
    rows = [(row, read_measurement(row.values, swept.metric)) for row in swept.rows]
    name = metrics.label(swept.metric)
    return {"swept": swept, "label": name, "rows": rows, "plot": _quality(swept, name)}


def _quality(swept: TuningResult, label: str) -> Markup:
    """Plot a line for each sampler, start and scale over evaluations."""
    groups: dict[str, list[Trial]] = {}
    for row in swept.rows:
        groups.setdefault(row.setting.sampler + row.setting.description, []).append(row)
    series = []
    for name, group in groups.items():
        group.sort(key=lambda row: row.evaluations)
        measured = (read_measurement(row.values, swept.metric) for row in group)
        values, errors = zip(*measured, strict=True)
        series.append(Line(name, [row.evaluations for row in group], values, errors, marks=True))
    axis = f"network evaluations per {swept.words.one}"
    alt = f"{label} of each sampler and guidance scale over {axis}"
    return charts.lines("sweep", series, alt, axis, label, log_x=True)


# Densities by channel, and spectra.

CHANNELS = 8
"""The most channels to plot."""

SIDES = ("real", "generated")


def show_distributions(result: EvaluationResult) -> dict[str, Any]:
    """Plot each channel's density, and the power by frequency."""
    channels = result.details.get("marginals", [])
    spectrum = result.details.get("spectrum")
    return {
        "channels": [_channel(k, c, result.words) for k, c in enumerate(channels[:CHANNELS])],
        "more": max(0, len(channels) - CHANNELS),
        "spectrum": _spectrum(spectrum) if spectrum and any(spectrum["real"]) else None,
    }


def _channel(k: int, channel: dict[str, Any], words: metrics.Words) -> tuple[Markup, str]:
    """Plot a channel's density, and return its caption too."""
    density = channel["density"]
    name = words.channel(k)
    statistics = "; ".join(
        f"{side}: mean {read_measurement(channel[side], 'mean')}, "
        f"standard deviation {read_measurement(channel[side], 'deviation')}"
        for side in SIDES
    )
    series = {side: density[side] for side in SIDES}
    caption = f"Values of {name}. {statistics[:1].upper()}{statistics[1:]}."
    label = f"Density of the values of {name}; {statistics}"
    return charts.outlines(f"density-{k}", density["edges"], series, label, "value"), caption


def _spectrum(spectrum: dict[str, Any], plot: str = "spectrum") -> Markup:
    series, error = [], "_standard_error"
    sides = [key.removesuffix(error) for key in spectrum if key.endswith(error)]
    for name in sides:
        columns = spectrum["frequencies"], spectrum[name], spectrum[f"{name}_standard_error"]
        rows = [row for row in zip(*columns, strict=True) if row[1] > 0]
        if rows:
            places, powers, errors = zip(*rows, strict=True)
            series.append(Line(name, places, powers, errors, band=True))
    alt = f"Power by frequency, {metrics.presentation.join_names(sides)}"
    axes = "waves per point", "power"
    return charts.lines(plot, series, alt, *axes, log_x=True, log_y=True)

"""The section of a sweep over samplers, steps and guidance scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from diffuse_cli.report.charts import Line, lines
from diffuse_cli.report.elements import Markup, element, join, table
from diffuse_cli.report.wording import KNOWN, Values, error_of, measured


class Setting(Protocol):
    """How images were drawn; `guidance` is None where the model has no classes."""

    @property
    def sampler(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float | None: ...


class SettingRow(Protocol):
    """What was measured of a setting.

    `evaluations` and `seconds` are those of one image.
    """

    @property
    def setting(self) -> Setting: ...
    @property
    def values(self) -> Values: ...
    @property
    def seconds(self) -> float: ...
    @property
    def evaluations(self) -> int: ...


class SweptSettings(Protocol):
    """What `eval --sweep` found."""

    @property
    def rows(self) -> Sequence[SettingRow]: ...
    @property
    def recommended(self) -> Setting: ...
    @property
    def metric(self) -> str: ...
    @property
    def n(self) -> int: ...


def sweep(swept: SweptSettings) -> Markup:
    """A table with a row for each setting, and a plot of what the images cost and are worth."""
    key = swept.metric
    label = KNOWN[key].label if key in KNOWN else key
    better = KNOWN[key].better if key in KNOWN else ""
    best = named(swept.recommended)
    rows = [
        [
            join(
                named(row.setting), element("small", "recommended") if _chosen(swept, row) else ""
            ),
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
        table(
            ["sampler, steps, guidance", label, "evaluations", "seconds an image"],
            rows,
            class_="counts",
        ),
    )


def named(setting: Setting) -> str:
    """A setting in a few words."""
    words = f"{setting.sampler}, {setting.steps:,} steps"
    return words if setting.guidance is None else f"{words}, guidance {setting.guidance:g}"


def _chosen(swept: SweptSettings, row: SettingRow) -> bool:
    return row.setting == swept.recommended


def _plot(swept: SweptSettings, label: str) -> Markup:
    """A line for each sampler and guidance, over the evaluations of the network."""
    groups: dict[str, list[SettingRow]] = {}
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

"""Measure a model, or a folder of images, against real images.

Bits per dimension of held-out images, and the distance of generated images from real ones. Where
the training images are known, too: overfitting, and whether generated images are copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffuse_cli import files
from diffuse_cli.commands._options import check_knobs
from diffuse_cli.config import EvalConfig
from diffuse_cli.console import Console, plain
from diffuse_cli.metrics import Number, Values, class_numbers, label, measured, shown
from diffuse_cli.runtime import rank

if TYPE_CHECKING:
    from diffuse_cli.evaluation import Evaluated
    from diffuse_cli.evaluation.settings import SettingRow, SweptSettings
    from diffuse_cli.training.sweeping import Swept

CONFIG = EvalConfig


def run(config: EvalConfig, console: Console) -> None:
    """Evaluate, and print the numbers."""
    check_knobs(config)
    if config.ema_sweep:
        _sweep_ema(config, console)
        return
    if config.sweep:
        _sweep(config, console)
        return
    from diffuse_cli.evaluation import evaluate

    found = console.follow(evaluate(config))
    if found is None:
        return
    values = to_json(config, found)
    if found.report:
        from diffuse_cli.report.page import page

        files.write_text(found.report, page(config, found, plain(values)))
    _show(console, values, lines(found))


def _sweep(config: EvalConfig, console: Console) -> None:
    from diffuse_cli.evaluation.sweeping import sweep, sweep_and_evaluate

    if config.report is None:
        swept = console.follow(sweep(config))
        if rank() == 0:
            shown = {"subject": config.subject, "data": config.data, **settings_to_json(swept)}
            _show(console, shown, setting_lines(swept))
        return
    both = console.follow(sweep_and_evaluate(config))
    if both is None:
        return
    from diffuse_cli.report.page import page

    swept, found = both
    values = {**to_json(config, found), "sweep": settings_to_json(swept)}
    assert found.report is not None
    files.write_text(found.report, page(config, found, plain(values), swept))
    _show(console, values, [*setting_lines(swept), "", *lines(found)])


def _show(console: Console, values: dict[str, object], lines: list[str]) -> None:
    if console.as_json:
        console.result([], values)
    else:
        console.write(lines)


def settings_to_json(found: SweptSettings) -> dict[str, object]:
    """What a sweep found, as plain values."""
    values = dataclasses.asdict(found)
    return {**values, **{n: str(values[n]) if values[n] else None for n in ("out", "plot")}}


SETTING_HEADS = (
    "sampler",
    "steps",
    "guidance",
    "evaluations",
    "seconds",
    "KID",
    "Fréchet distance",
)


def setting_lines(found: SweptSettings) -> list[str]:
    """A row for each setting, the recommended one, and the files that were written."""
    guided = found.recommended.guidance is not None
    shown = [i for i, head in enumerate(SETTING_HEADS) if guided or head != "guidance"]
    rows = [SETTING_HEADS, *(_cells(row) for row in found.rows)]
    part = {"held-out": "held-out images", "all": "all images of DATA"}[found.part]
    return [
        *_table([[row[i] for i in shown] for row in rows]),
        f"n = {found.n:,} generated against {found.real:,} real ({part}) for each; features of "
        f"{found.features['name']}; seconds of an image on {found.device}",
        f"recommended: {found.recommended}",
        *(files.show(path) for path in (found.plot, found.out) if path),
    ]


def _cells(row: SettingRow) -> tuple[str, ...]:
    setting = row.setting
    return (
        setting.sampler,
        f"{setting.steps}",
        "" if setting.guidance is None else f"{setting.guidance:g}",
        f"{row.evaluations}",
        f"{row.seconds:.3g}",
        _number(row.values, "kid"),
        _number(row.values, "frechet_distance"),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells, in columns as wide as their widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _sweep_ema(config: EvalConfig, console: Console) -> None:
    from diffuse_cli.training.sweeping import sweep

    found = console.follow(sweep(config))
    if found is None:
        return
    if console.as_json:
        values = dataclasses.asdict(found)
        out = str(found.out) if found.out else None
        console.result([], {"subject": config.subject, "data": config.data, **values, "out": out})
    else:
        console.write(sweep_lines(found))


def sweep_lines(found: Swept) -> list[str]:
    """A row for each length, the best of them, and the file that was written."""
    rows = [["length", label(found.metric)]]
    rows += [[f"{row.length:.2f}", _number(row.values, found.metric)] for row in found.rows]
    rows.append(["in the file", _number(found.file, found.metric)])
    best = f"best: {found.best:.2f} of the {found.updates:,} updates at step {found.step:,}"
    return [
        *_table(rows),
        best,
        *([files.show(found.out)] if found.out else []),
    ]


def to_json(config: EvalConfig, found: Evaluated) -> dict[str, object]:
    """Everything one needs to compare the numbers with others."""
    values = dataclasses.asdict(dataclasses.replace(found, shown=None, remarks=[]))
    del values["shown"]
    values["remarks"] = [str(remark) for remark in found.remarks if remark.warns]
    numbers = values.pop("values")
    counts = {"real": values.pop("real"), "generated": values.pop("generated")}
    for name in ("plot", "pairs", "report"):
        values[name] = str(values[name]) if values[name] else None
    return {"subject": config.subject, "data": config.data, "n": counts, **numbers, **values}


def lines(found: Evaluated) -> list[str]:
    """A table of the numbers beside their references, and what they were measured on."""
    rows = [["", "measured", "reference"], *(_row(n, found.values) for n in shown(found.values))]
    part = {"held-out": "held-out images", "all": "all images of DATA"}[found.part]
    features = found.features.get("name", "")
    said = [str(r) for r in found.remarks if r.warns or r.level == "note"]
    return [
        *_table(rows),
        f"n = {found.generated:,} generated against {found.real:,} real ({part}); "
        f"features of {features}",
        *said,
        *_class_lines(found),
        *(files.show(path) for path in (found.plot, found.pairs, found.report) if path),
    ]


def _row(number: Number, values: Values) -> list[str]:
    reference = number.reference(values)
    return [
        "  " * number.part + number.label,
        number.text(values, ".4f"),
        "" if reference is None else f"{reference:.4f}",
    ]


def _class_lines(found: Evaluated) -> list[str]:
    """A row for each class: the counts, and the numbers that stand a few images."""
    if not found.classes:
        return []
    columns = class_numbers(found.classes)
    rows = [["class", "generated", "real", *(number.label for number in columns)]]
    for name, values in found.classes.items():
        counts = [f"{values['generated']:,}", f"{values['real']:,}"]
        cells = [n.text(values, ".4f") if n.quoted(values) else "-" for n in columns]
        rows.append([files.show(name), *counts, *cells])
    return ["", *_table(rows)]


def _number(values: dict[str, float], name: str) -> str:
    return f"{measured(values, name):.4f}" if name in values else "-"

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
from diffuse_cli.evaluation.remarks import PER_CLASS
from diffuse_cli.runtime import rank

if TYPE_CHECKING:
    from diffuse_cli.evaluation import Evaluated
    from diffuse_cli.evaluation.settings import SettingRow, SweptSettings
    from diffuse_cli.training.sweeping import Swept

CONFIG = EvalConfig

LABELS = {
    "bits_per_dim": "bits per dimension (bound)",
    "bits_prior": "  prior, L_T",
    "bits_middle": "  steps, L_1 ... L_T-1",
    "bits_decoder": "  decoder, L_0",
    "bits_per_dim_train": "  of training images",
    "bits_per_dim_gap": "  held-out less training",
    "kid": "KID",
    "kid_floor": "  floor",
    "frechet_distance": "Fréchet distance",
    "frechet_infinity": "  at infinite n",
    "frechet_floor": "  floor",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "held_out_loss": "held-out loss",
    "memorized_features": "near training images, features",
    "memorized_pixels": "near training images, pixels",
}

UNLISTED = (
    "floor_images",
    "memorized_expected",
    "memorized_references",
    "memorized_rank",
    "memorized_z",
)
"""What is in the JSON alone."""


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
    label = LABELS.get(found.metric, found.metric.replace("_", " "))
    rows = [["length", label]]
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
    values = dataclasses.asdict(dataclasses.replace(found, shown=None))
    del values["shown"]
    numbers = values.pop("values")
    counts = {"real": values.pop("real"), "generated": values.pop("generated")}
    for name in ("plot", "pairs", "report"):
        values[name] = str(values[name]) if values[name] else None
    return {"subject": config.subject, "data": config.data, "n": counts, **numbers, **values}


def lines(found: Evaluated) -> list[str]:
    """A table of the numbers, each with its standard error, and what they were measured on."""
    rows = [(LABELS.get(name, name), _number(found.values, name)) for name in _ordered(found)]
    width = max(len(label) for label, _ in rows)
    part = {"held-out": "held-out images", "all": "all images of DATA"}[found.part]
    features = found.features.get("name", "")
    return [
        *(f"{label:<{width}}  {number}" for label, number in rows),
        f"n = {found.generated:,} generated against {found.real:,} real ({part}); "
        f"features of {features}",
        *_keys(found),
        *found.remarks,
        *_class_lines(found),
        *(files.show(path) for path in (found.plot, found.pairs, found.report) if path),
    ]


def _keys(found: Evaluated) -> list[str]:
    """What two kinds of rows are measured against."""
    result, values = [], found.values
    if "floor_images" in values:
        n = f"{values['floor_images']:,.0f}"
        result.append(f"floor: {n} real images against {n} other real ones")
    if "memorized_expected" in values:
        share = f"{values['memorized_expected']:.4f}"
        result.append(
            f"near: as near as {share} of images that are no copies; "
            f"so is {share} of honest samples"
        )
    return result


def _class_lines(found: Evaluated) -> list[str]:
    """A row for each class: the counts, and the numbers that stand a few images."""
    if not found.classes:
        return []
    shown = [name for name in PER_CLASS if any(name in v for v in found.classes.values())]
    rows = [["class", "generated", "real", *(PER_CLASS[name] for name in shown)]]
    for name, values in found.classes.items():
        counts = [f"{values['generated']:,}", f"{values['real']:,}"]
        rows.append([files.show(name), *counts, *(_number(values, key) for key in shown)])
    return ["", *_table(rows)]


def _ordered(found: Evaluated) -> list[str]:
    names = [
        name
        for name in found.values
        if not name.endswith("_standard_error") and not name.startswith(UNLISTED)
    ]
    known = [name for name in LABELS if name in names]
    return known + [name for name in names if name not in LABELS]


def _number(values: dict[str, float], name: str) -> str:
    if name not in values:  # a class of too few images
        return "-"
    error = values.get(f"{name}_standard_error")
    return f"{values[name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")

"""Measure a model, or a folder of images, against real images.

Bits per dimension of held-out images, and the distance of generated images from real ones.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from diffuse_cli import files
from diffuse_cli.config import EvalConfig
from diffuse_cli.console import Console
from diffuse_cli.core.samplers import knobs

if TYPE_CHECKING:
    from diffuse_cli.evaluation import Evaluated
    from diffuse_cli.training.sweeping import Swept

CONFIG = EvalConfig

LABELS = {
    "bits_per_dim": "bits per dimension (bound)",
    "bits_prior": "  prior, L_T",
    "bits_middle": "  steps, L_1 ... L_T-1",
    "bits_decoder": "  decoder, L_0",
    "kid": "KID",
    "frechet_distance": "Fréchet distance",
}

PER_CLASS = {"bits_per_dim": "bits per dimension", "kid": "KID"}
"""What is said of each class. The Fréchet distance of a few images is bias."""


def run(config: EvalConfig, console: Console) -> None:
    """Evaluate, and print the numbers."""
    knobs(config.sampler, **config.knobs)  # refused before anything heavy is imported
    if config.ema_sweep:
        _sweep(config, console)
        return
    from diffuse_cli.evaluation import evaluate

    found = console.follow(evaluate(config))
    if found is None:
        return
    if console.as_json:
        console.result([], to_json(config, found))
    else:
        console.write(lines(found))


def _sweep(config: EvalConfig, console: Console) -> None:
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    best = f"best: {found.best:.2f} of the {found.updates:,} updates at step {found.step:,}"
    return [
        *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
        best,
        *([files.show(found.out)] if found.out else []),
    ]


def to_json(config: EvalConfig, found: Evaluated) -> dict[str, object]:
    """Everything one needs to compare the numbers with others."""
    values = dataclasses.asdict(found)
    numbers = values.pop("values")
    counts = {"real": values.pop("real"), "generated": values.pop("generated")}
    values["plot"] = str(found.plot) if found.plot else None
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
        *_class_lines(found),
        *([files.show(found.plot)] if found.plot else []),
    ]


def _class_lines(found: Evaluated) -> list[str]:
    """A row for each class: the counts, and the numbers that stand a few images."""
    if not found.classes:
        return []
    shown = [name for name in PER_CLASS if any(name in v for v in found.classes.values())]
    rows = [["class", "generated", "real", *(PER_CLASS[name] for name in shown)]]
    for name, values in found.classes.items():
        counts = [f"{values['generated']:,}", f"{values['real']:,}"]
        rows.append([files.show(name), *counts, *(_number(values, key) for key in shown)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]


def _ordered(found: Evaluated) -> list[str]:
    names = [name for name in found.values if not name.endswith("_standard_error")]
    known = [name for name in LABELS if name in names]
    return known + [name for name in names if name not in LABELS]


def _number(values: dict[str, float], name: str) -> str:
    error = values.get(f"{name}_standard_error")
    return f"{values[name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")

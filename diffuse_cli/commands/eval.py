"""Measure a model, or a folder of images, against real images.

Prints bits per dimension of held-out images and how far generated images are from real ones. Given
the data that the model was trained on, it also measures overfitting and looks for copies.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from diffuse_cli import files
from diffuse_cli.commands._options import check_knobs
from diffuse_cli.commands._text import columns, measured
from diffuse_cli.config import EvalConfig
from diffuse_cli.console import Console, plain
from diffuse_cli.evaluation.remarks import PER_CLASS

if TYPE_CHECKING:
    from diffuse_cli.evaluation import Evaluated

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
    from diffuse_cli.evaluation import evaluate

    found = console.follow(evaluate(config))
    if found is None:
        return
    values = to_json(config, found)
    if found.report:
        from diffuse_cli.report.page import page

        files.write_text(found.report, page(config, found, plain(values)))
    console.show(values, lines(found))


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
    rows = [(LABELS.get(name, name), measured(found.values, name)) for name in _ordered(found)]
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
        rows.append([files.show(name), *counts, *(measured(values, key) for key in shown)])
    return ["", *columns(rows)]


def _ordered(found: Evaluated) -> list[str]:
    names = [
        name
        for name in found.values
        if not name.endswith("_standard_error") and not name.startswith(UNLISTED)
    ]
    known = [name for name in LABELS if name in names]
    return known + [name for name in names if name not in LABELS]

"""Model files with the weights of another, for tests of what a file says of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuse_cli.models import model_file


def altered(
    source: Path,
    out: Path,
    given: Mapping[str, Any] = {},
    training: Mapping[str, Any] = {},
    scale: float = 1.0,
) -> Path:
    """Write `out`: the model of `source`, with other fields of what it is given (`Given`), and of
    its training. Its weights are multiplied by `scale`: by 1e30, its samples are NaN."""
    model = model_file.load(source)
    conditions = model.blueprint.conditions
    if conditions.given:
        conditions = replace(conditions, given=replace(conditions.given, **given))
    blueprint = replace(model.blueprint, conditions=conditions)
    ema = {name: tensor * scale for name, tensor in model.ema.items()}
    made = replace(model, blueprint=blueprint, training={**model.training, **training}, ema=ema)
    model_file.save(out, made)
    return out

"""Make a model that draws in one to four steps from a trained one.

Trains its weights on until the estimate of x_0 is the same all along a path from noise to data
(easy consistency tuning). The run is one of train: it has previews, and resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffuse_cli.commands.train import run as run
from diffuse_cli.config import DistillConfig
from diffuse_cli.config.distilling import STEPS
from diffuse_cli.options import from_dict, to_dict

CONFIG = DistillConfig


def configure(typed: Mapping[str, Any], filed: Mapping[str, Any] | None = None) -> Any:
    """The training that it is.

    Raises:
        UsageError, ModelFileError: as `train` with these options.
    """
    from diffuse_cli.training.configuring import configure as complete

    given = {**(filed or {}), **typed}
    config = from_dict(DistillConfig, given)
    values = {k: v for k, v in to_dict(config).items() if k in given or k == "out"}
    model, guidance = values.pop("model"), values.pop("guidance", None)
    if config.resume:
        return complete(values)
    values |= {"init": model, "loss": "consistency", "keep_weak": False}
    if guidance is None:
        guidance = guidance_of(model)
    if guidance is not None:
        values["teacher_guidance"] = guidance
    if config.steps is None and config.minutes is None:
        values["steps"] = STEPS
    return complete(values)


def guidance_of(model: str) -> float | None:
    """The scale at which a model with conditions is drawn from by default; None for others."""
    from diffuse_cli.conditioning import default_guidance
    from diffuse_cli.modelfile import load

    found = load(model)
    conditions = found.blueprint.conditions
    if not conditions:
        return None
    if found.sampling and found.sampling.guidance is not None:
        return found.sampling.guidance
    return default_guidance(conditions, found.training.get("label_dropout", 0.1))

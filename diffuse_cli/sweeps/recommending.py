"""Which samplers, steps and guidance scales `tune` tries, and which of them it recommends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli import modelfile
from diffuse_cli.config import TUNED_GUIDANCE, SamplerChoice, TuneConfig
from diffuse_cli.core.samplers import SAMPLERS
from diffuse_cli.errors import UsageError

METRIC = "kid"
"""What decides; lower is better."""


@dataclass(frozen=True)
class Tried:
    """A setting with what it gives and costs.

    Attributes:
        values: its numbers by name, with their standard errors.
        seconds: per image, on one process.
        evaluations: images shown to the network, per image.
    """

    setting: SamplerChoice
    values: dict[str, float]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Tuned:
    """What was tried, and the recommended setting.

    Attributes:
        rows: in the order in which they were measured.
        metric: the key of the values that decides; lower is better.
        n, real: how many images were generated for each, and against how many real ones.
        part: which of the real images: `held-out` or `all`.
        features: name and weights hash of the feature network, and how it resizes images.
        settings: what all of them have in common.
        device: where the seconds were measured.
        out: the model file with the recommendation, where one was asked for.
        plot: the picture, where one was asked for.
    """

    rows: tuple[Tried, ...]
    recommended: SamplerChoice
    metric: str
    n: int
    real: int
    part: str
    features: dict[str, str]
    settings: dict[str, Any]
    device: str
    out: Path | None
    plot: Path | None


def recommend(rows: Sequence[Tried], metric: str = METRIC) -> SamplerChoice:
    """The setting of the fewest evaluations among those as good as the best.

    As good: not worse than the best by more than the standard error of the best. Of equally many
    evaluations the lower value decides, then the earlier row. Seconds, which no one measures twice
    alike, never do.

    Raises:
        ValueError: no row has a value that is a number.
    """
    measured = [row for row in rows if math.isfinite(row.values[metric])]
    if not measured:
        raise ValueError(f"no setting has a {metric} that is a number")
    best = min(measured, key=lambda row: row.values[metric])
    error = best.values.get(f"{metric}_standard_error", 0.0)
    bound = best.values[metric] + (error if math.isfinite(error) else 0.0)
    good = [row for row in measured if row.values[metric] <= bound]
    return min(good, key=lambda row: (row.evaluations, row.values[metric])).setting


# -- what is tried --------------------------------------------------------------------------------


def first_settings(
    config: TuneConfig, guidance: float | None, timesteps: int
) -> list[SamplerChoice]:
    """Every sampler with every number of steps that the model has timesteps for.

    Raises:
        UsageError: there is none.
    """
    steps = [n for n in dict.fromkeys(config.steps) if n <= timesteps]
    if not steps:
        raise UsageError(f"--steps must have one from 1 to {timesteps}, the model's timesteps")
    samplers = config.samplers or tuple(SAMPLERS)
    return [SamplerChoice(sampler, n, guidance) for sampler in samplers for n in steps]


def other_scales(
    config: TuneConfig, model: modelfile.Model, guidance: float | None
) -> tuple[float, ...]:
    """The guidance scales to try beside `guidance`, which samplers are compared at.

    None for a model without classes, or without an unconditional prediction.
    """
    if guidance is None:
        return ()
    if config.guidance is None and model.training.get("label_dropout") == 0:
        return ()
    scales = TUNED_GUIDANCE if config.guidance is None else config.guidance
    return tuple(s for s in dict.fromkeys(scales) if s != guidance)

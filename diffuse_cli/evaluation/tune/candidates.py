"""Choose the sampling settings that `tune` tries, and recommend one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffuse_cli.config import eval_options
from diffuse_cli.config.eval_options import TuneConfig
from diffuse_cli.config.sample_options import GAUSSIAN, SamplerChoice
from diffuse_cli.core.samplers import OF_DISTILLED, SAMPLERS
from diffuse_cli.metrics import Measurement, Words, read_measurement
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.models import model_file
from diffuse_cli.system.errors import UsageError


@dataclass(frozen=True)
class Trial:
    """Quality and cost of a setting.

    Attributes:
        values: the metrics by key, with their standard errors.
        seconds: the seconds per image, on one process.
        evaluations: the network evaluations per image, including the guidance model's.
    """

    setting: SamplerChoice
    values: dict[str, float]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class TuningResult:
    """Settings that were tried, and the recommended setting.

    Attributes:
        rows: the settings in the order of measurement.
        metric: the key of the metric that decides. Lower is better.
        n, real: the number of images generated for each setting, and of real images.
        part: the part of the data with the real images: `held-out` or `all`.
        features: the name and weights hash of the feature network, and its resizing.
        settings: the settings that all rows have in common.
        device: the device of the timings.
        words: the names of the medium's samples.
        out, plot: the paths of the model file with the recommendation and of the plot, or None.
    """

    rows: tuple[Trial, ...]
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
    words: Words


def find_kid_key(rows: Sequence[Trial]) -> str:
    """Return the key of the rows' KID, which decides. Lower is better."""
    [key] = [key for key in KIDS if key in rows[0].values]
    return key


def recommend(rows: Sequence[Trial]) -> SamplerChoice:
    """Return the cheapest setting whose KID is within a standard error of the best.

    Cost is the number of evaluations. Ties go to the lower KID, then to the earlier row. Seconds do
    not count, because they vary from run to run.
    """
    metric = find_kid_key(rows)
    best = read_measurement(min(rows, key=lambda row: row.values[metric]).values, metric)
    bound = best.value + (best.error if math.isfinite(best.error) else 0.0)
    good = [row for row in rows if row.values[metric] <= bound]
    return min(good, key=lambda row: (row.evaluations, row.values[metric])).setting


def find_more_varied(rows: Sequence[Trial], chosen: Trial) -> Trial | None:
    """Return the row of the highest recall if the chosen row has clearly less than half of it.

    Images that are nearly alike can have a low KID.
    """
    if not all("recall" in row.values for row in rows):
        return None
    most_varied = max(rows, key=lambda row: row.values["recall"])
    recall = read_measurement(most_varied.values, "recall")
    half = Measurement(recall.value / 2, recall.error / 2)
    return most_varied if half.is_above(read_measurement(chosen.values, "recall")) else None


# -- settings to try ------------------------------------------------------------------------------


def list_steps(config: TuneConfig, distilled: bool) -> tuple[int, ...]:
    """Return the numbers of steps to try, also those that are more than the model's timesteps."""
    return config.steps or (eval_options.FEW_STEPS if distilled else eval_options.TUNED_STEPS)


def first_settings(
    config: TuneConfig,
    guidance: float | None,
    timesteps: int,
    weak_guidance: float | None = None,
    distilled: bool = False,
) -> list[SamplerChoice]:
    """Return every sampler with every number of steps up to `timesteps`.

    A distilled model has its own samplers and default steps.

    Raises:
        UsageError: all numbers of steps are too large, or a sampler is for distilled models.
    """
    steps = [n for n in dict.fromkeys(list_steps(config, distilled)) if n <= timesteps]
    if not steps:
        text = f"all --steps are more than the model's {timesteps} timesteps"
        raise UsageError(text, f"Set --steps {timesteps} or less")
    samplers = config.samplers or tuple(s for s in SAMPLERS if (s in OF_DISTILLED) == distilled)
    wrong = [sampler for sampler in samplers if sampler in OF_DISTILLED and not distilled]
    if wrong:
        text = f"--samplers {wrong[0]} is for distilled models, and this model is not distilled"
        raise UsageError(text, "Leave it out")
    scales = guidance, weak_guidance
    return [SamplerChoice(sampler, n, *scales) for sampler in samplers for n in steps]


def list_other_scales(
    config: TuneConfig, model: model_file.StoredModel, guidance: float | None
) -> tuple[float, ...]:
    """Return the guidance scales to try in addition to `guidance`, which compares samplers.

    Empty for a model without classes or without an unconditional prediction.
    """
    scales = config.guidance
    if scales is None:
        scales = eval_options.TUNED_GUIDANCE if model.has_unconditional else ()
    if guidance is None:
        return ()
    return tuple(s for s in dict.fromkeys(scales) if s != guidance)


def list_weak_scales(config: TuneConfig) -> tuple[float, ...]:
    """Return the autoguidance scales to try, without 1, which turns it off and was tried before."""
    scales = eval_options.TUNED_WEAK if config.weak_guidance is None else config.weak_guidance
    return tuple(s for s in dict.fromkeys(scales) if s != 1)


def add_autoguidance(setting: SamplerChoice, scale: float) -> SamplerChoice:
    """Add autoguidance to a setting, with fewer steps for the same number of evaluations."""
    evaluations = 1 if setting.guidance in (None, 1) else 2
    steps = max(1, setting.steps * evaluations // (evaluations + 1))
    return replace(setting, steps=steps, weak_guidance=scale)


def list_start_steps(
    config: TuneConfig, model: model_file.StoredModel, first: Sequence[SamplerChoice]
) -> list[int]:
    """Return the numbers of steps to try from a Gaussian start.

    Conditional and distilled models have no such start.
    """
    conditional_or_distilled = bool(model.blueprint.conditions) or model.distilled is not None
    if not config.try_starts or conditional_or_distilled or model.blueprint.gaussian is None:
        return []
    process = model.blueprint.process
    max_steps = process.from_log_snr(model.blueprint.gaussian.log_snr)
    return sorted({setting.steps for setting in first if setting.steps <= max_steps})


def add_gaussian_start(setting: SamplerChoice, steps: Sequence[int]) -> list[SamplerChoice]:
    """Return a setting from a Gaussian start, in several numbers of steps.

    Autoguidance takes fewer steps, for the same number of evaluations.
    """
    choices = [replace(setting, steps=n, start=GAUSSIAN) for n in steps]
    scale = setting.weak_guidance
    if scale in (None, 1):
        return choices
    return list(dict.fromkeys(add_autoguidance(choice, scale) for choice in choices))

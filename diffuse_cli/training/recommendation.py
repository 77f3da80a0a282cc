"""Choose the sampling settings that the model file recommends, after the last step.

After minutes of training, guidance by the early average of the run's own weights (Karras et al.
2024b) improves samples of images much, and how strong it should be depends on the data. So each
candidate generates samples from the same noise, in the same number of evaluations of the network,
and is compared with training images, which leaves the held-out images to `eval`. The lowest KID
wins, among the candidates that look like the data: KID alone may prefer exaggerated contrast and
edges. Since the candidates share their noise and the images, few samples rank them
(benchmarks/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.config.sample_options import GAUSSIAN, OWN, SamplerChoice
from diffuse_cli.metrics import Measurement, baselines
from diffuse_cli.sampling.sampling_settings import (
    Guide,
    SamplingSettings,
    can_start_from_gaussian,
)
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training import previews, validation
from diffuse_cli.training.plan import Plan

if TYPE_CHECKING:
    from diffuse_cli.training.trainer import Trainer

MIDDLE = 0.3, 3.0
"""Noise levels sigma / alpha in the middle. Outside of them guidance can exaggerate brightness or
fine detail (as Kynkäänniemi et al. 2024 found for classes)."""

CANDIDATES: tuple[tuple[float, tuple[float, float] | None], ...] = (
    (2.0, None), (2.0, MIDDLE), (1.5, None), (3.0, MIDDLE),
)  # fmt: skip
"""Scales and noise levels of guidance by the early EMA weights to try, in this order."""

SHARE = 20
"""Trials take at most 1/SHARE of the passes of the steps."""

FEATURES = 4
"""Cost of a sample's features, in passes of `tiny` at 64x64: about 10 ms of a core."""

FEWEST, MOST, REFERENCES = 16, 128, 128
"""Samples of a trial, and the most training images that they are compared with. The KID of the
choice was on average 4 % above the best candidate's with 16 samples, and 1 % with 64."""

FAR = (0.1, 0.25)
"""Differences from the contrast and the detail of the data, as logarithms, that a recommended
setting may have if the default's are not larger."""


@dataclass(frozen=True)
class SettingTrial:
    """Samples of a setting compared with training images.

    Attributes:
        kid, error: the KID and its standard error.
        look: the differences from the contrast and the detail of the data, as logarithms.
    """

    choice: SamplerChoice
    kid: float
    error: float
    look: tuple[float, ...]


def plan_trials(plan: Plan, steps: int) -> tuple[int, int]:
    """Return the number of trials after a run of `steps` steps, and the samples of each.

    A short run has fewer trials: only the default, or none.
    """
    if len(plan.data.train) < FEWEST or plan.teacher or previews.uses_images(plan):
        return 0, 0
    passes = steps * previews.passes_of_step(plan) // SHARE - _count_fixed_passes(plan)
    samples = max(0, passes) // (previews.passes_of_drawing(plan, 1) + FEATURES)
    guided = len(CANDIDATES) if plan.config.keep_weak else 0
    trials = min(1 + guided, samples // FEWEST)
    return (trials, min(MOST, samples // trials)) if trials else (0, 0)


def count_passes(plan: Plan, steps: int) -> int:
    """Return the cost of all trials after a run of `steps` steps, in forward passes."""
    trials, count = plan_trials(plan, steps)
    if not trials:
        return 0
    drawing = previews.passes_of_drawing(plan, count) + FEATURES * count
    return _count_fixed_passes(plan) + trials * drawing


def _count_fixed_passes(plan: Plan) -> int:
    """Return the cost of the features of training images and of noise, in forward passes."""
    return FEATURES * (min(REFERENCES, len(plan.data.train)) + baselines.IMAGES)


def choose_settings(trainer: Trainer) -> Work[tuple[SamplerChoice | None, bool | None]]:
    """Return the setting to recommend, and whether its samples are not better than noise.

    The setting is None if the default is as good. After the default comes guidance. A short run
    has fewer candidates. Guidance is tried from a Gaussian start, because that keeps brightness,
    which guidance exaggerates.
    """
    plan = trainer.plan
    try:
        kid = validation.make_kid_measure(plan, trainer.device, plan.data.train, REFERENCES)
    except ModelFileError as error:  # at the end of a run, which must not fail by this
        yield Notice(f"no sampling settings were tried: {error.message}", warning=True)
        return None, None
    trials, count = plan_trials(plan, trainer.progress.steps)
    default = previews.default_setting(plan)
    tried = [(yield from try_setting(trainer, kid, count, default))]
    for choice in islice(_guide_settings(trainer, default) if kid.pictures else (), trials - 1):
        tried.append((yield from try_setting(trainer, kid, count, choice)))
    best = choose_best(tried)
    noise = yield from kid.is_noise(Measurement(best.kid, best.error))
    return (None if best.choice == default else best.choice), noise


def _guide_settings(trainer: Trainer, default: SamplerChoice) -> Iterator[SamplerChoice]:
    """Yield settings with guidance, in the evaluations of the default.

    An interval limits classifier-free guidance, too, so a model with conditions has none.
    """
    blueprint = trainer.plan.blueprint
    for scale, levels in CANDIDATES if trainer.weak else ():
        if levels and blueprint.conditions:
            continue
        steps = max(1, default.steps // 2)
        suits = not blueprint.conditions and can_start_from_gaussian(blueprint, steps)
        start = GAUSSIAN if suits else None
        choice = replace(
            default, steps=steps, weak_guidance=scale, start=start, guidance_interval=levels
        )
        yield replace(choice, steps=_count_steps(trainer.plan, choice, default.steps))


def _count_steps(plan: Plan, choice: SamplerChoice, evaluations: int) -> int:
    """Return the largest number of steps with `evaluations`, of which a guided step takes two."""
    low, high = choice.guidance_interval or (0.0, math.inf)
    process, start = plan.blueprint.process, plan.blueprint.gaussian if choice.start else None
    for steps in range(evaluations, choice.steps, -1):
        if start and not can_start_from_gaussian(plan.blueprint, steps):
            continue
        times = SamplingSettings(steps=steps, start=start).resolve_times(process)
        levels = (math.exp(-process.log_snr(t) / 2) for t in times)
        if steps + sum(low < level <= high for level in levels) <= evaluations:
            return steps
    return choice.steps


def try_setting(
    trainer: Trainer, kid: validation.KidMeasure, count: int, choice: SamplerChoice
) -> Work[SettingTrial]:
    """Generate samples with a setting, and compare them with training images."""
    plan, guide = trainer.plan, None
    if choice.weak_guidance is not None:
        weak = plan.blueprint.denoiser(trainer.weak_net())
        guide = Guide(OWN, choice.weak_guidance, weak, "")
    drawings = validation.generate_in_proportion(
        plan, trainer.ema_net, count, trainer.device, choice, guide
    )
    samples = yield from validation.collect_samples(drawings, plan.blueprint.space, count)
    values = yield from kid.compare(samples)
    look = np.subtract(validation.measure_contrast_and_detail(samples), kid.look).tolist()
    return SettingTrial(choice, values[kid.key], values[f"{kid.key}_standard_error"], tuple(look))


def choose_best(trials: Sequence[SettingTrial]) -> SettingTrial:
    """Return the trial with the lowest KID among the first and those that look like the data."""
    first, *candidates = trials
    limits = [max(limit, abs(gap)) for limit, gap in zip(FAR, first.look, strict=True)]
    alike = [
        trial
        for trial in candidates
        if all(abs(gap) <= limit for gap, limit in zip(trial.look, limits, strict=True))
    ]
    return min([first, *alike], key=lambda trial: trial.kid)

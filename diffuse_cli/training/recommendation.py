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

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.config.sample_options import GAUSSIAN, OWN, SamplerChoice
from diffuse_cli.media import Array
from diffuse_cli.metrics import baselines
from diffuse_cli.sampling.sampling_settings import Guide, can_start_from_gaussian
from diffuse_cli.sampling.setting_search import (
    FAR,
    WEAK_CANDIDATES,
    FeatureMeasure,
    SettingSearch,
    add_autoguidance,
    choose_best,
)
from diffuse_cli.system import ModelFileError, Notice, Work
from diffuse_cli.training import previews, validation
from diffuse_cli.training.plan import Plan

if TYPE_CHECKING:
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.training.trainer import Trainer

SHARE = 20
"""Trials take at most 1/SHARE of the passes of the steps."""

FEATURES = 4
"""Cost of a sample's features, in passes of `tiny` at 64x64: about 10 ms of a core."""

FEWEST, MOST, REFERENCES = 16, 128, 128
"""Samples of a trial, and the most training images that they are compared with. The KID of the
choice was on average 4 % above the best candidate's with 16 samples, and 1 % with 64."""


def plan_trials(plan: Plan, steps: int) -> tuple[int, int]:
    """Return the number of trials after a run of `steps` steps, and the samples of each.

    A short run has fewer trials: only the default, or none.
    """
    if len(plan.data.train) < FEWEST or plan.teacher or previews.uses_images(plan):
        return 0, 0
    passes = steps * previews.passes_of_step(plan) // SHARE - _count_fixed_passes(plan)
    samples = max(0, passes) // (previews.passes_of_drawing(plan, 1) + FEATURES)
    guided = len(WEAK_CANDIDATES) if plan.config.keep_weak else 0
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
    has fewer candidates.
    """
    plan, device = trainer.plan, trainer.device
    blueprint, default = plan.blueprint, previews.default_setting(plan)
    real = validation.read_samples(plan, plan.data.train, REFERENCES)
    try:
        network = validation.choose_network(blueprint.space, real, device)
    except ModelFileError as error:  # at the end of a run, which must not fail by this
        yield Notice(f"no sampling settings were tried: {error.message}", warning=True)
        return None, None
    trials, count = plan_trials(plan, trainer.progress.steps)
    candidates, guide = [default], None
    if trainer.weak and network.pictures and trials > 1:
        candidates += islice(guide_settings(blueprint, default), trials - 1)
        guide = Guide(OWN, 1.0, blueprint.denoiser(trainer.weak_net()), "")
    settings = validation.make_settings_in_proportion(plan, count)
    looks = dict(zip(FAR, measure_contrast_and_detail(real), strict=True))

    def measure_look(samples: Array, *_: Array) -> dict[str, float]:
        """Return the differences from the contrast and the detail of real samples."""
        values = zip(FAR, measure_contrast_and_detail(samples), strict=True)
        return {name: value - looks[name] for name, value in values}

    search = SettingSearch(
        denoiser=blueprint.denoiser(trainer.ema_net),
        blueprint=blueprint,
        base=replace(settings, guide=guide),
        measure=FeatureMeasure(network, blueprint.space, real),
        n=count,
        total=len(candidates),
        measure_more=measure_look,
    )
    yield from search.try_settings(candidates)
    best = choose_best(search.trials)
    noise = yield from search.measure.is_noise(best.kid)
    return (None if best.setting == default else best.setting), noise


def guide_settings(blueprint: Blueprint, default: SamplerChoice) -> Iterator[SamplerChoice]:
    """Yield settings with autoguidance, in the evaluations of the default.

    They start from a Gaussian, because that keeps brightness, which guidance exaggerates. An
    interval limits classifier-free guidance, too, so a model with conditions has none.
    """
    starts = not blueprint.conditions and can_start_from_gaussian(
        blueprint, max(1, default.steps // 2)
    )
    setting = replace(default, start=GAUSSIAN if starts else None)
    for scale, levels in WEAK_CANDIDATES:
        if not (levels and blueprint.conditions):
            yield add_autoguidance(setting, scale, blueprint, levels)


def measure_contrast_and_detail(samples: Array) -> tuple[float, float]:
    """Return the contrast and the fine detail of samples (N, C, *size), as logarithms.

    Contrast is the mean standard deviation within a sample. Detail is the mean absolute second
    difference along the spatial dimensions.
    """
    axes = [axis for axis in range(1, samples.ndim - 1) if samples.shape[axis + 1] > 2]
    looks = []
    for sample in map(np.float64, samples):  # one at a time, because many are large in float64
        differences = [np.abs(np.diff(sample, 2, axis)).mean() for axis in axes]
        looks.append((sample.std(), np.mean(differences or [0.0])))
    contrast, detail = np.log(np.maximum(np.mean(looks, 0), 1e-9)).tolist()
    return contrast, detail

"""Choose the sampling settings that the model file recommends, after the last step.

After minutes of training, guidance by the early average of the run's own weights (Karras et al.
2024b) can improve samples much, and how strong it should be depends on the data. So each candidate
generates samples from the same noise, in the same number of evaluations of the network, and is
compared with held-out samples. The lowest KID wins, if it is probably lower than the default's (see
`ERRORS`), among the candidates that look like the data: KID alone may prefer exaggerated contrast
and edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from diffuse_cli.config.sample_options import GAUSSIAN, OWN, SamplerChoice
from diffuse_cli.metrics import Measurement, baselines
from diffuse_cli.sampling.sampling_settings import Guide, can_start_from_gaussian
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training import previews, validation
from diffuse_cli.training.plan import Plan

if TYPE_CHECKING:
    from diffuse_cli.training.trainer import Trainer

SCALES = (2.0, 1.5, 3.0)
"""Scales of guidance by the early EMA weights to try, in this order."""

TRIALS = len(SCALES) + 2
"""The most trials: the default, the scales, and the other start."""

SHARE = 20
"""Trials take at most 1/SHARE of the passes of the steps."""

FEATURES = 4
"""Cost of a sample's features, in passes of `tiny` at 64x64: about 10 ms of a core."""

FEWEST, MOST = 48, 256
"""Samples of a trial. Fewer than FEWEST decide nothing, so that nothing is tried."""

ERRORS = 1.0
"""Standard errors, as of independent sets, by which the KID of a recommended setting is lower than
the default's. Trials share their noise and the held-out images, so this is 1.4 of the standard
error of the difference. A gain of a sixth is found with 59 samples in 95 of 100 runs, with 2.0 in
50. Of equal candidates, one is recommended in 15 to 23 of 100 runs (benchmarks/README.md)."""

FAR = (0.1, 0.25)
"""Differences from the contrast and the detail of the data, as logarithms, that a recommended
setting may have if the default's are not larger."""


@dataclass(frozen=True)
class SettingTrial:
    """Samples of a setting compared with held-out samples.

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

    A short run has fewer trials. If it has no time for two, nothing is tried.
    """
    if len(plan.data.held_out) < FEWEST or plan.teacher or previews.uses_images(plan):
        return 0, 0
    drawn = steps * previews.passes_of_step(plan) // SHARE // previews.passes_of_drawing(plan, 1)
    trials = min(TRIALS, drawn // FEWEST)
    return (trials, min(MOST, drawn // trials)) if trials > 1 else (0, 0)


def count_passes(plan: Plan, steps: int) -> int:
    """Return the cost of all trials after a run of `steps` steps, in forward passes."""
    trials, count = plan_trials(plan, steps)
    if not trials:
        return 0
    real = min(validation.REAL_IMAGES, len(plan.data.held_out))
    drawn = trials * previews.passes_of_drawing(plan, count)
    return drawn + FEATURES * (trials * count + real + baselines.IMAGES)


def choose_settings(
    trainer: Trainer, kid: validation.KidMeasure | None
) -> Work[tuple[SamplerChoice | None, bool]]:
    """Return the setting to recommend, and whether its samples are not better than noise.

    The setting is None if the default is as good. First come the default and the guidance scales,
    then the other start with the best of them, which must be better by the same rule. Guidance is
    tried from a Gaussian start, because that keeps brightness, which guidance exaggerates. A short
    run ends with the first trials.

    Args:
        kid: the KID of --eval-every, or None to make one.
    """
    if kid is None:
        try:
            kid = yield from validation.make_kid_measure(trainer.plan, trainer.device)
        except ModelFileError as error:  # at the end of a run, which must not fail by this
            yield Notice(f"no sampling settings were tried: {error.message}", warning=True)
            return None, False
    trials, count = plan_trials(trainer.plan, trainer.course.steps)
    default = previews.default_setting(trainer.plan)
    tried = [(yield from try_setting(trainer, kid, count, default))]
    for choice in islice(_guide_settings(trainer, default), trials - 1):
        tried.append((yield from try_setting(trainer, kid, count, choice)))
    best = choose_best(tried)
    start = None if best.choice.start else _find_start(trainer, best.choice.steps)
    if len(tried) < trials and start != best.choice.start:
        other = replace(best.choice, start=start)
        best = choose_best([best, (yield from try_setting(trainer, kid, count, other))])
    noise = yield from kid.is_noise(Measurement(best.kid, best.error))
    return (None if best.choice == default else best.choice), noise


def _guide_settings(trainer: Trainer, default: SamplerChoice) -> Iterator[SamplerChoice]:
    """Yield settings with guidance, in half of the default's steps."""
    steps = max(1, default.steps // 2)
    start = _find_start(trainer, steps)
    for scale in SCALES if trainer.weak else ():
        yield replace(default, steps=steps, weak_guidance=scale, start=start)


def _find_start(trainer: Trainer, steps: int) -> str | None:
    """Return the start to try, None for noise: an unconditional model's Gaussian, if it can."""
    own = trainer.plan.blueprint
    return GAUSSIAN if not own.conditions and can_start_from_gaussian(own, steps) else None


def try_setting(
    trainer: Trainer, kid: validation.KidMeasure, count: int, choice: SamplerChoice
) -> Work[SettingTrial]:
    """Generate samples with a setting, and compare them with the held-out samples."""
    plan, guide = trainer.plan, None
    if choice.weak_guidance is not None:
        weak = plan.blueprint.denoiser(trainer.weak_net())
        guide = Guide(OWN, choice.weak_guidance, weak, "")
    drawings = validation.generate_in_proportion(
        plan, trainer.ema_net, count, trainer.device, choice, guide
    )
    samples = yield from validation.collect_samples(drawings, plan.blueprint.space, count)
    found = yield from kid.compare(samples)
    look = zip(validation.measure_look(samples), kid.look, strict=True)
    apart = tuple(own - real for own, real in look)
    return SettingTrial(choice, found[kid.key], found[f"{kid.key}_standard_error"], apart)


def choose_best(tried: Sequence[SettingTrial]) -> SettingTrial:
    """Return the trial with the lowest KID among those that are probably better than the first and
    look like the data, or else the first."""
    first, *others = tried
    far = [max(least, abs(own)) for least, own in zip(FAR, first.look, strict=True)]
    better = [
        trial
        for trial in others
        if first.kid - trial.kid > ERRORS * math.hypot(first.error, trial.error)
        and all(abs(own) <= most for own, most in zip(trial.look, far, strict=True))
    ]
    return min(better, key=lambda trial: trial.kid, default=first)

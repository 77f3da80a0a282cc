"""Search for a sampling setting: measure settings of a model, and choose one of them.

`train` searches after its last step, and `tune` when you ask for it. All settings start from the
same noise and are compared with the same real samples, so few samples rank them
(benchmarks/README.md).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.core import Denoiser, Space
from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    Measurement,
    baselines,
    frechet,
    kid,
    precision_recall,
    read_measurement,
)
from diffuse_cli.metrics.features import KIDS, FeatureNetwork, feature_cache
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.sampling import generation
from diffuse_cli.sampling.sampling_settings import SamplingSettings, can_start_from_gaussian
from diffuse_cli.system import DivergedError, Notice, Progress, Work
from diffuse_cli.system.rng import philox
from diffuse_cli.system.team import ALONE, Team

MIDDLE = 0.3, 3.0
"""Noise levels sigma / alpha in the middle. Outside of them guidance can exaggerate brightness or
fine detail (as Kynkäänniemi et al. 2024 found for classes)."""

Levels = tuple[float, float] | None

WEAK_CANDIDATES: tuple[tuple[float, Levels], ...] = (
    (2.0, None), (2.0, MIDDLE), (1.5, None), (3.0, MIDDLE),
)  # fmt: skip
"""Scales and noise levels of guidance by the early EMA weights that `train` tries, in this order.
`tune` tries those in the middle, and more scales."""

FAR = {"contrast": 0.1, "detail": 0.25}
"""Differences from the contrast and the detail of the data, as logarithms, that a setting of
`choose_best` may have if the default's are not larger."""


@dataclass
class FeatureMeasure:
    """KID of generated samples against fixed real samples, by features of a network.

    Attributes:
        space: the space of stored samples.
        real: the stored real samples (N, C, *size), None once their features are computed.
        team: the processes that compute features.
        cached: whether to keep their features in the cache, and to report its use.
    """

    network: FeatureNetwork
    space: Space
    real: Array | None
    team: Team = ALONE
    cached: bool = False
    _real_features: Array = field(init=False)

    def read_real(self) -> Work[Array]:
        """Return the features of the real samples, which are computed once."""
        if self.real is not None:
            self._real_features = yield from self.extract(self.real, cached=self.cached)
            self.real = None
        return self._real_features

    def extract(self, samples: Array, *, cached: bool = False) -> Work[Array]:
        """Return float64 features (N, network.dim) of stored samples (N, C, *size)."""
        inputs = self.network.prepare_input(self.space, samples)
        work = feature_cache.compute_features(self.network, inputs, self.team)
        if cached:
            work = feature_cache.cache_features(self.network, inputs, self.team, tell=True)
        features = yield from work
        return np.asarray(features, np.float64)

    def compare(self, samples: Array) -> Work[dict[str, float]]:
        """Return the KID of samples and its standard error, by key."""
        real = yield from self.read_real()
        return kid.estimate_kid(real, (yield from self.extract(samples)), self.network.kid)

    def is_noise(self, value: Measurement) -> Work[bool]:
        """Whether samples with this KID are not clearly better than noise.

        The noise is uniform over levels, or Gaussian for floats.
        """
        rng, shape = philox(0, "landmarks"), (baselines.IMAGES, *self.space.shape)
        x = rng.normal(size=shape) if self.space.levels is None else rng.uniform(-1, 1, shape)
        samples = generation.to_stored(self.space, torch.from_numpy(x).float())
        values = yield from self.compare(samples)
        noise = read_measurement(values, self.network.kid)
        return noise.is_above(Measurement(0.0)) and not noise.is_above(value)


@dataclass(frozen=True)
class Trial:
    """Quality and cost of a setting.

    Attributes:
        values: the metrics by key, with their standard errors.
        seconds: the seconds per sample, on one process.
        evaluations: the network evaluations per sample, including the guidance model's.
    """

    setting: SamplerChoice
    values: Mapping[str, float]
    seconds: float
    evaluations: int

    @property
    def kid(self) -> Measurement:
        """KID, which decides. Lower is better."""
        return read_measurement(self.values, next(key for key in KIDS if key in self.values))


def _count_images(denoiser: Denoiser, counts: list[int]) -> Denoiser:
    """Return a copy of the denoiser that adds the number of images of each evaluation to counts."""

    def counted(x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
        counts.append(len(x))
        return denoiser.net(x, t, **cond)

    twin = copy.copy(denoiser)
    twin.net = counted
    return twin


@dataclass(frozen=True)
class SettingSearch:
    """Search among settings of a model, each measured by `n` samples.

    Attributes:
        base: the settings that all trials share, with the conditions and the guidance model.
        total: the number of trials to expect.
        measure_more: a function from samples, their features and the features of real samples to
            further metrics by key.
        trials: the trials so far.
    """

    denoiser: Denoiser
    blueprint: Blueprint
    base: SamplingSettings
    measure: FeatureMeasure
    n: int
    total: int
    measure_more: Callable[[Array, Array, Array], Mapping[str, float]] | None = None
    trials: list[Trial] = field(default_factory=list)

    def try_settings(self, settings: Iterable[SamplerChoice]) -> Work[None]:
        """Measure settings, with the progress of each as a detail of the whole.

        Raises:
            DivergedError: samples are not finite. The error names their setting.
        """
        for setting in settings:
            work = self.try_setting(setting)
            while True:
                try:
                    event = next(work)
                except StopIteration as stop:
                    self.trials.append(stop.value)
                    break
                except DivergedError as error:
                    error.message = f"{setting}: {error.message}"
                    raise
                if isinstance(event, Progress):
                    detail = f"{setting}: {event.task} {event.done:,}/{event.total:,}"
                    event = Progress("tuning", len(self.trials), self.total, detail)
                yield event

    def try_setting(self, setting: SamplerChoice) -> Work[Trial]:
        """Generate samples with a setting, and compare them with real samples."""
        team, counts = self.measure.team, list[int]()
        settings = self.base.with_choice(setting, self.blueprint.gaussian)
        if settings.guide:
            weaker = _count_images(settings.guide.denoiser, counts)
            settings = replace(settings, guide=replace(settings.guide, denoiser=weaker))
        began = time.perf_counter()
        indices = team.share(self.n, settings.batch_size)
        batches = self._generate(_count_images(self.denoiser, counts), settings, indices)
        part = yield from generation.collect(batches, self.blueprint.space, len(indices))
        costs = team.gather((sum(counts), time.perf_counter() - began))
        samples = team.gather_samples(part)
        real = yield from self.measure.read_real()
        features = yield from self.measure.extract(samples)
        values: dict[str, float] = {}
        if team.index == 0:
            values |= kid.estimate_kid(real, features, self.measure.network.kid)
            if self.measure_more:
                values |= self.measure_more(samples, features, real)
        return Trial(
            setting,
            team.from_first(values),
            seconds=sum(seconds for _, seconds in costs) / self.n,
            evaluations=sum(images for images, _ in costs) // self.n,
        )

    def warm_up(self) -> None:
        """Generate a batch in one step, so that the first setting does not pay one-off costs."""
        guide = replace(self.base.guide, scale=2.0) if self.base.guide else None
        settings = replace(self.base, sampler="ddim", steps=1, guide=guide)
        for _ in self._generate(self.denoiser, settings, range(min(self.n, settings.batch_size))):
            pass

    def _generate(
        self, denoiser: Denoiser, settings: SamplingSettings, indices: range
    ) -> Iterator[generation.BatchState]:
        space, device = self.blueprint.space, self.measure.network.device
        return generation.generate_batches(denoiser, settings, indices, space=space, device=device)


def measure_images(samples: Array, features: Array, real: Array) -> dict[str, float]:
    """Return the Fréchet distance and the recall of images, by their and real features."""
    values = frechet.estimate_frechet(real, features).to_entries("frechet_distance")
    if recall := precision_recall.measure_recall(real, features):
        values |= Measurement(recall.value(), recall.error()).to_entries("recall")
    return values


# -- settings to try ------------------------------------------------------------------------------


def add_autoguidance(
    setting: SamplerChoice,
    scale: float,
    blueprint: Blueprint,
    levels: Levels = None,
    evaluations: int = 1,
) -> SamplerChoice:
    """Add autoguidance to a setting, with fewer steps for the same number of evaluations.

    Args:
        levels: the noise levels to guide in. Steps outside of them take one evaluation.
        evaluations: the evaluations of a step without autoguidance.
    """
    min_steps = max(1, setting.steps * evaluations // (evaluations + 1))
    choice = replace(setting, steps=min_steps, weak_guidance=scale, guidance_interval=levels)
    if levels is None:
        return choice
    low, high = levels
    process, start = blueprint.process, blueprint.gaussian if setting.start else None
    for steps in range(setting.steps, min_steps, -1):
        if start and not can_start_from_gaussian(blueprint, steps):
            continue
        times = SamplingSettings(setting.sampler, steps, start=start).resolve_times(process)
        noise_levels = (math.exp(-process.log_snr(t) / 2) for t in times)
        if steps + sum(low < level <= high for level in noise_levels) <= setting.steps:
            return replace(choice, steps=steps)
    return choice


# -- the choice -----------------------------------------------------------------------------------


def choose_best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest KID among the first and those that look like the data.

    KID alone may prefer exaggerated contrast and edges. `train` chooses by it, among settings with
    the same number of evaluations.
    """
    first, *candidates = trials
    limits = {name: max(limit, abs(first.values[name])) for name, limit in FAR.items()}
    alike = [
        trial
        for trial in candidates
        if all(abs(trial.values[name]) <= limit for name, limit in limits.items())
    ]
    return min([first, *alike], key=lambda trial: trial.kid.value)


def recommend(trials: Sequence[Trial]) -> SamplerChoice:
    """Return the cheapest setting whose KID is within a standard error of the best.

    Cost is the number of evaluations. Ties go to the lower KID, then to the earlier trial. Seconds
    do not count, because they vary from run to run. `tune` recommends by it.
    """
    best = min((trial.kid for trial in trials), key=lambda kid: kid.value)
    bound = best.value + (best.error if math.isfinite(best.error) else 0.0)
    good = [trial for trial in trials if trial.kid.value <= bound]
    return min(good, key=lambda trial: (trial.evaluations, trial.kid.value)).setting


def warn_of_low_variety(trials: Sequence[Trial], best: SamplerChoice, many: str) -> Work[None]:
    """Warn if the recommended setting has clearly less than half the recall of another setting.

    Images that are nearly alike can have a low KID.
    """
    if not all("recall" in trial.values for trial in trials):
        return
    chosen = next(trial for trial in trials if trial.setting == best)
    most_varied = max(trials, key=lambda trial: trial.values["recall"])
    recall = read_measurement(chosen.values, "recall")
    highest = read_measurement(most_varied.values, "recall")
    if Measurement(highest.value / 2, highest.error / 2).is_above(recall):
        yield Notice(
            f"the {many} of the recommended setting vary less: recall {recall}, and {highest} with "
            f"{most_varied.setting}. Look at them before you use it",
            warning=True,
        )

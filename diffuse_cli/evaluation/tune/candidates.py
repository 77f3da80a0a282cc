"""Which samplers, steps, guidance scales, starts and learned times `tune` tries, and which of them
it recommends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli.config import eval_options
from diffuse_cli.config.eval_options import TuneConfig
from diffuse_cli.config.sample_options import GAUSSIAN, SAMPLER, SamplerChoice
from diffuse_cli.core.learned_timesteps import cheapest_path, draws_noise, improved, step_costs
from diffuse_cli.core.process import Process
from diffuse_cli.core.samplers import OF_DISTILLED, SAMPLERS
from diffuse_cli.metrics import Measured, Words, measured
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.models import model_file
from diffuse_cli.sampling.conditioning import has_unconditional
from diffuse_cli.sampling.generation import Loaded, draw
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.rng import image_noise

if TYPE_CHECKING:
    from torch import Tensor


FEW_STEPS = (1, 2, 4, 8)
"""The default steps of a distilled model."""


@dataclass(frozen=True)
class Tried:
    """What a setting gives and costs.

    Attributes:
        values: numbers by name, with their standard errors.
        seconds: per image, on one process.
        evaluations: images shown to the network, and to a weaker one, per image.
    """

    setting: SamplerChoice
    values: dict[str, float]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Tuned:
    """What was tried, and the recommended setting.

    Attributes:
        rows: in the order of measurement.
        metric: the key of the number that decides; lower is better.
        n, real: images generated for each setting, and real ones compared with.
        part: the part of the data that these are: `held-out` or `all`.
        features: name and weights hash of the feature network, and how it resizes images.
        settings: what all rows have in common.
        device: where the seconds were measured.
        words: what is said of the samples.
        out, plot: the model file with the recommendation, and the picture, if asked for.
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
    words: Words


def deciding(rows: Sequence[Tried]) -> str:
    """The key of the number that decides: the KID that the rows have; lower is better."""
    [key] = [key for key in KIDS if key in rows[0].values]
    return key


def recommend(rows: Sequence[Tried]) -> SamplerChoice:
    """The setting of the fewest evaluations whose KID is within a standard error of the best.

    Ties go to the lower KID, then to the earlier row. Seconds do not count: they are never the
    same twice.

    Raises:
        ValueError: no row has a KID that is a number.
    """
    metric = deciding(rows)
    known = [row for row in rows if math.isfinite(row.values[metric])]
    if not known:
        raise ValueError(f"no setting has a {metric} that is a number")
    best = measured(min(known, key=lambda row: row.values[metric]).values, metric)
    bound = best.value + (best.error if math.isfinite(best.error) else 0.0)
    good = [row for row in known if row.values[metric] <= bound]
    return min(good, key=lambda row: (row.evaluations, row.values[metric])).setting


def more_varied(rows: Sequence[Tried], chosen: Tried) -> Tried | None:
    """The row of the highest recall, where the chosen one has significantly less than half of it:
    images that are nearly alike can have a low KID."""
    if not all("recall" in row.values for row in rows):
        return None
    most = max(rows, key=lambda row: row.values["recall"])
    there = measured(most.values, "recall")
    half = Measured(there.value / 2, there.error / 2)
    return most if half.above(measured(chosen.values, "recall")) else None


# -- what is tried --------------------------------------------------------------------------------


def first_settings(
    config: TuneConfig,
    guidance: float | None,
    timesteps: int,
    weak_guidance: float | None = None,
    distilled: bool = False,
) -> list[SamplerChoice]:
    """Every sampler with every number of steps up to `timesteps`; a `UsageError` for none.

    A distilled model has samplers and default steps of its own.
    """
    asked = FEW_STEPS if distilled and config.steps == eval_options.TUNED_STEPS else config.steps
    steps = [n for n in dict.fromkeys(asked) if n <= timesteps]
    if not steps:
        raise UsageError(f"--steps must have one from 1 to {timesteps}, the model's timesteps")
    samplers = config.samplers or tuple(s for s in SAMPLERS if (s in OF_DISTILLED) == distilled)
    return [
        SamplerChoice(sampler, n, guidance, weak_guidance) for sampler in samplers for n in steps
    ]


def other_scales(
    config: TuneConfig, model: model_file.StoredModel, guidance: float | None
) -> tuple[float, ...]:
    """The guidance scales to try besides `guidance`, at which samplers are compared.

    Empty for a model without classes or without an unconditional prediction.
    """
    scales = config.guidance
    if scales is None:
        conditions, dropout = model.blueprint.conditions, model.training.get("label_dropout")
        scales = eval_options.TUNED_GUIDANCE if has_unconditional(conditions, dropout) else ()
    if guidance is None:
        return ()
    return tuple(s for s in dict.fromkeys(scales) if s != guidance)


def weak_scales(config: TuneConfig) -> tuple[float, ...]:
    """The scales of guidance by a weaker model to try; 1 is without it, and was tried before."""
    scales = eval_options.TUNED_WEAK if config.weak_guidance is None else config.weak_guidance
    return tuple(s for s in dict.fromkeys(scales) if s != 1)


def with_weaker(setting: SamplerChoice, scale: float) -> SamplerChoice:
    """A setting guided by a weaker model, in at most as many network evaluations: fewer steps."""
    evaluations = 1 if setting.guidance in (None, 1) else 2
    steps = max(1, setting.steps * evaluations // (evaluations + 1))
    return replace(setting, steps=steps, weak_guidance=scale)


def starts(
    config: TuneConfig, model: model_file.StoredModel, first: Sequence[SamplerChoice]
) -> list[int]:
    """The numbers of steps to try from a Gaussian start; none for a model that has no such start,
    which one that is told something has not, nor one that is distilled."""
    told = bool(model.blueprint.conditions) or model.distilled is not None
    if not config.try_starts or told or model.low_frequencies is None:
        return []
    process = model.blueprint.process
    most = process.from_log_snr(model.low_frequencies.log_snr)
    return sorted({setting.steps for setting in first if setting.steps <= most})


def started(found: SamplerChoice, steps: Sequence[int]) -> list[SamplerChoice]:
    """A setting from a Gaussian start, in several numbers of steps; in fewer where a weaker model
    guides it, for as many evaluations."""
    begun = [replace(found, steps=n, start=GAUSSIAN) for n in steps]
    scale = found.weak_guidance
    if scale in (None, 1):
        return begun
    return list(dict.fromkeys(with_weaker(own, scale) for own in begun))


def learned_steps(
    config: TuneConfig, first: Sequence[SamplerChoice], process: Process
) -> list[int]:
    """The numbers of steps to learn times for: the few among the `first` settings."""
    if not config.learn_times:
        return []
    steady = {setting.steps for setting in first if not draws_noise(setting.sampler, process)}
    return sorted(steps for steps in steady if 1 < steps <= eval_options.LEARNED_STEPS)


def to_learn(
    rows: Sequence[Tried], found: SamplerChoice, n: int, process: Process
) -> SamplerChoice:
    """The setting to learn n times for: the sampler that did best in n steps and the fewest
    evaluations, guided as in `found`.

    Args:
        rows: of the first settings; samplers that draw noise have no trajectory to learn from.
    """
    able = [
        row
        for row in rows
        if row.setting.steps == n and not draws_noise(row.setting.sampler, process)
    ]
    least = min(row.evaluations for row in able)
    cheap = [row for row in able if row.evaluations == least]
    metric = deciding(rows)
    best = min(cheap, key=lambda row: _or_worst(row.values[metric]))
    return replace(found, sampler=best.setting.sampler, steps=n)


def _or_worst(value: float) -> float:
    return value if math.isfinite(value) else math.inf


# -- learning -------------------------------------------------------------------------------------

# Times learned for a few steps, for `tune`.

SAMPLES, FINE, ROUNDS = 32, 40, 8
"""How many trajectories are followed, in how many steps, and how often each time is moved: see
benchmarks/times.py."""

GRID = "trailing"
"""How the many steps are spaced, of which few are chosen."""


@dataclass(frozen=True)
class Learner:
    """Learns times for a sampler in a few steps.

    Attributes:
        first: the index of the first sample to learn from, so that others can be measured.
    """

    loaded: Loaded
    first: int
    device: torch.device

    def __call__(self, settings: DrawSettings) -> Work[list[tuple[float, ...]]]:
        """Times for the sampler, steps and guidance of `settings`, falling from the last timestep
        of the process: the cheapest path, and what moving times makes of it, or of those that the
        sampler visits by default if these end nearer.

        The second ends nearer to many steps, which is better only where a model's images in many
        steps are.
        """
        yield Progress("learning times", 0, ROUNDS)
        planned, ends = self.planned(settings)
        times = self.nearer(settings, planned, ends)
        rounds = improved(times, self.error(settings, ends), ROUNDS)
        for done, better in enumerate(rounds, 1):
            times = better
            yield Progress("learning times", done, ROUNDS)
        return [tuple(planned), tuple(times)] if times != planned else [tuple(planned)]

    def nearer(self, settings: DrawSettings, planned: list[float], ends: Tensor) -> list[float]:
        """The planned times or the default ones, whichever end nearer."""
        spaced = replace(settings, times=None).times_of(self.loaded.denoiser.process)
        return min(planned, [float(t) for t in spaced], key=self.error(settings, ends))

    def error(self, settings: DrawSettings, ends: Tensor) -> Callable[[Sequence[float]], float]:
        """How far from `ends` samples end at given times: the root mean square."""

        def missed(times: Sequence[float]) -> float:
            # No solver steps from one time of SNR 0 to another.
            if len(times) > 1 and self.loaded.denoiser.process.alpha_bar(times[1]) == 0:
                return math.inf
            found, _ = self.follow(replace(settings, times=tuple(times)))[-1]
            return math.sqrt(float((found - ends).square().mean()))

        return missed

    def planned(self, settings: DrawSettings) -> tuple[list[float], Tensor]:
        """The cheapest of the times of many steps, and where these end."""
        process = self.loaded.denoiser.process
        many = min(FINE, process.num_timesteps)
        fine = replace(settings, sampler=SAMPLER, steps=many, spacing=GRID, options={})
        states = self.follow(replace(fine, times=None))
        grid, xs = process.times(many, GRID), [x for x, _ in states]
        costs = step_costs(process, grid, xs, [x0 for _, x0 in states[1:]])
        path = cheapest_path(costs, settings.steps)
        return [float(grid[node]) for node in path[:-1]], xs[-1]

    def follow(self, settings: DrawSettings) -> list[tuple[Tensor, Tensor]]:
        """x and the last estimate of x_0, for all samples: at the start and after each step."""
        space, device = self.loaded.space, self.device
        indices = range(self.first, self.first + SAMPLES)
        noise = image_noise(settings.seed, indices, -1, space.shape, device)
        batches: dict[int, list[Tensor]] = {}
        for drawing in draw(self.loaded.denoiser, settings, indices, space=space, device=device):
            both = torch.stack([drawing.state.x, drawing.state.x0])
            batches.setdefault(drawing.step, []).append(both)
        after = [torch.cat(batch, 1) for batch in batches.values()]
        return [(noise, noise), *((x, x0) for x, x0 in after)]

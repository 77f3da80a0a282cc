"""Sampling settings: the options that were passed, else the model file's recommendations, else
defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from diffuse_cli.config import sample_options
from diffuse_cli.config.sample_options import DrawConfig, SamplerChoice
from diffuse_cli.core import (
    VARIANCES,
    DataGaussian,
    Denoise,
    Denoiser,
    Process,
    guidance,
    parameterization,
    samplers,
)
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.sampling.conditioning import Condition, resolve_condition
from diffuse_cli.system import Notice, UsageError, Work, lookup


@dataclass(frozen=True)
class Guide:
    """Guidance model of autoguidance, weaker than the model itself.

    Attributes:
        path: the path of its file, `OWN` for the early EMA checkpoint in MODEL's file.
        scale: the guidance scale. 1 is only the model, 0 only the guidance model.
        denoiser: the denoiser, from `model_loading.load_guide`.
        sha256: the hash of its file.
    """

    path: str
    scale: float
    denoiser: Denoiser
    sha256: str


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling settings of a model.

    Attributes:
        spacing: a name in `SPACINGS`, None for the default of the sampler and steps.
        times: learned timesteps, which replace the spacing's.
        start: the low frequencies of the data to start from, None for pure noise.
        options: options of the sampler, for example `eta`.
        condition: conditions and guidance, for a conditional model.
        guide: the guidance model.
        noise_levels: the range of sigma / alpha to guide in, None for everywhere.
        threshold: the percentile of dynamic thresholding, None to clip x_0.
        variance: a name in `VARIANCES`, None for the model's.
        errors: the errors of x_0, for a variance in `MEASURED`.
        recommendations: the recommendations of the model file in use, in words.
    """

    sampler: str = sample_options.SAMPLER
    steps: int = sample_options.SAMPLING_STEPS
    spacing: str | None = None
    times: tuple[float, ...] | None = None
    start: DataGaussian | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    condition: Condition | None = None
    guide: Guide | None = None
    noise_levels: tuple[float, float] | None = None
    threshold: float | None = None
    variance: str | None = None
    errors: DenoisingErrors | None = None
    seed: int = 0
    batch_size: int = 64
    recommendations: str = ""

    @property
    def choice(self) -> SamplerChoice:
        """Settings that `tune` chooses."""
        scale = self.condition.scale if self.condition else None
        weak = self.guide.scale if self.guide else None
        start = sample_options.GAUSSIAN if self.start else None
        levels = self.noise_levels if self.guide else None
        return SamplerChoice(self.sampler, self.steps, scale, weak, self.times, start, levels)

    def with_choice(self, choice: SamplerChoice, gaussian: DataGaussian | None) -> SamplingSettings:
        """Return the settings with a choice of `train` or `tune`.

        Args:
            gaussian: the low frequencies of the data, for a Gaussian start.
        """
        condition, guide = self.condition, None
        if condition and choice.guidance is not None:
            condition = replace(condition, scale=choice.guidance)
        if self.guide and choice.weak_guidance is not None:
            guide = replace(self.guide, scale=choice.weak_guidance)
        return replace(
            self,
            sampler=choice.sampler,
            steps=choice.steps,
            times=choice.times,
            start=gaussian if choice.start == sample_options.GAUSSIAN else None,
            condition=condition,
            guide=guide,
            noise_levels=choice.guidance_interval or self.noise_levels,
        )

    @property
    def resolved_spacing(self) -> str:
        """Spacing of timesteps that are not learned."""
        return self.spacing or samplers.default_spacing(self.sampler, self.steps)

    def resolve_times(self, process: Process) -> Sequence[int] | Sequence[float]:
        """Return the timesteps to visit, from noise to data.

        Raises:
            InvalidArgument: more steps than the process has timesteps.
        """
        if self.start:
            return process.times(self.steps, self.resolved_spacing, log_snr=self.start.log_snr)
        return self.times or process.times(self.steps, self.resolved_spacing)

    def start_state(self, noise: Tensor, process: Process, time: int | float) -> Tensor:
        """Return x_t at the first timestep, from noise of the same shape."""
        if self.start is None:
            return noise
        alpha, sigma = process.alpha_sigma(time, like=noise)
        return self.start.make_initial_noise(noise, float(alpha), float(sigma))

    def set_variance(self, denoiser: Denoiser) -> Denoiser:
        """Return the denoiser with the variance of the settings."""
        return denoiser.with_variance(self.variance, self.errors) if self.variance else denoiser

    def describe_steps(self) -> dict[str, Any]:
        """Return the entries of a manifest for sampler, steps, timesteps, start and variance."""
        entries = {
            "sampler": self.sampler,
            "steps": self.steps,
            "spacing": sample_options.LEARNED if self.times else self.resolved_spacing,
            "times": list(self.times) if self.times else None,
            "start": sample_options.GAUSSIAN if self.start else None,
            "variance": self.variance,
        }
        return {name: value for name, value in entries.items() if value is not None}

    def describe_guidance(self) -> dict[str, Any]:
        """Return the guidance entries of a manifest, empty without guidance."""
        described: dict[str, Any] = {}
        if self.condition:
            described["guidance"] = self.condition.scale
        if self.guide:
            weights = "weak" if self.guide.path == sample_options.OWN else "ema"
            described["weak_guidance"] = self.guide.scale
            described["guide"] = {"sha256": self.guide.sha256, "weights": weights}
        return {**described, "guidance_interval": self.noise_levels} if described else {}

    def add_guidance(self, denoise: Denoise) -> Denoise:
        """Return `denoise` with both kinds of guidance. It still needs conditions, if any."""
        guides: list[tuple[Denoise, float]] = []
        if self.condition:
            guides.append((guidance.make_unconditional(denoise), self.condition.scale))
        if self.guide:
            guides.append((self.guide.denoiser, self.guide.scale))
        whole = guidance.guide_away(denoise, *guides) if guides else denoise
        if self.noise_levels is None:
            return whole
        return guidance.interval(whole, denoise, *self.noise_levels)


def resolve_settings(
    config: DrawConfig,
    model: StoredModel,
    names: Sequence[str] = (),
    on: Sequence[str] = (),
    *,
    guide: Guide | None = None,
    bound: bool = False,
    **conditioning: Any,
) -> SamplingSettings:
    """Return the sampling settings of a configuration for a model.

    A recommended sampler is only used with its recommended steps. The recommended start and learned
    timesteps are used with both of them, unless the options include a start, or for the timesteps a
    spacing. Without a recommendation, `starts_from_gaussian` decides about the start.

    Args:
        names, on, conditioning: see `resolve_condition`.
        guide: the guidance model, from `model_loading.load_guide`.
        bound: whether the variational bound is computed, too.

    Raises:
        UsageError: an unknown class, or guidance, a start, a threshold or a variance that the model
            does not support.
        InvalidArgument: an option that the sampler does not take.
    """
    _check_supported(config, model, guide)
    choice, text = _choose_sampler(config, model)
    variance = _choose_variance(config, model, choice.sampler, bound)
    condition = resolve_condition(
        config, model, names, on, guided=guide is not None, **conditioning
    )
    texts, levels = [text] if text else [], config.guidance_interval
    recommended = model.sampling or choice  # which has no guidance
    if condition and config.guidance is None and recommended.guidance == condition.scale:
        texts.append(f"guidance {condition.scale:g}")
    takes_scale = config.weak_guidance is None and recommended.weak_guidance is not None
    if guide and guide.path == sample_options.OWN and takes_scale:
        levels = levels or recommended.guidance_interval
        interval = sample_options.describe_interval(levels)
        texts.append(f"weak guidance {guide.scale:g}{interval}")
    start = None
    if choice.start == sample_options.GAUSSIAN:
        start = _low_frequency_start(model, choice.sampler)
    return SamplingSettings(
        sampler=choice.sampler,
        steps=choice.steps,
        spacing=config.spacing,
        times=choice.times,
        start=start,
        options=samplers.sampler_options(choice.sampler, **config.sampler_options),
        condition=condition,
        guide=guide,
        noise_levels=levels,
        threshold=config.threshold,
        variance=variance,
        errors=model.errors,
        seed=config.seed,
        batch_size=config.batch_size,
        recommendations=", ".join(texts),
    )


def _check_supported(config: DrawConfig, model: StoredModel, guide: Guide | None) -> None:
    """Refuse an interval, a threshold or a sampler that the model does not support.

    Raises:
        UsageError
    """
    if config.guidance_interval and not (model.blueprint.conditions or guide):
        hint = "Train a model with --classes, or pass a weaker model with --guide-with"
        text = "--guidance-interval: the model was trained without classes"
        raise UsageError(text, hint, code="option_unsuited")
    if config.threshold is not None and model.blueprint.space.levels is None:
        text = "--threshold is for models of images with levels, and this model generates floats"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    if config.sampler in samplers.OF_DISTILLED and model.distilled is None:
        text = f"--sampler {config.sampler} is for distilled models, and this is not one"
        hint = "Distill it: diffuse distill MODEL DATA -o fast.safetensors"
        raise UsageError(text, hint, code="option_unsuited")


def _choose_sampler(config: DrawConfig, model: StoredModel) -> tuple[SamplerChoice, str]:
    """Return the sampler, steps, timesteps and start, and those that are recommended, in words.

    Raises:
        UsageError: an unknown start.
    """
    start = config.start if isinstance(config, sample_options.StartConfig) else sample_options.NOISE
    if start is not None:
        lookup(dict.fromkeys(sample_options.STARTS), start, "--start")
    used = model.sampling
    if used and config.sampler in (None, used.sampler) and config.steps in (None, used.steps):
        is_typed = config.sampler is not None and config.steps is not None
        used = SamplerChoice(used.sampler, used.steps, times=used.times, start=used.start)
        if config.spacing or start == sample_options.GAUSSIAN:
            used = replace(used, times=None)
        if start is not None:
            used = replace(used, start=None)
        text = "" if is_typed and not (used.times or used.start) else str(used)
        return replace(used, start=start or used.start), text
    sampler, steps = sample_options.SAMPLER, sample_options.SAMPLING_STEPS
    if model.distilled is not None:
        sampler, steps = "consistency", sample_options.DISTILLED_STEPS
    sampler = config.sampler or sampler
    steps = config.steps or min(steps, model.blueprint.diffusion.num_timesteps)
    if start is None and sampler not in samplers.OF_DISTILLED:
        start = sample_options.GAUSSIAN if starts_from_gaussian(model.blueprint, steps) else None
    return SamplerChoice(sampler, steps, start=start), ""


def _choose_variance(
    config: DrawConfig, model: StoredModel, sampler: str, bound: bool
) -> str | None:
    """Return the variance that replaces the model's, if any.

    Args:
        bound: whether the variational bound is computed with it.

    Raises:
        UsageError: nothing uses it, or the model does not have it.
    """
    variance = config.variance if isinstance(config, sample_options.VarianceConfig) else None
    if variance is None:
        return None
    lookup(VARIANCES, variance, "--variance")
    if not bound and sampler not in samplers.WITH_VARIANCE:
        hint = f"Leave it out, or pass --sampler {' or '.join(samplers.WITH_VARIANCE)}"
        raise UsageError(f"--variance: the sampler '{sampler}' has none", hint, code="option_needs")
    trained = model.blueprint.diffusion.variance
    if variance in parameterization.LEARNED and trained not in parameterization.LEARNED:
        text = f"--variance {variance} is not in the model, which has a fixed variance, '{trained}'"
        hint = f"Train with --variance {variance}, or leave it out"
        raise UsageError(text, hint, code="option_unsuited")
    if variance in parameterization.MEASURED and model.errors is None:
        text = f"--variance {variance} needs errors that train measures, which the model file lacks"
        hint = "Use the last model of its run, after diffuse train DATA --resume"
        hint = "Leave it out" if model.distilled else hint
        raise UsageError(text, hint, code="model_lacks")
    return variance


def starts_from_gaussian(blueprint: Blueprint, steps: int) -> bool:
    """Whether a model starts from the Gaussian of its data by default.

    From pure noise, brightness varies too little in samples of an unconditional model with a Wiener
    filter (benchmarks/README.md).
    """
    is_default = blueprint.wiener and not blueprint.conditions
    return is_default and can_start_from_gaussian(blueprint, steps)


def can_start_from_gaussian(blueprint: Blueprint, steps: int) -> bool:
    """Whether a model has the Gaussian of its data, and enough timesteps to start from it.

    The start leaves out the noisiest timesteps, so there can be fewer than `steps`.
    """
    gaussian = blueprint.gaussian
    return gaussian is not None and steps <= blueprint.process.from_log_snr(gaussian.log_snr)


def _low_frequency_start(model: StoredModel, sampler: str) -> DataGaussian:
    """Return the model's low frequencies to start from.

    Raises:
        UsageError: the model file lacks them, or the model or sampler cannot start from them.
    """
    hint = "Leave out --start, or choose --start noise"
    if model.blueprint.conditions:
        text = "--start gaussian is for unconditional models"
        raise UsageError(text, hint, code="option_unsuited")
    if sampler in samplers.OF_DISTILLED:
        text = f"--start gaussian cannot be combined with --sampler {sampler}"
        raise UsageError(text, hint, code="options_conflict")
    if model.blueprint.gaussian is None:
        text = "--start gaussian needs the low frequencies of the data, which the model file lacks"
        hint = "Train again with this version of diffuse, or leave out --start"
        raise UsageError(text, hint, code="model_lacks")
    return model.blueprint.gaussian


def report_settings(settings: SamplingSettings) -> Work[None]:
    """Report which of the model file's recommendations are used, and an interval without effect."""
    if settings.recommendations:
        yield Notice(
            f"using the settings that the model file recommends: {settings.recommendations}"
        )
    scale = settings.condition.scale if settings.condition else 1
    if settings.noise_levels and settings.guide is None and scale == 1:
        text = "--guidance-interval has no effect, because the guidance scale is 1"
        yield Notice(text, warning=True)

"""How images are drawn: by what is given, else what the model file recommends, else the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffuse_cli.config.sample_options import (
    DISTILLED_STEPS,
    GAUSSIAN,
    LEARNED,
    NOISE,
    OWN,
    SAMPLER,
    SAMPLING_STEPS,
    STARTS,
    WEAK_GUIDANCE,
    DrawConfig,
    SamplerChoice,
    StartConfig,
)
from diffuse_cli.core.guidance import away, interval, unconditional
from diffuse_cli.core.samplers import OF_DISTILLED, sampler_options, spacing_of
from diffuse_cli.sampling.conditioning import Condition, condition
from diffuse_cli.system.errors import UsageError, lookup
from diffuse_cli.system.events import Notice, Work

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.core.gaussian_start import LowFrequencies
    from diffuse_cli.core.process import Process
    from diffuse_cli.models.model_file import StoredModel


@dataclass(frozen=True)
class Guide:
    """A weaker model to guide by.

    Attributes:
        path: of its file; `OWN` for the early average in the model's own.
        scale: 1 is the model alone, 0 the weaker one.
        denoiser, sha256: of the file; see `guidance_model.load_guide`.
    """

    path: str
    scale: float
    denoiser: Denoiser
    sha256: str


@dataclass(frozen=True)
class DrawSettings:
    """How images are drawn.

    Attributes:
        spacing: a name in `SPACINGS`; None for the one that goes with sampler and steps.
        times: learned for these steps, instead of those of the spacing.
        start: the low frequencies of the data, to begin with; None for pure noise.
        options: of the sampler, for example `eta`.
        condition: classes and guidance, for a model with classes.
        guide: the weaker model to guide by.
        noise_levels: guide only at sigma / alpha between these; None for all.
        threshold: the percentile of dynamic thresholding; None clips x_0.
        taken: what the model file recommended and is used, in words.
    """

    sampler: str = SAMPLER
    steps: int = SAMPLING_STEPS
    spacing: str | None = None
    times: tuple[float, ...] | None = None
    start: LowFrequencies | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    condition: Condition | None = None
    guide: Guide | None = None
    noise_levels: tuple[float, float] | None = None
    threshold: float | None = None
    seed: int = 0
    batch_size: int = 64
    taken: str = ""

    @property
    def choice(self) -> SamplerChoice:
        """The part that `tune` chooses."""
        scale = self.condition.scale if self.condition else None
        weak = self.guide.scale if self.guide else None
        start = GAUSSIAN if self.start else None
        return SamplerChoice(self.sampler, self.steps, scale, weak, self.times, start)

    @property
    def spaced(self) -> str:
        """The spacing of times that are not learned."""
        return self.spacing or spacing_of(self.sampler, self.steps)

    def times_of(self, process: Process) -> Sequence[int] | Sequence[float]:
        """The times that are visited, falling.

        Raises:
            InvalidArgument: more steps than the process has timesteps.
        """
        if self.start:
            return process.times(self.steps, self.spaced, log_snr=self.start.log_snr)
        return self.times or process.times(self.steps, self.spaced)

    def start_state(self, noise: Tensor, process: Process, time: int | float) -> Tensor:
        """x_t at the first of the times, from noise of the same shape."""
        if self.start is None:
            return noise
        alpha, sigma = process.level(time, like=noise)
        return self.start.begun(noise, float(alpha), float(sigma))

    def describe_times(self) -> dict[str, Any]:
        """What a manifest says of them."""
        if self.times is None:
            return {"spacing": self.spaced, **({"start": GAUSSIAN} if self.start else {})}
        return {"spacing": LEARNED, "times": list(self.times)}

    def describe_guidance(self) -> dict[str, Any]:
        """What a manifest says of it; empty where nothing is guided."""
        described: dict[str, Any] = {}
        if self.condition:
            described["guidance"] = self.condition.scale
        if self.guide:
            weights = "weak" if self.guide.path == OWN else "ema"
            described["weak_guidance"] = self.guide.scale
            described["guide"] = {"sha256": self.guide.sha256, "weights": weights}
        return {**described, "guidance_interval": self.noise_levels} if described else {}

    def guided(self, denoise: Denoise) -> Denoise:
        """`denoise` with the guidance of both kinds; with classes, to be called with `label`."""
        others: list[tuple[Denoise, float]] = []
        if self.condition:
            others.append((unconditional(denoise), self.condition.scale))
        if self.guide:
            others.append((self.guide.denoiser, self.guide.scale))
        whole = away(denoise, *others) if others else denoise
        if self.noise_levels is None:
            return whole
        return interval(whole, denoise, *self.noise_levels)


def resolve(
    config: DrawConfig,
    model: StoredModel,
    names: Sequence[str] = (),
    on: Sequence[str] = (),
    *,
    guide: Guide | None = None,
    **conditioning: Any,
) -> DrawSettings:
    """Return the settings of a configuration for a model.

    A recommended sampler is used with its recommended steps or not at all; with both go a
    recommended start, unless one is given, and learned times, unless a spacing or a Gaussian start
    is.

    Args:
        names, on, conditioning: see `condition`.
        guide: the weaker model, from `guidance_model.load_guide`.

    Raises:
        UsageError: a class that the model does not have, or guidance, a start or a threshold that
            it cannot have.
        InvalidArgument: an option that the sampler does not take.
    """
    wanted = condition(config, model, names, on, **conditioning)
    if config.guidance_interval and not (model.blueprint.conditions or guide):
        raise UsageError(
            "--guidance-interval: the model was trained without classes",
            "Train one with --classes, or guide by a weaker one with --guide-with",
        )
    if config.threshold is not None and model.blueprint.space.levels is None:
        raise UsageError(
            "--threshold keeps x_0 in the range of levels, and the model draws floats",
            "Leave it out",
        )
    most = model.blueprint.diffusion.num_timesteps
    sampler, steps = config.sampler or SAMPLER, config.steps or min(SAMPLING_STEPS, most)
    times, taken = None, list[str]()
    asked = config.start if isinstance(config, StartConfig) else NOISE
    if asked is not None:
        lookup(dict.fromkeys(STARTS), asked, "--start")
    found = model.sampling
    if model.distilled is not None:
        sampler, steps = config.sampler or "consistency", config.steps or min(DISTILLED_STEPS, most)
    elif sampler in OF_DISTILLED:
        raise UsageError(
            f"--sampler {sampler} draws from a distilled model, and this is none",
            "Make one: diffuse distill MODEL DATA -o fast.safetensors",
        )
    if found and config.sampler in (None, found.sampler) and config.steps in (None, found.steps):
        sampler, steps = found.sampler, found.steps
        times = found.times if config.spacing is None and asked != GAUSSIAN else None
        begun, asked = found.start if asked is None else None, asked or found.start
        if times or begun or None in (config.sampler, config.steps):
            taken.append(str(SamplerChoice(sampler, steps, times=times, start=begun)))
    if wanted and found and config.guidance is None and found.guidance == wanted.scale:
        taken.append(f"guidance {wanted.scale:g}")
    if guide and config.weak_guidance is None and _recommends(model, guide.path) is not None:
        taken.append(f"weak guidance {guide.scale:g}")
    return DrawSettings(
        sampler=sampler,
        steps=steps,
        spacing=config.spacing,
        times=times,
        start=start_of(model, sampler) if asked == GAUSSIAN else None,
        options=sampler_options(sampler, **config.sampler_options),
        condition=wanted,
        guide=guide,
        noise_levels=config.guidance_interval,
        threshold=config.threshold,
        seed=config.seed,
        batch_size=config.batch_size,
        taken=", ".join(taken),
    )


def start_of(model: StoredModel, sampler: str) -> LowFrequencies:
    """The model's low frequencies, to begin from.

    Raises:
        UsageError: they are unknown, or not those of what is drawn.
    """
    hint = "Leave out --start, or choose --start noise"
    if model.blueprint.conditions:
        raise UsageError("--start gaussian is for a model that is told nothing", hint)
    if sampler in OF_DISTILLED:
        raise UsageError(f"--start gaussian does not go with --sampler {sampler}", hint)
    if model.low_frequencies is None:
        raise UsageError(
            "--start gaussian needs the low frequencies of the data, which the model file lacks",
            "An older diffuse wrote it; train again, or leave out --start",
        )
    return model.low_frequencies


def choose_guide(config: DrawConfig, model: StoredModel) -> tuple[str, float] | None:
    """Return the path of the weaker model that is named or recommended, and its scale.

    Raises:
        UsageError: a scale without a weaker model.
    """
    path, scale = config.guide_with, config.weak_guidance
    found = _recommends(model, path or OWN)
    if path is None and scale is None and found is None:
        return None
    if path is None and scale is not None and model.weak is None:
        raise UsageError(
            "--weak-guidance goes with --guide-with",
            "Give a weaker model, or a model trained with --keep-weak",
        )
    if scale is None:
        scale = WEAK_GUIDANCE if found is None else found
    return path or OWN, scale


def _recommends(model: StoredModel, path: str) -> float | None:
    """The scale that the model file recommends, which was found with its own weak average."""
    return model.sampling.weak_guidance if model.sampling and path == OWN else None


def tell(settings: DrawSettings) -> Work[None]:
    """Say which of the model file's recommendations are used."""
    if settings.taken:
        yield Notice(f"as the model file recommends: {settings.taken}")

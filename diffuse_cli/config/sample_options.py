"""Options of `sample`, and of other commands that generate images."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config import options, parsers
from diffuse_cli.config.options import Options, option
from diffuse_cli.core.parameterization import MEASURED
from diffuse_cli.core.samplers import sampler_options
from diffuse_cli.system import UsageError, translate_errors

SAMPLER, SAMPLING_STEPS = "unipc", 20
"""The defaults, measured (benchmarks/README.md)."""

NOISE, GAUSSIAN = STARTS = ("noise", "gaussian")
"""Initial noise: pure noise, or noise with the data's lowest frequencies."""

LEARNED = "learned"
"""Name in manifests of learned timesteps, which model files of earlier versions can recommend."""

DISTILLED_STEPS = 2
"""Steps of a distilled model."""

GUIDANCE = 2.0
"""The default guidance scale of a model with classes."""

WEAK_GUIDANCE = 1.5
"""The default scale of guidance by a weaker model, where one is named."""

OWN = "self"
"""Value of `--guide-with` for the early EMA checkpoint in the model file."""

IMAGES = 16
"""Default number of images."""

MOST_STEPS, STRONGEST = 100_000, 100
"""The largest number of steps and guidance scale that can be asked for."""


def describe_interval(levels: tuple[float, float] | None) -> str:
    """Return the noise levels to guide in, in words that follow a scale."""
    return "" if levels is None else " at noise levels {:g} to {:g}".format(*levels)


@dataclass(frozen=True)
class SamplerChoice(Options):
    """Choice of `tune`: a sampler, its steps, the guidance of a model with classes, that by the
    model's own weak average, times learned for all this (None: those of the spacing), where it
    starts (None: in pure noise), and the noise levels of the weak guidance (None: all).

    Raises:
        UsageError: times that are not one a step, falling, or that suit another start, or noise
            levels without weak guidance.
    """

    sampler: str = option(help="Sampler.")
    steps: int = option(help="Steps.", low=1, high=MOST_STEPS)
    guidance: float | None = option.optional("Guidance scale.", low=0, high=STRONGEST)
    weak_guidance: float | None = option.optional("Autoguidance scale.", low=0, high=STRONGEST)
    times: tuple[float, ...] | None = option.optional(
        "Learned timesteps.", parse=parsers.parse_times
    )
    start: str | None = option.optional("Initial noise.", table=STARTS)
    guidance_interval: tuple[float, float] | None = option.optional(
        "Noise levels of weak guidance.", parse=parsers.parse_interval
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance_interval is not None and self.weak_guidance is None:
            raise UsageError("noise levels of guidance without weak guidance", code="option_needs")
        if self.times is not None and len(self.times) != self.steps:
            text = f"{len(self.times)} times for {self.steps} steps"
            raise UsageError(text, code="options_conflict")
        if self.times is not None and self.start == GAUSSIAN:
            raise UsageError("learned times begin in pure noise", code="options_conflict")

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f"{self.sampler}, {steps}{self.description}"

    @property
    def is_autoguided(self) -> bool:
        """Whether the early weights guide samples. A scale of 1 does not."""
        return self.weak_guidance not in (None, 1)

    @property
    def description(self) -> str:
        """The initial noise, learned timesteps and guidance scales, in words."""
        start = " from a Gaussian start" if self.start == GAUSSIAN else ""
        learned = " at learned times" if self.times else ""
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        weakly = "" if self.weak_guidance is None else f", weak guidance {self.weak_guidance:g}"
        return start + learned + guided + weakly + describe_interval(self.guidance_interval)


@dataclass(frozen=True, kw_only=True)
class SeedConfig(Options):
    """The seed of random numbers."""

    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Options):
    """Use of the machine."""

    batch_size: int = option.run(
        64, "Batch size, which changes results only by rounding.", low=1, high=100_000
    )
    precision: str = option.run(
        "auto",
        "Floating-point precision (auto: the model's, if the device supports it).",
        table="system.devices.PRECISIONS",
    )
    device: str = option.run(
        "auto", "Device (auto: a GPU if PyTorch finds one).", table="system.devices.DEVICES"
    )


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(Options):
    """Which of a model's weights to use."""

    weights: str = option.sampling(
        "ema", "Weights to use: averaged (ema), or raw.", table=("ema", "raw")
    )


@dataclass(frozen=True, kw_only=True)
class VarianceConfig(WeightsConfig):
    """The variance of the reverse process.

    Raises:
        UsageError: a measured variance with raw weights.
    """

    variance: str | None = option.sampling.optional(
        "Variance of ddpm's steps and of the variational bound.",
        table="core.parameterization.VARIANCES",
        shown="the model's",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance in MEASURED and self.weights != "ema":
            raise UsageError(
                f"--variance {self.variance} was measured with the EMA weights",
                f"Leave out --weights {self.weights}, or --variance {self.variance}",
                code="options_conflict",
            )


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig(Options):
    """Options of all samplers."""

    spacing: str | None = option.sampling.optional(
        "Spacing of the timesteps that the sampler visits.",
        table="core.schedules.SPACINGS",
        shown="the model's, else wide for unipc up to 10 steps, else trailing",
    )
    threshold: float | None = option.sampling.optional(
        "Fraction of pixels that dynamic thresholding keeps in range, for example 0.995.",
        low=0.01,
        high=1,
    )
    guidance_interval: tuple[float, float] | None = option.sampling.optional(
        "Noise levels (sigma/alpha) between which to guide.",
        parse=parsers.parse_interval,
        shown="all",
    )


@dataclass(frozen=True, kw_only=True)
class GuideConfig(Options):
    """The guidance model of autoguidance."""

    guide_with: str | None = option.sampling.optional(
        "Guidance model for autoguidance (self: the early EMA checkpoint in MODEL).",
        place=True,
        metavar="MODEL|self",
        shown="the model's, if recommended by train or tune",
    )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(GuideConfig, TrajectoryConfig):
    """The sampler, its steps and its guidance.

    Raises:
        UsageError: an option that the named sampler does not take.
    """

    steps: int | None = option.optional(
        "Sampling steps.", low=1, high=MOST_STEPS, shown=f"the model's, or {SAMPLING_STEPS}"
    )
    sampler: str | None = option.optional(
        "Sampler.", table="core.samplers.SAMPLERS", shown=f"the model's, or {SAMPLER}"
    )
    guidance: float | None = option.optional(
        "Guidance scale (0: unconditional, 1: conditional).",
        low=0,
        high=STRONGEST,
        shown=f"the model's, or {GUIDANCE:g}, or 1 with an image, numbers or no label dropout",
    )
    weak_guidance: float | None = option.sampling.optional(
        "Autoguidance scale: 1 is the model itself, 0 the guidance model.",
        low=0,
        high=STRONGEST,
        shown=f"the model's, or {WEAK_GUIDANCE:g}",
    )
    eta: float | None = option.sampling.optional(
        "Noise added by ddim: 0 for none, 1 for as much as ddpm.", low=0, high=1, shown="0"
    )
    order: int | None = option.sampling.optional("Order of unipc.", low=2, high=3, shown="2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler is not None:  # else it may be one that the model file recommends
            with translate_errors():
                sampler_options(self.sampler, **self.sampler_options)

    @property
    def sampler_options(self) -> dict[str, float | None]:
        """Options that only some samplers take; None if not given."""
        return {"eta": self.eta, "order": self.order}


@dataclass(frozen=True, kw_only=True)
class DrawConfig(SamplerConfig, ComputeConfig, SeedConfig):
    """Options of `sample`, and of other commands that generate images."""


@dataclass(frozen=True, kw_only=True)
class StartConfig(Options):
    """Options of the initial noise."""

    start: str | None = option.sampling.optional(
        "Initial noise: pure, or gaussian with the brightness and layout of the data.",
        table=STARTS,
        shown=f"the model's, or {GAUSSIAN} with a Wiener filter and no conditions, or {NOISE}",
    )


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(Options):
    """The metadata columns to condition on."""

    on: tuple[str, ...] = option.conditioning(
        (),
        "Condition on a metadata column, for example age=40 (repeatable).",
        parse=parsers.parse_settings,
        shown="unconditional",
    )
    on_vector: tuple[tuple[float, ...], ...] | None = option.conditioning.optional(
        "Condition on the vectors of a .npy or .npz file in turn.",
        parse=parsers.parse_vectors,
        metavar="FILE",
        shown="unconditional",
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ColumnsConfig, StartConfig, DrawConfig, VarianceConfig):
    """Images from a model file."""

    model: str = option.model()
    n: int | None = option.optional(
        "Number of images (with --given, for each input).",
        low=1,
        high=10_000_000,
        shown=str(IMAGES),
    )
    range: tuple[int, int] | None = option.output.optional(
        "Generate only images A to B - 1 of the seed, for example 0:500.",
        parse=parsers.parse_range,
        metavar="A:B",
    )
    out: str = option(
        "samples",
        "Output folder, .zip, .npz or .nc, which the same command completes after an interruption.",
        flag="-o",
        metavar="FOLDER|FILE",
    )
    classes: tuple[str, ...] = option(
        (),
        "Class to generate (repeatable).",
        flag="--class",
        parse=parsers.parse_names,
        shown="all classes, alternating",
    )
    given: str | None = option.conditioning.optional(
        "Conditioning image, folder or zip, already degraded unless --degrade is set.",
        metavar="PATH",
    )
    mask: str | None = option.conditioning.optional(
        "Mask, or folder or zip of masks: white where --given is unknown.", metavar="PATH"
    )
    degrade: bool = option.conditioning(
        False, "Degrade the images of --given first, as in training."
    )
    then: str | None = option.conditioning.optional(
        "Pass each image to a second model, for example trained with --given low-res:4.",
        metavar="MODEL",
    )
    members: int | None = option.conditioning.optional(
        "Generate N images for each NAME of --given, as NAME-00, NAME-01, ...", low=2, high=1000
    )
    moments: bool = option.conditioning(
        False, "With --members, also write arrays NAME-mean.npy and NAME-std.npy."
    )
    gif: bool = option(False, "Also write denoising.gif, from noise to image.")
    grid: bool = option.output(True, "Write grid.png, all images in one.")
    overwrite: bool = option.overwrite()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is not None and self.range is not None:
            raise options.conflict_error("-n", "--range", "Pass one of them")
        for flag, value in (("-n", self.n), ("--range", self.range)):
            if self.members is not None and value is not None:
                raise options.conflict_error(flag, "--members", "Pass one of them")
        if self.moments and self.members is None:
            raise options.needs_error("--moments", "--members", "Pass both")
        if self.given is None:
            for flag in ("mask", "degrade", "members"):
                if getattr(self, flag):
                    raise options.needs_error(f"--{flag}", "--given")
        if self.mask and self.degrade:
            raise options.conflict_error("--mask", "--degrade", "--degrade draws its own masks")

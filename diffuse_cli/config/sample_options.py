"""How images are drawn from a model."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import MODEL, OVERWRITE, Options, argument, option
from diffuse_cli.config.parsers import (
    parse_interval,
    parse_names,
    parse_range,
    parse_settings,
    parse_times,
)
from diffuse_cli.core.samplers import sampler_options
from diffuse_cli.system.errors import UsageError, translating

SAMPLER, SAMPLING_STEPS = "unipc", 20
"""The defaults; the first two chosen by benchmarks/samplers.py."""

NOISE, GAUSSIAN = STARTS = ("noise", "gaussian")
"""Where sampling begins: in pure noise, or in noise with the data's lowest frequencies."""

LEARNED = "learned"
"""What manifests call the spacing of times that `tune` learned."""

DISTILLED_STEPS = 2
"""Steps of a distilled model."""

GUIDANCE = 2.0
"""The default guidance scale of a model with classes."""

WEAK_GUIDANCE = 1.5
"""The default scale of guidance by a weaker model, where one is named."""

OWN = "self"
"""What `--guide-with` calls the early average in the model file."""

ON = (
    "What to tell of a column, for a model trained with --condition-on: age=40. Repeat it for "
    "other columns, and for other values of one, which are drawn in turn."
)

IMAGES = 16
"""How many images are drawn if no number is given."""

MOST_STEPS, STRONGEST = 100_000, 100
"""The largest number of steps and guidance scale that can be asked for."""


@dataclass(frozen=True)
class SamplerChoice(Options):
    """What `tune` chooses: a sampler, its steps, the guidance of a model with classes, that by the
    model's own weak average, times learned for all this (None: those of the spacing), and where it
    starts (None: in pure noise).

    Raises:
        UsageError: times that are not one a step, falling, or that go with another start.
    """

    sampler: str = option(help="Sampler.")
    steps: int = option(help="Steps.", low=1, high=MOST_STEPS)
    guidance: float | None = option.optional("Guidance scale.", low=0, high=STRONGEST)
    weak_guidance: float | None = option.optional(
        "Scale of guidance by a weaker model.", low=0, high=STRONGEST
    )
    times: tuple[float, ...] | None = option.optional("Learned times.", parse=parse_times)
    start: str | None = option.optional("Where it starts.", table=STARTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times is not None and len(self.times) != self.steps:
            raise UsageError(f"{len(self.times)} times for {self.steps} steps")
        if self.times is not None and self.start == GAUSSIAN:
            raise UsageError("learned times begin in pure noise")

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f"{self.sampler}, {steps}{self.manner}"

    @property
    def manner(self) -> str:
        """Where it starts, whether its times are learned, and its scales, in words."""
        begun = " from a Gaussian start" if self.start == GAUSSIAN else ""
        learned = " at learned times" if self.times else ""
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        weakly = "" if self.weak_guidance is None else f", weak guidance {self.weak_guidance:g}"
        return begun + learned + guided + weakly


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Options):
    """The seed, and how the machine is used."""

    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    batch_size: int = option.run(
        64, "Batch size; changes results by rounding alone.", low=1, high=100_000
    )
    precision: str = option.run(
        "auto",
        "Precision of the arithmetic; auto is the model's own where the device has it.",
        table="system.devices.PRECISIONS",
    )
    device: str = option.run(
        "auto", "Device; auto is a GPU where PyTorch sees one.", table="system.devices.DEVICES"
    )


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(Options):
    """Which of a model's weights to use."""

    weights: str = option.sampling(
        "ema", "Use the averaged weights, or the raw ones.", table=("ema", "raw")
    )


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig(Options):
    """Options that go with any sampler."""

    spacing: str | None = option.sampling.optional(
        "Which timesteps the sampler visits.",
        table="core.timesteps.SPACINGS",
        shown="those that tune learned, or wide with unipc in at most 10 steps, else trailing",
    )
    threshold: float | None = option.sampling.optional(
        "Dynamic thresholding: instead of clipping a predicted image, scale it until this share "
        "of its pixels, such as 0.995, is in range.",
        low=0.01,
        high=1,
    )
    guidance_interval: tuple[float, float] | None = option.sampling.optional(
        "Guide only at noise levels (sigma/alpha) between these.",
        parse=parse_interval,
        shown="all",
    )


@dataclass(frozen=True, kw_only=True)
class GuideConfig(Options):
    """The weaker model to guide by."""

    guide_with: str | None = option.sampling.optional(
        "Guide by a weaker model of the same data, a file or run directory; 'self' is the early "
        "average in a model trained with --keep-weak. A step then takes one more evaluation.",
        place=True,
        metavar="MODEL|self",
        shown="the model's, if tune recommends it",
    )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(GuideConfig, TrajectoryConfig):
    """The sampler, its steps and its guidance.

    Raises:
        UsageError: an option that the named sampler does not take.
    """

    steps: int | None = option.optional(
        "Sampling steps, each one network evaluation (two with heun), more with guidance.",
        low=1,
        high=MOST_STEPS,
        shown=f"the model's, or {SAMPLING_STEPS}",
    )
    sampler: str | None = option.optional(
        "Sampler.", table="core.samplers.SAMPLERS", shown=f"the model's, or {SAMPLER}"
    )
    guidance: float | None = option.optional(
        "Guidance scale, for a model with classes or columns: 1 is the conditional model, 0 the "
        "unconditional.",
        low=0,
        high=STRONGEST,
        shown=f"the model's, or {GUIDANCE:g}; 1 if trained with --label-dropout 0, or on numbers",
    )
    weak_guidance: float | None = option.sampling.optional(
        "Scale of --guide-with: 1 is the model alone, 0 the weaker one. Added to what --guidance "
        "does.",
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
            with translating():
                sampler_options(self.sampler, **self.sampler_options)

    @property
    def sampler_options(self) -> dict[str, float | None]:
        """Options that only some samplers take; None if not given."""
        return {"eta": self.eta, "order": self.order}


@dataclass(frozen=True, kw_only=True)
class DrawConfig(SamplerConfig, ComputeConfig):
    """How images are drawn from a model."""


@dataclass(frozen=True, kw_only=True)
class StartConfig(Options):
    """Where sampling begins."""

    start: str | None = option.sampling.optional(
        "Where sampling begins: in pure noise, or where the data is nearly Gaussian, in noise with "
        "its brightness and layout. For a model that is told nothing.",
        table=STARTS,
        shown=f"the model's, or {NOISE}",
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(StartConfig, DrawConfig, WeightsConfig):
    """Images from a model file."""

    model: str = argument("MODEL", MODEL)
    n: int | None = option.optional(
        "Number of images; with --given, of each.",
        low=1,
        high=10_000_000,
        shown=str(IMAGES),
    )
    range: tuple[int, int] | None = option.optional(
        "Draw images A to B - 1 of the seed alone, as one of several machines, or to add to a "
        "folder.",
        parse=parse_range,
        metavar="A:B",
    )
    out: str = option(
        "samples",
        "Folder for the images, or a file that ends in .zip, or in .npz for one array of them all. "
        "If it holds a part of them, of the same settings, the rest is drawn.",
        flag="-o",
        metavar="FOLDER|FILE",
    )
    classes: tuple[str, ...] = option(
        (),
        "Class to draw. Repeat it to draw several in turn.",
        flag="--class",
        parse=parse_names,
        shown="every class in turn",
    )
    on: tuple[str, ...] = option((), ON, parse=parse_settings, shown="nothing is told")
    given: str | None = option.optional(
        "What the images are drawn from, for a model trained with --given: an image, or a folder "
        "or zip of them, as the model is given them (small for low-res:4, grey for grey).",
        metavar="PATH",
    )
    mask: str | None = option.optional(
        "What is unknown of --given, for a model trained on masks: white in an image for all, or "
        "in a folder or zip of images of the same names.",
        metavar="PATH",
    )
    degrade: bool = option(
        False, "The images of --given are whole: degrade them as in training first."
    )
    then: str | None = option.optional(
        "Give each image to another model, such as one trained with --given low-res:4, and write "
        "what that draws.",
        metavar="MODEL",
    )
    gif: bool = option(False, "Also write denoising.gif, from noise to image.")
    grid: bool = option.output(True, "Write grid.png, all images in one.")
    overwrite: bool = option(False, OVERWRITE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is not None and self.range is not None:
            raise UsageError("-n and --range exclude each other", "Give one of them")
        if self.given is None:
            for flag in ("mask", "degrade"):
                if getattr(self, flag):
                    raise UsageError(f"--{flag} goes with --given", "Give both, or neither")
        if self.mask and self.degrade:
            raise UsageError(
                "--mask and --degrade exclude each other", "--degrade draws masks of its own"
            )

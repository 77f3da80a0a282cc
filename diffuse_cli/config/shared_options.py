"""Options that commands share, and those of `info`."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config import parsers
from diffuse_cli.config.options import Options, option
from diffuse_cli.system import UsageError

FIT = "Crop, pad or stretch images of another shape."
BACKGROUND = "Color behind transparent images and around padded images."
"""Help of --fit and --background, which several commands have."""


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(Options):
    """Options for reading images."""

    strict: bool = option.data(
        False, "Stop at the first bad file instead of skipping it.", control=True
    )
    workers: int | None = option.data.optional(
        "Threads that read images.", low=1, high=256, control=True, shown="all cores"
    )


@dataclass(frozen=True, kw_only=True)
class ConditionsConfig(Options):
    """Conditions of DATA, where the data of a model is read again."""

    given: str | None = option.data.optional(
        "Folder or zip of conditioning images, for a model trained on pairs.",
        place=True,
        metavar="PATH",
    )
    condition_on: str | None = option.data.optional(
        "Vectors (.npz or .npy), for a model trained on such a file.", place=True, metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class AxesConfig(Options):
    """Options for the axes of arrays, and for the rate of sounds."""

    layout: str | None = option.data.optional(
        "Axis order of arrays, for example HWC, or pages for TIFF pages as channels.",
        table="media.LAYOUTS",
        shown="from the shapes of the arrays",
    )
    rate: int | None = option.data.optional(
        "Sample rate in Hz, to which other sounds are resampled.",
        low=1000,
        high=384_000,
        shown="the data's most frequent rate, at most 16000",
    )


@dataclass(frozen=True, kw_only=True)
class FormConfig(AxesConfig, ReadingConfig):
    """Options for the form of the samples that are read."""

    alpha: bool = option.data(False, "Keep transparency as a channel.")
    bits: int | None = option.data.optional(
        "Bits per channel, 8 or 16, to which other images are scaled.",
        low=8,
        high=16,
        shown="16 if all images have 16 bits, else 8",
    )


@dataclass(frozen=True, kw_only=True)
class InfoConfig(FormConfig):
    """A set of images, or a model file, to describe."""

    path: str = option.argument("PATH", "Training data, a model file, or a run directory.")
    size: parsers.Size | None = option.data.optional(
        "Image size, as for train.", parse=parsers.parse_length, shown="from the data"
    )
    background: str | None = option.data.optional(
        BACKGROUND, parse=parsers.parse_color, shown="white"
    )
    fit: str | None = option.data.optional(FIT, table="media.FITS", shown="crop")
    out: str | None = option.optional(
        "Write a contact sheet of the images, or with --toml the configuration.",
        flag="-o",
        metavar="FILE",
    )
    toml: bool = option(
        False, "Print a model's training configuration, for train --config.", control=True
    )
    overwrite: bool = option.overwrite()


# -- model ----------------------------------------------------------------------------------------

# The process that a network learns to reverse.

TIMESTEPS = 1000
TIMESTEPS_SHOWN = f"{TIMESTEPS}, or the number of --betas"

LOG_SNR_SHIFT = "Shift the log-SNR of every timestep, for example by -1.386 for doubled image size."


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Options):
    """The forward process, and the network's target and variance.

    Attributes:
        num_timesteps: T. By default 1000, or the number of `betas`.
        schedule: None with `betas`.
        betas: the numbers, even if a file was given.
        rescale_timesteps: the network sees t * 1000 / T, the same scale for every T. A converted
            model may have seen t itself.

    Raises:
        UsageError: `num_timesteps` is not the number of `betas`.
    """

    num_timesteps: int = option.process.optional(
        "Timesteps T of the forward process.", low=2, high=100_000, shown=TIMESTEPS_SHOWN
    )
    schedule: str | None = option.process(
        "cosine", "Noise schedule.", table="core.schedules.SCHEDULES"
    )
    betas: tuple[float, ...] | None = option.process.optional(
        "Read the betas from a file.", parse=parsers.parse_betas
    )
    log_snr_shift: float = option.process(0.0, LOG_SNR_SHIFT, low=-10, high=10)
    zero_terminal_snr: bool = option.process(
        False, "Rescale the betas to end in pure noise (not with target eps)."
    )
    rescale_timesteps: bool = option.process(True, "Pass t * 1000 / T to the network instead of t.")
    target: str = option.process(
        "v", "Quantity that the network predicts.", table="core.parameterization.TARGETS"
    )
    variance: str = option.process(
        "small", "Variance of the reverse process.", table="core.parameterization.VARIANCES"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = TIMESTEPS if self.betas is None else len(self.betas)
        if self.num_timesteps is None:
            object.__setattr__(self, "num_timesteps", expected)
        if self.betas is not None:
            if self.num_timesteps != expected:
                text = (
                    f"--num-timesteps {self.num_timesteps} is not the number of --betas, {expected}"
                )
                raise UsageError(text, "Leave it out", code="options_conflict")
            object.__setattr__(self, "schedule", None)

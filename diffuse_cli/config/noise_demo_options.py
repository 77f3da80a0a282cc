"""Options of `noise-demo`."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import OVERWRITE, Options, argument, option
from diffuse_cli.config.parsers import Size, parse_color, parse_length, parse_names
from diffuse_cli.config.sample_options import WeightsConfig
from diffuse_cli.config.shared_options import BACKGROUND, LOG_SNR_SHIFT, TIMESTEPS_SHOWN


@dataclass(frozen=True, kw_only=True)
class ForwardConfig(Options):
    """The processes that are shown, and the size. A model has its own."""

    schedule: tuple[str, ...] | None = option.optional(
        "Noise schedule (repeatable).",
        table="core.schedules.SCHEDULES",
        parse=parse_names,
        shown="all",
    )
    betas: str | None = option.process.optional("Also show the betas in a file.", metavar="FILE")
    log_snr_shift: float = option.process(0.0, LOG_SNR_SHIFT, low=-10, high=10)
    zero_terminal_snr: bool = option.process(False, "Rescale the betas to end in pure noise.")
    num_timesteps: int | None = option.process.optional(
        "Timesteps T of the process.", low=2, high=100_000, shown=TIMESTEPS_SHOWN
    )
    size: Size | None = option.optional(
        "Size of the image.", parse=parse_length, shown="its own, at most 256, less in many rows"
    )
    layout: str | None = option.data.optional(
        "Axis order of an array, for example HWC.",
        table="media.OF_ARRAYS",
        shown="from its shape",
    )


@dataclass(frozen=True, kw_only=True)
class ReverseConfig(WeightsConfig):
    """Options for a model."""

    data: str | None = option.data.optional(
        "With --model: also show the nearest images of this folder or zip.", metavar="DATA"
    )
    label: str | None = option.conditioning.optional(
        "With --model: class to condition on.", flag="--class", metavar="NAME", shown="none"
    )
    given: str | None = option.conditioning.optional(
        "With --model: conditioning image, for a model trained on pairs.", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ForwardConfig, ReverseConfig):
    """The forward process of one image, as a picture. With a model also the reverse one."""

    image: str = argument("IMAGE", "Image, array or sound.")
    model: str | None = option.optional(
        "Also show how this model denoises the image, and how it samples.", metavar="MODEL"
    )
    steps: int = option(8, "Images in each row.", low=2, high=64)
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    background: str | None = option.data.optional(
        BACKGROUND, parse=parse_color, shown="the model's, or white"
    )
    fit: str | None = option.data.optional(
        "With --size or --model: crop, pad or stretch images of another shape.",
        table="media.FITS",
        shown="the model's, or crop",
    )
    out: str | None = option.optional(
        "Image file to write.", flag="-o", metavar="FILE", shown="NAME.noise-demo.png"
    )
    gif: bool = option(False, "Also write an animation.")
    open: bool = option.output(False, "Open the animation or image that was written.")
    overwrite: bool = option(False, OVERWRITE)

"""What `noise-demo` shows: the forward process of one image."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import OVERWRITE, Options, argument, option
from diffuse_cli.config.parsers import Size, parse_color, parse_length, parse_names
from diffuse_cli.config.sample_options import WeightsConfig
from diffuse_cli.config.shared_options import BACKGROUND, FIT, LOG_SNR_SHIFT, TIMESTEPS_SHOWN


@dataclass(frozen=True, kw_only=True)
class ForwardConfig(Options):
    """The processes that are shown, and the size; a model has its own."""

    schedule: tuple[str, ...] | None = option.optional(
        "Noise schedule. Repeat it to compare several.",
        table="core.schedules.SCHEDULES",
        parse=parse_names,
        shown="all of them",
    )
    betas: str | None = option.optional(
        "Also show the betas in a file.", place=True, metavar="FILE"
    )
    log_snr_shift: float = option(0.0, LOG_SNR_SHIFT, low=-10, high=10)
    zero_terminal_snr: bool = option(False, "Rescale the betas to end in pure noise.")
    num_timesteps: int | None = option.optional(
        "Timesteps T of the process.", low=2, high=100_000, shown=TIMESTEPS_SHOWN
    )
    size: Size | None = option.optional(
        "Size to show the image at.", parse=parse_length, shown="its own, at most 256"
    )


@dataclass(frozen=True, kw_only=True)
class ReverseConfig(WeightsConfig):
    """What is shown of a model."""

    data: str | None = option.optional(
        "With --model: also show the nearest images of this folder or zip.",
        place=True,
        metavar="DATA",
    )
    label: str | None = option.optional(
        "With --model: the class it is told.", flag="--class", metavar="NAME", shown="none"
    )
    given: str | None = option.optional(
        "With --model, one trained on pairs: the image that it is told.",
        place=True,
        metavar="FILE",
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ForwardConfig, ReverseConfig):
    """The forward process of one image, as a picture; with a model also the reverse one."""

    image: str = argument("IMAGE", "Image, array or sound.")
    model: str | None = option.optional(
        "Also show what this model makes of the image, and how it draws one.",
        place=True,
        metavar="MODEL",
    )
    steps: int = option(8, "Images in each row.", low=2, high=64)
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    background: str | None = option.optional(
        BACKGROUND, parse=parse_color, shown="the model's, or white"
    )
    fit: str | None = option.optional(
        f"With --size or --model. {FIT}", table="media.FITS", shown="crop"
    )
    out: str | None = option.optional(
        "Picture to write.", flag="-o", metavar="FILE", shown="NAME.noise-demo.png"
    )
    gif: bool = option(False, "Also write an animation.")
    html: bool = option(False, "Also write a page on which each picture can be played, of a sound.")
    open: bool = option(
        False, "Open what was written: the page of a sound, else the animation, else the picture."
    )
    overwrite: bool = option(False, OVERWRITE)

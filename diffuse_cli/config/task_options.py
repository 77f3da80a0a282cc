"""Options of `inpaint`, `upscale`, `restore`, `vary`, `interpolate` and `noise-demo`."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli.config import options, parsers, sample_options, shared_options
from diffuse_cli.config.options import Options, find_changed_flag, option
from diffuse_cli.core import DEGRADATIONS, RESTORATIONS
from diffuse_cli.core.degradations import parse
from diffuse_cli.system import UsageError, translate_errors

FORMS = ", ".join(kind.EXAMPLE for kind in DEGRADATIONS.entries.values())

TOLD = "given"
"""Method of a model that was trained for a degradation: it is conditioned on the input."""

METHOD, METHOD_OF_FLOATS = "pigdm", "mmps"
"""The method of any other model, and of one whose samples are floats, which are not clipped."""

ENCODING_STEPS = 100
"""Steps of `interpolate`, or as many as the process has."""

METHODS: Mapping[str, Any] = ChainMap(RESTORATIONS, {TOLD: None})


def is_degradation(text: str) -> bool:
    """Whether `--given` names a degradation, not a folder or a file."""
    return text.partition("+")[0].partition(":")[0] in DEGRADATIONS


def check_degradation(text: str, typed: bool) -> None:
    """Check a degradation of `--given`, and that a typed bare name has no other meaning.

    Raises:
        UsageError: the degradation is invalid, or a file or folder has the same name.
    """
    with translate_errors(lambda _: "--given"):
        spec = parse(text).text
    if typed and text in DEGRADATIONS and Path(text).exists():
        spec = f"{text}+noise:0" if spec == text else spec
        raise UsageError(
            f"--given {text} is a degradation, and a file or folder here has the same name",
            f"Pass --given ./{text} for the files, or --given {spec} for the degradation",
        )


@dataclass(frozen=True, kw_only=True)
class ImageTaskConfig(
    sample_options.ColumnsConfig, sample_options.DrawConfig, sample_options.WeightsConfig
):
    """Samples that start from an image."""

    model: str = option.model()
    image: str = option.argument("IMAGE", "Image, or folder or zip of images.")
    n: int = option(4, "Number of samples for each image.", low=1, high=100_000)
    out: str = option(flag="-o", help="Folder for the samples.", metavar="FOLDER", default="made")
    classes: tuple[str, ...] = option.repeat(sample_options.SampleConfig, "classes", shown="none")
    size: parsers.Size | None = option.optional(
        "Size of the samples, in overlapping windows if larger than the model's.",
        parse=parsers.parse_length,
        shown="the model's",
    )
    fit: str | None = option.data.optional(
        shared_options.FIT, table="media.FITS", shown="as in training"
    )
    grid: bool = option.output(True, "Write grid.png, with a row of samples for each image.")
    overwrite: bool = option.overwrite()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The paths of the images to read."""
        return (self.image,)


@dataclass(frozen=True, kw_only=True)
class ObservationConfig(ImageTaskConfig):
    """Samples that fit an observation."""

    method: str | None = option.optional(
        "Method: given conditions the model, ddnm needs no gradients, pigdm one, mmps four.",
        table="config.task_options.METHODS",
        shown=f"{TOLD} for a model trained for it, else {METHOD}, or {METHOD_OF_FLOATS} for floats",
    )
    jumps: int = option.sampling(
        1, "Passes over each tenth of the sampling path (RePaint).", low=1, high=1000
    )


@dataclass(frozen=True, kw_only=True)
class InpaintConfig(ObservationConfig):
    """The masked part of an image, filled."""

    mask: str | None = option.optional(
        "File of the same kind and size: white (1) to generate, black (0) to keep.",
        metavar="FILE",
        shown="the transparent area",
    )
    out: str = option("inpainted", "Folder for the samples.", flag="-o", metavar="FOLDER")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The paths of the images and of the mask to read."""
        return (self.image, *([self.mask] if self.mask else []))


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig(ObservationConfig):
    """An enlarged image."""

    factor: int = option(4, "Enlargement factor.", low=2, high=4096)
    size: parsers.Size | None = option.repeat(
        ImageTaskConfig, "size", shown="a single image's size times --factor, at least the model's"
    )
    out: str = option("upscaled", "Folder for the samples.", flag="-o", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(ObservationConfig):
    """A restored image.

    Raises:
        UsageError: no such degradation.
    """

    degradation: str = option(
        help=f"Degradation: {FORMS}, or blur:2+noise:0.05.", metavar="NAME[:X]"
    )
    degrade: bool = option.data(False, "Degrade IMAGE first, to try the command on a whole image.")
    out: str = option("restored", "Folder for the samples.", flag="-o", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        with translate_errors():
            parse(self.degradation)


@dataclass(frozen=True, kw_only=True)
class VaryConfig(ImageTaskConfig):
    """Variations of an image."""

    strength: float = option(
        0.6, "Strength: 0 hardly changes the image, 1 almost ignores it.", low=0, high=1
    )
    out: str = option("varied", "Folder for the samples.", flag="-o", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(
    sample_options.ColumnsConfig, sample_options.ComputeConfig, sample_options.WeightsConfig
):
    """Images between two images."""

    model: str = option.model()
    first: str = option.argument("A", "First image.")
    second: str = option.argument("B", "Last image.")
    n: int = option(9, "Number of images, including A and B.", low=2, high=100_000)
    steps: int | None = option.optional(
        "Steps from each image to its noise, and back.",
        low=1,
        high=sample_options.MOST_STEPS,
        shown=f"{ENCODING_STEPS}",
    )
    label: str | None = option.optional(
        "Class of the images, for a model with classes.",
        flag="--class",
        metavar="NAME",
        shown="none",
    )
    out: str = option("interpolated", "Folder for the images.", flag="-o", metavar="FOLDER")
    fit: str | None = option.repeat(ImageTaskConfig, "fit")
    grid: bool = option.output(True, "Write grid.png, all images in a row.")
    overwrite: bool = option.overwrite()
    precision: str = option.run(
        "fp32", "Floating-point precision (lower precisions may not reproduce A and B).",
        table="system.devices.PRECISIONS",
    )  # fmt: skip


# -- noise-demo -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForwardConfig(Options):
    """The processes that are shown, and the size. A model has its own."""

    schedule: tuple[str, ...] | None = option.optional(
        "Noise schedule (repeatable).",
        table="core.schedules.SCHEDULES",
        parse=parsers.parse_names,
        shown="all",
    )
    betas: str | None = option.process.optional("Also show the betas in a file.", metavar="FILE")
    log_snr_shift: float = option.process(0.0, shared_options.LOG_SNR_SHIFT, low=-10, high=10)
    zero_terminal_snr: bool = option.process(False, "Rescale the betas to end in pure noise.")
    num_timesteps: int | None = option.process.optional(
        "Timesteps T of the process.", low=2, high=100_000, shown=shared_options.TIMESTEPS_SHOWN
    )
    size: parsers.Size | None = option.optional(
        "Size of the image.",
        parse=parsers.parse_length,
        shown="its own, at most 256, less in many rows",
    )
    layout: str | None = option.data.optional(
        "Axis order of an array, for example HWC.",
        table="media.OF_ARRAYS",
        shown="from its shape",
    )


@dataclass(frozen=True, kw_only=True)
class ReverseConfig(sample_options.WeightsConfig):
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

    image: str = option.argument("IMAGE", "Image, array or sound.")
    model: str | None = option.optional(
        "Also show how this model denoises the image, and how it samples.", metavar="MODEL"
    )
    steps: int = option(8, "Images in each row.", low=2, high=64)
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    background: str | None = option.data.optional(
        shared_options.BACKGROUND, parse=parsers.parse_color, shown="the model's, or white"
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
    overwrite: bool = option.overwrite()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and (flag := find_changed_flag(self, ForwardConfig)):
            text, hint = f"{flag}: a model has its own", "Leave out --model, or this"
            raise UsageError(text, hint, code="options_conflict")
        if self.model is None and (flag := find_changed_flag(self, ReverseConfig)):
            raise options.needs_error(flag, "--model")
        if self.fit is not None and self.size is None and self.model is None:
            raise options.needs_error("--fit", "--size or --model")

"""What people do with a model: `inpaint`, `upscale`, `restore`, `vary`, `interpolate`."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffuse_cli.config.options import MODEL, OVERWRITE, argument, option
from diffuse_cli.config.parsers import Size, parse_names, parse_settings, parse_size
from diffuse_cli.config.sample_options import (
    MOST_STEPS,
    ON,
    ComputeConfig,
    DrawConfig,
    WeightsConfig,
)
from diffuse_cli.config.shared_options import FIT
from diffuse_cli.core.degradations import DEGRADATIONS, parse
from diffuse_cli.core.restoration import RESTORATIONS
from diffuse_cli.system.errors import translating

FORMS = ", ".join(kind.EXAMPLE for kind in DEGRADATIONS.own.values())

TOLD = "given"
"""The method of a model that was trained for a degradation: it is told what is seen."""

METHOD = "pigdm"
"""That of any other."""

ENCODING_STEPS = 100
"""Steps of `interpolate`, or as many as the process has."""

METHODS: Mapping[str, Any] = ChainMap(RESTORATIONS, {TOLD: None})


def is_degradation(text: str) -> bool:
    """Whether `--given` names a degradation, not a folder or a file."""
    return text.partition("+")[0].partition(":")[0] in DEGRADATIONS


@dataclass(frozen=True, kw_only=True)
class PictureConfig(DrawConfig, WeightsConfig):
    """Samples that begin with a picture."""

    model: str = argument("MODEL", MODEL)
    image: str = argument("IMAGE", "Image, or folder or zip of images.")
    n: int = option(4, "Number of samples for each image.", low=1, high=100_000)
    out: str = option(flag="-o", help="Folder for the samples.", metavar="FOLDER", default="made")
    classes: tuple[str, ...] = option(
        (),
        "Class to draw, for a model with classes. Repeat it to draw several in turn.",
        flag="--class",
        parse=parse_names,
        shown="no class",
    )
    on: tuple[str, ...] = option((), ON, parse=parse_settings, shown="nothing is told")
    size: Size | None = option.optional(
        "Size of the samples: the model's, or larger ones in overlapping windows.",
        parse=parse_size,
        shown="the model's",
    )
    fit: str | None = option.optional(FIT, table="media.FITS", shown="as in training")
    grid: bool = option.output(
        True, "Write grid.png: a row for each image, with its samples beside it."
    )
    overwrite: bool = option(False, OVERWRITE)


@dataclass(frozen=True, kw_only=True)
class RestoringConfig(PictureConfig):
    """Samples that fit an observation."""

    method: str | None = option.optional(
        "How samples are made to fit: given tells the model what is seen; ddnm needs no gradient, "
        "pigdm one a step, mmps four.",
        table="config.task_options.METHODS",
        shown=f"{TOLD} for a model trained for it, else {METHOD}",
    )
    jumps: int = option(
        1,
        "Take every tenth of the way this many times, going up again in between (RePaint).",
        low=1,
        high=1000,
    )


@dataclass(frozen=True, kw_only=True)
class InpaintConfig(RestoringConfig):
    """Part of a picture drawn anew."""

    mask: str | None = option.optional(
        "Image of the same size: white where to draw, black where to keep.",
        metavar="FILE",
        shown="draw what is transparent",
    )
    out: str = option("inpainted", "Folder for the samples.", flag="-o", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig(RestoringConfig):
    """A small picture made large."""

    factor: int = option(4, "How many times larger.", low=2, high=4096)
    size: Size | None = option.optional(
        "Size of the samples: the model's, or larger ones in overlapping windows.",
        parse=parse_size,
        shown="that of a single image times --factor, or the model's if that is more",
    )
    out: str = option("upscaled", "Folder for the samples.", flag="-o", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(RestoringConfig):
    """A degraded picture made whole.

    Raises:
        UsageError: no such degradation.
    """

    degradation: str = option(
        help=f"What was done to it, such as {FORMS}; with noise, blur:2+noise:0.05.",
        metavar="NAME[:X]",
    )
    degrade: bool = option(False, "IMAGE is whole: degrade it first.")
    out: str = option("restored", "Folder for the samples.", flag="-o", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        with translating():
            parse(self.degradation)


@dataclass(frozen=True, kw_only=True)
class VaryConfig(PictureConfig):
    """Variations of a picture."""

    strength: float = option(
        0.6, "How far: 0 hardly changes it, 1 hardly looks at it.", low=0, high=1
    )
    out: str = option("varied", "Folder for the samples.", flag="-o", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(ComputeConfig, WeightsConfig):
    """Pictures between two."""

    model: str = argument("MODEL", MODEL)
    first: str = argument("A", "Image to begin with.")
    second: str = argument("B", "Image to end with.")
    n: int = option(9, "Number of images, both ends among them.", low=2, high=100_000)
    steps: int | None = option.optional(
        "Steps to the noise of each image, and back.",
        low=1,
        high=MOST_STEPS,
        shown=f"{ENCODING_STEPS}",
    )
    label: str | None = option.optional(
        "Class of the images, for a model with classes.",
        flag="--class",
        metavar="NAME",
        shown="no class",
    )
    on: tuple[str, ...] = option(
        (),
        "What to tell of a column, for a model trained with --condition-on: age=40. Repeat it for "
        "other columns.",
        parse=parse_settings,
        shown="nothing is told",
    )
    out: str = option("interpolated", "Folder for the images.", flag="-o", metavar="FOLDER")
    fit: str | None = option.optional(FIT, table="media.FITS", shown="as in training")
    grid: bool = option.output(True, "Write grid.png, all images in a row.")
    overwrite: bool = option(False, OVERWRITE)
    precision: str = option.run(
        "fp32", "Precision of the arithmetic; others may not come back to the images.",
        table="system.devices.PRECISIONS",
    )  # fmt: skip

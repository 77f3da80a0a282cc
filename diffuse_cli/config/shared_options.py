"""How images are read, and what `info` is asked about them or about a model file."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import OVERWRITE, Config, argument, data_option, option
from diffuse_cli.config.parsers import Size, parse_color, parse_length

FIT = "Images of another shape: crop the centre, pad with the background, or stretch."
BACKGROUND = "Colour behind transparent images, and around padded ones."
LAYOUT = (
    "Axes of arrays in their order, C for channels, such as HWC; pages for images: those of a TIFF "
    "are its channels."
)
ALPHA = "Keep the transparency of images, as a channel."
BITS = "Bits of images, 8 or 16; others are scaled."
OWN_BITS = "16 if all images have them"
RATE = "Rate of sounds in Hz, to which others are resampled."
"""Help of --fit and others, which several commands have."""


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(Config):
    """How images are read."""

    strict: bool = data_option(
        False, "Stop at the first bad file instead of skipping it.", control=True
    )
    workers: int | None = data_option(
        None, "Threads that read images.", low=1, high=256, control=True, shown="all cores"
    )


@dataclass(frozen=True, kw_only=True)
class InfoConfig(ReadingConfig):
    """A set of images, or a model file, to describe."""

    path: str = argument(
        "PATH", "Images, arrays or sounds, as for train; a model file; or a run directory."
    )
    size: Size | None = data_option(
        None, "Image size, as for train.", parse=parse_length, shown="from the data"
    )
    background: str | None = data_option(None, BACKGROUND, parse=parse_color, shown="white")
    fit: str | None = data_option(None, FIT, table="media.FITS", shown="crop")
    layout: str | None = data_option(
        None, LAYOUT, table="media.shapes.LAYOUTS", shown="L, HW, CHW or CDHW, by their number"
    )
    alpha: bool = data_option(False, ALPHA)
    bits: int | None = data_option(None, BITS, low=8, high=16, shown=OWN_BITS)
    rate: int | None = data_option(
        None, RATE, low=1000, high=384_000, shown="the usual one in the data, at most 16000"
    )
    out: str | None = option(
        None,
        "Write a contact sheet: a sample of the images, a row for each class; with --toml, write "
        "the configuration.",
        flag="-o",
        metavar="FILE",
        shown="",
    )
    toml: bool = option(
        False,
        "Print the configuration of a model's training, which train reads with --config.",
        control=True,
    )
    overwrite: bool = option(False, OVERWRITE)

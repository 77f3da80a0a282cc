"""What is asked about a set of images or a model file."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.options import OVERWRITE, Config, option
from diffuse_cli.parsing import Size, parse_color, parse_size


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Config):
    """What is in a set of images, or in a model file."""

    path: str = option(
        help="Folder or zip of images, or a model file.",
        argument=True,
        place=True,
        metavar="PATH",
    )
    size: Size | None = option(
        None,
        "Image size, as for train.",
        parse=parse_size,
        metavar="H[xW]",
        shown="from the data",
    )
    background: str | None = option(
        None,
        "Colour behind transparent images.",
        parse=parse_color,
        metavar="COLOR",
        shown="white",
    )
    out: str | None = option(
        None,
        "Write a contact sheet: a sample of the images, a row for each class.",
        flag="-o",
        metavar="FILE.png",
        shown="",
    )
    overwrite: bool = option(False, OVERWRITE)
    strict: bool = option(False, "Stop at the first bad file instead of skipping it.", control=True)
    workers: int | None = option(
        None, "Threads that read images.", low=1, high=256, shown="all cores"
    )

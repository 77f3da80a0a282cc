"""A set of images: how training would see it, and what is wrong with it."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli import files, outputs, pictures
from diffuse_cli.config import InfoConfig
from diffuse_cli.data import Samples, Summary, read_images
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Progress, Work
from diffuse_cli.inspection import near, sheet
from diffuse_cli.inspection.copies import Copies, count_copies, exact_roots, near_copies

Flags = npt.NDArray[np.bool_]

MAP_OVER = 2**30
"""Bytes beyond which pixels are mapped from a temporary file."""

MEASURING = "measuring images"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each channel's values in 0 ... 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def scaled(self) -> Spread:
        """The same in [-1, 1], the network's range."""
        return Spread(
            tuple(mean / 127.5 - 1 for mean in self.mean), tuple(s / 127.5 for s in self.std)
        )


@dataclass(frozen=True)
class DataReport:
    """Facts about a set of images.

    Attributes:
        size: (height, width) after resizing.
        held_out: images that `train` would not train on.
        near_duplicates: among images that differ; None if they are too small to compare.
        blank: almost blank images, which are not compared.
        out: the contact sheet, if asked for.
    """

    path: str
    summary: Summary
    size: tuple[int, ...]
    held_out: int
    pixels: Spread
    duplicates: Copies
    near_duplicates: Copies | None
    blank: int
    fingerprint: str
    out: Path | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        height, width = self.size
        return {
            "kind": "data",
            "path": self.path,
            **self.summary.to_dict(),
            "size": {"height": height, "width": width},
            "held_out": self.held_out,
            "pixels": asdict(self.pixels),
            "pixels_scaled": asdict(self.pixels.scaled()),
            "duplicates": asdict(self.duplicates),
            "near_duplicates": self.near_duplicates and asdict(self.near_duplicates),
            "blank": self.blank,
            "fingerprint": self.fingerprint,
            "contact_sheet": str(self.out) if self.out else None,
        }


def inspect_data(config: InfoConfig) -> Work[DataReport]:
    """Read the images once and describe them. Yields `Progress` and `Notice`.

    Raises:
        DataError: no usable images.
        UsageError, OutputError: the contact sheet cannot be written.
    """
    out = _sheet_path(config)
    with tempfile.TemporaryDirectory(prefix="diffuse-info-") as folder:
        images = yield from read_images(
            config.path,
            size=config.size,
            background=config.background or "white",
            fit=config.fit or "crop",
            strict=config.strict,
            workers=config.workers,
            cache=Path(folder),
            map_over=MAP_OVER,
        )
        report = yield from _report(config, images, out)
        if out is not None:
            page = yield from sheet.draw(images)
            files.write_bytes(out, pictures.png(page))
        return report


def _sheet_path(config: InfoConfig) -> Path | None:
    """The path of the contact sheet, which must not become one of the images."""
    target, data = Path(config.out or "").resolve(), Path(config.path).resolve()
    if config.out is not None and data in (target, *target.parents):
        where = f"-o {files.show(config.out)} is in {files.show(config.path)}"
        raise UsageError(f"{where}, where it would be one of the images", "Write it elsewhere")
    return outputs.asked(config, "out", ".png")


def _report(config: InfoConfig, images: Samples, out: Path | None) -> Work[DataReport]:
    pixels, hashed, blank = yield from _measure(images)
    roots, everything = exact_roots(images), np.arange(len(images))
    similar = None
    if near.can_compare(images.stored):
        different = np.flatnonzero((roots == everything) & ~blank)
        similar = yield from near_copies(images, hashed, different)
    return DataReport(
        path=config.path,
        summary=images.summary,
        size=images.space.size,
        held_out=int(images.held_out.sum()),
        pixels=pixels,
        duplicates=count_copies(images, roots, everything),
        near_duplicates=similar,
        blank=int(blank.sum()),
        fingerprint=images.fingerprint,
        out=out,
    )


def _measure(images: Samples) -> Work[tuple[Spread, near.Hashes, Flags]]:
    """The spread of the values, each image's hash and whether it is blank, in one pass."""
    count = len(images)
    sums = [[0, 0] for _ in range(images.space.channels)]
    hashed, blank = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
    comparable = near.can_compare(images.stored)
    yield Progress(MEASURING, 0, count)
    for block in near.blocks(images.stored):
        part = images.stored[block]
        for channel, sums_of in enumerate(sums):
            values = part[:, channel]
            sums_of[0] += int(values.sum(dtype=np.uint64))
            sums_of[1] += int(np.square(values, dtype=np.uint16).sum(dtype=np.uint64))
        found = near.frequencies(part)
        blank[block] = near.are_blank(found, part)
        if comparable:
            hashed[block] = near.hashes(found)
        yield Progress(MEASURING, min(block.stop, count), count)
    return _spread(sums, count * math.prod(images.space.size)), hashed, blank


def _spread(sums: list[list[int]], count: int) -> Spread:
    """Mean and deviation from each channel's exact sum and sum of squares."""
    return Spread(
        mean=tuple(total / count for total, _ in sums),
        std=tuple(math.sqrt(squares * count - total**2) / count for total, squares in sums),
    )

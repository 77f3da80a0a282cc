"""What is done to each file: read, decoded once, named by its pixels, brought to its size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffuse_cli.data import reasons
from diffuse_cli.data.decoding import LARGE, Large, decode_with_mode, freely, one_large
from diffuse_cli.data.pixels import Pixels, Size, channels_first, digest, digest_of, fit
from diffuse_cli.data.reasons import Unusable
from diffuse_cli.data.sources import Entry, Source

LATER = "large"
"""Why a process of several leaves an image to the one that started it; no reason for people."""

DEFAULT_SIDE = 64
"""Images of one size up to this keep it; all others become squares of it."""


@dataclass
class Plan:
    """What every image becomes. `size` is None while all images so far have one small size.

    `shared`: other processes decode too, and none of them may take a large image.
    """

    source: Source
    size: Size | None
    channels: int | None
    background: tuple[int, ...] | int
    shared: bool = False


class Decoded(NamedTuple):
    """A usable image: `mode`, `size`, (width, height), and `colour` are those of the file."""

    entry: Entry
    pixels: Pixels
    digest: bytes
    mode: str
    size: Size
    colour: bool


class Skipped(NamedTuple):
    """A file without a usable image."""

    entry: Entry
    reason: str


Result = Decoded | Skipped


def decode_files(plan: Plan, entries: Iterable[Entry]) -> list[Result]:
    """The results in the order of `entries`. Whatever is wrong with a file is its result."""
    return [_decode_file(plan, entry) for entry in entries]


def _decode_file(plan: Plan, entry: Entry) -> Result:
    large = entry.size > LARGE
    try:
        if entry.fault:
            raise Unusable(entry.fault)
        if large and plan.shared:
            raise Large
        with one_large if large else freely:
            data = plan.source.read(entry)
            image, mode = decode_with_mode(data, plan.background, plan.shared)
            del data
        fitted = _fitted(image, plan)
        values = np.asarray(fitted)
        name = digest(values) if fitted is image else digest_of(image)
        colour = image.mode == "RGB"
        return Decoded(entry, channels_first(values), name, mode, image.size, colour)
    except Unusable as error:
        return Skipped(entry, error.reason)
    except Large:
        return Skipped(entry, LATER)
    except FileNotFoundError:
        return Skipped(entry, reasons.VANISHED)
    except MemoryError:
        return Skipped(entry, reasons.MEMORY)
    except Exception:
        return Skipped(entry, reasons.UNREADABLE)


def _fitted(image: Image.Image, plan: Plan) -> Image.Image:
    """The image with the channels and the size of the plan; the same where it has them."""
    mode = {1: "L", 3: "RGB", None: image.mode}[plan.channels]
    if image.mode != mode:
        image = image.convert(mode)
    size = plan.size
    if size is None and max(image.size) > DEFAULT_SIDE:
        size = (DEFAULT_SIDE, DEFAULT_SIDE)  # one such image decides it for all
    return image if size is None else fit(image, size)

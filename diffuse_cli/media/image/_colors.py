"""Embedded ICC profiles: from the colours of a file to sRGB.

A profile is parsed by LittleCMS, and tried on a few colours before it is used on an image.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from diffuse_cli.system.memory import raise_if_full

LARGEST = 2**22
"""Bytes of a profile. Those of printers have two million at most."""
KEPT = 16
"""Conversions that a process remembers; the photos of a set share a few profiles."""
NEAR = 2
"""A profile that changes no colour by more levels is sRGB, of which there are many versions."""

Conversion = Callable[[Image.Image], Image.Image]

_SOURCES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
"""Pillow's modes of the colour spaces in the header of a profile."""
_TAKEN = {"L": ("L", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}
"""The modes of profiles for images of a mode; grey images often have one of RGB."""


class BadProfile(Exception):
    """A profile that is damaged, or is not for its image."""


def to_srgb(profile: Any, mode: str) -> Conversion | None:
    """The conversion of images of `mode` (L, RGB or CMYK) with this profile; also of LA and RGBA.

    It gives L, RGB, LA or RGBA. None if the profile is sRGB.

    Raises:
        BadProfile
    """
    if not isinstance(profile, bytes) or len(profile) > LARGEST:
        raise BadProfile
    return _conversion(profile, mode)


@lru_cache(KEPT)
def _conversion(profile: bytes, mode: str) -> Conversion | None:
    source = _SOURCES.get(profile[16:20], "")
    if source not in _TAKEN[mode]:
        raise BadProfile
    try:
        _check_tables(profile)
        transform = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            source,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "L":
            ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            levels = transform.apply(ramp.convert(source)).getchannel("G")
            return _unless_near(ramp, levels, lambda image: image.point(levels.tobytes()))
        colours = _cube(mode)
        return _unless_near(colours, transform.apply(colours), transform.apply)
    except Exception as error:
        raise_if_full(error)
        raise BadProfile from error


def _check_tables(profile: bytes) -> None:
    """Refuse tables larger than the profile: LittleCMS allocates up to 512 MiB before it reads."""
    (count,) = struct.unpack_from(">I", profile, 128)
    for k in range(min(count, 100)):
        at, size = struct.unpack_from(">II", profile, 136 + 12 * k)
        tag = profile[at : at + size]
        entries = 0
        if tag[:4] in (b"mft1", b"mft2"):
            entries = tag[9] * tag[10] ** tag[8]
        elif tag[:4] in (b"mAB ", b"mBA "):
            (table,) = struct.unpack_from(">I", tag, 24)
            entries = tag[9] * math.prod(tag[table : table + tag[8]]) if table else 0
        if entries > len(profile) or tag[:4] == b"mpet":
            raise BadProfile


def _cube(mode: str) -> Image.Image:
    """Every combination of nine levels of each channel."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode)), -1)
    return Image.fromarray(grid.reshape(27, -1, len(mode)), mode)


def _unless_near(before: Image.Image, after: Image.Image, convert: Conversion) -> Conversion | None:
    """`convert` around an image's transparency, or None if it hardly changes a colour."""
    if before.mode == after.mode:
        changes = np.asarray(before, np.int16) - np.asarray(after, np.int16)
        if abs(changes).max() <= NEAR:
            return None

    def converted(image: Image.Image) -> Image.Image:
        if image.mode == before.mode:
            return convert(image)
        done = convert(image.convert(before.mode))
        done.putalpha(image.getchannel("A"))
        return done

    return converted

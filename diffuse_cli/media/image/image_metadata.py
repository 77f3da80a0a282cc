"""Read the header of an image file, and refuse bad files before anything is decoded."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import logging
import math
import operator
import re
import struct
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import (
    Image,
    ImageCms,
    ImageFile,
    TiffImagePlugin,
    UnidentifiedImageError,
    _imaging,
    features,
)

from diffuse_cli.media import Unusable
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system import raise_if_full

AVIF = ("AVIF",) if features.check("avif") else ()
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *AVIF)
_KNOWN = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EXTENSIONS = frozenset((*_KNOWN, *(f".{name.lower()}" for name in AVIF)))

_STARTS = rb"\x89PNG|\xff\xd8\xff|.{8}WEBP|GIF8|II\*\0|MM\0\*|BM"
_CUT = re.compile(_STARTS + (rb"|.{4}ftypavi[fs]" if AVIF else b""), re.DOTALL)
"""First bytes of files that Pillow opens if they are complete."""
_FOREIGN = re.compile(
    rb"%!PS|\xc5\xd0\xd3\xc6|%PDF|<svg|<\?xml|8BPS|\x00\x00\x01\x00|icns|qoif|DDS |v/1\x01|gimp xcf"
    rb"|\xd7\xcd\xc6\x9a|\xff\x0a|.{4}JXL |.{4}jP  |.{4}ftyp|P[1-7]",
    re.DOTALL,
)
"""First bytes of EPS, also with a preview, PDF, SVG, PSD, ICO, icons of macOS, QOI, DDS, OpenEXR,
XCF, WMF, JPEG XL, JPEG 2000, HEIC and netpbm."""

for _name in ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Png", "WebP"):
    # Pillow would import them from several threads at once.
    importlib.import_module(f"PIL.{_name}ImagePlugin")

_TILE, _ORIENTATION = (322, 323), 0x0112

_LONGEST = 2**20
"""Longest side, because each row takes memory in addition to its pixels."""
_LAYERS = 8
"""Number of times that strips and tiles may cover an image, once per channel."""
_SCANS = 64
"""Most scans of a progressive JPEG of the largest size. A smaller image may have more."""


@cache
def _silence_libtiff() -> None:
    """Remove libtiff's function that writes errors to stderr, if the library is found."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(_imaging.__file__)  # also finds the libraries that it is linked to
        library.TIFFSetErrorHandler(None)


def silence_pillow() -> None:
    """Keep Pillow's warnings off stderr. The summary reports unusable files."""
    _silence_libtiff()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def open_header(data: bytes) -> Image.Image:
    """Open the image in `data` by its header only.

    Raises:
        Unusable: the data are not an image of `FORMATS`, or a decompression bomb.
    """
    if not data:
        raise Unusable(reasons.EMPTY)
    with reasons.errors_as(reasons.CORRUPT):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if _is_bomb(image, data):
                raise Unusable(reasons.BOMB)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise Unusable(reasons.BOMB) from None
        except UnidentifiedImageError:
            if _CUT.match(data):
                raise Unusable(reasons.CORRUPT) from None
            foreign = _FOREIGN.match(data)
            raise Unusable(reasons.OTHER_FORMAT if foreign else reasons.NOT_AN_IMAGE) from None
    return image


def _is_bomb(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether an image is above Pillow's limit, or takes much work for a few bytes."""
    limit = Image.MAX_IMAGE_PIXELS or 2**63  # Pillow only warns up to twice its limit
    area = image.width * image.height
    return (
        pixels_at_once(image) > limit
        or max(image.size) > _LONGEST
        or (len(image.tile) > 1 and sum(_count_pixels(t[1]) for t in image.tile) > _LAYERS * area)
        or bool(image.info.get("progressive") and data.count(b"\xff\xda") * area > _SCANS * limit)
    )


def pixels_at_once(image: Image.Image) -> int:
    """Return the number of pixels decoded at once. A tile of a TIFF can exceed its image."""
    area = image.width * image.height
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return area
    width, height = (operator.index(image.tag_v2.get(tag, 0)) for tag in _TILE)
    return max(area, width * height)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 if it has none."""
    with contextlib.suppress(Exception):  # broken EXIF does not make the image unusable
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _count_pixels(extents: tuple[int, int, int, int] | None) -> int:
    """Return the number of pixels of a strip or tile."""
    left, top, right, bottom = extents or (0, 0, 0, 0)
    return (right - left) * (bottom - top)


# Embedded ICC profiles: convert the colors of a file to sRGB.
#
# LittleCMS parses a profile, and converts a few colors before it is used on an image.

LARGEST = 2**22
"""Largest profile, in bytes. Profiles of printers have at most two million."""
KEPT = 16
"""Number of conversions that a process keeps, because photos of a data set share few profiles."""
NEAR = 2
"""Levels within which a profile that changes colors counts as a version of sRGB."""

Conversion = Callable[[Image.Image], Image.Image]

_SOURCES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
"""Pillow's modes of the color spaces in the header of a profile."""
_TAKEN = {"L": ("L", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}
"""Modes of profiles for images of a mode. Grey images often have an RGB profile."""


class BadProfile(Exception):
    """Raised for a profile that is damaged or does not fit its image."""


def load_conversion(profile: Any, mode: str) -> Conversion | None:
    """Return the conversion of images of `mode` (L, RGB or CMYK) with this profile to sRGB.

    It also converts LA and RGBA, and returns L, RGB, LA or RGBA. None if the profile is sRGB.

    Raises:
        BadProfile: the profile cannot be used.
    """
    if not isinstance(profile, bytes) or len(profile) > LARGEST:
        raise BadProfile
    return _build_conversion(profile, mode)


@lru_cache(KEPT)
def _build_conversion(profile: bytes, mode: str) -> Conversion | None:
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
            return _wrap_conversion(ramp, levels, lambda image: image.point(levels.tobytes()))
        colors = _cube(mode)
        return _wrap_conversion(colors, transform.apply(colors), transform.apply)
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
    """Return an image of every combination of nine levels of each channel."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode)), -1)
    return Image.fromarray(grid.reshape(27, -1, len(mode)), mode)


def _wrap_conversion(old: Image.Image, new: Image.Image, convert: Conversion) -> Conversion | None:
    """Wrap `convert` to keep an image's transparency; None if it hardly changes a color."""
    if old.mode == new.mode:
        changes = np.asarray(old, np.int16) - np.asarray(new, np.int16)
        if abs(changes).max() <= NEAR:
            return None

    def converted(image: Image.Image) -> Image.Image:
        if image.mode == old.mode:
            return convert(image)
        srgb_image = convert(image.convert(old.mode))
        srgb_image.putalpha(image.getchannel("A"))
        return srgb_image

    return converted

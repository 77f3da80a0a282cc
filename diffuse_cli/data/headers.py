"""What a file says it is, before anything is decoded: its header, and what is refused by it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import operator
import warnings
from functools import cache

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    _imaging,
)

from diffuse_cli.data import reasons
from diffuse_cli.data.reasons import FORMATS, Unusable

# Imported here, as Pillow would otherwise import them from several threads at once.
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

_TILE = (322, 323)

_LONGEST = 2**20
"""More rows, each with memory of its own, take far more than their pixels do."""
_LAYERS = 8
"""Strips and tiles cover an image so many times at most: once for each of its channels."""
_SCANS = 64
"""A progressive JPEG goes at most so many times over as many pixels as an image may have."""


@cache
def _silence_libtiff() -> None:
    """Take away the function that writes its errors to stderr, where its library is found."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(_imaging.__file__)  # with those it was linked with
        library.TIFFSetErrorHandler(None)


def silence_pillow() -> None:
    """Keep what Pillow says of odd files off stderr; the summary tells of the unusable ones."""
    _silence_libtiff()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def open_header(data: bytes) -> Image.Image:
    """The image in `data` with its header read and nothing decoded.

    Raises:
        Unusable: no image of `FORMATS`, or a bomb.
    """
    if not data:
        raise Unusable(reasons.EMPTY)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _refuse_bombs(image, data)
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(reasons.BOMB) from None
    except UnidentifiedImageError:
        raise Unusable(reasons.reason_of(data)) from None
    except MemoryError:
        raise Unusable(reasons.MEMORY) from None
    except Exception:
        raise Unusable(reasons.CORRUPT) from None
    return image


def _refuse_bombs(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse more pixels than Pillow's limit, and much work that a few bytes ask for.

    Raises:
        Unusable: as said.
    """
    # Pillow only warns between once and twice its limit.
    most = Image.MAX_IMAGE_PIXELS or 2**63
    area = image.width * image.height
    if pixels_at_once(image) > most or max(image.size) > _LONGEST:
        raise Unusable(reasons.BOMB)
    if len(image.tile) > 1 and sum(_covered(tile[1]) for tile in image.tile) > _LAYERS * area:
        raise Unusable(reasons.BOMB)
    if image.info.get("progressive") and data.count(b"\xff\xda") * area > _SCANS * most:
        raise Unusable(reasons.BOMB)


def pixels_at_once(image: Image.Image) -> int:
    """How many pixels are decoded at once: a tile of a TIFF may be larger than its image."""
    area = image.width * image.height
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return area
    width, height = (operator.index(image.tag_v2.get(tag, 0)) for tag in _TILE)
    return max(area, width * height)


def _covered(extents: tuple[int, int, int, int] | None) -> int:
    """The pixels of a strip or tile."""
    left, top, right, bottom = extents or (0, 0, 0, 0)
    return (right - left) * (bottom - top)

"""The bytes of one image file to an L or RGB image, or the reason why not."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from diffuse_cli.media import LARGE, Large, freely, one_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import LARGEST_FILE, Unusable
from diffuse_cli.media.image.image_metadata import (
    AVIF,
    FORMATS,
    BadProfile,
    Conversion,
    failing_as,
    open_header,
    pixels_at_once,
    silence_pillow,
    to_srgb,
)
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import show

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258

_VALUES_AT_ONCE = 2**20

_FAINT = 8
"""Levels by which an image may differ from its background and still be blank."""

SRGB = object()
"""In the place of a profile: there is none."""


class Decoded(NamedTuple):
    """An image, upright and opaque, as L or RGB; the file's mode, and what is wrong with it.

    With `to_srgb` it is L, RGB or CMYK in the colours of the file's `profile`: converting it after
    it has become small takes a fraction of the time.
    """

    image: Image.Image
    mode: str
    remarks: tuple[str, ...]
    to_srgb: Conversion | None
    profile: bytes

    def in_srgb(self) -> Image.Image:
        """The image as L or RGB in sRGB."""
        return self.to_srgb(self.image) if self.to_srgb else self.image


def decode(file: Path | str | bytes, background: str = "white") -> Image.Image:
    """The first frame of an image file or of its bytes, upright and opaque, as L or RGB.

    Grey stays L; an ICC profile is converted to sRGB; transparency is composited on `background`;
    16 bits are scaled to 8.

    Raises:
        Unusable: with the reason.
        OSError: the file cannot be read.
    """
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    silence_pillow()
    return decoded(data, ImageColor.getcolor(background, "RGB")).in_srgb()


def decoded(data: bytes, background: tuple[int, ...] | int, shared: bool = False) -> Decoded:
    """`decode` bytes on an RGB background, but leave colours to be converted.

    Raises:
        Large: `shared`, and the image is to be decoded alone.
    """
    image = open_header(data)
    mode = image.mode
    # An AVIF of any size can hold frames of 2**28 pixels, which are decoded and then scaled.
    large = image.format in AVIF or pixels_at_once(image) > LARGE
    if large and shared:
        raise Large
    with one_large if large else freely:
        with failing_as(reasons.CORRUPT):
            image.load()
        with failing_as(reasons.PIXELS):
            turn, profile = orientation(image), image.info.get("icc_profile", SRGB)
            opaque, convert, remarks = _normalised(image, profile, background)
            if turn in _TURNS:
                opaque = opaque.transpose(_TURNS[turn])
            return Decoded(opaque, mode, remarks, convert, profile if convert else b"")


def orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # broken EXIF does not make the image unusable
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _normalised(
    image: Image.Image, profile: Any, background: tuple[int, ...] | int
) -> tuple[Image.Image, Conversion | None, tuple[str, ...]]:
    """The image as opaque L, RGB or CMYK, its conversion to sRGB, and what is wrong with it."""
    if image.mode in ("L", "RGB") and profile is SRGB and "transparency" not in image.info:
        return image, None, ()
    if image.mode.startswith("I"):
        image = scaled(image)
    elif image.mode == "F":
        raise Unusable(reasons.FLOATS)
    kind = "CMYK" if image.mode == "CMYK" else "L" if is_grey(image) else "RGB"
    convert, remarks = conversion(profile, kind)
    if image.has_transparency_data:
        opaque, blank = _composited(image, convert, background)
        return opaque, None, (*remarks, reasons.BLANK) if blank else remarks
    if kind == "CMYK" and convert is None:
        kind = "RGB"
    return image if image.mode == kind else image.convert(kind), convert, remarks


def conversion(profile: Any, kind: str) -> tuple[Conversion | None, tuple[str, ...]]:
    """How images of a kind become sRGB, and what is wrong with their profile."""
    if profile is SRGB:
        return None, ()
    try:
        return to_srgb(profile, kind), ()
    except BadProfile:
        return None, (reasons.PROFILE,)


def is_grey(image: Image.Image) -> bool:
    """Grey by its mode, or with a palette of greys, as GIF stores grey images."""
    if image.mode not in ("P", "PA"):
        return image.mode in ("1", "L", "LA", "La")
    palette = image.getpalette("RGB") or [0, 0, 1]
    return palette[::3] == palette[1::3] == palette[2::3]


def scaled(image: Image.Image) -> Image.Image:
    """Grey of up to 16 bits as L, or LA if one value is transparent, rounded to nearest."""
    bits = 16
    if tags := getattr(image, "tag_v2", None):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values: npt.NDArray[Any] = np.asarray(image)
    top = 2**bits - 1
    if bits > 16 or values.min() < 0 or values.max() > top:
        raise Unusable(reasons.PIXELS)
    levels = ((np.arange(top + 1) * 510 + top) // (2 * top)).astype(np.uint8)
    flat, grey = values.reshape(-1), np.empty(values.shape, np.uint8)
    for at in range(0, flat.size, _VALUES_AT_ONCE):
        part = slice(at, at + _VALUES_AT_ONCE)
        grey.reshape(-1)[part] = levels[flat[part]]
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = (values != image.info["transparency"]).astype(np.uint8) * np.uint8(255)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _composited(
    image: Image.Image, convert: Conversion | None, background: tuple[int, ...] | int
) -> tuple[Image.Image, bool]:
    """A transparent image on an RGB background, and whether nothing of it is left to see; grey on
    grey stays L."""
    red, green, blue = background if isinstance(background, tuple) else (background,) * 3
    grey = is_grey(image)
    image = straight(image)
    image = convert(image) if convert else image
    if grey and red == green == blue:
        below = Image.new("L", image.size, red)
    else:
        below = Image.new("RGB", image.size, (red, green, blue))
    below.paste(image, mask=image)
    return below, _varies(image.getchannel("A"), 0) and not _varies(below, _FAINT)


def straight(image: Image.Image) -> Image.Image:
    """An image as LA or RGBA."""
    mode = "LA" if is_grey(image) else "RGBA"
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "RGB" and "transparency" in image.info:
        image = _keyed(image)
    return image if image.mode == mode else image.convert(mode)


def _varies(image: Image.Image, most: int) -> bool:
    """Whether the levels of a channel differ by more than `most`."""
    bands = np.reshape(image.getextrema(), (-1, 2))
    return bool((bands[:, 1] - bands[:, 0]).max() > most)


def _keyed(image: Image.Image) -> Image.Image:
    """Scale the transparent colour of a 16-bit RGB file to 8 bits, as Pillow does its pixels."""
    key = image.info["transparency"]
    if isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(v >> 8 for v in key)
    return image


def read_image(path: Path | str, background: str = "white") -> tuple[Image.Image, tuple[str, ...]]:
    """One image file, as `decode` gives it, and what is wrong with it.

    Raises:
        DataError: there is no such file, or it is not a usable image.
    """
    path = Path(path)
    hint = f"Give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise Unusable("a folder" if stat.S_ISDIR(info.st_mode) else reasons.IRREGULAR)
        if info.st_size > LARGEST_FILE:
            raise Unusable(reasons.TOO_LARGE)
        silence_pillow()
        found = decoded(path.read_bytes(), ImageColor.getcolor(background, "RGB"))
        return found.in_srgb(), found.remarks
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such image: {show(path)}", hint) from None
    except Unusable as error:
        if error.reason == reasons.MEMORY:
            raise MemoryError from error
        raise DataError(f"cannot use {show(path)}: {error.reason}", hint) from error
    except OSError as error:
        raise DataError(f"cannot read {show(path)}: {error.strerror}", hint) from error
    except ValueError as error:
        raise DataError(f"cannot read {show(path)}: {error}", hint) from error

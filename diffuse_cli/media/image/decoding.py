"""The bytes of one image file as an L or RGB image or as planes, or the reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from diffuse_cli.media import LARGE, alone, failing_as
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable, read_needed
from diffuse_cli.media.image.full_depth import grey_levels, is_deep, planes
from diffuse_cli.media.image.image_metadata import (
    AVIF,
    FORMATS,
    BadProfile,
    Conversion,
    open_header,
    orientation,
    pixels_at_once,
    silence_pillow,
    to_srgb,
)
from diffuse_cli.media.image.planes import Planes, Size, laid, upright

_TURN = Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}

_MODES = {1: "I;16", 2: "LA;16", 3: "RGB;16", 4: "RGBA;16"}
"""Names of planes of 16 bits in the manner of Pillow, which has the first alone."""

_FAINT = 8
"""Levels by which an image may differ from its background and still be blank."""

SRGB = object()
"""In the place of a profile: there is none."""


class DecodedImage(NamedTuple):
    """An upright image.

    Attributes:
        image: L or RGB of 8 bits, opaque; with `to_srgb`, L, RGB or CMYK in the colours of the
            file's `profile`: converting it after it has become small takes a fraction of the time.
        planes: (C, H, W) in sRGB instead of the image: those of 16 bits, which Pillow does not
            have, and images with their alpha as the last plane.
        mode: Pillow's of the file.
        remarks: what is wrong with the image.
    """

    image: Image.Image | None
    planes: Planes | None
    mode: str
    remarks: tuple[str, ...]
    to_srgb: Conversion | None = None
    profile: bytes = b""

    def in_srgb(self) -> Image.Image:
        """The image as L or RGB in sRGB."""
        assert self.image is not None
        return self.to_srgb(self.image) if self.to_srgb else self.image


def decode(data: bytes, background: str = "white") -> Image.Image:
    """The first frame of the bytes of an image file, upright and opaque, as L or RGB.

    Grey stays L; an ICC profile is converted to sRGB; transparency is composited on `background`;
    16 bits are scaled to 8.

    Raises:
        Unusable: with the reason.
    """
    silence_pillow()
    return decoded(data, ImageColor.getrgb(background)[:3]).in_srgb()


def decoded(
    data: bytes, background: Size, shared: bool = False, *, alpha: bool = False, deep: bool = False
) -> DecodedImage:
    """Decode bytes, on an RGB background, but leave colours of 8 bits to be converted.

    LittleCMS converts 8 bits alone, in Pillow, so an image of 16 bits with the profile of another
    space than sRGB has 8.

    Args:
        alpha: give planes with the alpha as the last one, of opaque images too.
        deep: give planes of 16 bits where the file has 16.

    Raises:
        Unusable: with the reason.
        Large: `shared`, and the image is to be decoded alone.
    """
    image = open_header(data)
    mode = image.mode
    if deep := deep and is_deep(image, data):
        kind = "L" if mode.startswith("I") or data[25:26] == b"\x04" else "RGB"
        convert, remarks = _conversion(image.info.get("icc_profile", SRGB), kind)
        deep = convert is None
    # An AVIF of any size can hold frames of 2**28 pixels, which are decoded and then scaled.
    large = image.format in AVIF or pixels_at_once(image) > LARGE
    with alone(large, shared), failing_as(reasons.PIXELS):
        if deep:
            values = planes(image, data)
            mode = mode if mode.startswith("I") else _MODES[len(values)]
        else:
            with failing_as(reasons.CORRUPT):
                image.load()
            profile = image.info.get("icc_profile", SRGB)
            found, convert, remarks = _normalised(image, profile, background, alpha)
        turn = orientation(image)
        if not (deep or alpha):
            if turn in _TURNS:
                found = found.transpose(_TURNS[turn])
            return DecodedImage(found, None, mode, remarks, convert, profile if convert else b"")
        if not deep:
            values = np.asarray(found).transpose(2, 0, 1)
        if alpha and len(values) % 2:
            values = np.concatenate([values, np.full_like(values[:1], np.iinfo(values.dtype).max)])
        if len(values) % 2 == 0:
            values = laid(values, background) if alpha else laid(values, background)[:-1]
        return DecodedImage(None, np.ascontiguousarray(upright(values, turn)), mode, remarks)


def _normalised(
    image: Image.Image, profile: Any, background: Size, alpha: bool
) -> tuple[Image.Image, Conversion | None, tuple[str, ...]]:
    """The image as opaque L, RGB or CMYK, its conversion to sRGB, and what is wrong with it; with
    `alpha`, as LA or RGBA in sRGB."""
    simple = image.mode in ("L", "RGB") and profile is SRGB
    if simple and not alpha and "transparency" not in image.info:
        return image, None, ()
    if image.mode.startswith("I"):
        image = _shallow(image)
    elif image.mode == "F":
        raise Unusable(reasons.FLOATS)
    kind = "CMYK" if image.mode == "CMYK" else "L" if is_grey(image) else "RGB"
    convert, remarks = _conversion(profile, kind)
    if kind == "CMYK" and alpha:
        image, convert = (convert(image) if convert else image).convert("RGB"), None
    if alpha or image.has_transparency_data:
        found = _straight(image)
        found = convert(found) if convert else found
        if alpha:
            return found, None, remarks
        opaque, blank = _composited(found, kind == "L", background)
        return opaque, None, (*remarks, reasons.BLANK) if blank else remarks
    if kind == "CMYK" and convert is None:
        kind = "RGB"
    return image if image.mode == kind else image.convert(kind), convert, remarks


def _conversion(profile: Any, kind: str) -> tuple[Conversion | None, tuple[str, ...]]:
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


def _shallow(image: Image.Image) -> Image.Image:
    """Grey of up to 16 bits as L, or LA if one value is transparent, rounded to nearest."""
    grey = Image.fromarray(grey_levels(image, 255))
    if "transparency" not in image.info:
        return grey
    opaque = np.asarray(image) != image.info["transparency"]
    return Image.merge("LA", (grey, Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))))


def _composited(image: Image.Image, grey: bool, background: Size) -> tuple[Image.Image, bool]:
    """A transparent image on an RGB background, and whether nothing of it is left to see; grey on
    grey stays L."""
    plain = grey and len(set(background)) == 1
    mode, colour = ("L", background[:1]) if plain else ("RGB", background)
    below = Image.new(mode, image.size, colour)
    below.paste(image, mask=image)
    return below, _varies(image.getchannel("A"), 0) and not _varies(below, _FAINT)


def _straight(image: Image.Image) -> Image.Image:
    """An image as LA or RGBA."""
    mode = "LA" if is_grey(image) else "RGBA"
    if image.mode == "La":
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()  # a colour of 16 bits, scaled to 8 as Pillow does its pixels
        image.info["transparency"] = tuple(v >> 8 for v in key)
    return image if image.mode == mode else image.convert(mode)


def _varies(image: Image.Image, most: int) -> bool:
    """Whether the levels of a channel differ by more than `most`."""
    bands = np.reshape(image.getextrema(), (-1, 2))
    return bool((bands[:, 1] - bands[:, 0]).max() > most)


def read_image(path: Path | str, background: str = "white") -> tuple[Image.Image, tuple[str, ...]]:
    """One image file, as `decode` gives it, and what is wrong with it.

    Raises:
        DataError: there is no such file, or it is not a usable image.
    """
    hint = f"Give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    silence_pillow()
    with read_needed(Path(path), "image", hint) as data:
        found = decoded(data, ImageColor.getrgb(background)[:3])
        return found.in_srgb(), found.remarks

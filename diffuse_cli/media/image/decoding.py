"""Decode the bytes of an image file to an L or RGB image or to planes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from diffuse_cli.media import Array, Size, advice_for
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import LARGE, Unusable, errors_as, lock_large, read_required_file
from diffuse_cli.media.image.full_depth import grey_levels, is_deep, read_planes
from diffuse_cli.media.image.image_metadata import (
    AVIF,
    FORMATS,
    BadProfile,
    Conversion,
    load_conversion,
    open_header,
    orientation,
    pixels_at_once,
    silence_pillow,
)
from diffuse_cli.media.image.planes import composite_planes, turn_upright

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
"""Names of 16-bit planes in Pillow's style; Pillow itself has only the first."""

_FAINT = 8
"""Levels by which an image may differ from its background and still be blank."""

SRGB = object()
"""Placeholder for an image without a profile."""


class DecodedImage(NamedTuple):
    """Upright image.

    Attributes:
        image: an opaque image, 8-bit L or RGB. With `load_conversion`, it is L, RGB or CMYK in the
            colors of the file's `profile`, because the conversion is much faster after shrinking.
        planes: (C, H, W) in sRGB instead of the image, for 16 bits, which Pillow does not support,
            and for images with their alpha as the last plane.
        mode: Pillow's mode of the file.
        remarks: the flaws of the image.
    """

    image: Image.Image | None
    planes: Array | None
    mode: str
    remarks: tuple[str, ...]
    to_srgb: Conversion | None = None
    profile: bytes = b""

    def as_srgb(self) -> Image.Image:
        """Return the image as L or RGB in sRGB."""
        assert self.image is not None
        return self.to_srgb(self.image) if self.to_srgb else self.image


def decode_image(
    data: bytes, background: Size, *, alpha: bool = False, deep: bool = False
) -> DecodedImage:
    """Decode bytes on an RGB background, without converting 8-bit colors to sRGB.

    In Pillow, LittleCMS only converts 8 bits. So a 16-bit image whose profile is not sRGB is
    reduced to 8 bits.

    Args:
        alpha: return planes with the alpha last, for opaque images too.
        deep: return 16-bit planes if the file has 16 bits.

    Raises:
        Unusable: the file has no usable image.
    """
    image = open_header(data)
    mode, reduced = image.mode, False
    if deep := deep and is_deep(image, data):
        kind = "L" if mode.startswith("I") or data[25:26] == b"\x04" else "RGB"
        convert, remarks = _find_conversion(image.info.get("icc_profile", SRGB), kind)
        reduced = convert is not None
        deep = not reduced
    # A small AVIF can hold frames of 2**28 pixels, which are decoded and then scaled.
    large = image.format in AVIF or pixels_at_once(image) > LARGE
    with lock_large(large), errors_as(reasons.PIXELS):
        if deep:
            values = read_planes(image, data)
            mode = mode if mode.startswith("I") else _MODES[len(values)]
        else:
            with errors_as(reasons.CORRUPT):
                image.load()
            if image.format == "PNG":
                _scale_key(image, data[24])
            profile = image.info.get("icc_profile", SRGB)
            picture, convert, remarks = _normalize_image(image, profile, background, alpha)
            remarks = (*remarks, reasons.DEPTH) if reduced else remarks
        turn = orientation(image)
        if not (deep or alpha):
            if turn in _TURNS:
                picture = picture.transpose(_TURNS[turn])
            if reduced and mode.startswith("I"):  # not for planes, whose digests have the mode
                mode = "L"
            return DecodedImage(picture, None, mode, remarks, convert, profile if convert else b"")
        if not deep:
            values = np.asarray(picture).transpose(2, 0, 1)
        if alpha and len(values) % 2:
            values = np.concatenate([values, np.full_like(values[:1], np.iinfo(values.dtype).max)])
        if len(values) % 2 == 0:
            values = composite_planes(values, background)
            values = values if alpha else values[:-1]
        return DecodedImage(None, np.ascontiguousarray(turn_upright(values, turn)), mode, remarks)


def _normalize_image(
    image: Image.Image, profile: Any, background: Size, alpha: bool
) -> tuple[Image.Image, Conversion | None, tuple[str, ...]]:
    """Return the image as opaque L, RGB or CMYK, its conversion to sRGB, and its flaws.

    With `alpha`, return it as LA or RGBA in sRGB.
    """
    simple = image.mode in ("L", "RGB") and profile is SRGB
    if simple and not alpha and "transparency" not in image.info:
        return image, None, ()
    if image.mode.startswith("I"):
        image = _reduce_depth(image)
    elif image.mode == "F":
        raise Unusable(reasons.FLOATS)
    kind = "CMYK" if image.mode == "CMYK" else "L" if is_grey(image) else "RGB"
    convert, remarks = _find_conversion(profile, kind)
    if kind == "CMYK" and alpha:
        image, convert = (convert(image) if convert else image).convert("RGB"), None
    if alpha or image.has_transparency_data:
        image = _add_alpha(image)
        image = convert(image) if convert else image
        if alpha:
            return image, None, remarks
        opaque, blank = _composite_image(image, kind == "L", background)
        return opaque, None, (*remarks, reasons.BLANK) if blank else remarks
    if kind == "CMYK" and convert is None:
        kind = "RGB"
    return image if image.mode == kind else image.convert(kind), convert, remarks


def _find_conversion(profile: Any, kind: str) -> tuple[Conversion | None, tuple[str, ...]]:
    """Return the conversion of a kind of images to sRGB, and the flaws of their profile."""
    if profile is SRGB:
        return None, ()
    try:
        return load_conversion(profile, kind), ()
    except BadProfile:
        return None, (reasons.PROFILE,)


def is_grey(image: Image.Image) -> bool:
    """Whether an image is grey by its mode or its palette, as in GIF."""
    if image.mode not in ("P", "PA"):
        return image.mode in ("1", "L", "LA", "La")
    palette = image.getpalette("RGB") or [0, 0, 1]
    return palette[::3] == palette[1::3] == palette[2::3]


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Return grey of up to 16 bits as L, or LA if one value is transparent, rounded to nearest."""
    grey = Image.fromarray(grey_levels(image, 255))
    if "transparency" not in image.info:
        return grey
    opaque = np.asarray(image) != image.info["transparency"]
    return Image.merge("LA", (grey, Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))))


def _composite_image(image: Image.Image, grey: bool, background: Size) -> tuple[Image.Image, bool]:
    """Return a transparent image on an RGB background, and whether it is invisible there.

    Grey on grey stays L.
    """
    plain = grey and len(set(background)) == 1
    mode, color = ("L", background[:1]) if plain else ("RGB", background)
    below = Image.new(mode, image.size, color)
    below.paste(image, mask=image)
    return below, _varies(image.getchannel("A"), 0) and not _varies(below, _FAINT)


def _add_alpha(image: Image.Image) -> Image.Image:
    """Return an image as LA or RGBA."""
    mode = "LA" if is_grey(image) else "RGBA"
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == mode else image.convert(mode)


def _scale_key(image: Image.Image, depth: int) -> None:
    """Scale the transparent grey or color of a PNG to 8 bits: Pillow scales only the pixels."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(v >> 8 for v in key)
    elif image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * (255 // (2**depth - 1))


def _varies(image: Image.Image, tolerance: int) -> bool:
    """Whether the levels of a channel differ by more than `tolerance`."""
    bands = np.reshape(image.getextrema(), (-1, 2))
    return bool((bands[:, 1] - bands[:, 0]).max() > tolerance)


def read_image(path: Path | str, background: str = "white") -> tuple[Image.Image, tuple[str, ...]]:
    """Read the first frame of an image file, upright, opaque and in sRGB, and return its flaws.

    Grey stays L. Transparency is composited on `background`, and 16 bits are scaled to 8.

    Raises:
        DataError: the file does not exist, or is not a usable image.
    """
    usual = f"Pass a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    hint = advice_for(str(path)) or usual
    silence_pillow()
    with read_required_file(Path(path), "image", hint) as data:
        decoded = decode_image(data, ImageColor.getrgb(background)[:3])
        return decoded.as_srgb(), decoded.remarks

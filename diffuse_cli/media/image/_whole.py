"""The bytes of one image file to all that it has: its 16 bits, its transparency."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from diffuse_cli.media import LARGE, Large, freely, one_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.image.decoding import (
    SRGB,
    conversion,
    is_grey,
    orientation,
    scaled,
    straight,
)
from diffuse_cli.media.image.full_depth import is_deep, may_be_deep, planes
from diffuse_cli.media.image.image_metadata import AVIF, failing_as, open_header, pixels_at_once
from diffuse_cli.media.image.planes import Planes, laid, upright

_MODES = {1: "I;16", 2: "LA;16", 3: "RGB;16", 4: "RGBA;16"}
"""Names in the manner of Pillow, which has the first alone."""


class Whole(NamedTuple):
    """An image with all that it has: planes (C, H, W), upright, in sRGB and on a background; of 16
    bits if the file's are, and followed by its alpha if that was asked for."""

    planes: Planes
    mode: str
    remarks: tuple[str, ...]


def whole(
    data: bytes, background: tuple[int, ...], shared: bool = False, *, alpha: bool
) -> Whole | None:
    """The image with its 16 bits, and with its alpha if asked for; None for one that `decoded`
    has as well.

    LittleCMS converts 8 bits alone, in Pillow, so an image of 16 bits with the profile of another
    space than sRGB has 8.

    Raises:
        Unusable, Large: as `decoded`.
    """
    if not alpha and not may_be_deep(data):
        return None
    image = open_header(data)
    deep = is_deep(image, data)
    if deep:
        kind = "L" if image.mode.startswith("I") or data[25:26] == b"\x04" else "RGB"
        convert, remarks = conversion(image.info.get("icc_profile", SRGB), kind)
        deep = convert is None
    if not deep and not alpha:
        return None
    large = image.format in AVIF or pixels_at_once(image) > LARGE
    if large and shared:
        raise Large
    with one_large if large else freely, failing_as(reasons.PIXELS):
        mode = image.mode
        if deep:
            values = planes(image, data)
            mode = mode if mode.startswith("I") else _MODES[len(values)]
        else:
            with failing_as(reasons.CORRUPT):
                image.load()
            straight_image, remarks = _with_alpha(image)
            values = np.asarray(straight_image).transpose(2, 0, 1)
        if alpha and len(values) % 2:
            values = np.concatenate([values, np.full_like(values[:1], np.iinfo(values.dtype).max)])
        if len(values) % 2 == 0:
            values = laid(values, background) if alpha else laid(values, background)[:-1]
        turned = upright(values, orientation(image))
        return Whole(np.ascontiguousarray(turned), mode, remarks)


def _with_alpha(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """An image of 8 bits as LA or RGBA in sRGB, and what is wrong with it."""
    profile = image.info.get("icc_profile", SRGB)
    if image.mode.startswith("I"):
        image = scaled(image)
    elif image.mode == "F":
        raise Unusable(reasons.FLOATS)
    kind = "CMYK" if image.mode == "CMYK" else "L" if is_grey(image) else "RGB"
    convert, remarks = conversion(profile, kind)
    if kind == "CMYK":
        opaque = convert(image) if convert else image
        return opaque.convert("RGB").convert("RGBA"), remarks
    found = straight(image)
    return convert(found) if convert else found, remarks

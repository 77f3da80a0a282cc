"""Pixels of 16 bits. Pillow has them of grey alone; colour comes from libpng, in torchvision."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import LARGE, Array, Large, freely, one_large
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
from diffuse_cli.media.image.image_metadata import AVIF, failing_as, open_header, pixels_at_once
from diffuse_cli.media.image.planes import SIGNATURE, Planes, laid, rescaled, upright

_BITS_PER_SAMPLE = 258


_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def may_be_deep(data: bytes) -> bool:
    """Whether `is_deep` may be true of a file, by its first bytes."""
    return data[24:25] == b"\x10" if data.startswith(SIGNATURE) else data.startswith(_TIFFS)


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether `planes` reads the 16 bits of an image whose header is open."""
    return image.mode.startswith("I") or (image.format == "PNG" and data[24:25] == b"\x10")


def planes(image: Image.Image, data: bytes) -> Planes:
    """Levels of 16 bits (C, H, W), with a straight alpha last if C is 2 or 4.

    Numbers of fewer bits than 16 are scaled to 16.

    Raises:
        Unusable: damaged, or not of 16 bits.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        with failing_as(reasons.CORRUPT):
            image.load()
        values: npt.NDArray[Any] = np.asarray(image)[None]
        top = _top(image)
        if values.min() < 0 or values.max() > top:
            raise Unusable(reasons.PIXELS)
        opaque = None if key is None else values != key
        found = values.astype(np.uint16) if top == 65_535 else _widened(values, top)
    else:
        with failing_as(reasons.CORRUPT):
            found = _decoded(data)
        opaque = None
        if isinstance(key, tuple) and len(key) == len(found):
            opaque = (found != np.reshape(key, (-1, 1, 1))).any(0, keepdims=True)
    if opaque is None:
        return found
    return np.concatenate([found, opaque.astype(np.uint16) * np.uint16(65_535)])


def _top(image: Image.Image) -> int:
    """The highest number of grey of up to 16 bits."""
    bits = 16
    if tags := getattr(image, "tag_v2", None):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if bits > 16:
        raise Unusable(reasons.PIXELS)
    return int(2**bits - 1)


def _widened(values: Planes, top: int) -> Planes:
    """Numbers 0 ... top over 16 bits, rounded to nearest."""
    table = ((np.arange(top + 1) * (2 * 65_535) + top) // (2 * top)).astype(np.uint16)
    return table[values]


def _decoded(data: bytes) -> Planes:
    import torch
    from torchvision.io import ImageReadMode, decode_png

    bare = SIGNATURE + b"".join(_pixel_chunks(data))
    tensor = torch.frombuffer(bytearray(bare), dtype=torch.uint8)
    # uint16 of torch can do little, and int32 holds it.
    found: Planes = decode_png(tensor, ImageReadMode.UNCHANGED).int().numpy().astype(np.uint16)
    return found


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks with the header and the pixels: of others libpng warns on stderr."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        whole = data[at : at + 12 + length]
        if whole[4:8] in (b"IHDR", b"IDAT", b"IEND"):
            yield whole
        at += 12 + length


# -- whole ----------------------------------------------------------------------------------------

# The bytes of one image file to all that it has: its 16 bits, its transparency.

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


# -- pages ----------------------------------------------------------------------------------------

# TIFF stacks: the pages of a file as the channels of an image.


def stack(data: bytes, shared: bool = False) -> tuple[Planes, str]:
    """The pages of an image file as planes (C, H, W), and Pillow's mode of the first.

    All have the levels of the one with the most bits.

    Raises:
        Unusable: damaged, pages in colour, of several sizes, or too many.
        Large: too large to be read in a shared process.
    """
    image = open_header(data)
    count = getattr(image, "n_frames", 1)
    if count > MOST_CHANNELS:
        raise Unusable(reasons.MANY_PAGES)
    large = count * pixels_at_once(image) > LARGE
    if large and shared:
        raise Large
    with one_large if large else freely, failing_as(reasons.CORRUPT):
        mode, turn, pages = image.mode, orientation(image), []
        for k in range(count):
            image.seek(k)
            pages.append(_page(image, data))
    if len({page.shape for page in pages}) > 1:
        raise Unusable(reasons.PAGES)
    most = max((page.dtype for page in pages), key=lambda own: own.itemsize)
    return upright(np.concatenate([rescaled(page, most.name) for page in pages]), turn), mode


def _page(image: Image.Image, data: bytes) -> Planes:
    """One page, (1, H, W)."""
    if pixels_at_once(image) > (Image.MAX_IMAGE_PIXELS or 2**63):
        raise Unusable(reasons.BOMB)
    if image.mode.startswith("I"):
        return planes(image, data)[:1]
    if image.mode not in ("1", "L"):
        raise Unusable(reasons.PAGES)
    return np.asarray(image.convert("L"))[None]


def tiff(values: Planes) -> bytes:
    """Planes as the pages of a TIFF, compressed without loss."""
    first, *rest = (Image.fromarray(np.ascontiguousarray(plane)) for plane in values)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=rest, compression="tiff_deflate")
    return file.getvalue()


# -- floats ---------------------------------------------------------------------------------------

# TIFFs of 32-bit floats, which no screen shows: measurements, so arrays.

_CLASSIC_TIFFS = (b"II*\0", b"MM\0*")


def is_float(data: bytes) -> bool:
    """Whether a file is a TIFF of floats."""
    from diffuse_cli.media.image.image_metadata import open_header, silence_pillow

    if not data.startswith(_CLASSIC_TIFFS):
        return False
    silence_pillow()
    try:
        return open_header(data).mode == "F"
    except Unusable:
        return False


def floats_in(data: bytes, shared: bool = False) -> Array:
    """Return the numbers of such a file, float32 (H, W), or (C, H, W) if it has several pages.

    Raises:
        Unusable: damaged, pages of several sizes or kinds, too many or too large.
        Large: too large to be read in a shared process.
    """
    from diffuse_cli.media.image.image_metadata import failing_as, open_header, pixels_at_once

    image = open_header(data)
    count = getattr(image, "n_frames", 1)
    if count > MOST_CHANNELS:
        raise Unusable(reasons.MANY_PAGES)
    large = count * pixels_at_once(image) > LARGE
    if large and shared:
        raise Large
    kind, pages = (image.mode, image.size), list[Array]()
    with one_large if large else freely, failing_as(reasons.CORRUPT):
        for k in range(count):
            image.seek(k)
            if (image.mode, image.size) != kind:
                raise Unusable(reasons.PAGES)
            if pixels_at_once(image) > (Image.MAX_IMAGE_PIXELS or 2**63):
                raise Unusable(reasons.BOMB)
            pages.append(np.array(image))
    return pages[0] if count == 1 else np.stack(pages)

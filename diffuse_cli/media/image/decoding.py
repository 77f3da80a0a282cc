"""Decode the bytes of an image file to an L or RGB image, or to planes of 16 bits, pages or floats.

Pillow supports 16 bits only for grey, so color comes from libpng, in torchvision.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import Array, Size, Unusable, advice_for
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.image import image_metadata, planes
from diffuse_cli.media.image.image_metadata import Conversion

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

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0  # which Pillow inverts for up to 8 bits
_VALUES_AT_ONCE = 2**20
_CLASSIC_TIFFS = (b"II*\0", b"MM\0*")

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
    image = image_metadata.open_header(data)
    mode, reduced, cut = image.mode, False, deep and _is_cut(image)
    if deep := deep and is_deep(image, data):
        kind = "L" if mode.startswith("I") or data[25:26] == b"\x04" else "RGB"
        convert, remarks = _find_conversion(image.info.get("icc_profile", SRGB), kind)
        reduced = convert is not None
        deep = not reduced
    # A small AVIF can hold frames of 2**28 pixels, which are decoded and then scaled.
    avif = image.format in image_metadata.AVIF
    at_once = math.inf if avif else image_metadata.pixels_at_once(image)
    with reasons.lock_large(at_once), reasons.errors_as(reasons.PIXELS):
        if deep:
            values = read_planes(image, data)
            mode = mode if mode.startswith("I") else _MODES[len(values)]
        else:
            with reasons.errors_as(reasons.CORRUPT):
                image.load()
            if image.format == "PNG":
                _scale_key(image, data[24])
            profile = image.info.get("icc_profile", SRGB)
            picture, convert, remarks = _normalize_image(image, profile, background, alpha)
            remarks = (*remarks, *[reasons.DEPTH] * reduced, *[reasons.DEPTH_TIFF] * cut)
        turn = image_metadata.orientation(image)
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
            values = planes.composite_planes(values, background)
            values = values if alpha else values[:-1]
        upright = np.ascontiguousarray(planes.turn_upright(values, turn))
        return DecodedImage(None, upright, mode, remarks)


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
        return image_metadata.load_conversion(profile, kind), ()
    except image_metadata.BadProfile:
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


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether `read_planes` reads the 16 bits of an image whose header is open."""
    return image.mode.startswith("I") or (image.format == "PNG" and data[24:25] == b"\x10")


def _is_cut(image: Image.Image) -> bool:
    """Whether Pillow reads 8 of the 16 bits of a TIFF in color."""
    bits = _tiff_tags(image).get(_BITS_PER_SAMPLE, ())
    return len(bits) > 1 and max(bits) == 16


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF, none of another image."""
    return getattr(image, "tag_v2", None) or {}


def read_planes(image: Image.Image, data: bytes) -> Array:
    """Return 16-bit levels (C, H, W), with a straight alpha last if C is 2 or 4.

    Values of fewer bits are scaled to 16.

    Raises:
        Unusable: the image is damaged, or does not have 16 bits.
    """
    key, opaque = image.info.get("transparency"), None
    if image.mode.startswith("I"):
        with reasons.errors_as(reasons.CORRUPT):
            image.load()
        levels = grey_levels(image, 65_535)[None]
        if key is not None:
            opaque = np.asarray(image)[None] != key
    else:
        with reasons.errors_as(reasons.CORRUPT):
            levels = _png_planes(data)
        if isinstance(key, tuple) and len(key) == len(levels):
            opaque = (levels != np.reshape(key, (-1, 1, 1))).any(0, keepdims=True)
    if opaque is None:
        return levels
    return np.concatenate([levels, opaque.astype(np.uint16) * np.uint16(65_535)])


def grey_levels(image: Image.Image, max_level: int) -> Array:
    """Return grey of up to 16 bits as levels 0 ... `max_level`, (H, W), rounded to nearest.

    Raises:
        Unusable: values have more bits, or are below 0.
    """
    tags = _tiff_tags(image)
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values: Array = np.asarray(image)
    if bits > 16 or values.min() < 0 or values.max() >= 2**bits:
        raise Unusable(reasons.PIXELS)
    top = 2**bits - 1
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = top - values
    dtype = next(name for name, highest in planes.TOP.items() if highest == max_level)
    if top == max_level:
        return values.astype(dtype)
    table = ((np.arange(top + 1) * (2 * max_level) + top) // (2 * top)).astype(dtype)
    flat, levels = values.reshape(-1), np.empty(values.size, dtype)
    for at in range(0, flat.size, _VALUES_AT_ONCE):
        part = slice(at, at + _VALUES_AT_ONCE)
        levels[part] = table[flat[part]]
    return levels.reshape(values.shape)


def _png_planes(data: bytes) -> Array:
    import torch
    from torchvision.io import ImageReadMode, decode_png

    bare = planes.SIGNATURE + b"".join(_pixel_chunks(data))
    tensor = torch.frombuffer(bytearray(bare), dtype=torch.uint8)
    # torch supports few operations on uint16, and int32 holds it.
    levels: Array = decode_png(tensor, ImageReadMode.UNCHANGED).int().numpy().astype(np.uint16)
    return levels


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks with the header and the pixels. With others libpng warns on stderr."""
    at = len(planes.SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        whole = data[at : at + 12 + length]
        if whole[4:8] in (b"IHDR", b"IDAT", b"IEND"):
            yield whole
        at += 12 + length


def _pages(image: Image.Image, page: Callable[[Image.Image], Array]) -> list[Array]:
    """Read each page of an image, whose header is open, with the function `page`.

    Raises:
        Unusable: the image is damaged, or its pages are too many or too large.
    """
    with reasons.errors_as(reasons.CORRUPT):
        count = getattr(image, "n_frames", 1)
    if count > MOST_CHANNELS:
        raise Unusable(reasons.MANY_PAGES)
    pages = []
    at_once = count * image_metadata.pixels_at_once(image)
    with reasons.lock_large(at_once), reasons.errors_as(reasons.CORRUPT):
        for k in range(count):
            image.seek(k)
            if image_metadata.pixels_at_once(image) > (Image.MAX_IMAGE_PIXELS or 2**63):
                raise Unusable(reasons.BOMB)
            pages.append(page(image))
    if len({values.shape for values in pages}) > 1:
        raise Unusable(reasons.PAGES)
    return pages


def read_pages(data: bytes) -> tuple[Array, str]:
    """Return the pages of an image file as planes (C, H, W), and Pillow's mode of the first page.

    All planes get the levels of the page with the most bits.

    Raises:
        Unusable: the file is damaged, or has color pages, several sizes or too many pages.
    """
    image = image_metadata.open_header(data)
    mode = image.mode
    # Pillow turns each page of a TIFF itself.
    turn = 1 if image.format == "TIFF" else image_metadata.orientation(image)

    def levels(page: Image.Image) -> Array:
        if page.mode.startswith("I"):
            return read_planes(page, data)[:1]
        if page.mode not in ("1", "L"):
            raise Unusable(reasons.PAGES)
        return np.asarray(page.convert("L"))[None]

    pages = _pages(image, levels)
    dtype = max((page.dtype for page in pages), key=lambda dtype: dtype.itemsize)
    merged = np.concatenate([planes.rescale_levels(page, dtype.name) for page in pages])
    return planes.turn_upright(merged, turn), mode


def is_float(data: bytes) -> bool:
    """Whether a file is a TIFF of floats."""
    if not data.startswith(_CLASSIC_TIFFS):
        return False
    image_metadata.silence_pillow()
    try:
        return image_metadata.open_header(data).mode == "F"
    except Unusable:
        return False


def read_floats(data: bytes) -> Array:
    """Return the values of a TIFF of floats, float32 (H, W), or (C, H, W) if it has several pages.

    Raises:
        Unusable: the file is damaged, or its pages differ, are too many or too large.
    """
    image = image_metadata.open_header(data)
    kind = image.mode, image.size

    def numbers(page: Image.Image) -> Array:
        if (page.mode, page.size) != kind:
            raise Unusable(reasons.PAGES)
        return np.array(page)

    pages = _pages(image, numbers)
    return pages[0] if len(pages) == 1 else np.stack(pages)


def read_image(path: Path | str, background: str = "white") -> tuple[Image.Image, tuple[str, ...]]:
    """Read the first frame of an image file, upright, opaque and in sRGB, and return its flaws.

    Grey stays L. Transparency is composited on `background`, and 16 bits are scaled to 8.

    Raises:
        DataError: the file does not exist, or is not a usable image.
    """
    usual = f"Pass a {', '.join(image_metadata.FORMATS[:-1])} or {image_metadata.FORMATS[-1]} file"
    hint = advice_for(str(path)) or usual
    image_metadata.silence_pillow()
    with reasons.read_required_file(Path(path), "image", hint) as data:
        decoded = decode_image(data, ImageColor.getrgb(background)[:3])
        return decoded.as_srgb(), decoded.remarks

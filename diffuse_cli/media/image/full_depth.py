"""Pixels that Pillow's 8-bit images cannot hold: 16 bits, pages of TIFFs, and floats.

Pillow supports 16 bits only for grey, so color comes from libpng, in torchvision.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import Array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import LARGE, Unusable, errors_as, lock_large
from diffuse_cli.media.image.image_metadata import (
    open_header,
    orientation,
    pixels_at_once,
    silence_pillow,
)
from diffuse_cli.media.image.planes import SIGNATURE, TOP, rescale_levels, turn_upright

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0  # which Pillow inverts for up to 8 bits
_VALUES_AT_ONCE = 2**20


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether `read_planes` reads the 16 bits of an image whose header is open."""
    return image.mode.startswith("I") or (image.format == "PNG" and data[24:25] == b"\x10")


def read_planes(image: Image.Image, data: bytes) -> Array:
    """Return 16-bit levels (C, H, W), with a straight alpha last if C is 2 or 4.

    Values of fewer bits are scaled to 16.

    Raises:
        Unusable: the image is damaged, or does not have 16 bits.
    """
    key, opaque = image.info.get("transparency"), None
    if image.mode.startswith("I"):
        with errors_as(reasons.CORRUPT):
            image.load()
        planes = grey_levels(image, 65_535)[None]
        if key is not None:
            opaque = np.asarray(image)[None] != key
    else:
        with errors_as(reasons.CORRUPT):
            planes = _png_planes(data)
        if isinstance(key, tuple) and len(key) == len(planes):
            opaque = (planes != np.reshape(key, (-1, 1, 1))).any(0, keepdims=True)
    if opaque is None:
        return planes
    return np.concatenate([planes, opaque.astype(np.uint16) * np.uint16(65_535)])


def grey_levels(image: Image.Image, max_level: int) -> Array:
    """Return grey of up to 16 bits as levels 0 ... `max_level`, (H, W), rounded to nearest.

    Raises:
        Unusable: values have more bits, or are below 0.
    """
    tags = getattr(image, "tag_v2", None) or {}
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values: Array = np.asarray(image)
    if bits > 16 or values.min() < 0 or values.max() >= 2**bits:
        raise Unusable(reasons.PIXELS)
    top = 2**bits - 1
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = top - values
    dtype = next(name for name, highest in TOP.items() if highest == max_level)
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

    bare = SIGNATURE + b"".join(_pixel_chunks(data))
    tensor = torch.frombuffer(bytearray(bare), dtype=torch.uint8)
    # torch supports few operations on uint16, and int32 holds it.
    planes: Array = decode_png(tensor, ImageReadMode.UNCHANGED).int().numpy().astype(np.uint16)
    return planes


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks with the header and the pixels. With others libpng warns on stderr."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        whole = data[at : at + 12 + length]
        if whole[4:8] in (b"IHDR", b"IDAT", b"IEND"):
            yield whole
        at += 12 + length


# Pages of a TIFF as channels of an image, or of an array if they are 32-bit floats.

_CLASSIC_TIFFS = (b"II*\0", b"MM\0*")


def _pages(image: Image.Image, page: Callable[[Image.Image], Array]) -> list[Array]:
    """Read each page of an image, whose header is open, with the function `page`.

    Raises:
        Unusable: the image is damaged, or its pages are too many or too large.
    """
    with errors_as(reasons.CORRUPT):
        count = getattr(image, "n_frames", 1)
    if count > MOST_CHANNELS:
        raise Unusable(reasons.MANY_PAGES)
    pages = []
    with lock_large(count * pixels_at_once(image) > LARGE), errors_as(reasons.CORRUPT):
        for k in range(count):
            image.seek(k)
            if pixels_at_once(image) > (Image.MAX_IMAGE_PIXELS or 2**63):
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
    image = open_header(data)
    mode = image.mode
    turn = 1 if image.format == "TIFF" else orientation(image)  # Pillow turns each page itself

    def levels(page: Image.Image) -> Array:
        if page.mode.startswith("I"):
            return read_planes(page, data)[:1]
        if page.mode not in ("1", "L"):
            raise Unusable(reasons.PAGES)
        return np.asarray(page.convert("L"))[None]

    pages = _pages(image, levels)
    dtype = max((page.dtype for page in pages), key=lambda dtype: dtype.itemsize)
    merged = np.concatenate([rescale_levels(page, dtype.name) for page in pages])
    return turn_upright(merged, turn), mode


def encode_tiff(values: Array) -> bytes:
    """Encode planes as the pages of a TIFF, with lossless compression."""
    first, *next_pages = (Image.fromarray(np.ascontiguousarray(plane)) for plane in values)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=next_pages, compression="tiff_deflate")
    return file.getvalue()


def is_float(data: bytes) -> bool:
    """Whether a file is a TIFF of floats."""
    if not data.startswith(_CLASSIC_TIFFS):
        return False
    silence_pillow()
    try:
        return open_header(data).mode == "F"
    except Unusable:
        return False


def read_floats(data: bytes) -> Array:
    """Return the values of a TIFF of floats, float32 (H, W), or (C, H, W) if it has several pages.

    Raises:
        Unusable: the file is damaged, or its pages differ, are too many or too large.
    """
    image = open_header(data)
    kind = image.mode, image.size

    def numbers(page: Image.Image) -> Array:
        if (page.mode, page.size) != kind:
            raise Unusable(reasons.PAGES)
        return np.array(page)

    pages = _pages(image, numbers)
    return pages[0] if len(pages) == 1 else np.stack(pages)

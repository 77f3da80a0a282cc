"""Planes (C, H, W) of 8 or 16 bits: composite on a background, scale, and write as PNG.

Pillow has no 16-bit color, so planes are scaled one by one, as floats.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from xxhash import xxh3_128

from diffuse_cli.media import FITS, Array, Size, content_digest
from diffuse_cli.media.figures import Pixels

TOP = {"uint8": 255, "uint16": 65_535}
"""Highest level by type."""

_LUMA = np.array([0.299, 0.587, 0.114])

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Color types of PNG, by the number of planes."""


def turn_upright(values: Array, orientation: int) -> Array:
    """Turn planes upright by their EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    return values[:, ::-1] if orientation in (3, 4, 7, 8) else values


def rescale_levels(values: Array, numbers: str) -> Array:
    """Rescale levels of 8 or 16 bits to another type, rounded to nearest."""
    if values.dtype == numbers:  # looking up the type's name would take longest here
        return values
    top, new_top = TOP[values.dtype.name], TOP[numbers]
    if top == new_top:
        return values
    if top < new_top:
        return values.astype(np.uint16) * np.uint16(257)
    return ((values.astype(np.uint32) * new_top + top // 2) // top).astype(np.uint8)


def convert_channels(values: Array, channels: int, alpha: bool) -> Array:
    """Convert planes to a number of channels: grey three times, or Pillow's luma of color.

    With `alpha`, the last plane is the alpha, before and after.
    """
    colors, alpha_plane = (values[:-1], values[-1:]) if alpha else (values, values[:0])
    if len(values) == channels:
        return values
    if channels - alpha == 3:
        colors = np.repeat(colors, 3, 0)
    else:
        luma = np.tensordot(_LUMA, colors.astype(np.float64), 1)
        colors = np.rint(luma)[None].astype(values.dtype)
    return np.concatenate([colors, alpha_plane])


def scale_background(background: Size, values: Array) -> Array:
    """Return an RGB background in the levels of planes, float64 (3, 1, 1)."""
    top = TOP[values.dtype.name]
    return np.array(background, np.float64).reshape(3, 1, 1) * (top / 255)


def _split_alpha(values: Array, background: Size) -> tuple[Array, Array, Array]:
    """Return the colors of planes with an alpha last, their opacity, and a background."""
    opacity = values[-1:] / TOP[values.dtype.name]
    return values[:-1].astype(np.float64), opacity, scale_background(background, values)


def composite_planes(values: Array, background: Size) -> Array:
    """Composite planes with a straight alpha last on an RGB background. Grey on grey stays grey.

    The alpha stays the last plane.
    """
    colors, opacity, below = _split_alpha(values, background)
    below = below[:1] if len(colors) == len(set(background)) == 1 else below
    composite = np.floor(colors * opacity + below * (1 - opacity) + 0.5).astype(values.dtype)
    return np.concatenate([composite, values[-1:]])


def clamp_composite(values: Array, background: Size) -> Array:
    """Move the colors of planes to the nearest colors that `composite_planes` can produce."""
    colors, opacity, below = _split_alpha(values, background)
    lowest = convert_channels(below, len(colors), False) * (1 - opacity)
    nearest = np.clip(colors, np.floor(lowest + 0.5), np.floor(lowest + values[-1:] + 0.5))
    return np.concatenate([nearest.astype(values.dtype), values[-1:]])


def remove_background(values: Array, background: Size) -> Array:
    """Return planes with a straight alpha, the inverse of `composite_planes`.

    Transparent pixels get the background's color.
    """
    colors, opacity, below = _split_alpha(values, background)
    below = convert_channels(below, len(colors), False)
    straight = (colors - below * (1 - opacity)) / np.where(opacity > 0, opacity, 1)
    straight = np.where(opacity > 0, straight, below).clip(0, TOP[values.dtype.name])
    levels = np.rint(straight).astype(values.dtype)
    return np.concatenate([levels, values[-1:]])


def _plan_resize(image_size: Size, size: Size, fit: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return keywords of Pillow's `resize` for `image_size`, (width, height), and a corner.

    `FITS[fit]` selects the part of `size` (height, width) that the image is scaled to. The corner
    is that part's.
    """
    target_size = size[::-1]
    source_part, target_part = FITS[fit](image_size, target_size)
    left, top = (max(0.0, (a - b) / 2) for a, b in zip(image_size, source_part, strict=True))
    width, height = (max(1, round(side)) for side in target_part)
    keywords = {
        "size": (width, height),
        "resample": Image.Resampling.BICUBIC,
        "box": (left, top, image_size[0] - left, image_size[1] - top),
        "reducing_gap": REDUCING_GAP,
    }
    return keywords, ((target_size[0] - width) // 2, (target_size[1] - height) // 2)


def fit_planes(
    values: Array, size: Size, fit: str, fill: Sequence[float], *, nearest: bool = False
) -> Array:
    """Scale planes to `size` (height, width) with `FITS[fit]`, on a level `fill` for each plane.

    Args:
        nearest: whether each pixel is the nearest pixel of the planes, not a mean.
    """
    if values.shape[1:] == size:
        return values
    keywords, (x, y) = _plan_resize(values.shape[:0:-1], size, fit)
    keywords |= {"resample": Image.Resampling.NEAREST} if nearest else {}
    floats = (Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in values)
    scaled = np.stack([np.asarray(plane.resize(**keywords)) for plane in floats])
    levels: Array = np.rint(scaled.clip(0, TOP[values.dtype.name])).astype(values.dtype)
    if levels.shape[1:] == size:
        return levels
    page = np.empty((len(values), *size), values.dtype)
    page[:] = np.rint(np.reshape(fill, (-1, 1, 1)))
    page[:, y : y + levels.shape[1], x : x + levels.shape[2]] = levels
    return page


def encode_png(values: Array) -> bytes:
    """Encode planes, grey or RGB and alpha, of 8 or 16 bits as a PNG without metadata."""
    count, height, width = values.shape
    depth = 8 * values.dtype.itemsize
    lines = np.ascontiguousarray(values.transpose(1, 2, 0)).astype(f">u{depth // 8}")
    row_bytes = lines.view(np.uint8).reshape(height, -1)
    step = count * depth // 8
    differences = row_bytes.copy()
    differences[:, step:] -= row_bytes[:, :-step]
    filtered = np.concatenate([np.ones((height, 1), np.uint8), differences], 1)  # 1: Sub
    kind = _COLOR_TYPES[count]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(name, data) for name, data in parts)


def encode_tiff(values: Array) -> bytes:
    """Encode planes as the pages of a TIFF, with lossless compression."""
    first, *next_pages = (Image.fromarray(np.ascontiguousarray(plane)) for plane in values)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=next_pages, compression="tiff_deflate")
    return file.getvalue()


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# Hash and resize decoded images.

_BYTES_AT_ONCE = 2**18

REDUCING_GAP = 5.0
"""Factor of the new size to which an image that shrinks to a tenth or less is first averaged. This
is nine times as fast, and on average within half a level of the filter over all pixels."""


def pixel_digest(values: Pixels) -> bytes:
    """Return a 16-byte hash of the mode, size and pixels, (H, W) or (H, W, 3)."""
    height, width = values.shape[:2]
    return content_digest(f"{'L' if values.ndim == 2 else 'RGB'} {width}x{height}", values)


def image_digest(image: Image.Image) -> bytes:
    """Return the `pixel_digest` of an L or RGB image, computed in strips to save memory."""
    width, height = image.size
    hasher = xxh3_128(f"{image.mode} {width}x{height}\n".encode())
    rows = max(1, _BYTES_AT_ONCE // (width * len(image.mode)))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        hasher.update(strip.tobytes())
    return hasher.digest()


def fit_image(
    image: Image.Image,
    size: Size,
    fit: str = "crop",
    background: Size = (255, 255, 255),
    finish: Callable[[Image.Image], Image.Image] = lambda scaled: scaled,
) -> Image.Image:
    """Scale `image` to `size` (height, width) with `FITS[fit]`, on an RGB background.

    `finish` converts the scaled part before it is put on the background.
    """
    target_size = size[1], size[0]
    if image.size == target_size:
        return finish(image)
    keywords, corner = _plan_resize(image.size, size, fit)
    scaled = finish(image.resize(**keywords))
    if scaled.size == target_size:
        return scaled
    page = Image.new("RGB", target_size, background).convert(scaled.mode)
    page.paste(scaled, corner)
    return page


def channels_first(values: Pixels) -> Pixels:
    """Return (H, W) or (H, W, 3) as (C, H, W)."""
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def to_pixels(image: Image.Image) -> Pixels:
    """Return an L or RGB image as uint8 (C, H, W)."""
    return channels_first(np.asarray(image))

"""Images as planes (C, H, W) of 8 or 16 bits: laid on a background, scaled, and written as PNG.

Pillow has no colour of 16 bits, so planes are scaled one by one, as floats.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from xxhash import xxh3_128

from diffuse_cli.media import content_digest
from diffuse_cli.media.shapes import FITS

Planes = npt.NDArray[Any]
Size = tuple[int, ...]

TOP = {"uint8": 255, "uint16": 65_535}
"""The highest level of numbers of a type."""

_LUMA = np.array([0.299, 0.587, 0.114])

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Of PNG, by the number of planes."""


def upright(values: Planes, orientation: int) -> Planes:
    """Planes turned as an EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    return values[:, ::-1] if orientation in (3, 4, 7, 8) else values


def rescaled(values: Planes, numbers: str) -> Planes:
    """Levels of 8 or 16 bits as those of another type, rounded to nearest."""
    if values.dtype == numbers:  # its name takes longer than all else here
        return values
    own, top = TOP[values.dtype.name], TOP[numbers]
    if own == top:
        return values
    if own < top:
        return values.astype(np.uint16) * np.uint16(257)
    return ((values.astype(np.uint32) * top + own // 2) // own).astype(np.uint8)


def with_channels(values: Planes, channels: int, alpha: bool) -> Planes:
    """Planes of so many channels: grey thrice, or the luma of colour, as Pillow has it; `alpha` is
    the last one of both."""
    colours, rest = (values[:-1], values[-1:]) if alpha else (values, values[:0])
    if len(values) == channels:
        return values
    if channels - alpha == 3:
        colours = np.repeat(colours, 3, 0)
    else:
        luma = np.tensordot(_LUMA, colours.astype(np.float64), 1)
        colours = np.rint(luma)[None].astype(values.dtype)
    return np.concatenate([colours, rest])


# -- transparency ----------------------------------------------------------------------------------


def shade(background: Size, values: Planes) -> Planes:
    """An RGB background in the levels of planes, float64 (3, 1, 1)."""
    top = TOP[values.dtype.name]
    return np.array(background, np.float64).reshape(3, 1, 1) * (top / 255)


def _apart(values: Planes, background: Size) -> tuple[Planes, Planes, Planes]:
    """The colours of planes with an alpha last, the opaque part of each pixel, and a background."""
    share = values[-1:] / TOP[values.dtype.name]
    return values[:-1].astype(np.float64), share, shade(background, values)


def laid(values: Planes, background: Size) -> Planes:
    """Planes with a straight alpha last, on an RGB background: grey on grey stays grey.

    The alpha comes after them, as it was.
    """
    colours, share, below = _apart(values, background)
    below = below[:1] if len(colours) == len(set(background)) == 1 else below
    done = np.floor(colours * share + below * (1 - share) + 0.5).astype(values.dtype)
    return np.concatenate([done, values[-1:]])


def possible(values: Planes, background: Size) -> Planes:
    """Planes as `laid` makes them: colours that no colour on this background gives are moved to the
    nearest that one does."""
    colours, share, below = _apart(values, background)
    least = below[: len(colours)] * (1 - share)
    kept = np.clip(colours, np.floor(least + 0.5), np.floor(least + values[-1:] + 0.5))
    return np.concatenate([kept.astype(values.dtype), values[-1:]])


def lifted(values: Planes, background: Size) -> Planes:
    """The planes with a straight alpha that `laid` gives these; transparent pixels have the
    background's colour."""
    colours, share, below = _apart(values, background)
    below = below[: len(colours)]
    straight = (colours - below * (1 - share)) / np.where(share > 0, share, 1)
    straight = np.where(share > 0, straight, below).clip(0, TOP[values.dtype.name])
    done = np.rint(straight).astype(values.dtype)
    return np.concatenate([done, values[-1:]])


# -- scaling and writing ---------------------------------------------------------------------------


def _placed(own: Size, size: Size, fit: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return how an image of `own` (width, height) is scaled to a part of `size` (height, width) as
    `FITS[fit]` says, as keywords of Pillow's `resize`, and the corner of that part."""
    wanted = size[::-1]
    taken, filled = FITS[fit](own, wanted)
    left, top = (max(0.0, (a - b) / 2) for a, b in zip(own, taken, strict=True))
    width, height = (max(1, round(side)) for side in filled)
    keywords = {
        "size": (width, height),
        "resample": Image.Resampling.BICUBIC,
        "box": (left, top, own[0] - left, own[1] - top),
        "reducing_gap": REDUCING_GAP,
    }
    return keywords, ((wanted[0] - width) // 2, (wanted[1] - height) // 2)


def fit_planes(values: Planes, size: Size, fit: str, fill: Sequence[float]) -> Planes:
    """Planes scaled to `size` (height, width) as `FITS[fit]` says, on one level for each plane."""
    if values.shape[1:] == size:
        return values
    keywords, (x, y) = _placed(values.shape[:0:-1], size, fit)
    floats = (Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in values)
    scaled = np.stack([np.asarray(plane.resize(**keywords)) for plane in floats])
    done: Planes = np.rint(scaled.clip(0, TOP[values.dtype.name])).astype(values.dtype)
    if done.shape[1:] == size:
        return done
    page = np.empty((len(values), *size), values.dtype)
    page[:] = np.rint(np.reshape(fill, (-1, 1, 1)))
    page[:, y : y + done.shape[1], x : x + done.shape[2]] = done
    return page


def png(values: Planes) -> bytes:
    """One to four planes of 8 or 16 bits as a PNG without metadata: grey, or RGB, and alpha."""
    count, height, width = values.shape
    depth = 8 * values.dtype.itemsize
    lines = np.ascontiguousarray(values.transpose(1, 2, 0)).astype(f">u{depth // 8}")
    own = lines.view(np.uint8).reshape(height, -1)
    step = count * depth // 8
    apart = own.copy()
    apart[:, step:] -= own[:, :-step]
    filtered = np.concatenate([np.ones((height, 1), np.uint8), apart], 1)  # 1: Sub
    kind = _COLOUR_TYPES[count]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(name, data) for name, data in parts)


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# -- pixels ---------------------------------------------------------------------------------------

# Decoded images as arrays, hashed and resized.

Pixels = npt.NDArray[np.uint8]


_BYTES_AT_ONCE = 2**18

REDUCING_GAP = 5.0
"""An image that shrinks to a tenth or less is first averaged to about five times its new size: nine
times as fast, and on average within half a level of the filter over all pixels."""


def digest(values: Pixels) -> bytes:
    """A 16-byte hash of the mode, size and pixels, (H, W) or (H, W, 3)."""
    height, width = values.shape[:2]
    return content_digest(f"{'L' if values.ndim == 2 else 'RGB'} {width}x{height}", values)


def digest_of(image: Image.Image) -> bytes:
    """The `digest` of an L or RGB image, in strips to save memory."""
    width, height = image.size
    found = xxh3_128(f"{image.mode} {width}x{height}\n".encode())
    rows = max(1, _BYTES_AT_ONCE // (width * len(image.mode)))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        found.update(strip.tobytes())
    return found.digest()


def fit_image(
    image: Image.Image,
    size: Size,
    fit: str = "crop",
    background: Size = (255, 255, 255),
    finish: Callable[[Image.Image], Image.Image] = lambda scaled: scaled,
) -> Image.Image:
    """`image` scaled to `size` (height, width) as `FITS[fit]` says, finished, and put on an RGB
    background."""
    wanted = size[1], size[0]
    if image.size == wanted:
        return finish(image)
    keywords, corner = _placed(image.size, size, fit)
    done = finish(image.resize(**keywords))
    if done.size == wanted:
        return done
    page = Image.new("RGB", wanted, background).convert(done.mode)
    page.paste(done, corner)
    return page


def channels_first(values: Pixels) -> Pixels:
    """(H, W) or (H, W, 3) as (C, H, W)."""
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def to_pixels(image: Image.Image) -> Pixels:
    """An L or RGB image as uint8 (C, H, W)."""
    return channels_first(np.asarray(image))

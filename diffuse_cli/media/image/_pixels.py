"""Decoded images as arrays, hashed and resized."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from xxhash import xxh3_128

from diffuse_cli.media._fitting import FITS

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, ...]

_BYTES_AT_ONCE = 2**18

REDUCING_GAP = 5.0
"""An image that shrinks to a tenth or less is first averaged to about five times its new size: nine
times as fast, and on average within half a level of the filter over all pixels."""


def digest(values: Pixels) -> bytes:
    """A 16-byte hash of the mode, size and pixels, (H, W) or (H, W, 3).

    XXH3 takes a fiftieth of the time of decoding, a cryptographic hash half of it; that would
    protect only against the user's own images.
    """
    height, width = values.shape[:2]
    found = _begun("L" if values.ndim == 2 else "RGB", width, height)
    found.update(np.ascontiguousarray(values).data)
    return found.digest()


def digest_of(image: Image.Image) -> bytes:
    """The `digest` of an L or RGB image, in strips to save memory."""
    width, height = image.size
    found = _begun(image.mode, width, height)
    rows = max(1, _BYTES_AT_ONCE // (width * len(image.mode)))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        found.update(strip.tobytes())
    return found.digest()


def _begun(mode: str, width: int, height: int) -> xxh3_128:
    return xxh3_128(f"{mode} {width}x{height}\n".encode())


def fitted(
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
    taken, filled = FITS[fit](image.size, wanted)
    left, top = (max(0.0, (own - part) / 2) for own, part in zip(image.size, taken, strict=True))
    width, height = (max(1, round(side)) for side in filled)
    scaled = image.resize(
        (width, height),
        Image.Resampling.BICUBIC,
        box=(left, top, image.width - left, image.height - top),
        reducing_gap=REDUCING_GAP,
    )
    done = finish(scaled)
    if done.size == wanted:
        return done
    page = Image.new("RGB", wanted, background).convert(done.mode)
    page.paste(done, ((wanted[0] - width) // 2, (wanted[1] - height) // 2))
    return page


def channels_first(values: Pixels) -> Pixels:
    """(H, W) or (H, W, 3) as (C, H, W)."""
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def to_pixels(image: Image.Image) -> Pixels:
    """An L or RGB image as uint8 (C, H, W)."""
    return channels_first(np.asarray(image))

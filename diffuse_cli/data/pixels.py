"""Decoded images as arrays: named by a hash, brought to a size."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]


def digest(image: Image.Image) -> bytes:
    """16 bytes that name the decoded pixels, with mode and size, whatever the file around them."""
    found = blake2b(f"{image.mode} {image.width}x{image.height}\n".encode(), digest_size=16)
    found.update(image.tobytes())
    return found.digest()


def fit(image: Image.Image, size: Size) -> Image.Image:
    """`image` at `size` (height, width): scaled to cover it, then cropped around the centre.

    An image of that size is returned as it is.
    """
    height, width = size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image) -> Pixels:
    """An L or RGB image as uint8 (C, H, W)."""
    pixels: Pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def to_image(pixels: Pixels) -> Image.Image:
    """uint8 (1 or 3, H, W) as an L or RGB image."""
    if len(pixels) == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[0]))
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))

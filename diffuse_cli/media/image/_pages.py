"""TIFF stacks: the pages of a file as the channels of an image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import LARGE, Large, freely, one_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.image.decoding import orientation
from diffuse_cli.media.image.full_depth import planes
from diffuse_cli.media.image.image_metadata import failing_as, open_header, pixels_at_once
from diffuse_cli.media.image.planes import Planes, rescaled, upright


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

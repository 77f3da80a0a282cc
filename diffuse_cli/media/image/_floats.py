"""TIFFs of 32-bit floats, which no screen shows: measurements, so arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import LARGE, Array, Large, freely, one_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable

_TIFFS = (b"II*\0", b"MM\0*")


def is_float(data: bytes) -> bool:
    """Whether a file is a TIFF of floats."""
    from diffuse_cli.media.image.image_metadata import open_header, silence_pillow

    if not data.startswith(_TIFFS):
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

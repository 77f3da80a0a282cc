"""TIFFs of 32-bit floats, which no screen shows: measurements, so arrays."""

from __future__ import annotations

import numpy as np

from diffuse_cli import unusable as reasons
from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import Array
from diffuse_cli.unusable import Unusable

_TIFFS = (b"II*\0", b"MM\0*")


def is_float(data: bytes) -> bool:
    """Whether a file is a TIFF of floats."""
    from diffuse_cli.media._headers import open_header, silence_pillow

    if not data.startswith(_TIFFS):
        return False
    silence_pillow()
    try:
        return open_header(data).mode == "F"
    except Unusable:
        return False


def floats_in(data: bytes) -> Array:
    """The numbers of such a file, float32 (H, W), or (C, H, W) if it has several pages.

    Raises:
        Unusable: damaged, pages of several sizes or kinds, or too many.
    """
    from diffuse_cli.media._headers import failing_as, open_header

    image = open_header(data)
    count = getattr(image, "n_frames", 1)
    if count > MOST_CHANNELS:
        raise Unusable(reasons.MANY_PAGES)
    pages = list[Array]()
    with failing_as(reasons.CORRUPT):
        for k in range(count):
            image.seek(k)
            pages.append(np.array(image))
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise Unusable(reasons.PAGES)
    return pages[0] if count == 1 else np.stack(pages)

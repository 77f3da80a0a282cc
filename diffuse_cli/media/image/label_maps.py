"""Label maps: images whose pixels are labels of classes, for example of a segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.media import Array, Unusable
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.image import image_metadata, planes
from diffuse_cli.media.image.decoding import is_grey

INDEXED = "P"
"""Mode of a map whose labels are the indices of a palette of colors."""


def read_labels(data: bytes) -> tuple[Array, str]:
    """Return the labels in an image file, uint8 (1, H, W), and Pillow's mode.

    Labels are the indices of a palette of colors, or else grey levels, without scaling 16 bits. A
    grey palette has the mode L.

    Raises:
        Unusable: the file is damaged, or has colors without a palette, or labels above 255.
    """
    image = image_metadata.open_header(data)
    at_once = image_metadata.pixels_at_once(image)
    with reasons.lock_large(at_once), reasons.errors_as(reasons.CORRUPT):
        image.load()
        turn = image_metadata.orientation(image)
        if image.mode == "1" or (image.mode == INDEXED and is_grey(image)):
            image = image.convert("L")
        pixels: npt.NDArray[Any] = np.atleast_3d(np.asarray(image))
    labels, colors = pixels[..., :1], pixels[..., : 3 if pixels.shape[2] > 2 else 1]
    usable = pixels.dtype.kind != "f" and labels.min() >= 0 and labels.max() <= 255
    if not usable or (colors != labels).any():
        raise Unusable(reasons.LABELS)
    upright = planes.turn_upright(labels.astype(np.uint8).transpose(2, 0, 1), turn)
    return np.ascontiguousarray(upright), image.mode


def color_labels(labels: Array) -> npt.NDArray[np.uint8]:
    """Return labels (N, 1, H, W) in the colors of Pascal VOC, (N, 3, H, W). Label 0 is black.

    Bits 0, 3 and 6 of a label are the highest bits of red, 1, 4 and 7 of green, 2 and 5 of blue.
    """
    first = np.arange(3).reshape(1, 3, 1, 1)
    bits = ((labels >> (first + 3 * k) & 1) << (7 - k) for k in range(3))
    return np.asarray(sum(bits), np.uint8)
